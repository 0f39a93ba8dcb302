//! A layout, a store and a local folder in one temporary folder.
use std::error::Error;
use std::path::{Path, PathBuf};

use image_store::layout::{ImageSpec, LayerBlob, LayoutWriter, WrittenImage};
use image_store::{ImageId, IngestError, Limits, Options, Reference, RegistryAccess, Store};

/// What a test works in.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) layout: LayoutWriter,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = LayoutWriter::create(&dir.path().join("layout")).unwrap();
        Self { dir, layout }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn add(&mut self, tag: &str, layers: Vec<LayerBlob>) -> WrittenImage {
        self.layout.add_image(tag, &ImageSpec::default(), layers).unwrap()
    }

    pub(crate) fn reference(&self, tag: &str) -> Reference {
        format!("oci:{}:{tag}", self.path("layout").display()).parse().unwrap()
    }

    /// A store that doesn't wait for the disk: power cuts aren't tested here, and a sync waits for
    /// everything else that the machine writes.
    pub(crate) fn store(&self) -> Store {
        let options = Options { lazy_sync: true, ..Options::default() };
        Store::open_with(&self.path("store"), options).unwrap()
    }

    pub(crate) fn store_with(&self, limits: Limits) -> Store {
        Store::open_with(&self.path("store"), Options { limits, ..Options::default() }).unwrap()
    }

    /// Stores an image of these layers.
    pub(crate) fn ingest(&mut self, layers: Vec<LayerBlob>) -> Result<(Store, ImageId), IngestError> {
        self.add("t", layers);
        let store = self.store();
        let image = store.ingest(&self.reference("t"), &RegistryAccess::anonymous(), &|_| {})?;
        Ok((store, image))
    }
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}

/// How many regular files are below a folder.
pub(crate) fn count_files(folder: &Path) -> usize {
    let mut count = 0;
    let mut open = vec![folder.to_path_buf()];
    while let Some(folder) = open.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                open.push(entry.path());
            } else {
                count += 1;
            }
        }
    }
    count
}

/// Says that a test could not be run here.
#[expect(clippy::print_stderr, reason = "a skipped test must be seen")]
pub(crate) fn skipped(test: &str, missing: &str) {
    eprintln!("SKIPPED: {test}: {missing}");
}
