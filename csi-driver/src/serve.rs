//! A driver that runs: sockets, services, timer, and their end.
//!
//! **Must not know:** the command line, signals.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::sync::mpsc;
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

    let mut tasks = JoinSet::new();
    if let Some(addr) = config.metrics {
        let listener = http::listen(addr).await?;
        tracing::info!(addr = %listener.local_addr().map_or(addr, |addr| addr), "metrics");
        let metrics = Arc::clone(&metrics);
        tasks.spawn(async move {
            http::serve(listener, metrics).await;
            Ok(())
        });
    }
    let identity = Identity { name: config.driver_name.clone(), metrics: Arc::clone(&metrics) };
    let node = Node { config: Arc::clone(&config), driver: driver.clone(), metrics: Arc::clone(&metrics) };
    let node = NodeServer::new(node).max_decoding_message_size(REQUEST_MAX);
    let identity = IdentityServer::new(identity).max_decoding_message_size(REQUEST_MAX);
    let mut sockets = JoinSet::new();
    let connections = open(&config.endpoint, &mut sockets)?;
    let router = builder().add_service(identity).add_service(node);
    let (ending, mut ended) = tokio::sync::watch::channel(false);
    let mut ended_too = ended.clone();
    tasks.spawn(async move {
        let end = async move { drop(ended.wait_for(|ended| *ended).await) };
        router.serve_with_incoming_shutdown(ReceiverStream::new(connections), end).await
    });
    if let Some(folder) = &config.registry {
        let registration = Registration {
            name: config.driver_name.clone(),
            endpoint: config.endpoint.display().to_string(),
            metrics: Arc::clone(&metrics),
        };
        let connections = open(&folder.join(format!("{}-reg.sock", config.driver_name)), &mut sockets)?;
        let router = builder()
            .add_service(RegistrationServer::new(registration).max_decoding_message_size(REQUEST_MAX));
        tasks.spawn(async move {
            let end = async move { drop(ended_too.wait_for(|ended| *ended).await) };
            router.serve_with_incoming_shutdown(ReceiverStream::new(connections), end).await
        });
    }
    tokio::select! {
        () = stop => {}
        () = collect(&driver, config.collect_every) => {}
        Some(result) = tasks.join_next() => {
            let why = match result {
                Ok(Ok(())) => "a service ended".to_owned(),
                Ok(Err(error)) => error.to_string(),
                Err(error) => error.to_string(),
            };
            return Err(ServeError::Run(why));
        }
    }
    // Requests that are begun are answered; then the sockets go, so that the kubelet knows.
    let _ = ending.send(true);
    let over = async { while sockets.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(END_GRACE, over).await;
    Ok(())
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

fn open(path: &Path, tasks: &mut JoinSet<()>) -> Result<mpsc::Receiver<io::Result<UnixStream>>, SocketError> {
    if let Some(folder) = path.parent() {
        // The kubelet makes its own; if this fails, binding says why.
        let _ = std::fs::create_dir_all(folder);
    }
    let bound = sockets::take(path)?;
    let (sender, connections) = mpsc::channel(CONNECTIONS_MAX);
    tasks.spawn(sockets::keep(path.to_owned(), bound, sender));
    Ok(connections)
}
