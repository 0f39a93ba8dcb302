//! `pilot top`: what the pilots of a spool do, live on a terminal or once as text.
//!
//! **Must not know:** how a picture is drawn.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pilot_core::RunExit;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use spool::{OpenError, RunFilter, Spool, SpoolError};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::api::LinkError;
use crate::api::client::{Client, Status};
use crate::cli::{OutputFormat, complain, refuse, say};
use crate::config::{Settings, Surroundings, spool_folder};
use crate::fault::chain;
use crate::ui::size_of;
use crate::ui::top::{Picture, PilotView, Waiting, draw, text};

/// Between two pictures.
const REFRESH: Duration = Duration::from_secs(1);
/// Runs whose payloads are counted; a spool with more of them open is told as having more.
const RUNS_MAX: u32 = 500;
/// Keys that may wait: nobody types that fast.
const KEYS_MAX: usize = 64;
/// How long one picture waits for pilots that were just started again; they look for what runs for some seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Between two questions to them.
const AGAIN: Duration = Duration::from_millis(100);
/// Columns of a picture that nobody's terminal limits.
const WIDE: usize = 200;

/// Arguments of `pilot top`.
#[derive(clap::Args, Debug)]
pub struct TopArgs {
    /// Only this pilot
    #[arg(long, value_name = "NAME")]
    pub pilot: Option<String>,
    /// Print one picture and end
    #[arg(long)]
    pub once: bool,
}

/// Shows pilots until told to end.
pub fn top(settings: Settings, around: &Surroundings, arguments: &TopArgs, output: OutputFormat) -> RunExit {
    let folder = match spool_folder(settings.spool, around) {
        Ok(folder) => folder,
        Err(error) => return refuse(&error),
    };
    let watch = match Watch::new(folder, arguments.pilot.clone()) {
        Ok(watch) => watch,
        Err(error) => return refuse(&error),
    };
    let threads = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(threads) => threads,
        Err(error) => {
            complain(&format!("start: {error}"));
            return RunExit::OwnFault;
        }
    };
    let live = !arguments.once && output == OutputFormat::Auto && std::io::stdout().is_terminal();
    let shown = threads.block_on(async {
        if live { show(watch, !around.no_color).await } else { once(watch, output).await }
    });
    // A thread may still wait for a key; it ends with the process.
    threads.shutdown_background();
    match shown {
        Ok(exit) => exit,
        Err(error) => refuse(&error),
    }
}

/// Why there is nothing to show any more.
#[derive(Debug, thiserror::Error)]
enum TopError {
    #[error("open the spool")]
    Open(#[from] OpenError),
    #[error("read the spool")]
    Read(#[from] SpoolError),
    #[error("find pilot {0}: it has never served this spool")]
    NoPilot(String),
    #[error("use the terminal; `pilot top --once` needs none")]
    Terminal(#[source] std::io::Error),
}

/// A spool and connections to its pilots.
struct Watch {
    folder: PathBuf,
    spool: Spool,
    only: Option<String>,
    clients: BTreeMap<String, Client>,
    /// Somebody could not tell yet when the last picture was made.
    too_early: bool,
}

impl Watch {
    fn new(folder: PathBuf, only: Option<String>) -> Result<Self, TopError> {
        let spool = Spool::open_existing(&folder)?;
        Ok(Self { folder, spool, only, clients: BTreeMap::new(), too_early: false })
    }

    async fn picture(&mut self) -> Result<Picture, TopError> {
        let mut pilots = self.spool.pilots()?;
        if let Some(only) = &self.only {
            pilots.retain(|pilot| pilot.name == *only);
            if pilots.is_empty() {
                return Err(TopError::NoPilot(only.clone()));
            }
        } else {
            pilots.retain(|pilot| pilot.alive);
        }
        let mut views = Vec::new();
        self.too_early = false;
        for pilot in pilots {
            let status = match pilot.alive {
                true => self.ask(&pilot.name, Path::new(&pilot.api_socket)).await.map_err(|error| {
                    self.too_early |= matches!(error, LinkError::Refused(_));
                    chain(&error)
                }),
                false => Err("it is not there".to_owned()),
            };
            views.push(PilotView { name: pilot.name, status, per_second: None });
        }
        self.clients.retain(|name, _| views.iter().any(|view| view.name == *name));
        Ok(Picture { spool: self.folder.display().to_string(), waiting: self.waiting()?, pilots: views })
    }

    /// Over the connection of last time, if it still stands.
    async fn ask(&mut self, name: &str, socket: &Path) -> Result<Status, LinkError> {
        if let Some(client) = self.clients.remove(name)
            && let Ok(status) = client.status().await
        {
            self.clients.insert(name.to_owned(), client);
            return Ok(status);
        }
        let client = Client::connect(socket).await?;
        let status = client.status().await?;
        self.clients.insert(name.to_owned(), client);
        Ok(status)
    }

    fn waiting(&self) -> Result<Waiting, SpoolError> {
        let runs = self.spool.runs(RunFilter::Open, None, RUNS_MAX)?;
        let mut sum = Waiting {
            runs: runs.len() as u64,
            more: runs.len() as u64 >= u64::from(RUNS_MAX),
            ..Waiting::default()
        };
        for run in &runs {
            sum.waiting += run.counts.waiting;
            sum.ready += run.counts.ready;
            sum.claimed += run.counts.claimed;
        }
        Ok(sum)
    }
}

async fn once(mut watch: Watch, output: OutputFormat) -> Result<RunExit, TopError> {
    let mut picture = watch.picture().await?;
    let until = Instant::now() + PATIENCE;
    while watch.too_early && Instant::now() < until {
        tokio::time::sleep(AGAIN).await;
        picture = watch.picture().await?;
    }
    if output == OutputFormat::Json {
        say(&format!("{}\n", json(&picture)));
    } else {
        let columns = size_of(std::io::stdout()).map_or(WIDE, |size| usize::from(size.columns));
        say(&text(&picture, columns));
    }
    Ok(RunExit::Success)
}

/// One object; fields are only ever added.
fn json(picture: &Picture) -> serde_json::Value {
    let Waiting { runs, waiting, ready, claimed, more } = picture.waiting;
    let pilots = picture.pilots.iter().map(|view| match &view.status {
        Ok(status) => serde_json::json!({
            "name": view.name,
            "status": status.pilot,
            "slots": status.slots,
            "images": status.images,
            "stages": status.stages,
        }),
        Err(why) => serde_json::json!({"name": view.name, "error": why}),
    });
    serde_json::json!({
        "spool": picture.spool,
        "open_runs": runs,
        "open_runs_more": more,
        "payloads": {"waiting": waiting, "ready": ready, "claimed": claimed},
        "pilots": pilots.collect::<Vec<_>>(),
    })
}

/// The terminal as it was, whatever happens: this for returns and signals, ratatui's own hook for panics.
struct Stage(DefaultTerminal);

impl Drop for Stage {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

/// What a person or a supervisor wants.
enum Wish {
    Quit,
    Scroll(i32),
    Redraw,
    Nothing,
}

async fn show(mut watch: Watch, colour: bool) -> Result<RunExit, TopError> {
    let mut picture = watch.picture().await?;
    // Listening comes first: from here on a signal must not leave the terminal as it is.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(TopError::Terminal)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(TopError::Terminal)?;
    let mut hangup = signal(SignalKind::hangup()).map_err(TopError::Terminal)?;
    let mut stage = Stage(ratatui::try_init().map_err(TopError::Terminal)?);
    let mut keys = keys();
    let (mut scroll, mut furthest) = (0_u16, 0_u16);
    let mut refresh = tokio::time::interval(REFRESH);
    refresh.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let drawing = stage.0.draw(|frame| furthest = draw(frame, &picture, scroll, colour));
        drawing.map_err(TopError::Terminal)?;
        tokio::select! {
            biased;
            () = came(&mut interrupt) => return Ok(RunExit::Interrupted),
            () = came(&mut terminate) => return Ok(RunExit::Terminated),
            // Nobody is there any more to see anything.
            () = came(&mut hangup) => return Ok(RunExit::Terminated),
            key = keys.recv() => match key.as_ref().map_or(Wish::Quit, wish) {
                Wish::Quit => return Ok(RunExit::Success),
                Wish::Scroll(by) => scroll = scrolled(scroll, by, furthest),
                Wish::Redraw | Wish::Nothing => {}
            },
            _ = refresh.tick() => {
                let mut next = watch.picture().await?;
                next.compare(&picture);
                picture = next;
            }
        }
    }
}

/// Signals streams end only with the runtime.
async fn came(signal: &mut Signal) {
    if signal.recv().await.is_none() {
        std::future::pending().await
    }
}

/// Reads keys in a thread of its own: the terminal can only be waited for.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, keys) = mpsc::channel(KEYS_MAX);
    tokio::task::spawn_blocking(move || {
        while let Ok(event) = event::read() {
            if sender.blocking_send(event).is_err() {
                break;
            }
        }
    });
    keys
}

fn wish(event: &Event) -> Wish {
    let key = match event {
        Event::Key(key) if key.kind != KeyEventKind::Release => key,
        Event::Resize(..) => return Wish::Redraw,
        _ => return Wish::Nothing,
    };
    match key.code {
        KeyCode::Char('c') if key.modifiers.contains(KeyModifiers::CONTROL) => Wish::Quit,
        KeyCode::Char('q') | KeyCode::Esc => Wish::Quit,
        KeyCode::Up | KeyCode::Char('k') => Wish::Scroll(-1),
        KeyCode::Down | KeyCode::Char('j') => Wish::Scroll(1),
        KeyCode::PageUp => Wish::Scroll(-20),
        KeyCode::PageDown | KeyCode::Char(' ') => Wish::Scroll(20),
        KeyCode::Home => Wish::Scroll(i32::MIN),
        KeyCode::End => Wish::Scroll(i32::MAX),
        _ => Wish::Nothing,
    }
}

fn scrolled(from: u16, by: i32, furthest: u16) -> u16 {
    let to = i32::from(from.min(furthest)).saturating_add(by).clamp(0, i32::from(furthest));
    u16::try_from(to).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::scrolled;

    #[test]
    fn scrolling_stays_within_the_picture() {
        assert_eq!(scrolled(0, -1, 5), 0);
        assert_eq!(scrolled(5, 1, 5), 5);
        assert_eq!(scrolled(3, i32::MAX, 5), 5);
        assert_eq!(scrolled(9, i32::MIN, 5), 0);
        assert_eq!(scrolled(9, -1, 5), 4);
    }
}
