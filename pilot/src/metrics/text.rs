//! A board's figures as OpenMetrics text. Every name is in docs/how-to/watch-a-pilot.md.
//!
//! **Must not know:** who reads it.

use std::fmt::Error;

use pilot_core::PhaseName;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::board::{Board, Durations, Histogram, LiveBoard, Totals};

const PHASES: [PhaseName; 7] = [
    PhaseName::Idle,
    PhaseName::Binding,
    PhaseName::Bound,
    PhaseName::Running,
    PhaseName::Draining,
    PhaseName::Cleaning,
    PhaseName::Retired,
];

/// All figures of this moment.
pub(super) fn figures(board: &LiveBoard) -> Result<String, Error> {
    let (seconds, board) = board.read(|at, board| (at.as_secs_f64(), board.clone()));
    let mut registry = Registry::with_prefix("latebind");
    registry.register_collector(Box::new(Snapshot { seconds, board }));
    let mut figures = String::new();
    text::encode(&mut figures, &registry)?;
    Ok(figures)
}

/// A copy of the board, so that writing does not keep the driver waiting.
#[derive(Debug)]
struct Snapshot {
    seconds: f64,
    board: Board,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let encoder = &mut encoder;
        let identity = self.board.identity();
        encoder
            .encode_descriptor("pilot", "Which pilot this is", None, MetricType::Info)?
            .encode_info(&[("pilot", identity.name.as_str()), ("version", env!("CARGO_PKG_VERSION"))])?;
        let seconds = Some(&Unit::Seconds);
        encoder
            .encode_descriptor("uptime", "Time since the pilot began", seconds, MetricType::Gauge)?
            .encode_gauge(&self.seconds)?;
        gauge(encoder, "ready", "1 while the pilot takes work", None, u64::from(self.board.ready()))?;
        let mut slots =
            encoder.encode_descriptor("slots", "Slots by what they do", None, MetricType::Gauge)?;
        for phase in PHASES {
            slots.encode_family(&[("phase", phase.as_str())])?.encode_gauge(&self.board.slots_in(phase))?;
        }
        let held = self.board.stages();
        gauge(encoder, "stages_held", "Stages held", None, held.stages)?;
        gauge(encoder, "stages_held", "Bytes of the stages held", Some(&Unit::Bytes), held.bytes)?;
        let help = "Outputs that payloads had begun and that were dropped";
        counter(encoder, "outputs_dropped", help, None, held.dropped)?;
        let help = "Stages that left memory for a file, or the volume for an object store";
        counter(encoder, "stages_spilled", help, None, held.spilled)?;
        let help = "Bytes of the stages that left memory, or the volume";
        counter(encoder, "stages_spilled", help, Some(&Unit::Bytes), held.spilled_bytes)?;
        counts(encoder, self.board.totals())?;
        durations(encoder, self.board.durations())
    }
}

fn counts(encoder: &mut DescriptorEncoder<'_>, totals: &Totals) -> Result<(), Error> {
    counter(encoder, "claims", "Claims that the queue granted", None, totals.claims)?;
    let help = "Claims that ended, by conclusion and, where there is one, cause or who is to blame";
    let mut ended = encoder.encode_descriptor("claims_ended", help, None, MetricType::Counter)?;
    for ((conclusion, cause), count) in &totals.ended {
        ended
            .encode_family(&[("conclusion", *conclusion), ("cause", *cause)])?
            .encode_counter::<NoLabelSet, u64, f64>(count, None)?;
    }
    let lost = totals.ended.get(&("lost", "")).copied().unwrap_or(0);
    counter(encoder, "leases_lost", "Claims that ended because their lease did", None, lost)?;
    counter(encoder, "retries", "Ended claims whose payload is offered again", None, totals.retries)?;
    let help = "Payloads that will not run because another failed";
    counter(encoder, "payloads_skipped", help, None, totals.skipped)?;
    let help = "Slots that took a payload: cold in a new container, warm in a kept one, adopted where it ran";
    let mut starts = encoder.encode_descriptor("starts", help, None, MetricType::Counter)?;
    let kinds = [("cold", totals.cold_starts), ("warm", totals.warm_starts), ("adopted", totals.adopted)];
    for (kind, count) in kinds {
        starts.encode_family(&[("kind", kind)])?.encode_counter::<NoLabelSet, u64, f64>(&count, None)?;
    }
    counter(encoder, "images_prepared", "Images that were prepared", None, totals.images)?;
    let help = "Bytes that were brought in for images";
    counter(encoder, "images_brought", help, Some(&Unit::Bytes), totals.image_bytes)
}

fn durations(encoder: &mut DescriptorEncoder<'_>, durations: &Durations) -> Result<(), Error> {
    let Durations { bind, run, drain, clean } = durations;
    histogram(encoder, "bind", "From the order to bind until the shim had proved itself", bind)?;
    histogram(encoder, "run", "From launch to the end of the payload", run)?;
    histogram(encoder, "drain", "Keeping logs and outputs of a payload that ended", drain)?;
    histogram(encoder, "clean", "Removing what a payload left", clean)
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> Result<(), Error> {
    encoder.encode_descriptor(name, help, unit, MetricType::Gauge)?.encode_gauge(&value)
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: u64,
) -> Result<(), Error> {
    encoder
        .encode_descriptor(name, help, unit, MetricType::Counter)?
        .encode_counter::<NoLabelSet, u64, f64>(&value, None)
}

fn histogram(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    histogram: &Histogram,
) -> Result<(), Error> {
    let ranges: Vec<(f64, u64)> = histogram.ranges().collect();
    encoder
        .encode_descriptor(name, help, Some(&Unit::Seconds), MetricType::Histogram)?
        .encode_histogram::<NoLabelSet>(histogram.sum(), histogram.count(), &ranges, None)
}
