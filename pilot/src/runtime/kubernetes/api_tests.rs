use kube::core::Status;

use super::*;

/// What the API server's answer amounts to: whether to ask again, and whose fault it is.
fn of(code: u16, message: &str) -> (bool, Fault) {
    let status = Status::failure(message, "").with_code(code);
    split(Ok(Err(kube::Error::Api(Box::new(status)))))
}

fn split(answer: Answer<()>) -> (bool, Fault) {
    match judged(answer, "change the pilot's pod") {
        Err(Refusal::Again(fault)) => (true, fault),
        Err(Refusal::Final(fault)) => (false, fault),
        Ok(()) => panic!("it was no refusal"),
    }
}

#[test]
fn each_code_means_again_or_never_and_is_somebodys_fault() {
    use FaultClass::{Payload, Pilot, Retry};
    let table = [
        (400, false, Pilot),
        (401, true, Retry),
        (403, false, Pilot),
        (404, false, Pilot),
        (405, false, Pilot),
        (409, true, Retry),
        (410, true, Retry),
        (422, false, Payload),
        (429, true, Retry),
        (500, true, Retry),
        (502, true, Retry),
        (503, true, Retry),
        (504, true, Retry),
    ];
    for (code, again, class) in table {
        let (asks_again, fault) = of(code, "no");
        assert_eq!((asks_again, fault.class), (again, class), "{code}");
        assert_eq!(&*fault.message, "change the pilot's pod: no");
    }
}

#[test]
fn a_quota_that_is_used_up_may_have_room_later() {
    let quota = "pods \"pilot\" is forbidden: exceeded quota: team, requested: limits.memory=1Gi";
    let node =
        "pods \"pilot\" is forbidden: node didn't have enough allocatable resources: cpu, requested: 2300";
    for said in [quota, node] {
        let (again, fault) = of(403, said);
        assert_eq!((again, fault.class), (false, FaultClass::Retry));
    }
}

#[test]
fn a_servers_word_of_several_lines_becomes_one() {
    assert_eq!(&*of(422, "a\nb").1.message, "change the pilot's pod: a b");
}

#[test]
fn a_server_that_is_not_there_is_asked_again() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    let (again, fault) = split(Ok(Err(kube::Error::Service(Box::new(refused)))));
    assert!(again && fault.class == FaultClass::Retry, "{fault}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_asked_again_until_it_is_late() {
    let elapsed = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await;
    let (again, fault) = split(Err(elapsed.expect_err("nobody answers")));
    assert!(again && fault.message.contains("did not answer in 10 s"), "{fault}");
    let until = Instant::now() + Duration::from_secs(1);
    let mut pause = Duration::from_millis(1);
    assert_eq!(wait(Refusal::Again(fault.clone()), &mut pause, until).await, Ok(()));
    assert_eq!(pause, Duration::from_millis(2));
    // A try that would come too late is not waited for.
    assert_eq!(wait(Refusal::Again(fault.clone()), &mut PAUSES[1].clone(), until).await, Err(fault));
}

#[tokio::test]
async fn what_will_not_change_is_not_waited_for() {
    let fault = Fault::new(FaultClass::Payload, "no");
    let (mut pause, until) = (PAUSES[0], Instant::now() + ANSWER_WAIT);
    assert_eq!(wait(Refusal::Final(fault.clone()), &mut pause, until).await, Err(fault));
    assert_eq!(pause, PAUSES[0]);
}
