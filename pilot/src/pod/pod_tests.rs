use super::*;

pub(crate) fn shape() -> Shape {
    Shape {
        name: "pilot".into(),
        form: Form::Pod,
        pilot_image: "registry.example/latebind/pilot@sha256:aa".into(),
        idle_image: "registry.example/latebind/shim@sha256:bb".into(),
        slots: 2,
        slot_cpu_millis: 1000,
        slot_memory_bytes: 1 << 30,
        image_volume: true,
        service_account: "latebind-pilot".into(),
        pull_secrets: Vec::new(),
        login: None,
        late_secret: None,
        registries: None,
        s3_secret: None,
        prefetch: false,
        resize: false,
        writable_root: false,
        mounts: Vec::new(),
        grace_s: 60,
        ends: false,
        command: vec!["serve".into()],
        env: Vec::new(),
    }
}

fn names(list: &Value) -> Vec<&str> {
    list.as_array().expect("list").iter().map(|item| item["name"].as_str().expect("name")).collect()
}

#[test]
fn it_is_a_pod_that_kubernetes_types_understand() {
    let pod: k8s_openapi::api::core::v1::Pod = serde_json::from_value(shape().manifest()).expect("a pod");
    let spec = pod.spec.expect("spec");
    let containers: Vec<&str> = spec.containers.iter().map(|container| container.name.as_str()).collect();
    assert_eq!(containers, ["pilot", "slot-0", "slot-1"]);
}

#[test]
fn only_the_pilot_has_the_token_and_no_slot_has_another_ones_folder() {
    let manifest = shape().manifest();
    let containers = manifest["spec"]["containers"].as_array().expect("containers");
    for (number, slot) in containers.iter().skip(1).enumerate() {
        for mount in slot["volumeMounts"].as_array().expect("mounts") {
            assert_ne!(mount["name"], "token");
            if mount["name"] == "share" {
                let path = mount["subPath"].as_str().expect("part of the volume");
                assert!(path.starts_with(&format!("slots/{number}/")), "{path}");
            }
        }
    }
    assert!(names(&containers[0]["volumeMounts"]).contains(&"token"));
}

#[test]
fn each_container_has_a_user_of_its_own_and_nothing_beyond() {
    let manifest = shape().manifest();
    let mut users = std::collections::BTreeSet::new();
    for container in manifest["spec"]["containers"].as_array().expect("containers") {
        let security = &container["securityContext"];
        assert_eq!(security["allowPrivilegeEscalation"], false);
        assert_eq!(security["readOnlyRootFilesystem"], true);
        assert_eq!(security["capabilities"]["drop"][0], "ALL");
        assert!(users.insert(security["runAsUser"].as_u64()));
    }
}

#[test]
fn without_image_volumes_the_shim_is_copied_and_a_job_ends() {
    let job = Shape { image_volume: false, form: Form::Job, ..shape() }.manifest();
    let spec = &job["spec"]["template"]["spec"];
    assert_eq!(spec["restartPolicy"], "OnFailure");
    assert_eq!(job["spec"]["backoffLimit"], i32::MAX);
    assert!(names(&spec["initContainers"][0]["volumeMounts"]).contains(&"shim"));
    assert!(names(&spec["initContainers"][0]["env"]).contains(&"LATEBIND_SHIM_COPY"));
    assert!(spec["volumes"][1]["emptyDir"].is_object());
}

#[test]
fn the_pilots_login_is_the_nodes_too_and_no_slots() {
    let (login, late) = (Some("team".to_owned()), Some("late".to_owned()));
    let shape = Shape { login, late_secret: late, pull_secrets: vec!["team".into()], ..shape() };
    let spec = &shape.manifest()["spec"];
    assert_eq!(names(&spec["imagePullSecrets"]), ["team", "late"]);
    let with_login = spec["containers"].as_array().expect("containers").iter().filter(|container| {
        names(&container["volumeMounts"]).contains(&"login")
            || names(&container["env"]).contains(&"LATEBIND_REGISTRY_AUTH")
    });
    assert_eq!(with_login.map(|container| &container["name"]).collect::<Vec<_>>(), ["pilot"]);
}

#[test]
fn each_slot_has_the_mounts_and_none_that_it_could_write_through() {
    let mounts = ["/data/calib", "/etc/app.json:file"].map(|text| text.parse().expect("a mount")).to_vec();
    let manifest = Shape { mounts, ..shape() }.manifest();
    for slot in 0..2 {
        let all = manifest["spec"]["containers"][slot + 1]["volumeMounts"].as_array().expect("mounts");
        let own = all
            .iter()
            .filter(|mount| mount["subPath"].as_str().is_some_and(|path| path.contains("/mounts/")));
        let expected = [
            json!({"name": "share", "mountPath": "/data/calib", "subPath": format!("slots/{slot}/mounts/0"), "readOnly": true}),
            json!({"name": "share", "mountPath": "/etc/app.json", "subPath": format!("slots/{slot}/mounts/1.file"), "readOnly": true}),
        ];
        assert_eq!(own.cloned().collect::<Vec<_>>(), expected);
    }
    let env = manifest["spec"]["initContainers"][0]["env"].as_array().expect("env");
    assert!(env.contains(&json!({"name": "LATEBIND_MOUNT", "value": "/data/calib,/etc/app.json:file"})));
    assert!(!names(&manifest["spec"]["containers"][0]["env"]).contains(&"LATEBIND_MOUNT"));
}
