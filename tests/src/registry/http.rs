//! As much of HTTP/1.1 as a test registry needs, with the faults that it is there for.

use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Fault;

/// Heads are some hundred bytes.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// A client that takes so much of a body without end has no limit.
const ENDLESS_BYTES: usize = 256 << 20;

/// A request as a test looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// `GET`, `HEAD`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// Value of the Range header.
    pub range: Option<String>,
    /// Value of the Authorization header.
    pub authorization: Option<String>,
    /// Value of the Content-Range header.
    pub content_range: Option<String>,
}

#[derive(Debug)]
pub(super) struct Request {
    pub(super) seen: Seen,
    /// First byte that is asked for.
    pub(super) range: Option<usize>,
    /// Value of the Content-Type header.
    pub(super) media_type: String,
    /// Length of the body by the head.
    length: usize,
    pub(super) body: Vec<u8>,
}

impl Request {
    /// The next request, or `None` at the connection's end.
    pub(super) fn read(stream: &mut impl Read, stop: &AtomicBool) -> Option<Self> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            if stop.load(Ordering::Relaxed) || head.len() > HEAD_BYTES_MAX {
                return None;
            }
            match stream.read(&mut byte) {
                Ok(0) => return None,
                // Somebody speaks TLS to a server that does not.
                Ok(_) if head.is_empty() && !byte[0].is_ascii_uppercase() => return None,
                Ok(_) => head.push(byte[0]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return None,
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut lines = head.lines();
        let mut words = lines.next()?.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
        let header = |name: &str| {
            let mut pairs = head.lines().filter_map(|line| line.split_once(": "));
            pairs.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
        };
        let range = header("range");
        let first =
            range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.trim_end_matches('-').parse().ok());
        let (authorization, content_range) = (header("authorization"), header("content-range"));
        let length = header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
        let media_type = header("content-type").unwrap_or_default();
        let seen = Seen { method, path, range, authorization, content_range };
        Some(Self { seen, range: first, media_type, length, body: Vec::new() })
    }

    /// Reads the body, at most so many bytes of it; `false` at the connection's end.
    pub(super) fn read_body(&mut self, stream: &mut impl Read, most: usize, stop: &AtomicBool) -> bool {
        let mut buffer = vec![0; 64 << 10];
        while self.body.len() < self.length.min(most) {
            if stop.load(Ordering::Relaxed) {
                return false;
            }
            let room = buffer.len().min(self.length.min(most) - self.body.len());
            match stream.read(&mut buffer[..room]) {
                Ok(0) => return false,
                Ok(read) => self.body.extend_from_slice(&buffer[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[derive(Debug)]
pub(super) struct Reply {
    status: u16,
    pub(super) headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection is closed, or nothing more comes.
    end: Option<(usize, Ending)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Close,
    Silence,
    Never,
}

impl Reply {
    pub(super) const fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), body, end: None }
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The reply with its range cut out, and with what is wrong with it.
    pub(super) fn spoiled(mut self, fault: Option<&Fault>, range: Option<usize>) -> Self {
        if self.status != 200 {
            return self;
        }
        let total = self.body.len();
        match fault {
            Some(Fault::WrongBytes) => {
                if let Some(byte) = self.body.get_mut(total / 2) {
                    *byte ^= 0x55;
                }
            }
            Some(Fault::Short(bytes)) => self.body.truncate(total.saturating_sub(*bytes)),
            Some(Fault::Long(bytes)) => self.body.resize(total + bytes, 0),
            _ => {}
        }
        if let Some(first) = range.filter(|_| !matches!(fault, Some(Fault::IgnoreRange))) {
            if first >= self.body.len() {
                return Self::new(416, Vec::new());
            }
            let lie = usize::from(matches!(fault, Some(Fault::LieAboutRange)));
            self.body.drain(..first + lie);
            self.status = 206;
            let text = format!("bytes {}-{}/{total}", first + lie, total - 1);
            self.headers.push(("Content-Range".to_owned(), text));
        }
        self.end = match fault {
            Some(Fault::Cut(at)) => Some((*at, Ending::Close)),
            Some(Fault::Stall(at)) => Some((*at, Ending::Silence)),
            Some(Fault::Endless) => Some((self.body.len(), Ending::Never)),
            _ => None,
        };
        self
    }

    /// Sends it; `false` if the connection is over.
    pub(super) fn write(&self, stream: &mut impl Write, request: &Request, stop: &AtomicBool) -> bool {
        let mut head = format!("HTTP/1.1 {} Test\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n", self.status);
        let endless = matches!(self.end, Some((_, Ending::Never)));
        if endless {
            head.push_str("Connection: close\r\n");
        } else {
            head.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        if stream.write_all(head.as_bytes()).is_err() || request.seen.method == "HEAD" {
            return request.seen.method == "HEAD" && stream.flush().is_ok();
        }
        let end = self.end.map_or(self.body.len(), |(at, _)| at.min(self.body.len()));
        if stream.write_all(&self.body[..end]).and_then(|()| stream.flush()).is_err() {
            return false;
        }
        match self.end {
            None => true,
            Some((_, Ending::Close)) => false,
            Some((_, Ending::Silence)) => {
                while !stop.load(Ordering::Relaxed) {
                    std::thread::sleep(super::POLL);
                }
                false
            }
            Some((_, Ending::Never)) => {
                let chunk = vec![b' '; 1 << 16];
                let mut sent = 0;
                while sent < ENDLESS_BYTES
                    && !stop.load(Ordering::Relaxed)
                    && stream.write_all(&chunk).is_ok()
                {
                    sent += chunk.len();
                }
                false
            }
        }
    }
}

/// Value of an Authorization header.
pub(super) fn basic(user: &str, password: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = "Basic ".to_owned();
    for chunk in format!("{user}:{password}").as_bytes().chunks(3) {
        let at = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let value = (bits >> (18 - 6 * digit)) as usize & 63;
            text.push(if digit <= chunk.len() { char::from(DIGITS[value]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
#[test]
fn a_login_is_written_in_base64() {
    assert_eq!(basic("a", "b"), "Basic YTpi");
    assert_eq!(basic("user", "pass"), "Basic dXNlcjpwYXNz");
    assert_eq!(basic("ab", "c"), "Basic YWI6Yw==");
}
