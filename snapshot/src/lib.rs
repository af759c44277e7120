//! Checkpoint and rewind of a container's process tree: memory, threads and kernel objects.
//!
//! [`checkpoint`] records the pristine state of every process of a container; [`Snapshot::rewind`] puts
//! them back to it, or says why it cannot vouch for that (a [`Quarantine`]) and kills them.
//! Nothing here knows of requests, images or files: the files of the container are the caller's, who is
//! called back at the moment at which nothing in the container runs.
//!
//! x86-64 Linux from 6.7 on. All calls for one container must come from one thread: ptrace ties the tracees
//! to the thread that attached them.

mod fault;
mod options;
mod probe;
mod reason;
mod report;
mod tree;

pub use fault::{FaultPoint, Faults};
pub use nix::unistd::Pid;
pub use options::Options;
pub use probe::{Feature, KernelFeatures, probe};
pub use reason::{Quarantine, Reason};
pub use report::{CheckpointReport, Phase, RewindReport};
pub use tree::{Target, TargetError};

use std::error::Error;

/// Called while every task of the container is stopped. An error refuses the checkpoint, or quarantines the
/// container with [`Reason::Files`].
pub type WhileFrozen<'a> = &'a mut dyn FnMut() -> Result<(), Box<dyn Error + Send + Sync>>;

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The container was still busy when the time was up. It runs on unharmed and may be tried again.
    #[error("not settled: {}", busy.join(", "))]
    NotSettled {
        /// What was busy: threads and the system call they were in, connections.
        busy: Vec<String>,
    },
    /// Something in the container cannot be restored later. It runs on unharmed, but must not serve two
    /// requests.
    #[error("refused")]
    Refused(#[source] Quarantine),
    /// The caller's files failed. The container runs on unharmed.
    #[error("files")]
    Files(#[source] Box<dyn Error + Send + Sync>),
    /// The checkpoint broke half way. The processes of the container have been killed.
    #[error("broken")]
    Broken(#[source] Quarantine),
}

/// The recorded state of a container.
///
/// Dropping it forgets the state and leaves the container running.
#[derive(Debug)]
pub struct Snapshot {
    _private: (),
}

/// Records the state of a container once it has settled.
///
/// `files` is called at the end, with everything stopped.
pub fn checkpoint(
    target: &Target,
    options: &Options,
    files: WhileFrozen<'_>,
) -> Result<(Snapshot, CheckpointReport), CheckpointError> {
    let _ = (target, options, files);
    Err(CheckpointError::Refused(Quarantine::new(Reason::Kernel, "no engine in this build")))
}

impl Snapshot {
    /// Puts the container back to the snapshot.
    ///
    /// `files` is called after memory and kernel objects are back and before anything runs again.
    /// After an error the processes of the container are dead or dying, and the container must be destroyed.
    pub fn rewind(&mut self, files: WhileFrozen<'_>) -> Result<RewindReport, Quarantine> {
        let _ = files;
        Err(Quarantine::new(Reason::Kernel, "no engine in this build"))
    }

    /// Bytes of memory that the snapshot holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        0
    }
}
