use kube::core::Status;

use super::*;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Asks {
    Again,
    ForAWhile,
    Never,
}

/// What the API server's answer amounts to: whether to ask again, and whose fault it is.
fn of(code: u16, message: &str) -> (Asks, Fault) {
    let status = Status::failure(message, "").with_code(code);
    split(Ok(Err(kube::Error::Api(Box::new(status)))))
}

fn split(answer: Answer<()>) -> (Asks, Fault) {
    match judged(answer, "change the pilot's pod") {
        Err(Refusal::Again(fault)) => (Asks::Again, fault),
        Err(Refusal::Doubtful(fault)) => (Asks::ForAWhile, fault),
        Err(Refusal::Final(fault)) => (Asks::Never, fault),
        Ok(()) => panic!("it was no refusal"),
    }
}

#[test]
fn each_code_means_again_or_never_and_is_somebodys_fault() {
    use Asks::{Again, ForAWhile, Never};
    use FaultClass::{Payload, Pilot, Retry};
    let table = [
        (400, Never, Pilot),
        (401, Again, Retry),
        (403, ForAWhile, Pilot),
        (404, Never, Pilot),
        (405, Never, Pilot),
        (409, Again, Retry),
        (410, Again, Retry),
        (422, Never, Payload),
        (429, Again, Retry),
        (500, Again, Retry),
        (502, Again, Retry),
        (503, Again, Retry),
        (504, Again, Retry),
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
        assert_eq!((again, fault.class), (Asks::Never, FaultClass::Retry));
    }
}

#[test]
fn an_image_that_a_webhook_denies_is_its_payloads_fault_whatever_the_code() {
    for code in [400, 403] {
        let (again, fault) = of(code, "admission webhook \"images.example\" denied the request: not signed");
        assert_eq!((again, fault.class), (Asks::Never, FaultClass::Payload), "{code}");
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
    assert!(again == Asks::Again && fault.class == FaultClass::Retry, "{fault}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_asked_again_until_it_is_late() {
    let elapsed = tokio::time::timeout(Duration::ZERO, std::future::pending::<()>()).await;
    let (again, fault) = split(Err(elapsed.expect_err("nobody answers")));
    assert!(again == Asks::Again && fault.message.contains("did not answer in 10 s"), "{fault}");
    let mut tries = Tries::new(Instant::now() + Duration::from_secs(1));
    tries.pause = Duration::from_millis(1);
    assert_eq!(tries.wait(Refusal::Again(fault.clone())).await, Ok(()));
    assert_eq!(tries.pause, Duration::from_millis(2));
    // A try that would come too late is not waited for.
    tries.pause = PAUSES[1];
    assert_eq!(tries.wait(Refusal::Again(fault.clone())).await, Err(fault));
}

#[tokio::test]
async fn what_will_not_change_is_not_waited_for() {
    let fault = Fault::new(FaultClass::Payload, "no");
    let mut tries = Tries::new(Instant::now() + ANSWER_WAIT);
    assert_eq!(tries.wait(Refusal::Final(fault.clone())).await, Err(fault));
    assert_eq!(tries.pause, PAUSES[0]);
}
