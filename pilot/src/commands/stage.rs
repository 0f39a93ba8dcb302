//! `pilot stage ls|get|rm|df`: the stages that pilots of the spool hold, what is in one, and one made anew.
//!
//! A stage goes with its last reader, so none has to be removed to make room; whoever wants one for longer saves it. What `rm` is
//! for is a stage that should be another one: its producer runs again.
//!
//! **Must not know:** where stages lie, how a pilot keeps them.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pilot_core::RunExit;
use spool::{OpenError, Remade, Spool, SpoolError};
use stage::StageUri;

use crate::api::LinkError;
use crate::api::client::{Client, ExecError, Status};
use crate::cli::{OutputFormat, complain, refuse, say};
use crate::config::{ConfigError, Settings, Surroundings, spool_folder};
use crate::ui::{bytes, printable};

/// Commands on stages.
#[derive(clap::Subcommand, Debug)]
pub enum StageCommand {
    /// List the stages that pilots hold for payloads that have not read them yet
    Ls {
        /// Only this pilot's
        #[arg(long, value_name = "NAME")]
        pilot: Option<String>,
    },
    /// Copy what is in a stage to a file, or to standard output
    Get {
        /// As `pilot stage ls` prints it: stage://RUN/PAYLOAD/OUTPUT
        stage: StageUri,
        /// The file, which must not exist [default: standard output]
        file: Option<PathBuf>,
    },
    /// Drop a stage that was not read yet, so that its producer makes it again
    Rm {
        /// As `pilot stage ls` prints it: stage://RUN/PAYLOAD/OUTPUT
        stage: StageUri,
    },
    /// Say how much pilots hold
    Df {
        /// Only this pilot's
        #[arg(long, value_name = "NAME")]
        pilot: Option<String>,
    },
}

#[derive(Debug, thiserror::Error)]
enum StageError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("open the spool")]
    Open(#[from] OpenError),
    #[error("read the spool")]
    Read(#[from] SpoolError),
    #[error("find pilot {0}: it does not serve this spool now")]
    NoPilot(String),
    #[error("ask pilot {pilot}")]
    Ask {
        pilot: String,
        #[source]
        source: LinkError,
    },
    #[error("find {0}: no pilot of this spool holds it; `pilot stage ls` says what there is")]
    NoStage(StageUri),
    #[error("get {stage} from pilot {pilot}: {why}")]
    Get { stage: StageUri, pilot: String, why: String },
    #[error("remove {stage}: {why}")]
    Keep { stage: StageUri, why: String },
    #[error("change the spool")]
    Change(#[source] SpoolError),
    #[error("write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
}

/// A pilot that serves the spool.
struct Pilot {
    name: String,
    client: Client,
    status: Status,
}

/// Does it.
pub fn stage(
    settings: Settings,
    around: &Surroundings,
    command: &StageCommand,
    output: OutputFormat,
) -> RunExit {
    let threads = match super::threads() {
        Ok(threads) => threads,
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    let done = threads.block_on(async {
        let only = match command {
            StageCommand::Ls { pilot } | StageCommand::Df { pilot } => pilot.as_deref(),
            StageCommand::Get { .. } | StageCommand::Rm { .. } => None,
        };
        let folder = spool_folder(settings.spool, around)?;
        let pilots = pilots(&folder, only).await?;
        let json = output == OutputFormat::Json;
        match command {
            StageCommand::Ls { .. } => list(&pilots, json),
            StageCommand::Df { .. } => sum(&pilots, json),
            StageCommand::Get { stage, file } => return get(pilots, stage, file.as_deref()).await,
            StageCommand::Rm { stage } => return remove(&folder, &pilots, stage, json),
        }
        Ok(())
    });
    match done {
        Ok(()) => RunExit::Success,
        Err(error) => refuse(&error),
    }
}

/// Those that are there; all must answer.
async fn pilots(folder: &Path, only: Option<&str>) -> Result<Vec<Pilot>, StageError> {
    let mut known = Spool::open_existing(folder)?.pilots()?;
    known.retain(|pilot| pilot.alive && only.is_none_or(|only| pilot.name == only));
    if let (Some(only), true) = (only, known.is_empty()) {
        return Err(StageError::NoPilot(only.to_owned()));
    }
    let mut found = Vec::with_capacity(known.len());
    for pilot in known {
        let asked = async {
            let client = Client::connect(Path::new(&pilot.api_socket)).await?;
            let status = client.status().await?;
            Ok((client, status))
        };
        let (client, status) =
            asked.await.map_err(|source| StageError::Ask { pilot: pilot.name.clone(), source })?;
        found.push(Pilot { name: pilot.name, client, status });
    }
    Ok(found)
}

fn list(pilots: &[Pilot], json: bool) {
    let rows = pilots.iter().flat_map(|pilot| pilot.status.stages.iter().map(move |row| (&pilot.name, row)));
    let widest = rows.clone().map(|(_, row)| row.stage.chars().count()).max().unwrap_or(0);
    for (pilot, row) in rows {
        say(&if json {
            let place = row.place.as_str();
            let line = serde_json::json!({"kind": "stage", "stage": row.stage, "bytes": row.bytes, "place": place, "pilot": pilot});
            format!("{line}\n")
        } else {
            let (stage, pilot) = (printable(&row.stage), printable(pilot));
            format!("{stage:widest$}  {:>10}  {:6}  {pilot}\n", bytes(row.bytes), row.place.as_str())
        });
    }
}

fn sum(pilots: &[Pilot], json: bool) {
    for Pilot { name, status, .. } in pilots {
        let (stages, held, budget) =
            (status.pilot.stages, status.pilot.stage_bytes, status.pilot.memory_bytes);
        say(&if json {
            let line = serde_json::json!({"kind": "pilot", "pilot": name, "stages": stages, "bytes": held, "memory_bytes": budget});
            format!("{line}\n")
        } else {
            let count = if stages == 1 { "1 stage".to_owned() } else { format!("{stages} stages") };
            let (name, held, budget) = (printable(name), bytes(held), bytes(budget));
            format!("{name}: {count}, {held}; at most {budget} in memory\n")
        });
    }
}

/// The pilot drops it when its producer starts again; nobody reads it until then.
fn remove(folder: &Path, pilots: &[Pilot], stage: &StageUri, json: bool) -> Result<(), StageError> {
    let wanted = stage.to_string();
    let held: BTreeSet<&str> =
        pilots.iter().flat_map(|pilot| &pilot.status.stages).map(|row| row.stage.as_str()).collect();
    if !held.contains(wanted.as_str()) {
        return Err(StageError::NoStage(stage.clone()));
    }
    let keep = |why: String| Err(StageError::Keep { stage: stage.clone(), why });
    let lists_all = |pilot: &Pilot| pilot.status.stages.len() as u64 >= pilot.status.pilot.stages;
    if let Some(pilot) = pilots.iter().find(|pilot| !lists_all(pilot)) {
        let (name, stages) = (printable(&pilot.name), pilot.status.pilot.stages);
        return keep(format!(
            "pilot {name} holds {stages} stages and does not list all; try again when it holds fewer"
        ));
    }
    let mut spool = Spool::open_existing(folder)?;
    let remade = spool.remake(&wanted, &mut |uri| held.contains(uri)).map_err(StageError::Change)?;
    let again = match remade {
        Remade::Again(again) => again.len(),
        Remade::Unknown => return keep("no payload of this spool has made it".to_owned()),
        Remade::Unread => return keep("nobody will read it any more, so it goes by itself".to_owned()),
        Remade::Reading(payload) => {
            let payload = printable(&payload);
            return keep(format!(
                "{payload} may be reading what its producer made; wait until it has ended, or cancel it"
            ));
        }
        Remade::Once(payload) => {
            let payload = printable(&payload);
            return keep(format!("{payload} would have to run again, and may run only once"));
        }
    };
    spool::poke(folder);
    say(&if json {
        let line = serde_json::json!({"kind": "removed", "stage": wanted, "run_again": again});
        format!("{line}\n")
    } else {
        let payloads = if again == 1 { "payload runs" } else { "payloads run" };
        format!("{stage}: {again} {payloads} again\n")
    });
    Ok(())
}

async fn get(pilots: Vec<Pilot>, stage: &StageUri, file: Option<&Path>) -> Result<(), StageError> {
    let wanted = stage.to_string();
    let holder = pilots.into_iter().find(|pilot| pilot.status.stages.iter().any(|row| row.stage == wanted));
    let Some(Pilot { name, client, .. }) = holder else { return Err(StageError::NoStage(stage.clone())) };
    let mut content = client.open_stage(stage).await.map(File::from).map_err(|error| match error {
        ExecError::Refused(why) => StageError::Get { stage: stage.clone(), pilot: name.clone(), why },
        ExecError::Link(source) => StageError::Ask { pilot: name.clone(), source },
    })?;
    let Some(path) = file else {
        let failed = |source| StageError::Write { path: "/dev/stdout".into(), source };
        let mut out = io::stdout().lock();
        return io::copy(&mut content, &mut out).and_then(|_| out.flush()).map_err(failed);
    };
    let failed = |source| StageError::Write { path: path.to_owned(), source };
    let mut into = File::create_new(path).map_err(failed)?;
    io::copy(&mut content, &mut into).map(drop).map_err(|source| {
        // Half of it is of no use.
        let _ = std::fs::remove_file(path);
        failed(source)
    })
}
