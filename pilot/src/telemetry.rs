//! Where the pilot's own log goes: stderr, quiet unless asked.
//!
//! Spans and events carry names, numbers and causes, never environment values, arguments, credentials or what payloads
//! write. Of other people's code only warnings are told: what it says in detail may quote a request with its credentials.
//!
//! **Must not know:** what is told.

use clap::ValueEnum;
use serde::Deserialize;
use tracing::Subscriber;
use tracing_subscriber::filter::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::{FmtSpan, format};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

/// How a line of the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people, without time.
    #[default]
    Plain,
    /// One JSON object a line, with time.
    Json,
}

/// Our crates, as their events name them.
const OURS: [&str; 6] = ["pilot", "pilot_core", "spool", "stage", "image_store", "oci_runner"];

/// Starts logging. `RUST_LOG` (tracing-subscriber's syntax) wins over `verbose`.
pub fn start(verbose: u8, format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(directives(verbose)));
    let colour = std::io::IsTerminal::is_terminal(&std::io::stderr());
    // A second start (tests) keeps the first.
    let _ = subscriber(filter, verbose, format, colour, std::io::stderr).try_init();
}

fn directives(verbose: u8) -> String {
    let level = match verbose {
        0 => return "warn".to_owned(),
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    OURS.iter().fold("warn".to_owned(), |all, ours| format!("{all},{ours}={level}"))
}

fn subscriber<W>(
    filter: EnvFilter,
    verbose: u8,
    lines_as: LogFormat,
    colour: bool,
    writer: W,
) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // The end of a span says how long it took.
    let spans = if verbose >= 2 { FmtSpan::CLOSE } else { FmtSpan::NONE };
    let lines = tracing_subscriber::fmt::layer().with_writer(writer).with_span_events(spans);
    let lines = match lines_as {
        // The layer's own `without_time` would take the spans' times too.
        LogFormat::Plain => lines.event_format(format().without_time()).with_ansi(colour).boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::filter::EnvFilter;

    use super::{LogFormat, directives, subscriber};

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().expect("kept").write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log(verbose: u8, format: LogFormat, say: impl FnOnce()) -> String {
        let kept = Kept::default();
        let writer = kept.clone();
        let filter = EnvFilter::new(directives(verbose));
        let lines = subscriber(filter, verbose, format, false, move || writer.clone());
        tracing::subscriber::with_default(lines, say);
        let bytes = kept.0.lock().expect("kept").clone();
        String::from_utf8(bytes).expect("text")
    }

    fn payload() {
        let span = tracing::info_span!("payload", payload = "fit", claim = 7_u64);
        let _in = span.enter();
        tracing::info_span!("bind").in_scope(|| tracing::debug!("step"));
    }

    #[test]
    fn spans_tell_how_long_they_took_when_asked_for_much() {
        let text = log(2, LogFormat::Plain, payload);
        let bind = text.lines().find(|line| line.contains("close")).expect("the end of a span");
        assert!(bind.contains("payload{payload=\"fit\" claim=7}:bind"), "{bind}");
        assert!(bind.contains("time.busy=") && bind.contains("time.idle="), "{bind}");
        assert_eq!(log(1, LogFormat::Plain, payload), "");
    }

    #[test]
    fn a_line_is_an_object_with_time_and_spans() {
        let text = log(2, LogFormat::Json, payload);
        let first: serde_json::Value =
            serde_json::from_str(text.lines().next().expect("line")).expect("JSON");
        assert_eq!(first["fields"]["message"], "step");
        assert_eq!(first["spans"][0]["payload"], "fit");
        assert!(first["timestamp"].is_string());
        assert!(text.lines().any(|line| line.contains("time.idle")), "{text}");
    }

    #[test]
    fn details_of_other_peoples_code_stay_untold() {
        let say = || {
            tracing::debug!(target: "hyper::proto", "Authorization: secret");
            tracing::warn!(target: "hyper::proto", "a warning");
        };
        let text = log(3, LogFormat::Plain, say);
        assert!(text.contains("a warning") && !text.contains("secret"), "{text}");
    }
}
