//! Puts results into a Markdown document, between two marker lines.

use std::fmt::Write as _;

use anyhow::Context;
use serde_json::Value;

const BEGIN: &str = "<!-- figures: written by benches/run -->";
const END: &str = "<!-- end of figures -->";
/// The same things measured by root and by an ordinary user.
const USERS: [&str; 2] = ["root", "user"];

/// One goal: which series it looks at and how much may come out.
struct Goal {
    text: &'static str,
    section: &'static str,
    series: &'static str,
    most: f64,
    unit: &'static str,
    /// From the series' unit to the goal's.
    factor: f64,
}

const KIB_TO_MIB: f64 = 1.0 / 1024.0;
const GOALS: [Goal; 7] = [
    Goal {
        text: "local bind, request to first instruction",
        section: "bind",
        series: "latebind/first",
        most: 5.0,
        unit: "ms",
        factor: 1.0,
    },
    Goal {
        text: "shim, RSS of PID 1",
        section: "shim",
        series: "pid 1/rss, after a payload [KiB]",
        most: 1.5,
        unit: "MiB",
        factor: KIB_TO_MIB,
    },
    Goal {
        text: "shim, RSS of the stage holder",
        section: "shim",
        series: "stage holder/rss, after a payload [KiB]",
        most: 1.5,
        unit: "MiB",
        factor: KIB_TO_MIB,
    },
    Goal {
        text: "shim, fork and exec to Hello",
        section: "shim",
        series: "shim/fork, exec to Hello",
        most: 2.0,
        unit: "ms",
        factor: 1.0,
    },
    Goal {
        text: "500 MB image, bind in a second slot",
        section: "unpack",
        series: "latebind/bind of the stored image [ms]",
        most: 300.0,
        unit: "ms",
        factor: 1.0,
    },
    Goal {
        text: "500 MB image, attach by a second pilot",
        section: "unpack",
        series: "latebind/attach in an empty folder [ms]",
        most: 300.0,
        unit: "ms",
        factor: 1.0,
    },
    Goal {
        text: "500 MB image, attach for a second slot",
        section: "unpack",
        series: "latebind/attach again [ms]",
        most: 300.0,
        unit: "ms",
        factor: 1.0,
    },
];

/// `text` with the tables of `results` between its markers.
///
/// # Errors
/// When a marker is missing.
pub fn put(text: &str, results: &Value) -> anyhow::Result<String> {
    let (head, rest) = text.split_once(BEGIN).with_context(|| format!("find the line {BEGIN}"))?;
    let (_, tail) = rest.split_once(END).with_context(|| format!("find the line {END}"))?;
    Ok(format!("{head}{BEGIN}\n{}{END}{tail}", tables(results)?))
}

fn tables(results: &Value) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    machine(&mut out, results)?;
    goals(&mut out, results)?;
    for user in USERS {
        bind(&mut out, results, user)?;
    }
    for (section, title) in [("shim", "payload-shim"), ("unpack", "500 MB image")] {
        series(&mut out, results, section, title)?;
    }
    Ok(out)
}

fn machine(out: &mut String, results: &Value) -> std::fmt::Result {
    let of = |name: &str| plain(&results["machine"][name]);
    writeln!(out, "\n## Machine\n")?;
    writeln!(
        out,
        "{} processors of {}, {} GiB, Linux {}, {}, cgroup {}.",
        of("processors"),
        of("processor"),
        of("memory_gib"),
        of("kernel"),
        of("file_system"),
        of("cgroups")
    )?;
    let peers = results["machine"]["peers"].as_object().into_iter().flatten();
    writeln!(out, "Peers: {}.", peers.map(|(_, version)| plain(version)).collect::<Vec<_>>().join(", "))?;
    writeln!(out)?;
    for section in results["sections"].as_array().into_iter().flatten() {
        let (name, user, load) = (plain(&section["section"]), plain(&section["as"]), &section["load"]);
        let date = plain(&section["date"]);
        write!(out, "- {name} as {user}: {date}, load average {} to {}", plain(&load[0]), plain(&load[1]))?;
        let skipped = section["skipped"].as_array().into_iter().flatten().map(plain);
        let skipped = skipped.map(|text| format!("; **skipped** {text}")).collect::<String>();
        writeln!(out, "{skipped}.")?;
    }
    Ok(())
}

fn goals(out: &mut String, results: &Value) -> std::fmt::Result {
    writeln!(out, "\n## Goals\n\n| figure (p50) | goal | root | user | |\n|---|---|---|---|---|")?;
    if let Some(bytes) =
        fact(results, "root", "shim", "size_bytes").or(fact(results, "user", "shim", "size_bytes"))
    {
        let mib = bytes / f64::from(1 << 20);
        writeln!(
            out,
            "| shim, static size | ≤ 1.5 MiB | {mib:.2} MiB | same file | {} |",
            verdict(mib <= 1.5)
        )?;
    }
    for goal in GOALS {
        let value =
            |user| percentile(results, user, goal.section, goal.series, "p50").map(|p50| p50 * goal.factor);
        let values = USERS.map(value);
        let met = values.iter().flatten().all(|value| *value <= goal.most);
        let unit = goal.unit;
        let [root, user] = values.map(|value| value.map_or("-".into(), |value| format!("{value:.2} {unit}")));
        writeln!(out, "| {} | ≤ {} {unit} | {root} | {user} | {} |", goal.text, goal.most, verdict(met))?;
    }
    for (tag, layers) in [("one", "one layer"), ("four", "four layers")] {
        let ratio = |user| {
            let at =
                |who: &str| percentile(results, user, "unpack", &format!("{who}/{tag}, on disk [s]"), "p50");
            Some((at("latebind")?, at("umoci")?))
        };
        let ratios = USERS.map(ratio);
        let met = ratios.iter().flatten().all(|(ours, theirs)| ours <= theirs);
        let text = |(ours, theirs): (f64, f64)| {
            format!("{ours:.2} s, umoci {theirs:.2} s: **{:.1} x**", theirs / ours)
        };
        let [root, user] = ratios.map(|ratio| ratio.map_or("-".into(), text));
        writeln!(
            out,
            "| 500 MB image in {layers}, until on disk | ≤ umoci | {root} | {user} | {} |",
            verdict(met)
        )?;
    }
    Ok(())
}

fn verdict(met: bool) -> &'static str {
    if met { "met" } else { "**not met**" }
}

fn bind(out: &mut String, results: &Value, user: &str) -> std::fmt::Result {
    let at = |series: &str, what: &str| percentile(results, user, "bind", series, what);
    let Some(ours) = at("latebind/first", "p50") else { return Ok(()) };
    writeln!(
        out,
        "\n## Bind as {user}\n\n| ms | to first instruction p50 | p99 | x of ours | until all is gone p50 | p99 | n |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for who in ["latebind", "bwrap", "crun", "podman", "fork+exec"] {
        let (first, whole) = (format!("{who}/first"), format!("{who}/whole"));
        let Some(p50) = at(&first, "p50") else { continue };
        write!(out, "| {who} | {p50:.2} | {} | {:.2} ", cell(at(&first, "p99")), p50 / ours)?;
        let n = at(&first, "n").unwrap_or(0.0);
        writeln!(out, "| {} | {} | {n:.0} |", cell(at(&whole, "p50")), cell(at(&whole, "p99")))?;
    }
    writeln!(out, "\nOurs in parts:\n\n| ms | p50 | p99 |\n|---|---|---|")?;
    for part in ["bind", "launch to first instruction", "first instruction to exit report", "drain", "clean"]
    {
        let name = format!("latebind/{part}");
        writeln!(out, "| {part} | {} | {} |", cell(at(&name, "p50")), cell(at(&name, "p99")))?;
    }
    Ok(())
}

/// Every series of a section.
fn series(out: &mut String, results: &Value, section: &str, title: &str) -> std::fmt::Result {
    writeln!(out, "\n## {title}\n\n| | root p50 | p99 | user p50 | p99 | n |\n|---|---|---|---|---|---|")?;
    let mut names: Vec<String> = Vec::new();
    for user in USERS {
        let series = find(results, user, section).and_then(|section| section["series"].as_object());
        names.extend(series.into_iter().flatten().map(|(name, _)| name.clone()));
    }
    names.sort();
    names.dedup();
    for name in names {
        let at = |user, what| percentile(results, user, section, &name, what);
        let n = at("root", "n").or(at("user", "n")).unwrap_or(0.0);
        let cells = USERS.map(|user| format!("{} | {}", cell(at(user, "p50")), cell(at(user, "p99"))));
        // Without a unit of its own a series is in milliseconds.
        let unit = if name.ends_with(']') { "" } else { " [ms]" };
        writeln!(out, "| {name}{unit} | {} | {n:.0} |", cells.join(" | "))?;
    }
    Ok(())
}

fn cell(value: Option<f64>) -> String {
    value.map_or(
        "-".into(),
        |value| if value >= 100.0 { format!("{value:.0}") } else { format!("{value:.2}") },
    )
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn find<'a>(results: &'a Value, user: &str, name: &str) -> Option<&'a Value> {
    results["sections"].as_array()?.iter().find(|section| section["section"] == name && section["as"] == user)
}

fn percentile(results: &Value, user: &str, section: &str, series: &str, what: &str) -> Option<f64> {
    find(results, user, section)?["series"][series][what].as_f64()
}

fn fact(results: &Value, user: &str, section: &str, name: &str) -> Option<f64> {
    find(results, user, section)?["facts"][name].as_f64()
}

#[cfg(test)]
mod tests {
    use super::{BEGIN, END, put};
    use serde_json::json;

    #[test]
    fn tables_go_between_the_markers_and_a_goal_that_is_missed_says_so() {
        let series = json!({"latebind/first": {"p50": 6.0, "p99": 7.0, "n": 3}});
        let results = json!({"machine": {}, "sections": [{"section": "bind", "as": "root", "series": series, "load": [0, 0]}]});
        let text = put(&format!("head\n{BEGIN}\nstale words\n{END}\ntail\n"), &results).expect("put");
        assert!(text.starts_with("head\n") && text.ends_with("\ntail\n") && !text.contains("stale words"));
        assert!(text.contains("| ≤ 5 ms | 6.00 ms | - | **not met** |"), "{text}");
        assert!(put("no markers", &results).is_err());
    }
}
