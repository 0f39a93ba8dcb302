//! A temporary folder with the root file system that all competitors start from, and a pilot's runtime on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use image_store::layout::{Compression, ImageSpec, LayerBuilder, LayoutWriter};
use pilot::config::{Config, Settings};
use pilot::payload::{Output, Payload, Resources, StageClass};
use pilot::ports::Grant;
use pilot::runtime::local::{LocalRuntime, Name};
use pilot_core::{ClaimId, Epoch};
use stage::StageName;

/// Mount points that the peers expect in the image.
const FOLDERS: [&str; 8] = ["proc", "dev", "sys", "tmp", "etc", "run", "work", "var"];

/// The folder; dropping it removes it.
#[derive(Debug)]
pub struct Ground {
    /// The plain root file system.
    pub root: PathBuf,
    /// The same as an image.
    pub image: String,
    dist: PathBuf,
    programs: PathBuf,
    shim: PathBuf,
    // In memory where possible, as the pilot's default.
    state: tempfile::TempDir,
    home: tempfile::TempDir,
}

impl Ground {
    /// Makes the folder, a tree with the programs `first` and `least`, and an image of it. `dist` holds `pilot` and
    /// `payload-shim`, `programs` what is made from the C files here.
    ///
    /// # Errors
    /// When something can't be written.
    pub fn new(dist: &Path, programs: &Path) -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("lb-").tempdir()?;
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755))?;
        let memory = Path::new("/dev/shm");
        let memory = if memory.is_dir() { memory } else { home.path() };
        let state = tempfile::Builder::new().prefix("latebind-bench-").tempdir_in(memory)?;
        let root = home.path().join("root");
        fs::create_dir(&root)?;
        let mut layer = LayerBuilder::new();
        for name in ["first", "least"] {
            let program = programs.join(name);
            let bytes = fs::read(&program).with_context(|| format!("read {}", program.display()))?;
            layer = layer.file(name, 0o755, &bytes);
            fs::write(root.join(name), &bytes)?;
            fs::set_permissions(root.join(name), fs::Permissions::from_mode(0o755))?;
        }
        for folder in FOLDERS {
            fs::create_dir(root.join(folder))?;
            layer = layer.dir(folder, 0o755);
        }
        fs::create_dir(home.path().join("work"))?;
        let layout = home.path().join("image");
        let spec = ImageSpec { entrypoint: vec!["/first".into()], ..ImageSpec::default() };
        LayoutWriter::create(&layout)?.add_image("latest", &spec, vec![layer.finish(Compression::Gzip)?])?;
        let image = format!("oci:{}", layout.display());
        let (shim, dist, programs) = (dist.join("payload-shim"), dist.to_path_buf(), programs.to_path_buf());
        Ok(Self { root, image, dist, programs, shim, state, home })
    }

    /// A path in the folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    /// A folder in memory where there is one.
    #[must_use]
    pub fn memory(&self) -> &Path {
        self.state.path()
    }

    /// The pilot's program file.
    #[must_use]
    pub fn pilot(&self) -> PathBuf {
        self.dist.join("pilot")
    }

    /// The CSI driver's program file.
    #[must_use]
    pub fn csi_driver(&self) -> PathBuf {
        self.dist.join("csi-driver")
    }

    /// A program made from a C file here.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// The shim's program file.
    #[must_use]
    pub fn shim(&self) -> &Path {
        &self.shim
    }

    /// Where payloads' output lands.
    #[must_use]
    pub fn logs(&self) -> PathBuf {
        self.path("logs")
    }

    /// A pilot's runtime with one slot.
    ///
    /// # Errors
    /// When this machine can't run one.
    pub fn runtime(&self) -> anyhow::Result<LocalRuntime> {
        fs::create_dir_all(self.logs())?;
        let settings = Settings {
            store: Some(self.path("store")),
            state_dir: Some(self.state.path().join("state")),
            scratch_dir: Some(self.path("scratch")),
            shim: Some(self.shim.clone()),
            slots: Some(1),
            reuse: Some(false),
            ..Settings::default()
        };
        let config = Config::new(settings, &pilot::surroundings::read())?;
        Ok(LocalRuntime::new(&config, Name::Any)?)
    }

    /// A payload of `image` with one output, as most have.
    ///
    /// # Errors
    /// Never in practice: the names are fixed.
    pub fn payload(&self, image: &str) -> anyhow::Result<Payload> {
        let output = Output {
            name: StageName::new("result")?,
            class: StageClass::File,
            max_bytes: 1 << 20,
            save: None,
            readers: BTreeSet::new(),
        };
        Ok(Payload {
            workflow: StageName::new("bench")?,
            name: StageName::new("first")?,
            family: StageName::new("first")?,
            image: image.to_owned(),
            command: None,
            args: None,
            env: BTreeMap::new(),
            cwd: None,
            user: None,
            needs_image_user: false,
            resources: Resources { cpu_millis: 1000, memory_bytes: 256 << 20, disk_bytes: 1 << 30 },
            walltime_ms: None,
            grace_ms: 1000,
            inputs: Vec::new(),
            outputs: vec![output],
            writable_root: false,
            host_network: true,
            logs: self.logs(),
            registry_auth: None,
            gang: Vec::new(),
        })
    }
}

/// The right to launch.
#[must_use]
pub fn grant() -> Grant {
    Grant { epoch: Epoch(1), claim: ClaimId(1), key: String::new() }
}
