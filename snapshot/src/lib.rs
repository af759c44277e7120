//! Checkpoint and rewind of a container's process tree: memory, threads and kernel objects.
//!
//! [`checkpoint()`] records the pristine state of every process of a container; [`Snapshot::rewind`] puts
//! them back to it, or says why it cannot vouch for that (a [`Quarantine`]) and kills them.
//! Nothing here knows of requests, images or files: the files of the container are the caller's, who is
//! called back at the moment at which nothing in the container runs.
//!
//! x86-64 Linux from 6.7 on. All calls for one container come from one thread: ptrace ties the tracees to the
//! thread that attached them. It stays attached from the checkpoint on and hands signals on while the container
//! runs ([`Snapshot::serve`]); a [`Keeper`] is such a thread.

mod bell;
mod census;
mod checkpoint;
mod engine;
mod fault;
mod freeze;
mod inject;
mod keeper;
mod layout;
mod objects;
mod options;
mod probe;
mod proc;
mod process;
mod reason;
mod registers;
mod report;
mod rewind;
mod settle;
mod sys;
mod tree;

pub use bell::Bell;
pub use checkpoint::{CheckpointError, checkpoint};
pub use fault::{FaultPoint, Faults};
pub use keeper::{Gone, Keeper, Kept};
pub use nix::unistd::Pid;
pub use options::Options;
pub use probe::{Feature, KernelFeatures, probe};
pub use reason::{Quarantine, Reason};
pub use report::{CheckpointReport, Phase, RewindReport};
pub use rewind::Snapshot;
pub use tree::{Target, TargetError};

use std::error::Error;

/// Called while every task of the container is stopped. An error refuses the checkpoint, or quarantines the
/// container with [`Reason::Files`].
pub type WhileFrozen<'a> = &'a mut dyn FnMut() -> Result<(), Box<dyn Error + Send + Sync>>;
