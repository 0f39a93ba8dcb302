//! What a test wants to happen to a payload.

use pilot_core::{ExitStatus, Fault};

/// How one try of a payload goes. The default is a slot that works and a payload that does its [`Deed`].
#[derive(Clone, Debug, Default)]
pub struct Play {
    pub(super) bind: BindPlay,
    pub(super) launch: LaunchPlay,
    pub(super) drain: DrainPlay,
    pub(super) clean_failures: u32,
}

#[derive(Clone, Debug, Default)]
pub(super) enum BindPlay {
    #[default]
    Works,
    Fails(Fault),
    Hangs,
    Panics,
}

#[derive(Clone, Debug, Default)]
pub(super) enum LaunchPlay {
    /// What the payload's command says.
    #[default]
    Deed,
    Exits {
        after_ms: u64,
        status: ExitStatus,
    },
    EndsOnTerm,
    EndsOnKill,
    NeverEnds,
    NotStarted(Fault),
    SlotLost(Fault),
    OutOfMemory,
    Panics,
}

#[derive(Clone, Debug, Default)]
pub(super) enum DrainPlay {
    #[default]
    Works,
    Faults(Fault),
    Hangs,
}

impl Play {
    fn launched(launch: LaunchPlay) -> Self {
        Self { launch, ..Self::default() }
    }

    /// The payload exits by itself.
    #[must_use]
    pub fn exits(code: u8, after_ms: u64) -> Self {
        Self::launched(LaunchPlay::Exits { after_ms, status: ExitStatus::Code(code) })
    }

    /// The payload runs until it is sent TERM, and obeys.
    #[must_use]
    pub fn ends_on_term() -> Self {
        Self::launched(LaunchPlay::EndsOnTerm)
    }

    /// The payload ignores TERM and runs until it is sent KILL.
    #[must_use]
    pub fn ends_on_kill() -> Self {
        Self::launched(LaunchPlay::EndsOnKill)
    }

    /// The launch never answers, whatever is sent.
    #[must_use]
    pub fn never_ends() -> Self {
        Self::launched(LaunchPlay::NeverEnds)
    }

    /// None of the payload's code runs.
    #[must_use]
    pub fn not_started(fault: Fault) -> Self {
        Self::launched(LaunchPlay::NotStarted(fault))
    }

    /// The slot breaks under the running payload.
    #[must_use]
    pub fn slot_lost(fault: Fault) -> Self {
        Self::launched(LaunchPlay::SlotLost(fault))
    }

    /// The kernel ends the slot for memory.
    #[must_use]
    pub fn out_of_memory() -> Self {
        Self::launched(LaunchPlay::OutOfMemory)
    }

    /// The adapter panics in `launch`.
    #[must_use]
    pub fn launch_panics() -> Self {
        Self::launched(LaunchPlay::Panics)
    }

    /// The bind fails.
    #[must_use]
    pub fn bind_fails(fault: Fault) -> Self {
        Self { bind: BindPlay::Fails(fault), ..Self::default() }
    }

    /// The bind never answers.
    #[must_use]
    pub fn bind_hangs() -> Self {
        Self { bind: BindPlay::Hangs, ..Self::default() }
    }

    /// The adapter panics in `bind`.
    #[must_use]
    pub fn bind_panics() -> Self {
        Self { bind: BindPlay::Panics, ..Self::default() }
    }

    /// The outputs can't be committed.
    #[must_use]
    pub fn drain_faults(mut self, fault: Fault) -> Self {
        self.drain = DrainPlay::Faults(fault);
        self
    }

    /// The drain never answers.
    #[must_use]
    pub fn drain_hangs(mut self) -> Self {
        self.drain = DrainPlay::Hangs;
        self
    }

    /// So many tries to clean fail.
    #[must_use]
    pub fn clean_fails(mut self, times: u32) -> Self {
        self.clean_failures = times;
        self
    }
}

/// What a payload of the conformance suite does: a program that every runtime can run, in the runtime's own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Deed {
    /// Exits with a code.
    Exit(u8),
    /// Runs until it is sent TERM.
    Hang,
    /// Ignores TERM and runs until it is killed.
    IgnoreTerm,
    /// Writes a text to an output.
    Write {
        /// Which output.
        output: String,
        /// What.
        text: String,
    },
    /// Exits with 0 if an input holds exactly this text, else with 1.
    Expect {
        /// Which input.
        input: String,
        /// What.
        text: String,
    },
    /// Leaves a file of this name wherever a payload may write.
    Leave(String),
    /// Exits with 1 if a file of this name is anywhere that a payload may write, else with 0.
    Find(String),
    /// Is a program that the image doesn't have.
    Missing,
}

impl Deed {
    /// As a command in busybox. [`Deed::Hang`] and [`Deed::IgnoreTerm`] say `ready` when they run.
    #[must_use]
    pub fn in_busybox(&self) -> Vec<String> {
        const PLACES: &str = "/work /tmp /var/tmp /dev/shm /stage/out";
        let script = match self {
            Self::Exit(code) => format!("exit {code}"),
            Self::Hang => "echo ready; exec sleep 3600".into(),
            Self::IgnoreTerm => "trap '' TERM; echo ready; while :; do sleep 3600; done".into(),
            Self::Write { output, .. } => format!("printf %s \"$1\" > /stage/out/{output}"),
            // The full stop keeps the shell from taking the last newlines away.
            Self::Expect { input, .. } => format!("test \"$(cat /stage/in/{input}; echo .)\" = \"$1.\""),
            Self::Leave(file) => format!("for d in {PLACES}; do : > $d/{file} || exit 1; done"),
            Self::Find(file) => format!("for d in {PLACES}; do test -e $d/{file} && exit 1; done; exit 0"),
            Self::Missing => return vec!["/bin/no-such-program".into()],
        };
        let text = match self {
            Self::Write { text, .. } | Self::Expect { text, .. } => text.clone(),
            _ => String::new(),
        };
        vec!["/bin/sh".into(), "-c".into(), script, "sh".into(), text]
    }

    /// As a command of the fake runtime.
    #[must_use]
    pub fn words(&self) -> Vec<String> {
        let code;
        let words: Vec<&str> = match self {
            Self::Exit(number) => {
                code = number.to_string();
                vec!["exit", &code]
            }
            Self::Hang => vec!["hang"],
            Self::IgnoreTerm => vec!["ignore-term"],
            Self::Write { output, text } => vec!["write", output, text],
            Self::Expect { input, text } => vec!["expect", input, text],
            Self::Leave(file) => vec!["leave", file],
            Self::Find(file) => vec!["find", file],
            Self::Missing => vec!["missing"],
        };
        words.into_iter().map(str::to_owned).collect()
    }

    /// The inverse of [`Deed::words`]; a command that is none is a program that the image doesn't have.
    #[must_use]
    pub fn of(words: &[String]) -> Self {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match *words.as_slice() {
            [] => Self::Exit(0),
            ["exit", code] => Self::Exit(code.parse().unwrap_or(u8::MAX)),
            ["hang"] => Self::Hang,
            ["ignore-term"] => Self::IgnoreTerm,
            ["write", output, text] => Self::Write { output: output.into(), text: text.into() },
            ["expect", input, text] => Self::Expect { input: input.into(), text: text.into() },
            ["leave", file] => Self::Leave(file.into()),
            ["find", file] => Self::Find(file.into()),
            _ => Self::Missing,
        }
    }
}
