//! What a function may do to make a rewind of files miss something, fail, or take for ever.

#![allow(missing_docs, unreachable_pub, reason = "a test")]

mod common;

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use common::{Layers, Sandbox, possible, read};
use fs_overlay::{ChangeKind, FilesQuarantine, FilesReason, FilesReport, Options, SealError, Sealed, seal};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

fn fill(layers: &Layers) {
    fs::create_dir_all(layers.bottom.join("lib/deep/er")).unwrap();
    fs::create_dir_all(layers.bottom.join("tmp")).unwrap();
    fs::set_permissions(layers.bottom.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(layers.bottom.join("lib/code"), b"the image's code").unwrap();
    fs::write(layers.bottom.join("lib/deep/er/file"), b"deep").unwrap();
    fs::write(layers.top.join("su"), b"a program").unwrap();
    fs::set_permissions(layers.top.join("su"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc", layers.top.join("link-to-etc")).unwrap();
}

/// Runs a request and its rewind, and compares; then again with a root that is swapped if it can be.
fn undone(test: &str, prepare: impl Fn(&Sandbox), request: impl Fn(&Sandbox), look: impl Fn(&FilesReport)) {
    if !possible(test) {
        return;
    }
    undone_with(test, &Options::default(), &prepare, &request, look);
    undone_with(&format!("{test}, swapped"), &swapping(), &prepare, &request, |_| {});
}

fn undone_with(
    test: &str,
    options: &Options,
    prepare: impl Fn(&Sandbox),
    request: impl Fn(&Sandbox),
    look: impl Fn(&FilesReport),
) {
    let sandbox = Sandbox::start(fill);
    prepare(&sandbox);
    let mut sealed = sandbox.seal_with(options);
    let pristine = sandbox.state();
    // Twice: what the first rewind made anew is what the second one has to recognise.
    for round in ["first", "second"] {
        request(&sandbox);
        assert!(!pristine.is_same(&sandbox.state()), "{test}: the request changed nothing");
        let report =
            sealed.rewind().unwrap_or_else(|error| panic!("{test}, {round}: {error}: {:?}", error.source));
        pristine.assert_same(&sandbox.state(), &format!("{test}, {round}"));
        look(&report);
    }
}

/// Runs a request whose rewind must be refused.
fn refused(
    test: &str,
    options: &Options,
    prepare: impl FnOnce(&Sandbox),
    request: impl FnOnce(&Sandbox),
    reason: FilesReason,
) {
    if !possible(test) {
        return;
    }
    let sandbox = Sandbox::start(fill);
    prepare(&sandbox);
    let mut sealed = sandbox.seal_with(options);
    request(&sandbox);
    let error = sealed.rewind().expect_err(test);
    assert_eq!(error.reason, reason, "{test}: {error}");
    assert!(error.to_string().starts_with(reason.name()), "{error}");
}

fn nothing(_: &Sandbox) {}

/// Options with which no root is swapped.
fn entry_by_entry() -> Options {
    Options { swap_from: u64::MAX, swap_sealed_from: u64::MAX, ..Options::default() }
}

/// Options with which the root is swapped whatever changed.
fn swapping() -> Options {
    Options { swap_from: 1, ..Options::default() }
}

#[test]
fn names_may_be_any_bytes() {
    let names: [&[u8]; 5] = [b"new\nline", b"\xff\xfe\x80", b" ", b"-rf *", &[b'x'; 255]];
    undone(
        "names_may_be_any_bytes",
        |sandbox| {
            fs::write(sandbox.at(OsStr::from_bytes(b"tmp/kept\n\xff")), b"kept").unwrap();
        },
        |sandbox| {
            for name in names {
                let path = sandbox.at("tmp").join(OsStr::from_bytes(name));
                fs::write(path, b"secret").unwrap();
            }
            fs::remove_file(sandbox.at(OsStr::from_bytes(b"tmp/kept\n\xff"))).unwrap();
        },
        |report| {
            assert_eq!(report.changes.count(ChangeKind::Added), 5);
            assert_eq!(report.changes.count(ChangeKind::Removed), 1);
            for change in &report.changes.paths {
                let shown = fs_overlay::shown(&change.path);
                assert!(shown.is_ascii() && !shown.contains('\n'), "{shown}");
            }
        },
    );
}

#[test]
fn a_change_hidden_by_utimes_is_seen() {
    undone(
        "a_change_hidden_by_utimes_is_seen",
        |sandbox| fs::write(sandbox.at("tmp/file"), b"as it was").unwrap(),
        |sandbox| {
            let file = OpenOptions::new().write(true).open(sandbox.at("tmp/file")).unwrap();
            let modified = file.metadata().unwrap().modified().unwrap();
            file.write_all_at(b"secret!!!", 0).unwrap();
            file.set_modified(modified).unwrap();
        },
        |report| {
            assert_eq!(report.changes.count(ChangeKind::Contents), 1);
            assert_eq!((report.files_rewritten, report.bytes_written), (1, 9));
        },
    );
}

#[test]
fn a_write_within_the_tick_of_the_seal_is_seen() {
    if !possible("a_write_within_the_tick_of_the_seal_is_seen") {
        return;
    }
    // Many tries, since the clock's tick may pass between write, seal and write.
    let sandbox = Sandbox::start(fill);
    for number in 0..200_u32 {
        let path = sandbox.at("tmp/file");
        let before = number.to_le_bytes();
        fs::write(&path, before).unwrap();
        let mut sealed = sandbox.seal();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.write_all_at(b"evil", 0).unwrap();
        file.set_modified(modified).unwrap();
        sealed.rewind().unwrap();
        assert_eq!(read(&path), before);
        // And within the tick of the rewind.
        file.write_all_at(b"EVIL", 0).unwrap();
        file.set_modified(modified).unwrap();
        sealed.rewind().unwrap();
        assert_eq!(read(&path), before);
    }
}

/// Writes through a shared mapping, which needs another program: mapping is not safe Rust.
fn write_mapped(path: PathBuf) -> bool {
    let script = "import mmap, sys\n\
        f = open(sys.argv[1], 'r+b'); m = mmap.mmap(f.fileno(), 0); m[0:6] = b'secret'; m.close()";
    let done = Command::new("python3").args(["-c", script]).arg(path).status();
    matches!(done, Ok(status) if status.success())
}

#[test]
fn writes_through_shared_mappings_are_seen() {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIP writes_through_shared_mappings_are_seen: needs python3");
        return;
    }
    // On tmpfs such a write leaves no trace in the times at all.
    undone(
        "writes_through_shared_mappings_are_seen",
        |sandbox| {
            fs::write(sandbox.at("dev/shm/file"), b"as it was").unwrap();
            fs::write(sandbox.at("tmp/file"), b"as it was").unwrap();
            std::thread::sleep(Duration::from_millis(30));
        },
        |sandbox| {
            assert!(write_mapped(sandbox.at("dev/shm/file")));
            assert!(write_mapped(sandbox.at("tmp/file")));
        },
        |report| assert_eq!(report.changes.count(ChangeKind::Contents), 2),
    );
}

#[test]
fn files_of_the_image_come_back() {
    undone(
        "files_of_the_image_come_back",
        nothing,
        |sandbox| {
            fs::write(sandbox.at("lib/code"), b"evil").unwrap();
            fs::remove_file(sandbox.at("su")).unwrap();
            fs::remove_dir_all(sandbox.at("lib/deep")).unwrap();
            fs::remove_file(sandbox.at("link-to-etc")).unwrap();
            symlink("/tmp", sandbox.at("link-to-etc")).unwrap();
        },
        |report| {
            assert_eq!(report.changes.count(ChangeKind::Contents), 1);
            assert_eq!(report.changes.count(ChangeKind::Removed), 2);
            assert_eq!(report.changes.count(ChangeKind::Replaced), 1);
        },
    );
}

#[test]
fn a_hard_link_to_a_file_of_the_image_goes_away() {
    undone(
        "a_hard_link_to_a_file_of_the_image_goes_away",
        nothing,
        |sandbox| {
            fs::hard_link(sandbox.at("lib/code"), sandbox.at("tmp/link")).unwrap();
            fs::write(sandbox.at("tmp/link"), b"secret").unwrap();
        },
        |report| assert_eq!(report.changes.count(ChangeKind::Added), 1),
    );
}

#[test]
fn files_become_directories_and_back() {
    undone(
        "files_become_directories_and_back",
        |sandbox| fs::write(sandbox.at("tmp/file"), b"file").unwrap(),
        |sandbox| {
            fs::remove_file(sandbox.at("tmp/file")).unwrap();
            fs::create_dir(sandbox.at("tmp/file")).unwrap();
            fs::write(sandbox.at("tmp/file/secret"), b"secret").unwrap();
            fs::remove_file(sandbox.at("lib/code")).unwrap();
            fs::create_dir(sandbox.at("lib/code")).unwrap();
            fs::remove_dir_all(sandbox.at("lib/deep")).unwrap();
            fs::write(sandbox.at("lib/deep"), b"secret").unwrap();
        },
        |report| assert_eq!(report.changes.count(ChangeKind::Replaced), 3),
    );
}

#[test]
fn a_directory_made_opaque_lets_the_image_through_again() {
    undone(
        "a_directory_made_opaque_lets_the_image_through_again",
        nothing,
        |sandbox| {
            fs::remove_dir_all(sandbox.at("lib")).unwrap();
            fs::create_dir(sandbox.at("lib")).unwrap();
            fs::write(sandbox.at("lib/secret"), b"secret").unwrap();
        },
        |report| assert_eq!(report.changes.count(ChangeKind::Replaced), 1),
    );
}

#[test]
fn renames_are_renamed_back() {
    let inode = |path: PathBuf| {
        use std::os::unix::fs::MetadataExt;
        fs::metadata(path).unwrap().ino()
    };
    if !possible("renames_are_renamed_back") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    fs::create_dir(sandbox.at("tmp/dir")).unwrap();
    fs::write(sandbox.at("tmp/dir/file"), b"file").unwrap();
    fs::write(sandbox.at("tmp/one"), b"one").unwrap();
    fs::write(sandbox.at("tmp/two"), b"two").unwrap();
    let before = ["tmp/dir", "tmp/dir/file", "tmp/one", "tmp/two"].map(|path| inode(sandbox.at(path)));
    let pristine = sandbox.state();
    let mut sealed = sandbox.seal();
    // One renamed inside a renamed directory, moved into a new one; two that change places.
    fs::rename(sandbox.at("tmp/dir/file"), sandbox.at("tmp/dir/other")).unwrap();
    fs::create_dir(sandbox.at("tmp/new")).unwrap();
    fs::rename(sandbox.at("tmp/dir"), sandbox.at("tmp/new/dir")).unwrap();
    fs::rename(sandbox.at("tmp/one"), sandbox.at("tmp/three")).unwrap();
    fs::rename(sandbox.at("tmp/two"), sandbox.at("tmp/one")).unwrap();
    fs::rename(sandbox.at("tmp/three"), sandbox.at("tmp/two")).unwrap();
    let report = sealed.rewind().unwrap();
    pristine.assert_same(&sandbox.state(), "renames");
    let after = ["tmp/dir", "tmp/dir/file", "tmp/one", "tmp/two"].map(|path| inode(sandbox.at(path)));
    assert_eq!(before, after, "the same inodes, not copies");
    assert_eq!(report.changes.count(ChangeKind::Renamed), 3);
    assert_eq!(report.entries_recreated, 0);
}

#[test]
fn modes_owners_attributes_and_capabilities_come_back() {
    // cap_net_raw+ep, as `setcap` writes it.
    let capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    undone(
        "modes_owners_attributes_and_capabilities_come_back",
        |sandbox| {
            let path = sandbox.at("tmp/capable");
            fs::write(&path, b"program").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o4750)).unwrap();
            rustix::fs::setxattr(&path, "security.capability", capability, XattrFlags::empty()).unwrap();
            rustix::fs::setxattr(&path, "user.keep", b"kept", XattrFlags::empty()).unwrap();
        },
        |sandbox| {
            let path = sandbox.at("tmp/capable");
            // A write clears capabilities, a new owner clears setuid.
            fs::write(&path, b"PROGRAM").unwrap();
            std::os::unix::fs::chown(&path, Some(1000), Some(1000)).unwrap();
            rustix::fs::setxattr(&path, "user.secret", b"secret", XattrFlags::empty()).unwrap();
            rustix::fs::removexattr(&path, "user.keep").unwrap();
            std::os::unix::fs::chown(sandbox.at("su"), Some(1000), None).unwrap();
            fs::set_permissions(sandbox.at(""), fs::Permissions::from_mode(0o700)).unwrap();
        },
        |report| assert!(report.changes.count(ChangeKind::Metadata) >= 1),
    );
}

#[test]
fn access_lists_come_back() {
    // user::rwx user:1000:rwx group::r-x mask::rwx other::r-x
    let acl: Vec<u8> = [
        &[2, 0, 0, 0][..],
        &[1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff],
        &[2, 0, 7, 0, 0xe8, 3, 0, 0],
        &[4, 0, 5, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x10, 0, 7, 0, 0xff, 0xff, 0xff, 0xff],
        &[0x20, 0, 5, 0, 0xff, 0xff, 0xff, 0xff],
    ]
    .concat();
    undone(
        "access_lists_come_back",
        |sandbox| {
            fs::write(sandbox.at("tmp/listed"), b"").unwrap();
            fs::write(sandbox.at("tmp/plain"), b"").unwrap();
            let name = "system.posix_acl_access";
            rustix::fs::setxattr(sandbox.at("tmp/listed"), name, &acl, XattrFlags::empty()).unwrap();
        },
        |sandbox| {
            let name = "system.posix_acl_access";
            rustix::fs::removexattr(sandbox.at("tmp/listed"), name).unwrap();
            rustix::fs::setxattr(sandbox.at("tmp/plain"), name, &acl, XattrFlags::empty()).unwrap();
        },
        |report| assert!(report.changes.count(ChangeKind::Metadata) >= 2, "{report:?}"),
    );
}

#[test]
fn hard_links_among_sealed_files_stay_links() {
    undone(
        "hard_links_among_sealed_files_stay_links",
        |sandbox| {
            fs::write(sandbox.at("tmp/one"), b"shared").unwrap();
            fs::hard_link(sandbox.at("tmp/one"), sandbox.at("tmp/two")).unwrap();
            fs::hard_link(sandbox.at("tmp/one"), sandbox.at("lib/three")).unwrap();
        },
        |sandbox| {
            fs::remove_file(sandbox.at("tmp/two")).unwrap();
            fs::remove_file(sandbox.at("lib/three")).unwrap();
            fs::write(sandbox.at("tmp/two"), b"another").unwrap();
        },
        |report| assert_eq!(report.entries_recreated, 2),
    );
    undone(
        "hard_links_among_sealed_files_stay_links, all gone",
        |sandbox| {
            fs::write(sandbox.at("tmp/one"), b"shared").unwrap();
            fs::hard_link(sandbox.at("tmp/one"), sandbox.at("tmp/two")).unwrap();
        },
        |sandbox| {
            fs::remove_file(sandbox.at("tmp/one")).unwrap();
            fs::remove_file(sandbox.at("tmp/two")).unwrap();
        },
        |report| assert_eq!(report.entries_recreated, 2),
    );
}

#[test]
fn other_mounts_are_covered() {
    undone(
        "other_mounts_are_covered",
        |sandbox| fs::write(sandbox.at("dev/shm/kept"), b"kept").unwrap(),
        |sandbox| {
            fs::write(sandbox.at("dev/shm/secret"), b"secret").unwrap();
            fs::write(sandbox.at("dev/shm/kept"), b"changed").unwrap();
            OpenOptions::new()
                .append(true)
                .open(sandbox.at("etc/hosts"))
                .unwrap()
                .write_all(b"6.6.6.6 evil\n")
                .unwrap();
            fs::set_permissions(sandbox.at("etc/hosts"), fs::Permissions::from_mode(0o666)).unwrap();
            File::create(sandbox.at("dev/mqueue/secret")).unwrap();
            fs::write(sandbox.at("dev/secret"), b"secret").unwrap();
            fs::remove_file(sandbox.at("dev/null")).unwrap();
        },
        |report| {
            assert_eq!(report.changes.count(ChangeKind::Added), 3);
            let paths: Vec<_> = report.changes.paths.iter().map(|change| change.path.as_path()).collect();
            assert!(paths.contains(&std::path::Path::new("/etc/hosts")), "{paths:?}");
        },
    );
}

#[test]
fn sockets_fifos_and_devices_left_behind_go_away() {
    undone(
        "sockets_fifos_and_devices_left_behind_go_away",
        |sandbox| {
            let fifo = sandbox.at("tmp/kept-fifo");
            rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
        },
        |sandbox| {
            drop(UnixListener::bind(sandbox.at("tmp/socket")).unwrap());
            let fifo = sandbox.at("tmp/fifo");
            rustix::fs::mknodat(CWD, fifo, FileType::Fifo, Mode::RWXU, 0).unwrap();
            let device = rustix::fs::makedev(1, 1);
            let path = sandbox.at("tmp/mem");
            rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::RWXU, device).unwrap();
            fs::remove_file(sandbox.at("tmp/kept-fifo")).unwrap();
        },
        |report| {
            assert_eq!(report.changes.count(ChangeKind::Added), 3);
            assert_eq!(report.changes.count(ChangeKind::Removed), 1);
        },
    );
}

#[test]
fn links_are_never_followed() {
    if !possible("links_are_never_followed") {
        return;
    }
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, b"the host's own").unwrap();
    let before = fs::metadata(&victim).unwrap();
    let sandbox = Sandbox::start(fill);
    fs::write(sandbox.at("tmp/victim"), b"inside").unwrap();
    fs::create_dir(sandbox.at("tmp/dir")).unwrap();
    fs::write(sandbox.at("tmp/dir/victim"), b"inside").unwrap();
    let pristine = sandbox.state();
    let mut sealed = sandbox.seal();
    // A file and a directory of the manifest become links to the host.
    fs::remove_file(sandbox.at("tmp/victim")).unwrap();
    symlink(&victim, sandbox.at("tmp/victim")).unwrap();
    fs::remove_dir_all(sandbox.at("tmp/dir")).unwrap();
    symlink(outside.path(), sandbox.at("tmp/dir")).unwrap();
    symlink("../../../../../../../..", sandbox.at("tmp/up")).unwrap();
    sealed.rewind().unwrap();
    pristine.assert_same(&sandbox.state(), "links");
    assert_eq!(fs::read(&victim).unwrap(), b"the host's own");
    assert_eq!(fs::metadata(&victim).unwrap().modified().unwrap(), before.modified().unwrap());
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}

#[test]
fn a_huge_sparse_file_is_cheap() {
    undone(
        "a_huge_sparse_file_is_cheap",
        |sandbox| {
            let file = File::create(sandbox.at("tmp/sparse")).unwrap();
            file.set_len(1 << 40).unwrap();
            file.write_all_at(b"kept", 1 << 39).unwrap();
        },
        |sandbox| {
            let file = OpenOptions::new().write(true).open(sandbox.at("tmp/sparse")).unwrap();
            file.write_all_at(b"secret", 1 << 38).unwrap();
            file.set_len(1 << 41).unwrap();
            let new = File::create(sandbox.at("tmp/new")).unwrap();
            new.set_len(1 << 42).unwrap();
        },
        |report| assert!(report.bytes_written < 1 << 20, "{report:?}"),
    );
}

#[test]
fn work_follows_the_change() {
    if !possible("work_follows_the_change") {
        return;
    }
    let sandbox = Sandbox::start(|layers| {
        fill(layers);
        // An image of many files, of which a rewind must not look at any.
        for number in 0..3000 {
            fs::write(layers.bottom.join(format!("lib/{number}")), b"x").unwrap();
        }
    });
    for number in 0..300 {
        fs::write(sandbox.at(format!("tmp/{number}")), b"sealed").unwrap();
    }
    let mut sealed = sandbox.seal_with(&entry_by_entry());
    // Past the tick of the seal, so that change times can be trusted.
    std::thread::sleep(Duration::from_millis(30));
    sealed.rewind().unwrap();
    std::thread::sleep(Duration::from_millis(30));
    let idle = sealed.rewind().unwrap();
    assert!(idle.changes.is_empty());
    // But for the directory of message queues, whose file system keeps whole seconds.
    assert!(idle.entries_compared <= 1, "nothing is read when nothing changed: {idle:?}");
    assert!(idle.entries_examined < 350, "{} entries examined", idle.entries_examined);

    for changed in [1_u64, 10, 100] {
        for number in 0..changed {
            fs::write(sandbox.at(format!("tmp/{number}")), b"SECRET").unwrap();
            fs::write(sandbox.at(format!("tmp/new{number}")), b"SECRET").unwrap();
        }
        let report = sealed.rewind().unwrap();
        assert_eq!(report.files_rewritten, changed);
        assert_eq!(report.bytes_written, 6 * changed);
        assert_eq!(report.entries_removed, changed);
        assert_eq!(report.entries_recreated, 0);
        // Once to look and once to verify.
        assert!(report.entries_examined < 2 * 350 + changed, "{report:?}");
        std::thread::sleep(Duration::from_millis(30));
        sealed.rewind().unwrap();
    }
}

#[test]
fn a_deleted_file_that_is_still_open_is_sealed_too() {
    if !possible("a_deleted_file_that_is_still_open_is_sealed_too") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    // Held by a process of the container: one more with its mounts, as `docker exec` makes.
    let script = r#"$| = 1; chroot $ARGV[0]; chdir "/";
        open(F, "+>", "/tmp/gone"); unlink "/tmp/gone"; syswrite F, "as it was";
        print "ready\n";
        while (<STDIN>) { if (/plant/) { sysseek F, 0, 0; syswrite F, "secret!!!"; }
            else { sysseek F, 0, 0; sysread F, $x, 100; print "$x\n"; next; } print "done\n"; }"#;
    let root = format!("/proc/{}/root", sandbox.pid());
    let mut holder = Command::new("nsenter")
        .args(["-t", &sandbox.pid().to_string(), "--mount", "perl", "-e", script, &root])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = holder.stdin.take().unwrap();
    let mut output = std::io::BufReader::new(holder.stdout.take().unwrap());
    let mut answer = move || {
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        line
    };
    assert_eq!(answer(), "ready\n");
    let mut sealed = sandbox.seal();
    for _ in 0..2 {
        input.write_all(b"plant\n").unwrap();
        assert_eq!(answer(), "done\n");
        input.write_all(b"look\n").unwrap();
        assert_eq!(answer(), "secret!!!\n");
        let report = sealed.rewind().unwrap();
        assert_eq!(report.changes.count(ChangeKind::Contents), 1);
        input.write_all(b"look\n").unwrap();
        assert_eq!(answer(), "as it was\n");
    }
    drop(input);
    holder.wait().unwrap();
}

#[test]
fn a_file_replaced_under_its_holder_is_refused() {
    if !possible("a_file_replaced_under_its_holder_is_refused") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    fs::write(sandbox.at("tmp/held"), b"held").unwrap();
    let mut holder = holding(&sandbox, "open(F, '<', '/tmp/held') or die");
    let mut sealed = sandbox.seal();
    // Changed in place: no harm.
    fs::write(sandbox.at("tmp/held"), b"evil").unwrap();
    sealed.rewind().unwrap();
    // Replaced: the holder would go on with the old file.
    fs::remove_file(sandbox.at("tmp/held")).unwrap();
    fs::write(sandbox.at("tmp/held"), b"held").unwrap();
    let error = sealed.rewind().unwrap_err();
    assert_eq!(error.reason, FilesReason::HeldOpen, "{error}");
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

#[test]
fn access_times_come_back() {
    if !possible("access_times_come_back") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    let path = sandbox.at("tmp/file");
    fs::write(&path, b"read me").unwrap();
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::open(&path).unwrap().set_times(fs::FileTimes::new().set_accessed(old)).unwrap();
    let mut sealed = sandbox.seal();
    read(&path);
    let moved = fs::metadata(&path).unwrap().accessed().unwrap();
    if moved == old {
        eprintln!("SKIP access_times_come_back: the file system keeps no access times");
        return;
    }
    let report = sealed.rewind().unwrap();
    assert_eq!(report.changes.count(ChangeKind::AccessTime), 1, "{report:?}");
    assert_eq!(fs::metadata(&path).unwrap().accessed().unwrap(), old);
    assert_eq!(report.bytes_written, 0);
}

/// A name, the reason for which it cannot be undone one by one, and the request.
type Flood = (&'static str, FilesReason, Request);

/// Ways to leave more behind than can be undone one by one.
const FLOODS: [Flood; 3] = [
    ("ten thousand new files", FilesReason::TooManyChanges, |sandbox| {
        for number in 0..10_000 {
            File::create(sandbox.at(format!("tmp/{number}"))).unwrap();
        }
    }),
    ("ten thousand new files below one directory", FilesReason::TooManyChanges, |sandbox| {
        for directory in 0..100 {
            fs::create_dir_all(sandbox.at(format!("tmp/d/{directory}"))).unwrap();
            for number in 0..100 {
                File::create(sandbox.at(format!("tmp/d/{directory}/{number}"))).unwrap();
            }
        }
    }),
    ("a bottomless directory", FilesReason::TooDeep, |sandbox| {
        let mut path = sandbox.at("tmp");
        for _ in 0..500 {
            path.push("d");
            fs::create_dir(&path).unwrap();
        }
    }),
];

#[test]
fn what_is_too_much_to_undo_is_refused() {
    for (flood, reason, request) in FLOODS {
        refused(flood, &entry_by_entry(), nothing, request, reason);
    }
}

#[test]
fn what_is_too_much_to_undo_is_swapped_away() {
    for (flood, _, request) in FLOODS {
        undone(flood, nothing, request, |report| {
            assert!(report.swapped && report.changes.partial, "{flood}: {report:?}");
            assert!(report.entries_examined < 200, "{flood}: {report:?}");
            assert_eq!(report.undone(), 0, "{flood}: {report:?}");
        });
    }
}

#[test]
fn more_bytes_than_allowed_are_refused() {
    refused(
        "more_bytes_than_allowed_are_refused",
        &Options { undone_bytes_max: 1 << 20, ..entry_by_entry() },
        |sandbox| fs::write(sandbox.at("tmp/large"), vec![1; 4 << 20]).unwrap(),
        |sandbox| fs::write(sandbox.at("tmp/large"), vec![2; 4 << 20]).unwrap(),
        FilesReason::TooManyBytes,
    );
}

#[test]
fn an_expired_deadline_is_refused() {
    refused(
        "an_expired_deadline_is_refused",
        &Options { deadline: Duration::ZERO, ..Options::default() },
        nothing,
        |sandbox| fs::write(sandbox.at("tmp/file"), b"x").unwrap(),
        FilesReason::Deadline,
    );
}

#[test]
fn an_immutable_file_is_refused() {
    refused(
        "an_immutable_file_is_refused",
        &Options::default(),
        |sandbox| fs::write(sandbox.at("tmp/file"), b"x").unwrap(),
        |sandbox| {
            let status = Command::new("chattr").arg("+i").arg(sandbox.at("tmp/file")).status();
            assert!(status.unwrap().success());
        },
        FilesReason::InodeFlagsChanged,
    );
}

#[test]
fn a_new_immutable_file_is_refused() {
    refused(
        "a_new_immutable_file_is_refused",
        &Options::default(),
        nothing,
        |sandbox| {
            fs::write(sandbox.at("tmp/file"), b"x").unwrap();
            let status = Command::new("chattr").arg("+i").arg(sandbox.at("tmp/file")).status();
            assert!(status.unwrap().success());
        },
        FilesReason::UndoFailed,
    );
}

#[test]
fn a_new_mount_is_refused() {
    refused(
        "a_new_mount_is_refused",
        &Options::default(),
        nothing,
        |sandbox| {
            let merged = sandbox.directory.path().join("merged/tmp");
            sandbox.outside(&format!("mount -t tmpfs secret {}", merged.display()));
        },
        FilesReason::MountsChanged,
    );
}

#[test]
fn a_removed_socket_is_refused() {
    refused(
        "a_removed_socket_is_refused",
        &Options::default(),
        |sandbox| drop(UnixListener::bind(sandbox.at("tmp/socket")).unwrap()),
        |sandbox| fs::remove_file(sandbox.at("tmp/socket")).unwrap(),
        FilesReason::SocketReplaced,
    );
}

#[test]
fn a_container_that_ended_is_refused() {
    if !possible("a_container_that_ended_is_refused") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    let mut sealed = sandbox.seal();
    drop(sandbox);
    assert_eq!(sealed.rewind().unwrap_err().reason, FilesReason::ContainerGone);
}

#[test]
fn seals_beyond_their_bounds_are_refused() {
    if !possible("seals_beyond_their_bounds_are_refused") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    fs::write(sandbox.at("tmp/large"), vec![1; 1 << 20]).unwrap();
    let with = |options: Options| seal(sandbox.discover(), &options).map(|_| ());
    let few = Options { sealed_entries_max: 3, ..Options::default() };
    assert!(matches!(with(few), Err(SealError::TooManyEntries { max: 3 })));
    let small = Options { sealed_bytes_max: 1000, ..Options::default() };
    assert!(matches!(with(small), Err(SealError::TooManyBytes { max: 1000 })));
    let nowhere = Options { store: PathBuf::from("/nonexistent"), ..Options::default() };
    assert!(matches!(with(nowhere), Err(SealError::Store { .. })));
    with(Options::default()).unwrap();
}

#[test]
fn a_process_without_an_overlay_root_is_refused() {
    let own = nix::unistd::Pid::this();
    assert!(fs_overlay::OverlayRoot::discover(own).is_err());
}

#[test]
fn changes_are_told_without_being_undone() {
    if !possible("changes_are_told_without_being_undone") {
        return;
    }
    let sandbox = Sandbox::start(fill);
    let mut sealed: Sealed = sandbox.seal();
    assert!(sealed.changes().unwrap().is_empty());
    fs::write(sandbox.at("tmp/new"), b"x").unwrap();
    fs::remove_file(sandbox.at("su")).unwrap();
    let dirty = sandbox.state();
    let changes = sealed.changes().unwrap();
    assert_eq!(changes.count(ChangeKind::Added), 1);
    assert_eq!(changes.count(ChangeKind::Removed), 1);
    assert!(changes.paths.iter().any(|change| change.path == OsString::from_vec(b"/tmp/new".to_vec())));
    dirty.assert_same(&sandbox.state(), "looking changes nothing");
    let result: Result<FilesReport, FilesQuarantine> = sealed.rewind();
    assert_eq!(result.unwrap().changes.total(), changes.total());
}

#[test]
fn reasons_have_distinct_names() {
    let mut names: Vec<_> = FilesReason::ALL.iter().map(|reason| reason.name()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FilesReason::ALL.len());
    assert!(FilesReason::ALL.iter().all(|reason| reason.explain().len() > 20));
}

#[test]
fn writes_through_mappings_older_than_the_seal_are_seen() {
    let test = "writes_through_mappings_older_than_the_seal_are_seen";
    if !possible(test) {
        return;
    }
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("SKIP {test}: needs python3");
        return;
    }
    let sandbox = Sandbox::start(fill);
    // The page is dirty and writable when the files are sealed, so that further writes tell nobody.
    let script = "import mmap, os, sys\nos.chroot(sys.argv[1])\n\
        f = open('/tmp/mapped', 'w+b'); f.truncate(4096); m = mmap.mmap(f.fileno(), 0); f.close()\n\
        m[0:6] = b'sealed'; print('ready', flush=True)\n\
        for line in sys.stdin: m[0:6] = b'secret'; print('done', flush=True)";
    let root = format!("/proc/{}/root", sandbox.pid());
    let mut mapper = Command::new("nsenter")
        .args(["-t", &sandbox.pid().to_string(), "--mount", "python3", "-c", script, &root])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = mapper.stdin.take().unwrap();
    let mut output = std::io::BufReader::new(mapper.stdout.take().unwrap());
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    for options in [entry_by_entry(), swapping()] {
        let mut sealed = sandbox.seal_with(&options);
        let before = fs::metadata(sandbox.at("tmp/mapped")).unwrap();
        std::thread::sleep(Duration::from_millis(30));
        for _ in 0..2 {
            input.write_all(b"write\n").unwrap();
            line.clear();
            output.read_line(&mut line).unwrap();
            assert_eq!(line, "done\n");
            let report = sealed.rewind().unwrap();
            assert_eq!(&read(&sandbox.at("tmp/mapped"))[..6], b"sealed");
            assert_eq!(report.changes.count(ChangeKind::Contents), 1);
            assert!(!report.swapped, "a file mapped for writing stays where it is");
            let after = fs::metadata(sandbox.at("tmp/mapped")).unwrap();
            assert_eq!(before.modified().unwrap(), after.modified().unwrap());
        }
    }
    drop(input);
    mapper.wait().unwrap();
}

/// Something done to the files of a sandbox.
type Request = fn(&Sandbox);

/// A process of the container that has run some Perl, and is there until its input ends.
fn holding(sandbox: &Sandbox, perl: &str) -> std::process::Child {
    let script = format!("$| = 1; chroot $ARGV[0]; chdir '/'; {perl}; print \"ready\\n\"; <STDIN>;");
    let root = format!("/proc/{}/root", sandbox.pid());
    let mut holder = Command::new("nsenter")
        .args(["-t", &sandbox.pid().to_string(), "--mount", "perl", "-e", &script, &root])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    holder.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    holder
}

#[test]
fn what_processes_hold_decides_whether_the_root_is_swapped() {
    if !possible("what_processes_hold_decides_whether_the_root_is_swapped") {
        return;
    }
    let held = "open(F, '<', '/tmp/held') or die";
    let changed = |sandbox: &Sandbox| fs::write(sandbox.at("tmp/held"), b"evil").unwrap();
    let other = |sandbox: &Sandbox| fs::write(sandbox.at("tmp/other"), b"evil").unwrap();
    let image = |sandbox: &Sandbox| fs::write(sandbox.at("lib/code"), b"evil").unwrap();
    let deleted = |sandbox: &Sandbox| fs::remove_file(sandbox.at("tmp/gone")).unwrap();
    let cases: [(&str, Request, Option<&str>); 13] = [
        (held, other, None),
        ("open(F, '<', '/lib/code') or die", other, None),
        ("open(F, '+<', '/dev/shm/mine') or die; opendir(D, '/dev') or die", other, None),
        ("chdir '/tmp'", other, None),
        (held, changed, Some("a process holds a file that changed")),
        ("open(F, '<', '/lib/code') or die", image, Some("a process holds a file that changed")),
        ("open(F, '>>', '/tmp/held') or die", other, Some("a process holds a file open for writing")),
        (
            "open(F, '<', '/tmp/held') or die; flock(F, 1) or die",
            other,
            Some("a process holds a file locked"),
        ),
        ("opendir(D, '/tmp') or die", other, Some("a process holds a directory open")),
        ("sysopen(F, '/tmp/fifo', 2048) or die", other, Some("a process holds a fifo open")),
        // inotify_init and inotify_add_watch of x86-64.
        (
            "$n = syscall 253; $p = '/tmp'; syscall(254, $n, $p, 2) > 0 or die",
            other,
            Some("a process watches files"),
        ),
        ("chroot '/tmp' or die", other, Some("a process has another root")),
        // Held without a name since the request only: that is for the undo to decide.
        ("open(F, '<', '/tmp/gone') or die", deleted, Some("a process holds a file that was deleted")),
    ];
    for (perl, request, why) in cases {
        let sandbox = Sandbox::start(fill);
        for name in ["tmp/held", "tmp/gone", "tmp/other", "dev/shm/mine"] {
            fs::write(sandbox.at(name), b"sealed").unwrap();
        }
        if perl.contains("fifo") {
            rustix::fs::mknodat(CWD, sandbox.at("tmp/fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        }
        let mut holder = holding(&sandbox, perl);
        let mut sealed = sandbox.seal_with(&swapping());
        std::thread::sleep(Duration::from_millis(30));
        let pristine = sandbox.state();
        request(&sandbox);
        match sealed.rewind() {
            Ok(report) => {
                assert_eq!(report.unswapped, why, "{perl}: {report:?}");
                assert_eq!(report.swapped, why.is_none(), "{perl}: {report:?}");
                pristine.assert_same(&sandbox.state(), perl);
            }
            Err(error) => {
                assert!(perl.contains("gone"), "{perl}: {error}");
                assert_eq!(error.reason, FilesReason::HeldOpen, "{perl}: {error}");
            }
        }
        drop(holder.stdin.take());
        holder.wait().unwrap();
    }
}

#[test]
fn what_would_not_be_the_same_in_a_copy_is_not_swapped() {
    if !possible("what_would_not_be_the_same_in_a_copy_is_not_swapped") {
        return;
    }
    let cases: [(&str, Request); 3] = [
        ("a sealed file has several names", |sandbox| {
            fs::write(sandbox.at("tmp/one"), b"shared").unwrap();
            fs::hard_link(sandbox.at("tmp/one"), sandbox.at("tmp/two")).unwrap();
        }),
        ("a socket or a fifo is sealed", |sandbox| {
            drop(UnixListener::bind(sandbox.at("tmp/socket")).unwrap())
        }),
        ("a sealed file has inode flags", |sandbox| {
            fs::write(sandbox.at("tmp/flagged"), b"").unwrap();
            let status = Command::new("chattr").arg("+d").arg(sandbox.at("tmp/flagged")).status();
            assert!(status.unwrap().success());
        }),
    ];
    for (why, prepare) in cases {
        let sandbox = Sandbox::start(fill);
        prepare(&sandbox);
        let mut sealed = sandbox.seal_with(&swapping());
        let pristine = sandbox.state();
        fs::write(sandbox.at("tmp/new"), b"secret").unwrap();
        let report = sealed.rewind().unwrap();
        assert_eq!(report.unswapped, Some(why));
        pristine.assert_same(&sandbox.state(), why);
    }
}

/// Mounts a directory of the host at `/vol`, as Docker mounts a volume.
fn with_volume(sandbox: &Sandbox) -> PathBuf {
    let volume = sandbox.directory.path().join("volume");
    fs::create_dir(&volume).unwrap();
    fs::write(volume.join("kept"), b"kept").unwrap();
    fs::create_dir(sandbox.at("vol")).unwrap();
    let merged = sandbox.directory.path().join("merged/vol");
    sandbox.outside(&format!("mount --bind {} {}", volume.display(), merged.display()));
    volume
}

#[test]
fn volumes_are_put_back() {
    undone(
        "volumes_are_put_back",
        |sandbox| drop(with_volume(sandbox)),
        |sandbox| {
            fs::write(sandbox.at("vol/kept"), b"evil").unwrap();
            fs::write(sandbox.at("vol/new"), b"secret").unwrap();
            fs::write(sandbox.at("tmp/new"), b"secret").unwrap();
        },
        |report| {
            let counts = [ChangeKind::Added, ChangeKind::Contents].map(|kind| report.changes.count(kind));
            assert_eq!(counts, [2, 1], "{:?}", report.changes);
        },
    );
}

#[test]
fn shared_volumes_are_left_alone() {
    if !possible("shared_volumes_are_left_alone") {
        return;
    }
    for options in [entry_by_entry(), swapping()] {
        let sandbox = Sandbox::start(fill);
        let volume = with_volume(&sandbox);
        let options = Options { shared: vec![PathBuf::from("/vol")], ..options };
        let (mut sealed, report) = seal(sandbox.discover(), &options).unwrap();
        assert_eq!(report.mounts_shared, 1);
        for round in ["first", "second"] {
            fs::write(sandbox.at("vol/kept"), round).unwrap();
            fs::write(sandbox.at("tmp/new"), b"secret").unwrap();
            let report = sealed.rewind().unwrap();
            assert!(!report.changes.is_empty());
            assert!(report.changes.paths.iter().all(|change| !change.path.starts_with("/vol")));
            assert!(!sandbox.at("tmp/new").exists());
            // It is still what it was, and where it was.
            assert_eq!(read(&volume.join("kept")), round.as_bytes());
            assert_eq!(read(&sandbox.at("vol/kept")), round.as_bytes());
        }
    }
}

#[test]
fn work_does_not_follow_the_size_of_the_image() {
    let test = "work_does_not_follow_the_size_of_the_image";
    if !possible(test) {
        return;
    }
    let works = [10, 50_000].map(|files: u32| {
        let sandbox = Sandbox::start(|layers| {
            fill(layers);
            for number in 0..files {
                let directory = layers.bottom.join(format!("image/{}", number % 100));
                if number < 100 {
                    fs::create_dir_all(&directory).unwrap();
                }
                // Links cost less than files; fewer than ext4 allows of one.
                let one = directory.join("0");
                if number < 100 {
                    fs::write(&one, b"of the image").unwrap();
                } else {
                    fs::hard_link(&one, directory.join(number.to_string())).unwrap();
                }
            }
        });
        fs::write(sandbox.at("tmp/sealed"), b"sealed").unwrap();
        let mut sealed = sandbox.seal();
        std::thread::sleep(Duration::from_millis(30));
        let mut work = Vec::new();
        for changed in [0, 1, 5, 200] {
            for number in 0..changed {
                fs::write(sandbox.at(format!("tmp/{number}")), b"secret").unwrap();
            }
            if changed > 0 {
                fs::write(sandbox.at("image/0/0"), b"secret").unwrap();
            }
            let report = sealed.rewind().unwrap();
            assert_eq!(report.swapped, changed == 200, "{report:?}");
            work.push((report.entries_examined, report.undone(), report.bytes_written));
        }
        work
    });
    assert_eq!(works[0], works[1]);
    let examined = |index: usize| works[0][index].0;
    assert!(examined(0) < 40 && examined(1) < 80 && examined(2) < 120 && examined(3) < 200, "{works:?}");
}

#[test]
fn work_does_not_follow_what_was_sealed() {
    let test = "work_does_not_follow_what_was_sealed";
    if !possible(test) {
        return;
    }
    let sandbox = Sandbox::start(fill);
    for directory in 0..20 {
        fs::create_dir_all(sandbox.at(format!("action/{directory}"))).unwrap();
        for number in 0..100 {
            fs::write(sandbox.at(format!("action/{directory}/{number}")), b"sealed").unwrap();
        }
    }
    // Copying takes a busy machine its time.
    let mut sealed = sandbox.seal_with(&Options { deadline: Duration::from_secs(120), ..Options::default() });
    let pristine = sandbox.state();
    std::thread::sleep(Duration::from_millis(30));
    let first = sealed.rewind().unwrap();
    // Looking at the pristine state moved access times.
    let changed = first.changes.total() - first.changes.count(ChangeKind::AccessTime);
    assert!(first.swapped && changed == 0, "{first:?}");
    pristine.assert_same(&sandbox.state(), test);
    let idle = sealed.rewind().unwrap();
    assert!(!idle.swapped && idle.entries_examined < 40, "{idle:?}");
    for _ in 0..2 {
        fs::write(sandbox.at("action/3/7"), b"SECRET").unwrap();
        fs::remove_file(sandbox.at("action/4/8")).unwrap();
        let report = sealed.rewind().unwrap();
        assert!(!report.swapped && report.entries_examined < 80, "{report:?}");
        assert_eq!((report.files_rewritten, report.entries_recreated), (1, 1), "{report:?}");
        pristine.assert_same(&sandbox.state(), test);
    }
}

/// Keeps the seek helpers honest: a hole that ends a file is not data.
#[test]
fn a_file_that_ends_in_a_hole_is_restored_whole() {
    undone(
        "a_file_that_ends_in_a_hole_is_restored_whole",
        |sandbox| {
            let mut file = File::create(sandbox.at("tmp/hole")).unwrap();
            file.write_all(b"start").unwrap();
            file.seek(SeekFrom::Start(1 << 20)).unwrap();
            file.set_len(1 << 20).unwrap();
        },
        |sandbox| {
            let file = OpenOptions::new().write(true).open(sandbox.at("tmp/hole")).unwrap();
            file.set_len(10).unwrap();
            file.write_all_at(b"secret", 1 << 19).unwrap();
        },
        |report| assert_eq!(report.changes.count(ChangeKind::Contents), 1),
    );
}
