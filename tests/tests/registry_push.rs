//! Images into registries: what was pushed is pulled as the same image, what breaks is gone on with, and what is not
//! taken is one line.

use std::cell::RefCell;
use std::error::Error;
use std::time::Duration;

use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, LayoutWriter, WrittenImage};
use image_store::{
    Digest, Logins, Patience, PushError, PushOptions, PushProgress, Pushed, Reference, Registries,
    RegistryAccess, RegistryRules, Repository, Store, push,
};
use pilot_tests::registry::{Authority, Misbehaving, write_auth};

#[path = "registry_push/debian.rs"]
mod debian;
#[path = "registry_push/sources.rs"]
mod sources;
#[path = "registry_push/uploads.rs"]
mod uploads;

/// Short, so that small layers take several.
const PIECE: u64 = 64 << 10;

/// A folder with an image `t:1` of two layers, of which one is several pieces long.
struct Source {
    dir: tempfile::TempDir,
    layout: LayoutWriter,
    written: WrittenImage,
    layer: Digest,
    layer_bytes: u64,
}

impl Source {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut layout = LayoutWriter::create(&dir.path().join("layout")).expect("layout");
        let blob = layer(1, 200_000);
        let (layer, layer_bytes) = (blob.digest(), blob.bytes.len() as u64);
        let written =
            layout.add_image("1", &ImageSpec::default(), vec![blob, self::layer(2, 100)]).expect("image");
        Self { dir, layout, written, layer, layer_bytes }
    }

    fn reference(&self) -> Reference {
        format!("oci:{}:1", self.dir.path().join("layout").display()).parse().expect("reference")
    }

    fn push(&self, to: &str) -> Result<Pushed, PushError> {
        self.push_with(to, &access(Logins::None, Registries::default()))
    }

    /// Pushes and checks what is told meanwhile.
    fn push_with(&self, to: &str, access: &RegistryAccess) -> Result<Pushed, PushError> {
        let to: Repository = format!("{to}/team/fit").parse().expect("repository");
        let last = RefCell::new(PushProgress { bytes_done: 0, bytes_total: 0 });
        let pushed = push(&self.reference(), &to, access, &options(), &|progress| {
            let before = last.replace(progress);
            assert!(before.bytes_done <= progress.bytes_done && progress.bytes_done <= progress.bytes_total);
        })?;
        let last = last.into_inner();
        assert_eq!(last.bytes_done, last.bytes_total);
        assert_eq!(last.bytes_total, pushed.bytes_sent + pushed.bytes_there);
        assert_eq!(pushed.reference.to_string(), format!("docker://{to}@{}", self.written.manifest));
        Ok(pushed)
    }

    /// The line of a push that fails; nothing is named then.
    fn refused(&self, registry: &Misbehaving) -> (bool, String) {
        let error = self.push(&registry.host()).expect_err("taken");
        assert!(!registry.names(&self.written.manifest.to_string()), "it is named");
        (error.is_transient(), chain(&error))
    }

    fn store(&self) -> Store {
        Store::open(&self.dir.path().join("store")).expect("store")
    }
}

fn options() -> PushOptions {
    PushOptions { piece_bytes: PIECE, ..PushOptions::default() }
}

/// Impatient, so that no test waits.
fn access(logins: Logins, registries: Registries) -> RegistryAccess {
    let mut access = RegistryAccess::new(registries, logins);
    access.patience = Patience {
        tries: 3,
        tries_of_blob: 20,
        first_wait: Duration::from_millis(5),
        longest_wait: Duration::from_secs(2),
        ..Patience::default()
    };
    access.certificate_folders.clear();
    access
}

fn login(source: &Source, host: &str, password: &str, registries: Registries) -> RegistryAccess {
    let file = source.dir.path().join(format!("{password}.json"));
    write_auth(&file, host, "user", password);
    access(Logins::File(file), registries)
}

/// The registries file with an authority for a host.
fn trusting(host: &str, authority: Option<&Authority>) -> Registries {
    let rules =
        RegistryRules { ca: authority.map(|authority| authority.file("ca.pem")), ..RegistryRules::default() };
    Registries { registries: [(host.to_owned(), rules)].into() }
}

/// A layer whose blob is about as long as its content, which no compressor makes shorter.
fn layer(seed: u64, bytes: usize) -> LayerBlob {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let noise = (0..bytes).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    });
    let noise: Vec<u8> = noise.collect();
    LayerBuilder::new().file(format!("data/{seed}"), 0o644, noise).finish(Compression::Gzip).expect("layer")
}

fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    assert!(!text.contains('\n'), "{text}");
    text
}

/// Requests of one kind, as `METHOD path`.
fn asked(registry: &Misbehaving, method: &str, part: &str) -> usize {
    registry.seen().iter().filter(|seen| seen.method == method && seen.path.contains(part)).count()
}
