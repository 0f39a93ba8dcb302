//! `pilot exec RUN/PAYLOAD -- COMMAND`: a program beside a payload that runs, with this process's own descriptors.
//!
//! **Must not know:** how a slot runs programs.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use pilot_core::RunExit;
use spool::{Address, Found, Spool, State, workflow_of};
use tokio::signal::unix::{Signal, SignalKind, signal};
use wire::pilot::{ExecEnd, PilotExec};
use wire::slot::{FdRole, WaitStatus};

use crate::api::client::{Client, ExecError, Session};
use crate::cli::complain;
use crate::config::{Settings, Surroundings, spool_folder};
use crate::fault::chain;

/// The command could not be run beside the payload, as docker's and podman's own failures: nothing that a shell uses.
pub const NOT_DONE: u8 = 125;
/// What a shell answers when a program can't be run, or isn't there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
const ENOENT: i32 = 2;
const SIGKILL: u8 = 9;
/// Passed on.
const SIGNALS: [SignalKind; 4] =
    [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup(), SignalKind::quit()];

/// Arguments of `pilot exec`.
#[derive(clap::Args, Debug)]
pub struct ExecArgs {
    /// A payload that runs, as `pilot ls` prints it, such as 7/fit
    #[arg(value_name = "RUN/PAYLOAD")]
    pub address: String,
    /// Add a variable to the payload's environment (may be repeated)
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    pub env: Vec<String>,
    /// Working directory in the slot [default: the payload's]
    #[arg(short, long, value_name = "DIR", value_parser = directory)]
    pub workdir: Option<String>,
    /// The program and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<std::ffi::OsString>,
}

fn variable(text: &str) -> Result<String, &'static str> {
    match text.split_once('=') {
        Some((name, _)) if !name.is_empty() => Ok(text.to_owned()),
        _ => Err("write NAME=VALUE"),
    }
}

fn directory(text: &str) -> Result<String, &'static str> {
    if text.starts_with('/') { Ok(text.to_owned()) } else { Err("write an absolute path") }
}

/// Why there is nothing beside which to run.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("{0}")]
    Input(String),
    #[error("{0}")]
    NotRunning(String),
}

impl Lost {
    fn input(error: &dyn std::error::Error) -> Self {
        Self::Input(chain(error))
    }

    const fn code(&self) -> u8 {
        match self {
            Self::Input(_) => RunExit::BadInput.code(),
            Self::NotRunning(_) => NOT_DONE,
        }
    }
}

/// A payload that runs, and who has it.
#[derive(Debug)]
struct Place {
    workflow: String,
    payload: String,
    socket: PathBuf,
}

/// Runs the command to its end and gives its exit code.
pub fn exec(settings: Settings, around: &Surroundings, arguments: ExecArgs) -> u8 {
    let place = match find(settings, around, &arguments.address) {
        Ok(place) => place,
        Err(lost) => {
            complain(&lost.to_string());
            return lost.code();
        }
    };
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(threads) => threads.block_on(run(place, arguments)),
        Err(error) => {
            complain(&format!("start: {error}"));
            RunExit::OwnFault.code()
        }
    }
}

fn find(settings: Settings, around: &Surroundings, address: &str) -> Result<Place, Lost> {
    let folder = spool_folder(settings.spool, around).map_err(|error| Lost::input(&error))?;
    let parsed: Address = address.parse().map_err(|error| Lost::input(&error))?;
    let spool = Spool::open_existing(&folder).map_err(|error| Lost::input(&error))?;
    let row = match spool.find(&parsed).map_err(|error| Lost::input(&error))? {
        Found::Payload(row) => row,
        Found::Run(run) => {
            return Err(Lost::Input(format!(
                "{address} is a whole run; name one payload, as in {}/NAME",
                run.id
            )));
        }
        Found::Family(_, family) => {
            return Err(Lost::Input(format!("{address} is an array; name one payload, such as {family}-0")));
        }
    };
    let name = match (&row.pilot, row.state) {
        (Some(name), State::Claimed) => name,
        (_, state) => return Err(Lost::NotRunning(format!("{address} does not run: it is {state}"))),
    };
    let pilots = spool.pilots().map_err(|error| Lost::input(&error))?;
    let pilot = pilots.into_iter().find(|pilot| pilot.name == *name && pilot.alive).ok_or_else(|| {
        Lost::NotRunning(format!("{address} was taken by pilot {name}, which is not there"))
    })?;
    Ok(Place {
        workflow: workflow_of(&row.run_name, row.run),
        payload: row.name,
        socket: PathBuf::from(pilot.api_socket),
    })
}

async fn run(place: Place, arguments: ExecArgs) -> u8 {
    // Listening comes first: from here on a signal is the command's business.
    let signals: std::io::Result<Vec<(i32, Signal)>> =
        SIGNALS.into_iter().map(|kind| Ok((kind.as_raw_value(), signal(kind)?))).collect();
    let signals = match signals {
        Ok(signals) => signals,
        Err(error) => {
            complain(&format!("listen for signals: {error}"));
            return RunExit::OwnFault.code();
        }
    };
    match start(&place.socket, request(&place, arguments)).await {
        Ok(session) => follow(&session, signals).await,
        Err(error) => {
            complain(&chain(&error));
            NOT_DONE
        }
    }
}

fn request(place: &Place, arguments: ExecArgs) -> PilotExec {
    use std::os::unix::ffi::OsStringExt;
    PilotExec {
        workflow: place.workflow.clone(),
        payload: place.payload.clone(),
        argv: arguments.command.into_iter().map(OsStringExt::into_vec).collect(),
        env: arguments.env.into_iter().map(String::into_bytes).collect(),
        cwd: arguments.workdir.map(String::into_bytes),
        fds: vec![FdRole::Stdin, FdRole::Stdout, FdRole::Stderr],
    }
}

async fn start(socket: &Path, request: PilotExec) -> Result<Session, ExecError> {
    let client = Client::connect(socket).await?;
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    client.exec(request, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()]).await
}

/// Passes signals on until the command ends. What can't be told ends this process as the signal would have.
async fn follow(session: &Session, mut signals: Vec<(i32, Signal)>) -> u8 {
    let mut last: Option<i32> = None;
    let given_up = |last: Option<i32>| match last.and_then(|signal| u8::try_from(signal).ok()) {
        Some(signal) => 128_u8.saturating_add(signal),
        None => NOT_DONE,
    };
    loop {
        let end = tokio::select! {
            end = session.wait() => end,
            signal = any(&mut signals) => {
                last = Some(signal);
                if let Err(error) = session.signal(signal).await {
                    complain(&chain(&error));
                    return given_up(last);
                }
                continue;
            }
        };
        return match end {
            Ok(ExecEnd::Ran(status)) => code(status),
            Ok(ExecEnd::NotStarted(errno)) => {
                let why = std::io::Error::from_raw_os_error(errno);
                complain(&format!("execute the command in the slot: {why}"));
                if errno == ENOENT { NOT_FOUND } else { NOT_EXECUTABLE }
            }
            Ok(ExecEnd::PayloadEnded) => {
                complain("the payload has ended, and the command with it");
                128 + SIGKILL
            }
            Err(error) => {
                complain(&chain(&error));
                given_up(last)
            }
        };
    }
}

/// The next of the signals.
async fn any(signals: &mut [(i32, Signal)]) -> i32 {
    std::future::poll_fn(|context| {
        for (number, signal) in signals.iter_mut() {
            if signal.poll_recv(context).is_ready() {
                return std::task::Poll::Ready(*number);
            }
        }
        std::task::Poll::Pending
    })
    .await
}

/// As a shell tells it.
fn code(status: WaitStatus) -> u8 {
    match status {
        WaitStatus::Exited(code) => code,
        WaitStatus::Signaled { signal, .. } => {
            u8::try_from(signal).map_or(u8::MAX, |signal| 128_u8.saturating_add(signal))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Place, code, request, variable};
    use wire::slot::WaitStatus;

    #[test]
    fn ends_are_told_as_a_shell_tells_them() {
        assert_eq!(code(WaitStatus::Exited(3)), 3);
        assert_eq!(code(WaitStatus::Signaled { signal: 15, core: false }), 143);
        assert_eq!(code(WaitStatus::Signaled { signal: 300, core: false }), 255);
    }

    #[test]
    fn a_command_is_asked_for_as_it_was_written() {
        #[derive(clap::Parser)]
        struct Line {
            #[command(flatten)]
            arguments: super::ExecArgs,
        }
        let line = ["exec", "7/fit", "-e", "A=b=c", "-w", "/work", "--", "ps", "-e", "--", "x"];
        let arguments = <Line as clap::Parser>::try_parse_from(line).expect("parse").arguments;
        let place = Place { workflow: "zpeak.7".into(), payload: "fit".into(), socket: "/s".into() };
        let request = request(&place, arguments);
        assert_eq!(request.argv, [b"ps".to_vec(), b"-e".to_vec(), b"--".to_vec(), b"x".to_vec()]);
        assert_eq!((request.env, request.cwd), (vec![b"A=b=c".to_vec()], Some(b"/work".to_vec())));
        assert!(variable("=x").is_err() && variable("NAME").is_err() && variable("N=").is_ok());
        assert!(<Line as clap::Parser>::try_parse_from(["exec", "7/fit", "-w", "work", "--", "ps"]).is_err());
        assert!(<Line as clap::Parser>::try_parse_from(["exec", "7/fit"]).is_err());
    }
}
