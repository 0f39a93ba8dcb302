//! The table of `plan.rs`, row by row, and a property: any history of requests, against a model that is only a map.

use std::collections::BTreeMap;
use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::tenant::Tenant;
use crate::volume::{Birth, RECORD_VERSION, Volume, Wanted};

const ROOMY: Limits =
    Limits { mounts: true, volumes: 100, tenant_volumes: 50, volume_bytes: 1 << 30, tenant_bytes: 2 << 30 };
const BIRTH: Birth = Birth { inode: 7, seconds: 1, nanos: 2 };
const OTHER: Birth = Birth { inode: 8, seconds: 1, nanos: 2 };

pub(crate) fn volume(id: &str) -> Volume {
    Volume {
        version: RECORD_VERSION,
        id: VolumeId::parse(id).expect("an id"),
        target: target("1a2b"),
        aside: ".latebind-0".to_owned(),
        birth: Some(BIRTH),
        tenant: Tenant::Account { namespace: "cms".into(), account: "prod".into() },
        pod: "1a2b".to_owned(),
        wanted: wanted(Backing::Folder),
    }
}

fn target(pod: &str) -> Target {
    Target::parse(Path::new("/k/pods"), &format!("/k/pods/{pod}/v/mount")).expect("a target")
}

fn wanted(backing: Backing) -> Wanted {
    Wanted { backing, uid: None, gid: None, permissions: 0o777, slots: 0, read_only: false }
}

fn request(volume: &Volume) -> PublishRequest {
    PublishRequest {
        id: volume.id.clone(),
        target: volume.target.clone(),
        tenant: volume.tenant.clone(),
        pod: volume.pod.clone(),
        wanted: volume.wanted.clone(),
    }
}

fn folder(birth: Birth, empty: bool, mounted: bool) -> Found {
    Found::Folder { birth, empty, mounted }
}

fn known(volume: &Volume) -> Volumes {
    let mut volumes = Volumes::default();
    volumes.put(volume.clone());
    volumes
}

#[test]
fn the_table_of_requests_holds() {
    use Publish::{Already, Make, Mount};
    let plain = volume("one");
    let mounted = Volume { wanted: wanted(Backing::Shared), ..volume("one") };
    let none = Volumes::default();
    let conflict = |conflict: Conflict| Publish::Refuse(conflict.into());
    let no = |conflict| Unpublish::Refuse(conflict);
    let no_parent = || Publish::Refuse(Refusal::NoParent);
    for (what, found, expected, unexpected) in [
        (None, Found::NoParent, no_parent(), Unpublish::Nothing),
        (None, Found::Nothing, Make, Unpublish::Nothing),
        (None, folder(OTHER, true, false), Make, Unpublish::Nothing),
        (None, folder(OTHER, false, false), conflict(Conflict::Foreign), Unpublish::Nothing),
        (None, folder(OTHER, false, true), conflict(Conflict::Mounted), Unpublish::Nothing),
        (None, Found::Other, conflict(Conflict::NotAFolder), Unpublish::Nothing),
        (Some(&plain), Found::NoParent, no_parent(), Unpublish::Forget),
        (Some(&plain), Found::Nothing, Make, Unpublish::Forget),
        (Some(&plain), folder(BIRTH, false, false), Already, Unpublish::Remove),
        (Some(&plain), folder(BIRTH, true, false), Already, Unpublish::Remove),
        (Some(&plain), folder(OTHER, true, false), Make, Unpublish::Forget),
        (Some(&plain), folder(OTHER, false, false), conflict(Conflict::Foreign), no(Conflict::Foreign)),
        (Some(&plain), folder(BIRTH, false, true), conflict(Conflict::Mounted), no(Conflict::Mounted)),
        (Some(&plain), Found::Other, conflict(Conflict::NotAFolder), no(Conflict::NotAFolder)),
        (Some(&mounted), folder(BIRTH, true, false), Mount, Unpublish::Remove),
        (Some(&mounted), folder(OTHER, false, true), Already, Unpublish::Remove),
        (Some(&mounted), folder(OTHER, false, false), conflict(Conflict::Foreign), no(Conflict::Foreign)),
    ] {
        let volumes = what.map_or_else(|| none.clone(), known);
        let asked = what.unwrap_or(&plain);
        assert_eq!(publish(&request(asked), &volumes, found, &ROOMY), expected, "{what:?} {found:?}");
        assert_eq!(unpublish(&asked.id, &asked.target, &volumes, found), unexpected, "{what:?} {found:?}");
    }
}

#[test]
fn a_second_request_must_be_the_same_and_wait_for_a_removal() {
    let one = volume("one");
    let mut volumes = known(&one);
    let there = folder(BIRTH, false, false);
    let elsewhere = PublishRequest { target: target("3c4d"), ..request(&one) };
    assert_eq!(publish(&elsewhere, &volumes, there, &ROOMY), Publish::Refuse(Refusal::Elsewhere));
    for changed in [
        PublishRequest { wanted: Wanted { read_only: true, ..one.wanted.clone() }, ..request(&one) },
        PublishRequest { tenant: Tenant::Domain("physics".into()), ..request(&one) },
        PublishRequest { pod: "3c4d".into(), ..request(&one) },
    ] {
        assert_eq!(publish(&changed, &volumes, there, &ROOMY), Publish::Refuse(Refusal::Incompatible));
    }
    assert_eq!(unpublish(&one.id, &target("3c4d"), &volumes, there), Unpublish::Nothing);
    volumes.find_mut(&one.id).expect("known").leaving = true;
    assert_eq!(
        publish(&request(&one), &volumes, Found::Nothing, &ROOMY),
        Publish::Refuse(Conflict::Busy.into())
    );
    assert_eq!(unpublish(&one.id, &one.target, &volumes, Found::Nothing), Unpublish::Refuse(Conflict::Busy));
}

#[test]
fn limits_hold_for_the_node_and_for_each_tenant() {
    let ask = |backing, limits: Limits, used_bytes| {
        let mut volumes = known(&Volume { wanted: wanted(Backing::Tmpfs { bytes: 100 }), ..volume("one") });
        volumes.find_mut(&volume("one").id).expect("known").used_bytes = used_bytes;
        let two = Volume { wanted: wanted(backing), ..volume("two") };
        let other = PublishRequest { tenant: Tenant::Domain("x".into()), ..request(&two) };
        (
            publish(&request(&two), &volumes, Found::Nothing, &limits),
            publish(&other, &volumes, Found::Nothing, &limits),
        )
    };
    let refused = |decided: &Publish| matches!(decided, Publish::Refuse(refusal) if !matches!(refusal, Refusal::Conflict(_)));
    let tmpfs = |bytes| Backing::Tmpfs { bytes };
    assert_eq!(ask(Backing::Folder, ROOMY, 0), (Publish::Make, Publish::Make));
    let (own, other) = ask(Backing::Folder, Limits { volumes: 1, ..ROOMY }, 0);
    assert!(refused(&own) && refused(&other));
    let (own, other) = ask(Backing::Folder, Limits { tenant_volumes: 1, ..ROOMY }, 0);
    assert!(refused(&own) && other == Publish::Make);
    let (own, other) = ask(tmpfs(60), Limits { tenant_bytes: 150, ..ROOMY }, 0);
    assert!(refused(&own) && other == Publish::Make);
    let (own, _) = ask(tmpfs(50), Limits { tenant_bytes: 150, ..ROOMY }, 0);
    assert_eq!(own, Publish::Make);
    let (own, other) = ask(tmpfs(60), Limits { volume_bytes: 50, ..ROOMY }, 0);
    assert!(refused(&own) && refused(&other));
    let (own, other) = ask(Backing::Folder, Limits { tenant_bytes: 150, ..ROOMY }, 151);
    assert!(refused(&own) && other == Publish::Make);
    let (own, _) = ask(tmpfs(1), Limits { mounts: false, ..ROOMY }, 0);
    assert_eq!(own, Publish::Refuse(Refusal::MountsForbidden));
}

#[test]
fn a_volume_goes_when_its_pod_is_gone_or_forgotten_for_long_enough() {
    let second = Duration::from_secs;
    let decide =
        |parent, noted, since, now| collect(second(now), Trace { parent, noted }, since, second(600));
    assert_eq!(decide(false, false, None, 0), Collect::Forget);
    assert_eq!(decide(true, true, None, 9999), Collect::Keep);
    assert_eq!(decide(true, true, Some(second(0)), 9999), Collect::Keep);
    assert_eq!(decide(true, false, Some(second(10)), 10), Collect::Keep);
    assert_eq!(decide(true, false, Some(second(10)), 609), Collect::Keep);
    assert_eq!(decide(true, false, Some(second(10)), 610), Collect::Remove);
    // A clock that went back does not make a volume go.
    assert_eq!(decide(true, false, Some(second(700)), 10), Collect::Keep);
}

/// What a test's world does.
#[derive(Clone, Debug)]
enum Step {
    Publish {
        id: u8,
        pod: u8,
        tmpfs: Option<u64>,
        tenant: u8,
    },
    Unpublish {
        id: u8,
        pod: u8,
    },
    /// Somebody puts something at a target, or takes it away.
    Meddle {
        pod: u8,
        what: u8,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let publish = (0..4_u8, 0..4_u8, prop::option::of(1..100_u64), 0..2_u8)
        .prop_map(|(id, pod, tmpfs, tenant)| Step::Publish { id, pod, tmpfs, tenant });
    let unpublish = (0..4_u8, 0..4_u8).prop_map(|(id, pod)| Step::Unpublish { id, pod });
    let meddle = (0..4_u8, 0..5_u8).prop_map(|(pod, what)| Step::Meddle { pod, what });
    prop::collection::vec(prop_oneof![3 => publish, 3 => unpublish, 1 => meddle], 0..60)
}

/// A stupid world: what is at each target, and whose it is.
#[derive(Default)]
struct World {
    at: BTreeMap<u8, (Found, bool)>,
    births: u64,
}

impl World {
    fn found(&self, pod: u8) -> Found {
        self.at.get(&pod).map_or(Found::Nothing, |(found, _)| *found)
    }

    fn birth(&mut self) -> Birth {
        self.births += 1;
        Birth { inode: self.births, seconds: 0, nanos: 0 }
    }
}

proptest! {
    #[test]
    fn whatever_happens_nothing_of_others_is_touched_and_no_limit_is_passed(steps in steps()) {
        let limits = Limits { mounts: true, volumes: 3, tenant_volumes: 2, volume_bytes: 80, tenant_bytes: 120 };
        let (mut world, mut volumes) = (World::default(), Volumes::default());
        for step in steps {
            match step {
                Step::Publish { id, pod, tmpfs, tenant } => {
                    let backing = tmpfs.map_or(Backing::Folder, |bytes| Backing::Tmpfs { bytes });
                    let mut volume = Volume {
                        target: target(&format!("p{pod}")),
                        pod: format!("p{pod}"),
                        tenant: Tenant::Domain(format!("t{tenant}")),
                        wanted: wanted(backing),
                        ..volume(&format!("v{id}"))
                    };
                    match publish(&request(&volume), &volumes, world.found(pod), &limits) {
                        Publish::Make => {
                            let replaced = world.at.get(&pod).map(|(found, _)| *found);
                            // At most an empty folder gives way.
                            let gives_way = matches!(replaced, None | Some(Found::Folder { empty: true, mounted: false, .. }));
                            prop_assert!(gives_way);
                            let birth = world.birth();
                            volume.birth = Some(birth);
                            let mounted = volume.wanted.backing.is_mount();
                            world.at.insert(pod, (Found::Folder { birth, empty: true, mounted }, true));
                            volumes.put(volume.clone());
                        }
                        Publish::Mount => {
                            prop_assert!(volume.wanted.backing.is_mount());
                            let entry = world.at.get_mut(&pod);
                            prop_assert!(matches!(entry, Some((_, true))));
                            if let Some((Found::Folder { mounted, .. }, _)) = entry {
                                *mounted = true;
                            }
                        }
                        // The same volume is there already.
                        Publish::Already => prop_assert!(volumes.find(&volume.id).is_some()),
                        Publish::Refuse(_) => {}
                    }
                }
                Step::Unpublish { id, pod } => {
                    let (id, target) = (VolumeId::parse(&format!("v{id}")).expect("id"), target(&format!("p{pod}")));
                    match unpublish(&id, &target, &volumes, world.found(pod)) {
                        Unpublish::Remove => {
                            // Ours, unless something was mounted over a volume that is a mount, which nobody can see.
                            let (found, ours) = world.at.remove(&pod).expect("something to remove");
                            let mounted = matches!(found, Found::Folder { mounted: true, .. });
                            prop_assert!(ours || mounted);
                            volumes.take(&id);
                        }
                        Unpublish::Forget => drop(volumes.take(&id)),
                        Unpublish::Nothing | Unpublish::Refuse(_) => {}
                    }
                }
                Step::Meddle { pod, what } => {
                    let birth = world.birth();
                    let put = match what {
                        0 => None,
                        1 => Some(Found::Other),
                        2 => Some(folder(birth, true, false)),
                        3 => Some(folder(birth, false, false)),
                        _ => Some(folder(birth, false, true)),
                    };
                    match put {
                        None => drop(world.at.remove(&pod)),
                        Some(found) => drop(world.at.insert(pod, (found, false))),
                    }
                }
            }
            prop_assert!(volumes.len() <= limits.volumes);
            for tenant in 0..2 {
                let held = volumes.held_by(&Tenant::Domain(format!("t{tenant}")));
                prop_assert!(held.volumes <= limits.tenant_volumes && held.promised_bytes <= limits.tenant_bytes);
            }
        }
    }
}
