//! `pilot submit FILE...`: workflows into the spool, to be run by whoever serves it.
//!
//! A file means the same here as to `pilot run`: both read it with the same functions.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use pilot_core::RunExit;
use spool::{RunId, SpoolError, Submitted};
use stage::StageName;

use crate::cli::{OutputFormat, SubmitArgs, complain, refuse};
use crate::commands::spooled::{Face, Opened, failed, open_or_make, print};
use crate::commands::standing::payloads;
use crate::commands::wait::{NOT_SERVED, until_ended};
use crate::config::{Settings, Surroundings};
use crate::entries::{entries, saves_allowed};
use crate::queue::spool::submission;
use crate::ui::printable;
use crate::workflow::{self, Disk, Plan};

/// Submits.
pub fn submit(
    settings: Settings,
    around: &Surroundings,
    arguments: &SubmitArgs,
    output: OutputFormat,
) -> RunExit {
    submitted(settings, around, arguments, output).unwrap_or_else(|exit| exit)
}

fn submitted(
    settings: Settings,
    around: &Surroundings,
    arguments: &SubmitArgs,
    output: OutputFormat,
) -> Result<RunExit, RunExit> {
    check(arguments)?;
    let with = With {
        login: login(&settings)?,
        save_under: settings.save_under.iter().map(|path| absolute(path)).collect(),
    };
    // Every file is read before any is submitted: half a command is worse than none.
    let plans: Result<Vec<(&Path, Plan)>, RunExit> =
        arguments.files.iter().map(|file| Ok((file.as_path(), plan(file, arguments)?))).collect();
    let plans = plans?;
    let mut opened = open_or_make(settings, around)?;
    let face = Face::new(output, around);
    let mut runs = Vec::new();
    for (file, plan) in &plans {
        runs.push(submit_one(&mut opened, file, plan, arguments, &with, face)?);
    }
    spool::poke(&opened.folder);
    if !opened.is_served() {
        complain(NOT_SERVED);
    }
    if arguments.wait { until_ended(&mut opened, &runs, None, face) } else { Ok(RunExit::Success) }
}

/// What settings say of every submission.
#[derive(Default)]
struct With {
    /// The auth file with which images are fetched.
    login: Option<PathBuf>,
    /// Folders below which outputs may be saved by `file://`.
    save_under: Vec<PathBuf>,
}

/// What holds for one submission can't be said of several.
fn check(arguments: &SubmitArgs) -> Result<(), RunExit> {
    let of_one = [
        ("--out", arguments.out.is_some()),
        ("--key", arguments.key.is_some()),
        ("--run-name", arguments.run_name.is_some()),
    ];
    match of_one.iter().find(|(_, given)| *given && arguments.files.len() > 1) {
        None => Ok(()),
        Some((flag, _)) => {
            complain(&format!("{flag} is about one run; submit the files one by one"));
            Err(RunExit::BadInput)
        }
    }
}

/// The auth file with which the payloads' images are fetched, if one is set.
fn login(settings: &Settings) -> Result<Option<PathBuf>, RunExit> {
    let Some(file) = &settings.registry_auth else { return Ok(None) };
    if let Err(error) = std::fs::File::open(file) {
        complain(&format!("read login {}: {error}", file.display()));
        return Err(RunExit::BadInput);
    }
    Ok(Some(absolute(file)))
}

/// The file's plan, under the name that was asked for.
fn plan(file: &Path, arguments: &SubmitArgs) -> Result<Plan, RunExit> {
    let mut plan = match workflow::load(file, &Disk) {
        Ok(plan) => plan,
        Err(workflow::LoadError::Invalid(problems)) => {
            problems.to_string().lines().for_each(complain);
            return Err(RunExit::BadInput);
        }
        Err(error) => return Err(refuse(&error)),
    };
    if let Some(name) = &arguments.run_name {
        if let Err(error) = StageName::new(name) {
            complain(&format!("--run-name: {error}"));
            return Err(RunExit::BadInput);
        }
        plan.workflow.clone_from(name);
    }
    // Whatever else is wrong shows before anything is made.
    prepared(&plan, file, Path::new("/"), &With::default(), None)?;
    Ok(plan)
}

fn prepared(
    plan: &Plan,
    file: &Path,
    out: &Path,
    with: &With,
    key: Option<String>,
) -> Result<spool::Submission, RunExit> {
    let wrong = |fault: &dyn std::fmt::Display| {
        complain(&format!("{}: {fault}", file.display()));
        RunExit::BadInput
    };
    let name = StageName::new(&plan.workflow).map_err(|error| wrong(&error))?;
    let origin = absolute(file);
    let mut entries = entries(plan, out).map_err(|fault| wrong(&fault))?;
    for entry in &mut entries {
        Arc::make_mut(&mut entry.payload).registry_auth.clone_from(&with.login);
    }
    saves_allowed(&entries, out, &with.save_under).map_err(|fault| wrong(&fault))?;
    submission(&name, &origin, out, key, &entries).map_err(|fault| wrong(&fault))
}

fn submit_one(
    opened: &mut Opened,
    file: &Path,
    plan: &Plan,
    arguments: &SubmitArgs,
    with: &With,
    face: Face,
) -> Result<RunId, RunExit> {
    let (submission, Submitted { run, new }) = loop {
        let (next, out) = match &arguments.out {
            Some(out) => (None, absolute(out)),
            None => {
                let next = next_run(opened)?;
                (Some(next), absolute(Path::new(&format!("{}-{next}.out", plan.workflow))))
            }
        };
        let submission = prepared(plan, file, &out, with, arguments.key.clone())?;
        // As with `pilot run`, a folder that can't be written costs nothing but this line.
        let folders = Folders::make(&[out.clone(), out.join("logs")]).map_err(|(folder, error)| {
            complain(&format!("make folder {}: {error}; choose another with --out", folder.display()));
            RunExit::BadInput
        })?;
        let done = submit_as(opened, next, &submission);
        if !matches!(done, Ok(Some(Submitted { new: true, .. }))) {
            folders.unmake();
        }
        // Nothing when another submission took the number in between: the folder then needs another name.
        if let Some(done) = done? {
            break (submission, done);
        }
    };
    let known = if new { None } else { opened.spool.run(run).map_err(|error| failed(&error))? };
    let (name, count, out) = match &known {
        Some(run) => (run.name.as_str(), run.counts.total(), run.out.clone()),
        None => (plan.workflow.as_str(), plan.payloads.len() as u64, submission.out.clone()),
    };
    print(&if face.json {
        let line = serde_json::json!({
            "kind": "submitted", "run": run.0, "name": name, "payloads": count, "new": new, "out": out,
        });
        format!("{line}\n")
    } else if arguments.quiet {
        format!("{run}\n")
    } else {
        let known = if new { "" } else { "; it was submitted before, under the same key" };
        format!("run {run}: {}, {}{known}\n", printable(name), payloads(count))
    });
    Ok(run)
}

/// Says that a transaction is to be taken back; its text is never shown.
fn taken_back() -> SpoolError {
    SpoolError::BadSubmission(String::new())
}

/// The number that the next run gets, found out with a run that is taken back at once. The folder that is named after it
/// stands in every payload's description, so it must be known before.
fn next_run(opened: &mut Opened) -> Result<RunId, RunExit> {
    let nothing = spool::Submission {
        name: String::new(),
        key: None,
        origin: String::new(),
        out: String::new(),
        payloads: Vec::new(),
    };
    let mut next = None;
    let ended = opened.spool.transact(|work| {
        next = Some(work.submit(&nothing)?.run);
        Err::<(), SpoolError>(taken_back())
    });
    match (next, ended) {
        (Some(next), _) => Ok(next),
        (None, Err(error)) => Err(failed(&error)),
        (None, Ok(())) => Err(RunExit::OwnFault),
    }
}

/// Submits; `None`, and nothing is submitted, when the run's number would not be `number`.
fn submit_as(
    opened: &mut Opened,
    number: Option<RunId>,
    submission: &spool::Submission,
) -> Result<Option<Submitted>, RunExit> {
    let mut is_other = false;
    let done = opened.spool.transact(|work| {
        let done = work.submit(submission)?;
        is_other = done.new && number.is_some_and(|number| number != done.run);
        if is_other { Err(taken_back()) } else { Ok(done) }
    });
    match done {
        Ok(done) => Ok(Some(done)),
        Err(_) if is_other => Ok(None),
        Err(error) => Err(failed(&error)),
    }
}

fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Folders that were made for a run.
struct Folders(Vec<PathBuf>);

impl Folders {
    /// Makes what is not there, in this order.
    fn make(folders: &[PathBuf]) -> Result<Self, (PathBuf, io::Error)> {
        let mut made = Self(Vec::new());
        for folder in folders {
            let was_there = folder.is_dir();
            match std::fs::create_dir_all(folder) {
                Ok(()) if was_there => {}
                Ok(()) => made.0.push(folder.clone()),
                Err(error) => {
                    made.unmake();
                    return Err((folder.clone(), error));
                }
            }
        }
        Ok(made)
    }

    /// Removes them again; what has something in it by now stays.
    fn unmake(&self) {
        for folder in self.0.iter().rev() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}
