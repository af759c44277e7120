//! Memory: what a snapshot holds of an address space and how it is put back.
//!
//! An engine knows pages, not kernel objects. The layout has been put back before it is asked to rewind.

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod pagemap;
#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
#[path = "disabled.rs"]
mod pagemap;

pub(crate) use pagemap::Pagemap;

use crate::freeze::Tracer;
use crate::inject::{Agent, Runner};
use crate::proc::Mapping;
use crate::reason::Quarantine;
use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;

/// A process whose threads are all stopped, as an engine sees it.
#[derive(Debug)]
pub(crate) struct Stopped<'a> {
    pub(crate) tracer: &'a mut Tracer,
    pub(crate) agent: &'a mut Agent,
    /// The main thread.
    pub(crate) runner: Runner<'a>,
    pub(crate) pidfd: &'a OwnedFd,
    /// `/proc/<pid>/mem`.
    pub(crate) mem: &'a File,
    /// `/proc/<pid>/pagemap`.
    pub(crate) pagemap: &'a File,
}

/// How eagerly pages become and stay hot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heat {
    /// Changes until a page is hot; 0: never.
    pub(crate) hot_after: u8,
    /// Rewinds until all hot pages must prove themselves again; 0: never.
    pub(crate) cold_after: u8,
}

/// What is known of a process before its memory is scanned.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Hints {
    /// Even unchanged pages must be written, since the process let the kernel take some (MADV_FREE).
    pub(crate) everything: bool,
    /// Pages may have been marked MADV_FREE and written to again. They do not show, and the next mark on them would
    /// not be counted, so what is put back must be put on fresh pages.
    pub(crate) afresh: bool,
    /// It is proven that no mapping was made, removed or changed since the last rewind.
    pub(crate) mappings_kept: bool,
}

/// What the engine did in one rewind of one process.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct MemoryReport {
    pub(crate) scanned: u64,
    pub(crate) copied: u64,
    pub(crate) dropped: u64,
    pub(crate) hot: u64,
}

/// Records address spaces.
pub(crate) trait MemoryEngine: fmt::Debug + Send {
    /// Copies the memory of a process and starts tracking its changes.
    fn checkpoint(
        &self,
        process: &mut Stopped<'_>,
        mappings: &[Mapping],
        heat: Heat,
    ) -> Result<Box<dyn MemoryImage>, Quarantine>;
}

/// The recorded memory of one process.
pub(crate) trait MemoryImage: fmt::Debug + Send {
    /// Finds what changed. The layout is that of the snapshot again.
    fn scan(&mut self, process: &mut Stopped<'_>, hints: Hints) -> Result<(), Quarantine>;

    /// Begins to put back what [`MemoryImage::scan`] found; [`MemoryImage::finish`] must follow. Between the two
    /// the process may be at work, so that several can be at once.
    fn start(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine>;

    /// Waits until everything is back.
    fn finish(&mut self, process: &mut Stopped<'_>) -> Result<MemoryReport, Quarantine>;

    /// Compares every page with the snapshot and finds pages that it does not have.
    fn verify(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine>;

    /// Pages whose content the snapshot holds.
    fn pages(&self) -> u64;
}
