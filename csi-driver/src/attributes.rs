//! `volumeAttributes` of a pod's volume: hostile input, read against a closed list of names.
//!
//! **Must not know:** pods, tenants' volumes, files.

use std::collections::HashMap;

use crate::layout::SLOTS_MAX;
use crate::quantity::{Bytes, NotASize};
use crate::volume::{Backing, Wanted};

/// What the kubelet adds; a pod can't set these, because the kubelet's own come on top.
pub const POD_INFO: &str = "csi.storage.k8s.io/";
/// Longest value that means anything, in bytes.
const VALUE_MAX: usize = 256;
/// No permission bit beyond these: sticky and setgid may be asked for, setuid means nothing for a folder.
const PERMISSIONS_MAX: u32 = 0o3777;
/// The kernel takes all ones for "leave it".
const ID_MAX: u32 = u32::MAX - 1;

/// Attributes, read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// What the volume is to be.
    pub wanted: Wanted,
    /// The domain that the pod wants to be in.
    pub domain: Option<String>,
}

/// Why attributes can't be used. Values are quoted, so that none of them ends a line of a log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadAttributes {
    /// A name that means nothing.
    #[error("volumeAttributes: {0:?} is not one of mode, source, size, uid, gid, permissions, slots, domain")]
    Unknown(String),
    /// A value that is no number, or no good one.
    #[error("volumeAttributes: {name}: {value:?} is not {what}")]
    Value {
        /// Whose.
        name: &'static str,
        /// What was given, shortened.
        value: String,
        /// What would do.
        what: &'static str,
    },
    /// Something for mounts without a mount.
    #[error("volumeAttributes: {0} needs mode: mount; without a mount nothing enforces it")]
    NeedsMount(&'static str),
    /// A size for what has none.
    #[error("volumeAttributes: size needs source: tmpfs; a shared folder has no size of its own")]
    NoSize,
    /// No size for what needs one.
    #[error("volumeAttributes: source: tmpfs needs a size, such as 64Mi")]
    SizeMissing,
    /// Not a size.
    #[error("volumeAttributes: size: {0}")]
    Size(#[from] NotASize),
    /// Folders for slots and nobody who owns them.
    #[error("volumeAttributes: slots needs uid: the pilot's own, who must own these folders")]
    SlotsWithoutOwner,
    /// Folders for slots where none can be made.
    #[error("volumeAttributes: slots can't be had in a shared or a read-only volume")]
    SlotsNowhere,
    /// The pod's fsGroup is no number.
    #[error("volume mount group {0:?} is not a number below 4294967295")]
    Group(String),
}

/// Reads the attributes of a pod's volume. `group` is its `fsGroup` as the kubelet says it, empty if there is none.
///
/// # Errors
/// On the first that is wrong; nothing is guessed.
pub fn read(
    context: &HashMap<String, String>,
    group: &str,
    read_only: bool,
) -> Result<Attributes, BadAttributes> {
    let mut given: HashMap<&str, &str> = HashMap::new();
    let known = ["mode", "source", "size", "uid", "gid", "permissions", "slots", "domain"];
    // In order, so that the same request gets the same answer.
    let mut names: Vec<&String> = context.keys().filter(|name| !name.starts_with(POD_INFO)).collect();
    names.sort();
    for name in names {
        let Some(name) = known.iter().find(|known| **known == name.as_str()) else {
            return Err(BadAttributes::Unknown(short(name)));
        };
        given.insert(name, context[*name].as_str());
    }
    let backing = backing(&given)?;
    let uid = number(&given, "uid", 1, ID_MAX, 10, "a user's number from 1 to 4294967294")?;
    let own = number(&given, "gid", 1, ID_MAX, 10, "a group's number from 1 to 4294967294")?;
    let gid = match own {
        Some(gid) => Some(gid),
        None if group.is_empty() => None,
        None => Some(
            digits(group, 10)
                .filter(|gid| *gid <= ID_MAX)
                .ok_or_else(|| BadAttributes::Group(short(group)))?,
        ),
    };
    let permissions = number(
        &given,
        "permissions",
        0,
        PERMISSIONS_MAX,
        8,
        "permissions in octal, such as 0750, at most 3777",
    )?;
    let slots = number(&given, "slots", 0, SLOTS_MAX, 10, "a number of slots from 0 to 256")?.unwrap_or(0);
    if slots > 0 && uid.is_none() {
        return Err(BadAttributes::SlotsWithoutOwner);
    }
    if slots > 0 && (read_only || backing == Backing::Shared) {
        return Err(BadAttributes::SlotsNowhere);
    }
    let mut permissions = permissions.unwrap_or(match (uid, gid) {
        // As an emptyDir is.
        (None, None) => 0o777,
        // New entries get the group too.
        (_, Some(_)) => 0o2770,
        (Some(_), None) => 0o711,
    });
    if read_only {
        permissions &= !0o222;
    }
    let domain = match given.get("domain") {
        None => None,
        Some(name) if is_label(name) => Some((*name).to_owned()),
        Some(name) => {
            let what = "a domain's name: up to 63 lower-case letters, digits and '-'";
            return Err(BadAttributes::Value { name: "domain", value: short(name), what });
        }
    };
    Ok(Attributes { wanted: Wanted { backing, uid, gid, permissions, slots, read_only }, domain })
}

fn backing(given: &HashMap<&str, &str>) -> Result<Backing, BadAttributes> {
    let mounts = match given.get("mode").copied() {
        None | Some("mount-free") => false,
        Some("mount") => true,
        Some(value) => {
            return Err(BadAttributes::Value {
                name: "mode",
                value: short(value),
                what: "mount-free or mount",
            });
        }
    };
    if !mounts {
        return match ["source", "size"].into_iter().find(|name| given.contains_key(name)) {
            Some(name) => Err(BadAttributes::NeedsMount(name)),
            None => Ok(Backing::Folder),
        };
    }
    let size = given.get("size").copied();
    match (given.get("source").copied().unwrap_or("tmpfs"), size) {
        ("tmpfs", None) => Err(BadAttributes::SizeMissing),
        ("tmpfs", Some(size)) => match size.parse::<Bytes>()? {
            // A tmpfs of size 0 would be one without any limit.
            Bytes(0) => {
                Err(BadAttributes::Value { name: "size", value: short(size), what: "more than nothing" })
            }
            Bytes(bytes) => Ok(Backing::Tmpfs { bytes }),
        },
        ("shared", None) => Ok(Backing::Shared),
        ("shared", Some(_)) => Err(BadAttributes::NoSize),
        (value, _) => {
            Err(BadAttributes::Value { name: "source", value: short(value), what: "tmpfs or shared" })
        }
    }
}

fn number(
    given: &HashMap<&str, &str>,
    name: &'static str,
    least: u32,
    most: u32,
    radix: u32,
    what: &'static str,
) -> Result<Option<u32>, BadAttributes> {
    let Some(value) = given.get(name) else { return Ok(None) };
    match digits(value, radix).filter(|number| (least..=most).contains(number)) {
        Some(number) => Ok(Some(number)),
        None => Err(BadAttributes::Value { name, value: short(value), what }),
    }
}

/// Digits and nothing else: no sign, no spaces.
fn digits(text: &str, radix: u32) -> Option<u32> {
    let plain = !text.is_empty() && text.len() <= 16 && text.chars().all(|digit| digit.is_digit(radix));
    plain.then(|| u32::from_str_radix(text, radix).ok()).flatten()
}

/// A DNS label, as Kubernetes has for names.
fn is_label(name: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&name.len()) && name.bytes().all(fits) && !name.starts_with('-') && !name.ends_with('-')
}

/// Enough of a text to recognise it by.
pub(crate) fn short(text: &str) -> String {
    let mut end = text.len().min(VALUE_MAX / 4);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_read(pairs: &[(&str, &str)]) -> Result<Attributes, BadAttributes> {
        let context = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        read(&context, "", false)
    }

    #[test]
    fn what_nobody_asks_for_is_as_an_empty_dir_is() {
        let wanted = try_read(&[("csi.storage.k8s.io/pod.name", "p")]).expect("none").wanted;
        let plain = Wanted {
            backing: Backing::Folder,
            uid: None,
            gid: None,
            permissions: 0o777,
            slots: 0,
            read_only: false,
        };
        assert_eq!(wanted, plain);
    }

    #[test]
    fn owners_decide_permissions_unless_they_are_said() {
        let permissions = |pairs: &[(&str, &str)], group: &str, read_only| {
            let context =
                pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            read(&context, group, read_only).map(|read| (read.wanted.gid, read.wanted.permissions))
        };
        assert_eq!(permissions(&[], "2000", false), Ok((Some(2000), 0o2770)));
        assert_eq!(permissions(&[("gid", "7")], "2000", false), Ok((Some(7), 0o2770)));
        assert_eq!(permissions(&[("uid", "10000")], "", false), Ok((None, 0o711)));
        assert_eq!(permissions(&[("permissions", "1777")], "", false), Ok((None, 0o1777)));
        assert_eq!(permissions(&[], "", true), Ok((None, 0o555)));
        assert!(permissions(&[], "-1", false).is_err());
        assert!(permissions(&[], "4294967295", false).is_err());
    }

    #[test]
    fn mounts_are_asked_for_whole() {
        let backing = |pairs: &[(&str, &str)]| try_read(pairs).map(|read| read.wanted.backing);
        assert_eq!(backing(&[("mode", "mount"), ("size", "64Mi")]), Ok(Backing::Tmpfs { bytes: 64 << 20 }));
        assert_eq!(backing(&[("mode", "mount"), ("source", "shared")]), Ok(Backing::Shared));
        assert_eq!(backing(&[("mode", "mount")]), Err(BadAttributes::SizeMissing));
        assert_eq!(backing(&[("size", "64Mi")]), Err(BadAttributes::NeedsMount("size")));
        assert_eq!(
            backing(&[("mode", "mount"), ("source", "shared"), ("size", "1")]),
            Err(BadAttributes::NoSize)
        );
    }

    #[test]
    fn hostile_values_are_refused_in_one_short_line() {
        let huge = "x".repeat(4096);
        let values = [
            "",
            "/",
            "..",
            "../../etc",
            "\0",
            "a\0b",
            "-1",
            "+1",
            " 1",
            "1 ",
            "0x10",
            "9999999999",
            "\u{202e}",
            "\n",
            &huge,
        ];
        for name in ["mode", "source", "size", "uid", "gid", "permissions", "slots", "domain"] {
            for value in values {
                // These mean something.
                if matches!((name, value), ("size" | "domain", "9999999999") | ("domain", "0x10")) {
                    continue;
                }
                let mut pairs = vec![(name, value)];
                if name == "size" || name == "source" {
                    pairs.push(("mode", "mount"));
                }
                let line = match try_read(&pairs) {
                    Err(error) => error.to_string(),
                    Ok(read) => panic!("{name}: {value:?} gave {read:?}"),
                };
                assert!(line.len() < 600 && !line.contains(['\n', '\0']), "{line:?}");
            }
            let line = try_read(&[(&huge, "x")]).expect_err("a name").to_string();
            assert!(line.len() < 300, "{line}");
        }
        for (name, value) in
            [("uid", "0"), ("gid", "0"), ("permissions", "4777"), ("permissions", "8"), ("slots", "257")]
        {
            assert!(try_read(&[(name, value)]).is_err(), "{name}: {value}");
        }
        assert_eq!(try_read(&[("slots", "2")]), Err(BadAttributes::SlotsWithoutOwner));
    }
}
