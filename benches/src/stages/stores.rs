//! The peers that are servers: redis-server and vineyardd, each with a folder of its own on the loopback.

use std::fs::File;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use crate::peers::command;

/// A server; it ends with its handle.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    /// Where it listens; 0 for a socket in the folder.
    pub(super) port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Debian's, in memory alone.
pub(super) fn redis(place: &Path) -> anyhow::Result<Server> {
    let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut redis = command("redis-server");
    redis.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]);
    redis.arg("--dir").arg(place);
    let server = start(redis, place, "redis", port)?;
    until(server, "redis-server", || TcpStream::connect(("127.0.0.1", port)).is_ok())
}

/// PyPI's, in the folder of its packages.
pub(super) fn vineyard(place: &Path, packages: &Path) -> anyhow::Result<Server> {
    let mut vineyard = command(packages.join("vineyard/bdist/vineyardd"));
    let socket = place.join("vineyard");
    vineyard.arg("--socket").arg(&socket).args(["--size", "3Gi", "--meta", "local", "--norpc"]);
    let server = start(vineyard, place, "vineyardd", 0)?;
    until(server, "vineyardd", || std::os::unix::net::UnixStream::connect(&socket).is_ok())
}

fn start(mut server: std::process::Command, place: &Path, name: &str, port: u16) -> anyhow::Result<Server> {
    let said = File::create(place.join(format!("{name}.log")))?;
    server.current_dir(place).stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
    Ok(Server { child: server.spawn().with_context(|| format!("start {name}"))?, port })
}

fn until(mut server: Server, name: &str, ready: impl Fn() -> bool) -> anyhow::Result<Server> {
    for _ in 0..1000 {
        if ready() {
            return Ok(server);
        }
        if let Some(status) = server.child.try_wait()? {
            bail!("{name}: {status}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("{name} did not start")
}
