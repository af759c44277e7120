//! The bounds of one seal or rewind while it runs, and how its steps stop.

use std::io;
use std::path::Path;
use std::time::Instant;

use rustix::io::Errno;

use crate::options::Options;
use crate::report::{FilesQuarantine, FilesReason, FilesReport};

/// Why a step cannot go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// A system call failed.
    Io(io::Error),
    /// The state found cannot be put back, or a bound is reached.
    Reason(FilesReason, &'static str),
    /// As much was found as the question needed.
    Enough,
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Errno> for Stop {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

impl Stop {
    /// Names the path, and the reason a failed call stands for.
    pub(crate) fn at(self, path: &Path, reason: FilesReason, doing: &'static str) -> FilesQuarantine {
        match self {
            Self::Io(error) => FilesQuarantine::failed(reason, path, doing, error),
            Self::Reason(reason, detail) => FilesQuarantine::new(reason, path, detail),
            Self::Enough => FilesQuarantine::new(reason, path, doing),
        }
    }
}

/// Counts the work of one rewind and stops it at its bounds.
#[derive(Debug)]
pub(crate) struct Work<'a> {
    pub(crate) options: &'a Options,
    pub(crate) report: FilesReport,
    started: Instant,
    undone: u64,
    bytes: u64,
}

impl<'a> Work<'a> {
    pub(crate) fn start(options: &'a Options) -> Self {
        Self { options, report: FilesReport::default(), started: Instant::now(), undone: 0, bytes: 0 }
    }

    /// Most differences kept in a list.
    ///
    /// Twice the bound on undoing, since a renamed entry is two differences; beyond it nothing is
    /// undone anyway, and no list may grow with what a function made.
    pub(crate) fn notes_max(&self) -> u64 {
        self.options.undone_entries_max.saturating_mul(2)
    }

    /// One entry's status was read.
    pub(crate) fn examined(&mut self) -> Result<(), Stop> {
        self.report.entries_examined += 1;
        // The clock is read for one entry in 64: an entry takes about a microsecond.
        if self.report.entries_examined.is_multiple_of(64) { self.in_time() } else { Ok(()) }
    }

    /// One entry is about to be changed.
    pub(crate) fn undoing(&mut self) -> Result<(), Stop> {
        self.undone += 1;
        if self.undone > self.options.undone_entries_max {
            return Err(Stop::Reason(FilesReason::TooManyChanges, "undoing changes"));
        }
        self.in_time()
    }

    /// Some bytes were read or written to compare or restore contents.
    pub(crate) fn moved(&mut self, bytes: usize) -> Result<(), Stop> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        if self.bytes > self.options.undone_bytes_max {
            return Err(Stop::Reason(FilesReason::TooManyBytes, "comparing contents"));
        }
        self.in_time()
    }

    /// A directory at this depth is about to be entered.
    pub(crate) fn descend(&self, depth: usize) -> Result<(), Stop> {
        if depth > self.options.depth_max {
            return Err(Stop::Reason(FilesReason::TooDeep, "following directories"));
        }
        Ok(())
    }

    fn in_time(&self) -> Result<(), Stop> {
        if self.started.elapsed() > self.options.deadline {
            return Err(Stop::Reason(FilesReason::Deadline, "putting files back"));
        }
        Ok(())
    }
}
