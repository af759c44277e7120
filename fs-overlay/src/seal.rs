//! Sealing a container's files, and the rewind of them.

use std::cell::RefCell;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{Mode, OFlags, fstatfs};

use crate::at;
use crate::contents::Store;
use crate::examine::{Delta, Purpose, Tree, What, steps};
use crate::held::Held;
use crate::layer;
use crate::manifest::{RecordError, Recorder};
use crate::mounts::{self, Mount};
use crate::options::Options;
use crate::reaper::{self, Replaced};
use crate::report::{Changes, FilesQuarantine, FilesReason, FilesReport, SealReport, shown};
use crate::root::OverlayRoot;
use crate::swap::{self, Fresh, Refusal, Site};
use crate::ties;
use crate::undo::{self, Undo};
use crate::watch::Watch;
use crate::weigh::weigh;
use crate::work::{Stop, Work};

/// Most times renamed entries are looked for anew. A directory renamed inside a renamed directory
/// needs one more look; whatever is left then is removed and created again.
const RENAME_ROUNDS_MAX: usize = 4;

/// Most sealed entries that are copied into a layer only because they are many. More would take a
/// good part of the time a rewind may take.
const LARGE_MAX: u64 = 10_000;

/// Most rewinds that try to swap a root because much was sealed. What forbids it at two of them will
/// probably do so for ever, and each try costs a millisecond.
const LARGE_TRIES_MAX: u8 = 2;

/// The files could not be sealed: the checkpoint must be refused.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The container has more files than a rewind could examine each time.
    #[error("more than {max} entries to seal")]
    TooManyEntries {
        /// The bound.
        max: u64,
    },
    /// The container has more bytes in changed files than the store takes.
    #[error("more than {max} bytes to seal")]
    TooManyBytes {
        /// The bound.
        max: u64,
    },
    /// A directory lies too deep.
    #[error("{} lies deeper than {max} directories", shown(.path))]
    TooDeep {
        /// Where.
        path: PathBuf,
        /// The bound.
        max: usize,
    },
    /// An entry of the upper uses an overlay feature that is not followed (metacopy, redirect).
    #[error("{} is not stored as a plain entry", shown(.path))]
    Unfollowed {
        /// Where.
        path: PathBuf,
    },
    /// The store for contents could not be made.
    #[error("making a store in {directory:?}")]
    Store {
        /// Where.
        directory: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The mounts changed between discovery and seal, or the container ended.
    #[error("the mounts changed since they were discovered")]
    MountsChanged,
    /// A system call failed.
    #[error("sealing {}", shown(.path))]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A sealed container: what its files were, and the means to put them back.
///
/// It holds descriptors of the container's root and mounts, so it should be dropped when the
/// container is destroyed.
#[derive(Debug)]
pub struct Sealed {
    watch: Watch,
    options: Options,
    trees: Vec<Tree>,
    store: Store,
    /// Deleted entries that were held at the seal.
    held: Held,
    /// Where a fresh overlay for the root can be made, if it can.
    site: Option<Site>,
    /// How often it is still to be tried to swap the root because much was sealed.
    large_tries: u8,
}

/// What became of the root in a rewind.
enum Root {
    /// These differences are to be undone.
    Examined(Vec<Delta>),
    Swapped,
}

/// Seals the files of a container. The whole container must be frozen.
pub fn seal(root: OverlayRoot, options: &Options) -> Result<(Sealed, SealReport), SealError> {
    let started = Instant::now();
    let whole = |source: io::Error| SealError::Io { path: PathBuf::from("/"), source };
    root.watch.check().map_err(|changed| match changed.source {
        Some(source) => whole(source),
        None => SealError::MountsChanged,
    })?;
    let mut store = Store::create(&options.store)
        .map_err(|source| SealError::Store { directory: options.store.clone(), source })?;
    let held = Held::look(&root.watch.process).map_err(whole)?;
    let mut recorder = Recorder::new(options, &mut store);
    let mut trees = Vec::new();
    let OverlayRoot { watch, root, upper, layers, site, mounts } = root;
    let at = PathBuf::from("/");
    trees.push(tree(&mut recorder, at, upper, root, layers, false)?);
    let large = (options.swap_sealed_from..=LARGE_MAX).contains(&recorder.report.entries);
    let large_tries = if large { LARGE_TRIES_MAX } else { 0 };
    let mut shared = 0;
    for mount in mounts {
        if options.shared.iter().any(|path| mount.at.starts_with(path)) {
            shared += 1;
            continue;
        }
        let edit = at::reference(&mount.object).map_err(whole)?;
        trees.push(tree(&mut recorder, mount.at, mount.object, edit, Vec::new(), mount.queues)?);
    }
    for (object, status) in held.files() {
        let scan = at::reference(object).map_err(whole)?;
        let edit = at::reference(object).map_err(whole)?;
        let at = PathBuf::from(format!("/proc/self/fd (deleted, inode {})", status.identity.inode));
        let mut tree = tree(&mut recorder, at, scan, edit, Vec::new(), false)?;
        tree.node.mapped = true;
        trees.push(tree);
    }
    for path in &held.writable {
        // The innermost mount is the one the path leads to.
        let on = trees.iter_mut().filter(|tree| path.starts_with(&tree.at));
        if let Some(tree) = on.max_by_key(|tree| tree.at.as_os_str().len())
            && let Ok(below) = path.strip_prefix(&tree.at)
            && let Some(node) = tree.node.at_mut(&steps(below))
        {
            node.mapped = true;
        }
    }
    let mut report = recorder.report;
    report.mounts = trees.len() as u64;
    report.mounts_shared = shared;
    report.duration = started.elapsed();
    let options = options.clone();
    Ok((Sealed { watch, options, trees, store, held, site, large_tries }, report))
}

/// Records one tree.
fn tree(
    recorder: &mut Recorder<'_>,
    at: PathBuf,
    scan: OwnedFd,
    edit: OwnedFd,
    layers: Vec<OwnedFd>,
    queues: bool,
) -> Result<Tree, SealError> {
    let node = recorder.record(&scan, &at, queues).map_err(|error| {
        let path = recorder.path.clone();
        let options = recorder.options;
        match error {
            RecordError::Io(source) => SealError::Io { path, source },
            RecordError::TooManyEntries => SealError::TooManyEntries { max: options.sealed_entries_max },
            RecordError::TooManyBytes => SealError::TooManyBytes { max: options.sealed_bytes_max },
            RecordError::TooDeep => SealError::TooDeep { path, max: options.depth_max },
            RecordError::Unfollowed => SealError::Unfollowed { path },
        }
    })?;
    let mapped_writes_tell =
        mapped_writes_tell(&scan).map_err(|source| SealError::Io { path: at.clone(), source })?;
    let lower_last = RefCell::default();
    Ok(Tree { at, scan, edit, mapped_writes_tell, layers, lower_last, on_sealed: false, node })
}

/// Whether the file system moves the change time when a page is written through a shared mapping.
///
/// ext4, xfs and btrfs do so when a clean page becomes writable (`page_mkwrite`). tmpfs never
/// does, and of others we do not know.
fn mapped_writes_tell(object: &OwnedFd) -> io::Result<bool> {
    const EXT4: i64 = 0xef53;
    const XFS: i64 = 0x5846_5342;
    const BTRFS: i64 = 0x9123_683e;
    Ok([EXT4, XFS, BTRFS].contains(&fstatfs(object)?.f_type))
}

impl Sealed {
    /// Puts the files back. The whole container must be frozen, and descriptors that the request
    /// opened must be closed. After an error the container must be destroyed.
    pub fn rewind(&mut self) -> Result<FilesReport, FilesQuarantine> {
        self.watch.check()?;
        let options = self.options.clone();
        let mut work = Work::start(&options);
        let mut changed = false;
        let mut identity_lost = false;
        for index in 0..self.trees.len() {
            let mut deltas = if index == 0 {
                match self.examine_root(&mut work)? {
                    Root::Examined(deltas) => deltas,
                    Root::Swapped => {
                        changed = true;
                        continue;
                    }
                }
            } else {
                let started = Instant::now();
                let deltas = self.trees[index].walk(Purpose::Examine, &self.store, &mut work, u64::MAX)?.0;
                work.report.examine += started.elapsed();
                deltas
            };
            if deltas.is_empty() {
                continue;
            }
            changed = true;
            let started = Instant::now();
            let tree = &mut self.trees[index];
            let mut undo = Undo { store: &self.store, work: &mut work, identity_lost: false };
            for _ in 0..RENAME_ROUNDS_MAX {
                if undo.rename_back(tree, &deltas)? == 0 {
                    break;
                }
                deltas = tree.walk(Purpose::Examine, &self.store, undo.work, u64::MAX)?.0;
            }
            undo.apply(tree, deltas)?;
            identity_lost |= undo.identity_lost;
            work.report.undo += started.elapsed();
        }
        if changed {
            let started = Instant::now();
            self.verify(&mut work)?;
            if identity_lost {
                self.check_held()?;
            }
            work.report.verify = started.elapsed();
        }
        Ok(work.report)
    }

    /// Looks for changes without undoing anything. The whole container must be frozen.
    ///
    /// Contents are not compared, so the kinds are a guess: a sealed file that was written to
    /// counts as [`Metadata`](crate::ChangeKind::Metadata) unless its size changed, a file of the image that was
    /// touched as [`Contents`](crate::ChangeKind::Contents).
    pub fn changes(&mut self) -> Result<Changes, FilesQuarantine> {
        self.watch.check()?;
        let options = self.options.clone();
        let mut work = Work::start(&options);
        let mut changes = Changes::default();
        for tree in &mut self.trees {
            let (found, _) = tree.walk(Purpose::Examine, &self.store, &mut work, u64::MAX)?;
            for Delta { path, what } in found {
                let mut note = |path: &[OsString], kind: Option<_>| match kind {
                    Some(kind) => changes.note(kind, &tree.shown(path), options.report_paths_max),
                    None => changes.partial = true,
                };
                undo::tell(tree, &path, &what, true, &mut work, &mut note).map_err(|stop| {
                    stop.at(&tree.shown(&path), FilesReason::ExamineFailed, "telling changes")
                })?;
            }
        }
        Ok(changes)
    }

    /// Looks for changes of the root, and swaps it if there are so many that this is cheaper.
    fn examine_root(&mut self, work: &mut Work<'_>) -> Result<Root, FilesQuarantine> {
        let started = Instant::now();
        let tree = &mut self.trees[0];
        let enough = if self.site.is_some() { work.options.swap_from } else { u64::MAX };
        let (mut found, complete) = tree.walk(Purpose::Examine, &self.store, work, enough)?;
        let fail = |stop: Stop| stop.at(&tree.at, FilesReason::ExamineFailed, "weighing changes");
        let large = self.site.is_some() && !tree.on_sealed && self.large_tries > 0;
        self.large_tries = self.large_tries.saturating_sub(1);
        let many = !complete
            || large
            || !found.is_empty()
                && enough < u64::MAX
                && weigh(tree, &found, enough, work).map_err(fail)? >= enough;
        work.report.examine += started.elapsed();
        if !many {
            return Ok(Root::Examined(found));
        }
        let started = Instant::now();
        match self.swap(&found, complete, work)? {
            Ok(()) => {
                work.report.swapped = true;
                work.report.undo += started.elapsed();
                return Ok(Root::Swapped);
            }
            Err(refusal) => {
                tracing::debug!(why = refusal.why, error = ?refusal.error, "the root is not swapped");
                work.report.unswapped = Some(refusal.why);
                if refusal.forever {
                    self.site = None;
                }
            }
        }
        work.report.undo += started.elapsed();
        if !complete {
            let started = Instant::now();
            found = self.trees[0].walk(Purpose::Examine, &self.store, work, u64::MAX)?.0;
            work.report.examine += started.elapsed();
        }
        Ok(Root::Examined(found))
    }

    /// Puts a fresh overlay in the place of the root. A refusal leaves everything as it was.
    fn swap(
        &mut self,
        found: &[Delta],
        complete: bool,
        work: &mut Work<'_>,
    ) -> Result<Result<(), Refusal>, FilesQuarantine> {
        let (fresh, table, processes) = match self.prepare_swap(work.options) {
            Ok(prepared) => prepared,
            Err(refusal) => return Ok(Err(refusal)),
        };
        let tree = &mut self.trees[0];
        let whole = Path::new("/");
        let failed = |doing: &'static str| {
            move |error: io::Error| FilesQuarantine::failed(FilesReason::SwapFailed, whole, doing, error)
        };
        let changes = tell_shallow(tree, found, complete, work)?;
        let old_root = at::status(&tree.edit).map_err(failed("looking at the old root"))?.mount;
        let below = swap::directly_below(&table, old_root);
        let installed = fresh.install(&self.watch.process, &tree.edit, &below);
        if let Err(refusal) = installed.map_err(failed("changing the root"))? {
            return Ok(Err(refusal));
        }

        // From here on there is no way back: all must be as it is meant to be.
        let new_root = at::status(&fresh.mount).map_err(failed("looking at the new root"))?.mount;
        for process in &processes {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let root = rustix::fs::openat(process, "root", flags, Mode::empty());
            let root = root.map_err(|error| failed("looking at the new root")(error.into()))?;
            if at::status(&root).map_err(failed("looking at the new root"))?.mount != new_root {
                let detail = "a process has kept the old root";
                return Err(FilesQuarantine::new(FilesReason::SwapFailed, whole, detail));
            }
        }
        let right = |after: &[u8]| {
            mounts::parse(after).is_ok_and(|after| swap::same_but_root(&table, old_root, &after, new_root))
        };
        if !self.watch.accept(right).map_err(failed("reading mounts"))? {
            let detail = "the mounts are not those of before";
            return Err(FilesQuarantine::new(FilesReason::SwapFailed, whole, detail));
        }
        let Some(site) = &mut self.site else { return Ok(Err(Refusal::because("no site"))) };
        let sealed = site.open_sealed().map_err(failed("opening the sealed copy"))?;
        let root = tree
            .put_on(&fresh, sealed)
            .map_err(|stop| stop.at(whole, FilesReason::SwapFailed, "recording the new root"))?;
        let directory = site.moved_to(fresh.directory());
        reaper::take(Replaced { root, directory });
        work.report.changes = changes;
        Ok(Ok(()))
    }

    /// Does what a swap needs and nobody notices. Also gives the mount table, and the processes whose
    /// root will change.
    fn prepare_swap(&mut self, options: &Options) -> Result<(Fresh, Vec<Mount>, Vec<OwnedFd>), Refusal> {
        let tree = &self.trees[0];
        let unclear = |_| Refusal::because("the mounts are not understood");
        let table = mounts::parse(&self.watch.table).map_err(unclear)?;
        let others: Vec<PathBuf> =
            table.iter().map(|mount| mount.at.clone()).filter(|at| at != Path::new("/")).collect();
        let site = self.site.as_mut().ok_or(Refusal::because("the root cannot be mounted again"))?;
        let processes = ties::check(&self.watch.process, tree, &others, &self.held)?;
        copy_sealed(site, tree, &self.store, options).map_err(Refusal::forever)?;
        let fresh = site.fresh(&tree.node)?;
        Ok((fresh, table, processes))
    }

    /// Checks everything that was touched against the manifest, and records its new identity.
    fn verify(&mut self, work: &mut Work<'_>) -> Result<(), FilesQuarantine> {
        for tree in &mut self.trees {
            let (left, _) = tree.walk(Purpose::Verify, &self.store, work, u64::MAX)?;
            if let Some(delta) = left.iter().find(|delta| !matches!(delta.what, What::Accessed)) {
                let detail = match &delta.what {
                    What::Added(_) => "an entry is left over",
                    What::Missing => "an entry is missing",
                    What::Replaced(_) => "an entry is another one",
                    What::Altered(_) => "an entry is not as it was",
                    What::Accessed => "an access time is not as it was",
                };
                let path = tree.shown(&delta.path);
                return Err(FilesQuarantine::new(FilesReason::NotRestored, &path, detail));
            }
        }
        Ok(())
    }

    /// Nobody may hold an entry that lost its name in the request.
    fn check_held(&self) -> Result<(), FilesQuarantine> {
        let whole = Path::new("/");
        let held = Held::look(&self.watch.process).map_err(|error| {
            let detail = "looking for files without a name";
            FilesQuarantine::failed(FilesReason::ExamineFailed, whole, detail, error)
        })?;
        if held.within(&self.held) {
            return Ok(());
        }
        let detail = "looking for files without a name";
        Err(FilesQuarantine::new(FilesReason::HeldOpen, whole, detail))
    }
}

/// Writes the copy of what was sealed, unless it is there. Within bounds of its own: if it cannot be
/// written, the changes can still be undone.
fn copy_sealed(site: &mut Site, tree: &Tree, store: &Store, options: &Options) -> Result<(), Refusal> {
    let failed = Refusal::failed("copying the sealed files");
    let Some(directory) = site.begin_sealed().map_err(&failed)? else { return Ok(()) };
    swap::copies_exactly(&tree.node)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let into = rustix::fs::open(&directory, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    let bounds = Options { deadline: options.deadline / 2, ..options.clone() };
    layer::write(tree, &into, store, &mut Work::start(&bounds)).map_err(|stop| match stop {
        Stop::Io(error) => failed(error),
        Stop::Reason(_, why) => Refusal::because(why),
        Stop::Enough => Refusal::because("too many sealed files"),
    })?;
    site.sealed(directory);
    Ok(())
}

/// What a request did, as far as it was found, for the report of a swap.
fn tell_shallow(
    tree: &Tree,
    found: &[Delta],
    complete: bool,
    work: &mut Work<'_>,
) -> Result<Changes, FilesQuarantine> {
    let mut changes = Changes { partial: !complete, ..Changes::default() };
    let paths_max = work.options.report_paths_max;
    for Delta { path, what } in found {
        let mut note = |path: &[OsString], kind: Option<_>| match kind {
            Some(kind) => changes.note(kind, &tree.shown(path), paths_max),
            None => changes.partial = true,
        };
        undo::tell(tree, path, what, false, work, &mut note)
            .map_err(|stop| stop.at(&tree.shown(path), FilesReason::ExamineFailed, "telling changes"))?;
    }
    Ok(changes)
}
