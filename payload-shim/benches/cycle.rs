//! What a warm slot costs: Launch -> Launched -> Exited -> Clean -> Cleaned of a program that ends at once, again and
//! again on one connection, beside a bare spawn and wait of the same program.
//!
//! `LATEBIND_TEST_SHIM=<static shim> cargo bench -p payload-shim [-- <cycles>]`; without the variable the shim of the
//! bench profile is measured, which is dynamic.

#[path = "../tests/common/mod.rs"]
mod common;

use std::fmt::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::time::Instant;

use common::{Setup, Slot};
use wire::slot::*;

const CYCLES: usize = 5000;
const WARM_UP: usize = 200;

/// A static program of one system call, exit(0): an ELF header, a program header, the code.
fn program() -> Vec<u8> {
    let code = [0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05];
    let (base, headers) = (0x40_0000_u64, 64 + 56_u64);
    let size = headers + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    for word in [base + headers, 64, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    for word in [0, base, base, size, size, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// Shell lines that write the program to `/one` in the slot.
fn write_program() -> String {
    let mut octal = String::new();
    for byte in program() {
        let _ = write!(octal, "\\{byte:03o}");
    }
    format!("printf '{octal}' > one; chmod +x one")
}

fn median(mut times: Vec<u64>) -> u64 {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or(0)
}

/// Nanoseconds that a thread was on a processor (`/proc/<pid>/schedstat`).
fn on_cpu_ns(pid: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat")).unwrap_or_default();
    text.split_whitespace().next().and_then(|word| word.parse().ok()).unwrap_or(0)
}

struct Figures {
    wall_us: u64,
    shim_us: f64,
    payload_us: f64,
    pilot_us: f64,
    max_rss_kib: u64,
}

fn micros(from: Instant) -> u64 {
    u64::try_from(from.elapsed().as_micros()).unwrap_or(u64::MAX)
}

#[expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]
fn now() -> Instant {
    Instant::now()
}

fn warm(slot: &mut Slot, cycles: usize, lent: &[(FdRole, OwnedFd)]) -> Figures {
    let shim = slot.shim().as_raw_nonzero().to_string();
    let mut launch = slot.launch(&["/one"]);
    launch.rlimits = vec![Rlimit::Core(0)];
    launch.fds = lent.iter().map(|(role, _)| role.clone()).collect();
    let fds: Vec<_> = lent.iter().map(|(_, fd)| fd.as_fd()).collect();
    let (mut walls, mut payload_us, mut before, mut max_rss_kib) = (Vec::new(), 0, [0, 0], 0);
    for cycle in 0..WARM_UP + cycles {
        if cycle == WARM_UP {
            (before, payload_us) = ([on_cpu_ns(&shim), on_cpu_ns("self")], 0);
        }
        launch.id = LaunchId(
            ((cycle as u128 + 1) << 64
                | launch.fds.iter().filter(|role| matches!(role, FdRole::StageIn(_))).count() as u128)
                .to_be_bytes(),
        );
        let from = now();
        slot.begin(&launch, &fds);
        let report = slot.exited();
        let cleaned = slot.clean();
        walls.push(micros(from));
        assert_eq!((report.status, cleaned.failures), (WaitStatus::Exited(0), 0));
        payload_us += report.usage.user_us + report.usage.system_us;
        max_rss_kib = max_rss_kib.max(report.usage.max_rss_kib);
    }
    let each = |total: u64| total as f64 / cycles as f64;
    Figures {
        wall_us: median(walls.split_off(WARM_UP)),
        shim_us: each(on_cpu_ns(&shim) - before[0]) / 1000.0,
        pilot_us: each(on_cpu_ns("self") - before[1]) / 1000.0,
        payload_us: each(payload_us),
        max_rss_kib,
    }
}

#[expect(clippy::disallowed_methods, reason = "waited for on the same line")]
fn bare(cycles: usize) -> Figures {
    let folder = tempfile::tempdir().expect("tempdir");
    let path = folder.path().join("one");
    std::fs::write(&path, program()).expect("write");
    let mode = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
    std::fs::set_permissions(&path, mode).expect("chmod");
    let mut walls = Vec::new();
    let mut before = 0;
    for cycle in 0..WARM_UP + cycles {
        if cycle == WARM_UP {
            before = on_cpu_ns("self");
        }
        let from = now();
        assert!(Command::new(&path).status().expect("spawn").success());
        walls.push(micros(from));
    }
    let own_us = (on_cpu_ns("self") - before) as f64 / 1000.0 / cycles as f64;
    Figures {
        wall_us: median(walls.split_off(WARM_UP)),
        shim_us: own_us,
        payload_us: 0.0,
        pilot_us: 0.0,
        max_rss_kib: 0,
    }
}

#[expect(clippy::print_stdout, reason = "its result")]
fn main() {
    let cycles = std::env::args().filter_map(|word| word.parse().ok()).next_back().unwrap_or(CYCLES);
    if !cfg!(target_arch = "x86_64") {
        return common::skip("cycle", "the program is made of x86-64 instructions");
    }
    // Leaked once: the slot's setup is a constant everywhere else.
    let extra: &'static str = Box::leak(write_program().into_boxed_str());
    let mut slot = Slot::start(Setup { extra, ..Setup::default() });
    slot.greet(10_000);
    let null = || OwnedFd::from(std::fs::File::options().write(true).open("/dev/null").expect("null"));
    let plain = [(FdRole::Stdout, null()), (FdRole::Stderr, null())];
    let base = bare(cycles);
    println!("bare spawn and wait: p50 {} us, parent {:.0} us of CPU", base.wall_us, base.shim_us);
    let [stage, result] = [0o444, 0o666].map(|mode| common::memory(b"x", mode));
    let stages = [(FdRole::StageIn("in".into()), stage), (FdRole::StageOut("out".into()), result)];
    for (name, lent) in [("warm cycle", &plain), ("with two stages", &stages)] {
        let warm = warm(&mut slot, cycles, lent);
        println!(
            "{name}: p50 {} us ({:.2} of bare), CPU: shim {:.0} us, payload {:.0} us, pilot {:.0} us; max_rss {} KiB",
            warm.wall_us,
            base.wall_us as f64 / warm.wall_us as f64,
            warm.shim_us,
            warm.payload_us,
            warm.pilot_us,
            warm.max_rss_kib,
        );
    }
}
