//! Where a process stands in the file system: executable, root, mounts, working directory.

use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::file;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;

/// A file system object, by identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Node {
    device: u64,
    inode: u64,
    mount: u64,
}

fn node(path: &str) -> Result<Node, Quarantine> {
    let unreadable = || path.to_owned();
    let metadata = std::fs::metadata(path).or_quarantine(Reason::Unreadable, unreadable)?;
    let mount = file::mount_id(path).or_quarantine(Reason::Unreadable, unreadable)?;
    Ok(Node { device: metadata.dev(), inode: metadata.ino(), mount })
}

/// The recorded place of a process.
#[derive(Debug)]
pub(crate) struct Place {
    executable: (u64, u64),
    /// The working directory as the process itself names it.
    directory: Vec<u8>,
    directory_node: Node,
    root: Node,
    /// Whether the root is another since the process was sent to its directory: then that lies in the old tree,
    /// although name and identity are those recorded.
    moved: bool,
    /// Polled for changes of the mount table.
    mounts: File,
    /// Its text: the host may touch the table without changing it.
    mount_table: Vec<u8>,
}

impl Place {
    pub(crate) fn record(pid: i32) -> Result<Place, Quarantine> {
        let exe = format!("/proc/{pid}/exe");
        let executable = std::fs::metadata(&exe).or_quarantine(Reason::Unreadable, || exe)?;
        let (directory, directory_node) = working_directory(pid)?;
        let path = format!("/proc/{pid}/mountinfo");
        let mounts = File::open(&path).or_quarantine(Reason::Unreadable, || path)?;
        let mount_table = table(&mounts)?;
        Ok(Place {
            executable: (executable.dev(), executable.ino()),
            directory,
            directory_node,
            root: node(&format!("/proc/{pid}/root"))?,
            moved: false,
            mounts,
            mount_table,
        })
    }

    /// Compares executable, root and mounts. Before the caller's files are put back, which may change the
    /// mounts on purpose.
    pub(crate) fn check(&self, pid: i32) -> Result<(), Quarantine> {
        let exe = format!("/proc/{pid}/exe");
        let now = std::fs::metadata(&exe).or_quarantine(Reason::Unreadable, || exe)?;
        if (now.dev(), now.ino()) != self.executable {
            return Err(Quarantine::new(Reason::ExecutableReplaced, format!("process {pid}")));
        }
        let root = format!("/proc/{pid}/root");
        if node(&root)? != self.root {
            return Err(Quarantine::new(Reason::Root, root));
        }
        if self.mounts_changed()? && table(&self.mounts)? != self.mount_table {
            return Err(Quarantine::new(Reason::Mounts, format!("mounts of process {pid}")));
        }
        Ok(())
    }

    /// Whether the mount table changed since the last question.
    fn mounts_changed(&self) -> Result<bool, Quarantine> {
        file::poll(self.mounts.as_fd(), libc::POLLPRI | libc::POLLERR)
            .or_quarantine(Reason::Unreadable, || "polling the mount table".to_owned())
    }

    /// Takes root and mounts as they are now: the caller has put the files back.
    pub(crate) fn accept(&mut self, pid: i32) -> Result<(), Quarantine> {
        if self.mounts_changed()? {
            // Opened anew, since a table is shown as seen from the root the process had when it was opened.
            let path = format!("/proc/{pid}/mountinfo");
            self.mounts = File::open(&path).or_quarantine(Reason::Unreadable, || path)?;
            self.mount_table = table(&self.mounts)?;
            let root = node(&format!("/proc/{pid}/root"))?;
            self.moved |= root != self.root;
            self.root = root;
        }
        Ok(())
    }

    /// The directory to change to, if the process is elsewhere.
    pub(crate) fn wanted_directory(&self, pid: i32) -> Result<Option<&[u8]>, Quarantine> {
        let (directory, node) = working_directory(pid)?;
        let same = !self.moved && directory == self.directory && node == self.directory_node;
        Ok((!same).then_some(self.directory.as_slice()))
    }

    /// The process has been sent back; its directory must have the recorded name.
    pub(crate) fn returned(&mut self, pid: i32) -> Result<(), Quarantine> {
        let (directory, node) = working_directory(pid)?;
        if directory != self.directory {
            return Err(Quarantine::new(Reason::WorkingDirectory, format!("process {pid}")));
        }
        // Another node under the same name: the files were put back by mounting a fresh tree.
        self.directory_node = node;
        self.moved = false;
        Ok(())
    }
}

/// The whole mount table, read from its beginning.
fn table(mounts: &File) -> Result<Vec<u8>, Quarantine> {
    let mut text = Vec::new();
    let mut file = mounts;
    file.rewind()
        .and_then(|()| file.read_to_end(&mut text))
        .or_quarantine(Reason::Unreadable, || "reading the mount table".to_owned())?;
    Ok(text)
}

/// Path and identity of the working directory. A path that was removed or lies outside the root cannot be
/// returned to, and is told by the kernel with a prefix or suffix that makes it differ.
fn working_directory(pid: i32) -> Result<(Vec<u8>, Node), Quarantine> {
    let link = format!("/proc/{pid}/cwd");
    let path = std::fs::read_link(&link).or_quarantine(Reason::Unreadable, || link.clone())?;
    Ok((path.into_os_string().into_vec(), node(&link)?))
}
