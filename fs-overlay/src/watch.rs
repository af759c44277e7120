//! The process whose files are sealed, and its mount table: whether either changed, in one call.
//!
//! Reading a mount table costs some 30 us with thirty mounts, and more with more; so it is kept open, and the
//! kernel is asked whether anything happened to it (proc(5): a change of the table makes it ready for
//! `POLLPRI`). Only if so it is read and compared, since the host may touch it without changing it.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::unistd::Pid;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::process::{PidfdFlags, pidfd_open};

use crate::report::{FilesQuarantine, FilesReason};

/// A process and the mount table it was found with.
#[derive(Debug)]
pub(crate) struct Watch {
    /// `/proc/<pid>`, which stays tied to the process, not to its number.
    pub(crate) process: OwnedFd,
    /// Readable once the process has ended.
    ended: OwnedFd,
    /// Its mount table. The kernel counts the changes from the moment this is opened.
    mounts: File,
    /// The text of the table.
    pub(crate) table: Vec<u8>,
}

impl Watch {
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let process = rustix::fs::open(format!("/proc/{pid}"), flags, Mode::empty())?;
        let number = rustix::process::Pid::from_raw(pid.as_raw()).ok_or(io::ErrorKind::InvalidInput)?;
        let ended = pidfd_open(number, PidfdFlags::empty())?;
        // Through the directory: this fails if the number changed hands before the line above.
        let mounts = open(&process)?;
        let table = read(&mounts)?;
        Ok(Self { process, ended, mounts, table })
    }

    /// Whether the process is there and its mounts are those of the table.
    pub(crate) fn check(&self) -> Result<(), FilesQuarantine> {
        let whole = Path::new("/");
        let gone = |error: io::Error| {
            FilesQuarantine::failed(FilesReason::ContainerGone, whole, "reading mounts", error)
        };
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let changed = PollFlags::PRI | PollFlags::ERR;
        let mut asked = [PollFd::new(&self.ended, PollFlags::IN), PollFd::new(&self.mounts, changed)];
        poll(&mut asked, Some(&at_once)).map_err(|error| gone(error.into()))?;
        if !asked[0].revents().is_empty() {
            return Err(FilesQuarantine::new(FilesReason::ContainerGone, whole, "reading mounts"));
        }
        if asked[1].revents().is_empty() || read(&self.mounts).map_err(gone)? == self.table {
            return Ok(());
        }
        Err(FilesQuarantine::new(FilesReason::MountsChanged, whole, "comparing mounts"))
    }

    /// Takes the table as it is now, if `right` says that it is as it should be.
    ///
    /// Opened anew, since the kernel shows a table as seen from the root the process had then.
    pub(crate) fn accept(&mut self, right: impl FnOnce(&[u8]) -> bool) -> io::Result<bool> {
        let mounts = open(&self.process)?;
        let table = read(&mounts)?;
        if !right(&table) {
            return Ok(false);
        }
        (self.mounts, self.table) = (mounts, table);
        Ok(true)
    }
}

fn open(process: &OwnedFd) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(process, "mountinfo", flags, Mode::empty())?.into())
}

/// The whole table, from its beginning.
fn read(mut mounts: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::with_capacity(8 * 1024);
    mounts.rewind()?;
    mounts.read_to_end(&mut text)?;
    Ok(text)
}
