//! `pilot stage ls|get|df`: the stages that pilots of the spool hold, and what is in one.
//!
//! A stage goes with its last reader, so there is nothing to remove here; whoever wants one for longer saves it.
//!
//! **Must not know:** where stages lie, how a pilot keeps them.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use pilot_core::RunExit;
use spool::{OpenError, Spool, SpoolError};
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
            StageCommand::Get { .. } => None,
        };
        let pilots = pilots(&spool_folder(settings.spool, around)?, only).await?;
        let json = output == OutputFormat::Json;
        match command {
            StageCommand::Ls { .. } => list(&pilots, json),
            StageCommand::Df { .. } => sum(&pilots, json),
            StageCommand::Get { stage, file } => return get(pilots, stage, file.as_deref()).await,
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
            let line =
                serde_json::json!({"kind": "stage", "stage": row.stage, "bytes": row.bytes, "pilot": pilot});
            format!("{line}\n")
        } else {
            let (stage, pilot) = (printable(&row.stage), printable(pilot));
            format!("{stage:widest$}  {:>10}  {pilot}\n", bytes(row.bytes))
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
