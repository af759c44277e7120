//! Random sequences of file operations in a real overlay, against a full comparison.

#![allow(missing_docs, unreachable_pub, reason = "a test")]

mod common;

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use common::{Layers, Sandbox, possible};
use fs_overlay::Options;
use proptest::prelude::*;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, RenameFlags, XattrFlags};

/// One operation, as a function may do it. Paths are drawn from a small set, so that operations
/// meet each other and the layers' entries; one that fails (nothing there, not empty) is no error.
#[derive(Debug, Clone)]
enum Operation {
    Write(PathBuf, Vec<u8>),
    Append(PathBuf, Vec<u8>),
    Patch(PathBuf, u64, Vec<u8>),
    Truncate(PathBuf, u64),
    Punch(PathBuf, u64, u64),
    Unlink(PathBuf),
    RemoveAll(PathBuf),
    Mkdir(PathBuf),
    Rename(PathBuf, PathBuf),
    Exchange(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32, u32),
    Times(PathBuf, u64),
    SetAttribute(PathBuf, Vec<u8>),
    RemoveAttribute(PathBuf),
    Fifo(PathBuf),
    Device(PathBuf),
}

const ATTRIBUTE: &str = "user.note";

impl Operation {
    fn run(&self, root: &Path) {
        // The result is of no interest: what happened is what the comparison sees.
        let _ = self.attempt(root);
    }

    fn attempt(&self, root: &Path) -> std::io::Result<()> {
        let at = |path: &Path| root.join(path);
        // Opening a fifo or device would wait or do something else.
        let file = |path: &Path, options: &mut OpenOptions| -> std::io::Result<File> {
            match fs::symlink_metadata(at(path)) {
                Ok(metadata) if !metadata.is_file() => Err(std::io::Error::other("not a file")),
                _ => options.open(at(path)),
            }
        };
        let mut write = OpenOptions::new();
        write.write(true);
        match self {
            Self::Write(path, bytes) => file(path, write.create(true).truncate(true))?.write_all(bytes),
            Self::Append(path, bytes) => file(path, OpenOptions::new().append(true))?.write_all(bytes),
            Self::Patch(path, offset, bytes) => {
                // utimes afterwards: a change that hides.
                let file = file(path, &mut write)?;
                let before = file.metadata()?.modified()?;
                file.write_all_at(bytes, *offset)?;
                file.set_modified(before)
            }
            Self::Truncate(path, size) => file(path, &mut write)?.set_len(*size),
            Self::Punch(path, offset, length) => {
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                Ok(rustix::fs::fallocate(file(path, &mut write)?, punch, *offset, length + 1)?)
            }
            Self::Unlink(path) => fs::remove_file(at(path)),
            Self::RemoveAll(path) => fs::remove_dir_all(at(path)),
            Self::Mkdir(path) => fs::create_dir(at(path)),
            Self::Rename(from, to) => fs::rename(at(from), at(to)),
            Self::Exchange(one, other) => {
                Ok(rustix::fs::renameat_with(CWD, at(one), CWD, at(other), RenameFlags::EXCHANGE)?)
            }
            Self::Link(from, to) => fs::hard_link(at(from), at(to)),
            Self::Symlink(target, path) => symlink(target, at(path)),
            Self::Chmod(path, mode) => {
                // Not through a link: it may lead anywhere on this machine.
                if fs::symlink_metadata(at(path))?.is_symlink() {
                    return Ok(());
                }
                fs::set_permissions(at(path), fs::Permissions::from_mode(*mode))
            }
            Self::Chown(path, uid, gid) => std::os::unix::fs::lchown(at(path), Some(*uid), Some(*gid)),
            Self::Times(path, seconds) => file(path, OpenOptions::new().read(true))?
                .set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(*seconds)),
            Self::SetAttribute(path, value) => {
                Ok(rustix::fs::lsetxattr(at(path), ATTRIBUTE, value, XattrFlags::empty())?)
            }
            Self::RemoveAttribute(path) => Ok(rustix::fs::lremovexattr(at(path), ATTRIBUTE)?),
            Self::Fifo(path) => Ok(rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::RWXU, 0)?),
            Self::Device(path) => Ok(rustix::fs::mknodat(
                CWD,
                at(path),
                FileType::CharacterDevice,
                Mode::RWXU,
                rustix::fs::makedev(1, 3),
            )?),
        }
    }
}

fn path() -> impl Strategy<Value = PathBuf> {
    let name = prop_oneof![
        Just(OsString::from("a")),
        Just(OsString::from("b")),
        Just(OsString::from("c")),
        Just(OsString::from_vec(b"new\nline \xff".to_vec())),
    ];
    let base = prop_oneof![3 => Just("data"), 1 => Just("dev/shm"), 1 => Just("")];
    (base, proptest::collection::vec(name, 1..4)).prop_map(|(base, names)| {
        let mut path = PathBuf::from(base);
        path.extend(names);
        path
    })
}

fn bytes() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..50),
        (any::<u8>(), 1_usize..200_000).prop_map(|(byte, length)| vec![byte; length]),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    let mode = prop_oneof![Just(0o644), Just(0o4755), Just(0o2700), Just(0o1777), Just(0o000)];
    prop_oneof![
        3 => (path(), bytes()).prop_map(|(p, b)| Operation::Write(p, b)),
        1 => (path(), bytes()).prop_map(|(p, b)| Operation::Append(p, b)),
        2 => (path(), 0_u64..300_000, bytes()).prop_map(|(p, o, b)| Operation::Patch(p, o, b)),
        1 => (path(), 0_u64..300_000).prop_map(|(p, s)| Operation::Truncate(p, s)),
        1 => (path(), 0_u64..200_000, 0_u64..200_000).prop_map(|(p, o, l)| Operation::Punch(p, o, l)),
        2 => path().prop_map(Operation::Unlink),
        2 => path().prop_map(Operation::RemoveAll),
        3 => path().prop_map(Operation::Mkdir),
        3 => (path(), path()).prop_map(|(a, b)| Operation::Rename(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Operation::Exchange(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Operation::Link(a, b)),
        1 => (path(), path()).prop_map(|(a, b)| Operation::Symlink(a, b)),
        1 => (path(), mode).prop_map(|(p, m)| Operation::Chmod(p, m)),
        1 => (path(), 0_u32..3, 0_u32..3).prop_map(|(p, u, g)| Operation::Chown(p, u, g)),
        1 => (path(), 0_u64..2_000_000_000).prop_map(|(p, s)| Operation::Times(p, s)),
        1 => (path(), bytes()).prop_map(|(p, b)| Operation::SetAttribute(p, b)),
        1 => path().prop_map(Operation::RemoveAttribute),
        1 => path().prop_map(Operation::Fifo),
        1 => path().prop_map(Operation::Device),
    ]
}

/// Layers with something of each kind, and with marks of their own between them.
fn fill(layers: &Layers) {
    for layer in [&layers.bottom, &layers.top] {
        fs::create_dir_all(layer.join("data/a/b")).unwrap();
    }
    fs::create_dir_all(layers.bottom.join("data/c/a")).unwrap();
    fs::write(layers.bottom.join("data/c/a/b"), b"deep in the bottom").unwrap();
    fs::write(layers.bottom.join("data/a/a"), b"bottom a/a").unwrap();
    fs::write(layers.top.join("data/a/c"), vec![3; 100_000]).unwrap();
    fs::write(layers.bottom.join("data/a/b/c"), b"hidden by the layer above").unwrap();
    rustix::fs::mknodat(CWD, layers.top.join("data/a/b/c"), FileType::CharacterDevice, Mode::empty(), 0)
        .unwrap();
    fs::write(layers.bottom.join("data/a/b/a"), b"shines through").unwrap();
    fs::write(layers.top.join("data/b"), b"top b").unwrap();
    symlink("/etc/passwd", layers.top.join("c")).unwrap();
    fs::set_permissions(layers.top.join("data/b"), fs::Permissions::from_mode(0o4711)).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 400, ..ProptestConfig::default() })]
    #[test]
    fn whatever_a_request_does_to_files_is_undone(
        before in proptest::collection::vec(operation(), 0..12),
        requests in proptest::collection::vec(proptest::collection::vec(operation(), 0..12), 1..4),
        // Whatever changed, what changed much, or nothing makes a rewind swap the root.
        swap_from in prop_oneof![Just(1), Just(4), Just(u64::MAX)],
    ) {
        if !possible("whatever_a_request_does_to_files_is_undone") {
            return Ok(());
        }
        let sandbox = Sandbox::start(fill);
        for operation in &before {
            operation.run(&sandbox.at(""));
        }
        let mut sealed = sandbox.seal_with(&Options { swap_from, ..Options::default() });
        let pristine = sandbox.state();
        for (number, request) in requests.iter().enumerate() {
            for operation in request {
                operation.run(&sandbox.at(""));
            }
            let dirty = sandbox.state();
            let report = sealed.rewind().unwrap_or_else(|error| panic!("request {number}: {error}"));
            pristine.assert_same(&sandbox.state(), &format!("after request {number}"));
            if !pristine.is_same(&dirty) {
                prop_assert!(!report.changes.is_empty(), "request {} changed files unseen", number);
            }
            let again = sealed.rewind().unwrap();
            let left = again.changes.total() - again.changes.count(fs_overlay::ChangeKind::AccessTime);
            prop_assert_eq!(left, 0, "nothing to undo twice: {:?}", again.changes);
        }
    }
}
