//! Asking for figures over loopback, politely and otherwise.

use std::time::Duration;

use pilot_core::{ClaimId, Epoch, EventName, PhaseName, SlotId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{CONNECTIONS_MAX, Serving, serve, serve_within};
use crate::board::tests::payload;
use crate::board::{Identity, LiveBoard};
use crate::progress::Progress;

fn board() -> LiveBoard {
    LiveBoard::new(Identity { name: "pilot \"a\"".into(), slots: 2, cpu_millis: 2000, memory_bytes: 1 << 30 })
}

fn serving(board: &LiveBoard) -> Serving {
    serve("127.0.0.1:0".parse().expect("address"), board.clone()).expect("serve")
}

fn serving_within(longest: Duration) -> Serving {
    serve_within("127.0.0.1:0".parse().expect("address"), board(), longest).expect("serve")
}

async fn ask(serving: &Serving, request: &str) -> String {
    let mut stream = TcpStream::connect(serving.addr()).await.expect("connect");
    stream.write_all(request.as_bytes()).await.expect("ask");
    let mut answer = String::new();
    // Cut off counts as what came so far.
    let _ = stream.read_to_string(&mut answer).await;
    answer
}

async fn get(serving: &Serving, path: &str) -> String {
    ask(serving, &format!("GET {path} HTTP/1.1\r\nHost: pilot\r\n\r\n")).await
}

#[tokio::test]
async fn figures_are_told_as_open_metrics_text() {
    let board = board();
    let serving = serving(&board);
    board.take(&Progress::Claimed { claims: 3 });
    board.take(&Progress::Moved {
        slot: SlotId(0),
        epoch: Epoch(1),
        claim: ClaimId(1),
        from: PhaseName::Idle,
        to: PhaseName::Binding,
        event: EventName::Claimed,
        payload: Some((payload("fit"), 1)),
    });
    let answer = get(&serving, "/metrics").await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("head");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("application/openmetrics-text"), "{head}");
    for line in [
        "latebind_pilot_info{pilot=\"pilot \\\"a\\\"\",version=\"0.1.0\"} 1",
        "latebind_claims_total 3",
        "latebind_slots{phase=\"idle\"} 1",
        "latebind_slots{phase=\"binding\"} 1",
        "latebind_starts_total{kind=\"cold\"} 1",
        "# UNIT latebind_bind_seconds seconds",
        "latebind_bind_seconds_bucket{le=\"+Inf\"} 0",
        "latebind_stages_held_bytes 0",
        "latebind_ready 1",
    ] {
        assert!(body.lines().any(|found| found == line), "no {line} in:\n{body}");
    }
    assert!(body.ends_with("# EOF\n"));
    assert!(!body.contains("fit"), "a payload's name is told:\n{body}");
}

#[tokio::test]
async fn every_figure_is_documented_and_every_documented_figure_is_told() {
    let figures = super::text::figures(&board()).expect("figures");
    let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/how-to/watch-a-pilot.md");
    let page = std::fs::read_to_string(page).expect("watch-a-pilot.md");
    let told: std::collections::BTreeSet<&str> =
        figures.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    let documented: std::collections::BTreeSet<&str> =
        page.lines().filter_map(|line| line.strip_prefix("| `latebind_")?.split('`').next()).collect();
    let documented: std::collections::BTreeSet<String> =
        documented.into_iter().map(|name| format!("latebind_{name}")).collect();
    let told: std::collections::BTreeSet<String> = told.into_iter().map(str::to_owned).collect();
    assert_eq!(told, documented);
}

#[tokio::test]
async fn health_and_readiness_are_told_apart() {
    let board = board();
    let serving = serving(&board);
    assert!(get(&serving, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&serving, "/readyz").await.starts_with("HTTP/1.1 200"));
    board.take(&Progress::Stopping);
    assert!(get(&serving, "/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get(&serving, "/readyz").await.starts_with("HTTP/1.1 503"));
    assert!(get(&serving, "/secrets").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn an_address_that_is_taken_or_foreign_is_one_line() {
    let board = board();
    let first = serving(&board);
    for addr in [first.addr(), "192.0.2.1:1".parse().expect("address")] {
        let error = serve(addr, board.clone()).expect_err("taken");
        let text = crate::fault::chain(&error);
        assert!(text.starts_with(&format!("serve metrics at {addr}")) && text.lines().count() == 1, "{text}");
    }
}

#[tokio::test]
async fn nonsense_is_refused_and_long_heads_are_cut() {
    let serving = serving_within(Duration::from_secs(1));
    assert!(ask(&serving, "\0\0\0\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    let long = format!("GET /metrics HTTP/1.1\r\nx: {}\r\n\r\n", "a".repeat(1 << 20));
    let mut stream = TcpStream::connect(serving.addr()).await.expect("connect");
    // The pilot may close before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    assert!(get(&serving, "/healthz").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn peers_that_stall_are_cut_off_and_make_place_for_others() {
    let serving = serving_within(Duration::from_millis(300));
    let mut stalled = Vec::new();
    for _ in 0..CONNECTIONS_MAX {
        let mut stream = TcpStream::connect(serving.addr()).await.expect("connect");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.expect("half a question");
        stalled.push(stream);
    }
    // All places are taken: this one is answered when the first of them is cut off.
    let answer = tokio::time::timeout(Duration::from_secs(60), get(&serving, "/healthz")).await;
    assert!(answer.expect("answered").starts_with("HTTP/1.1 200"));
    for mut stream in stalled {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
    }
}
