//! Tidiness is a test: what ARCHITECTURE.md and CONTRIBUTING.md promise about the tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("workspace").to_path_buf()
}

fn sources() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(&folder).expect("read folder").flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type().expect("type").is_dir() {
                if name != "target" && !name.starts_with('.') {
                    open.push(entry.path());
                }
            } else if name.ends_with(".rs") {
                found.push(entry.path());
            }
        }
    }
    assert!(found.len() > 50, "only {} source files found: is the root right?", found.len());
    found
}

/// Who may depend on whom, development dependencies aside.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    [
        ("pilot-core", vec![]),
        ("wire", vec![]),
        ("image-store", vec![]),
        ("stage", vec!["wire"]),
        ("oci-runner", vec!["image-store"]),
        ("payload-shim", vec!["wire"]),
        ("spool", vec!["pilot-core"]),
        ("objects", vec![]),
        ("csi-driver", vec!["stage", "wire"]),
        ("pilot", vec!["pilot-core", "wire", "spool", "stage", "objects", "image-store", "oci-runner"]),
        ("pilot-examples", vec!["image-store"]),
    ]
    .into_iter()
    .map(|(name, list)| (name, list.into_iter().collect()))
    .collect()
}

#[test]
fn dependencies_point_one_way() {
    let metadata = metadata();
    let ours: BTreeSet<String> =
        metadata.workspace_packages().iter().map(|package| package.name.to_string()).collect();
    let allowed = allowed();
    for package in metadata.workspace_packages() {
        let name = package.name.to_string();
        // The harness and the benches stand above everything.
        let Some(may) = allowed.get(name.as_str()) else {
            assert!(
                ["pilot-tests", "pilot-benches"].contains(&name.as_str()),
                "{name} has no place in the house"
            );
            continue;
        };
        for dependency in &package.dependencies {
            if dependency.kind == DependencyKind::Normal && ours.contains(&dependency.name) {
                assert!(
                    may.contains(dependency.name.as_str()),
                    "{name} must not depend on {}",
                    dependency.name
                );
            }
        }
    }
}

/// What cargo knows without a network: packages for other systems were never fetched.
fn metadata() -> cargo_metadata::Metadata {
    let here = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let options = ["--offline".into(), "--filter-platform".into(), here];
    MetadataCommand::new().current_dir(root()).other_options(options).exec().expect("cargo metadata")
}

#[test]
fn pilot_core_is_pure() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let core = packages.iter().find(|package| package.name.as_str() == "pilot-core").expect("pilot-core");
    let normal = core.dependencies.iter().filter(|dependency| dependency.kind == DependencyKind::Normal);
    let names: Vec<&str> = normal.map(|dependency| dependency.name.as_str()).collect();
    assert!(
        names.iter().all(|name| ["serde", "thiserror"].contains(name)),
        "pilot-core depends on {names:?}"
    );
    for path in sources().iter().filter(|path| path.starts_with(root().join("pilot-core/src"))) {
        let text = std::fs::read_to_string(path).expect("source");
        for word in ["std::fs", "std::net", "std::thread", "Instant", "SystemTime", "async fn"] {
            assert!(!text.contains(word), "{} mentions {word}", path.display());
        }
    }
}

#[test]
fn unsafe_code_stands_only_in_sys_rs() {
    let word = concat!("uns", "afe");
    for path in sources() {
        if path.file_name().is_some_and(|name| name == "sys.rs") {
            continue;
        }
        for (number, line) in std::fs::read_to_string(&path).expect("source").lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let used = [
                format!("{word} {{"),
                format!("{word} fn"),
                format!("{word} impl"),
                format!("{word} extern"),
            ];
            assert!(
                !used.iter().any(|form| code.contains(form)),
                "{}:{}: {line}",
                path.display(),
                number + 1
            );
        }
    }
}

#[test]
fn every_crate_keeps_the_workspaces_lints() {
    for entry in std::fs::read_dir(root()).expect("root").flatten() {
        let manifest = entry.path().join("Cargo.toml");
        if let Ok(text) = std::fs::read_to_string(&manifest) {
            assert!(text.contains("[lints]\nworkspace = true"), "{}", manifest.display());
        }
    }
}

#[test]
fn no_mark_is_left_behind_and_no_test_is_silently_ignored() {
    let marks = [
        concat!("TO", "DO"),
        concat!("FIX", "ME"),
        concat!("X", "XX"),
        concat!("#[", "ignore"),
        concat!("#[", "allow("),
    ];
    for path in sources() {
        let text = std::fs::read_to_string(&path).expect("source");
        for mark in marks {
            assert!(!text.contains(mark), "{} contains {mark}", path.display());
        }
    }
}

#[test]
fn names_are_the_fields() {
    let banned = [concat!("Man", "ager"), concat!("Help", "er"), concat!("mod ut", "ils")];
    for path in sources() {
        for (number, line) in std::fs::read_to_string(&path).expect("source").lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            let declares = ["struct ", "enum ", "trait ", "mod "].iter().any(|word| code.contains(word));
            assert!(
                !(declares && banned.iter().any(|word| code.contains(word))),
                "{}:{}: {line}",
                path.display(),
                number + 1
            );
        }
    }
}

#[test]
fn the_reference_names_every_field_and_every_exit_code() {
    let schema = pilot::workflow::schema();
    let page = std::fs::read_to_string(root().join("docs/reference/workflow.md")).expect("workflow.md");
    let mut fields = Vec::new();
    let mut open = vec![&schema];
    while let Some(value) = open.pop() {
        if let Some(properties) = value.get("properties").and_then(|p| p.as_object()) {
            fields.extend(properties.keys());
        }
        match value {
            serde_json::Value::Object(map) => open.extend(map.values()),
            serde_json::Value::Array(list) => open.extend(list),
            _ => {}
        }
    }
    assert!(fields.len() > 30, "{fields:?}");
    for field in fields {
        assert!(page.contains(&format!("| `{field}`")), "docs/reference/workflow.md lacks {field}");
    }
    let page = std::fs::read_to_string(root().join("docs/reference/cli.md")).expect("cli.md");
    for exit in pilot_core::RunExit::ALL {
        let row = format!("| {} | {} |", exit.code(), exit.meaning());
        assert!(page.contains(&row), "docs/reference/cli.md lacks: {row}");
    }
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    let mut open = vec![root().join("docs")];
    let mut pages: Vec<PathBuf> = ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(|page| root().join(page))
        .into();
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).expect("docs").flatten() {
            if entry.path().is_dir() { open.push(entry.path()) } else { pages.push(entry.path()) }
        }
    }
    for page in pages.iter().filter(|page| page.extension().is_some_and(|kind| kind == "md")) {
        let text = std::fs::read_to_string(page).expect("page");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            let path = page.parent().expect("folder").join(target);
            assert!(path.exists(), "{} links to {target}, which is not there", page.display());
        }
    }
}

#[test]
fn the_slot_page_and_the_container_agree_on_paths() {
    let page = std::fs::read_to_string(root().join("docs/reference/slot.md")).expect("slot.md");
    for path in image_store::MOUNT_POINTS.iter().filter(|path| path.len() > 1) {
        assert!(page.contains(*path), "docs/reference/slot.md lacks {path}");
    }
}
