//! Memory is bounded by parts, not by objects.

use std::io::{BufWriter, Write};
use std::process::{Command, Stdio};

use objects::{Expect, Put};

use crate::server::{Server, say, tier, url};

const BYTES: u64 = 256 << 20;
/// Five parts of 8 MiB and four ranges with pieces of 1 MiB, with as much again for buffers of the HTTP client.
const GROWTH_KIB: u64 = 128 << 10;

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the test owns the child and waits for it")]
async fn a_large_object_takes_a_small_memory() {
    let Some(server) = Server::start("a_large_object_takes_a_small_memory") else { return };
    let child = Command::new(std::env::current_exe().expect("program"))
        .args(["--exact", "memory::the_child_that_moves_much", "--nocapture", "--test-threads=1"])
        .env("OBJECTS_TEST_MEMORY", server.address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("child");
    let ended = tokio::task::spawn_blocking(|| child.wait_with_output().expect("wait")).await.expect("join");
    let said = String::from_utf8_lossy(&ended.stdout).into_owned();
    assert!(ended.status.success(), "{said}");
    let growth = said.lines().find_map(|line| line.strip_prefix("growth_kib=")?.parse::<u64>().ok());
    let growth = growth.expect("growth");
    assert!(growth < GROWTH_KIB, "{growth} KiB for {} KiB", BYTES >> 10);
    say(&format!("256 MiB put and fetched with {growth} KiB"));
}

#[tokio::test(flavor = "multi_thread")]
#[expect(clippy::disallowed_methods, reason = "the parent speaks to its child through the environment")]
async fn the_child_that_moves_much() {
    let Ok(address) = std::env::var("OBJECTS_TEST_MEMORY") else { return };
    let folder = crate::server::disk();
    let file = tempfile::tempfile_in(folder.path()).expect("file");
    let mut writer = BufWriter::new(&file);
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..BYTES / 8 {
        writer.write_all(&random.u64(..).to_le_bytes()).expect("write");
    }
    writer.flush().expect("flush");
    drop(writer);
    let limits = objects::Limits::default();
    let tier = tier(address.parse().expect("address"), limits);
    let before = peak_kib();
    let put = Put { bytes: BYTES, digest: None, overwrite: false };
    let stored = tier.put(&url("s3://data/large"), file.into(), put).await.expect("put");
    let into = folder.path().join("into");
    let fetched = tier.fetch(&url("s3://data/large"), &into, Expect::default()).await.expect("fetch");
    assert_eq!((fetched.digest, fetched.verified), (stored.digest, true));
    say(&format!("growth_kib={}", peak_kib() - before));
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix("kB"));
    peak.and_then(|text| text.trim().parse().ok()).expect("VmHWM")
}
