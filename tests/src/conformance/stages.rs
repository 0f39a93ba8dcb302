//! The promises of [`Runtime`] about what one payload hands on to another.

use pilot::payload::{Payload, StageClass};
use pilot::ports::Runtime;
use pilot_core::{ExitStatus, FaultClass};

use super::runtime::{HERE, Stand, THERE, Trial};
use crate::fake::{Deed, input, output};

const TEXT: &str = "three muons, \u{3c7}\u{b2} = 1.0\nand a line\n\n";

pub(super) fn producer_and_consumer<S: Stand>(trial: &Trial<S>, class: StageClass) -> (Payload, Payload) {
    let write = Deed::Write { output: "hits".into(), text: TEXT.into() };
    let expect = Deed::Expect { input: "hits".into(), text: TEXT.into() };
    let producer =
        Payload { outputs: vec![output("hits", class, &["reads"])], ..trial.payload("writes", &write) };
    let consumer = Payload { inputs: vec![input("hits", "writes")], ..trial.payload("reads", &expect) };
    (producer, consumer)
}

async fn handed_on<S: Stand>(trial: &Trial<S>, class: StageClass) {
    trial.prepare().await;
    let (producer, consumer) = producer_and_consumer(trial, class);
    let (status, drained) = trial.run(HERE, &producer).await;
    assert_eq!((status, drained.fault), (ExitStatus::SUCCESS, None));
    assert_eq!(drained.usage.output_bytes, TEXT.len() as u64);
    trial.run_well(THERE, &consumer).await;
    trial.run_well(HERE, &consumer).await;
    trial.assert_as_new().await;
}

/// A committed file stage is read in another slot, byte for byte, and in its own.
pub async fn a_file_stage_is_handed_on<S: Stand>(trial: &Trial<S>) {
    handed_on(trial, StageClass::File).await;
}

/// A committed memory stage is read in another slot, byte for byte, and in its own.
pub async fn a_memory_stage_is_handed_on<S: Stand>(trial: &Trial<S>) {
    handed_on(trial, StageClass::Memory).await;
}

/// A committed value is read in another slot, byte for byte, and in its own.
pub async fn a_value_is_handed_on<S: Stand>(trial: &Trial<S>) {
    handed_on(trial, StageClass::Value).await;
}

/// What a drain doesn't commit is gone: who would read it can't be bound, and that is no one's fault.
pub async fn an_output_that_is_not_committed_is_dropped<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    for class in [StageClass::File, StageClass::Memory, StageClass::Value] {
        let (producer, consumer) = producer_and_consumer(trial, class);
        let ended = trial.launch(HERE, &producer).await;
        assert_eq!(ended.exit.status, ExitStatus::SUCCESS);
        trial.undo(HERE, &producer).await;
        let fault = trial.refused(THERE, &consumer).await;
        assert_eq!(fault.class, FaultClass::Retry, "{fault}");
        trial.undo(THERE, &consumer).await;
    }
    trial.assert_as_new().await;
}

/// A payload that is run again after its outputs were committed replaces them.
pub async fn a_second_commit_replaces_the_first<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    for class in [StageClass::File, StageClass::Memory, StageClass::Value] {
        let (producer, consumer) = producer_and_consumer(trial, class);
        let stale = Deed::Write { output: "hits".into(), text: "stale".into() };
        let earlier = Payload { command: Some(trial.stand.command(&stale)), ..producer.clone() };
        trial.run_well(HERE, &earlier).await;
        trial.run_well(HERE, &producer).await;
        trial.run_well(THERE, &consumer).await;
    }
    trial.assert_as_new().await;
}

/// A stage is there until the last payload that would read it is settled.
pub async fn a_stage_goes_with_its_last_reader<S: Stand>(trial: &Trial<S>) {
    trial.prepare().await;
    let (producer, consumer) = producer_and_consumer(trial, StageClass::File);
    let readers = vec![output("hits", StageClass::File, &["reads", "reads-too"])];
    let producer = Payload { outputs: readers, ..producer };
    let other = Payload { name: crate::fake::name("reads-too"), ..consumer.clone() };
    trial.run_well(HERE, &producer).await;
    trial.runtime().settle(&consumer);
    trial.run_well(THERE, &other).await;
    trial.runtime().settle(&other);
    let fault = trial.refused(THERE, &other).await;
    assert_eq!(fault.class, FaultClass::Retry, "{fault}");
    trial.undo(THERE, &other).await;
    trial.assert_as_new().await;
}
