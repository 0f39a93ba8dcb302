//! Folders as outputs: what becomes of them, and of those that are not what they should be.

#[expect(dead_code, reason = "each suite uses a part of it")]
mod common;

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use stage::{
    CommitReason, FolderError, FolderLimits, FolderStage, WhyCopied, commit_folder, lend_folder,
    prepare_folder, remove_folder,
};

use common::{OTHER_UID, alone, name, open_dir, root, sh, skipped};

struct Room {
    _folder: tempfile::TempDir,
    out: PathBuf,
    stages: PathBuf,
    inputs: PathBuf,
}

impl Room {
    fn new() -> Self {
        Self::on(&std::env::temp_dir())
    }

    fn on(parent: &Path) -> Self {
        let folder = tempfile::tempdir_in(parent).expect("folder");
        fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("open it for others");
        let [out, stages, inputs] = ["out", "stages", "in"].map(|name| folder.path().join(name));
        for path in [&out, &stages, &inputs] {
            fs::create_dir(path).expect("folder");
        }
        prepare_folder(open_dir(&out).as_fd(), &name("x"), 0o777).expect("prepare");
        Self { _folder: folder, out, stages, inputs }
    }

    fn x(&self, entry: &str) -> PathBuf {
        self.out.join("x").join(entry)
    }

    fn write(&self, entry: &str, bytes: &[u8]) {
        let path = self.x(entry);
        fs::create_dir_all(path.parent().expect("parent")).expect("folders");
        fs::write(path, bytes).expect("write");
    }

    fn commit_below(&self, limits: FolderLimits) -> Result<FolderStage, FolderError> {
        let (out, stages) = (open_dir(&self.out), open_dir(&self.stages));
        commit_folder(out.as_fd(), &name("x"), limits, stages.as_fd(), &name("stage"))
    }

    fn commit(&self) -> Result<FolderStage, FolderError> {
        self.commit_below(FolderLimits::new(1 << 20))
    }

    fn stage(&self, entry: &str) -> PathBuf {
        self.stages.join("stage").join(entry)
    }

    fn refused(&self, entry: &str) -> CommitReason {
        let refused = self.commit().expect_err("refused");
        self.nothing_is_left(&refused);
        assert_eq!(refused.entry, Path::new(entry), "{refused}");
        refused.reason
    }

    fn nothing_is_left(&self, refused: &FolderError) {
        assert_eq!(fs::read_dir(&self.stages).expect("list").count(), 0, "nothing half-made: {refused}");
        assert!(!refused.to_string().contains('\n'), "{refused}");
    }

    fn lend(&self) -> FolderStage {
        let (stages, inputs) = (open_dir(&self.stages), open_dir(&self.inputs));
        lend_folder(stages.as_fd(), &name("stage"), inputs.as_fd(), &name("i")).expect("lend")
    }
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).expect("stat").mode() & 0o7777
}

#[test]
fn a_folder_becomes_a_read_only_tree_of_the_same_files() {
    let _alone = alone();
    let room = Room::new();
    room.write("a", b"one");
    room.write("b/c/d", b"three");
    fs::create_dir(room.x("empty")).expect("folder");
    symlink("c/d", room.x("b/link")).expect("link");
    symlink("../../a", room.x("b/c/up")).expect("link");
    symlink("nowhere", room.x("dangling")).expect("link");
    let inode = fs::metadata(room.x("a")).expect("stat").ino();
    let stage = room.commit().expect("commit");
    assert_eq!((stage.bytes, stage.entries, stage.linked, stage.copied), (8, 8, 2, 0));
    assert_eq!(fs::metadata(room.stage("a")).expect("stat").ino(), inode, "no byte was moved");
    assert_eq!(fs::read(room.stage("b/link")).expect("read"), b"three");
    assert_eq!(fs::read(room.stage("b/c/up")).expect("read"), b"one");
    assert_eq!(
        (mode(&room.stage("")), mode(&room.stage("b/c")), mode(&room.stage("b/c/d"))),
        (0o555, 0o555, 0o444)
    );
    assert_eq!(
        fs::metadata(room.stage("a")).expect("stat").nlink(),
        1,
        "the payload has no name for it any more"
    );
}

#[test]
fn it_is_lent_as_links_and_goes_without_them() {
    let _alone = alone();
    let room = Room::new();
    room.write("a", b"one");
    room.write("b/c", b"two");
    symlink("a", room.x("link")).expect("link");
    room.commit().expect("commit");
    let lent = room.lend();
    assert_eq!((lent.linked, lent.copied, lent.bytes), (2, 0, 6));
    assert_eq!(fs::read(room.inputs.join("i/link")).expect("read"), b"one");
    let same = |entry: &str| {
        let ino = |path: PathBuf| fs::metadata(path).expect("stat").ino();
        ino(room.inputs.join("i").join(entry)) == ino(room.stage(entry))
    };
    assert!(same("a") && same("b/c"));
    let again = lend_folder(
        open_dir(&room.stages).as_fd(),
        &name("stage"),
        open_dir(&room.inputs).as_fd(),
        &name("i"),
    );
    assert!(matches!(again.expect_err("taken").reason, CommitReason::Exists { .. }));
    remove_folder(open_dir(&room.inputs).as_fd(), &name("i")).expect("remove");
    assert_eq!(fs::read(room.stage("b/c")).expect("the stage stays"), b"two");
    remove_folder(open_dir(&room.stages).as_fd(), &name("stage")).expect("remove");
    assert_eq!(fs::read_dir(&room.stages).expect("list").count(), 0);
    assert!(remove_folder(open_dir(&room.stages).as_fd(), &name("stage")).is_err());
}

#[test]
fn links_that_leave_are_refused_however_they_do_it() {
    let _alone = alone();
    for target in ["/etc/passwd", "..", "../y", "b/../../..", "/proc/self/fd/0", "b/inside/.."] {
        let room = Room::new();
        room.write("b/file", b"x");
        // It stays inside; and a step up from where it leads does not.
        symlink("..", room.x("b/inside")).expect("link");
        symlink(target, room.x("link")).expect("link");
        assert!(matches!(room.refused("link"), CommitReason::LeadsOut), "{target}");
    }
}

#[test]
fn what_is_no_file_folder_or_link_is_refused() {
    let _alone = alone();
    let room = Room::new();
    mknodat(CWD, room.x("fifo"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("fifo");
    assert!(matches!(room.refused("fifo"), CommitReason::NotRegular(stage::Kind::Fifo)));

    let room = Room::new();
    fs::create_dir(room.x("b")).expect("folder");
    let _listener = UnixListener::bind(room.x("b/socket")).expect("socket");
    assert!(matches!(room.refused("b/socket"), CommitReason::NotRegular(stage::Kind::Socket)));

    if !root() {
        return skipped("what_is_no_file_folder_or_link_is_refused", "root, for a device");
    }
    let room = Room::new();
    let null = rustix::fs::makedev(1, 3);
    if mknodat(CWD, room.x("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), null).is_err() {
        return skipped("what_is_no_file_folder_or_link_is_refused", "devices");
    }
    assert!(matches!(room.refused("null"), CommitReason::NotRegular(stage::Kind::CharacterDevice)));
}

#[test]
fn a_name_outside_is_refused_and_two_inside_are_copied() {
    let _alone = alone();
    let room = Room::new();
    room.write("a", b"one");
    fs::hard_link(room.x("a"), room.out.join("elsewhere")).expect("link");
    assert!(matches!(room.refused("a"), CommitReason::HardLinked { links: 2 }));

    let room = Room::new();
    room.write("a", b"one");
    fs::hard_link(room.x("a"), room.x("b")).expect("link");
    let stage = room.commit().expect("commit");
    assert_eq!((stage.copied, stage.copied_bytes, stage.why_copied), (2, 6, Some(WhyCopied::ManyNames)));
    assert_eq!(fs::metadata(room.stage("b")).expect("stat").nlink(), 1);
}

#[test]
fn bytes_and_entries_have_bounds() {
    let _alone = alone();
    let room = Room::new();
    room.write("a", &[0; 60]);
    room.write("b", &[0; 41]);
    let refused = room.commit_below(FolderLimits::new(100)).expect_err("too large");
    room.nothing_is_left(&refused);
    assert!(matches!(refused.reason, CommitReason::TooLarge { bytes: 101, max: 100 }), "{refused}");

    let room = Room::new();
    File::create(room.x("sparse")).expect("file").set_len(1 << 40).expect("grow");
    assert!(matches!(room.refused("sparse"), CommitReason::TooLarge { .. }));

    let room = Room::new();
    (0..20).for_each(|n| room.write(&format!("f{n}"), b""));
    let few = FolderLimits { max_entries: 19, ..FolderLimits::new(100) };
    let refused = room.commit_below(few).expect_err("too many");
    room.nothing_is_left(&refused);
    assert!(matches!(refused.reason, CommitReason::TooManyEntries { max: 19 }));
}

#[test]
fn a_tree_as_deep_as_allowed_passes_and_a_deeper_one_does_not() {
    let _alone = alone();
    for (depth, passes) in [(64, true), (65, false), (700, false)] {
        let room = Room::new();
        // Beyond PATH_MAX in the end, so one step at a time.
        let mut at = File::open(room.x("")).expect("open");
        for _ in 0..depth {
            rustix::fs::mkdirat(&at, "dddddddd", Mode::from_raw_mode(0o755)).expect("folder");
            let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY;
            at = File::from(rustix::fs::openat(&at, "dddddddd", flags, Mode::empty()).expect("open"));
        }
        match room.commit() {
            Ok(_) => assert!(passes, "{depth}"),
            Err(refused) => {
                assert!(!passes && matches!(refused.reason, CommitReason::TooDeep { max: 64 }), "{refused}");
                room.nothing_is_left(&refused);
            }
        }
    }
}

#[test]
fn what_is_still_written_is_refused() {
    let _alone = alone();
    let room = Room::new();
    room.write("b/a", b"one");
    let mut open = File::options().append(true).open(room.x("b/a")).expect("open");
    assert!(matches!(room.refused("b/a"), CommitReason::StillWritten));
    open.write_all(b"two").expect("write");
}

#[test]
fn what_is_not_there_or_no_folder_is_refused() {
    let _alone = alone();
    let room = Room::new();
    assert!(matches!(room.refused(""), CommitReason::NotProduced), "nobody touched it");
    room.write("a", b"");
    fs::remove_file(room.x("a")).expect("remove");
    assert_eq!(room.commit().expect("touched, and empty").entries, 0);

    let room = Room::new();
    fs::remove_dir(room.out.join("x")).expect("remove");
    assert!(matches!(room.refused(""), CommitReason::NotProduced));
    fs::write(room.out.join("x"), b"").expect("write");
    assert!(matches!(room.refused(""), CommitReason::NotFolder(stage::Kind::RegularFile)));
    fs::remove_file(room.out.join("x")).expect("remove");
    symlink(&room.inputs, room.out.join("x")).expect("link");
    assert!(matches!(room.refused(""), CommitReason::Symlink));
}

#[test]
fn names_of_entries_may_be_any_bytes() {
    let _alone = alone();
    let room = Room::new();
    room.write("a\nb", b"1");
    room.write(&"n".repeat(255), b"2");
    room.write("-rf", b"3");
    room.write("..x", b"4");
    assert_eq!(room.commit().expect("commit").bytes, 4);
    assert_eq!(fs::read(room.stage("a\nb")).expect("read"), b"1");
    let other = Room::new();
    mknodat(CWD, other.x("a\nb"), FileType::Fifo, Mode::from_raw_mode(0o666), 0).expect("fifo");
    other.refused("a\nb");
}

#[test]
fn modes_of_a_payload_do_not_shut_us_out_and_do_not_last() {
    let _alone = alone();
    let room = Room::new();
    room.write("b/a", b"one");
    fs::set_permissions(room.x("b/a"), PermissionsExt::from_mode(0o4777)).expect("mode");
    room.write("c", b"two");
    fs::set_permissions(room.x("c"), PermissionsExt::from_mode(0o000)).expect("mode");
    fs::set_permissions(room.x("b"), PermissionsExt::from_mode(0o000)).expect("mode");
    room.commit().expect("commit");
    // A program stays one; whose rights it runs with does not.
    assert_eq!((mode(&room.stage("b/a")), mode(&room.stage("c"))), (0o555, 0o444));
}

#[test]
fn files_of_another_user_are_copied_and_that_user_can_change_nothing() {
    let _alone = alone();
    if !root() {
        return skipped(
            "files_of_another_user_are_copied_and_that_user_can_change_nothing",
            "root, for a second uid",
        );
    }
    let room = Room::new();
    let x = room.out.join("x");
    let wrote =
        sh(&format!("mkdir {0}/b && echo hello > {0}/b/a && ln -s b/a {0}/l", x.display()), Some(OTHER_UID));
    assert!(wrote.status.success(), "{wrote:?}");
    let stage = room.commit().expect("commit");
    assert_eq!((stage.copied, stage.linked, stage.why_copied), (1, 0, Some(WhyCopied::OtherOwner)));
    room.lend();
    let input = room.inputs.join("i");
    let script = format!(
        "cat {0}/l; echo x > {0}/b/a || echo refused; chmod 666 {0}/b/a || echo refused; rm -rf {0}/b || echo refused; \
         touch {0}/new || echo refused",
        input.display()
    );
    let script = script
        .replace("echo x >", "(echo x >")
        .replace("b/a || echo refused; chmod", "b/a) || echo refused; chmod");
    let told = sh(&script, Some(OTHER_UID));
    assert_eq!(String::from_utf8_lossy(&told.stdout), "hello\nrefused\nrefused\nrefused\nrefused\n");
}

#[test]
fn on_memory_holes_are_filled_and_another_file_system_means_copies() {
    let _alone = alone();
    let shm = Path::new("/dev/shm");
    let differs =
        |stat: fs::Metadata| fs::metadata(std::env::temp_dir()).is_ok_and(|temp| temp.dev() != stat.dev());
    if !fs::metadata(shm).is_ok_and(differs) {
        return skipped("on_memory_holes_are_filled_and_another_file_system_means_copies", "/dev/shm");
    }
    let room = Room::on(shm);
    File::create(room.x("sparse")).expect("file").set_len(1 << 19).expect("grow");
    assert_eq!(room.commit().expect("commit").linked, 1);
    assert!(fs::metadata(room.stage("sparse")).expect("stat").blocks() * 512 >= 1 << 19);
    let disk = Room::new();
    let lent = lend_folder(
        open_dir(&room.stages).as_fd(),
        &name("stage"),
        open_dir(&disk.inputs).as_fd(),
        &name("i"),
    );
    let lent = lent.expect("lend");
    assert_eq!((lent.copied, lent.why_copied), (1, Some(WhyCopied::OtherFileSystem)));
    assert_eq!(mode(&disk.inputs.join("i/sparse")), 0o444);
}

#[test]
fn what_a_crash_left_of_an_earlier_try_is_replaced() {
    let _alone = alone();
    let room = Room::new();
    fs::create_dir_all(room.stages.join(".building.stage/a")).expect("left over");
    room.write("b", b"two");
    room.commit().expect("commit");
    assert!(!room.stage("a").exists() && room.stage("b").exists());
    let other = Room::new();
    other.write("b", b"two");
    fs::create_dir(other.stages.join("stage")).expect("taken");
    assert!(matches!(other.commit().expect_err("taken").reason, CommitReason::Exists { .. }));
}
