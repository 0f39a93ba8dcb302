//! Virtual time, the messages on their way, and the pilots they go to. One step is one message that arrives.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use pilot_core::{
    Claim, ClaimId, Demand, Epoch, Event, Fault, FaultClass, ImageKey, Input, Moment, Order, Outcome, Output,
    SlotId, StopCause, StopKind,
};

use super::chance::Chance;
use super::node::{Node, Survivor, some_gangs, some_payload};
use super::queue::{Grant, Queue, lease};
use super::runtime::Woes;

/// No world lasts longer in virtual time, or it hangs.
const END_OF_TIME_MS: u64 = 4_000_000;
/// No slot takes longer from claim to Idle or Retired when nothing answers: the sum of all limits below, with room.
const SILENCE_ENDS_MS: u64 = 60_000;

/// What kind of world.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Climate {
    pub(crate) name: &'static str,
    pub(crate) lease_ms: Option<u64>,
    /// Of a thousand messages.
    pub(crate) lost: u64,
    pub(crate) doubled: u64,
    pub(crate) max_delay_ms: u64,
    /// Mean time between two disasters (crash, silence, stop, cordon, cancel), in milliseconds.
    pub(crate) disaster_every_ms: Option<u64>,
    pub(crate) bind_ahead: u32,
    pub(crate) woes: Woes,
}

#[derive(Clone, Debug)]
enum Word {
    Ask(u32),
    Renew(ClaimId),
    Report(Vec<(ClaimId, Outcome)>),
    Release(ClaimId),
}

#[derive(Clone, Debug)]
enum Message {
    Input { node: usize, life: u32, input: Box<Input> },
    Wake { node: usize, life: u32 },
    Do { node: usize, life: u32, slot: SlotId, epoch: Epoch, order: Order },
    Word { node: usize, life: u32, asked: u64, word: Word },
    Disaster,
    SilenceOver { node: usize, life: u32 },
    Birth { node: usize },
}

pub(crate) struct World {
    now: u64,
    steps: u64,
    sequence: u64,
    chance: Chance,
    climate: Climate,
    queue: Queue,
    nodes: Vec<Node>,
    mail: BinaryHeap<Reverse<(u64, u64)>>,
    letters: BTreeMap<u64, Message>,
    /// How often the code of each payload that may run once did run.
    launches: BTreeMap<String, u32>,
    edges: BTreeSet<String>,
}

impl World {
    pub(crate) fn new(seed: u64, climate: Climate) -> Self {
        let mut chance = Chance::new(seed);
        let mut payloads: Vec<_> =
            (0..chance.between(10, 40)).map(|n| some_payload(&mut chance, n)).collect();
        let gangs = some_gangs(&mut chance, payloads.len());
        let mut first = 0;
        for size in &gangs {
            // Else hardly one would fit anywhere.
            for (payload, _) in payloads[first..first + size].iter_mut().filter(|_| *size > 1) {
                payload.demand = Demand { cpu_millis: 1_000, memory_bytes: payload.demand.memory_bytes / 3 };
            }
            first += size;
        }
        let queue = Queue::new(payloads, &gangs, climate.lease_ms);
        let nodes = (0..chance.between(2, 4)).map(|_| Node::new(&mut chance, &climate)).collect();
        Self {
            now: 0,
            steps: 0,
            sequence: 0,
            chance,
            climate,
            queue,
            nodes,
            mail: BinaryHeap::new(),
            letters: BTreeMap::new(),
            launches: BTreeMap::new(),
            edges: BTreeSet::new(),
        }
    }

    /// Until every payload has ended and every pilot is done. The answer is the number of steps; the edges that slots went
    /// along are added to `edges`.
    pub(crate) fn run(mut self, edges: &mut BTreeSet<String>) -> u64 {
        for node in 0..self.nodes.len() {
            self.tell(node, Input::Tick);
        }
        self.plan_disaster();
        while !self.is_over() {
            let Some(Reverse((at, number))) = self.mail.pop() else {
                panic!("all is silent, but work is left: {:?}", self.queue);
            };
            assert!(at < END_OF_TIME_MS, "work is never done: {:?}", self.queue);
            self.now = self.now.max(at);
            // What comes to a pilot that is gone does not count.
            self.steps += 1;
            if let Some(message) = self.letters.remove(&number) {
                self.deliver(message);
            }
        }
        self.queue.assert_each_ended_once();
        edges.append(&mut self.edges);
        self.steps
    }

    fn is_over(&self) -> bool {
        self.queue.is_over() && self.nodes.iter().all(|node| !node.alive)
    }

    fn deliver(&mut self, message: Message) {
        match message {
            Message::Input { node, life, input } if self.lives(node, life) => self.tell(node, *input),
            Message::Wake { node, life } if self.lives(node, life) => {
                self.nodes[node].wake = None;
                self.tell(node, Input::Tick);
            }
            Message::Do { node, life, slot, epoch, order } if self.lives(node, life) => {
                self.do_order(node, slot, epoch, &order);
            }
            Message::Word { node, life, asked, word } => self.hear(node, life, asked, word),
            Message::Disaster => self.disaster(),
            Message::SilenceOver { node, life } if self.lives(node, life) => {
                self.nodes[node].watch.assert_at_rest(&self.nodes[node].pilot);
                self.crash(node);
            }
            Message::Birth { node } if !self.nodes[node].alive && !self.queue.is_over() => self.birth(node),
            Message::Input { node, life, input } => self.return_to_sender(node, life, *input),
            Message::Wake { .. }
            | Message::Do { .. }
            | Message::SilenceOver { .. }
            | Message::Birth { .. } => self.steps -= 1,
        }
    }

    /// A pilot that is done gives back what comes too late; without leases a queue knows what it could not hand over.
    fn return_to_sender(&mut self, node: usize, life: u32, input: Input) {
        if let Input::Offered(claims) = &input
            && self.climate.lease_ms.is_none()
        {
            if self.nodes[node].life == life {
                self.tell(node, input);
            } else {
                claims.iter().for_each(|claim| self.queue.release(self.now, claim.id));
            }
        }
    }

    fn lives(&self, node: usize, life: u32) -> bool {
        self.nodes[node].alive && self.nodes[node].life == life
    }

    /// One input to one pilot, all promises checked, all outputs sent on their way.
    fn tell(&mut self, index: usize, input: Input) {
        let node = &mut self.nodes[index];
        let moment = Moment(self.now - node.born);
        let mut outputs = node.watch.tick_before(&mut node.pilot, moment, &input);
        outputs.extend(node.watch.handle(&mut node.pilot, moment, input));
        node.watch.check(moment, &node.pilot, &outputs, &node.ledgers);
        let deadline = node.pilot.deadline().map(|deadline| deadline.0 + node.born);
        for output in outputs {
            self.carry_out(index, output);
        }
        if let Some(at) = deadline {
            self.plan_wake(index, at.max(self.now));
        }
    }

    fn plan_wake(&mut self, index: usize, at: u64) {
        let node = &mut self.nodes[index];
        if !node.alive || node.wake.is_some_and(|wake| wake <= at) {
            return;
        }
        node.wake = Some(at);
        let (life, late) = (node.life, self.chance.between(0, 5));
        self.post(at + late, Message::Wake { node: index, life });
    }

    fn carry_out(&mut self, index: usize, output: Output) {
        let (node, life) = (index, self.nodes[index].life);
        match output {
            Output::AskClaims(n) => self.say(node, Word::Ask(n)),
            Output::Renew(claim) => self.say(node, Word::Renew(claim)),
            Output::Report { claim, outcome } => self.say(node, Word::Report(vec![(claim, outcome)])),
            Output::ReportTogether(ends) => self.say(node, Word::Report(ends)),
            Output::Release { claim, why: _ } => self.say(node, Word::Release(claim)),
            Output::Prepare(claim) => self.prepare(node, &claim),
            Output::Slot { slot, epoch, claim: _, order } => {
                let at = self.now + self.chance.between(0, self.climate.max_delay_ms);
                let ledger = &mut self.nodes[node].ledgers[slot.0 as usize];
                let at = at.max(ledger.busy_until);
                ledger.busy_until = at;
                self.post(at, Message::Do { node, life, slot, epoch, order });
            }
            Output::Moved { .. } | Output::Ignored { .. } => {}
            Output::Done(_) => {
                self.nodes[node].alive = false;
                let at = self.now + self.chance.between(100, 2_000);
                self.post(at, Message::Birth { node });
            }
        }
    }

    fn prepare(&mut self, node: usize, claim: &Claim) {
        let claim_id = claim.id;
        let input = if self.chance.in_thousand(20) {
            let fault = Fault::new(FaultClass::Payload, "no such image");
            Input::PrepareFailed { claim: claim_id, fault }
        } else {
            let image = ImageKey(format!("sha256:{}", claim.payload.image).into());
            Input::Prepared { claim: claim_id, image, bytes_missing: self.chance.between(0, 1) }
        };
        self.send_input(node, input, true);
    }

    fn do_order(&mut self, node: usize, slot: SlotId, epoch: Epoch, order: &Order) {
        let ledger = &mut self.nodes[node].ledgers[slot.0 as usize];
        let before = ledger.process;
        let news = ledger.apply(self.now, epoch, order, &self.climate.woes, &mut self.chance);
        if let Order::Launch(claim) = order
            && ledger.process == Some(epoch)
            && before != ledger.process
            && claim.payload.at_most_once
        {
            let launches = self.launches.entry(claim.payload.name.to_string()).or_default();
            *launches += 1;
            assert_eq!(*launches, 1, "{} may run once", claim.payload.name);
        }
        for (after, event) in news {
            self.send_event(node, slot, epoch, after, event);
        }
    }

    fn send_event(&mut self, node: usize, slot: SlotId, epoch: Epoch, after: u64, event: Event) {
        if self.nodes[node].silent {
            return;
        }
        let input = Input::Slot { slot, epoch, event };
        let life = self.nodes[node].life;
        // A payload's end takes its time; only what comes after may be lost or doubled.
        for _ in 0..self.copies(true) {
            let at = self.now + after + self.delay();
            self.post(at, Message::Input { node, life, input: Box::new(input.clone()) });
        }
    }

    fn send_input(&mut self, node: usize, input: Input, may_be_lost: bool) {
        let life = self.nodes[node].life;
        for _ in 0..self.copies(may_be_lost) {
            let at = self.now + self.delay();
            self.post(at, Message::Input { node, life, input: Box::new(input.clone()) });
        }
    }

    /// Without leases nothing that the queue and a pilot say to each other may be lost.
    fn say(&mut self, node: usize, word: Word) {
        let life = self.nodes[node].life;
        // Reports are sent until they are through.
        let may_be_lost = self.climate.lease_ms.is_some() && !matches!(word, Word::Report(..));
        for _ in 0..self.copies(may_be_lost) {
            let at = self.now + self.delay();
            self.post(at, Message::Word { node, life, asked: self.now, word: word.clone() });
        }
    }

    fn hear(&mut self, node: usize, life: u32, asked: u64, word: Word) {
        let now = self.now;
        self.queue.expire(now);
        let answers: Vec<Input> = match word {
            Word::Ask(n) => {
                // The connection of a pilot that is gone is gone with it.
                if self.nodes[node].life != life {
                    return;
                }
                let slots = self.nodes[node].usable_slots();
                let claims = self.queue.claim(now, asked, self.nodes[node].born, n, slots);
                vec![match claims.is_empty() {
                    true if self.queue.is_over() => Input::QueueClosed,
                    true => Input::QueueEmpty,
                    false => Input::Offered(claims),
                }]
            }
            Word::Renew(claim) => match self.queue.renew(now, claim) {
                Grant::Renewed(ms) => {
                    let asked = asked.saturating_sub(self.nodes[node].born);
                    vec![Input::LeaseRenewed { claim, lease: lease(asked, ms) }]
                }
                Grant::Lost => vec![Input::LeaseLost { claim }],
            },
            Word::Report(ends) => {
                self.queue.report(now, &ends);
                let done = |(claim, _)| Input::ReportDone { claim };
                ends.into_iter().map(done).collect()
            }
            Word::Release(claim) => return self.queue.release(now, claim),
        };
        if self.nodes[node].life != life {
            return;
        }
        let may_be_lost = self.climate.lease_ms.is_some();
        for answer in answers {
            self.send_input(node, answer, may_be_lost);
        }
    }

    fn copies(&mut self, may_be_lost: bool) -> u32 {
        let lost = may_be_lost && self.chance.in_thousand(self.climate.lost);
        let doubled = self.chance.in_thousand(self.climate.doubled);
        u32::from(!lost) + u32::from(doubled)
    }

    fn delay(&mut self) -> u64 {
        // Most messages are quick, some take very long: that is what turns their order around.
        let max = self.climate.max_delay_ms;
        if self.chance.in_thousand(50) {
            self.chance.between(0, max * 20)
        } else {
            self.chance.between(0, max)
        }
    }

    fn post(&mut self, at: u64, message: Message) {
        self.sequence += 1;
        self.mail.push(Reverse((at, self.sequence)));
        self.letters.insert(self.sequence, message);
    }

    fn plan_disaster(&mut self) {
        if let Some(mean) = self.climate.disaster_every_ms {
            let at = self.now + self.chance.between(1, 2 * mean);
            self.post(at, Message::Disaster);
        }
    }

    fn disaster(&mut self) {
        self.plan_disaster();
        let node = self.chance.between(0, self.nodes.len() as u64 - 1) as usize;
        if !self.nodes[node].alive || self.nodes[node].silent {
            return;
        }
        let stop = |kind| Input::Stop { kind, cause: StopCause::Evicted };
        match self.chance.between(0, 9) {
            0 if self.climate.lease_ms.is_some() => self.crash(node),
            1 if self.climate.lease_ms.is_some() => {
                self.nodes[node].silent = true;
                let life = self.nodes[node].life;
                self.post(self.now + SILENCE_ENDS_MS, Message::SilenceOver { node, life });
                self.tell(node, Input::Cordon);
            }
            2 => self.tell(node, stop(StopKind::Drain)),
            3 => self.tell(node, stop(StopKind::Grace)),
            4 => self.tell(node, stop(StopKind::Kill)),
            5 | 6 => {
                let input = if self.nodes[node].pilot.is_open() { Input::Cordon } else { Input::Uncordon };
                self.tell(node, input);
                let life = self.nodes[node].life;
                self.post(self.now + 3_000, Message::Input { node, life, input: Box::new(Input::Uncordon) });
            }
            _ => {
                let pilot = &self.nodes[node].pilot;
                let waiting = pilot.waiting().map(|claim| claim.id);
                let held: Vec<ClaimId> = pilot.slots().filter_map(|slot| slot.claim).chain(waiting).collect();
                let which = self.chance.between(0, held.len().max(1) as u64 - 1) as usize;
                let held = held.get(which).copied();
                if let Some(claim) = held {
                    let causes = [StopCause::Cancelled, StopCause::Preempted, StopCause::DiskExceeded];
                    let cause = causes[self.chance.between(0, 2) as usize];
                    self.tell(node, Input::StopClaim { claim, cause });
                }
            }
        }
    }

    /// The pilot is gone without a word. What it has started goes on.
    fn crash(&mut self, node: usize) {
        self.nodes[node].alive = false;
        self.nodes[node].life += 1;
        let longest = if self.chance.in_thousand(500) { 500 } else { 5_000 };
        let at = self.now + self.chance.between(1, longest);
        self.post(at, Message::Birth { node });
    }

    fn birth(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        self.edges.append(&mut self.nodes[node].watch.edges);
        let survivors = self.nodes[node].survivors(self.now);
        self.nodes[node] = Node { life, born: self.now, ..Node::new(&mut self.chance, &self.climate) };
        for survivor in survivors {
            self.adopt(node, survivor);
        }
        self.tell(node, Input::Tick);
    }

    /// A pilot that is back finds most of what it left, asks the queue whether it still counts, and takes it over.
    fn adopt(&mut self, node: usize, survivor: Survivor) {
        let Survivor { slot, epoch, mut claim, ledger } = survivor;
        if self.chance.in_thousand(200) {
            return;
        }
        claim.lease = Some(match self.queue.renew(self.now, claim.id) {
            Grant::Renewed(ms) => lease(0, ms),
            Grant::Lost => lease(0, 0),
        });
        // A pilot that comes back with fewer slots has to end what ran in the others.
        if let Some(here) = self.nodes[node].ledgers.get_mut(slot.0 as usize) {
            *here = ledger;
        }
        let image = claim.payload.image.clone();
        for _ in 0..self.copies(false) {
            let (claim, image) = (claim.clone(), image.clone());
            self.tell(node, Input::Adopted { slot, epoch, claim, image });
        }
    }
}
