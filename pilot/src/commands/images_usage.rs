//! `pilot images df` and `pilot images verify`: what the store's bytes are for, and whether they are whole.

use std::fmt::Write as _;

use image_store::{Checked, Store, Usage};
use pilot_core::RunExit;

use crate::cli::{OutputFormat, complain, refuse, say};
use crate::ui::bytes;

/// Says what the bytes are for.
pub(super) fn df(store: &Store, output: OutputFormat) -> RunExit {
    match store.usage() {
        Ok(usage) if output == OutputFormat::Json => say(&format!("{}\n", usage_json(&usage))),
        Ok(usage) => say(&usage_text(&usage)),
        Err(error) => return refuse(&error),
    }
    RunExit::Success
}

/// Hashes everything again.
pub(super) fn verify(store: &Store, output: OutputFormat) -> RunExit {
    let checked = match store.verify_all() {
        Ok(checked) => checked,
        Err(error) => return refuse(&error),
    };
    if output == OutputFormat::Json {
        say(&format!("{}\n", checked_json(&checked)));
    } else {
        for damage in &checked.damages {
            let images: Vec<String> = damage.images.iter().map(ToString::to_string).collect();
            let needed = if images.is_empty() {
                "no image needs it; `pilot images rm` takes it away".to_owned()
            } else {
                format!("remove and pull again: {}", images.join(", "))
            };
            say(&format!("damaged: {}: {}; {needed}\n", damage.what, damage.reason));
        }
        say(&format!("{} in {} objects checked\n", bytes(checked.bytes), checked.objects));
    }
    if checked.damages.is_empty() {
        return RunExit::Success;
    }
    complain(&format!("{} of the store's objects are damaged", checked.damages.len()));
    RunExit::PayloadFailed
}

fn usage_json(usage: &Usage) -> serde_json::Value {
    let images = usage.images.iter().map(|image| {
        serde_json::json!({
            "image": image.image.to_string(),
            "references": image.references,
            "shared_bytes": image.shared_bytes,
            "unique_bytes": image.unique_bytes,
        })
    });
    serde_json::json!({
        "objects": usage.objects,
        "object_bytes": usage.object_bytes,
        "tree_bytes": usage.tree_bytes,
        "part_bytes": usage.part_bytes,
        "record_bytes": usage.record_bytes,
        "unused_bytes": usage.unused_bytes,
        "images": images.collect::<Vec<_>>(),
    })
}

fn usage_text(usage: &Usage) -> String {
    let mut text = String::new();
    let rows = [
        ("files", usage.object_bytes),
        ("trees", usage.tree_bytes),
        ("broken-off pulls", usage.part_bytes),
        ("records", usage.record_bytes),
        ("files of no image", usage.unused_bytes),
    ];
    // Writing to a String can't fail.
    for (what, size) in rows {
        let _ = writeln!(text, "{what:<20} {:>10}", bytes(size));
    }
    if !usage.images.is_empty() {
        let _ = writeln!(text, "\n{:<20} {:>10} {:>10}  REFERENCES", "IMAGE", "RM FREES", "SHARED");
    }
    for image in &usage.images {
        let id: String = image.image.to_string().chars().take(19).collect();
        let references =
            if image.references.is_empty() { "-".to_owned() } else { image.references.join(", ") };
        let (unique, shared) = (bytes(image.unique_bytes), bytes(image.shared_bytes));
        let _ = writeln!(text, "{id:<20} {unique:>10} {shared:>10}  {references}");
    }
    text
}

fn checked_json(checked: &Checked) -> serde_json::Value {
    let damages = checked.damages.iter().map(|damage| {
        serde_json::json!({
            "what": damage.what,
            "reason": damage.reason,
            "images": damage.images.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })
    });
    serde_json::json!({
        "objects": checked.objects,
        "bytes": checked.bytes,
        "damages": damages.collect::<Vec<_>>(),
    })
}
