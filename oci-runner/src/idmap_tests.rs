use super::*;

fn caller(euid: u32, may_map_others: bool, map: &str) -> Caller {
    Caller { euid, egid: euid, may_map_others, uid_map: map.into(), gid_map: map.into() }
}

const WHOLE: &str = "         0          0 4294967295\n";

#[test]
fn an_ordinary_user_maps_only_himself() {
    let ids = IdMap::choose(&caller(1000, false, WHOLE), (33, 34), UID_BASE, 3).expect("a map");
    assert_eq!((ids.uid_line().as_str(), ids.gid_line().as_str()), ("33 1000 1\n", "34 1000 1\n"));
    assert_eq!(ids.authority, Authority::Own);
}

#[test]
fn root_gives_each_slot_an_id_of_its_own() {
    let ids = IdMap::choose(&caller(0, true, WHOLE), (0, 0), UID_BASE, 3).expect("a map");
    assert_eq!(
        (ids.host_uid, ids.host_gid, ids.authority),
        (2_000_000_003, 2_000_000_003, Authority::Privileged)
    );
}

#[test]
fn root_without_capabilities_is_refused_rather_than_mapped_to_root() {
    assert_eq!(
        IdMap::choose(&caller(0, false, WHOLE), (0, 0), UID_BASE, 0),
        Err(IdMapError::RootWithoutCapabilities)
    );
}

#[test]
fn root_of_a_namespace_with_one_id_is_an_ordinary_user() {
    let ids = IdMap::choose(&caller(0, true, "0 1000 1\n"), (5, 5), UID_BASE, 1).expect("a map");
    assert_eq!((ids.host_uid, ids.authority), (0, Authority::Own));
}

#[test]
fn a_host_id_that_does_not_exist_is_named() {
    assert_eq!(
        IdMap::choose(&caller(0, true, "0 100000 65536\n"), (0, 0), UID_BASE, 1),
        Err(IdMapError::Unmapped(2_000_000_001))
    );
}
