//! One blob on its way into a repository.
//!
//! ```text
//! look --HEAD: there----------------------------------------> done
//!  |  ^                                                        ^
//!  |  `--no such upload---.                                    |
//!  | absent               |                                    |
//!  v                     ask <--broken--.                      |
//! open                    |             |                      |
//!  |                      v             |                      |
//!  `--POST--------------> send --PATCH, PATCH, .., then PUT----'
//!
//! ```
//! # Guarantees
//! - A blob that its registry has is not sent; one that broke off is gone on with where the registry says.
//! - A blob whose bytes don't have its digest is not completed, so nothing can name it.
//! - One piece is in memory at a time (two while it is sent).
//!
//! # What it must not know
//! Where the blob lies, and what an image is.

use std::time::Duration;

use reqwest::header::HeaderMap;
use reqwest::{Method, Url};

use super::endpoint::{Endpoint, To};
use super::error::RegistryError;
use super::outgoing::Outgoing;
use super::push::LINE_BYTES_PER_S;
use super::refused::refusal;
use super::session::Registry;
use super::transport::{Answer, Failure, Piece, protocol};

/// A registry that hashes or moves a blob at its end more slowly is given up.
const CLOSE_BYTES_PER_S: u64 = 16 << 20;
/// The longest pieces that a registry may ask for: they are held in memory.
const PIECE_BYTES_MAX: u64 = 64 << 20;

/// Where a blob's upload stands.
#[derive(Debug)]
enum Step {
    Look,
    Open,
    Send { to: Url, at: u64 },
    Ask { to: Url },
    Done,
}

/// A step that failed, and what to do once it was waited.
struct Setback {
    failure: Failure,
    then: Step,
}

impl Setback {
    fn new(failure: Failure, then: Step) -> Box<Self> {
        Box::new(Self { failure, then })
    }

    /// Of what another try won't make better.
    fn last(failure: Failure) -> Box<Self> {
        Self::new(failure, Step::Done)
    }
}

/// See the module's doc.
pub(super) struct Upload<'a, 'b> {
    registry: &'a Registry,
    endpoint: &'a Endpoint,
    blob: &'a mut Outgoing<'b>,
    what: String,
    piece_bytes: u64,
    /// Most bytes that the registry ever said it had.
    most: u64,
    opened: bool,
    /// It was gone on with: what the registry holds may be not what it says.
    resumed: bool,
}

impl<'a, 'b> Upload<'a, 'b> {
    pub(super) fn new(
        registry: &'a Registry,
        endpoint: &'a Endpoint,
        blob: &'a mut Outgoing<'b>,
        piece_bytes: u64,
    ) -> Self {
        let (what, most, opened, resumed) = (blob.what(), 0, false, false);
        Self { registry, endpoint, blob, what, piece_bytes, most, opened, resumed }
    }

    /// Whether it had to be sent; `told` is told of bytes that are there.
    pub(super) async fn run(mut self, told: &dyn Fn(u64)) -> Result<bool, RegistryError> {
        let patience = self.registry.transport.access.patience;
        let (mut step, mut tried, mut fruitless) = (Step::Look, 0, 0);
        loop {
            let before = self.most;
            let setback = match self.take(step).await {
                Ok(Step::Done) => {
                    told(self.blob.size);
                    return Ok(self.opened);
                }
                Ok(next) => {
                    // Bytes came through: what failed before has passed.
                    fruitless = if self.most > before { 0 } else { fruitless };
                    told(self.most);
                    step = next;
                    continue;
                }
                Err(setback) => setback,
            };
            (tried, fruitless) = (tried + 1, fruitless + 1);
            let wait = self.registry.wait(0, fruitless, &setback.failure);
            match wait.filter(|_| tried < patience.tries_of_blob) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(setback.failure.into_error()),
            }
            step = setback.then;
        }
    }

    async fn take(&mut self, step: Step) -> Result<Step, Box<Setback>> {
        match step {
            Step::Look => self.look().await,
            Step::Open => self.open().await,
            Step::Send { to, at } if at < self.blob.size => self.send(to, at).await,
            Step::Send { to, .. } => self.close(to).await,
            Step::Ask { to } => self.ask(to).await,
            Step::Done => Ok(Step::Done),
        }
    }

    async fn look(&self) -> Result<Step, Box<Setback>> {
        let path = format!("blobs/{}", self.blob.digest);
        match self.registry.is_there(self.endpoint, &path, &self.what).await {
            Ok(there) => Ok(if there { Step::Done } else { Step::Open }),
            Err(failure) => Err(Setback::new(failure, Step::Look)),
        }
    }

    async fn open(&mut self) -> Result<Step, Box<Setback>> {
        let retry = |failure| Setback::new(failure, Step::Open);
        let piece = self.piece(None, Vec::new(), self.registry.time(0, LINE_BYTES_PER_S));
        let answer = self.exchange(To::Path("blobs/uploads/"), Method::POST, Some(&piece)).await;
        let answer = answer.map_err(retry)?;
        if !answer.response.status().is_success() {
            return Err(retry(refusal(self.endpoint, answer, &self.what).await));
        }
        let least = number(answer.response.headers(), "oci-chunk-min-length").unwrap_or(0);
        if least > PIECE_BYTES_MAX {
            let reason = format!("it wants pieces of {least} bytes, over the limit of {PIECE_BYTES_MAX}");
            return Err(Setback::last(protocol(self.endpoint.host(), &reason)));
        }
        self.piece_bytes = self.piece_bytes.clamp(least.max(1), PIECE_BYTES_MAX);
        let to = self.location(&answer)?;
        let reason = "it opens an upload and does not say where (no Location)";
        let to = to.ok_or_else(|| Setback::last(protocol(self.endpoint.host(), reason)))?;
        self.opened = true;
        Ok(Step::Send { to, at: 0 })
    }

    async fn send(&mut self, to: Url, at: u64) -> Result<Step, Box<Setback>> {
        let bytes = self.blob.piece(at, self.piece_bytes).map_err(|reason| self.unsound(reason))?;
        let end = at + bytes.len() as u64;
        let time = self.registry.time(bytes.len() as u64, LINE_BYTES_PER_S);
        let piece = self.piece(Some(format!("{at}-{}", end - 1)), bytes, time);
        let answer = match self.exchange(To::At(&to), Method::PATCH, Some(&piece)).await {
            Ok(answer) => answer,
            Err(failure) => return Err(Setback::new(failure, Step::Ask { to })),
        };
        match answer.response.status().as_u16() {
            200..=299 => {}
            status => return Err(self.interrupted(status, answer, to).await),
        }
        // The specification wants a Location in each answer; one that leaves it out means the same again.
        let next = self.location(&answer)?.unwrap_or(to);
        let held = held(answer.response.headers()).unwrap_or(end);
        if held <= at || held > end {
            let reason = format!("of the bytes up to {end} it says that it has those up to {held}");
            let failure =
                Failure::Again(RegistryError::Protocol { host: self.endpoint.host().into(), reason }, None);
            return Err(Setback::new(failure, Step::Ask { to: next }));
        }
        self.most = self.most.max(held);
        Ok(Step::Send { to: next, at: held })
    }

    async fn close(&mut self, to: Url) -> Result<Step, Box<Setback>> {
        if let Err(reason) = self.blob.check() {
            // Out of courtesy; the registry forgets it by itself too, after days.
            let _ = self.exchange(To::At(&to), Method::DELETE, None).await;
            return Err(self.unsound(reason));
        }
        let mut closing = to.clone();
        closing.query_pairs_mut().append_pair("digest", &self.blob.digest.to_string());
        let piece = self.piece(None, Vec::new(), self.registry.time(self.blob.size, CLOSE_BYTES_PER_S));
        let answer = match self.exchange(To::At(&closing), Method::PUT, Some(&piece)).await {
            Ok(answer) => answer,
            Err(failure) => return Err(Setback::new(failure, Step::Ask { to })),
        };
        match answer.response.status().as_u16() {
            200..=299 => Ok(Step::Done),
            status => Err(self.interrupted(status, answer, to).await),
        }
    }

    /// Judges an answer without success in the middle of an upload.
    async fn interrupted(&self, status: u16, answer: Answer, to: Url) -> Box<Setback> {
        let failure = refusal(self.endpoint, answer, &self.what).await;
        let then = match status {
            // The upload has expired, or the bytes of two tries got mixed up.
            404 => Step::Look,
            400 if self.resumed => Step::Look,
            _ => Step::Ask { to },
        };
        match (failure, status) {
            (Failure::Final(error), 404 | 416) => Setback::new(Failure::Again(error, None), then),
            (Failure::Final(error), 400) if self.resumed => Setback::new(Failure::Again(error, None), then),
            (failure, _) => Setback::new(failure, then),
        }
    }

    /// Finds out how much of the upload is there.
    async fn ask(&mut self, to: Url) -> Result<Step, Box<Setback>> {
        let answer = match self.exchange(To::At(&to), Method::GET, None).await {
            Ok(answer) => answer,
            Err(failure) => return Err(Setback::new(failure, Step::Ask { to })),
        };
        if !answer.response.status().is_success() {
            return match refusal(self.endpoint, answer, &self.what).await {
                failure @ Failure::Again(..) => Err(Setback::new(failure, Step::Ask { to })),
                // It knows no such upload (perhaps because it is complete), or does not tell.
                Failure::Final(_) => Ok(Step::Look),
            };
        }
        let to = self.location(&answer)?.unwrap_or(to);
        match held(answer.response.headers()) {
            // "0-0" is written for one byte and for none.
            Some(at @ 2..) if at <= self.blob.read() => {
                (self.resumed, self.most) = (true, self.most.max(at));
                Ok(Step::Send { to, at })
            }
            _ => Ok(Step::Look),
        }
    }

    async fn exchange(&self, to: To<'_>, method: Method, piece: Option<&Piece>) -> Result<Answer, Failure> {
        self.registry.put(self.endpoint, to, method, piece, &self.what).await
    }

    fn piece(&self, range: Option<String>, bytes: Vec<u8>, time: Duration) -> Piece {
        Piece { media_type: "application/octet-stream".to_owned(), range, bytes, time }
    }

    fn location(&self, answer: &Answer) -> Result<Option<Url>, Box<Setback>> {
        self.endpoint.location(&self.registry.transport, &answer.response).map_err(Setback::last)
    }

    fn unsound(&self, reason: String) -> Box<Setback> {
        let (repository, what) = (self.endpoint.repository.to_string(), self.what.clone());
        Setback::last(Failure::Final(RegistryError::Unsound { repository, what, reason }))
    }
}

/// Bytes that a registry says it has of an upload: one more than the end of `Range: 0-END`.
fn held(headers: &HeaderMap) -> Option<u64> {
    let text = headers.get("range")?.to_str().ok()?.trim();
    let (first, last) = text.strip_prefix("bytes=").unwrap_or(text).split_once('-')?;
    if first != "0" || !last.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    last.parse::<u64>().ok()?.checked_add(1)
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_says_how_many_bytes_it_has_by_their_last() {
        for (text, bytes) in [
            ("0-0", Some(1)),
            ("0-1023", Some(1024)),
            ("bytes=0-9", Some(10)),
            (" 0-9 ", Some(10)),
            ("1-9", None),
            ("0-", None),
            ("0-+9", None),
            ("9", None),
            ("", None),
            ("0-18446744073709551615", None),
            ("0-99999999999999999999", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("range", text.parse().unwrap());
            assert_eq!(held(&headers), bytes, "{text:?}");
        }
        assert_eq!(held(&HeaderMap::new()), None);
    }
}
