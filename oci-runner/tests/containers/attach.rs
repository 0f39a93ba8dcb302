//! Every way to attach an image, read-only and writable, also where the payload's id can't go by path.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;

use oci_runner::{Attach, Container, Root, Rootfs, probe_attach};

use crate::harness::{Slot, busybox, is_root, quiet, run, test_name};

fn works(slot: &Slot, attach: Attach) -> bool {
    let trials = probe_attach(slot.home.path(), slot.home.path(), slot.ids);
    let works = trials.iter().any(|trial| trial.attach == attach && trial.outcome.is_ok());
    if !works {
        eprintln!("SKIPPED: {}: a kernel and a temporary folder for {attach:?}", test_name());
    }
    works
}

fn writable(slot: &Slot) -> Rootfs {
    Rootfs::Writable { upper: slot.owned("upper"), work: slot.owned("overlay-work") }
}

/// The tree with all file contents elsewhere, as image-store lays it out.
fn data_only(slot: &Slot) -> Root {
    let (tree, objects) = (slot.path("meta"), slot.path("objects"));
    for folder in ["bin", "proc", "dev", "sys", "tmp", "work", "etc"] {
        fs::create_dir_all(tree.join(folder)).expect("a folder");
    }
    fs::create_dir_all(objects.join("ab")).expect("a folder");
    let object = objects.join("ab/busybox");
    fs::copy(busybox().expect("checked by quiet"), &object).expect("a copy");
    // The object's own mode does not matter to those who run it; here it is not even executable.
    fs::set_permissions(&object, fs::Permissions::from_mode(0o444)).expect("a mode");
    let file = fs::File::create(tree.join("bin/busybox")).expect("a file");
    file.set_len(fs::metadata(&object).expect("its size").len()).expect("a size");
    fs::set_permissions(tree.join("bin/busybox"), fs::Permissions::from_mode(0o755)).expect("a mode");
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&file, "user.overlay.metacopy", b"", flags).expect("an attribute");
    rustix::fs::fsetxattr(&file, "user.overlay.redirect", b"/ab/busybox", flags).expect("an attribute");
    symlink("busybox", tree.join("bin/echo")).expect("a link");
    Root::DataOnly { lowers: vec![tree], objects }
}

fn layers(slot: &Slot, count: usize) -> Root {
    let mut lowers: Vec<PathBuf> = (1..count)
        .map(|layer| {
            let path = slot.path(&format!("layer-{layer}"));
            fs::create_dir(&path).expect("a folder");
            fs::write(path.join(format!("from-{layer}")), layer.to_string()).expect("a file");
            path
        })
        .collect();
    lowers.push(slot.path("tree"));
    Root::Overlay { lowers }
}

#[test]
fn the_ladder_of_a_kernel_without_data_only_layers_begins_at_overlay() {
    quiet(|| {
        let release = rustix::system::uname();
        let release = release.release().to_string_lossy();
        let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
        let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if version >= (6, 5) {
            eprintln!("SKIPPED: {}: a kernel before 6.5 ({release} here)", test_name());
            return;
        }
        let slot = Slot::new();
        let trials = probe_attach(slot.home.path(), slot.home.path(), slot.ids);
        let works: Vec<_> = trials.iter().map(|trial| (trial.attach, trial.outcome.is_ok())).collect();
        assert_eq!(works, [(Attach::DataOnly, false), (Attach::Overlay, true), (Attach::Copy, true)]);
    });
}

#[test]
fn a_data_only_root_runs_programs_and_keeps_what_is_written_apart() {
    quiet(|| {
        let slot = Slot::new();
        if !works(&slot, Attach::DataOnly) {
            return;
        }
        let root = data_only(&slot);
        let script = "/bin/echo from-object; echo x > /etc/x || echo refused";
        let output = run(Container { root: root.clone(), ..slot.container(script) });
        assert!(
            output.text.starts_with("from-object\n") && output.text.ends_with("refused\n"),
            "{}",
            output.text
        );
        let script = "echo x > /etc/x && echo y >> /bin/busybox && echo changed";
        let output = run(Container { root, rootfs: writable(&slot), ..slot.container(script) });
        assert_eq!(output.text, "changed\n", "{output:?}");
        assert!(slot.path("upper/etc/x").exists() && !slot.path("meta/etc/x").exists());
        let original = fs::read(busybox().expect("checked by quiet")).expect("a program");
        assert!(
            fs::read(slot.path("objects/ab/busybox")).expect("an object") == original,
            "an object has changed"
        );
    });
}

#[test]
fn layers_are_merged_and_what_is_written_is_kept_apart() {
    quiet(|| {
        let slot = Slot::new();
        if !works(&slot, Attach::Overlay) {
            return;
        }
        let root = layers(&slot, 3);
        let output = run(Container {
            root: root.clone(),
            ..slot.container("cat /from-1 /from-2; echo x > /etc/x || echo refused")
        });
        assert!(output.text.starts_with("12") && output.text.ends_with("refused\n"), "{}", output.text);
        let rootfs = writable(&slot);
        let output = run(Container { root, rootfs, ..slot.container("echo x > /etc/x && cat /etc/x") });
        assert_eq!(output.text, "x\n", "{output:?}");
        assert!(slot.path("upper/etc/x").exists() && !slot.path("tree/etc/x").exists());
        for name in ["upper", "overlay-work"] {
            oci_runner::remove_tree(&slot.path(name)).expect("nothing stays behind");
            assert!(!slot.path(name).exists());
        }
    });
}

#[test]
fn an_image_may_have_many_layers() {
    quiet(|| {
        let slot = Slot::new();
        if !works(&slot, Attach::Overlay) {
            return;
        }
        let root = layers(&slot, 127);
        let output = run(Container { root: root.clone(), ..slot.container("cat /from-1 /from-126") });
        assert_eq!(output.text, "1126");
        let rootfs = writable(&slot);
        let script = "cat /from-1 /from-126; echo x > /etc/x && cat /etc/x; mkdir /y";
        let output = run(Container { root, rootfs, ..slot.container(script) });
        assert_eq!(output.text, "1126x\n", "{output:?}");
        assert!(slot.path("upper/etc/x").exists() && slot.path("upper/y").exists());
        oci_runner::remove_tree(&slot.path("overlay-work")).expect("nothing stays behind");
    });
}

#[test]
fn a_copy_is_writable_only_where_it_belongs_to_one_container() {
    quiet(|| {
        let slot = Slot::new();
        let upper = slot.make_tree("upper");
        slot.owned("upper");
        let rootfs = Rootfs::Writable { upper: upper.clone(), work: slot.owned("overlay-work") };
        let output = run(Container { rootfs, ..slot.container("echo x > /x && cat /x") });
        assert_eq!(output.text, "x\n", "{output:?}");
        assert!(upper.join("x").exists() && !slot.path("tree/x").exists());
    });
}

#[test]
fn folders_that_the_payloads_id_can_not_reach_by_path_are_reached_by_descriptor() {
    quiet(|| {
        let slot = Slot::new();
        if !is_root() {
            eprintln!("SKIPPED: {}: root", test_name());
            return;
        }
        let mut roots = vec![Root::Copy { tree: slot.path("tree") }];
        if works(&slot, Attach::DataOnly) {
            roots.push(data_only(&slot));
        }
        let overlay = works(&slot, Attach::Overlay);
        if overlay {
            roots.push(layers(&slot, 2));
        }
        fs::set_permissions(slot.home.path(), fs::Permissions::from_mode(0o700)).expect("a closed folder");
        // Of an ordinary user's home, whose bits don't even let an unmapped root in.
        std::os::unix::fs::chown(slot.home.path(), Some(4242), Some(4242)).expect("a new owner");
        let work = slot.owned("work");
        for root in roots {
            let binds = vec![crate::harness::bind(&work, "/work", false)];
            let output = run(Container {
                root: root.clone(),
                binds,
                ..slot.container("/bin/echo hi > /work/f && echo done")
            });
            assert_eq!(output.text, "done\n", "{root:?}");
            if overlay && !matches!(root, Root::Copy { .. }) {
                let rootfs = writable(&slot);
                let output = run(Container {
                    root: root.clone(),
                    rootfs,
                    ..slot.container("echo x > /etc/x && echo done")
                });
                assert_eq!(output.text, "done\n", "{root:?}");
                fs::remove_dir_all(slot.path("upper")).expect("removal");
                fs::remove_dir_all(slot.path("overlay-work")).expect("removal");
            }
        }
    });
}
