use proptest::prelude::*;

use super::*;

fn name(text: &str) -> StageName {
    StageName::new(text).expect("name")
}

fn uri(text: &str) -> StageUri {
    text.parse().expect("uri")
}

fn reservation(text: &str, max_bytes: u64, readers: &[&str]) -> Reservation {
    Reservation {
        uri: uri(text),
        class: Class::Mem,
        medium: Medium::Memory,
        max_bytes,
        readers: readers.iter().map(|reader| name(reader)).collect(),
    }
}

fn ledger(memory_bytes: u64) -> Ledger {
    Ledger::new(Budget { memory_bytes, disk_bytes: 0 })
}

#[test]
fn an_object_goes_with_its_last_reader() {
    let mut ledger = ledger(100);
    let masses = uri("stage://zpeak/reconstruct/masses");
    ledger.reserve(reservation("stage://zpeak/reconstruct/masses", 64, &["fit", "save"])).expect("room");
    assert_eq!(ledger.commit(&masses, 10), Ok(Fate::Kept));
    assert_eq!(ledger.used_bytes(Medium::Memory), 10);
    assert_eq!(ledger.release(&masses, &name("fit")), Ok(Fate::Kept));
    assert!(matches!(ledger.release(&masses, &name("fit")), Err(LedgerError::NoReader { .. })));
    assert_eq!(ledger.release(&masses, &name("save")), Ok(Fate::Gone));
    assert_eq!(ledger.used_bytes(Medium::Memory), 0);
    assert!(ledger.object(&masses).is_none());
}

#[test]
fn an_object_without_readers_stays_to_the_end_of_its_workflow() {
    let mut ledger = ledger(100);
    ledger.reserve(reservation("stage://a/p/x", 10, &[])).expect("room");
    ledger.reserve(reservation("stage://b/p/x", 20, &[])).expect("room");
    assert_eq!(ledger.commit(&uri("stage://a/p/x"), 10), Ok(Fate::Kept));
    let gone = ledger.end_workflow(&name("a"));
    assert_eq!(gone.len(), 1);
    assert_eq!(ledger.used_bytes(Medium::Memory), 20);
}

#[test]
fn a_stage_whose_readers_gave_up_is_gone_when_it_is_committed() {
    let mut ledger = ledger(100);
    let x = uri("stage://a/p/x");
    ledger.reserve(reservation("stage://a/p/x", 10, &["q"])).expect("room");
    assert_eq!(ledger.release(&x, &name("q")), Ok(Fate::Kept), "its producer still writes it");
    assert_eq!(ledger.commit(&x, 5), Ok(Fate::Gone));
}

#[test]
fn what_does_not_fit_is_refused_before_anything_changes() {
    let mut ledger = ledger(100);
    ledger.reserve(reservation("stage://a/p/x", 60, &[])).expect("room");
    let refused = ledger.reserve(reservation("stage://a/p/y", 41, &[])).expect_err("no room");
    let expected = ReserveError::OverBudget {
        uri: uri("stage://a/p/y"),
        medium: Medium::Memory,
        max_bytes: 41,
        free_bytes: 40,
        budget_bytes: 100,
    };
    assert_eq!(refused, expected);
    ledger.reserve(reservation("stage://a/p/y", 40, &[])).expect("just fits");
    assert!(matches!(ledger.reserve(reservation("stage://a/p/x", 0, &[])), Err(ReserveError::Exists { .. })));
    assert!(matches!(
        ledger.commit(&uri("stage://a/p/x"), 61),
        Err(LedgerError::AboveReservation { bytes: 61, reserved_bytes: 60, .. })
    ));
}

#[test]
fn a_discarded_output_can_be_made_again() {
    let mut ledger = ledger(100);
    ledger.reserve(reservation("stage://a/p/x", 100, &["q"])).expect("room");
    assert_eq!(ledger.discard(&uri("stage://a/p/x")).expect("known").bytes, 100);
    ledger.reserve(reservation("stage://a/p/x", 100, &["q"])).expect("room again");
}

#[derive(Clone, Debug)]
enum Step {
    Reserve { object: usize, memory: bool, max_bytes: u64, readers: u8 },
    Commit { object: usize, bytes: u64 },
    Release { object: usize, reader: u8 },
    Discard { object: usize },
    End { workflow: usize },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..6usize, any::<bool>(), 0..60u64, 0..8u8).prop_map(|(object, memory, max_bytes, readers)| {
            Step::Reserve { object, memory, max_bytes, readers }
        }),
        3 => (0..6usize, 0..60u64).prop_map(|(object, bytes)| Step::Commit { object, bytes }),
        4 => (0..6usize, 0..3u8).prop_map(|(object, reader)| Step::Release { object, reader }),
        1 => (0..6usize).prop_map(|object| Step::Discard { object }),
        1 => (0..2usize).prop_map(|workflow| Step::End { workflow }),
    ]
}

/// The stupid model: a row a name, everything added up anew each time. Readers are bits.
#[derive(Clone, Copy, Default)]
struct Row {
    here: bool,
    memory: bool,
    bytes: u64,
    committed: bool,
    readers: u8,
    readers_at_first: u8,
}

const BUDGET_BYTES: u64 = 100;

#[derive(Default)]
struct Model([Row; 6]);

impl Model {
    fn used(&self, memory: bool) -> u64 {
        self.0.iter().filter(|row| row.here && row.memory == memory).map(|row| row.bytes).sum()
    }

    fn sweep(&mut self, object: usize) -> bool {
        let row = &mut self.0[object];
        let gone = row.committed && row.readers_at_first != 0 && row.readers == 0;
        if gone {
            *row = Row::default();
        }
        gone
    }

    /// Some(gone) when the step is allowed.
    fn take(&mut self, step: &Step) -> Option<bool> {
        match *step {
            Step::Reserve { object, memory, max_bytes, readers } => {
                let allowed = !self.0[object].here && self.used(memory) + max_bytes <= BUDGET_BYTES;
                allowed.then(|| {
                    self.0[object] = Row {
                        here: true,
                        memory,
                        bytes: max_bytes,
                        committed: false,
                        readers,
                        readers_at_first: readers,
                    };
                    false
                })
            }
            Step::Commit { object, bytes } => {
                let row = &mut self.0[object];
                let allowed = row.here && !row.committed && bytes <= row.bytes;
                allowed.then(|| (row.committed, row.bytes) = (true, bytes))?;
                Some(self.sweep(object))
            }
            Step::Release { object, reader } => {
                let row = &mut self.0[object];
                let allowed = row.here && row.readers & 1 << reader != 0;
                allowed.then(|| row.readers &= !(1 << reader))?;
                Some(self.sweep(object))
            }
            Step::Discard { object } => {
                self.0[object].here.then(|| self.0[object] = Row::default()).map(|()| true)
            }
            Step::End { workflow } => {
                self.0[workflow * 3..][..3].fill(Row::default());
                Some(true)
            }
        }
    }
}

fn object_uri(object: usize) -> StageUri {
    uri(&format!("stage://w{}/p/o{}", object / 3, object % 3))
}

fn take(ledger: &mut Ledger, step: &Step) -> Option<bool> {
    let gone = |fate| fate == Fate::Gone;
    match *step {
        Step::Reserve { object, memory, max_bytes, readers } => ledger
            .reserve(Reservation {
                uri: object_uri(object),
                class: if memory { Class::Mem } else { Class::File },
                medium: if memory { Medium::Memory } else { Medium::Disk },
                max_bytes,
                readers: (0..3).filter(|r| readers & 1 << r != 0).map(|r| name(&format!("r{r}"))).collect(),
            })
            .ok()
            .map(|()| false),
        Step::Commit { object, bytes } => ledger.commit(&object_uri(object), bytes).ok().map(gone),
        Step::Release { object, reader } => {
            ledger.release(&object_uri(object), &name(&format!("r{reader}"))).ok().map(gone)
        }
        Step::Discard { object } => ledger.discard(&object_uri(object)).ok().map(|_| true),
        Step::End { workflow } => {
            let _ = ledger.end_workflow(&name(&format!("w{workflow}")));
            Some(true)
        }
    }
}

#[test]
fn what_is_in_an_object_store_takes_nothing_here_and_needs_room_when_it_comes_back() {
    let mut ledger = Ledger::new(Budget { memory_bytes: 0, disk_bytes: 10 });
    let asked = |object: usize, medium: Medium| Reservation {
        uri: object_uri(object),
        class: Class::File,
        medium,
        max_bytes: 8,
        readers: BTreeSet::from([name("r")]),
    };
    ledger.reserve(asked(0, Medium::Disk)).expect("room");
    let _ = ledger.commit(&object_uri(0), 8).expect("commit");
    assert!(ledger.reserve(asked(1, Medium::Disk)).is_err());
    ledger.relocate(&object_uri(0), Medium::Object).expect("there");
    assert_eq!((ledger.used_bytes(Medium::Disk), ledger.used_bytes(Medium::Object)), (0, 8));
    ledger.reserve(asked(1, Medium::Disk)).expect("room");
    ledger.reserve(asked(2, Medium::Object)).expect("there is always room there");
    assert_eq!(ledger.release(&object_uri(0), &name("r")), Ok(Fate::Gone));
    assert_eq!((ledger.used_bytes(Medium::Disk), ledger.used_bytes(Medium::Object)), (8, 8));
}

proptest! {
    #[test]
    fn the_ledger_agrees_with_a_stupid_model(steps in prop::collection::vec(step(), 1..60)) {
        let mut ledger = Ledger::new(Budget { memory_bytes: BUDGET_BYTES, disk_bytes: BUDGET_BYTES });
        let mut model = Model::default();
        for step in &steps {
            prop_assert_eq!(take(&mut ledger, step), model.take(step), "{:?}", step);
            prop_assert_eq!(ledger.used_bytes(Medium::Memory), model.used(true));
            prop_assert_eq!(ledger.used_bytes(Medium::Disk), model.used(false));
            for (object, row) in model.0.iter().enumerate() {
                prop_assert_eq!(ledger.object(&object_uri(object)).is_some(), row.here, "{:?}", step);
            }
        }
        for workflow in ["w0", "w1"] {
            let _ = ledger.end_workflow(&name(workflow));
        }
        prop_assert_eq!(ledger.used_bytes(Medium::Memory) + ledger.used_bytes(Medium::Disk), 0);
        prop_assert_eq!(ledger.objects().count(), 0);
    }
}
