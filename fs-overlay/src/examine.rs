//! Looking for changes: the statuses of today against the manifest.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::OFlags;

use crate::at::{self, Kind, Status};
use crate::contents::{self, Contents, Layout, Store};
use crate::lower::{LowerDirectory, LowerEntry, is_opaque};
use crate::manifest::{Body, Node, Source, Touch};
use crate::report::{FilesQuarantine, FilesReason};
use crate::swap::Fresh;
use crate::undo::open_entry;
use crate::work::{Stop, Work};

/// A path below the root of a tree, one name a step. Empty for the root itself.
pub(crate) type Steps = Vec<OsString>;

/// The names of a path.
pub(crate) fn steps(path: &Path) -> Steps {
    let name = |component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        _ => None,
    };
    path.components().filter_map(name).collect()
}

/// One writable mount (or one file that is open but has no name any more) and its manifest.
#[derive(Debug)]
pub(crate) struct Tree {
    /// Where the container sees it.
    pub(crate) at: PathBuf,
    /// Where entries are looked at: the upper directory, or the mount itself.
    pub(crate) scan: OwnedFd,
    /// Where changes are undone: the container's own view.
    pub(crate) edit: OwnedFd,
    /// Whether a write through a shared mapping moves the change time here.
    pub(crate) mapped_writes_tell: bool,
    /// Image layers below.
    pub(crate) layers: Vec<OwnedFd>,
    /// The directory of the layers that was looked for last.
    pub(crate) lower_last: RefCell<Option<(Steps, Option<LowerDirectory>)>>,
    /// Whether the topmost layer is a copy of what was sealed: the root has been swapped.
    pub(crate) on_sealed: bool,
    pub(crate) node: Node,
}

/// Most directories of one tree held open from one walk to the next. Few containers have more in
/// their upper; the rest are opened by name each time.
const HELD_MAX: usize = 64;

/// One difference between manifest and tree.
#[derive(Debug, Clone)]
pub(crate) struct Delta {
    pub(crate) path: Steps,
    pub(crate) what: What,
}

/// The kinds of difference, with the status found.
#[derive(Debug, Clone)]
pub(crate) enum What {
    /// Not in the manifest.
    Added(Status),
    /// In the manifest only.
    Missing,
    /// Another entry, or a whiteout, under a name of the manifest.
    Replaced(Status),
    /// The same entry, changed.
    Altered(Status),
    /// The same entry, unchanged but for its access time.
    Accessed,
}

/// Whether a walk looks for changes or checks what was restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    Examine,
    Verify,
}

impl Tree {
    /// The path the container knows.
    pub(crate) fn shown(&self, path: &[OsString]) -> PathBuf {
        let mut whole = self.at.clone();
        whole.extend(path);
        whole
    }

    /// Layers below a directory of this tree, as far as the manifest lets them show through.
    pub(crate) fn lower_directory(&self, path: &[OsString]) -> Result<Option<LowerDirectory>, Stop> {
        if self.layers.is_empty() {
            return Ok(None);
        }
        let mut node = Some(&self.node);
        for name in path {
            node = node.and_then(|node| node.child(name));
            if let Some(Node { body: Body::Directory { opaque: true, .. }, .. }) = node {
                return Ok(None);
            }
        }
        self.lower_anyway(path)
    }

    /// What the layers hold at a path, whether it shows through or not.
    fn lower_entry(&self, path: &[OsString]) -> Result<Option<LowerEntry>, Stop> {
        let Some((name, parents)) = path.split_last() else { return Ok(None) };
        match self.lower_anyway(parents)? {
            Some(directory) => directory.entry(name),
            None => Ok(None),
        }
    }

    /// A directory of the layers, whether it shows through or not. The last one is remembered, since most
    /// changes come several to a directory, and nobody can change the layers.
    fn lower_anyway(&self, path: &[OsString]) -> Result<Option<LowerDirectory>, Stop> {
        if let Some((last, directory)) = &*self.lower_last.borrow()
            && last == path
        {
            return Ok(directory.clone());
        }
        let mut directory = Some(LowerDirectory::root(&self.layers)?);
        for name in path {
            directory = match directory.take().map(|above| above.entry(name)).transpose()?.flatten() {
                Some(LowerEntry::Directory(below, _)) => Some(below),
                _ => break,
            };
        }
        *self.lower_last.borrow_mut() = Some((path.to_vec(), directory.clone()));
        Ok(directory)
    }

    fn has_lower_directory(&self, path: &[OsString]) -> Result<bool, Stop> {
        Ok(matches!(self.lower_entry(path)?, Some(LowerEntry::Directory(..))))
    }

    fn lower_file(&self, path: &[OsString]) -> Result<OwnedFd, Stop> {
        match self.lower_entry(path)? {
            Some(LowerEntry::Other(object, status)) if status.kind == Kind::Regular => Ok(object),
            _ => Err(Stop::Reason(FilesReason::LowerLayer, "finding a file of the image again")),
        }
    }

    /// Gives a file's sealed contents to a function.
    pub(crate) fn with_contents<T>(
        &self,
        source: &Source,
        path: &[OsString],
        store: &Store,
        f: impl FnOnce(Contents<'_>) -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        match source {
            Source::Stored(layout) => f(store.contents(layout)),
            Source::Lower => {
                let object = self.lower_file(path)?;
                let file = at::reopen(&object, OFlags::RDONLY)?;
                let layout = Layout::of(&file)?;
                f(Contents { file: &file, layout: &layout })
            }
        }
    }

    /// This root now is a fresh overlay over a copy of what was sealed: its upper must look like the
    /// root did, and holds nothing yet. Gives the descriptors of what it was before.
    pub(crate) fn put_on(&mut self, fresh: &Fresh, sealed: OwnedFd) -> Result<[OwnedFd; 2], Stop> {
        let status = at::status(&fresh.upper)?;
        let attributes = at::attributes(&fresh.upper)?;
        if !same_status(&self.node, &status, true)
            || status.kind != Kind::Directory
            || attributes != self.node.attributes
        {
            return Err(Stop::Reason(FilesReason::NotRestored, "the fresh root differs from the sealed one"));
        }
        let body = Body::Directory { children: BTreeMap::new(), opaque: false, held: None };
        let recorded = at::coarse_now();
        self.node = Node { status, recorded, touched: Touch::No, mapped: false, attributes, body };
        let scan = std::mem::replace(&mut self.scan, at::reference(&fresh.upper)?);
        let edit = std::mem::replace(&mut self.edit, at::reference(&fresh.mount)?);
        if !self.on_sealed {
            self.layers.insert(0, sealed);
            self.lower_last = RefCell::default();
            self.on_sealed = true;
        }
        Ok([edit, scan])
    }

    /// The status of an entry where entries are looked at; nothing when there is none.
    pub(crate) fn found(&self, path: &[OsString]) -> Result<Option<Status>, Stop> {
        Ok(open_entry(&self.scan, path)?.map(at::status).transpose()?)
    }

    /// Every difference between the manifest and the tree. Nothing is changed but the manifest's
    /// own notes of when an entry was last known to be as recorded.
    ///
    /// If there are `enough` of them the rest is not looked for, and the second answer is `false`.
    ///
    /// With [`Purpose::Verify`], entries that were touched are compared in full and recorded anew;
    /// any difference then is one that could not be undone.
    pub(crate) fn walk(
        &mut self,
        purpose: Purpose,
        store: &Store,
        work: &mut Work<'_>,
        enough: u64,
    ) -> Result<(Vec<Delta>, bool), FilesQuarantine> {
        let (path, found) = (Vec::new(), Vec::new());
        let mut walk = Walk { purpose, store, work, path, hiding: 0, held: 0, enough, found };
        // The manifest is taken out for the walk, since the tree's own methods read the layers.
        let placeholder = Node {
            status: self.node.status,
            recorded: self.node.recorded,
            touched: Touch::No,
            mapped: false,
            attributes: Vec::new(),
            body: Body::Special,
        };
        let mut node = std::mem::replace(&mut self.node, placeholder);
        let result = walk.root(self, &mut node);
        self.node = node;
        let path = walk.path;
        let found = walk.found;
        if let Err(Stop::Enough) = result {
            return Ok((found, false));
        }
        result
            .map(|()| (found, true))
            .map_err(|stop| stop.at(&self.shown(&path), FilesReason::ExamineFailed, "looking for changes"))
    }
}

struct Walk<'w, 'o> {
    purpose: Purpose,
    store: &'w Store,
    work: &'w mut Work<'o>,
    /// Where the walk stands.
    path: Steps,
    /// How many of the directories above hide the layers.
    hiding: usize,
    /// How many directories are held open for the next walk.
    held: usize,
    /// As many differences as are of interest.
    enough: u64,
    found: Vec<Delta>,
}

impl Walk<'_, '_> {
    fn root(&mut self, tree: &Tree, node: &mut Node) -> Result<(), Stop> {
        self.work.examined()?;
        let status = at::status(&tree.scan)?;
        let unchanged_names = self.compare(tree, node, &status, tree.scan.as_fd())?;
        if status.kind == Kind::Directory && matches!(node.body, Body::Directory { .. }) {
            self.children(tree, node, &tree.scan, unchanged_names)?;
        }
        Ok(())
    }

    fn children(
        &mut self,
        tree: &Tree,
        node: &mut Node,
        directory: &OwnedFd,
        unchanged_names: bool,
    ) -> Result<(), Stop> {
        self.work.descend(self.path.len())?;
        let Body::Directory { children, opaque, .. } = &mut node.body else { return Ok(()) };
        self.hiding += usize::from(*opaque);
        if !unchanged_names {
            // A directory may have been filled without end: names are bounded before they are kept.
            let names_max = (children.len() as u64).saturating_add(self.work.notes_max().min(self.enough));
            let Some(names) = at::names_within(directory, names_max)? else {
                return Err(self.too_many());
            };
            for name in names {
                if children.contains_key(&name) {
                    continue;
                }
                self.work.examined()?;
                match at::status_at(directory, &name)? {
                    // A place where something is mounted, and the mounts are those of the seal.
                    Some(status) if status.mount != tree.node.status.mount => {}
                    Some(status) => {
                        self.path.push(name);
                        self.note(What::Added(status))?;
                        self.path.pop();
                    }
                    None => {}
                }
            }
        }
        for (name, child) in children {
            self.work.examined()?;
            self.path.push(name.clone());
            match at::status_at(directory, name)? {
                None => self.note(What::Missing)?,
                Some(status) => self.child(tree, child, directory, name, &status)?,
            }
            self.path.pop();
        }
        self.hiding -= usize::from(*opaque);
        Ok(())
    }

    fn child(
        &mut self,
        tree: &Tree,
        node: &mut Node,
        directory: &OwnedFd,
        name: &OsStr,
        status: &Status,
    ) -> Result<(), Stop> {
        if matches!(node.body, Body::Whiteout) || status.is_whiteout() {
            // Overlay may make one whiteout and link it to many names: its status tells nothing.
            if matches!(node.body, Body::Whiteout) && status.is_whiteout() {
                node.touched = Touch::No;
                return Ok(());
            }
            return self.note(What::Replaced(*status));
        }
        let other = node.status.kind != status.kind
            || node.status.device != status.device
            // What was created again has another inode number, once.
            || (node.status.identity != status.identity && node.touched != Touch::All);
        if other {
            return self.note(What::Replaced(*status));
        }
        if node.status.kind == Kind::Directory {
            let below = match node.take_held() {
                Some(held) if node.status.identity == status.identity => held,
                _ => at::directory_at(directory, name)?,
            };
            let unchanged_names = self.compare(tree, node, status, below.as_fd())?;
            self.children(tree, node, &below, unchanged_names)?;
            if self.held < HELD_MAX {
                self.held += 1;
                node.hold(below);
            }
            return Ok(());
        }
        // The entry is opened only if its status leaves a doubt.
        let doubt = node.touched != Touch::No
            || node.racy()
            || self.unseen_writes(tree, node)
            || self.purpose == Purpose::Verify && !same_status(node, status, false);
        if doubt {
            let object = at::name_at(directory, name)?;
            self.compare(tree, node, status, object.as_fd())?;
        } else if !same_status(node, status, false) || node.status.changed != status.changed {
            self.note(What::Altered(*status))?;
        } else if self.accessed(node, status) {
            self.note(What::Accessed)?;
        }
        Ok(())
    }

    /// Whether contents can change here without a trace in the status.
    fn unseen_writes(&self, tree: &Tree, node: &Node) -> bool {
        (node.mapped || !tree.mapped_writes_tell)
            && matches!(node.body, Body::Regular(_))
            && node.status.size > 0
    }

    fn accessed(&self, node: &Node, status: &Status) -> bool {
        self.work.options.access_times && node.status.accessed != status.accessed
    }

    /// Compares one entry with its node, of the same kind. Tells whether its names (for a
    /// directory) are surely those of the manifest.
    fn compare(
        &mut self,
        tree: &Tree,
        node: &mut Node,
        status: &Status,
        object: BorrowedFd<'_>,
    ) -> Result<bool, Stop> {
        if node.status.kind != status.kind {
            self.note(What::Replaced(*status))?;
            return Ok(false);
        }
        let checking = self.purpose == Purpose::Verify && node.touched != Touch::No;
        let same = same_status(node, status, checking && self.work.options.access_times);
        let same_change = node.status.changed == status.changed && node.status.identity == status.identity;
        if !same || !(same_change || checking) {
            self.note(What::Altered(*status))?;
            return Ok(false);
        }
        let racy = node.racy();
        if checking || racy || self.unseen_writes(tree, node) {
            let now = at::coarse_now();
            // Entries of which only the times were set were found unchanged inside just before.
            let inside = node.touched != Touch::Times;
            self.work.report.entries_compared += u64::from(inside);
            if inside && !self.same_inside(tree, node, object, checking)? {
                self.note(What::Altered(*status))?;
                return Ok(false);
            }
            node.recorded = now;
            if checking {
                node.identify(status.identity);
                node.status.changed = status.changed;
                node.status.on = status.on;
                node.status.size = status.size;
                node.status.links = status.links;
                node.touched = Touch::No;
                return Ok(false);
            }
        }
        if self.accessed(node, status) {
            self.note(What::Accessed)?;
        }
        Ok(!racy)
    }

    /// Attributes, contents, link target.
    fn same_inside(
        &mut self,
        tree: &Tree,
        node: &mut Node,
        object: BorrowedFd<'_>,
        checking: bool,
    ) -> Result<bool, Stop> {
        if at::attributes(object)? != node.attributes {
            return Ok(false);
        }
        match &mut node.body {
            Body::Regular(source) => {
                let file = at::reopen(object, OFlags::RDONLY)?;
                let (store, work) = (self.store, &mut *self.work);
                tree.with_contents(source, &self.path, store, |wanted| contents::same(&file, wanted, work))
            }
            // The same link always points to the same target, and one made anew was given it.
            // Reading it would move its access time.
            Body::Symlink(_) => Ok(true),
            Body::Directory { opaque, .. } => {
                let now = is_opaque(object)?;
                if *opaque == now {
                    return Ok(true);
                }
                // Making a directory anew may have changed the mark. No matter if there is nothing
                // below to hide, or a directory above hides it anyway.
                let hidden = self.hiding > 0 || !tree.has_lower_directory(&self.path)?;
                let harmless = checking && hidden;
                if harmless {
                    *opaque = now;
                }
                Ok(harmless)
            }
            Body::Special | Body::Queue | Body::Whiteout => Ok(true),
        }
    }

    fn note(&mut self, what: What) -> Result<(), Stop> {
        if self.found.len() as u64 >= self.work.notes_max().min(self.enough) {
            return Err(self.too_many());
        }
        self.found.push(Delta { path: self.path.clone(), what });
        Ok(())
    }

    fn too_many(&self) -> Stop {
        if self.enough <= self.work.notes_max() {
            return Stop::Enough;
        }
        Stop::Reason(FilesReason::TooManyChanges, "looking for changes")
    }
}

/// Whether everything that can be put back is as the manifest says.
pub(crate) fn same_status(node: &Node, status: &Status, access_time: bool) -> bool {
    let wanted = &node.status;
    // A directory's size and link count follow its entries and its history.
    let directory = wanted.kind == Kind::Directory;
    wanted.mode == status.mode
        && wanted.uid == status.uid
        && wanted.gid == status.gid
        && wanted.modified == status.modified
        && wanted.flags == status.flags
        && (directory || wanted.size == status.size)
        && (directory || wanted.links == status.links)
        && (!access_time || wanted.accessed == status.accessed)
}
