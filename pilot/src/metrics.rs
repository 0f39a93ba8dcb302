//! Figures for Prometheus, and whether the pilot lives and takes work: `--metrics ADDR`.
//!
//! | path | answer |
//! |---|---|
//! | `/metrics` | the figures, OpenMetrics text |
//! | `/healthz` | 200 while the pilot lives |
//! | `/readyz` | 200 while it takes work, else 503 |
//!
//! The figures are written when they are asked for; nothing is kept or woken up in between. Whoever may reach the address
//! may ask: names of payloads and images are not told, only counts. A connection is for one question and ends within
//! `CONNECTION_MAX`, so a peer that stalls holds nothing but one of a few places for that long.
//!
//! **Must not know:** how figures come about.

mod text;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{Instant, Sleep};

use crate::board::LiveBoard;

/// From accepting a connection to its end. A scrape takes milliseconds.
const CONNECTION_MAX: Duration = Duration::from_secs(10);
/// Connections at once; more wait in the kernel's queue. One scraper needs one.
const CONNECTIONS_MAX: usize = 16;
/// After a failed accept, such as for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Why figures can't be served.
#[derive(Debug, thiserror::Error)]
#[error("serve metrics at {addr}; choose another address with --metrics")]
pub struct MetricsError {
    addr: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Serving {
    addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Serving {
    /// Where, with the port that was chosen if it was asked for as 0.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
}

/// Serves a board's figures at an address.
///
/// # Errors
/// When the address is not this machine's, or in use. Needs a tokio runtime.
pub fn serve(addr: SocketAddr, board: LiveBoard) -> Result<Serving, MetricsError> {
    serve_within(addr, board, CONNECTION_MAX)
}

fn serve_within(addr: SocketAddr, board: LiveBoard, longest: Duration) -> Result<Serving, MetricsError> {
    let error = |source| MetricsError { addr, source };
    let listen = || {
        let listener = StdListener::bind(addr)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listener = listen().map_err(error)?;
    let addr = listener.local_addr().map_err(error)?;
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let routes = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { closing(StatusCode::OK, "alive\n".to_owned()) }))
        .route("/readyz", get(ready))
        .fallback(|| async { closing(StatusCode::NOT_FOUND, "there is nothing here\n".to_owned()) })
        .with_state(board);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // It never ends by itself: failing to accept is retried below.
        let _ = axum::serve(Door { listener, places, longest }, routes).await;
    });
    Ok(Serving { addr, _tasks: tasks })
}

async fn metrics(State(board): State<LiveBoard>) -> Response {
    match text::figures(&board) {
        Ok(figures) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            let headers = [(header::CONTENT_TYPE, kind), (header::CONNECTION, "close")];
            (headers, figures).into_response()
        }
        Err(error) => {
            tracing::error!(%error, "the figures can't be written");
            closing(StatusCode::INTERNAL_SERVER_ERROR, "the figures can't be written\n".to_owned())
        }
    }
}

async fn ready(State(board): State<LiveBoard>) -> Response {
    match board.read(|_, board| board.ready()) {
        true => closing(StatusCode::OK, "takes work\n".to_owned()),
        false => closing(StatusCode::SERVICE_UNAVAILABLE, "takes no work\n".to_owned()),
    }
}

fn closing(status: StatusCode, text: String) -> Response {
    (status, [(header::CONNECTION, "close")], text).into_response()
}

/// Lets in a few at once.
struct Door {
    listener: TcpListener,
    places: Arc<Semaphore>,
    longest: Duration,
}

impl Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Visit, SocketAddr) {
        loop {
            let Ok(place) = Arc::clone(&self.places).acquire_owned().await else {
                // Nobody closes it.
                return std::future::pending().await;
            };
            match self.listener.accept().await {
                Ok((stream, from)) => {
                    let end = Box::pin(tokio::time::sleep_until(Instant::now() + self.longest));
                    return (Visit { stream, end, _place: place }, from);
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection for metrics can't be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

/// A connection whose time is limited from the start, whatever its peer does.
struct Visit {
    stream: TcpStream,
    end: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

impl Visit {
    fn poll_over(&mut self, context: &mut Context<'_>) -> std::io::Result<()> {
        match self.end.as_mut().poll(context) {
            Poll::Ready(()) => Err(std::io::ErrorKind::TimedOut.into()),
            Poll::Pending => Ok(()),
        }
    }
}

impl AsyncRead for Visit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        self.poll_over(context)?;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Visit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        self.poll_over(context)?;
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.poll_over(context)?;
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
#[path = "metrics_tests.rs"]
mod tests;
