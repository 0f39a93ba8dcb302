use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::digest::Digest;

fn entry(path: &str, kind: EntryKind) -> LayerEntry {
    let mtime = Mtime::default();
    LayerEntry { path: path.as_bytes().into(), kind, mode: 0o755, mtime, xattrs: Vec::new() }
}

fn file(path: &str, id: u64) -> LayerEntry {
    entry(path, EntryKind::File(Content { size: id, digest: Digest::of(b"x") }))
}

fn link(path: &str, target: &str) -> LayerEntry {
    entry(path, EntryKind::Symlink(target.as_bytes().into()))
}

fn hard(path: &str, target: &str) -> LayerEntry {
    entry(path, EntryKind::HardLink(target.as_bytes().into()))
}

fn dir(path: &str) -> LayerEntry {
    entry(path, EntryKind::Directory)
}

/// All names with what they are: `dir`, `file N`, `-> target`.
fn names(tree: &Tree) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![(ROOT, String::new())];
    while let Some((id, path)) = open.pop() {
        for (name, child) in tree.children(id) {
            let path = format!("{path}/{}", String::from_utf8_lossy(name));
            let text = match &tree.node(child).kind {
                NodeKind::Directory(_) => "dir".to_owned(),
                NodeKind::File(content) => format!("file {}", content.size),
                NodeKind::Symlink(target) => format!("-> {}", String::from_utf8_lossy(target)),
                NodeKind::Skipped => "skipped".to_owned(),
            };
            all.insert(path.clone(), text);
            open.push((child, path));
        }
    }
    all
}

fn merged(layers: Vec<Vec<LayerEntry>>) -> Result<Tree, EntryError> {
    let mut tree = Tree::new();
    for (number, layer) in (0..).zip(layers) {
        for entry in layer {
            tree.apply(number, entry, &Limits::default())?;
        }
    }
    Ok(tree)
}

#[track_caller]
fn check(layers: Vec<Vec<LayerEntry>>, expected: &[(&str, &str)]) {
    let tree = merged(layers).unwrap();
    let expected = expected.iter().map(|(path, what)| ((*path).to_owned(), (*what).to_owned())).collect();
    assert_eq!(names(&tree), expected);
    let again = crate::tree_format::decode(&crate::tree_format::encode(&tree).unwrap()).unwrap();
    let kept = |(_, what): &(&String, &String)| *what != "skipped";
    assert!(names(&again).iter().eq(names(&tree).iter().filter(kept)), "the stored form has the same names");
}

#[test]
fn a_file_below_a_linked_directory_lands_behind_the_link() {
    check(
        vec![vec![dir("usr/lib"), link("lib", "usr/lib")], vec![file("lib/x", 1), file("./lib//y/.", 2)]],
        &[
            ("/lib", "-> usr/lib"),
            ("/usr", "dir"),
            ("/usr/lib", "dir"),
            ("/usr/lib/x", "file 1"),
            ("/usr/lib/y", "file 2"),
        ],
    );
}

#[test]
fn links_out_of_the_image_end_at_its_root() {
    check(
        vec![vec![link("a", "../../../b"), link("c", "/b"), file("a/x", 1), file("c/y", 2)]],
        &[("/a", "-> ../../../b"), ("/b", "dir"), ("/b/x", "file 1"), ("/b/y", "file 2"), ("/c", "-> /b")],
    );
}

#[test]
fn a_directory_over_a_link_replaces_it_and_its_whiteouts_stay_there() {
    check(
        vec![
            vec![dir("usr/lib"), link("lib", "usr/lib"), file("usr/lib/x", 1)],
            vec![dir("lib"), file("lib/.wh..wh..opq", 0), file("lib/z", 2)],
        ],
        &[
            ("/lib", "dir"),
            ("/lib/z", "file 2"),
            ("/usr", "dir"),
            ("/usr/lib", "dir"),
            ("/usr/lib/x", "file 1"),
        ],
    );
}

#[test]
fn a_whiteout_spares_its_own_layer_whatever_the_order() {
    let below = || vec![dir("d"), file("d/old", 1), file("e", 1)];
    let after = [("/d", "dir"), ("/d/new", "file 2"), ("/e", "file 3")];
    check(vec![below(), vec![file("d/new", 2), file(".wh.d", 0), file("e", 3), file(".wh.e", 0)]], &after);
    check(vec![below(), vec![file(".wh.d", 0), file(".wh.e", 0), file("d/new", 2), file("e", 3)]], &after);
    check(vec![below(), vec![file("d/new", 2), file("d/.wh..wh..opq", 0), file("e", 3)]], &after);
}

#[test]
fn a_directory_hidden_and_replaced_by_a_file_is_a_file() {
    check(vec![vec![file("d/x", 1)], vec![file(".wh.d", 0), file("d", 2)]], &[("/d", "file 2")]);
    check(vec![vec![file("d/x", 1)], vec![file("d", 2), file(".wh.d", 0)]], &[("/d", "file 2")]);
}

#[test]
fn hard_links_reach_lower_layers_and_dangling_links() {
    check(
        vec![
            vec![link("dangling", "nowhere"), file("f", 1)],
            vec![hard("l1", "dangling"), hard("d/l2", "/f")],
        ],
        &[
            ("/d", "dir"),
            ("/d/l2", "file 1"),
            ("/dangling", "-> nowhere"),
            ("/f", "file 1"),
            ("/l1", "-> nowhere"),
        ],
    );
    let tree = merged(vec![vec![file("f", 1)], vec![hard("g", "f"), file("f", 2)]]).unwrap();
    let shown = names(&tree);
    assert_eq!(
        (shown["/f"].as_str(), shown["/g"].as_str()),
        ("file 2", "file 1"),
        "a new file is a new node"
    );
}

#[test]
fn a_link_to_a_device_that_is_not_made_is_not_made_either() {
    let layers = vec![vec![entry("null", EntryKind::Skipped), hard("zero", "null")]];
    let tree = merged(layers).unwrap();
    let stored = crate::tree_format::decode(&crate::tree_format::encode(&tree).unwrap()).unwrap();
    assert!(names(&stored).is_empty());
}

#[test]
fn entries_that_have_no_place_are_refused() {
    let long_path = "x/".repeat(2100);
    let long_name = "x".repeat(256);
    let deep = "d/".repeat(257);
    let cases: Vec<(Vec<LayerEntry>, &str)> = vec![
        (vec![file("../x", 1)], "\"..\""),
        (vec![file("a/../../x", 1)], "\"..\""),
        (vec![file("a\0b", 1)], "NUL"),
        (vec![file(&long_path, 1)], "4200 bytes"),
        (vec![file(&long_name, 1)], "256 bytes"),
        (vec![dir(&deep)], "256 directories"),
        (vec![file("f", 1), file("f/x", 1)], "not a directory"),
        (vec![link("l", "l"), file("l/x", 1)], "40 symbolic links"),
        (vec![file(".", 1)], "root"),
        (vec![hard("h", "missing")], "not in the image"),
        (vec![hard("h", "../../etc/passwd")], "\"..\""),
        (vec![dir("d"), hard("h", "d")], "is a directory"),
        (vec![file(".wh.", 0)], "whiteout"),
        (vec![file(".wh...", 0)], "whiteout"),
        (vec![entry("n", EntryKind::Skipped), file("n/x", 1)], "not a directory"),
    ];
    for (layer, says) in cases {
        let error = merged(vec![layer]).unwrap_err().to_string();
        assert!(error.contains(says), "{error:?} should say {says:?}");
    }
}

#[test]
fn links_can_not_stack_directories_without_end() {
    let mut layer = vec![dir(&"d/".repeat(200)), link("l", "d/".repeat(200).trim_end_matches('/'))];
    layer.push(dir(&format!("l/{}", "e/".repeat(100))));
    assert!(matches!(merged(vec![layer]), Err(EntryError::TooDeep { .. })));
}

#[test]
fn mount_points_are_found_behind_links_and_made_where_they_lack() {
    let mut tree = merged(vec![vec![
        link("var/tmp", "../tmp"),
        dir("tmp"),
        link("etc/resolv.conf", "../run/systemd/resolv.conf"),
        file("etc/hosts", 1),
    ]])
    .unwrap();
    let points = crate::mount_points::ensure(&mut tree, &["/app".to_owned()]).unwrap();
    let find = |path: &str| points.iter().find(|point| point.path == path).unwrap();
    assert_eq!((find("/var/tmp").resolved.as_str(), find("/var/tmp").made), ("/tmp", false));
    assert_eq!(find("/etc/resolv.conf").resolved, "/run/systemd/resolv.conf");
    assert!(find("/etc/resolv.conf").made && !find("/etc/hosts").made && find("/app").made);
    assert_eq!(names(&tree)["/run/systemd/resolv.conf"], "file 0");
    for bad in [file("proc", 1), link("dev", "dev"), dir("etc/hosts"), link("etc/hosts", "hosts")] {
        let mut tree = merged(vec![vec![bad]]).unwrap();
        assert!(crate::mount_points::ensure(&mut tree, &[]).is_err());
    }
}

/// The stupid model: one map of whole paths, no links.
#[derive(Default)]
struct Model(BTreeMap<Vec<u8>, (ModelKind, u32)>);

#[derive(Clone, Debug, PartialEq)]
enum ModelKind {
    Dir,
    File(u64),
}

#[derive(Clone, Debug)]
enum Op {
    Dir(String),
    File(String, u64),
    HardLink(String, String),
    Whiteout(String),
    Opaque(String),
}

impl Model {
    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let prefix = if path.is_empty() { Vec::new() } else { [path, b"/"].concat() };
        self.0.keys().filter(|other| other.starts_with(&prefix)).cloned().collect()
    }

    fn make_parents(&mut self, path: &[u8], layer: u32) -> bool {
        for at in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at) {
            let kind = self.0.entry(path[..at].to_vec()).or_insert((ModelKind::Dir, layer));
            if kind.0 != ModelKind::Dir {
                return false;
            }
        }
        true
    }

    fn hide(&mut self, paths: &[Vec<u8>], layer: u32) {
        let kept: Vec<Vec<u8>> =
            self.0.iter().filter(|(_, (_, by))| *by == layer).map(|(path, _)| path.clone()).collect();
        for path in paths {
            let prefix = [path, &b"/"[..]].concat();
            if !kept.iter().any(|other| other == path || other.starts_with(&prefix)) {
                self.0.remove(path);
            }
        }
    }

    fn apply(&mut self, layer: u32, op: &Op) -> bool {
        match op {
            Op::Dir(path) => {
                let path = path.as_bytes();
                if !self.make_parents(path, layer) {
                    return false;
                }
                self.0.insert(path.to_vec(), (ModelKind::Dir, layer));
            }
            Op::File(path, id) => return self.put(path, layer, ModelKind::File(*id)),
            Op::HardLink(path, target) => {
                // Parents come first: they may stand where the target is looked for.
                if !self.make_parents(path.as_bytes(), layer) {
                    return false;
                }
                let Some((kind @ ModelKind::File(_), _)) = self.0.get(target.as_bytes()).cloned() else {
                    return false;
                };
                return self.put(path, layer, kind);
            }
            Op::Whiteout(path) => {
                let mut paths = self.below(path.as_bytes());
                paths.push(path.as_bytes().to_vec());
                self.hide(&paths, layer);
            }
            Op::Opaque(path) => {
                let paths = self.below(path.as_bytes());
                self.hide(&paths, layer);
            }
        }
        true
    }

    fn put(&mut self, path: &str, layer: u32, kind: ModelKind) -> bool {
        if !self.make_parents(path.as_bytes(), layer) {
            return false;
        }
        for below in self.below(path.as_bytes()) {
            self.0.remove(&below);
        }
        self.0.insert(path.as_bytes().to_vec(), (kind, layer));
        true
    }

    fn names(&self) -> BTreeMap<String, String> {
        let text = |kind: &ModelKind| match kind {
            ModelKind::Dir => "dir".to_owned(),
            ModelKind::File(id) => format!("file {id}"),
        };
        self.0
            .iter()
            .map(|(path, (kind, _))| (format!("/{}", String::from_utf8_lossy(path)), text(kind)))
            .collect()
    }
}

fn as_entry(op: &Op) -> LayerEntry {
    let marker = |path: &str| match path.rsplit_once('/') {
        Some((parent, name)) => format!("{parent}/.wh.{name}"),
        None => format!(".wh.{path}"),
    };
    match op {
        Op::Dir(path) => dir(path),
        Op::File(path, id) => file(path, *id),
        Op::HardLink(path, target) => hard(path, target),
        Op::Whiteout(path) => file(&marker(path), 0),
        Op::Opaque(path) => file(&format!("{path}/.wh..wh..opq"), 0),
    }
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4).prop_map(|names| names.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => path().prop_map(Op::Dir),
        4 => (path(), 1..100_u64).prop_map(|(path, id)| Op::File(path, id)),
        1 => (path(), path()).prop_map(|(path, target)| Op::HardLink(path, target)),
        2 => path().prop_map(Op::Whiteout),
        2 => path().prop_map(Op::Opaque),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_merge_as_the_stupid_model_says(
        layers in prop::collection::vec(prop::collection::vec(op(), 0..8), 1..5)
    ) {
        let (mut tree, mut model) = (Tree::new(), Model::default());
        'all: for (number, layer) in (0..).zip(&layers) {
            for op in layer {
                let applied = tree.apply(number, as_entry(op), &Limits::default()).is_ok();
                prop_assert_eq!(applied, model.apply(number, op), "{:?}", op);
                if !applied {
                    break 'all;
                }
                prop_assert_eq!(names(&tree), model.names(), "after {:?}", op);
            }
        }
        let again = crate::tree_format::decode(&crate::tree_format::encode(&tree).unwrap()).unwrap();
        prop_assert_eq!(names(&again), names(&tree));
    }

    #[test]
    fn bytes_that_were_never_a_tree_are_refused_quietly(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        crate::fuzz::fuzz_tree(&bytes);
        crate::fuzz::fuzz_tree(&[b"LBTREE\x01".to_vec(), bytes.clone()].concat());
        crate::fuzz::fuzz_layer(&bytes);
        crate::fuzz::fuzz_documents(&bytes);
        crate::fuzz::fuzz_reference(&String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn a_layer_with_changed_bytes_never_panics(
        changes in prop::collection::vec((0..6000_usize, any::<u8>()), 0..12),
        cut in 0..6000_usize,
    ) {
        let attributes = crate::layout::EntryAttributes {
            mtime: 1,
            xattrs: vec![("user.a".to_owned(), b"b\n".to_vec())],
            pax: Vec::new(),
        };
        let long = "n".repeat(120);
        let mut tar = crate::layout::LayerBuilder::in_order()
            .dir("d", 0o700)
            .entry(crate::layout::EntryType::Regular, &long, 0o644, &attributes, b"content", None)
            .symlink("d/l", "../..")
            .file("d/l/x", 0o644, "y")
            .hard_link("h", &long)
            .whiteout("lib/x")
            .tar();
        for (at, byte) in changes {
            if let Some(old) = tar.get_mut(at) {
                *old = byte;
            }
        }
        tar.truncate(cut.max(1024));
        // Checksums are made right again, or most changes would never get past them.
        for block in tar.chunks_exact_mut(512) {
            let mut header = tar::Header::new_old();
            header.as_mut_bytes().copy_from_slice(block);
            header.set_cksum();
            block.copy_from_slice(header.as_bytes());
        }
        crate::fuzz::fuzz_layer(&tar);
    }
}
