//! Measures from the request to the first byte that PID 1 writes: `start_bench TREE PROGRAM [COUNT]`.
//!
//! TREE is an unpacked image, PROGRAM a static busybox (it becomes PID 1 as `echo`). The container has the mounts of
//! a pilot's slot. Each way to attach is measured in turn.

use std::error::Error;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use oci_runner::{Bind, Container, Dir, IdMap, Network, Program, Root, Rootfs, Tmpfs, UID_BASE, caller};

#[expect(clippy::print_stdout, reason = "an example talks to its user")]
fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, tree, program, count @ ..] = args.as_slice() else {
        return Err("usage: start_bench TREE PROGRAM [COUNT]".into());
    };
    let count: usize = count.first().map_or(Ok(500), |count| count.parse())?;
    let program = Program::load(Path::new(program))?;
    let home = tempfile::tempdir()?;
    std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o755))?;
    for folder in ["layer", "work", "out", "in"] {
        std::fs::create_dir(home.path().join(folder))?;
    }
    let layers = vec![home.path().join("layer"), PathBuf::from(tree)];
    for root in [Root::Copy { tree: tree.into() }, Root::Overlay { lowers: layers }] {
        let container = slot(root, home.path(), &program)?;
        let (mut starts, mut ends) = (Vec::new(), Vec::new());
        for _ in 0..count {
            let (start_ms, end_ms) = once(&container)?;
            starts.push(start_ms);
            ends.push(end_ms);
        }
        let name = if matches!(container.root, Root::Copy { .. }) { "bind" } else { "overlay" };
        println!("{name}: request to first byte {}", figures(&mut starts));
        println!("{name}: kill and reap {}", figures(&mut ends));
    }
    Ok(())
}

fn slot<'a>(root: Root, home: &Path, program: &'a Program) -> Result<Container<'a>, Box<dyn Error>> {
    let bind = |name: &str, target: &str, read_only| Bind {
        source: home.join(name),
        target: target.into(),
        read_only,
        is_file: false,
        optional: false,
    };
    let tmpfs = |target: &str| Tmpfs { target: target.into(), size_bytes: 1 << 20, inodes: 0, mode: 0o1777 };
    Ok(Container {
        root,
        rootfs: Rootfs::ReadOnly,
        ids: IdMap::choose(&caller(), (0, 0), UID_BASE, 0)?,
        hostname: "slot-0".into(),
        network: Network::Host,
        binds: vec![
            bind("work", "/work", false),
            bind("out", "/stage/out", false),
            bind("in", "/.latebind/in", true),
        ],
        tmpfs: ["/tmp", "/stage"].map(tmpfs).into(),
        dirs: vec![Dir { target: "/stage/in".into(), mode: 0o755 }],
        shm_bytes: 1 << 20,
        nested_user_namespaces: false,
        program,
        argv: vec!["echo".into(), "x".into()],
        env: Vec::new(),
        fds: Vec::new(),
        cgroup: None,
        dies_with_starting_thread: false,
    })
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn once(container: &Container<'_>) -> Result<(f64, f64), Box<dyn Error>> {
    let began = Instant::now();
    let (mut output, output_inside) = std::io::pipe()?;
    let running = oci_runner::start(&Container {
        root: container.root.clone(),
        rootfs: container.rootfs.clone(),
        hostname: container.hostname.clone(),
        binds: container.binds.clone(),
        tmpfs: container.tmpfs.clone(),
        dirs: container.dirs.clone(),
        argv: container.argv.clone(),
        env: container.env.clone(),
        fds: vec![(output_inside.as_fd(), 1)],
        ..*container
    })?;
    output.read_exact(&mut [0])?;
    let start_ms = began.elapsed().as_secs_f64() * 1e3;
    let began = Instant::now();
    drop(running);
    Ok((start_ms, began.elapsed().as_secs_f64() * 1e3))
}

fn figures(times_ms: &mut [f64]) -> String {
    times_ms.sort_by(f64::total_cmp);
    let at = |percent: usize| times_ms[(times_ms.len() - 1) * percent / 100];
    format!("p50 {:.2} ms, p95 {:.2} ms, p99 {:.2} ms", at(50), at(95), at(99))
}
