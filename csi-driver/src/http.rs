//! `/metrics`, `/healthz` and `/readyz` over HTTP/1: `--metrics ADDR`.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the figures, OpenMetrics text |
//! | `/healthz` | 200 while the driver lives |
//! | `/readyz` | 200 while pods can have volumes, else 503 |
//!
//! A connection is for one question and ends within `VISIT_MAX`, so that a peer that stalls holds one of a few places for that
//! long. A web framework would be as large as the rest of the program.
//!
//! **Must not know:** how figures come about.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::metrics::Metrics;

/// From accepting a connection to its end. A scrape takes milliseconds.
const VISIT_MAX: Duration = Duration::from_secs(10);
/// Visits at once; more wait in the kernel's queue. One scraper needs one.
const VISITS_MAX: usize = 16;
/// Longest question; what is sent beyond it is not read.
const QUESTION_MAX: usize = 8 << 10;
/// After a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Why figures can't be served.
#[derive(Debug, thiserror::Error)]
#[error("serve metrics at {addr}: {source}; choose another address with --metrics")]
pub struct HttpError {
    addr: SocketAddr,
    source: std::io::Error,
}

/// Takes an address.
///
/// # Errors
/// When it is not this machine's, or in use.
pub async fn listen(addr: SocketAddr) -> Result<TcpListener, HttpError> {
    TcpListener::bind(addr).await.map_err(|source| HttpError { addr, source })
}

/// Answers until it is dropped.
pub async fn serve(listener: TcpListener, metrics: Arc<Metrics>) {
    let places = Arc::new(Semaphore::new(VISITS_MAX));
    let mut visits = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while visits.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let metrics = Arc::clone(&metrics);
                visits.spawn(async move {
                    // A visitor that stalls or leaves costs itself.
                    let _ = timeout(VISIT_MAX, visit(stream, &metrics)).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection for metrics can't be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn visit(mut stream: TcpStream, metrics: &Metrics) -> std::io::Result<()> {
    let mut question = Vec::with_capacity(512);
    while !question.windows(4).any(|end| end == b"\r\n\r\n") && question.len() < QUESTION_MAX {
        if stream.read_buf(&mut question).await? == 0 {
            break;
        }
    }
    let (status, kind, text) = answer(&question, metrics);
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        text.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(text.as_bytes()).await?;
    stream.shutdown().await
}

const PLAIN: &str = "text/plain; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

fn answer(question: &[u8], metrics: &Metrics) -> (&'static str, &'static str, String) {
    let line = question.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    if words.next() != Some(b"GET") {
        return ("405 Method Not Allowed", PLAIN, "only GET is answered\n".to_owned());
    }
    let path = words.next().unwrap_or_default().split(|byte| *byte == b'?').next().unwrap_or_default();
    match path {
        b"/metrics" => match metrics.text() {
            Ok(figures) => ("200 OK", OPEN_METRICS, figures),
            Err(_) => ("500 Internal Server Error", PLAIN, "the figures can't be written\n".to_owned()),
        },
        b"/healthz" => ("200 OK", PLAIN, "alive\n".to_owned()),
        b"/readyz" if metrics.is_ready() => ("200 OK", PLAIN, "ready\n".to_owned()),
        b"/readyz" => ("503 Service Unavailable", PLAIN, "not registered with the kubelet yet\n".to_owned()),
        _ => ("404 Not Found", PLAIN, "there is nothing here\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_get_their_answers_whatever_they_are() {
        let metrics = Metrics::new(true);
        let status = |question: &[u8]| answer(question, &metrics).0;
        assert_eq!(status(b"GET /healthz HTTP/1.1\r\n\r\n"), "200 OK");
        assert_eq!(status(b"GET /readyz HTTP/1.1\r\n\r\n"), "503 Service Unavailable");
        assert_eq!(status(b"GET /metrics?x=1 HTTP/1.1\r\n\r\n"), "200 OK");
        assert_eq!(status(b"GET /other HTTP/1.1\r\n\r\n"), "404 Not Found");
        for question in [&b""[..], b"POST /metrics HTTP/1.1\r\n\r\n", b"\0\xff", b"GET"] {
            assert!(status(question).starts_with('4'), "{question:?}");
        }
        metrics.recovered();
        assert_eq!(status(b"GET /readyz HTTP/1.1\r\n\r\n"), "503 Service Unavailable");
        metrics.registered(true);
        assert_eq!(status(b"GET /readyz HTTP/1.1\r\n\r\n"), "200 OK");
        metrics.called("NodePublishVolume", tonic::Code::Ok, Duration::from_millis(3));
        let figures = answer(b"GET /metrics HTTP/1.1\r\n\r\n", &metrics).2;
        for line in [
            "latebind_csi_calls_total{method=\"NodePublishVolume\",code=\"0\"} 1",
            "latebind_csi_call_seconds_count{method=\"NodePublishVolume\"} 1",
            "latebind_csi_ready 1",
            "# EOF",
        ] {
            assert!(figures.contains(line), "{line} is missing in\n{figures}");
        }
    }
}
