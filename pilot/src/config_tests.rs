//! Where a setting's value comes from.

use super::{Config, ConfigError, Settings, Surroundings, spool_folder};
use crate::units::Bytes;

fn around(folder: &std::path::Path) -> Surroundings {
    std::fs::write(folder.join("payload-shim"), b"").expect("shim");
    Surroundings {
        home: Some(folder.to_path_buf()),
        program: Some(folder.join("pilot")),
        uid: 7,
        processors: 4,
        memory_available_bytes: 1000,
        ..Surroundings::default()
    }
}

#[test]
fn defaults_follow_the_machine() {
    let folder = tempfile::tempdir().expect("tempdir");
    let config = Config::new(Settings::default(), &around(folder.path())).expect("config");
    assert_eq!((config.slots, config.cpu_millis, config.memory_bytes), (4, 4000, 800));
    assert_eq!(config.store, folder.path().join(".cache/latebind"));
    assert_eq!(config.state_dir, std::path::Path::new("/dev/shm/latebind-7"));
}

#[test]
fn a_flag_wins_over_the_file_and_the_file_over_the_default() {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("s.yaml");
    std::fs::write(&file, "slots: 9\nmemory: 1Gi\n").expect("write");
    let given = Settings { settings: Some(file), slots: Some(2), ..Settings::default() };
    let merged = given.with_file(&around(folder.path())).expect("merge");
    assert_eq!((merged.slots, merged.memory), (Some(2), Some(Bytes(1 << 30))));
}

#[test]
fn mounts_are_a_list_in_the_file_and_a_wrong_one_is_told_with_its_place() {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("s.yaml");
    std::fs::write(&file, "mount: [/data/calib, '/etc/app.json:file']\n").expect("write");
    let given = || Settings { settings: Some(file.clone()), ..Settings::default() };
    let merged = given().with_file(&around(folder.path())).expect("merge");
    let texts: Vec<String> = merged.mount.iter().map(ToString::to_string).collect();
    assert_eq!(texts, ["/data/calib", "/etc/app.json:file"]);
    std::fs::write(&file, "mount: [/tmp/x]\n").expect("write");
    let error = given().with_file(&around(folder.path())).expect_err("the slot's own").to_string();
    assert!(
        error.starts_with(&file.display().to_string()) && error.contains("the slot's own /tmp"),
        "{error}"
    );
}

#[test]
fn an_unknown_key_names_file_and_line_and_a_missing_named_file_is_an_error() {
    let folder = tempfile::tempdir().expect("tempdir");
    let file = folder.path().join("s.yaml");
    std::fs::write(&file, "slots: 9\nslotz: 1\n").expect("write");
    let given = Settings { settings: Some(file.clone()), ..Settings::default() };
    let error = given.with_file(&around(folder.path())).expect_err("unknown key").to_string();
    assert!(error.starts_with(&file.display().to_string()) && error.contains("slotz"), "{error}");
    let given = Settings { settings: Some(folder.path().join("no.yaml")), ..Settings::default() };
    assert!(matches!(given.with_file(&around(folder.path())), Err(ConfigError::Read { .. })));
}

#[test]
fn values_that_cannot_work_are_refused() {
    let folder = tempfile::tempdir().expect("tempdir");
    let none = Settings { slots: Some(0), ..Settings::default() };
    assert!(matches!(Config::new(none, &around(folder.path())), Err(ConfigError::Value { .. })));
    let around = Surroundings { program: Some("nowhere/pilot".into()), ..around(folder.path()) };
    assert!(matches!(Config::new(Settings::default(), &around), Err(ConfigError::NoShim { .. })));
}

#[test]
fn the_spool_is_where_it_is_named_or_in_the_users_state() {
    let home = Surroundings { home: Some("/home/u".into()), ..Surroundings::default() };
    let folder =
        |named: Option<&str>, around: &Surroundings| spool_folder(named.map(Into::into), around).ok();
    assert_eq!(folder(Some("/s"), &home), Some("/s".into()));
    assert_eq!(folder(None, &home), Some("/home/u/.local/state/latebind/spool".into()));
    let state = Surroundings { state_home: Some("/var/u".into()), ..home };
    assert_eq!(folder(None, &state), Some("/var/u/latebind/spool".into()));
    assert!(matches!(spool_folder(None, &Surroundings::default()), Err(ConfigError::NoHomeForSpool)));
}
