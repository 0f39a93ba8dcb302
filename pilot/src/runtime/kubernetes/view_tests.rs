use serde_json::{Value, json};

use super::*;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";
const IMAGE: &str = "registry.example:5000/team/fit:x7-0a1b2c@sha256:1111111111111111111111111111111111111111111111111111111111111111";

fn pod(spec: &Value, status: &Value) -> Pod {
    serde_json::from_value(json!({"spec": spec, "status": status})).expect("a pod")
}

/// A pod whose one slot was asked to have `image` and stands so.
fn slot(image: &str, status: Value) -> Pod {
    let mut all = json!({"name": "slot-0", "image": image, "imageID": "", "ready": false, "restartCount": 3});
    all.as_object_mut().expect("object").extend(status.as_object().cloned().expect("object"));
    pod(
        &json!({"containers": [{"name": "pilot", "image": "p"}, {"name": "slot-0", "image": image}]}),
        &json!({"containerStatuses": [{"name": "pilot", "image": "p", "imageID": "", "ready": true, "restartCount": 0}, all]}),
    )
}

fn waiting(image: &str, reason: &str, message: &str) -> Pod {
    slot(image, json!({"state": {"waiting": {"reason": reason, "message": message}}}))
}

fn class(pod: &Pod) -> Option<FaultClass> {
    trouble(pod, "slot-0", IMAGE).map(|fault| fault.class)
}

/// How a container ended.
fn ending(id: &str, reason: &str, code: i32) -> Value {
    json!({"terminated": {"containerID": id, "reason": reason, "exitCode": code}})
}

#[test]
fn each_reason_to_wait_is_somebodys_fault_or_none() {
    use FaultClass::{Payload, Retry, Slot};
    let pull = |text: &str| format!("failed to pull and unpack image \"{IMAGE}\": {text}");
    let table = [
        (
            "ErrImagePull",
            pull("failed to resolve reference: registry.example/team/fit@sha256:11: not found"),
            Some(Payload),
        ),
        (
            "ErrImagePull",
            pull("pull access denied, repository does not exist or may require authorization"),
            Some(Payload),
        ),
        ("ErrImagePull", pull("unexpected status from HEAD request: 401 Unauthorized"), Some(Payload)),
        ("ErrImagePull", pull("no match for platform in manifest: not found"), Some(Payload)),
        ("ErrImagePull", pull("dial tcp 10.0.0.1:443: connect: connection refused"), Some(Retry)),
        ("ErrImagePull", pull("unexpected status from HEAD request: 503 Service Unavailable"), Some(Retry)),
        ("ErrImagePull", pull("write /var/lib/containerd/x: no space left on device"), Some(Retry)),
        (
            "ImagePullBackOff",
            format!("Back-off pulling image \"{IMAGE}\": ErrImagePull: i/o timeout"),
            Some(Retry),
        ),
        ("RegistryUnavailable", pull("registry is away"), Some(Retry)),
        ("InvalidImageName", format!("couldn't parse image name {IMAGE}"), Some(Payload)),
        (
            "ErrImageNeverPull",
            format!("Container image \"{IMAGE}\" is not present with pull policy of Never"),
            Some(Payload),
        ),
        ("SignatureValidationFailed", "no signature".into(), Some(Payload)),
        ("ImageInspectError", format!("Failed to inspect image \"{IMAGE}\": broken"), Some(Payload)),
        ("CreateContainerConfigError", "secret \"x\" not found".into(), Some(Slot)),
        ("CreateContainerError", "name is reserved".into(), Some(Slot)),
        (
            "RunContainerError",
            "error mounting \"/x\" to rootfs at \"/work\": create mountpoint".into(),
            Some(Payload),
        ),
        ("StartError", "mount `/x` to `work`: Not a directory".into(), Some(Payload)),
        ("RunContainerError", "runc create failed: unable to apply cgroup configuration".into(), Some(Slot)),
        ("CrashLoopBackOff", "back-off 10s restarting failed container".into(), Some(Slot)),
        ("PodInitializing", String::new(), None),
        ("ContainerCreating", String::new(), None),
        ("SomethingNewer", String::new(), None),
    ];
    for (reason, message, expected) in table {
        assert_eq!(class(&waiting(IMAGE, reason, &message)), expected, "{reason}: {message}");
    }
}

#[test]
fn a_slot_that_runs_or_that_is_not_in_the_status_is_in_no_trouble() {
    assert_eq!(class(&slot(IMAGE, json!({"state": {"running": {}}}))), None);
    assert_eq!(class(&slot(IMAGE, json!({}))), None);
    assert_eq!(class(&pod(&json!({"containers": []}), &json!({}))), None);
    assert_eq!(class(&Pod::default()), None);
}

#[test]
fn what_is_said_of_the_image_before_is_no_news() {
    // The kubelet has not looked at the change yet: the message is about the former image.
    let other = IMAGE.replace('1', "2");
    let former = format!("failed to pull and unpack image \"{other}\": not found");
    assert_eq!(class(&waiting(IMAGE, "ErrImagePull", &former)), None);
    assert_eq!(class(&waiting(IMAGE, "ImagePullBackOff", &former)), None);
}

#[test]
fn an_image_is_known_by_its_digest_whatever_its_name_became() {
    let (repository, digest) = ("registry.example:5000/team/fit", DIGEST);
    for name in [
        format!("{repository}@{digest}"),
        format!("registry.example:5000/mirror/team/fit:x7-0a1b2c@{digest}"),
    ] {
        let message = format!("failed to pull and unpack image \"{name}\": not found");
        let mut pod = waiting(&name, "ErrImagePull", &message);
        // The status has the former container's image, by the id of its configuration.
        let statuses = pod.status.as_mut().and_then(|status| status.container_statuses.as_mut());
        statuses.expect("statuses")[1].image = format!("sha256:{}", "3".repeat(64));
        assert_eq!(class(&pod), Some(FaultClass::Payload), "{name}");
    }
}

#[test]
fn what_the_kubelet_says_becomes_one_line_of_bounded_length() {
    let said = format!(
        "rpc error: code = NotFound desc = failed to pull {IMAGE}:\n{}: not found",
        "\u{e9}".repeat(1000)
    );
    let fault = trouble(&waiting(IMAGE, "ErrImagePull", &said), "slot-0", IMAGE).expect("trouble");
    let begins =
        "the node can't pull the image, which the pilot has seen (ErrImagePull): failed to pull registry";
    assert!(fault.message.starts_with(begins) && fault.message.ends_with(" not found"), "{fault}");
    assert!(!fault.message.contains('\n') && fault.message.chars().count() < 400);
    let fault = trouble(&waiting(IMAGE, "StartError", "not a directory"), "slot-0", IMAGE).expect("trouble");
    assert_eq!(&*fault.message, "the node can't start the image's container (StartError): not a directory");
}

#[test]
fn the_end_of_a_container_that_was_there_before_is_not_this_ones() {
    let before = BTreeSet::from(["containerd://a".to_owned()]);
    let of = |state: Value, last: Value| {
        let pod = slot(IMAGE, json!({"state": state, "lastState": last}));
        ended(&pod, "slot-0", &before)
            .map(|ended| (ended.container_id.clone().unwrap_or_default(), out_of_memory(ended)))
    };
    let running = json!({"running": {}});
    assert_eq!(of(running.clone(), ending("containerd://a", "OOMKilled", 137)), None);
    let b = ("containerd://b".to_owned(), true);
    // The kubelet has started the next one already, or has not yet.
    assert_eq!(of(running.clone(), ending("containerd://b", "OOMKilled", 137)), Some(b.clone()));
    assert_eq!(of(ending("containerd://b", "OOMKilled", 137), json!({})), Some(b));
    let said = of(ending("containerd://b", "Error", 137), ending("containerd://a", "OOMKilled", 137));
    assert_eq!(said, Some(("containerd://b".to_owned(), false)));
    assert_eq!(of(running, json!({})), None);
    // One that was never made has no id, and ran nothing.
    assert_eq!(of(json!({"terminated": {"exitCode": 128, "reason": "StartError"}}), json!({})), None);
}

#[test]
fn containers_are_known_by_their_ids() {
    let pod = slot(
        IMAGE,
        json!({"containerID": "containerd://c", "state": {"running": {}}, "lastState": ending("containerd://b", "Error", 143)}),
    );
    assert_eq!(ended_containers(&pod, "slot-0"), BTreeSet::from(["containerd://b".to_owned()]));
    let both = BTreeSet::from(["containerd://b".to_owned(), "containerd://c".to_owned()]);
    assert_eq!(containers_before(&pod, "slot-0", false, &BTreeSet::new()), both);
    assert_eq!(containers_before(&pod, "slot-1", false, &BTreeSet::new()), BTreeSet::new());
}

#[test]
fn a_container_that_came_while_its_change_was_asked_for_again_is_not_one_from_before() {
    // The first request's answer was lost; it had taken effect, and c is its container.
    let asked_again = slot(
        IMAGE,
        json!({"containerID": "containerd://c", "state": {"running": {}}, "lastState": ending("containerd://b", "Error", 143)}),
    );
    let before = containers_before(&asked_again, "slot-0", true, &BTreeSet::new());
    let killed = slot(
        IMAGE,
        json!({"containerID": "containerd://c", "state": ending("containerd://c", "OOMKilled", 137), "lastState": ending("containerd://b", "Error", 143)}),
    );
    let ended = ended(&killed, "slot-0", &before).expect("it ended");
    assert_eq!((ended.container_id.as_deref(), out_of_memory(ended)), (Some("containerd://c"), true));
    // It had taken no effect yet: c was there already when the slot was bound the last time.
    let known = BTreeSet::from(["containerd://c".to_owned()]);
    let both = BTreeSet::from(["containerd://b".to_owned(), "containerd://c".to_owned()]);
    assert_eq!(containers_before(&asked_again, "slot-0", true, &known), both);
}

#[test]
fn an_end_is_told_with_reason_code_and_message() {
    let words = |end: Value| end_words(&serde_json::from_value(end).expect("an end"));
    assert_eq!(words(json!({"exitCode": 137, "reason": "OOMKilled"})), "OOMKilled, exit code 137");
    assert_eq!(words(json!({"exitCode": 128, "message": "a\nb"})), "no reason, exit code 128: a b");
}

#[test]
fn slots_come_in_the_order_of_their_numbers_with_what_they_may_use() {
    let limits = |cpu: &str, memory: &str| json!({"limits": {"cpu": cpu, "memory": memory}});
    let pod = pod(
        &json!({"containers": [
            {"name": "pilot"},
            {"name": "slot-10", "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}},
            {"name": "slot-2", "resources": limits("250m", "128Mi"), "imagePullPolicy": "Always"},
            {"name": "slot-0", "resources": limits("1500m", "134217728"),
             "securityContext": {"runAsUser": 10001, "readOnlyRootFilesystem": true}},
            {"name": "slot-x"}, {"name": "sidecar"},
        ], "terminationGracePeriodSeconds": 20}),
        &json!({}),
    );
    let slots = slots(&pod);
    let names: Vec<&str> = slots.iter().map(|slot| slot.name.as_str()).collect();
    assert_eq!(names, ["slot-0", "slot-2", "slot-10"]);
    let amounts = slots.iter().map(|slot| (slot.cpu_millis, slot.memory_bytes)).collect::<Vec<_>>();
    let mib = |mib: u64| Some(mib << 20);
    assert_eq!(amounts, [(Some(1500), mib(128)), (Some(250), mib(128)), (Some(1000), mib(1024))]);
    assert_eq!((slots[0].uid, slots[0].root_is_read_only, slots[0].always_pulls), (Some(10001), true, false));
    assert_eq!((slots[1].uid, slots[1].root_is_read_only, slots[1].always_pulls), (None, false, true));
    assert_eq!(grace(&pod), Duration::from_secs(20));
    assert_eq!(grace(&Pod::default()), Duration::from_secs(30));
}

#[test]
fn a_slots_new_size_counts_when_the_node_has_set_it_aside() {
    let size = Size { cpu_millis: 1100, memory_bytes: 64 << 20 };
    let of = |amounts: Value, condition: Value| {
        let mut pod = slot(IMAGE, json!({"state": {"running": {}}, "allocatedResources": amounts}));
        let conditions = serde_json::from_value(json!([condition])).expect("conditions");
        pod.status.as_mut().expect("status").conditions = Some(conditions);
        resizing(&pod, "slot-0", size, Some(7))
    };
    let pending = |generation: i64| {
        json!({"type": "PodResizePending", "status": "True", "reason": "Deferred", "observedGeneration": generation,
               "message": "Node didn't have enough resource: cpu"})
    };
    let (old, new) =
        (json!({"cpu": "600m", "memory": "128Mi"}), json!({"cpu": "1100m", "memory": "67108864"}));
    let ready = json!({"type": "Ready", "status": "True", "observedGeneration": 7});
    assert_eq!(of(old.clone(), ready.clone()), Resizing::UnderWay);
    assert_eq!(of(new, ready), Resizing::Done);
    // What is said of an earlier change of size is no news.
    assert_eq!(of(old.clone(), pending(6)), Resizing::UnderWay);
    let Resizing::Refused(fault) = of(old, pending(7)) else { panic!("it was to be refused") };
    assert_eq!(fault.class, FaultClass::Retry);
    assert!(fault.message.ends_with("Node didn't have enough resource: cpu"), "{fault}");
}

#[test]
fn what_a_node_does_not_say_it_set_aside_is_read_from_what_is_in_force() {
    let amounts = json!({"requests": {"cpu": "200m", "memory": "134217728"}, "limits": {"cpu": "200m"}});
    let pod = slot(IMAGE, json!({"state": {"running": {}}, "resources": amounts}));
    assert_eq!(allocated(&pod, "slot-0"), Some(Size { cpu_millis: 200, memory_bytes: 128 << 20 }));
    assert_eq!(allocated(&waiting(IMAGE, "ContainerCreating", ""), "slot-0"), None);
}

#[test]
fn a_pilot_reads_its_mounts_from_the_pod_that_was_made_with_them() {
    let mounts = ["/data/calib", "/etc/app.json:file"].map(|text| text.parse().expect("a mount")).to_vec();
    let made = crate::pod::Shape { mounts, ..crate::pod::tests::shape() };
    let whole: Pod = serde_json::from_value(made.manifest()).expect("a pod");
    for slot in slots(&whole) {
        let seen: Vec<_> = slot.mounts.iter().map(|m| (m.at.as_str(), m.place.as_str(), m.is_file)).collect();
        assert_eq!(seen, [("/data/calib", "0", false), ("/etc/app.json", "1.file", true)]);
    }
    // What is not the pilot's to point is none of its mounts.
    let foreign = json!({"name": "slot-0", "image": "i", "volumeMounts": [
        {"name": "share", "mountPath": "/a", "subPath": "slots/1/mounts/0"},
        {"name": "share", "mountPath": "/b", "subPath": "slots/0/mounts/../in"},
        {"name": "other", "mountPath": "/c"},
    ]});
    let odd = pod(&json!({"containers": [foreign]}), &json!({}));
    assert_eq!(slots(&odd)[0].mounts, []);
}
