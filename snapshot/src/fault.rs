//! Named points at which a test can make a step fail.
//!
//! Each point must end in a quarantine (and dead processes) or in an untouched container, never in one
//! that is left ptrace-stopped.

use crate::reason::{Quarantine, Reason};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! points {
    ($( $(#[$doc:meta])* $variant:ident, $name:literal; )*) => {
        /// The steps that can be made to fail.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum FaultPoint { $( $(#[$doc])* $variant, )* }

        impl FaultPoint {
            /// Every point, in the order in which a checkpoint and then a rewind passes them.
            pub const ALL: &'static [FaultPoint] = &[ $( FaultPoint::$variant, )* ];

            /// Its name in messages.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $( FaultPoint::$variant => $name, )* }
            }
        }
    };
}

points! {
    /// Checkpoint: after the threads have stopped.
    CheckpointStopped, "checkpoint_stopped";
    /// Checkpoint: after the agent has been mapped.
    CheckpointAgent, "checkpoint_agent";
    /// Checkpoint: after the kernel objects have been recorded.
    CheckpointObjects, "checkpoint_objects";
    /// Checkpoint: after memory has been copied.
    CheckpointMemory, "checkpoint_memory";
    /// Checkpoint: just before the thaw.
    CheckpointThaw, "checkpoint_thaw";
    /// Rewind: before anything is stopped.
    Kill, "kill";
    /// Rewind: after the threads have stopped.
    Stop, "stop";
    /// Rewind: after extra threads have exited.
    Threads, "threads";
    /// Rewind: after the outside comparison.
    Inspect, "inspect";
    /// Rewind: before the agent runs.
    Inject, "inject";
    /// Rewind: after the kernel objects have been put back.
    Objects, "objects";
    /// Rewind: after the layout has been put back.
    Layout, "layout";
    /// Rewind: after the scan.
    Scan, "scan";
    /// Rewind: with memory half written back.
    Copy, "copy";
    /// Rewind: after the caller's files.
    Files, "files";
    /// Rewind: with some threads let go and some not.
    Thaw, "thaw";
}

/// Which fault points trip, shared by the clones of one [`crate::Options`].
#[derive(Debug, Clone, Default)]
pub struct Faults {
    armed: Arc<AtomicU64>,
}

impl Faults {
    /// Makes `point` trip from now on.
    pub fn arm(&self, point: FaultPoint) {
        self.armed.fetch_or(1 << (point as u64), Ordering::SeqCst);
    }

    /// Lets every point pass again.
    pub fn disarm(&self) {
        self.armed.store(0, Ordering::SeqCst);
    }

    /// Fails if `point` is armed.
    pub(crate) fn trip(&self, point: FaultPoint) -> Result<(), Quarantine> {
        if self.armed.load(Ordering::Relaxed) & (1 << (point as u64)) == 0 {
            return Ok(());
        }
        Err(Quarantine::new(Reason::FaultInjected, point.name()))
    }
}
