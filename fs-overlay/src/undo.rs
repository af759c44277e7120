//! Undoing changes, through the container's own view.
//!
//! The order matters: first entries that only moved go back to their names, then what does not
//! belong is removed, what is missing is created again, and what changed is corrected. Times of
//! directories come last, since all of this moves them.

use std::collections::btree_map::Entry;
use std::collections::{BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, RenameFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::at::{self, Identity, Kind, Status};
use crate::contents::{self, Store};
use crate::examine::{Delta, Steps, Tree, What};
use crate::lower::{LowerDirectory, LowerEntry, is_opaque};
use crate::manifest::{Body, Node, Source, Touch};
use crate::report::{ChangeKind, FilesQuarantine, FilesReason};
use crate::work::{Stop, Work};

/// Undoes the differences found in one tree.
pub(crate) struct Undo<'u, 'o> {
    pub(crate) store: &'u Store,
    pub(crate) work: &'u mut Work<'o>,
    /// Whether an entry that was there before lost its identity (removed or replaced, and created
    /// again), which matters to those who hold it open.
    pub(crate) identity_lost: bool,
}

/// What to do, sorted out from the differences.
#[derive(Debug, Default)]
struct Plan {
    /// Entries that do not belong.
    remove: Vec<Steps>,
    /// Names whose entry of the manifest has to be created again (whatever is there goes first).
    create: Vec<Steps>,
    /// Entries to correct in place.
    correct: Vec<Steps>,
    /// Only the access time.
    accessed: Vec<Steps>,
    /// Directories whose times our own work moves.
    directories: BTreeSet<Steps>,
}

impl Undo<'_, '_> {
    /// Puts entries that were renamed back to their names. Gives how many; the tree must then be
    /// examined again.
    pub(crate) fn rename_back(&mut self, tree: &Tree, deltas: &[Delta]) -> Result<u64, FilesQuarantine> {
        // Entries the manifest misses, and where their names were.
        let mut missed: HashMap<Identity, &Steps> = HashMap::new();
        for delta in deltas {
            if matches!(delta.what, What::Missing | What::Replaced(_))
                && let Some(node) = tree.node.at(&delta.path)
                && !matches!(node.body, Body::Whiteout)
            {
                missed.insert(node.status.identity, &delta.path);
            }
        }
        if missed.is_empty() {
            return Ok(0);
        }
        let mut renamed = 0;
        for delta in deltas {
            let (What::Added(status) | What::Replaced(status)) = &delta.what else { continue };
            self.rename_from(tree, &missed, &delta.path, status, &mut renamed).map_err(|stop| {
                stop.at(&tree.shown(&delta.path), FilesReason::UndoFailed, "renaming back")
            })?;
        }
        Ok(renamed)
    }

    /// Renames the entry at `from`, or those below it, if the manifest misses them.
    fn rename_from(
        &mut self,
        tree: &Tree,
        missed: &HashMap<Identity, &Steps>,
        from: &Steps,
        status: &Status,
        renamed: &mut u64,
    ) -> Result<(), Stop> {
        self.work.descend(from.len())?;
        if status.is_whiteout() {
            return Ok(());
        }
        if let Some(to) = missed.get(&status.identity)
            && tree.node.at(to).is_some_and(|node| node.status.kind == status.kind)
        {
            if self.rename(tree, missed, from, status, to)? {
                self.work.undoing()?;
                *renamed += 1;
                let shown = tree.shown(to);
                let paths_max = self.work.options.report_paths_max;
                self.work.report.changes.note(ChangeKind::Renamed, &shown, paths_max);
            }
            return Ok(());
        }
        // Something of ours may have been moved into a new directory.
        if status.kind == Kind::Directory && tree.node.at(from).is_none() {
            let Some(directory) = open_directory(&tree.scan, from)? else { return Ok(()) };
            let names = at::names_within(&directory, self.work.notes_max())?
                .ok_or(Stop::Reason(FilesReason::TooManyChanges, "listing a new directory"))?;
            for name in names {
                self.work.examined()?;
                if let Some(status) = at::status_at(&directory, &name)? {
                    let mut below = from.clone();
                    below.push(name);
                    self.rename_from(tree, missed, &below, &status, renamed)?;
                }
            }
        }
        Ok(())
    }

    /// Renames one entry; `false` when it cannot be done simply, and is then created again.
    fn rename(
        &mut self,
        tree: &Tree,
        missed: &HashMap<Identity, &Steps>,
        from: &Steps,
        status: &Status,
        to: &Steps,
    ) -> Result<bool, Stop> {
        let (Some((from_name, from_parent)), Some((to_name, to_parent))) =
            (from.split_last(), to.split_last())
        else {
            return Ok(false);
        };
        let Some(from_directory) = open_directory(&tree.edit, from_parent)? else {
            return Ok(false);
        };
        let Some(to_directory) = open_directory(&tree.edit, to_parent)? else { return Ok(false) };
        // An earlier rename of this round may have moved it already.
        let now = open_entry(&tree.scan, from)?.map(at::status).transpose()?;
        if now.is_none_or(|now| now.identity != status.identity) {
            return Ok(false);
        }
        let there = open_entry(&tree.scan, to)?.map(at::status).transpose()?;
        let flags = match there {
            None => RenameFlags::NOREPLACE,
            Some(there) if there.is_whiteout() => RenameFlags::NOREPLACE,
            // Two sealed entries that changed places.
            Some(there)
                if tree.node.at(from).is_some_and(|node| {
                    node.status.identity == there.identity && node.status.kind == there.kind
                }) =>
            {
                RenameFlags::EXCHANGE
            }
            // A new file stands where this one belongs, and may go.
            Some(there) if there.kind != Kind::Directory && !missed.contains_key(&there.identity) => {
                RenameFlags::empty()
            }
            // Anything else in the way is left to the removal, and the entry is created again.
            Some(_) => return Ok(false),
        };
        let done = rustix::fs::renameat_with(&from_directory, from_name, &to_directory, to_name, flags);
        Ok(done.is_ok())
    }

    /// Undoes all differences of a tree.
    pub(crate) fn apply(&mut self, tree: &mut Tree, deltas: Vec<Delta>) -> Result<(), FilesQuarantine> {
        let mut plan = Plan::default();
        for delta in deltas {
            let shown = tree.shown(&delta.path);
            self.sort_out(tree, delta, &mut plan)
                .map_err(|stop| stop.at(&shown, FilesReason::UndoFailed, "deciding what to undo"))?;
        }
        for path in &plan.remove {
            self.step(tree, path, "removing", |undo, tree| undo.remove_at(tree, path))?;
        }
        for path in &plan.create {
            self.step(tree, path, "creating again", |undo, tree| {
                undo.remove_at(tree, path)?;
                undo.create_at(tree, path)
            })?;
        }
        for path in &plan.correct {
            self.step(tree, path, "correcting", |undo, tree| undo.correct_at(tree, path))?;
        }
        for path in plan.directories.iter().chain(&plan.accessed) {
            self.step(tree, path, "restoring times", |undo, tree| undo.retime_at(tree, path))?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        tree: &mut Tree,
        path: &[OsString],
        doing: &'static str,
        f: impl FnOnce(&mut Self, &mut Tree) -> Result<(), Stop>,
    ) -> Result<(), FilesQuarantine> {
        f(self, tree).map_err(|stop| stop.at(&tree.shown(path), FilesReason::UndoFailed, doing))
    }

    fn sort_out(&mut self, tree: &mut Tree, delta: Delta, plan: &mut Plan) -> Result<(), Stop> {
        let Delta { path, what } = delta;
        match what {
            What::Added(status) => self.sort_out_added(tree, path, &status, plan),
            What::Missing => {
                self.note(tree, &path, ChangeKind::Removed);
                self.lose(tree, &path)?;
                touch_parent(tree, &path, plan);
                plan.create.push(path);
                Ok(())
            }
            What::Replaced(status) => {
                let removed = status.is_whiteout();
                let kind = if removed { ChangeKind::Removed } else { ChangeKind::Replaced };
                self.note(tree, &path, kind);
                self.lose(tree, &path)?;
                touch_parent(tree, &path, plan);
                plan.create.push(path);
                Ok(())
            }
            What::Altered(status) => {
                let node = tree.node.at_mut(&path).ok_or_else(inconsistent)?;
                node.touched = Touch::All;
                let flags = node.status.flags;
                // Overlay keeps the immutable and append-only flags in an attribute of its own.
                if flags != status.flags || has_overlay_flags(tree, &path)? {
                    return Err(Stop::Reason(FilesReason::InodeFlagsChanged, "comparing flags"));
                }
                let node = tree.node.at(&path).ok_or_else(inconsistent)?;
                if matches!(node.body, Body::Queue) {
                    return Err(Stop::Reason(FilesReason::MessageQueueChanged, "comparing queues"));
                }
                if node.status.kind == Kind::Directory {
                    plan.directories.insert(path.clone());
                }
                plan.correct.push(path);
                Ok(())
            }
            What::Accessed => {
                let node = tree.node.at_mut(&path).ok_or_else(inconsistent)?;
                node.touched = Touch::Times;
                self.note(tree, &path, ChangeKind::AccessTime);
                plan.accessed.push(path);
                Ok(())
            }
        }
    }

    /// Something the manifest does not know lies in the upper: new, or a change to the layers.
    fn sort_out_added(
        &mut self,
        tree: &mut Tree,
        path: Steps,
        status: &Status,
        plan: &mut Plan,
    ) -> Result<(), Stop> {
        let (name, parent) = path.split_last().ok_or_else(inconsistent)?;
        let below = tree.lower_directory(parent)?;
        let entry = match &below {
            Some(directory) => directory.entry(name)?,
            None => None,
        };
        touch_parent(tree, &path, plan);
        let Some(entry) = entry else {
            if status.is_whiteout() {
                // Nothing below to hide: overlay leaves such marks inside directories it made
                // opaque. They show nothing and hide nothing.
                return Err(Stop::Reason(FilesReason::LowerLayer, "a mark that hides nothing"));
            }
            self.note(tree, &path, ChangeKind::Added);
            plan.remove.push(path);
            return Ok(());
        };
        let mut node = Node::of_lower(&entry)?;
        let found = open_entry(&tree.scan, &path)?.ok_or_else(inconsistent)?;
        let copied_up = !status.is_whiteout()
            && match (&entry, &node.body) {
                (LowerEntry::Directory(..), _) => {
                    status.kind == Kind::Directory
                        && !is_opaque(&found)?
                        && at::overlay_attribute(&found, "redirect")?.is_none()
                }
                (_, Body::Regular(_)) => {
                    status.kind == Kind::Regular && at::overlay_attribute(&found, "metacopy")?.is_none()
                }
                (_, Body::Symlink(target)) => {
                    status.kind == Kind::Symlink && at::link_target(&found, OsStr::new(""))? == *target
                }
                _ => false,
            };
        if copied_up && node.status.kind == Kind::Regular {
            // A file of the layers written to, or another one put in its place: both are
            // corrected in place, but in the second case those who hold the first are elsewhere.
            let origin = at::overlay_attribute(&found, "origin")?.is_some();
            self.identity_lost |= !origin;
        }
        if copied_up {
            node.identify(status.identity);
            insert(tree, &path, node)?;
            if status.kind == Kind::Directory {
                plan.directories.insert(path.clone());
                for name in at::names_within(&found, self.work.notes_max())?
                    .ok_or(Stop::Reason(FilesReason::TooManyChanges, "listing a directory"))?
                {
                    self.work.examined()?;
                    if let Some(status) = at::status_at(&found, &name)? {
                        let mut below = path.clone();
                        below.push(name);
                        self.sort_out_added(tree, below, &status, plan)?;
                    }
                }
            }
            plan.correct.push(path);
            return Ok(());
        }
        let removed = status.is_whiteout();
        self.note(tree, &path, if removed { ChangeKind::Removed } else { ChangeKind::Replaced });
        self.identity_lost = true;
        insert(tree, &path, node)?;
        plan.create.push(path);
        Ok(())
    }

    /// An entry of the manifest is gone or replaced.
    fn lose(&mut self, tree: &Tree, path: &[OsString]) -> Result<(), Stop> {
        let node = tree.node.at(path).ok_or_else(inconsistent)?;
        match (&node.body, node.status.kind) {
            (Body::Whiteout, _) => {}
            (Body::Queue, _) => {
                return Err(Stop::Reason(FilesReason::MessageQueueChanged, "comparing queues"));
            }
            (_, Kind::Socket) => {
                return Err(Stop::Reason(FilesReason::SocketReplaced, "creating again"));
            }
            _ => self.identity_lost = true,
        }
        Ok(())
    }

    fn remove_at(&mut self, tree: &Tree, path: &[OsString]) -> Result<(), Stop> {
        let (name, parent) = path.split_last().ok_or_else(inconsistent)?;
        match open_directory(&tree.edit, parent)? {
            Some(directory) => self.remove(&directory, name, path.len()),
            None => Ok(()),
        }
    }

    /// Removes an entry and everything below it, as the container sees it.
    fn remove(&mut self, directory: &OwnedFd, name: &OsStr, depth: usize) -> Result<(), Stop> {
        self.work.descend(depth)?;
        let Some(status) = at::status_at(directory, name)? else { return Ok(()) };
        self.work.undoing()?;
        if status.kind == Kind::Directory {
            let below = at::directory_at(directory, name)?;
            let names = at::names_within(&below, self.work.options.undone_entries_max)?
                .ok_or(Stop::Reason(FilesReason::TooManyChanges, "removing a directory"))?;
            for name in names {
                self.remove(&below, &name, depth + 1)?;
            }
            rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR)?;
        } else {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
        }
        self.work.report.entries_removed += 1;
        Ok(())
    }

    fn create_at(&mut self, tree: &mut Tree, path: &[OsString]) -> Result<(), Stop> {
        let (name, parent) = path.split_last().ok_or_else(inconsistent)?;
        let directory = open_directory(&tree.edit, parent)?.ok_or_else(inconsistent)?;
        let below = match tree.lower_directory(parent)? {
            Some(directory) => match directory.entry(name)? {
                Some(LowerEntry::Directory(below, _)) => Some(below),
                _ => None,
            },
            None => None,
        };
        // Taken out while the tree is asked for layers and links.
        let holder = tree.node.at_mut(parent).and_then(Node::children_mut);
        let mut node = holder.and_then(|children| children.remove(name)).ok_or_else(inconsistent)?;
        let mut path = path.to_vec();
        let result = self.create(tree, &directory, &mut node, below, &mut path);
        insert(tree, &path, node)?;
        result
    }

    /// Creates an entry (there is none of its name) and everything below it.
    fn create(
        &mut self,
        tree: &Tree,
        directory: &OwnedFd,
        node: &mut Node,
        below: Option<LowerDirectory>,
        path: &mut Steps,
    ) -> Result<(), Stop> {
        self.work.descend(path.len())?;
        let name = path.last().cloned().ok_or_else(inconsistent)?;
        if matches!(node.body, Body::Whiteout) {
            // Removing what stood here left overlay's mark again.
            node.touched = Touch::All;
            return Ok(());
        }
        self.work.undoing()?;
        self.work.report.entries_recreated += 1;
        node.touched = Touch::All;
        if node.status.links > 1 && link_again(tree, directory, &name, node, path)? {
            return Ok(());
        }
        let private = Mode::RUSR | Mode::WUSR;
        match &mut node.body {
            Body::Directory { children, opaque, .. } => {
                rustix::fs::mkdirat(directory, &name, private | Mode::XUSR)?;
                let made = at::directory_at(directory, &name)?;
                // If it hid the layers, so does the new one.
                let below = below.filter(|_| !*opaque);
                if let Some(lower) = &below {
                    // The new directory hides the layers: what shone through is put into it.
                    for (name, entry) in lower.entries()? {
                        let Entry::Vacant(place) = children.entry(name) else { continue };
                        let mut child = Node::of_lower(&entry)?;
                        if let LowerEntry::Directory(below, _) = &entry {
                            self.fill(&mut child, below, path.len())?;
                        }
                        place.insert(child);
                    }
                    *opaque = true;
                }
                // Marks hide nothing in a directory that hides all.
                children.retain(|_, child| !matches!(child.body, Body::Whiteout));
                for (name, child) in children.iter_mut() {
                    // Directories in it that merged with the layers must be filled likewise.
                    let below = match below.as_ref().map(|lower| lower.entry(name)).transpose()? {
                        Some(Some(LowerEntry::Directory(below, _))) => Some(below),
                        _ => None,
                    };
                    path.push(name.clone());
                    self.create(tree, &made, child, below, path)?;
                    path.pop();
                }
            }
            Body::Regular(source) => {
                let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = File::from(rustix::fs::openat(directory, &name, flags, private)?);
                let (store, work) = (self.store, &mut *self.work);
                let written =
                    tree.with_contents(source, path, store, |wanted| contents::restore(&file, wanted, work))?;
                self.work.report.bytes_written += written;
            }
            Body::Symlink(target) => {
                rustix::fs::symlinkat(OsStr::from_bytes(target), directory, &name)?;
            }
            Body::Special if node.status.kind == Kind::Socket => {
                return Err(Stop::Reason(FilesReason::SocketReplaced, "creating again"));
            }
            Body::Special => {
                let (major, minor) = node.status.device;
                let device = rustix::fs::makedev(major, minor);
                let kind = node.status.kind.file_type();
                rustix::fs::mknodat(directory, &name, kind, private, device)?;
            }
            Body::Queue => {
                return Err(Stop::Reason(FilesReason::MessageQueueChanged, "creating again"));
            }
            Body::Whiteout => {}
        }
        let object = at::name_at(directory, &name)?;
        if node.status.links > 1
            && let Some(scanned) = open_entry(&tree.scan, path)?
        {
            // Further names of the file are linked to this one.
            node.identify(at::status(&scanned)?.identity);
        }
        correct_status(&object, node)?;
        Ok(())
    }

    /// Lists everything the layers hold below a directory into its node.
    fn fill(&mut self, node: &mut Node, below: &LowerDirectory, depth: usize) -> Result<(), Stop> {
        self.work.descend(depth)?;
        let Body::Directory { children, opaque, .. } = &mut node.body else { return Ok(()) };
        *opaque = true;
        for (name, entry) in below.entries()? {
            self.work.undoing()?;
            let mut child = Node::of_lower(&entry)?;
            if let LowerEntry::Directory(below, _) = &entry {
                self.fill(&mut child, below, depth + 1)?;
            }
            children.insert(name, child);
        }
        Ok(())
    }

    fn correct_at(&mut self, tree: &mut Tree, path: &[OsString]) -> Result<(), Stop> {
        self.work.undoing()?;
        let Some(object) = open_entry(&tree.edit, path)? else {
            return Err(Stop::Reason(FilesReason::NotRestored, "an entry vanished from its view"));
        };
        let node = tree.node.at(path).ok_or_else(inconsistent)?;
        let mut kind = ChangeKind::Metadata;
        if let Body::Regular(source) = &node.body {
            let (store, work) = (self.store, &mut *self.work);
            let written = tree.with_contents(source, path, store, |wanted| {
                // Not opened for writing unless it must be: a program that runs could not be.
                let current = at::reopen(&object, OFlags::RDONLY)?;
                if contents::same(&current, wanted, work)? {
                    return Ok(None);
                }
                let current = at::reopen(&object, OFlags::RDWR)?;
                contents::restore(&current, wanted, work).map(Some)
            })?;
            if let Some(written) = written {
                kind = ChangeKind::Contents;
                self.work.report.files_rewritten += 1;
                self.work.report.bytes_written += written;
            }
        }
        let node = tree.node.at_mut(path).ok_or_else(inconsistent)?;
        node.touched = Touch::All;
        correct_status(&object, node)?;
        // A directory in which names came and went is no change of its own.
        if node.status.kind != Kind::Directory {
            self.note(tree, path, kind);
        }
        Ok(())
    }

    fn retime_at(&mut self, tree: &mut Tree, path: &[OsString]) -> Result<(), Stop> {
        let Some(object) = open_entry(&tree.edit, path)? else {
            return Err(Stop::Reason(FilesReason::NotRestored, "an entry vanished from its view"));
        };
        let node = tree.node.at_mut(path).ok_or_else(inconsistent)?;
        set_times(&object, node)?;
        Ok(())
    }

    fn note(&mut self, tree: &Tree, path: &[OsString], kind: ChangeKind) {
        let paths_max = self.work.options.report_paths_max;
        self.work.report.changes.note(kind, &tree.shown(path), paths_max);
    }
}

/// Tells what an undo would find, for a report only. Changes below directories that were merely
/// copied up from the layers are told one by one, or (if not `deep`) only that there are more.
pub(crate) fn tell(
    tree: &Tree,
    path: &[OsString],
    what: &What,
    deep: bool,
    work: &mut Work<'_>,
    found: &mut dyn FnMut(&[OsString], Option<ChangeKind>),
) -> Result<(), Stop> {
    let kind = match what {
        What::Missing => ChangeKind::Removed,
        What::Replaced(status) if status.is_whiteout() => ChangeKind::Removed,
        What::Replaced(_) => ChangeKind::Replaced,
        What::Altered(status) => match tree.node.at(path) {
            Some(node) if node.status.kind == Kind::Directory => return Ok(()),
            Some(node) if node.status.size != status.size => ChangeKind::Contents,
            _ => ChangeKind::Metadata,
        },
        What::Accessed => ChangeKind::AccessTime,
        What::Added(status) => {
            work.descend(path.len())?;
            let (name, parent) = path.split_last().ok_or_else(inconsistent)?;
            let entry = match tree.lower_directory(parent)? {
                Some(directory) => directory.entry(name)?,
                None => None,
            };
            match entry {
                None => ChangeKind::Added,
                Some(_) if status.is_whiteout() => ChangeKind::Removed,
                Some(LowerEntry::Other(_, lower)) if lower.kind == status.kind => ChangeKind::Contents,
                Some(LowerEntry::Directory(..)) if status.kind == Kind::Directory => {
                    let directory = open_entry(&tree.scan, path)?.ok_or_else(inconsistent)?;
                    if is_opaque(&directory)? {
                        found(path, Some(ChangeKind::Replaced));
                        return Ok(());
                    }
                    if !deep {
                        found(path, None);
                        return Ok(());
                    }
                    let names = at::names_within(&directory, work.notes_max())?
                        .ok_or(Stop::Reason(FilesReason::TooManyChanges, "listing a directory"))?;
                    for name in names {
                        work.examined()?;
                        if let Some(status) = at::status_at(&directory, &name)? {
                            let mut below = path.to_vec();
                            below.push(name);
                            tell(tree, &below, &What::Added(status), deep, work, found)?;
                        }
                    }
                    return Ok(());
                }
                Some(_) => ChangeKind::Replaced,
            }
        }
    };
    found(path, Some(kind));
    Ok(())
}

fn has_overlay_flags(tree: &Tree, path: &[OsString]) -> Result<bool, Stop> {
    let Some(object) = open_entry(&tree.scan, path)? else { return Ok(false) };
    Ok(at::overlay_attribute(&object, "protattr")?.is_some())
}

/// Makes a name of a file with several links by linking one that is there.
fn link_again(
    tree: &Tree,
    directory: &OwnedFd,
    name: &OsStr,
    node: &mut Node,
    path: &[OsString],
) -> Result<bool, Stop> {
    let Body::Regular(Source::Stored(layout)) = &node.body else { return Ok(false) };
    let mut others = Vec::new();
    links_of(&tree.node, layout, &mut Vec::new(), &mut others);
    for other in others.iter().filter(|other| other.as_slice() != path) {
        let Some(found) = open_entry(&tree.edit, other)? else { continue };
        let (Some(known), Some((other_name, other_parent))) = (tree.node.at(other), other.split_last())
        else {
            continue;
        };
        let Some(scanned) = open_entry(&tree.scan, other)? else { continue };
        let status = at::status(&scanned)?;
        if status.kind != Kind::Regular
            || status.identity != known.status.identity
            || at::status(&found)?.kind != Kind::Regular
        {
            continue;
        }
        let Some(other_directory) = open_directory(&tree.edit, other_parent)? else { continue };
        rustix::fs::linkat(&other_directory, other_name, directory, name, AtFlags::empty())?;
        node.identify(status.identity);
        return Ok(true);
    }
    Ok(false)
}

/// The names in the manifest whose contents are one copy.
fn links_of(
    node: &Node,
    layout: &std::sync::Arc<crate::contents::Layout>,
    path: &mut Steps,
    found: &mut Vec<Steps>,
) {
    match &node.body {
        Body::Regular(Source::Stored(other)) if std::sync::Arc::ptr_eq(other, layout) => {
            found.push(path.clone());
        }
        Body::Directory { children, .. } => {
            for (name, child) in children {
                path.push(name.clone());
                links_of(child, layout, path, found);
                path.pop();
            }
        }
        _ => {}
    }
}

/// Owner, attributes, mode and times, in the order in which they do not undo each other: a change
/// of owner clears setuid and capabilities, an ACL sets the mode's group bits.
pub(crate) fn correct_status(object: &OwnedFd, node: &Node) -> Result<(), Stop> {
    let path = at::handle(object);
    let wanted = &node.status;
    let found = at::status(object)?;
    if (found.uid, found.gid) != (wanted.uid, wanted.gid) {
        rustix::fs::chownat(
            rustix::fs::CWD,
            path.as_str(),
            Some(Uid::from_raw(wanted.uid)),
            Some(Gid::from_raw(wanted.gid)),
            AtFlags::empty(),
        )?;
    }
    let attributes = at::attributes(object)?;
    if attributes != node.attributes {
        for (name, _) in &attributes {
            if !node.attributes.iter().any(|(wanted, _)| wanted == name) {
                rustix::fs::removexattr(path.as_str(), name)?;
            }
        }
        for pair in &node.attributes {
            if !attributes.contains(pair) {
                rustix::fs::setxattr(path.as_str(), &pair.0, &pair.1, XattrFlags::empty())?;
            }
        }
    }
    if wanted.kind != Kind::Symlink && at::status(object)?.mode != wanted.mode {
        rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(wanted.mode))?;
    }
    set_times(object, node)
}

fn set_times(object: &OwnedFd, node: &Node) -> Result<(), Stop> {
    let time = |time: at::Time| Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() };
    let times =
        Timestamps { last_access: time(node.status.accessed), last_modification: time(node.status.modified) };
    rustix::fs::utimensat(rustix::fs::CWD, at::handle(object).as_str(), &times, AtFlags::empty())?;
    Ok(())
}

fn insert(tree: &mut Tree, path: &[OsString], node: Node) -> Result<(), Stop> {
    let (name, parent) = path.split_last().ok_or_else(inconsistent)?;
    let children = tree.node.at_mut(parent).and_then(Node::children_mut);
    children.ok_or_else(inconsistent)?.insert(name.clone(), node);
    Ok(())
}

/// Marks the directory that holds an entry: its times move when the entry comes or goes.
fn touch_parent(tree: &mut Tree, path: &[OsString], plan: &mut Plan) {
    if let Some((_, parent)) = path.split_last()
        && let Some(node) = tree.node.at_mut(parent)
    {
        node.touched = Touch::All;
        plan.directories.insert(parent.to_vec());
    }
}

/// A directory below a base, one name at a time; nothing when a step is not a directory.
fn open_directory(base: &OwnedFd, path: &[OsString]) -> Result<Option<OwnedFd>, Stop> {
    let mut directory = at::reference(base)?;
    for name in path {
        directory = match at::directory_at(&directory, name) {
            Ok(below) => below,
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    }
    Ok(Some(directory))
}

/// An entry below a base, one name at a time; nothing when there is none.
pub(crate) fn open_entry(base: &OwnedFd, path: &[OsString]) -> Result<Option<OwnedFd>, Stop> {
    let Some((name, parent)) = path.split_last() else { return Ok(Some(at::reference(base)?)) };
    let Some(directory) = open_directory(base, parent)? else { return Ok(None) };
    match at::name_at(directory.as_fd(), name) {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_absence(&error) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn is_absence(error: &std::io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP))
}

/// The manifest and its own list of differences contradict each other, or a part of the tree that
/// an earlier step restored is gone again.
fn inconsistent() -> Stop {
    Stop::Reason(FilesReason::NotRestored, "the manifest does not fit the tree")
}
