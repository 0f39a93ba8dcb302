//! A large image from a registry on the loopback: until it is stored, and until its first payload runs, beside
//! `skopeo copy` followed by `umoci unpack`.
//!
//! The registry is Debian's `docker-registry` on the same file system; its blobs are in the page cache for everyone.
//! Everyone begins with nothing, and nothing is deleted between turns (see `unpack`).

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};
use rustix::fs::{Mode, OFlags};
use serde_json::Value;

use crate::clock::{now_ns, span_ms};
use crate::ground::Ground;
use crate::peers::{command, find, run, stamp, version};
use crate::results::Section;
use crate::site::Site;

const TAGS: [&str; 2] = ["one", "four"];
/// A registry starts within a tenth of a second.
const START_WAIT_MS: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Who {
    Latebind,
    SkopeoUmoci,
}

/// Measures `rounds` rounds with the images of [`crate::tree::write_layout`].
///
/// # Errors
/// When our own part fails.
pub fn measure(ground: &Ground, layout: &Path, rounds: u32) -> anyhow::Result<Value> {
    let mut section = Section::begin("pull");
    let (Some(program), Some(_)) = (find("docker-registry"), version("skopeo")) else {
        section.skip("all", "docker-registry or skopeo is not installed");
        return Ok(section.end());
    };
    let registry = Registry::start(ground, &program)?;
    for tag in TAGS {
        let from = format!("oci:{}:{tag}", layout.display());
        let to = format!("docker://{}:{tag}", registry.repository());
        run(
            "skopeo",
            &["--insecure-policy", "copy", "--dest-tls-verify=false", &from, &to],
            &ground.path(""),
        )
        .context("push the image")?;
    }
    let mut competitors = vec![Who::Latebind, Who::SkopeoUmoci];
    if version("umoci").is_none() {
        section.skip("skopeo + umoci", "umoci is not installed");
        competitors.pop();
    }
    for round in 0..rounds as usize {
        for turn in 0..competitors.len() {
            let who = competitors[(round + turn) % competitors.len()];
            for tag in TAGS {
                let name = format!("pull-{round}-{turn}-{tag}");
                let image = format!("docker://{}:{tag}", registry.repository());
                match who {
                    Who::Latebind => ours(ground, &name, &image, tag, &mut section).context("latebind")?,
                    Who::SkopeoUmoci => theirs(ground, &name, &image, tag, &mut section)?,
                }
            }
        }
    }
    Ok(section.end())
}

fn ours(ground: &Ground, name: &str, image: &str, tag: &str, section: &mut Section) -> anyhow::Result<()> {
    let site = Site::new(ground, name)?;
    rustix::fs::sync();
    let began = now_ns();
    site.seconds(&["images", "pull", image])?;
    section.add("latebind", &format!("{tag}, returned [s]"), span_ms(began, now_ns()) / 1e3);
    flush(&site.path(""))?;
    section.add("latebind", &format!("{tag}, on disk [s]"), span_ms(began, now_ns()) / 1e3);
    // Once more from nothing, as a user does who just runs it.
    let site = Site::new(ground, &format!("{name}-run"))?;
    let file = site.workflow(image, "/first", 1)?;
    let out = site.path("out").display().to_string();
    rustix::fs::sync();
    let began = now_ns();
    site.seconds(&["run", &file, "--out", &out])?;
    let first = stamp(&fs::read(site.path("out/logs/p-0.stdout"))?)?;
    section.add("latebind", &format!("{tag}, first payload [s]"), span_ms(began, first) / 1e3);
    Ok(())
}

fn theirs(ground: &Ground, name: &str, image: &str, tag: &str, section: &mut Section) -> anyhow::Result<()> {
    const WHO: &str = "skopeo + umoci";
    let folder = ground.path(name);
    fs::create_dir_all(&folder)?;
    rustix::fs::sync();
    let began = now_ns();
    run(
        "skopeo",
        &["--insecure-policy", "copy", "--src-tls-verify=false", image, "oci:layout:latest"],
        &folder,
    )?;
    let mut unpack = vec!["unpack", "--image", "layout:latest", "bundle"];
    if !rustix::process::geteuid().is_root() {
        unpack.insert(1, "--rootless");
    }
    run("umoci", &unpack, &folder)?;
    section.add(WHO, &format!("{tag}, returned [s]"), span_ms(began, now_ns()) / 1e3);
    // No container at all: whoever starts one on this tree needs longer.
    let program = folder.join("bundle/rootfs/first");
    let output = command(&program).stdin(Stdio::null()).output().context("start the first payload")?;
    section.add(WHO, &format!("{tag}, first payload [s]"), span_ms(began, stamp(&output.stdout)?) / 1e3);
    flush(&folder)?;
    section.add(WHO, &format!("{tag}, on disk [s]"), span_ms(began, now_ns()) / 1e3);
    Ok(())
}

fn flush(folder: &Path) -> anyhow::Result<()> {
    let open = rustix::fs::open(folder, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(rustix::fs::syncfs(&open)?)
}

/// A registry on the loopback; ended when dropped.
#[derive(Debug)]
struct Registry {
    child: Child,
    port: u16,
}

impl Registry {
    fn start(ground: &Ground, program: &str) -> anyhow::Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let config: PathBuf = ground.path("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nstorage:\n  \
             filesystem: {{rootdirectory: {}}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            ground.path("registry").display()
        );
        fs::write(&config, text)?;
        let mut command = command(program);
        command.arg("serve").arg(&config).env("OTEL_TRACES_EXPORTER", "none");
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let registry = Self { child: child.context("start docker-registry")?, port };
        let asked = now_ns();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if span_ms(asked, now_ns()) > START_WAIT_MS as f64 {
                bail!("docker-registry did not start");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(registry)
    }

    fn repository(&self) -> String {
        format!("127.0.0.1:{}/large", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
