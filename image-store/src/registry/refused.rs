//! What to make of an answer that takes nothing: one line with the registry's own words and what to do next,
//! and whether another try may go better. The table is pure.

use std::time::Duration;

use reqwest::header::{DATE, RETRY_AFTER};
use serde::Deserialize;

use super::endpoint::Endpoint;
use super::error::{RegistryError, is_passing};
use super::retry;
use super::transport::{Answer, Failure};

/// Of an answer's body; error documents have some hundred bytes.
const BODY_BYTES_MAX: usize = 16 << 10;
/// Of a registry's own words.
const SAID_CHARS_MAX: usize = 160;

/// Judges an answer without success to what was to bring `what`.
pub(super) async fn refusal(endpoint: &Endpoint, answer: Answer, what: &str) -> Failure {
    let Answer { mut response, elsewhere } = answer;
    let status = response.status().as_u16();
    let header = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
    let wait = header(RETRY_AFTER).and_then(|value| retry::retry_after(value, header(DATE)));
    let mut body = Vec::new();
    while body.len() < BODY_BYTES_MAX {
        match response.chunk().await {
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            // Whatever came by then says enough.
            Ok(None) | Err(_) => break,
        }
    }
    judge(endpoint, what, &Said { status, words: said(&body), elsewhere, wait })
}

/// A failure of an exchange in the words of a push.
pub(super) fn pushing(endpoint: &Endpoint, what: &str, failure: Failure) -> Failure {
    match failure {
        Failure::Final(RegistryError::Denied { status, .. }) => {
            let words = String::new();
            judge(endpoint, what, &Said { status, words, elsewhere: false, wait: None })
        }
        other => other,
    }
}

struct Said {
    status: u16,
    words: String,
    elsewhere: bool,
    wait: Option<Duration>,
}

fn judge(endpoint: &Endpoint, what: &str, answer: &Said) -> Failure {
    let &Said { status, ref words, elsewhere, wait } = answer;
    let advice = match wait {
        Some(wait) if is_passing(status) => format!("it asks to wait {} s, try again later", wait.as_secs()),
        _ => advice(status, endpoint.host(), endpoint.login().is_some()),
    };
    let (repository, what) = (endpoint.repository.to_string(), what.to_owned());
    let error = RegistryError::Refused { repository, what, status, reason: format!("{words}; {advice}") };
    // Where uploads really go, 401 and 403 mean that the address has expired.
    let expired = elsewhere && matches!(status, 401 | 403);
    if expired || is_passing(status) { Failure::Again(error, wait) } else { Failure::Final(error) }
}

fn advice(status: u16, host: &str, login: bool) -> String {
    match status {
        401 | 403 if login => format!(
            "the login that is known for it may not push there; `podman login {host}` makes another, --registry-auth names another auth file"
        ),
        401 | 403 => format!("log in with `podman login {host}` or name an auth file with --registry-auth"),
        404 => "check the name; if it is right, the repository has to be made there first".to_owned(),
        405 => "it takes no images: it is read-only or a cache; push to the registry behind it".to_owned(),
        413 => {
            "raise its limit on the length of a request, or that of a proxy before it; or send smaller pieces"
                .to_owned()
        }
        507 => "it has no room left; remove images there".to_owned(),
        _ if is_passing(status) => "try again later".to_owned(),
        _ => "its log may say why".to_owned(),
    }
}

/// A registry's own words in brackets: the first error of its document, in one line; nothing if there is none.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Document {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let Ok(document) = serde_json::from_slice::<Document>(body) else { return String::new() };
    let Some(Entry { code, message }) = document.errors.into_iter().next() else { return String::new() };
    let parts = [code, message].map(|part| part.split_whitespace().collect::<Vec<_>>().join(" "));
    let text: Vec<&str> = parts.iter().map(String::as_str).filter(|part| !part.is_empty()).collect();
    let plain = text.join(": ").chars().filter(|c| !c.is_control()).take(SAID_CHARS_MAX).collect::<String>();
    if plain.is_empty() { plain } else { format!(" ({plain})") }
}

#[cfg(test)]
mod tests {
    use super::super::login::Login;
    use super::*;

    fn judged(status: u16, elsewhere: bool, login: bool) -> (bool, String) {
        let login = login.then(|| Login::Password { user: "user".into(), secret: "hidden".into() });
        let endpoint = Endpoint::new("h.x/team/fit".parse().unwrap(), login, "pull,push");
        let failure = judge(
            &endpoint,
            "layer sha256:12",
            &Said { status, words: said(b""), elsewhere, wait: Some(Duration::from_secs(3)) },
        );
        let again = matches!(failure, Failure::Again(..));
        (again, failure.into_error().to_string())
    }

    #[test]
    fn each_status_says_what_to_do() {
        for (status, again, says) in [
            (400, false, "its log may say why"),
            (401, false, "podman login h.x"),
            (403, false, "--registry-auth"),
            (404, false, "made there first"),
            (405, false, "read-only"),
            (408, true, "wait 3 s"),
            (413, false, "raise its limit"),
            (429, true, "wait 3 s"),
            (500, true, "try again later"),
            (501, false, "its log may say why"),
            (503, true, "wait 3 s"),
            (507, false, "no room left"),
            (599, true, "try again later"),
        ] {
            for login in [false, true] {
                let (tried, text) = judged(status, false, login);
                assert_eq!(tried, again, "{status}");
                assert!(
                    text.contains(says) && text.contains("sha256:12 to h.x/team/fit"),
                    "{status}: {text}"
                );
                assert!(!text.contains('\n') && !text.contains("hidden"), "{text}");
            }
        }
    }

    #[test]
    fn an_address_that_expired_elsewhere_is_no_refusal() {
        assert!(judged(403, true, true).0 && judged(401, true, false).0);
        assert!(!judged(405, true, false).0);
    }

    #[test]
    fn a_registrys_own_words_are_one_short_line() {
        let long = "x".repeat(1000);
        for (body, words) in [
            (r#"{"errors":[{"code":"DENIED","message":"no\nway","detail":"d"}]}"#, " (DENIED: no way)"),
            (r#"{"errors":[{"code":"UNSUPPORTED"}]}"#, " (UNSUPPORTED)"),
            (r#"{"errors":[{"message":"\u001b[31mred"}]}"#, " ([31mred)"),
            (r#"{"errors":[]}"#, ""),
            ("<html>", ""),
            ("", ""),
        ] {
            assert_eq!(said(body.as_bytes()), words, "{body}");
        }
        let body = format!(r#"{{"errors":[{{"code":"{long}"}}]}}"#);
        assert_eq!(said(body.as_bytes()).chars().count(), SAID_CHARS_MAX + 3);
    }
}
