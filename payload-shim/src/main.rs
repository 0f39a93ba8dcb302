//! `payload-shim`: the order of steps at start. Everything else is in the library.

use std::process::ExitCode;

use payload_shim::settings::Settings;
use payload_shim::shim::Shim;
use payload_shim::{confine, holder, shim};
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior};

fn main() -> ExitCode {
    // Before anything else: a signal that came while its default disposition is in force would end PID 1 when it is
    // not PID 1 of a namespace, and would be lost when it is.
    payload_shim::block_signals();
    if std::env::args_os().nth(1).is_some_and(|argument| argument == holder::ARGUMENT) {
        holder::serve();
        return ExitCode::SUCCESS;
    }
    match start() {
        Ok(mut shim) => {
            let exit = shim.run();
            if let Some(why) = exit.why() {
                tell(why);
            }
            ExitCode::from(exit.code())
        }
        Err(text) => {
            tell(&text);
            ExitCode::from(shim::FAULT)
        }
    }
}

fn start() -> Result<Shim, String> {
    // From here on no process of our uid can trace us, read our memory or take our descriptors (ptrace(2)).
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(|errno| fault("hide from tracers", errno))?;
    let settings = Settings::take().map_err(|error| chain(&error))?;
    payload_shim::give_up().map_err(|errno| fault("give up privileges", errno))?;
    if settings.in_pod {
        confine::narrow().map_err(|error| format!("filter system calls: {error}"))?;
    }
    if !getpid().is_init() {
        set_child_subreaper(Some(getpid())).map_err(|errno| fault("become subreaper", errno))?;
    }
    Shim::start(settings).map_err(|error| chain(&error))
}

fn fault(what: &str, errno: rustix::io::Errno) -> String {
    format!("{what}: {errno}")
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// The one place that writes to the standard error stream; nobody listening is no fault.
fn tell(text: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "payload-shim: {text}");
}
