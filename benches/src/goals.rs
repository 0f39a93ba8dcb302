//! The goals, and whether the results meet them.
//!
//! **Must not know:** how anything was measured.

use std::fmt::Write as _;

use serde_json::Value;

use crate::report::{USERS, fact, percentile};

/// What is compared with what.
enum Figure {
    /// The median of a series, in the goal's unit, which is `factor` of the series'.
    Most { series: &'static str, limit: f64, unit: &'static str, factor: f64 },
    /// The same, but more is better.
    Least { series: &'static str, limit: f64, unit: &'static str },
    /// Two medians: how often the second goes into the first is to be `least` or more.
    Share { of: [&'static str; 2], least: f64, unit: &'static str },
}

/// One goal.
struct Goal {
    text: &'static str,
    section: &'static str,
    figure: Figure,
}

const KIB_TO_MIB: f64 = 1.0 / 1024.0;

const fn most(
    text: &'static str,
    (section, series): (&'static str, &'static str),
    (limit, unit, factor): (f64, &'static str, f64),
) -> Goal {
    Goal { text, section, figure: Figure::Most { series, limit, unit, factor } }
}

const fn share(
    text: &'static str,
    section: &'static str,
    of: [&'static str; 2],
    (least, unit): (f64, &'static str),
) -> Goal {
    Goal { text, section, figure: Figure::Share { of, least, unit } }
}

/// The numerator is what is better when it is larger: our rate, a peer's time.
const GOALS: &[Goal] = &[
    most("local bind, request to first instruction", ("bind", "latebind/first"), (5.0, "ms", 1.0)),
    most("shim, RSS of PID 1", ("shim", "pid 1/rss, after a payload [KiB]"), (1.5, "MiB", KIB_TO_MIB)),
    most(
        "shim, RSS of the stage holder",
        ("shim", "stage holder/rss, after a payload [KiB]"),
        (1.5, "MiB", KIB_TO_MIB),
    ),
    most("shim, fork and exec to Hello", ("shim", "shim/fork, exec to Hello"), (2.0, "ms", 1.0)),
    share(
        "warm payloads a second, `run`, of a bare vfork loop",
        "throughput",
        ["latebind run/warm", "bare loop/warm"],
        (0.5, "/s"),
    ),
    share(
        "warm payloads a second, `serve`, of a bare vfork loop",
        "throughput",
        ["latebind submit and serve/warm", "bare loop/warm"],
        (0.5, "/s"),
    ),
    share(
        "warm payloads a second, `run` with four slots, of a bare vfork loop",
        "throughput",
        ["latebind run, four slots/warm", "bare loop/warm"],
        (0.5, "/s"),
    ),
    share(
        "warm payloads a second, `serve` with four slots, of a bare vfork loop",
        "throughput",
        ["latebind submit and serve, four slots/warm", "bare loop/warm"],
        (0.5, "/s"),
    ),
    share(
        "warm payloads a second, `run`, of HyperQueue",
        "throughput",
        ["latebind run/warm", "hyperqueue/warm"],
        (1.0, "/s"),
    ),
    share(
        "warm payloads a second, `serve`, of HyperQueue",
        "throughput",
        ["latebind submit and serve/warm", "hyperqueue/warm"],
        (1.0, "/s"),
    ),
    Goal {
        text: "cold payloads a second",
        section: "throughput",
        figure: Figure::Least { series: "latebind run/cold", limit: 150.0, unit: "/s" },
    },
    most(
        "submit 10,000 payloads, one array",
        ("queue", "latebind/submit 10000, one array [s]"),
        (2.0, "s", 1.0),
    ),
    most(
        "submit 10,000 payloads, each written out",
        ("queue", "latebind/submit 10000, each written out [s]"),
        (2.0, "s", 1.0),
    ),
    most(
        "`serve`, RSS at most, 10,000 queued",
        ("queue", "latebind/rss at most, 10000 queued [KiB]"),
        (64.0, "MiB", KIB_TO_MIB),
    ),
    share(
        "time a payload with 100 queued, of that with 100,000",
        "queue",
        ["latebind/time a payload, 100 queued [ms]", "latebind/time a payload, 100000 queued [ms]"],
        (0.9, "ms"),
    ),
    most("idle `serve`, of a processor", ("idle", "serve/share of a processor [%]"), (0.1, "%", 1.0)),
    most("idle `serve`, RSS", ("idle", "serve/rss, after 100 payloads [KiB]"), (15.0, "MiB", KIB_TO_MIB)),
    most(
        "idle `serve --metrics`, of a processor",
        ("idle", "serve --metrics/share of a processor [%]"),
        (0.1, "%", 1.0),
    ),
    most(
        "idle `serve --metrics`, RSS",
        ("idle", "serve --metrics/rss, after 100 payloads [KiB]"),
        (15.0, "MiB", KIB_TO_MIB),
    ),
    most("stage of 64 KiB, sealed to mapped", ("stages", "stage/hand-off, 64 KiB [us]"), (150.0, "us", 1.0)),
    most("stage of 1 MiB, sealed to mapped", ("stages", "stage/hand-off, 1 MiB [us]"), (150.0, "us", 1.0)),
    most("stage of 64 MiB, sealed to mapped", ("stages", "stage/hand-off, 64 MiB [us]"), (150.0, "us", 1.0)),
    most("stage of 1 GiB, sealed to mapped", ("stages", "stage/hand-off, 1 GiB [us]"), (150.0, "us", 1.0)),
    most(
        "broker and client with 10,000 stages, RSS",
        ("stages", "broker/rss, 10000 stages [KiB]"),
        (64.0, "MiB", KIB_TO_MIB),
    ),
    share(
        "lookup of a stage with 100 alive, of that with 10,000",
        "stages",
        ["broker/lookup, 100 stages [us]", "broker/lookup, 10000 stages [us]"],
        (0.8, "us"),
    ),
    share(
        "commit with 100 alive, of that with 10,000",
        "stages",
        ["broker/commit, 100 stages [us]", "broker/commit, 10000 stages [us]"],
        (0.8, "us"),
    ),
    share(
        "release with 100 alive, of that with 10,000",
        "stages",
        ["broker/release, 100 stages [us]", "broker/release, 10000 stages [us]"],
        (0.8, "us"),
    ),
    most("CSI driver, publish a volume", ("csi", "csi-driver/publish"), (5.0, "ms", 1.0)),
    most("CSI driver, unpublish a volume", ("csi", "csi-driver/unpublish"), (5.0, "ms", 1.0)),
    most(
        "CSI driver, RSS with 500 volumes",
        ("csi", "csi-driver/rss, 500 volumes [KiB]"),
        (20.0, "MiB", KIB_TO_MIB),
    ),
    most(
        "500 MB image, bind in a second slot",
        ("unpack", "latebind/bind of the stored image [ms]"),
        (300.0, "ms", 1.0),
    ),
    most(
        "500 MB image, attach by a second pilot",
        ("unpack", "latebind/attach in an empty folder [ms]"),
        (300.0, "ms", 1.0),
    ),
    most(
        "500 MB image, attach for a second slot",
        ("unpack", "latebind/attach again [ms]"),
        (300.0, "ms", 1.0),
    ),
    share(
        "500 MB image in one layer, until on disk: umoci's time, of ours",
        "unpack",
        ["umoci/one, on disk [s]", "latebind/one, on disk [s]"],
        (1.0, "s"),
    ),
    share(
        "500 MB image in four layers, until on disk: umoci's time, of ours",
        "unpack",
        ["umoci/four, on disk [s]", "latebind/four, on disk [s]"],
        (1.0, "s"),
    ),
    share(
        "pull of it in one layer, until on disk: skopeo's and umoci's time, of ours",
        "pull",
        ["skopeo + umoci/one, on disk [s]", "latebind/one, on disk [s]"],
        (1.0, "s"),
    ),
    share(
        "pull of it in four layers, until on disk",
        "pull",
        ["skopeo + umoci/four, on disk [s]", "latebind/four, on disk [s]"],
        (1.0, "s"),
    ),
    share(
        "pull of it in one layer, until the first payload runs",
        "pull",
        ["skopeo + umoci/one, first payload [s]", "latebind/one, first payload [s]"],
        (1.0, "s"),
    ),
    share(
        "pull of it in four layers, until the first payload runs",
        "pull",
        ["skopeo + umoci/four, first payload [s]", "latebind/four, first payload [s]"],
        (1.0, "s"),
    ),
    most(
        "pod: patch to first instruction, image on the node, slot idle",
        ("kube", "latebind/start"),
        (350.0, "ms", 1.0),
    ),
    most("pod: end of a payload until the pilot knows it", ("kube", "latebind/end known"), (10.0, "ms", 1.0)),
    most(
        "pod: end of a payload until it is in the spool",
        ("kube", "served/end in the spool"),
        (10.0, "ms", 1.0),
    ),
    most(
        "pod: between two payloads, the second bound ahead",
        ("kube", "served/gap between two, bound ahead"),
        (50.0, "ms", 1.0),
    ),
    share(
        "pod: warm payloads a second, `serve`, of the local backend's",
        "kube",
        ["served/warm payloads a second [/s]", "local serve/warm payloads a second [/s]"],
        (0.5, "/s"),
    ),
    share(
        "pod: warm payloads a second, `serve`, of the local backend's `run`",
        "kube",
        ["served/warm payloads a second [/s]", "local run/warm payloads a second [/s]"],
        (0.5, "/s"),
    ),
    // Not more than 1.2 times as long, the other way round.
    share(
        "pod: bind of a small image, of that of 200 MB that were fetched ahead",
        "kube",
        ["small image/start, fetched ahead", "200 MB/start, fetched ahead"],
        (0.83, "ms"),
    ),
    share(
        "pod: the other slot's binds before, of those while 200 MB are fetched ahead",
        "kube",
        ["other slot/start, before", "other slot/start, while 200 MB are fetched ahead"],
        (0.83, "ms"),
    ),
    most(
        "pod: API requests a payload, cold",
        ("kube", "served/API requests a payload, cold [1]"),
        (2.0, "", 1.0),
    ),
    most(
        "pod: API requests a payload, warm",
        ("kube", "served/API requests a payload, warm [1]"),
        (0.0, "", 1.0),
    ),
    most(
        "pod: API requests to watch, list or get, in all",
        ("kube", "served/API requests to watch, list or get, in all [1]"),
        (0.0, "", 1.0),
    ),
];

/// Writes the table.
pub(crate) fn table(out: &mut String, results: &Value) -> std::fmt::Result {
    writeln!(out, "\n## Goals\n\n| figure (p50) | goal | root | user | |\n|---|---|---|---|---|")?;
    if let Some(bytes) =
        fact(results, "root", "shim", "size_bytes").or(fact(results, "user", "shim", "size_bytes"))
    {
        let mib = bytes / f64::from(1 << 20);
        writeln!(
            out,
            "| shim, static size | ≤ 1.5 MiB | {mib:.2} MiB | same file | {} |",
            verdict(&[mib <= 1.5])
        )?;
    }
    for goal in GOALS {
        let found = USERS.map(|user| goal.figure.of(results, user, goal.section));
        let met: Vec<bool> = found.iter().flatten().map(|(_, met)| *met).collect();
        let [root, user] = found.map(|found| found.map_or("-".into(), |(text, _)| text));
        writeln!(out, "| {} | {} | {root} | {user} | {} |", goal.text, goal.figure.bound(), verdict(&met))?;
    }
    Ok(())
}

fn verdict(met: &[bool]) -> &'static str {
    match met {
        [] => "not measured",
        met if met.iter().all(|met| *met) => "met",
        _ => "**not met**",
    }
}

impl Figure {
    fn bound(&self) -> String {
        match self {
            Self::Most { limit, unit, .. } => format!("≤ {limit} {unit}"),
            Self::Least { limit, unit, .. } => format!("≥ {limit} {unit}"),
            Self::Share { least, .. } => format!("≥ {least} x"),
        }
    }

    /// What came out, and whether that meets it.
    fn of(&self, results: &Value, user: &str, section: &str) -> Option<(String, bool)> {
        let p50 = |series| percentile(results, user, section, series, "p50");
        Some(match self {
            Self::Most { series, limit, unit, factor } => {
                let value = p50(series)? * factor;
                (format!("{value:.2} {unit}"), value <= *limit)
            }
            Self::Least { series, limit, unit } => {
                let value = p50(series)?;
                (format!("{value:.0} {unit}"), value >= *limit)
            }
            Self::Share { of: [first, second], least, unit } => {
                let (first, second) = (p50(first)?, p50(second)?);
                let share = first / second;
                let digits = if first.min(second) >= 100.0 { 0 } else { 2 };
                let text = format!("{first:.digits$} {unit}, {second:.digits$} {unit}: **{share:.2} x**");
                (text, share >= *least)
            }
        })
    }
}
