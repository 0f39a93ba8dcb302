//! A registry that stops in the middle of a large answer until it is let go on: a pull that takes as long as a test wants.
//!
//! **Must not know:** who pulls, what for.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use super::Node;

/// Documents are smaller than this, and layers that a test wants to be held are larger.
const FREE_BYTES: usize = 1 << 20;

/// The gate, in front of the node's registry.
#[derive(Debug)]
pub struct Gate {
    host: String,
    node: Node,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    is_open: Mutex<bool>,
    opened: Condvar,
    held: AtomicUsize,
}

impl Gate {
    /// Puts it up, closed, and lets the node know how it is reached.
    ///
    /// # Panics
    /// When there is no port, or the node's settings can't be written.
    #[must_use]
    pub fn new(node: &Node) -> Self {
        let registry = node.registry();
        let (address, _) = registry.split_once(':').expect("a port");
        let listener = TcpListener::bind((address, 0)).expect("a port of the bridge");
        let host = listener.local_addr().expect("address").to_string();
        let gate = Self { host, node: node.clone(), shared: Arc::default() };
        std::fs::create_dir_all(gate.settings()).expect("mkdir");
        let url = format!("http://{}", gate.host);
        let text =
            format!("server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        std::fs::write(gate.settings().join("hosts.toml"), text).expect("write");
        let shared = Arc::clone(&gate.shared);
        // It goes with the test's process.
        let _accepting = std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(&registry) else { continue };
                shared.clone().join(&client, &server);
            }
        });
        gate
    }

    fn settings(&self) -> std::path::PathBuf {
        self.node.state().join("cfg/certs.d").join(&self.host)
    }

    /// Its name, as `host:port`.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// How many large answers have been held so far.
    #[must_use]
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::Relaxed)
    }

    /// Lets everything through.
    pub fn open(&self) {
        *self.shared.is_open.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.opened.notify_all();
    }
}

impl Shared {
    /// Passes on what both say, on threads of their own.
    fn join(self: Arc<Self>, client: &TcpStream, server: &TcpStream) {
        let pair =
            |one: &TcpStream, other: &TcpStream| Some((one.try_clone().ok()?, other.try_clone().ok()?));
        let (Some(asked), Some(answered)) = (pair(client, server), pair(server, client)) else { return };
        let _asking = std::thread::spawn(move || pass(asked, |_| {}));
        let _answering = std::thread::spawn(move || {
            let mut passed = 0;
            pass(answered, |bytes| {
                let before = passed;
                passed += bytes;
                if passed > FREE_BYTES {
                    self.hold(before <= FREE_BYTES);
                }
            });
        });
    }

    fn hold(&self, is_first: bool) {
        let mut is_open = self.is_open.lock().unwrap_or_else(PoisonError::into_inner);
        if is_first && !*is_open {
            self.held.fetch_add(1, Ordering::Relaxed);
        }
        while !*is_open {
            is_open = self.opened.wait(is_open).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

fn pass((mut from, mut to): (TcpStream, TcpStream), mut told: impl FnMut(usize)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        told(read);
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.open();
        let _ = std::fs::remove_dir_all(self.settings());
    }
}
