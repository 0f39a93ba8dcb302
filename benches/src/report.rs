//! Puts results into a Markdown document, between two marker lines.

use std::fmt::Write as _;

use anyhow::Context;
use serde_json::Value;

use crate::goals;
use crate::stages::handoff;

const BEGIN: &str = "<!-- figures: written by benches/run -->";
const END: &str = "<!-- end of figures -->";
/// The same things measured by root and by an ordinary user.
pub(crate) const USERS: [&str; 2] = ["root", "user"];

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
    goals::table(&mut out, results)?;
    for user in USERS {
        bind(&mut out, results, user)?;
    }
    throughput(&mut out, results)?;
    for (section, title) in [
        ("queue", "The queue"),
        ("idle", "An idle pilot"),
        ("shim", "payload-shim"),
        ("csi", "The CSI driver"),
        ("unpack", "500 MB image"),
        ("pull", "500 MB image from a registry"),
    ] {
        series(&mut out, results, section, title, &[])?;
    }
    stages(&mut out, results)?;
    kube(&mut out, results)?;
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
    let peers = peers.map(|(name, version)| match plain(version) {
        version if version == "missing" => format!("no {name}"),
        version if version.starts_with(name.as_str()) || name == "bwrap" => version,
        version => format!("{name}: {version}"),
    });
    writeln!(out, "Peers: {}.", peers.collect::<Vec<_>>().join(", "))?;
    writeln!(out)?;
    for section in results["sections"].as_array().into_iter().flatten() {
        let (name, user, load) = (plain(&section["section"]), plain(&section["as"]), &section["load"]);
        let date = plain(&section["date"]);
        write!(out, "- {name} as {user}: {date}, load average {} to {}", plain(&load[0]), plain(&load[1]))?;
        let kernel = &section["kernel"];
        if !kernel.is_null() && *kernel != results["machine"]["kernel"] {
            write!(out, ", on Linux {}", plain(kernel))?;
        }
        let skipped = section["skipped"].as_array().into_iter().flatten().map(plain);
        let skipped = skipped.map(|text| format!("; **skipped** {text}")).collect::<String>();
        writeln!(out, "{skipped}.")?;
    }
    Ok(())
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

/// Hand-offs: a row for each way, a column for each size.
fn stages(out: &mut String, results: &Value) -> std::fmt::Result {
    let user = if find(results, "root", "stages").is_some() { "root" } else { "user" };
    let at = |who: &str, what: &str, size: &str| {
        percentile(results, user, "stages", &format!("{who}/{what}, {size} [us]"), "p50")
    };
    if find(results, user, "stages").is_none() {
        return Ok(());
    }
    let sizes = handoff::SIZES.map(|(_, size, _)| size);
    let rule = "|---".repeat(sizes.len() + 1);
    for (what, title) in [("mapped", "until it has all bytes"), ("read", "until it has read each byte")] {
        writeln!(out, "\n## Stages: from the producer's commit to the consumer, {title}\n")?;
        writeln!(out, "| us, p50 | {} |\n{rule}|", sizes.join(" | "))?;
        for (who, _) in handoff::METHODS {
            let cells = sizes.map(|size| cell(at(who, what, size)));
            writeln!(out, "| {who} | {} |", cells.join(" | "))?;
        }
    }
    writeln!(out, "\n![Both tables as a picture](benchmarks-stages.svg)")?;
    writeln!(out, "\nOf `stage`, in parts:\n\n| us, p50 | {} |\n{rule}|", sizes.join(" | "))?;
    for part in ["unmap", "seal", "hand-off"] {
        let cells = sizes.map(|size| cell(at("stage", part, size)));
        writeln!(out, "| {part} | {} |", cells.join(" | "))?;
    }
    writeln!(
        out,
        "\nThe fastest peer's time, of ours in the same language:\n\n| | {} |\n{rule}|",
        sizes.join(" | ")
    )?;
    for (ours, peers) in handoff::COMPARED {
        for what in ["mapped", "read"] {
            let cells = sizes.map(|size| {
                let times = peers.iter().filter_map(|peer| Some((at(peer, what, size)?, *peer)));
                let fastest = times.min_by(|one, other| one.0.total_cmp(&other.0));
                let share = fastest.zip(at(ours, what, size));
                share.map_or("-".into(), |((time, peer), own)| format!("{:.2} ({peer})", time / own))
            });
            writeln!(out, "| {ours}, {what} | {} |", cells.join(" | "))?;
        }
    }
    let but: Vec<String> = ["mapped", "read", "seal", "unmap", "hand-off"]
        .iter()
        .flat_map(|what| sizes.map(|size| format!("{what}, {size} [us]")))
        .collect();
    let but: Vec<&str> = but.iter().map(String::as_str).collect();
    series(out, results, "stages", "Stages: ten thousand at once", &but)
}

/// Who starts payloads on a node of Kubernetes.
const STARTERS: [&str; 7] =
    ["latebind", "latebind, no gap", "patched shell", "patched shell, no gap", "bare Pod", "Job", "ctr run"];

/// What a cluster's users wait for; then the rest.
fn kube(out: &mut String, results: &Value) -> std::fmt::Result {
    let at = |series: &str, what: &str| percentile(results, "root", "kube", series, what);
    let Some(ours) = at("latebind/start", "p50") else { return Ok(()) };
    writeln!(
        out,
        "\n## Kubernetes\n\n| ms | request to first instruction p50 | p99 | x of ours | its end until it is known p50 | p99 | n |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for who in STARTERS {
        let (start, end) = (format!("{who}/start"), format!("{who}/end known"));
        let Some(p50) = at(&start, "p50") else { continue };
        write!(out, "| {who} | {} | {} | {:.2} ", cell(Some(p50)), cell(at(&start, "p99")), p50 / ours)?;
        let n = at(&start, "n").unwrap_or(0.0);
        writeln!(out, "| {} | {} | {n:.0} |", cell(at(&end, "p50")), cell(at(&end, "p99")))?;
    }
    series(out, results, "kube", "Kubernetes, the rest", &["/start", "/end known"])
}

/// Rates, beside the bare loop's.
fn throughput(out: &mut String, results: &Value) -> std::fmt::Result {
    let at = |user, series: &str, what| percentile(results, user, "throughput", series, what);
    let loops = USERS.map(|user| at(user, "bare loop/warm", "p50"));
    if loops.iter().all(Option::is_none) {
        return Ok(());
    }
    writeln!(
        out,
        "\n## Throughput\n\n| payloads a second | root p50 | worst | x of the loop | user p50 | worst | x of the loop |"
    )?;
    writeln!(out, "|---|---|---|---|---|---|---|")?;
    for (kind, who) in [
        ("warm", "latebind run"),
        ("warm", "latebind run, four slots"),
        ("warm", "latebind submit and serve"),
        ("warm", "latebind submit and serve, four slots"),
        ("warm", "bare loop"),
        ("warm", "two bare loops at once"),
        ("warm", "hyperqueue"),
        ("cold", "latebind run"),
        ("cold", "bwrap"),
        ("cold", "crun"),
        ("cold", "podman"),
    ] {
        let name = format!("{who}/{kind}");
        write!(out, "| {who}, {kind} ")?;
        for (user, bare) in USERS.into_iter().zip(loops) {
            let p50 = at(user, &name, "p50");
            let share = p50.zip(bare).map(|(p50, bare)| p50 / bare);
            write!(out, "| {} | {} | {} ", whole(p50), whole(at(user, &name, "min")), cell(share))?;
        }
        writeln!(out, "|")?;
    }
    Ok(())
}

fn whole(value: Option<f64>) -> String {
    value.map_or("-".into(), |value| format!("{value:.0}"))
}

/// Every series of a section whose name does not end in one of `but`; nothing where it was not measured.
fn series(out: &mut String, results: &Value, section: &str, title: &str, but: &[&str]) -> std::fmt::Result {
    let mut names: Vec<String> = Vec::new();
    for user in USERS {
        let series = find(results, user, section).and_then(|section| section["series"].as_object());
        names.extend(series.into_iter().flatten().map(|(name, _)| name.clone()));
    }
    names.retain(|name| !but.iter().any(|end| name.ends_with(end)));
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Ok(());
    }
    writeln!(out, "\n## {title}\n\n| | root p50 | p99 | user p50 | p99 | n |\n|---|---|---|---|---|---|")?;
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

pub(crate) fn percentile(
    results: &Value,
    user: &str,
    section: &str,
    series: &str,
    what: &str,
) -> Option<f64> {
    find(results, user, section)?["series"][series][what].as_f64()
}

pub(crate) fn fact(results: &Value, user: &str, section: &str, name: &str) -> Option<f64> {
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
