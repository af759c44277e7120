//! A copy of a sealed upper, to be a layer of a fresh overlay.

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Dev, FileType, Mode, OFlags, XattrFlags};

use crate::at;
use crate::contents::{self, Store};
use crate::examine::{Steps, Tree, same_status};
use crate::manifest::{Body, Node, Source};
use crate::report::FilesReason;
use crate::undo::correct_status;
use crate::work::{Stop, Work};

/// Overlay's mark on a directory that hides the layers below it.
const OPAQUE: &str = "trusted.overlay.opaque";

/// Writes what the manifest of a tree says into an empty directory, and checks it.
pub(crate) fn write(tree: &Tree, into: &OwnedFd, store: &Store, work: &mut Work<'_>) -> Result<(), Stop> {
    let mut writer = Writer { tree, store, work, path: Vec::new() };
    writer.children(&tree.node, into, false)?;
    writer.finish(&tree.node, into)
}

struct Writer<'a, 'o> {
    tree: &'a Tree,
    store: &'a Store,
    work: &'a mut Work<'o>,
    /// Where writing stands.
    path: Steps,
}

impl Writer<'_, '_> {
    fn children(&mut self, node: &Node, directory: &OwnedFd, hidden: bool) -> Result<(), Stop> {
        self.work.descend(self.path.len())?;
        let Body::Directory { children, opaque, .. } = &node.body else { return Ok(()) };
        let hidden = hidden || *opaque;
        if *opaque {
            rustix::fs::setxattr(at::handle(directory), OPAQUE, b"y", XattrFlags::empty())?;
        }
        for (name, child) in children {
            self.path.push(name.clone());
            self.entry(child, directory, name, hidden)?;
            self.path.pop();
        }
        Ok(())
    }

    /// `hidden`: whether a directory above hides what the layers hold here.
    fn entry(&mut self, node: &Node, directory: &OwnedFd, name: &OsString, hidden: bool) -> Result<(), Stop> {
        self.work.examined()?;
        let private = Mode::RUSR | Mode::WUSR;
        match &node.body {
            Body::Whiteout => {
                let none = Dev::default();
                rustix::fs::mknodat(directory, name, FileType::CharacterDevice, Mode::empty(), none)?;
                // It has no status of its own.
                return Ok(());
            }
            // The same file shows through from the image.
            Body::Regular(Source::Lower) if !hidden => return Ok(()),
            Body::Directory { .. } => {
                rustix::fs::mkdirat(directory, name, private | Mode::XUSR)?;
                let made = at::directory_at(directory, name)?;
                self.children(node, &made, hidden)?;
            }
            Body::Regular(source) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(directory, name, flags, private)?);
                let (store, work) = (self.store, &mut *self.work);
                let same = self.tree.with_contents(source, &self.path, store, |wanted| {
                    contents::restore(&file, wanted, work)?;
                    contents::same(&file, wanted, work)
                })?;
                if !same {
                    return Err(differs());
                }
            }
            Body::Symlink(target) => {
                rustix::fs::symlinkat(std::ffi::OsStr::from_bytes(target), directory, name)?;
            }
            Body::Special | Body::Queue => {
                let (major, minor) = node.status.device;
                let device = rustix::fs::makedev(major, minor);
                rustix::fs::mknodat(directory, name, node.status.kind.file_type(), private, device)?;
            }
        }
        let made = at::name_at(directory, name)?;
        self.finish(node, &made)
    }

    /// Gives an entry its status and checks that it has it.
    fn finish(&self, node: &Node, made: &OwnedFd) -> Result<(), Stop> {
        correct_status(made, node)?;
        let status = at::status(made)?;
        let same = status.kind == node.status.kind
            && status.device == node.status.device
            && same_status(node, &status, true)
            && at::attributes(made)? == node.attributes;
        if same { Ok(()) } else { Err(differs()) }
    }
}

fn differs() -> Stop {
    Stop::Reason(FilesReason::NotRestored, "a copy of a sealed entry differs from it")
}
