//! What ties the processes of a container to its root, when that is to be swapped.
//!
//! After a swap, whatever a process has open or mapped stays on the old root, which nobody else sees any
//! more. For a file that is only read and did not change, that makes no difference. Everything else forbids
//! the swap: a directory (it leads into the old tree), a file open for writing (what goes in would not come
//! out under its name), a lock or a watch (others would not meet it), a file the request changed (its
//! contents would stay).

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::at::{self, Kind, Status};
use crate::examine::{Tree, steps};
use crate::held::{self, Held, is_deleted};
use crate::manifest::Body;
use crate::swap::Refusal;
use crate::work::Stop;

/// Looks through all processes that share the mounts of one process, and gives them.
pub(crate) fn check(
    process: &OwnedFd,
    tree: &Tree,
    mounts: &[PathBuf],
    held: &Held,
) -> Result<Vec<OwnedFd>, Refusal> {
    let root = at::status(&tree.edit).map_err(|error| failed(error.into()))?;
    let ties = Ties { tree, mounts, held, root };
    let mut processes = Vec::new();
    let look = |process: OwnedFd| {
        ties.check(&process)?;
        processes.push(process);
        Ok(())
    };
    held::sharing_mounts(process, look).map_err(failed)?;
    Ok(processes)
}

struct Ties<'a> {
    tree: &'a Tree,
    /// Where other mounts are.
    mounts: &'a [PathBuf],
    /// What had no name at the seal already.
    held: &'a Held,
    /// The root as all processes must have it.
    root: Status,
}

/// A tie that forbids the swap.
fn tied<T>(why: &'static str) -> Result<T, Stop> {
    Err(Stop::Reason(crate::FilesReason::HeldOpen, why))
}

fn failed(stop: Stop) -> Refusal {
    match stop {
        Stop::Io(error) => Refusal::failed("looking at what processes hold")(error),
        Stop::Reason(_, why) => Refusal::because(why),
        Stop::Enough => Refusal::because("too much is held"),
    }
}

impl Ties<'_> {
    fn check(&self, process: &OwnedFd) -> Result<(), Stop> {
        let root = self.place(process)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::openat(process, "fd", flags, Mode::empty())?;
        let information = rustix::fs::openat(process, "fdinfo", flags, Mode::empty())?;
        for name in at::names(&descriptors)? {
            self.descriptor(&root, &descriptors, &information, &name)?;
        }
        let maps = text(process, OsStr::new("maps"))?;
        for line in maps.split(|byte| *byte == b'\n') {
            if let Some(mapping) = held::mapped_file(line) {
                self.mapping(&root, mapping)?;
            }
        }
        Ok(())
    }

    /// The root must be the one to be swapped, for every thread, and no thread may have a place of its own.
    /// Gives the root's path, as the kernel shows it here.
    fn place(&self, process: &OwnedFd) -> Result<Vec<u8>, Stop> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let root = at::status(rustix::fs::openat(process, "root", flags, Mode::empty())?)?;
        if (root.mount, root.identity) != (self.root.mount, self.root.identity) {
            return tied("a process has another root");
        }
        let place = |of: &OwnedFd| -> io::Result<[Vec<u8>; 2]> {
            Ok([at::link_target(of, OsStr::new("cwd"))?, at::link_target(of, OsStr::new("root"))?])
        };
        let of_process = place(process)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let threads = rustix::fs::openat(process, "task", flags, Mode::empty())?;
        for name in at::names(&threads)? {
            let thread = rustix::fs::openat(&threads, &name, flags, Mode::empty())?;
            if place(&thread)? != of_process {
                return tied("a thread has a place of its own");
            }
        }
        let [_, root] = of_process;
        Ok(root)
    }

    fn descriptor(
        &self,
        root: &[u8],
        descriptors: &OwnedFd,
        information: &OwnedFd,
        name: &OsStr,
    ) -> Result<(), Stop> {
        let target = at::link_target(descriptors, name)?;
        if target.starts_with(b"anon_inode:[fanotify]") {
            return tied("a process watches files");
        }
        if target.starts_with(b"anon_inode:inotify") {
            let watches = text(information, name)?;
            let (major, minor) = self.root.on;
            let mark = format!(" sdev:{:x} ", (major << 20) | minor);
            let here = watches.windows(mark.len()).any(|window| window == mark.as_bytes());
            return if here { tied("a process watches files") } else { Ok(()) };
        }
        if target.first() != Some(&b'/') {
            return Ok(());
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let status = at::status(rustix::fs::openat(descriptors, name, flags, Mode::empty())?)?;
        if status.mount != self.root.mount {
            return Ok(());
        }
        match status.kind {
            Kind::Directory => return tied("a process holds a directory open"),
            Kind::Fifo | Kind::Socket => return tied("a process holds a fifo open"),
            Kind::CharacterDevice | Kind::BlockDevice => return Ok(()),
            Kind::Regular | Kind::Symlink => {}
        }
        let information = text(information, name)?;
        for line in information.split(|byte| *byte == b'\n') {
            if line.starts_with(b"lock:") {
                return tied("a process holds a file locked");
            }
            if let Some(flags) = line.strip_prefix(b"flags:") {
                let flags = std::str::from_utf8(flags).map_or("", str::trim);
                let flags = u32::from_str_radix(flags, 8).unwrap_or(u32::MAX);
                // O_WRONLY or O_RDWR.
                if flags & 0o3 != 0 {
                    return tied("a process holds a file open for writing");
                }
            }
        }
        if is_deleted(&target) {
            let known = self.held.open.contains_key(&(status.on, status.identity));
            return if known { Ok(()) } else { tied("a process holds a file that was deleted") };
        }
        self.unchanged(&held::inside(root, Path::new(OsStr::from_bytes(&target))))
    }

    fn mapping(&self, root: &[u8], mapping: held::Mapping<'_>) -> Result<(), Stop> {
        if is_deleted(mapping.path) {
            let known = self.held.mapped.get(mapping.path) == Some(&mapping.inode);
            return if known { Ok(()) } else { tied("a process maps a file that was deleted") };
        }
        let path = held::inside(root, &mapping.plain_path());
        if self.mounts.iter().any(|mount| path.starts_with(mount)) {
            return Ok(());
        }
        if mapping.shared && mapping.writable {
            return tied("a process maps a file for writing");
        }
        self.unchanged(&path)
    }

    /// Nothing happened to the entry at a path since the seal.
    fn unchanged(&self, path: &Path) -> Result<(), Stop> {
        let steps = steps(path);
        let found = self.tree.found(&steps)?;
        let changed = match (self.tree.node.at(&steps), found) {
            (None, found) => found.is_some(),
            (Some(node), None) => !matches!(node.body, Body::Whiteout),
            (Some(node), Some(status)) => {
                node.status.identity != status.identity
                    || node.status.changed != status.changed
                    || node.racy()
                    || !self.tree.mapped_writes_tell
            }
        };
        if changed { tied("a process holds a file that changed") } else { Ok(()) }
    }
}

/// The text of a file of /proc.
fn text(directory: &OwnedFd, name: &OsStr) -> io::Result<Vec<u8>> {
    let file = rustix::fs::openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    std::fs::File::from(file).read_to_end(&mut text)?;
    Ok(text)
}
