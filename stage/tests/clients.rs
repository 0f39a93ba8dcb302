//! The clients in other languages, against a real broker.
#![expect(clippy::disallowed_methods, reason = "tests that run other languages' programs")]

#[expect(dead_code, reason = "each suite uses a part of it")]
mod common;
#[path = "broker/room.rs"]
#[expect(dead_code, reason = "each suite uses a part of it")]
mod room;

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use stage::Class;
use stage::server::Made;

use common::{open_dir, skipped};
use room::{Room, Session, grant, reader, settings, uri};

/// Outputs enough for every test of a suite to have its own.
fn stages() -> (Room, Session, Session) {
    let room = Room::new(settings(64 << 20));
    let memory = (0..100).map(|n| (format!("o{n}"), Class::Mem, 1 << 20));
    let outputs: Vec<_> = memory.chain((0..20).map(|n| (format!("v{n}"), Class::Value, 65_536))).collect();
    let declared: Vec<_> = outputs.iter().map(|(name, class, max)| (name.as_str(), *class, *max)).collect();
    let mut inputs: Vec<_> =
        outputs.iter().map(|(name, ..)| (name.as_str(), "producer", name.as_str())).collect();
    inputs.extend([("f", "pilot", "file"), ("ready", "pilot", "value")]);
    let producer = room.session(grant("producer", &declared, &[]));
    let consumer = room.session(grant("consumer", &[], &inputs));

    std::fs::write(room.folder.path().join("file"), b"in a file").expect("write");
    let dir = Arc::new(OwnedFd::from(open_dir(room.folder.path())));
    let readers = BTreeSet::from([reader()]);
    let file = Made::File { dir, path: "file".into(), bytes: 9 };
    let value = Made::Value(b"inline".to_vec());
    for (output, made) in [("file", file), ("value", value)] {
        assert!(room.server.insert(&uri("pilot", output), made, &readers).expect("ask").expect("insert"));
    }
    (room, producer, consumer)
}

fn clients() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").join("clients")
}

fn works(program: &mut Command) -> bool {
    program.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

fn passes(program: &mut Command, producer: &Session, consumer: &Session) -> String {
    let ran = program
        .env("LATEBIND_STAGE", &producer.path)
        .env("LATEBIND_TEST_CONSUMER", &consumer.path)
        .output()
        .expect("run");
    let told = [ran.stdout, ran.stderr].concat();
    let told = String::from_utf8_lossy(&told).into_owned();
    assert!(ran.status.success(), "{told}");
    told
}

#[test]
fn the_python_package_passes_its_tests() {
    let new_enough = "import sys; sys.exit(sys.version_info < (3, 9))";
    if !works(Command::new("python3").args(["-c", new_enough])) {
        return skipped("the_python_package_passes_its_tests", "python3, 3.9 or newer");
    }
    let (_room, producer, consumer) = stages();
    let package = clients().join("python");
    let mut python = Command::new("python3");
    python.args(["-B", "-W", "error", "-m", "unittest", "discover", "-s", "tests"]);
    // What is there already stays: numpy may lie in it.
    let paths = std::env::var_os("PYTHONPATH").unwrap_or_default();
    let paths = std::iter::once(package.join("src")).chain(std::env::split_paths(&paths));
    python.current_dir(&package).env("PYTHONPATH", std::env::join_paths(paths).expect("paths"));
    let told = passes(&mut python, &producer, &consumer);
    assert!(told.contains("Ran ") && !told.contains("Ran 0"), "{told}");
}

#[test]
fn the_c_header_compiles_without_a_warning_and_passes_its_test() {
    if !works(Command::new("cc").arg("--version")) {
        return skipped("the_c_header_compiles_without_a_warning_and_passes_its_test", "cc");
    }
    let (room, producer, consumer) = stages();
    let program = room.folder.path().join("test_stages");
    let compiled = Command::new("cc")
        .args(["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-Wpedantic", "-Wconversion", "-o"])
        .arg(&program)
        .arg(clients().join("c/test_stages.c"))
        .output()
        .expect("cc");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    passes(&mut Command::new(program), &producer, &consumer);
}
