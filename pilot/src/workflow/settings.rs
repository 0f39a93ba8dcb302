//! One payload's own fields, with the file's defaults and ours: texts become numbers, names are checked.
//!
//! Must not know: other payloads.

use std::collections::BTreeMap;

use wire::Check;
use wire::slot::{FdRole, PATH_BYTES_MAX, STRING_BYTES_MAX};

use super::located::{Located, Text};
use super::model::{Defaults, Payload, Resources};
use super::outputs::outputs;
use super::plan::{PayloadSpec, PlannedResources, User};
use super::problem::{Complaints, shortened};
use super::quantities::{bytes, grace_ms, millicores, milliseconds};

/// One processor: most programs have one thread.
const CPU_MILLICORES_DEFAULT: u64 = 1000;
/// Enough for most programs, and small enough that several run beside each other on a laptop.
const MEMORY_BYTES_DEFAULT: u64 = 1 << 30;
/// As much as one output may have by default.
const DISK_BYTES_DEFAULT: u64 = 1 << 30;
/// Batch systems give 10 to 30 seconds; what needs longer says so.
const GRACE_MS_DEFAULT: u32 = 10_000;

/// What holds for payloads that don't say otherwise.
#[derive(Debug)]
pub(super) struct Inherited<'a> {
    image: Option<&'a Located<String>>,
    resources: PlannedResources,
    walltime_ms: Option<u64>,
    retries: u32,
    env: BTreeMap<String, String>,
    trust_group: Option<String>,
}

impl<'a> Inherited<'a> {
    pub(super) fn new(defaults: Option<&'a Defaults>, complaints: &mut Complaints) -> Self {
        let ours = PlannedResources {
            cpu_millicores: CPU_MILLICORES_DEFAULT,
            memory_bytes: MEMORY_BYTES_DEFAULT,
            disk_bytes: DISK_BYTES_DEFAULT,
        };
        let mut inherited = Inherited {
            image: None,
            resources: ours,
            walltime_ms: None,
            retries: 0,
            env: BTreeMap::new(),
            trust_group: None,
        };
        let Some(Defaults { image, resources: wanted, walltime, retries, env, trust_group }) = defaults
        else {
            return inherited;
        };
        inherited.image = image.as_ref();
        inherited.resources = resources(wanted.as_ref(), ours, complaints);
        inherited.walltime_ms = walltime.as_ref().and_then(|text| milliseconds("walltime", text, complaints));
        inherited.retries = retries.unwrap_or(0);
        add_env(&mut inherited.env, env, complaints);
        inherited.trust_group =
            trust_group.as_ref().and_then(|group| named("trust_group", group, complaints));
        inherited
    }
}

/// Everything about a payload that does not depend on others.
pub(super) fn spec(
    payload: &Located<Payload>,
    inherited: &Inherited<'_>,
    complaints: &mut Complaints,
) -> PayloadSpec {
    let retries = match &payload.retries {
        Some(retries) if payload.at_most_once && retries.value > 0 => {
            complaints.add(retries.at, "\"retries\" contradicts \"at_most_once\"; remove one of the two");
            0
        }
        Some(retries) => retries.value,
        None if payload.at_most_once => 0,
        None => inherited.retries,
    };
    let grace = payload.grace.as_ref();
    let mut env = inherited.env.clone();
    add_env(&mut env, &payload.env, complaints);
    let image = image(payload, inherited, complaints);
    PayloadSpec {
        name: payload.name.value.clone(),
        image: image.value,
        image_at: image.at,
        command: payload.command.as_ref().map(|words| command(words, complaints)),
        args: payload.args.as_ref().map(|words| strings(words, complaints)),
        env,
        cwd: payload.cwd.as_ref().map(|path| cwd(path, complaints)),
        user: payload.user.as_ref().map_or(User::Unsaid, |text| user(text, complaints)),
        resources: resources(payload.resources.as_ref(), inherited.resources, complaints),
        walltime_ms: match &payload.walltime {
            Some(text) => milliseconds("walltime", text, complaints),
            None => inherited.walltime_ms,
        },
        grace_ms: grace.and_then(|text| grace_ms(text, complaints)).unwrap_or(GRACE_MS_DEFAULT),
        retries,
        outputs: outputs(payload, complaints),
        trust_group: match &payload.trust_group {
            Some(group) => named("trust_group", group, complaints),
            None => inherited.trust_group.clone(),
        },
        at_most_once: payload.at_most_once,
        rootfs: payload.rootfs,
        network: payload.network,
        at: payload.at,
    }
}

/// Whether a name may be part of a stage's name; the rule is wire's.
pub(super) fn is_name(name: &str) -> bool {
    FdRole::StageIn(name.to_owned()).check().is_ok()
}

/// The name, or a complaint about it.
pub(super) fn named(what: &str, name: &Located<String>, complaints: &mut Complaints) -> Option<String> {
    if is_name(name) {
        return Some(name.value.clone());
    }
    let rule = "use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit";
    complaints.add(name.at, format!("{what} {:?} is no name; {rule}", shortened(name)));
    None
}

/// The reference as written and its place. Its grammar is the image store's.
fn image(
    payload: &Located<Payload>,
    inherited: &Inherited<'_>,
    complaints: &mut Complaints,
) -> Located<String> {
    let Some(image) = payload.image.as_ref().or(inherited.image) else {
        let text =
            format!("payload {:?} has no image; add \"image:\" here or in \"defaults\"", payload.name.value);
        complaints.add(payload.at, text);
        return Located { value: String::new(), at: payload.at };
    };
    if image.is_empty() || image.contains(char::is_control) {
        let advice = "write docker://<registry>/<name>:<tag>, oci:<folder>[:<tag>], oci-archive:<file>[:<tag>] or docker-archive:<file>";
        complaints.add(image.at, format!("image {:?} is no image reference; {advice}", shortened(image)));
    }
    image.clone()
}

fn command(words: &Located<Vec<Located<Text>>>, complaints: &mut Complaints) -> Vec<String> {
    match words.first() {
        None => complaints
            .add(words.at, "\"command\" is empty; name a program, or leave it out for the image's own"),
        Some(program) if program.is_empty() => {
            complaints.add(program.at, "the program's name is empty; name a program")
        }
        Some(_) => {}
    }
    strings(words, complaints)
}

fn strings(words: &[Located<Text>], complaints: &mut Complaints) -> Vec<String> {
    words.iter().map(|word| string("an argument", word, complaints)).collect()
}

/// Text that becomes a C string.
fn string(what: &str, text: &Located<Text>, complaints: &mut Complaints) -> String {
    if text.contains('\0') {
        complaints.add(text.at, format!("{what} contains a NUL character; remove it"));
    } else if text.len() > STRING_BYTES_MAX {
        complaints.add(
            text.at,
            format!("{what} is longer than {STRING_BYTES_MAX} bytes; hand it over as an input"),
        );
    }
    text.value.0.clone()
}

fn add_env(
    env: &mut BTreeMap<String, String>,
    added: &BTreeMap<String, Located<Text>>,
    complaints: &mut Complaints,
) {
    for (name, value) in added {
        let shown = shortened(name);
        if name.is_empty() || name.contains(|c: char| c == '=' || c.is_whitespace() || c.is_control()) {
            let advice = "use a name without '=' and spaces";
            complaints.add(value.at, format!("{shown:?} is no name of an environment variable; {advice}"));
        } else if name.starts_with("LATEBIND_") {
            let advice = "choose a name that does not begin with LATEBIND_";
            complaints.add(value.at, format!("environment variable {shown:?} is set by the pilot; {advice}"));
        }
        let value = string("an environment variable", value, complaints);
        env.insert(name.clone(), value);
    }
}

fn cwd(path: &Located<String>, complaints: &mut Complaints) -> String {
    if !path.starts_with('/') || path.contains('\0') || path.len() > PATH_BYTES_MAX {
        complaints.add(path.at, format!("cwd {:?} is no absolute path; begin it with /", shortened(path)));
    }
    path.value.clone()
}

fn user(text: &Located<Text>, complaints: &mut Complaints) -> User {
    if text.as_str() == "image" {
        return User::Image;
    }
    let (uid, gid) = match text.split_once(':') {
        Some((uid, gid)) => (uid.parse(), Some(gid.parse())),
        None => (text.parse(), None),
    };
    // 2^32 - 1 means "no change" to the kernel.
    match (uid, gid.transpose()) {
        (Ok(uid), Ok(gid)) if uid != u32::MAX && gid != Some(u32::MAX) => return User::Ids { uid, gid },
        _ => {}
    }
    complaints.add(
        text.at,
        format!("user {:?} is no user; write image, <uid> or <uid>:<gid> in numbers", shortened(text)),
    );
    User::Image
}

fn resources(
    wanted: Option<&Resources>,
    otherwise: PlannedResources,
    complaints: &mut Complaints,
) -> PlannedResources {
    let Some(Resources { cpu, memory, disk }) = wanted else { return otherwise };
    let cpu = cpu.as_ref().and_then(|text| millicores(text, complaints));
    let memory = memory.as_ref().and_then(|text| bytes("memory", text, complaints));
    let disk = disk.as_ref().and_then(|text| bytes("disk", text, complaints));
    PlannedResources {
        cpu_millicores: cpu.unwrap_or(otherwise.cpu_millicores),
        memory_bytes: memory.unwrap_or(otherwise.memory_bytes),
        disk_bytes: disk.unwrap_or(otherwise.disk_bytes),
    }
}
