//! Writes the first inputs of each fuzz target into `tests/corpus/`; run it when a format changes:
//! `cargo run -p pilot-tests --example seed_corpus`.

use std::path::Path;

use image_store::layout::{Compression, EntryAttributes, ImageSpec, LayerBuilder, LayoutWriter};
use wire::slot::*;

fn main() -> anyhow::Result<()> {
    slot_messages()?;
    layers()?;
    documents()?;
    volumes()?;
    workflows()
}

fn put(target: &str, name: &str, bytes: &[u8]) -> anyhow::Result<()> {
    let folder = pilot_tests::fuzz::corpus(target);
    std::fs::create_dir_all(&folder)?;
    Ok(std::fs::write(folder.join(name), bytes)?)
}

fn launch() -> Launch {
    Launch {
        id: LaunchId([7; 16]),
        argv: vec![b"/bin/simulate".to_vec(), b"--events".to_vec(), vec![0xff]],
        env: vec![b"PATH=/bin".to_vec(), b"HOME=/work".to_vec()],
        cwd: b"/work".to_vec(),
        umask: 0o022,
        rlimits: vec![Rlimit::Core(0), Rlimit::Data(1 << 30), Rlimit::OpenFiles(1024)],
        fds: vec![
            FdRole::Stdin,
            FdRole::Stdout,
            FdRole::StageIn("hits".into()),
            FdRole::StageOut("fit".into()),
        ],
        links: vec![InputLink { name: "geometry".into(), target: b"/.latebind/in/geometry".to_vec() }],
    }
}

fn slot_messages() -> anyhow::Result<()> {
    let exec = Exec {
        id: 3,
        argv: vec![b"ps".to_vec()],
        env: Vec::new(),
        cwd: b"/".to_vec(),
        fds: vec![FdRole::Stdout, FdRole::Stderr],
    };
    let to_shim = [
        ("welcome", ToShim::Welcome { protocol: wire::version::PROTOCOL, epoch: 9, orphan_grace_ms: 1000 }),
        ("lend", ToShim::Lend { fds: vec![FdRole::StageIn("a".into()), FdRole::StageOut("b".into())] }),
        ("launch", ToShim::Launch(launch())),
        ("memory", ToShim::LaunchInMemory { bytes: 77, fds: vec![FdRole::Launch, FdRole::Stderr] }),
        ("signal", ToShim::Signal { signal: 15 }),
        ("stop", ToShim::Stop { grace_ms: 10_000 }),
        ("exec", ToShim::Exec(exec)),
        ("clean", ToShim::Clean),
        ("retire", ToShim::Retire),
        ("signal-exec", ToShim::SignalExec { id: 1, signal: 15 }),
    ];
    for (name, message) in &to_shim {
        put("to_shim", name, &wire::encode(message)?)?;
    }
    let (memory, bytes) = wire::write_launch_memory(&launch())?;
    let mut plain = vec![0; bytes as usize];
    rustix::io::pread(&memory, &mut plain, 0)?;
    put("launch", "launch", &plain)?;
    let report = ExitReport {
        launch: LaunchId([7; 16]),
        status: WaitStatus::Signaled { signal: 9, core: false },
        usage: Usage { wall_us: 1, user_us: 2, system_us: 3, max_rss_kib: 4 },
        cgroup: Some(CgroupFigures {
            version: 1,
            memory_peak_bytes: Some(5),
            oom_kills: Some(1),
            cpu_us: None,
        }),
        leftover_processes: 2,
        stopped: true,
    };
    let hello = FromShim::Hello {
        protocol: wire::version::PROTOCOL,
        nonce: Nonce([1; 16]),
        state: ShimState::Ended(report.clone()),
    };
    let refusal = LaunchRefusal::Failed { step: "exec".into(), errno: 2 };
    let from_shim = [
        ("hello", hello),
        ("launched", FromShim::Launched { launch: LaunchId([7; 16]), pid: 3 }),
        ("refused", FromShim::LaunchRefused { launch: LaunchId([7; 16]), refusal }),
        ("exited", FromShim::Exited(report)),
        ("exec", FromShim::ExecEnded { id: 3, status: Err(13) }),
        ("cleaned", FromShim::Cleaned(CleanReport { processes: 1, files: 2, ipc_objects: 3, failures: 0 })),
        ("holder", FromShim::HolderLost),
    ];
    for (name, message) in &from_shim {
        put("from_shim", name, &wire::encode(message)?)?;
    }
    Ok(())
}

fn layers() -> anyhow::Result<()> {
    let attributes = EntryAttributes {
        xattrs: vec![("user.note".into(), b"x".to_vec())],
        pax: vec![("path".into(), vec![b'p'; 300])],
        ..EntryAttributes::default()
    };
    let tree = || {
        LayerBuilder::in_order()
            .dir("etc", 0o755)
            .file("etc/passwd", 0o644, "root:x:0:0::/:/bin/sh\n")
            .symlink("lib", "usr/lib")
            .symlink("dangling", "nowhere")
            .hard_link("hard", "dangling")
            .whiteout("etc/shadow")
            .opaque("var")
            .file("n".repeat(180) + "/" + &"m".repeat(90), 0o4755, "long")
    };
    let rich = tree().entry(image_store::layout::EntryType::Regular, "attr", 0o600, &attributes, b"y", None);
    for (name, compression) in
        [("plain", Compression::None), ("gzip", Compression::Gzip), ("zstd", Compression::Zstd)]
    {
        put("layer", name, &tree().finish(compression)?.bytes)?;
    }
    put("layer", "attributes", &rich.tar())
}

fn documents() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let spec = ImageSpec {
        entrypoint: vec!["/bin/simulate".into()],
        env: vec!["A=b".into()],
        user: "1000:1000".into(),
        ..ImageSpec::default()
    };
    let layer = LayerBuilder::new().file("a", 0o644, "a").finish(Compression::Gzip)?;
    let mut layout = LayoutWriter::create(folder.path())?;
    let written = layout.add_image("latest", &spec, vec![layer])?;
    put("document", "index", &std::fs::read(folder.path().join("index.json"))?)?;
    put("document", "manifest", &std::fs::read(layout.blob_path(&written.manifest))?)?;
    put("document", "config", &std::fs::read(layout.blob_path(&written.config))?)?;
    put("document", "saved", br#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l/layer.tar"]}]"#)
}

fn volumes() -> anyhow::Result<()> {
    for (name, attributes) in [
        ("plain", &[][..]),
        ("slots", &[("slots", "4"), ("uid", "10000"), ("permissions", "0750")]),
        ("tmpfs", &[("mode", "mount"), ("size", "64Mi"), ("gid", "7")]),
        ("shared", &[("mode", "mount"), ("source", "shared"), ("domain", "physics")]),
    ] {
        put("csi_publish", name, &csi_driver::request::fuzz_seed(attributes))?;
    }
    Ok(())
}

fn workflows() -> anyhow::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for (name, path) in [
        ("zpeak", "examples/zpeak/workflow.yaml"),
        ("licences", "examples/debian-licences/workflow.yaml"),
        ("everything", "pilot/src/workflow/everything.yaml"),
    ] {
        put("workflow", name, &std::fs::read(root.join(path))?)?;
    }
    put(
        "workflow",
        "aliases",
        b"apiVersion: latebind/v1\nmetadata: {name: a}\npayloads: &p [{name: x, image: *p}]\n",
    )
}
