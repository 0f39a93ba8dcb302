//! Packs the example programs into OCI images, offline.
//!
//! `pack --bin-dir FOLDER --out FOLDER` writes one OCI layout for each program: `FOLDER/simulate`, ... An image has its
//! static program and nothing else: no shell, no libraries, no /etc.
#![forbid(unsafe_code)]
#![expect(clippy::print_stdout, reason = "a program for the command line")]

use std::fs;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use image_store::layout::{Compression, ImageSpec, LayerBlob, LayerBuilder, LayoutWriter};
use pilot_examples::args::Args;

/// One image. They differ in all that a runtime must honour.
struct Image {
    program: &'static str,
    user: &'static str,
    workdir: &'static str,
    env: &'static [&'static str],
    cmd: &'static [&'static str],
    compression: Compression,
}

const IMAGES: [Image; 3] = [
    Image {
        program: "simulate",
        user: "1000:1000",
        workdir: "/",
        env: &["PATH=/", "GENERATOR=zmumu"],
        cmd: &["--events", "1000"],
        compression: Compression::Gzip,
    },
    Image {
        program: "reconstruct",
        user: "2000",
        workdir: "/work",
        env: &["PATH=/opt/reconstruct/bin"],
        cmd: &[],
        compression: Compression::Zstd,
    },
    Image {
        program: "fit",
        user: "",
        workdir: "/work",
        env: &["PATH=/opt/fit/bin", "LANG=C.UTF-8"],
        cmd: &[],
        compression: Compression::None,
    },
];

fn main() -> anyhow::Result<()> {
    let args = Args::parse(std::env::args().skip(1), &["bin-dir", "out"]).map_err(anyhow::Error::msg)?;
    let (programs, out) = (args.text("bin-dir", ""), args.text("out", ""));
    ensure!(!programs.is_empty() && !out.is_empty(), "usage: pack --bin-dir FOLDER --out FOLDER");
    for image in &IMAGES {
        let path = Path::new(&programs).join(image.program);
        let program = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
        ensure_static(&program).with_context(|| format!("pack {}", path.display()))?;
        let dir = Path::new(&out).join(image.program);
        pack(image, &program, &dir).with_context(|| format!("write image {}", dir.display()))?;
        println!("{}: {} bytes", dir.display(), program.len());
    }
    Ok(())
}

fn pack(image: &Image, program: &[u8], dir: &Path) -> anyhow::Result<()> {
    let words = |list: &[&str]| list.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
    // Where its own PATH finds it; the entry point names it in full.
    let folder = image.env.iter().find_map(|entry| entry.strip_prefix("PATH=/")).unwrap_or_default();
    let at = Path::new(folder).join(image.program);
    let mut layer = LayerBuilder::new();
    for parent in at.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
        layer = layer.dir(parent, 0o755);
    }
    let tar = layer.file(&at, 0o755, program).tar();
    let spec = ImageSpec {
        entrypoint: vec![format!("/{}", at.display())],
        cmd: words(image.cmd),
        env: words(image.env),
        workdir: image.workdir.to_owned(),
        user: image.user.to_owned(),
        ..ImageSpec::default()
    };
    let layers = vec![LayerBlob::from_tar(&tar, image.compression)?];
    LayoutWriter::create(dir)?.add_image("latest", &spec, layers)?;
    Ok(())
}

/// Refuses a program that asks for a loader (a program header of type PT_INTERP): its image has none. elf(5)
fn ensure_static(program: &[u8]) -> anyhow::Result<()> {
    const PT_INTERP: u32 = 3;
    let number = |at: usize, bytes: usize| -> Option<usize> {
        let raw = program.get(at..at.checked_add(bytes)?)?;
        raw.iter().rev().try_fold(0_usize, |value, byte| Some(value.checked_mul(256)? + usize::from(*byte)))
    };
    // Class 2: 64 bits; data 1: little endian.
    ensure!(program.starts_with(b"\x7fELF\x02\x01"), "it is not a 64-bit little-endian ELF program");
    let headers = (number(32, 8), number(54, 2), number(56, 2));
    let (Some(start), Some(size), Some(count)) = headers else { bail!("its ELF header is cut short") };
    for index in 0..count {
        let at = start.checked_add(index * size).context("its program headers lie outside of it")?;
        let kind = number(at, 4).context("its program headers lie outside of it")?;
        ensure!(
            kind != PT_INTERP as usize,
            "it is not static; build it with RUSTFLAGS=\"-C target-feature=+crt-static\" and --target"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_static_program_is_refused() {
        assert!(ensure_static(b"#!/bin/sh\n").is_err());
        assert!(ensure_static(b"\x7fELF\x02\x01").is_err());
        let own = fs::read(std::env::current_exe().expect("own path")).expect("own bytes");
        if let Err(error) = ensure_static(&own) {
            assert!(error.to_string().contains("crt-static"), "{error}");
        }
        for end in (0..own.len().min(1024)).step_by(7) {
            let _no_panic = ensure_static(&own[..end]);
        }
    }

    #[test]
    fn each_program_becomes_an_image_of_its_own() {
        let folder = tempfile::tempdir().expect("folder");
        for image in &IMAGES {
            pack(image, b"program", &folder.path().join(image.program)).expect("pack");
        }
        for image in &IMAGES {
            let dir = folder.path().join(image.program);
            assert!(dir.join("oci-layout").is_file() && dir.join("index.json").is_file());
            // Layer, configuration, manifest.
            assert_eq!(fs::read_dir(dir.join("blobs/sha256")).expect("list").count(), 3);
        }
    }
}
