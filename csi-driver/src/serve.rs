//! A driver that runs: sockets, services, timer, and their end.
//!
//! **Must not know:** the command line, signals.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

use crate::driver::{self, Driver};
use crate::grpc::csi::identity_server::IdentityServer;
use crate::grpc::csi::node_server::NodeServer;
use crate::grpc::registration::registration_server::RegistrationServer;
use crate::http::{self, HttpError};
use crate::identity::Identity;
use crate::journal::{Journal, StateError};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::register::Registration;
use crate::settings::Config;
use crate::sockets::{self, SocketError};
use crate::target::Pods;

/// Longest request: the kubelet's have a few kilobytes.
const REQUEST_MAX: usize = 256 << 10;
/// Connections that wait for their service.
const CONNECTIONS_MAX: usize = 16;
/// Requests at once on one connection.
const STREAMS_MAX: u32 = 64;
/// How long a request may take that is begun when the driver is told to end.
const END_GRACE: Duration = Duration::from_secs(5);

/// Why the driver can't run.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The state folder.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kubelet's folder.
    #[error(
        "open the kubelet's folder of pods {path}: {source}; name the kubelet's folder with --kubelet-dir"
    )]
    Pods {
        /// Where it was looked for.
        path: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// A socket.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The address for metrics.
    #[error(transparent)]
    Http(#[from] HttpError),
    /// Threads, or a service that ended by itself.
    #[error("run the driver: {0}")]
    Run(String),
}

/// Runs a driver until `stop` is done.
///
/// # Errors
/// When it can't start, or a service ends by itself.
pub async fn serve(config: Config, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let config = Arc::new(config);
    let metrics = Arc::new(Metrics::new(config.registry.is_some()));
    let pods = Pods::open(&config.pods)
        .map_err(|source| ServeError::Pods { path: config.pods.display().to_string(), source })?;
    let state = Journal::open(&config.state)?;
    let settings = driver::Settings { limits: config.limits, grace: config.grace };
    let driver = Driver::start(state, pods, settings, Arc::clone(&metrics))
        .map_err(|error| ServeError::Run(error.to_string()))?;

    let (mut services, mut sockets) = (JoinSet::new(), JoinSet::new());
    let mut visits = JoinSet::new();
    if let Some(addr) = config.metrics {
        let listener = http::listen(addr).await?;
        tracing::info!(addr = %listener.local_addr().map_or(addr, |addr| addr), "metrics");
        visits.spawn(http::serve(listener, Arc::clone(&metrics)));
    }
    let (ending, ended) = watch::channel(false);
    let identity = Identity { name: config.driver_name.clone(), metrics: Arc::clone(&metrics) };
    let node = Node { config: Arc::clone(&config), driver: driver.clone(), metrics: Arc::clone(&metrics) };
    let router = builder()
        .add_service(IdentityServer::new(identity).max_decoding_message_size(REQUEST_MAX))
        .add_service(NodeServer::new(node).max_decoding_message_size(REQUEST_MAX));
    let connections = open(&config.endpoint, &mut sockets, &ended)?;
    services.spawn(router.serve_with_incoming_shutdown(ReceiverStream::new(connections), end(ended.clone())));
    if let Some(folder) = &config.registry {
        let endpoint = config.endpoint.display().to_string();
        let registration = Registration { name: config.driver_name.clone(), endpoint, metrics };
        let router = builder()
            .add_service(RegistrationServer::new(registration).max_decoding_message_size(REQUEST_MAX));
        let connections =
            open(&folder.join(format!("{}-reg.sock", config.driver_name)), &mut sockets, &ended)?;
        services
            .spawn(router.serve_with_incoming_shutdown(ReceiverStream::new(connections), end(ended.clone())));
    }
    tokio::select! {
        () = stop => {}
        () = collect(&driver, config.collect_every) => {}
        Some(result) = services.join_next() => {
            let why = match result {
                Ok(Ok(())) => "a service ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(ServeError::Run(why));
        }
    }
    // First the sockets go, so that the kubelet knows; then requests that are begun are answered.
    let _ = ending.send(true);
    while sockets.join_next().await.is_some() {}
    let over = async { while services.join_next().await.is_some() {} };
    // A kubelet that keeps its connection open keeps nobody waiting longer.
    let _ = tokio::time::timeout(END_GRACE, over).await;
    Ok(())
}

async fn end(mut ended: watch::Receiver<bool>) {
    sockets::end(&mut ended).await;
}

/// Has the driver look for pods that are gone, now and then.
async fn collect(driver: &Driver, every: Duration) {
    let begun = Instant::now();
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        driver.collect(begun.elapsed()).await;
    }
}

fn builder() -> Server {
    Server::builder()
        .max_concurrent_streams(STREAMS_MAX)
        .initial_connection_window_size(REQUEST_WINDOW)
        .initial_stream_window_size(REQUEST_WINDOW)
}

/// What a connection may send unread. Small: the kubelet's requests are.
const REQUEST_WINDOW: u32 = 128 << 10;

fn open(
    path: &Path,
    tasks: &mut JoinSet<()>,
    ended: &watch::Receiver<bool>,
) -> Result<mpsc::Receiver<io::Result<UnixStream>>, SocketError> {
    if let Some(folder) = path.parent() {
        // The kubelet makes its own; if this fails, binding says why.
        let _ = std::fs::create_dir_all(folder);
    }
    let bound = sockets::take(path)?;
    let (sender, connections) = mpsc::channel(CONNECTIONS_MAX);
    tasks.spawn(sockets::keep(path.to_owned(), bound, sender, ended.clone()));
    Ok(connections)
}
