//! A runtime that keeps a ledger of everything alive in each slot, does orders late, and sometimes fails or keeps silent.

use std::collections::BTreeSet;

use pilot_core::{
    Claim, Drained, Epoch, Event, Exit, ExitStatus, Fault, FaultClass, ImageKey, Order, Payload, Signal,
    StopCause, TrustGroup, Usage,
};

use super::chance::Chance;

/// How often what goes wrong, in a thousand cases.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Woes {
    pub(crate) bind_fails: u64,
    pub(crate) launch_fails: u64,
    pub(crate) never_exits: u64,
    pub(crate) ignores_term: u64,
    pub(crate) slot_lost: u64,
    pub(crate) drain_silent: u64,
    pub(crate) clean_fails: u64,
}

/// What is alive in one slot.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    pub(crate) container: bool,
    pub(crate) process: Option<Epoch>,
    pub(crate) mounts: u32,
    pub(crate) fds: u32,
    /// Kept on purpose, for the next payload.
    pub(crate) warm: bool,
    /// For what the container was made.
    image: Option<(ImageKey, TrustGroup)>,
    launched: BTreeSet<Epoch>,
    pub(crate) launched_at: u64,
    /// When the process ends, and what is said then. It ends also when no pilot watches.
    ends: Option<(u64, Event)>,
    /// The process was left behind by an earlier life of the pilot, which may wait for it.
    orphan: bool,
    ignores_term: bool,
    /// When the order that came last is done: orders of a slot are done one after the other.
    pub(crate) busy_until: u64,
}

/// What an order leads to: news after a while.
pub(crate) type News = Vec<(u64, Event)>;

impl Ledger {
    pub(crate) fn is_empty(&self) -> bool {
        !self.container && self.process.is_none() && self.mounts == 0 && self.fds == 0
    }

    /// Whether nothing but an image with its shim is here.
    pub(crate) fn is_warm_only(&self) -> bool {
        self.warm && self.container && self.process.is_none() && self.fds == 0
    }

    /// What is left of a slot when its pilot crashed and came back: all, if the process is to be adopted.
    pub(crate) fn orphaned(self) -> Self {
        Self { orphan: true, busy_until: 0, ..self }
    }

    pub(crate) fn apply(
        &mut self,
        now: u64,
        epoch: Epoch,
        order: &Order,
        woes: &Woes,
        chance: &mut Chance,
    ) -> News {
        match order {
            Order::Bind(claim) => self.bind(claim, woes, chance),
            Order::Launch(_) if std::mem::take(&mut self.orphan) => self.watch(now, epoch),
            Order::Launch(claim) => {
                let news = self.launch(epoch, &claim.payload, woes, chance);
                self.launched_at = now;
                self.ends = news.first().map(|(after, event)| (now + after, event.clone()));
                news
            }
            Order::Signal(signal) => {
                let news = self.signal(*signal, chance);
                if let Some((after, event)) = news.first() {
                    self.ends = Some((now + after, event.clone()));
                }
                news
            }
            Order::Drain { .. } => self.drain(woes, chance),
            Order::Clean => self.clean(woes, chance),
        }
    }

    fn bind(&mut self, claim: &Claim, woes: &Woes, chance: &mut Chance) -> News {
        *self = Self {
            launched: std::mem::take(&mut self.launched),
            busy_until: self.busy_until,
            ..Self::default()
        };
        self.mounts = 3;
        if chance.in_thousand(woes.bind_fails) {
            let fault = Fault::new(some_class(chance), "bind");
            return vec![(chance.between(0, 50), Event::BindFailed(fault))];
        }
        self.container = true;
        self.image = Some((claim.payload.image.clone(), claim.payload.trust.clone()));
        vec![(chance.between(0, 50), Event::Bound)]
    }

    fn launch(&mut self, epoch: Epoch, payload: &Payload, woes: &Woes, chance: &mut Chance) -> News {
        let lost = Fault::new(FaultClass::Slot, "launch: no container");
        if !self.container {
            return vec![(1, Event::SlotLost(lost))];
        }
        let wanted = (payload.image.clone(), payload.trust.clone());
        assert_eq!(self.image, Some(wanted), "{} is launched in another's container", payload.name);
        assert!(self.launched.insert(epoch), "{} was launched twice in epoch {epoch}", payload.name);
        if chance.in_thousand(woes.launch_fails) {
            return vec![(1, Event::LaunchFailed(Fault::new(FaultClass::Payload, "exec: not found")))];
        }
        self.process = Some(epoch);
        self.fds = 5;
        self.warm = false;
        self.ignores_term = chance.in_thousand(woes.ignores_term);
        if chance.in_thousand(woes.slot_lost) {
            return vec![(chance.between(1, 900), Event::SlotLost(lost))];
        }
        if chance.in_thousand(woes.never_exits) {
            return Vec::new();
        }
        vec![(chance.between(1, 1_500), Event::Exited(some_exit(chance)))]
    }

    fn watch(&mut self, now: u64, epoch: Epoch) -> News {
        assert_eq!(self.process, Some(epoch), "adopted in another epoch");
        self.ends.iter().map(|(at, event)| (at.saturating_sub(now), event.clone())).collect()
    }

    fn signal(&mut self, signal: Signal, chance: &mut Chance) -> News {
        if self.process.is_none() {
            self.container = false;
            return Vec::new();
        }
        let killed = Exit::from(ExitStatus::Signal { signal: 9, core: false });
        match signal {
            Signal::Term { .. } if self.ignores_term => Vec::new(),
            Signal::Term { .. } | Signal::Kill => vec![(chance.between(0, 30), Event::Exited(killed))],
        }
    }

    fn drain(&mut self, woes: &Woes, chance: &mut Chance) -> News {
        self.process = None;
        self.fds = 1;
        if chance.in_thousand(woes.drain_silent) {
            return Vec::new();
        }
        let fault = chance.in_thousand(30).then(|| Fault::new(FaultClass::Payload, "output is missing"));
        vec![(chance.between(0, 200), Event::Drained(Drained { usage: Usage::default(), fault }))]
    }

    fn clean(&mut self, woes: &Woes, chance: &mut Chance) -> News {
        if chance.in_thousand(woes.clean_fails) {
            return vec![(chance.between(0, 50), Event::CleanFailed(Fault::new(FaultClass::Slot, "clean")))];
        }
        self.process = None;
        self.fds = 0;
        let warm = self.container && chance.in_thousand(500);
        self.warm = warm;
        if !warm {
            self.container = false;
            self.mounts = 0;
        }
        vec![(chance.between(0, 20), Event::Cleaned { warm })]
    }
}

fn some_class(chance: &mut Chance) -> FaultClass {
    [FaultClass::Retry, FaultClass::Payload, FaultClass::Slot][chance.between(0, 2) as usize]
}

fn some_exit(chance: &mut Chance) -> Exit {
    match chance.between(0, 19) {
        0 => ExitStatus::Code(1).into(),
        1 => ExitStatus::Signal { signal: 11, core: true }.into(),
        2 => Exit {
            status: ExitStatus::Signal { signal: 9, core: false },
            cause: Some(StopCause::MemoryExceeded),
        },
        _ => ExitStatus::SUCCESS.into(),
    }
}
