//! A slot's container: idle at first, with any image later.
//!
//! **Must not know:** the pilot's container.

use serde_json::{Value, json};

use super::{PILOT_UID, SHIM_FOLDER, Shape, amounts, confined, env, field, mount};

pub(super) fn container(shape: &Shape, slot: u32) -> Value {
    let name = format!("slot-{slot}");
    let share = |path: &str, folder: &str| json!({"name": "share", "mountPath": path, "subPath": format!("slots/{slot}/{folder}")});
    let memory = |path: &str, folder: &str| json!({"name": format!("memory-{slot}"), "mountPath": path, "subPath": folder});
    let mut inputs = share("/.latebind/in", "in");
    inputs["readOnly"] = json!(true);
    let mut shim = mount("shim", SHIM_FOLDER);
    shim["readOnly"] = json!(true);
    let mut mounts = vec![
        shim,
        share("/.latebind/control", "control"),
        inputs,
        share("/stage/in", "links"),
        share("/stage/out", "out"),
        share("/work", "work"),
        // All containers of a pod would share one otherwise.
        memory("/dev/shm", "shm"),
        memory("/tmp", "tmp"),
        memory("/var/tmp", "var-tmp"),
    ];
    mounts.extend(shape.mounts.iter().enumerate().map(|(index, mount)| {
        // A link: what it leads to is mounted, and looked up anew at each start of the container.
        let mut mounted = share(mount.at.as_str(), &format!("mounts/{}", mount.place(index)));
        mounted["readOnly"] = json!(true);
        mounted
    }));
    json!({
        "name": name,
        "image": shape.idle_image,
        // A digest is what it is: there is nothing to ask a registry when the node has it.
        "imagePullPolicy": "IfNotPresent",
        "command": [format!("{SHIM_FOLDER}/payload-shim")],
        // An image's own folder may be closed to the slot's user.
        "workingDir": "/",
        "env": [
            env("LATEBIND_CONTROL", "/.latebind/control"),
            env("LATEBIND_CONFINE", "pod"),
            // Looked up anew at each start of the container.
            field("LATEBIND_NONCE", &format!("metadata.annotations['latebind.dev/{name}']")),
        ],
        "securityContext": confined(PILOT_UID + 1 + slot, !shape.writable_root),
        "resources": amounts(shape.slot_cpu_millis, shape.slot_memory_bytes),
        "volumeMounts": mounts,
    })
}
