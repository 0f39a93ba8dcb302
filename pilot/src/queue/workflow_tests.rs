//! What only the workflow queue has: standings and their order. The port's promises are tested by the conformance suite.

use std::collections::BTreeMap;

use pilot_core::{Conclusion, ExitStatus, StopCause, Usage};
use stage::StageName;

use super::*;
use crate::payload::Resources;

fn entry(name: &str, after: &[usize]) -> Entry {
    let name = StageName::new(name).expect("a name");
    let payload = Payload {
        workflow: name.clone(),
        family: name.clone(),
        name,
        image: "oci:image".into(),
        command: None,
        args: None,
        env: BTreeMap::new(),
        cwd: None,
        user: None,
        needs_image_user: false,
        resources: Resources { cpu_millis: 1000, memory_bytes: 1 << 20, disk_bytes: 1 << 20 },
        walltime_ms: None,
        grace_ms: 1000,
        inputs: Vec::new(),
        outputs: Vec::new(),
        writable_root: false,
        host_network: false,
        logs: std::path::PathBuf::new(),
        registry_auth: None,
        gang: Vec::new(),
    };
    Entry {
        payload: Arc::new(payload),
        trust_group: "user".into(),
        at_most_once: false,
        retries: 0,
        after: after.to_vec(),
    }
}

fn outcome(conclusion: Conclusion) -> Outcome {
    Outcome { conclusion, launched: true, status: None, usage: Usage::default() }
}

fn failure() -> Outcome {
    outcome(Conclusion::Exited(ExitStatus::Code(1)))
}

async fn claim(queue: &WorkflowQueue) -> Vec<(String, ClaimId)> {
    match queue.claim(u32::MAX, u32::MAX).await.expect("claim") {
        Claimed::Offers(offers) => {
            offers.iter().map(|offer| (offer.payload.name.to_string(), offer.claim)).collect()
        }
        Claimed::Empty | Claimed::Closed => Vec::new(),
    }
}

/// One letter for each entry: waiting, ready, claimed, succeeded, failed, or the index of the entry that it was skipped for.
fn standings(queue: &WorkflowQueue) -> String {
    let letter = |index| match queue.standing(index).expect("an entry").0 {
        Standing::Waiting => 'w',
        Standing::Ready { .. } => 'r',
        Standing::Claimed(_) => 'c',
        Standing::Succeeded => 's',
        Standing::Failed => 'f',
        Standing::Skipped { because } => {
            char::from_digit(u32::try_from(because).expect("few"), 10).expect("one digit")
        }
    };
    (0..queue.entries().len()).map(letter).collect()
}

#[tokio::test]
async fn a_diamond_is_walked_from_top_to_bottom() {
    let top = [entry("top", &[]), entry("left", &[0]), entry("right", &[0]), entry("bottom", &[1, 2])];
    let queue = WorkflowQueue::new(top.into());
    assert_eq!(standings(&queue), "rwww");
    let mut seen = vec![standings(&queue)];
    loop {
        let claims = claim(&queue).await;
        if claims.is_empty() {
            break;
        }
        seen.push(standings(&queue));
        for (_, claim) in claims {
            queue.report(claim, outcome(Conclusion::Succeeded)).await.expect("report");
        }
        seen.push(standings(&queue));
    }
    assert_eq!(seen, ["rwww", "cwww", "srrw", "sccw", "sssr", "sssc", "ssss"]);
}

#[tokio::test]
async fn what_is_skipped_knows_for_which_entry_and_is_skipped_once() {
    let entries = [
        entry("top", &[]),
        entry("other", &[]),
        entry("middle", &[0]),
        entry("bottom", &[1, 2]),
        entry("side", &[1]),
    ];
    let queue = WorkflowQueue::new(entries.into());
    let claims = claim(&queue).await;
    let Reported::Final { skipped } = queue.report(claims[0].1, failure()).await.expect("report") else {
        panic!("it has no retries");
    };
    let names: Vec<&str> = skipped.iter().map(|payload| payload.name.as_str()).collect();
    assert_eq!(names, ["middle", "bottom"]);
    assert_eq!(standings(&queue), "fc02w");
    let Reported::Final { skipped } = queue.report(claims[1].1, failure()).await.expect("report") else {
        panic!("it has no retries");
    };
    let names: Vec<&str> = skipped.iter().map(|payload| payload.name.as_str()).collect();
    assert_eq!(names, ["side"], "bottom is skipped already");
    assert_eq!(standings(&queue), "ff021");
}

#[tokio::test]
async fn a_standing_tells_tries_and_the_last_outcome() {
    let queue = WorkflowQueue::new(vec![Entry { retries: 1, ..entry("a", &[]) }]);
    assert!(matches!(queue.standing(0), Some((Standing::Ready { .. }, 0, None))));
    let claims = claim(&queue).await;
    assert!(matches!(queue.standing(0), Some((Standing::Claimed(_), 1, None))));
    assert_eq!(queue.report(claims[0].1, failure()).await, Ok(Reported::Retried));
    let Some((Standing::Ready { from }, 1, Some(last))) = queue.standing(0) else {
        panic!("{:?}", queue.standing(0));
    };
    assert!(from > Instant::now(), "there is a pause before the next try");
    assert_eq!(last, failure());
    assert!(queue.standing(1).is_none());
}

#[tokio::test]
async fn what_others_did_to_a_payload_costs_it_no_retry() {
    let queue = WorkflowQueue::new(vec![entry("a", &[])]);
    let claims = claim(&queue).await;
    let stopped = outcome(Conclusion::Stopped(StopCause::Evicted));
    assert_eq!(queue.report(claims[0].1, stopped).await, Ok(Reported::Retried));
}

#[tokio::test]
async fn an_entry_that_names_the_same_producer_twice_waits_for_it_once() {
    let queue = WorkflowQueue::new(vec![entry("a", &[]), entry("b", &[0, 0])]);
    let claims = claim(&queue).await;
    queue.report(claims[0].1, outcome(Conclusion::Succeeded)).await.expect("report");
    assert_eq!(standings(&queue), "sr");
    assert_eq!(claim(&queue).await.len(), 1);
}
