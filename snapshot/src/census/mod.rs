//! What changed in the kernel's objects of a container, in one call.
//!
//! A rewind has to know what a request changed. Reading that from `/proc` costs 50 to 100 us a process, and the
//! advice on memory some 20 ns a page; nearly always the answer is 'nothing'. A BPF program reads the kernel's own
//! structures instead, of all processes and threads in some 10 us, and user space compares the bytes with those of
//! the last census at which everything was as the snapshot has it. What is equal needs no further look; what differs
//! is looked at (and put back) the complete way. So a census never puts anything back, and never says *what* differs.
//!
//! ```text
//!   reference = reading at the checkpoint, or after a rewind that put something back
//!   changes(reference, reading now) -> areas   --none--> nothing to do
//!                                              --some--> /proc, kcmp, injected batches, as without a census
//!   no BPF, no room, a failed read             --------> all areas
//! ```
//!
//! # Why 'equal' is a proof
//! - **Layout**: every change of a mapping takes the address space's lock for writing, and each such lock counts in
//!   `mm_lock_seq` (Linux 6.4 on, with per-mapping locks): mmap, munmap, mremap, mprotect, brk, mlock, stack growth,
//!   mseal, names, and of `madvise` all that is remembered in the mapping's flags (`NORMAL`, `RANDOM`, `SEQUENTIAL`,
//!   `DONTFORK`, `DOFORK`, `WIPEONFORK`, `KEEPONFORK`, `DONTDUMP`, `DODUMP`, `MERGEABLE`, `UNMERGEABLE`, `HUGEPAGE`,
//!   `NOHUGEPAGE`). The others (`DONTNEED`, `WILLNEED`, `COLD`, `PAGEOUT`, `REMOVE`, `POPULATE_*`, `COLLAPSE`, guard
//!   markers) act on pages, of which the memory engine's scan tells. `FREE` acts on pages, too, but on what the
//!   kernel will do with them later: see below. `PR_SET_MM_*` takes the lock for reading only, so its numbers are
//!   compared themselves. An `execve` makes a new address space, whose number may be used again: it is counted.
//!   Where the count differs, all mappings are listed (range, flags, inode, offset, operations): a request that
//!   maps something and unmaps it again, as any heap does, leaves the list as it was. A mapping that was replaced by
//!   its like is told by its flags, since write tracking does not come back by itself.
//! - **Pointers** are compared where the object cannot have been freed and its address used again: open files and
//!   what interest lists name (we hold duplicates), root and directory and executable (we hold descriptors, see
//!   [`Standing`]), seccomp filters (only ever added in front of each other). Of everything else (credentials,
//!   namespaces, keyrings, process groups) the content or the kernel's own number is compared.
//! - What is there and cannot be compared cheaply (running timers, file locks, memory policies, keys, more than a
//!   few children) makes its area 'not proven': looked at every time.
//! - The counters are 32 bits wide. Turning one over takes a request a while, so they do not count for longer: see
//!   [`COUNTS_MAX`] and [`REFERENCE_MAX`].
//! - The tasks do not run meanwhile. A read that fails makes the whole process 'not proven'.
//!
//! # MADV_FREE
//! The machine-wide count of pages marked so (`pglazyfree`) tells whether a look is needed. The kernel counts a page,
//! and shows it in smaps, not when it is marked but when its processor's batch (15 or 31 entries) is worked off,
//! which may be much later. So the batches are looked at, too: while one of them holds a page of the container's
//! memory group, all memory is written back as if every page had been marked. Where the batches cannot be found
//! (they are no public symbol) a few marked pages may show up only in a later rewind, as without the census.

mod areas;
#[cfg(feature = "bpf")]
mod program;
mod record;
mod standing;

pub(crate) use areas::{Area, Areas};
pub(crate) use record::FileKind;
pub(crate) use standing::{Standing, Watch};

use record::Reading;
use std::sync::OnceLock;
use std::time::Duration;

/// How long a reference counts. 2^32 writes to a pipe and reads from it take more than 14 minutes (of at least
/// 100 ns each).
pub(crate) const REFERENCE_MAX: Duration = Duration::from_secs(600);

/// How long the counts of changes of address spaces count in it. 2^31 of the cheapest changes take about 40 s (a
/// lock and unlock of 20 ns each).
pub(crate) const COUNTS_MAX: Duration = Duration::from_secs(30);

#[cfg(feature = "bpf")]
pub(crate) use program::Program;

/// The census of this process, loaded at the first use; the error says why there is none here.
pub(crate) fn shared() -> Result<&'static Program, &'static str> {
    static CENSUS: OnceLock<Result<Program, String>> = OnceLock::new();
    // On a thread of its own: the kernel gives up checking a program when a signal comes, and who asks may have set
    // an alarm.
    let load = || match std::thread::spawn(Program::load).join() {
        Ok(done) => done,
        Err(_) => Err("loading it panicked".to_owned()),
    };
    CENSUS.get_or_init(load).as_ref().map_err(String::as_str)
}

/// Without BPF there is no census.
#[cfg(not(feature = "bpf"))]
#[derive(Debug)]
pub(crate) enum Program {}

/// What one call tells.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) readings: Vec<Reading>,
    /// Pages that were marked MADV_FREE on this machine so far, if that is known.
    pub(crate) lazy_frees: Option<u64>,
    /// Some of the container are marked, but not counted yet.
    pub(crate) pending: bool,
}

#[cfg(not(feature = "bpf"))]
impl Program {
    fn load() -> Result<Program, String> {
        Err("built without the feature bpf".to_owned())
    }

    pub(crate) fn take(&self, _: &[std::os::fd::BorrowedFd<'_>], _: &[u64]) -> std::io::Result<Answer> {
        match *self {}
    }
}

#[cfg(not(feature = "bpf"))]
impl std::fmt::Display for Program {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {}
    }
}

/// The count of `/proc/vmstat`.
pub(crate) fn lazy_frees_of_proc() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    text.lines().find_map(|line| line.strip_prefix("pglazyfree ")?.parse().ok())
}
