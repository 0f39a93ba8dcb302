//! `pilot check`: what this machine allows, what follows, and what to do about it. With a file, that workflow too.

use std::path::Path;

use oci_runner::{HostReport, probe_host};
use pilot_core::RunExit;

use crate::cli::{CheckArgs, OutputFormat, complain, refuse, say};
use crate::config::{Config, Settings, Surroundings};
use crate::ui::bytes;
use crate::workflow::{self, Disk};

/// Checks the machine and, if named, a workflow.
pub fn check(
    settings: Settings,
    around: &Surroundings,
    arguments: &CheckArgs,
    output: OutputFormat,
) -> RunExit {
    if arguments.cluster {
        let cluster = super::check_cluster::check(settings, arguments, output);
        return cluster
            .max(arguments.file.as_deref().map_or(RunExit::Success, |file| check_file(file, output)));
    }
    let config = match Config::new(settings, around) {
        Ok(config) => config,
        Err(error) => return refuse(&error),
    };
    // A folder that is made for the probe and stays empty goes again.
    let folders = [&config.store, &config.state_dir];
    let made: Vec<&Path> = folders.iter().filter(|path| !path.exists()).map(|path| path.as_path()).collect();
    for folder in folders {
        if let Err(error) = std::fs::create_dir_all(folder) {
            complain(&format!(
                "make folder {}: {error}; choose another with --store or --state-dir",
                folder.display()
            ));
            return RunExit::BadInput;
        }
    }
    let report = probe_host(&config.store, &config.state_dir);
    for folder in made {
        let _ = std::fs::remove_dir(folder);
    }
    let host = if report.runs_containers() { RunExit::Success } else { RunExit::HostUnable };
    match output {
        OutputFormat::Json => say(&format!("{}\n", json(&report, &config))),
        OutputFormat::Auto | OutputFormat::Plain => say(&text(&report, &config)),
    }
    host.max(arguments.file.as_deref().map_or(RunExit::Success, |file| check_file(file, output)))
}

fn check_file(file: &Path, output: OutputFormat) -> RunExit {
    match workflow::load(file, &Disk) {
        Ok(plan) => {
            if output != OutputFormat::Json {
                say(&format!("{}: {} payloads, no mistakes found\n", file.display(), plan.payloads.len()));
            }
            RunExit::Success
        }
        Err(workflow::LoadError::Invalid(problems)) => {
            problems.to_string().lines().for_each(complain);
            RunExit::BadInput
        }
        Err(error) => refuse(&error),
    }
}

fn text(report: &HostReport, config: &Config) -> String {
    let verdict = match report.attach {
        Some(attach) => format!(
            "This machine runs payloads: {} slots, {} processors, {} of memory; images are attached by {attach:?}.\n",
            config.slots,
            config.cpu_millis as f64 / 1000.0,
            bytes(config.memory_bytes),
        ),
        None => "This machine can't run payloads; the first `no` above says why.\n".to_owned(),
    };
    format!("{report}{verdict}")
}

fn json(report: &HostReport, config: &Config) -> serde_json::Value {
    let items: Vec<serde_json::Value> = report
        .items
        .iter()
        .map(|item| {
            serde_json::json!({
                "name": item.name, "ok": item.ok, "found": item.found,
                "consequence": item.consequence, "remedy": item.remedy,
            })
        })
        .collect();
    serde_json::json!({
        "runs_containers": report.runs_containers(),
        "attach": report.attach.map(|attach| format!("{attach:?}")),
        "slots": config.slots, "cpu_millis": config.cpu_millis, "memory_bytes": config.memory_bytes,
        "items": items,
    })
}
