//! Inputs that a payload wants to find at paths of its own choosing.
//!
//! Must not know: which paths are possible (that is [`crate::mounts`]), how anything is mounted.

use crate::mounts::{Destination, DestinationError};

use super::located::{Located, Position};
use super::model::OutputClass;
use super::problem::{Complaints, shortened};
use super::references::{Group, Groups, Origin};
use super::resolved::Resolved;

/// Where an input is to be mounted, or a complaint.
pub(super) fn place(
    at: &Located<String>,
    input: &Resolved<'_>,
    group: &Group<'_>,
    groups: &Groups<'_>,
    complaints: &mut Complaints,
) -> Option<(Destination, Position)> {
    let destination: Destination = at
        .parse()
        .map_err(|why: DestinationError| complaints.add(at.at, format!("at {:?} {why}", shortened(at))))
        .ok()?;
    if let Origin::Stage { target, output } = &input.origin {
        let producer = groups.list[target.group].payload;
        let output = producer.outputs.get(*output)?;
        if !matches!(output.class, OutputClass::File | OutputClass::Folder) {
            let (payload, output) = (&producer.name.value, &output.name.value);
            let advice = format!("remove \"at\", or make output {output:?} of {payload:?} class file");
            complaints
                .add(at.at, format!("input {:?} is no file, so it can't be mounted; {advice}", input.name));
            return None;
        }
    }
    if input.is_numbered(&groups.list, group.width() as usize) {
        let advice = "remove \"at\", or let \"from\" name a single file, folder or output";
        let text =
            format!("input {:?} stands for several, which can't all be at one path; {advice}", input.name);
        complaints.add(at.at, text);
        return None;
    }
    Some((destination, at.at))
}

/// Mounts of one payload lie side by side: in one another, one would need a place in the other, which is read-only.
pub(super) fn apart(inputs: &[Resolved<'_>], complaints: &mut Complaints) {
    let mounts: Vec<_> = inputs.iter().filter_map(|input| input.mount.as_ref()).collect();
    for (index, (mount, at)) in mounts.iter().enumerate() {
        if let Some((other, _)) = mounts[..index].iter().find(|(other, _)| mount.meets(other)) {
            let text = if mount == other {
                format!("two inputs are at {:?}; choose another path for one", mount.as_str())
            } else {
                let (mount, other) = (mount.as_str(), other.as_str());
                format!("{mount:?} and {other:?} lie in one another; choose paths side by side")
            };
            complaints.add(*at, text);
        }
    }
}
