//! `pilot images`: what the store holds, putting things into it, and taking them out of it.

use std::fmt::Write as _;

use image_store::{Store, StoreError, StoredImage};
use pilot_core::RunExit;

use super::{images_pull, images_usage};
use crate::cli::{ImagesCommand, OutputFormat, complain, refuse, say};
use crate::config::{Settings, Surroundings, store_folder};
use crate::fault::chain;
use crate::ui::bytes;

/// Runs one of the commands.
pub fn images(
    settings: Settings,
    around: &Surroundings,
    command: &ImagesCommand,
    output: OutputFormat,
) -> RunExit {
    let access = crate::registries::registry_access(settings.registries, settings.registry_auth, around);
    let store = match store_folder(settings.store, around) {
        Ok(folder) => Store::open(&folder),
        Err(error) => return refuse(&error),
    };
    let store = match store {
        Ok(store) => store,
        Err(error) => return refuse(&error),
    };
    match command {
        ImagesCommand::Pull { references } => match access {
            Ok(access) => images_pull::pull(&store, &access, references, output, around.no_color),
            Err(error) => refuse(&error),
        },
        ImagesCommand::Ls => ls(&store, output),
        ImagesCommand::Rm { images } => rm(&store, images, output),
        ImagesCommand::Df => images_usage::df(&store, output),
        ImagesCommand::Verify => images_usage::verify(&store, output),
    }
}

fn ls(store: &Store, output: OutputFormat) -> RunExit {
    let images = match store.list() {
        Ok(images) => images,
        Err(error) => return refuse(&error),
    };
    if output == OutputFormat::Json {
        images.iter().for_each(|image| say(&format!("{}\n", json(image))));
        return RunExit::Success;
    }
    if images.is_empty() {
        say(
            "no images are stored; `pilot images pull` stores some, `pilot run` those that a workflow names\n",
        );
        return RunExit::Success;
    }
    let mut text = format!("{:<20} {:>10} {:>8}  REFERENCES\n", "IMAGE", "SIZE", "FILES");
    for image in &images {
        let id: String = image.image.to_string().chars().take(19).collect();
        let size = bytes(image.unpacked_bytes);
        let references =
            if image.references.is_empty() { "-".to_owned() } else { image.references.join(", ") };
        // Writing to a String can't fail.
        let _ = writeln!(text, "{id:<20} {size:>10} {:>8}  {references}", image.entries);
    }
    say(&text);
    RunExit::Success
}

fn json(image: &StoredImage) -> serde_json::Value {
    serde_json::json!({
        "image": image.image.to_string(),
        "references": image.references,
        "unpacked_bytes": image.unpacked_bytes,
        "entries": image.entries,
        "layers": image.layers.iter().map(|layer| layer.digest.to_string()).collect::<Vec<_>>(),
    })
}

fn rm(store: &Store, images: &[String], output: OutputFormat) -> RunExit {
    let mut exit = RunExit::Success;
    for text in images {
        match store.resolve(text).and_then(|image| store.remove(&image).map(|()| image)) {
            Ok(image) if output == OutputFormat::Json => {
                say(&format!("{}\n", serde_json::json!({"removed": image.to_string()})));
            }
            Ok(image) => say(&format!("removed {image}\n")),
            Err(error) => {
                complain(&chain(&error));
                exit = RunExit::BadInput;
            }
        }
    }
    match store.collect() {
        Ok(freed) if output != OutputFormat::Json => {
            say(&format!("freed {} in {} objects\n", bytes(freed.bytes), freed.objects));
        }
        Ok(_) => {}
        // What is being ingested keeps it; the next `rm` collects.
        Err(StoreError::Busy) => {
            complain("an image is being read just now; what is not needed goes with the next rm")
        }
        Err(error) => {
            complain(&chain(&error));
            exit = RunExit::OwnFault;
        }
    }
    exit
}
