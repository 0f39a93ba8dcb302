//! Requests to an API server that answers as a test says: trouble on the way must cost nothing but time.

use std::sync::{Arc, Mutex};

use axum::http::{Request, Response};
use kube::client::Body;
use kube::core::Status;

use super::*;

/// What the server does with one request.
#[derive(Clone, Copy, Debug)]
enum Does {
    /// Takes it and answers.
    Well,
    /// Answers with this code.
    Code(u16),
    /// The connection breaks; nobody knows whether it was taken.
    Breaks,
    /// Takes it, and its answer never comes.
    Hangs,
}

/// Method, path and body of each request.
type Heard = Arc<Mutex<Vec<(String, String, Value)>>>;

/// A pod behind a server that does this, in this order, and the last one for ever.
fn behind(script: &[Does]) -> (OwnPod, Heard) {
    let heard = Heard::default();
    let (script, noted) = (script.to_vec(), Arc::clone(&heard));
    let service = tower::service_fn(move |request: Request<Body>| {
        let (script, noted) = (script.clone(), Arc::clone(&noted));
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect_bytes().await.expect("body");
            let body = serde_json::from_slice(&body).unwrap_or_default();
            let number = {
                let mut noted = noted.lock().expect("lock");
                noted.push((parts.method.to_string(), parts.uri.to_string(), body));
                noted.len() - 1
            };
            answer(script.get(number).or(script.last()).copied()).await
        }
    });
    (OwnPod::new(Client::new(service, "ns"), "ns", "pilot-1"), heard)
}

async fn answer(does: Option<Does>) -> Result<Response<Body>, std::io::Error> {
    let (code, body) = match does {
        Some(Does::Well) | None => (200, json!({"metadata": {"name": "pilot-1"}})),
        Some(Does::Code(code)) => {
            let status = Status::failure("no", "").with_code(code);
            (code, serde_json::to_value(status).expect("json"))
        }
        Some(Does::Breaks) => return Err(std::io::ErrorKind::ConnectionReset.into()),
        Some(Does::Hangs) => std::future::pending().await,
    };
    Ok(Response::builder().status(code).body(Body::from(body.to_string().into_bytes())).expect("response"))
}

/// Binds a slot; gives what came of it, the requests, and how long it took.
async fn bind(script: &[Does]) -> (Result<Changed, Fault>, Vec<(String, String, Value)>, Duration) {
    let (pod, heard) = behind(script);
    let began = Instant::now();
    let done =
        pod.set_image("slot-0", "registry/x:x1@sha256:1", "00ff", began + Duration::from_secs(45)).await;
    let heard = heard.lock().expect("lock").clone();
    assert_eq!(pod.requests(), heard.len() as u64);
    (done, heard, began.elapsed())
}

#[tokio::test(start_paused = true)]
async fn a_bind_says_what_shall_be_and_asks_again_in_the_same_words_whatever_went_wrong() {
    use Does::{Breaks, Code, Hangs, Well};
    let wanted = json!({
        "metadata": {"annotations": {"latebind.dev/slot-0": "00ff"}},
        "spec": {"containers": [{"name": "slot-0", "image": "registry/x:x1@sha256:1"}]},
    });
    for (trouble, least) in [
        (vec![], 0),
        (vec![Code(409)], 100),
        (vec![Code(500)], 100),
        (vec![Code(429), Code(503), Code(401)], 700),
        (vec![Breaks], 100),
        // It was taken, and the answer was lost: the second one changes nothing.
        (vec![Hangs], 10_000),
        (vec![Hangs, Breaks, Code(409)], 10_700),
    ] {
        let script = [trouble.as_slice(), &[Well]].concat();
        let (done, heard, took) = bind(&script).await;
        let asked_before = done.expect("done").asked_before;
        assert_eq!(asked_before, !trouble.is_empty(), "{trouble:?}");
        assert_eq!(heard.len(), script.len(), "{trouble:?}");
        for (method, path, body) in &heard {
            assert_eq!((method.as_str(), body), ("PATCH", &wanted));
            assert!(path.starts_with("/api/v1/namespaces/ns/pods/pilot-1?"), "{path}");
        }
        assert!(
            took >= Duration::from_millis(least) && took < Duration::from_millis(least + 500),
            "{took:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_refused_is_not_asked_again() {
    for (code, class) in [(422, FaultClass::Payload), (404, FaultClass::Pilot)] {
        let (done, heard, _) = bind(&[Does::Code(409), Does::Code(code)]).await;
        assert_eq!(done.err().expect("refused").class, class, "{code}");
        assert_eq!(heard.len(), 2, "{code}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_not_read_yet_who_may_do_what_is_asked_again_and_one_that_has_is_believed() {
    use Does::{Breaks, Code, Well};
    let (done, heard, _) = bind(&[Breaks, Code(403), Code(403), Code(403), Well]).await;
    assert!(done.is_ok() && heard.len() == 5, "{}", heard.len());
    let (done, _, took) = bind(&[Code(403)]).await;
    assert_eq!(done.err().expect("refused").class, FaultClass::Pilot);
    assert!(took > FORBIDDEN_WAIT - PAUSES[1] && took <= FORBIDDEN_WAIT, "{took:?}");
    // Since it said something else, it may have been started anew.
    let often: Vec<Does> = [[Code(403); 9].as_slice(), &[Breaks]].concat();
    let (done, heard, _) = bind(&[often.as_slice(), &often, &[Well]].concat()).await;
    assert!(done.is_ok() && heard.len() == 21, "{}", heard.len());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_away_is_given_up_in_time_and_may_be_asked_by_somebody_else_later() {
    for (does, most) in [(Does::Breaks, 40), (Does::Code(503), 40), (Does::Hangs, 6)] {
        let (done, heard, took) = bind(&[does]).await;
        assert_eq!(done.err().expect("away").class, FaultClass::Retry);
        assert!(heard.len() > 3 && heard.len() < most, "{does:?}: {} requests", heard.len());
        // The last answer is waited for.
        assert!(took > Duration::from_secs(40) && took <= Duration::from_secs(55), "{does:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_look_is_tried_once_and_changes_nothing() {
    let (pod, heard) = behind(&[Does::Code(503)]);
    assert_eq!(pod.look().await.expect_err("busy").class, FaultClass::Retry);
    let heard = heard.lock().expect("lock").clone();
    assert_eq!(heard.len(), 1);
    assert_eq!(heard[0].2, json!({}));
}

#[tokio::test(start_paused = true)]
async fn logins_and_resources_are_asked_for_again_as_well() {
    let (pod, heard) = behind(&[Does::Code(409), Does::Breaks, Does::Well, Does::Code(500), Does::Well]);
    let until = Instant::now() + Duration::from_secs(45);
    pod.set_logins("pull", &json!({"auths": {}}), until).await.expect("logins");
    let size = Size { cpu_millis: 100, memory_bytes: 1 << 20 };
    let _pod = pod.insist(Some("resize"), &sized("slot-0", size), until).await.expect("resources");
    let heard = heard.lock().expect("lock").clone();
    let paths: Vec<&str> = heard.iter().filter_map(|(_, path, _)| path.split('?').next()).collect();
    let (secret, resize) =
        ("/api/v1/namespaces/ns/secrets/pull", "/api/v1/namespaces/ns/pods/pilot-1/resize");
    assert_eq!(paths, [secret, secret, secret, resize, resize]);
    assert!(heard[..3].iter().all(|(.., body)| *body == heard[0].2));
    assert_eq!(heard[3].2, heard[4].2);
}

#[tokio::test(start_paused = true)]
async fn a_size_that_the_node_says_nothing_of_is_waited_for_and_given_up() {
    let (pod, heard) = behind(&[Does::Well, Does::Code(503), Does::Well]);
    let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(45));
    let fault = pod.set_resources("slot-0", 100, 1 << 20, until).await.expect_err("nothing is said");
    assert_eq!(fault.class, FaultClass::Retry);
    assert!(began.elapsed() < RESIZE_WAIT + Duration::from_secs(1), "{:?}", began.elapsed());
    let resized = |(_, path, _): &&(String, String, Value)| path.contains("/resize");
    // What the slot had before is not known either.
    assert_eq!(heard.lock().expect("lock").iter().filter(resized).count(), 1);
}
