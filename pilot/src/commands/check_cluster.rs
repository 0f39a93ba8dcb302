//! `pilot check --cluster`: what the cluster allows, and what each lack costs.
//!
//! **Must not know:** how it is found out.

use pilot_core::RunExit;

use super::pod::shape;
use crate::cli::{CheckArgs, OutputFormat, complain, say};
use crate::clustercheck::{Asked, ClusterReport, Is, probe};
use crate::config::Settings;
use crate::fault::{chain, said_by_api};
use crate::remote::cluster::connect;

/// Stands for images that are not named: a rehearsal pulls nothing.
const NO_IMAGE: &str =
    "registry.invalid/latebind@sha256:0000000000000000000000000000000000000000000000000000000000000000";

/// Checks the cluster.
pub(super) fn check(mut settings: Settings, arguments: &CheckArgs, output: OutputFormat) -> RunExit {
    settings.idle_image.get_or_insert_with(|| NO_IMAGE.to_owned());
    let mut pod = arguments.pod.clone();
    pod.pilot_image.get_or_insert_with(|| NO_IMAGE.to_owned());
    let shape = match shape(&settings, &pod) {
        Ok(shape) => shape,
        Err(error) => return crate::cli::refuse(&error),
    };
    let threads = match super::threads() {
        Ok(threads) => threads,
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    threads.block_on(async {
        let (client, namespace) = match settings.pod {
            Some(_) => match inside() {
                Ok((client, namespace)) => (client, settings.namespace.clone().unwrap_or(namespace)),
                Err(line) => {
                    complain(&line);
                    return RunExit::HostUnable;
                }
            },
            None => match connect(settings.namespace.clone()).await {
                Ok(connected) => connected,
                Err((line, exit)) => {
                    complain(&line);
                    return exit;
                }
            },
        };
        let report = probe(&Asked { client, namespace, shape, inside: settings.pod.clone() }).await;
        match output {
            OutputFormat::Json => say(&format!("{}\n", json(&report))),
            OutputFormat::Auto | OutputFormat::Plain => say(&text(&report)),
        }
        if report.runs_pilots() { RunExit::Success } else { RunExit::HostUnable }
    })
}

fn inside() -> Result<(kube::Client, String), String> {
    let config = kube::Config::incluster().map_err(|error| chain(&error))?;
    let namespace = config.default_namespace.clone();
    let client = kube::Client::try_from(config).map_err(|error| said_by_api(&error))?;
    Ok((client, namespace))
}

fn text(report: &ClusterReport) -> String {
    let lacks = report.items.iter().filter(|item| item.is == Is::Lacking).count();
    let verdict = match (report.runs_pilots(), lacks) {
        (true, 0) => "Pilots run here.\n".to_owned(),
        (true, lacks) => format!("Pilots run here; {lacks} things would make them better.\n"),
        (false, _) => "Pilots can't run here; the first `NO` above says why.\n".to_owned(),
    };
    format!("{report}{verdict}")
}

fn json(report: &ClusterReport) -> serde_json::Value {
    let word = |is| match is {
        Is::There => "there",
        Is::Missing => "missing",
        Is::Lacking => "lacking",
        Is::Unknown => "unknown",
    };
    let items = report.items.iter().map(|item| {
        serde_json::json!({
            "name": item.name, "is": word(item.is), "found": item.found,
            "consequence": item.consequence, "remedy": item.remedy,
        })
    });
    serde_json::json!({"runs_pilots": report.runs_pilots(), "items": items.collect::<Vec<_>>()})
}
