//! A proxy in front of a server, for HTTP/1.1, one thread a connection and one request each: it does what a bad network
//! and a bad server do, and remembers what it was asked.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong with one request.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Answered by this status, without asking the server.
    Status(u16, &'static str),
    /// The connection is closed after so many bytes of the request's body.
    CutUpload(usize),
    /// The connection is closed after so many bytes of the answer's body.
    Cut(usize),
    /// So many bytes of the answer's body, then nothing.
    Stall(usize),
    /// The server does it, but its answer is lost.
    LoseAnswer,
    /// A byte in the middle is another one.
    WrongByte,
    /// So many bytes are missing at the end, and the stated length agrees.
    Short(usize),
}

/// A request that came.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) range: Option<(u64, u64)>,
    pub(crate) if_match: Option<String>,
}

impl Seen {
    pub(crate) fn is(&self, method: &str, part: &str) -> bool {
        self.method == method && self.target.contains(part)
    }
}

type Plan = dyn Fn(&Seen, usize) -> Option<Fault> + Send + Sync;

/// The running proxy. It ends when this is dropped.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    stop: Arc<AtomicBool>,
}

impl Proxy {
    /// Asks `plan` about each request; its number among those with the same method and kind of target comes along.
    pub(crate) fn start(
        server: SocketAddr,
        plan: impl Fn(&Seen, usize) -> Option<Fault> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("address");
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let stop = Arc::new(AtomicBool::new(false));
        let plan: Arc<Plan> = Arc::new(plan);
        let (all, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                let (all, plan, stopped) = (Arc::clone(&all), Arc::clone(&plan), Arc::clone(&stopped));
                std::thread::spawn(move || drop(serve(client, server, &all, &*plan, &stopped)));
            }
        });
        Self { address, seen, stop }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        locked(&self.seen).clone()
    }

    pub(crate) fn count(&self, method: &str, part: &str) -> usize {
        locked(&self.seen).iter().filter(|seen| seen.is(method, part)).count()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn locked(seen: &Mutex<Vec<Seen>>) -> MutexGuard<'_, Vec<Seen>> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serve(
    mut client: TcpStream,
    server: SocketAddr,
    all: &Mutex<Vec<Seen>>,
    plan: &Plan,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let (head, begun) = read_head(&mut client)?;
    let length = header(&head, "content-length").and_then(|text| text.parse().ok()).unwrap_or(0);
    let seen = seen(&head);
    let number = {
        let mut all = locked(all);
        let kind =
            |seen: &Seen| (seen.method.clone(), seen.target.contains("uploadId"), seen.range.is_some());
        let number = all.iter().filter(|other| kind(other) == kind(&seen)).count();
        all.push(seen.clone());
        number
    };
    let fault = plan(&seen, number);
    if let Some(Fault::CutUpload(bytes)) = fault {
        let mut some = vec![0; bytes.saturating_sub(begun.len())];
        return client.read_exact(&mut some);
    }
    let mut body = begun;
    let have = body.len();
    body.resize(length, 0);
    client.read_exact(&mut body[have..])?;
    if let Some(Fault::Status(status, code)) = fault {
        let text = format!("<Error><Code>{code}</Code><Message>as\nplanned</Message></Error>");
        return write!(
            client,
            "HTTP/1.1 {status} Planned\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
            text.len()
        );
    }
    let mut upstream = TcpStream::connect(server)?;
    upstream.write_all(head.trim_end_matches("\r\n").as_bytes())?;
    upstream.write_all(b"\r\nConnection: close\r\n\r\n")?;
    upstream.write_all(&body)?;
    let (answer, mut body) = read_head(&mut upstream)?;
    if seen.method != "HEAD" {
        upstream.read_to_end(&mut body)?;
    }
    reply(client, &answer, body, fault, stop)
}

fn reply(
    mut client: TcpStream,
    answer: &str,
    mut body: Vec<u8>,
    fault: Option<Fault>,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let mut head: String = answer
        .lines()
        .filter(|line| !line.to_ascii_lowercase().starts_with("connection:"))
        .fold(String::new(), |text, line| if line.is_empty() { text } else { text + line + "\r\n" });
    let mut send = body.len();
    match fault {
        Some(Fault::LoseAnswer) => return Ok(()),
        Some(Fault::Cut(bytes) | Fault::Stall(bytes)) => send = send.min(bytes),
        Some(Fault::WrongByte) => {
            let middle = body.len() / 2;
            body[middle] ^= 1;
        }
        Some(Fault::Short(bytes)) => {
            send = send.saturating_sub(bytes);
            let length = format!("Content-Length: {}", body.len());
            head = head.replace(&length, &format!("Content-Length: {send}"));
        }
        _ => {}
    }
    write!(client, "{head}Connection: close\r\n\r\n")?;
    client.write_all(&body[..send])?;
    if matches!(fault, Some(Fault::Stall(_))) {
        client.set_read_timeout(Some(Duration::from_millis(50)))?;
        // Until the client goes, or the test.
        while !stop.load(Ordering::SeqCst) && !matches!(client.read(&mut [0]), Ok(0)) {}
    }
    Ok(())
}

/// The head, with the empty line that ends it, and what came of the body.
fn read_head(stream: &mut TcpStream) -> std::io::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    let mut some = [0; 16 << 10];
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let body = bytes.split_off(end + 4);
            return Ok((String::from_utf8_lossy(&bytes).into_owned(), body));
        }
        match stream.read(&mut some)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            read => bytes.extend_from_slice(&some[..read]),
        }
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(field, _)| field.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

fn seen(head: &str) -> Seen {
    let mut words = head.split(' ');
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let range = header(head, "range").and_then(|text| text.strip_prefix("bytes=")?.split_once('-'));
    let range = range.and_then(|(from, to)| Some((from.parse().ok()?, to.parse::<u64>().ok()? + 1)));
    Seen { method, target, range, if_match: header(head, "if-match").map(ToOwned::to_owned) }
}
