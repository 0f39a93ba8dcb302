//! `pilot images pull`: one image after the other, with a bar on a terminal.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use image_store::{IngestError, Ingested, PreflightError, Progress, Reference, RegistryAccess, Store};
use indicatif::{ProgressBar, ProgressStyle};
use pilot_core::RunExit;

use crate::cli::{OutputFormat, complain, say};
use crate::fault::chain;
use crate::ui::bytes;

/// Drawings a second; more are flicker.
const DRAW_HZ: u64 = 10;

/// Pulls the images; one that fails does not keep the others.
pub(super) fn pull(
    store: &Store,
    access: &RegistryAccess,
    references: &[String],
    output: OutputFormat,
    no_color: bool,
) -> RunExit {
    let mut exit = RunExit::Success;
    for text in references {
        let bar = bar(text, output, no_color);
        let pulled = one(store, access, text, &bar);
        bar.finish_and_clear();
        match pulled {
            Ok((ingested, fetched)) => say(&line(text, &ingested, fetched, output)),
            Err((error, code)) => {
                complain(&error);
                exit = exit.max(code);
            }
        }
    }
    exit
}

fn one(
    store: &Store,
    access: &RegistryAccess,
    text: &str,
    bar: &ProgressBar,
) -> Result<(Ingested, u64), (String, RunExit)> {
    let reference: Reference = text.parse().map_err(|error| (chain(&error), RunExit::BadInput))?;
    let reference =
        std::path::absolute(".").map_or(reference.clone(), |here| reference.relative_to(Path::new(&here)));
    let preflight =
        store.preflight(&reference, access).map_err(|error| (chain(&error), preflight_code(&error)))?;
    if let Some(note) = &preflight.note {
        complain(note);
    }
    bar.set_length(preflight.bytes_missing);
    let progress = |progress: Progress| {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    };
    let ingested = store.ingest_preflight(&reference, &preflight, &progress);
    ingested
        .map(|ingested| (ingested, preflight.bytes_missing))
        .map_err(|error| (chain(&error), ingest_code(&error)))
}

/// Wrong is what was asked for; a host can't help it if its network is away.
fn preflight_code(error: &PreflightError) -> RunExit {
    match error {
        PreflightError::Source(image_store::SourceError::Registry(error)) if error.is_transient() => {
            RunExit::HostUnable
        }
        PreflightError::Store(_) => RunExit::OwnFault,
        _ => RunExit::BadInput,
    }
}

fn ingest_code(error: &IngestError) -> RunExit {
    if error.is_transient() || error.is_store_fault() { RunExit::HostUnable } else { RunExit::BadInput }
}

fn bar(text: &str, output: OutputFormat, no_color: bool) -> ProgressBar {
    if output != OutputFormat::Auto || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let colour = if no_color { "" } else { ".cyan" };
    let template =
        format!("{{prefix}} [{{bar:24{colour}}}] {{bytes}}/{{total_bytes}} {{binary_bytes_per_sec}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(0).with_style(style).with_prefix(text.to_owned());
    bar.enable_steady_tick(Duration::from_millis(1000 / DRAW_HZ));
    bar
}

fn line(text: &str, ingested: &Ingested, fetched: u64, output: OutputFormat) -> String {
    let image = ingested.image.to_string();
    if output == OutputFormat::Json {
        let json = serde_json::json!({
            "pulled": text,
            "image": image,
            "bytes_missing": fetched,
            "private": ingested.lasts.is_some(),
        });
        return format!("{json}\n");
    }
    let what = if fetched == 0 { "was stored".to_owned() } else { format!("{} fetched", bytes(fetched)) };
    format!("{text} is {image}, {what}\n")
}
