//! Images of this machine, pushed to a registry that a cluster can see.
//!
//! **Must not know:** pods, workflows.

use std::collections::{BTreeMap, BTreeSet};

use image_store::{PushOptions, Reference, RegistryAccess, Repository};
use pilot_core::RunExit;

use crate::config::Config;
use crate::fault::chain;
use crate::ui::bytes;

/// Pushes each image once; gives the reference of each in the registry.
pub(super) async fn push_all(
    images: Vec<String>,
    to: &str,
    config: &Config,
    mut told: impl FnMut(String),
) -> Result<BTreeMap<String, String>, (String, RunExit)> {
    let mut pushed = BTreeMap::new();
    for image in images.into_iter().collect::<BTreeSet<_>>() {
        let (from, to) = (image.clone(), below(to, &image));
        let access = config.registry_access.clone();
        let pushing = tokio::task::spawn_blocking(move || push(&from, &to, &access));
        let panicked = |_| ("pushing an image panicked".to_owned(), RunExit::OwnFault);
        let (reference, sent) = pushing.await.map_err(panicked)?.map_err(|line| (line, RunExit::BadInput))?;
        told(format!("image {image}: {reference} ({} sent)", bytes(sent)));
        pushed.insert(image, reference);
    }
    Ok(pushed)
}

fn push(image: &str, to: &str, access: &RegistryAccess) -> Result<(String, u64), String> {
    let from: Reference = image.parse().map_err(|error| chain(&error))?;
    let to: Repository = to.parse().map_err(|error| format!("--push: {}", chain(&error)))?;
    let done = image_store::push(&from, &to, access, &PushOptions::default(), &|_| {});
    let done = done.map_err(|error| format!("push image {image}: {}", chain(&error)))?;
    Ok((done.reference.to_string(), done.bytes_sent))
}

/// The repository for an image: named after its file or folder, in letters that a repository may have.
fn below(to: &str, image: &str) -> String {
    let path = image.split_once(':').map_or(image, |(_, path)| path);
    let last = path.trim_end_matches('/').rsplit('/').next().unwrap_or_default();
    let last = last.split(':').next().unwrap_or_default();
    let mut name = String::new();
    for letter in last.chars().map(|letter| letter.to_ascii_lowercase()) {
        match letter {
            'a'..='z' | '0'..='9' => name.push(letter),
            // Single ones, and only between others.
            _ if name.ends_with('-') || name.is_empty() => {}
            _ => name.push('-'),
        }
    }
    let name = name.trim_end_matches('-');
    format!("{}/{}", to.trim_end_matches('/'), if name.is_empty() { "image" } else { name })
}

#[cfg(test)]
mod tests {
    use super::below;

    #[test]
    fn an_image_is_named_after_its_folder() {
        let named = |image| below("registry.example:5000/team/", image);
        assert_eq!(named("oci:/home/me/images/Fit_2.0"), "registry.example:5000/team/fit-2-0");
        assert_eq!(named("oci:images/fit:latest"), "registry.example:5000/team/fit");
        assert_eq!(named("oci-archive:/x/fit.tar"), "registry.example:5000/team/fit-tar");
        assert_eq!(named("/x/__/"), "registry.example:5000/team/image");
    }
}
