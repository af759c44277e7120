//! What the entries of a writable mount were: the manifest, and how it is recorded.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::OFlags;

use crate::at::{self, Identity, Kind, Status, Time};
use crate::contents::{Layout, Store};
use crate::lower::{self, LowerEntry};
use crate::options::Options;
use crate::report::SealReport;

/// One entry of the manifest.
#[derive(Debug)]
pub(crate) struct Node {
    /// The status to put back. Inode number and change time, which cannot be put back, are those
    /// last seen.
    pub(crate) status: Status,
    /// The clock when `status` was last known to be true. A change time before it cannot be that
    /// of a later change.
    pub(crate) recorded: Time,
    /// Set while a rewind changes the entry, until its verification has recorded the new status.
    pub(crate) touched: Touch,
    /// Whether a process mapped it for writing at the seal. A page that is writable in a mapping and
    /// not written back yet takes further writes without any trace in the status.
    pub(crate) mapped: bool,
    /// Extended attributes, sorted by name, without overlay's own.
    pub(crate) attributes: Vec<(OsString, Vec<u8>)>,
    pub(crate) body: Body,
}

/// How far a rewind has changed an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Touch {
    /// Not at all.
    No,
    /// Only its times.
    Times,
    /// Perhaps everything.
    All,
}

/// What an entry is besides its status.
#[derive(Debug)]
pub(crate) enum Body {
    Directory {
        /// Entries of the upper (or of the whole mount). Those of the layers below are not listed
        /// until a request has touched them.
        children: BTreeMap<OsString, Node>,
        /// Whether it hides the layers below.
        opaque: bool,
        /// The directory of the node's identity, where entries are looked at, once a walk has
        /// opened it. Holding it spares the next walk the opening, and pins its inode number.
        held: Option<OwnedFd>,
    },
    Regular(Source),
    Symlink(Vec<u8>),
    /// A fifo, socket or device: its status says all.
    Special,
    /// A POSIX message queue, whose messages are out of reach.
    Queue,
    /// Overlay's mark for an entry of the layers that was deleted before the seal.
    Whiteout,
}

/// Where the contents of a regular file are kept.
#[derive(Debug, Clone)]
pub(crate) enum Source {
    /// Copied at the seal. Hard links of one file share one copy.
    Stored(Arc<Layout>),
    /// The entry of the same path in the image layers, which nobody can change.
    Lower,
}

impl Node {
    /// Whether the entry may have changed since it was recorded although its change time is the
    /// same, because the clock of change times had not moved on when it was recorded.
    pub(crate) fn racy(&self) -> bool {
        let changed = self.status.changed;
        if changed.nanoseconds == 0 {
            // A file system that keeps whole seconds.
            return changed.seconds >= self.recorded.seconds;
        }
        changed >= self.recorded
    }

    pub(crate) fn child(&self, name: &OsStr) -> Option<&Self> {
        match &self.body {
            Body::Directory { children, .. } => children.get(name),
            _ => None,
        }
    }

    pub(crate) fn children_mut(&mut self) -> Option<&mut BTreeMap<OsString, Self>> {
        match &mut self.body {
            Body::Directory { children, .. } => Some(children),
            _ => None,
        }
    }

    /// Takes the entry found under this node's name for the node's own from now on. A directory
    /// held for another one is let go.
    pub(crate) fn identify(&mut self, found: Identity) {
        if self.status.identity != found {
            self.status.identity = found;
            self.take_held();
        }
    }

    /// Takes out the directory held for this node.
    pub(crate) fn take_held(&mut self) -> Option<OwnedFd> {
        match &mut self.body {
            Body::Directory { held, .. } => held.take(),
            _ => None,
        }
    }

    /// Keeps the directory of this node open.
    pub(crate) fn hold(&mut self, directory: OwnedFd) {
        if let Body::Directory { held, .. } = &mut self.body {
            *held = Some(directory);
        }
    }

    /// The node at a path below this one.
    pub(crate) fn at(&self, path: &[OsString]) -> Option<&Self> {
        path.iter().try_fold(self, |node, name| node.child(name))
    }

    /// The node at a path below this one.
    pub(crate) fn at_mut(&mut self, path: &[OsString]) -> Option<&mut Self> {
        path.iter().try_fold(self, |node, name| node.children_mut()?.get_mut(name))
    }

    /// What a regular file, link or directory of the layers is to look like once it lies in the
    /// upper. Directories come without children: these are still the layers' own.
    pub(crate) fn of_lower(entry: &LowerEntry) -> io::Result<Self> {
        let (status, attributes, body) = match entry {
            LowerEntry::Directory(directory, status) => {
                let attributes = directory.top().map(at::attributes).transpose()?;
                let body = Body::Directory { children: BTreeMap::new(), opaque: false, held: None };
                (status, attributes.unwrap_or_default(), body)
            }
            LowerEntry::Other(object, status) => {
                let body = match status.kind {
                    Kind::Regular => Body::Regular(Source::Lower),
                    Kind::Symlink => Body::Symlink(at::link_target(object, OsStr::new(""))?),
                    _ => Body::Special,
                };
                (status, at::attributes(object)?, body)
            }
        };
        // Hard links among files of the layers do not survive the copy into the upper.
        let status = Status { links: 1, flags: 0, ..*status };
        let recorded = at::coarse_now();
        Ok(Self { status, recorded, touched: Touch::All, mapped: false, attributes, body })
    }
}

/// Why an entry could not be recorded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("too many entries")]
    TooManyEntries,
    #[error("too many bytes")]
    TooManyBytes,
    #[error("too deep")]
    TooDeep,
    #[error("metacopy or redirect")]
    Unfollowed,
}

/// An inode among those of all file systems.
type OnDevice = ((u32, u32), Identity);

/// Records manifests, keeping to the bounds of one seal.
#[derive(Debug)]
pub(crate) struct Recorder<'a> {
    pub(crate) options: &'a Options,
    pub(crate) store: &'a mut Store,
    pub(crate) report: SealReport,
    /// Contents already copied, by device and inode, for files with several links.
    copied: HashMap<OnDevice, Arc<Layout>>,
    /// Symbolic links with several names.
    links: HashMap<OnDevice, (Status, Vec<u8>)>,
    /// Where recording stands, for the error.
    pub(crate) path: PathBuf,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(options: &'a Options, store: &'a mut Store) -> Self {
        Self {
            options,
            store,
            report: SealReport::default(),
            copied: HashMap::new(),
            links: HashMap::new(),
            path: PathBuf::new(),
        }
    }

    /// Records what a descriptor names, and everything below.
    pub(crate) fn record(
        &mut self,
        object: &OwnedFd,
        at_path: &Path,
        queues: bool,
    ) -> Result<Node, RecordError> {
        self.path = at_path.to_owned();
        self.node(object, 0, queues)
    }

    fn node(&mut self, object: &OwnedFd, depth: usize, queues: bool) -> Result<Node, RecordError> {
        self.report.entries += 1;
        if self.report.entries > self.options.sealed_entries_max {
            return Err(RecordError::TooManyEntries);
        }
        if depth > self.options.depth_max {
            return Err(RecordError::TooDeep);
        }
        let mut status = at::status(object)?;
        let mut target = Vec::new();
        if status.kind == Kind::Symlink {
            let key = (status.on, status.identity);
            if let Some(known) = self.links.get(&key) {
                (status, target) = known.clone();
            } else {
                // Reading a link moves its access time, which no flag prevents: so the status is
                // read again, and a second name of the same link is not read.
                target = at::link_target(object, OsStr::new(""))?;
                status = at::status(object)?;
                if status.links > 1 {
                    self.links.insert(key, (status, target.clone()));
                }
            }
        }
        let node = |attributes, body| Node {
            status,
            recorded: at::coarse_now(),
            touched: Touch::No,
            mapped: false,
            attributes,
            body,
        };
        if status.is_whiteout() {
            return Ok(node(Vec::new(), Body::Whiteout));
        }
        let body = match status.kind {
            Kind::Directory => {
                if at::overlay_attribute(object, "redirect")?.is_some() {
                    return Err(RecordError::Unfollowed);
                }
                let opaque = lower::is_opaque(object)?;
                let mut children = BTreeMap::new();
                for name in at::names(object)? {
                    // A place where something else is mounted cannot be changed while it is.
                    let Some(child) = at::name_on_same_mount(object, &name)? else { continue };
                    self.path.push(&name);
                    let recorded = self.node(&child, depth + 1, queues)?;
                    self.path.pop();
                    children.insert(name, recorded);
                }
                Body::Directory { children, opaque, held: None }
            }
            Kind::Regular if queues => Body::Queue,
            Kind::Regular => {
                if at::overlay_attribute(object, "metacopy")?.is_some() {
                    return Err(RecordError::Unfollowed);
                }
                Body::Regular(Source::Stored(self.contents(object, &status)?))
            }
            Kind::Symlink => Body::Symlink(target),
            Kind::Fifo | Kind::Socket | Kind::CharacterDevice | Kind::BlockDevice => Body::Special,
        };
        Ok(node(at::attributes(object)?, body))
    }

    fn contents(&mut self, object: &OwnedFd, status: &Status) -> Result<Arc<Layout>, RecordError> {
        let key = (status.on, status.identity);
        if let Some(layout) = self.copied.get(&key) {
            return Ok(Arc::clone(layout));
        }
        let before = self.store.length();
        let left = self.options.sealed_bytes_max.saturating_sub(before);
        let file = at::reopen(object, OFlags::RDONLY)?;
        let layout = Arc::new(self.store.add(&file, left)?.ok_or(RecordError::TooManyBytes)?);
        self.report.files_copied += 1;
        self.report.bytes_copied += self.store.length() - before;
        if status.links > 1 {
            self.copied.insert(key, Arc::clone(&layout));
        }
        Ok(layout)
    }
}
