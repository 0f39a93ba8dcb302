//! A broker to try clients with: `cargo run -p stage --example broker -- FOLDER`, then `LATEBIND_STAGE=FOLDER/producer ..`.
#![expect(clippy::print_stdout, reason = "it says where it listens")]

use std::collections::BTreeSet;
use std::error::Error;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with};
use stage::broker::{Grant, GrantInput, GrantOutput, Limits};
use stage::server::{BrokerServer, Settings};
use stage::{Budget, Class, StageName, StageUri};

fn main() -> Result<(), Box<dyn Error>> {
    let folder = std::env::args_os().nth(1).ok_or("say in which folder the sockets are to be")?;
    std::fs::create_dir_all(&folder)?;
    let limits = Limits::new(Budget { memory_bytes: 4 << 30, disk_bytes: 0 });
    let broker = BrokerServer::start(Settings::new(limits))?;
    let (workflow, producer) = (StageName::new("try")?, StageName::new("producer")?);
    let consumer = StageName::new("consumer")?;
    let mut makes = Grant {
        workflow: workflow.clone(),
        payload: producer.clone(),
        outputs: Vec::new(),
        inputs: Vec::new(),
    };
    let mut reads =
        Grant { workflow: workflow.clone(), payload: consumer, outputs: Vec::new(), inputs: Vec::new() };
    for (name, class, max_bytes) in [
        ("a", Class::Mem, 1 << 30),
        ("b", Class::Mem, 1 << 30),
        ("c", Class::Mem, 1 << 30),
        ("v", Class::Value, 65_536),
    ] {
        let name = StageName::new(name)?;
        let readers = BTreeSet::from([StageName::new("consumer")?]);
        let uri = StageUri { workflow: workflow.clone(), payload: producer.clone(), output: name.clone() };
        makes.outputs.push(GrantOutput { name: name.clone(), class, max_bytes, readers });
        reads.inputs.push(GrantInput { name, uri, live: true });
    }
    for grant in [makes, reads] {
        let path = Path::new(&folder).join(grant.payload.as_str());
        let _ = std::fs::remove_file(&path);
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        bind(&socket, &SocketAddrUnix::new(&path)?)?;
        listen(&socket, 64)?;
        println!("LATEBIND_STAGE={}", path.display());
        broker.open_session(socket, grant)?;
    }
    loop {
        std::thread::park();
    }
}
