//! What a container engine must be able to do for us. Today there is one: [`docker`](super::docker).

use super::liveness::Liveness;
use super::memory::OomCounter;
use super::spec::{ContainerSpec, CreateError, EngineError};
use crate::pool::ContainerId;
use async_trait::async_trait;
use futures::StreamExt as _;
use nix::unistd::Pid;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

/// A container that was started, as its engine knows it. It says nothing about what the container may be given:
/// that is what the types of [`state`](super::state) are for.
#[derive(Debug)]
pub struct Handle {
    /// The pool's number for it.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    /// The engine's id for it: 64 hexadecimal digits with Docker.
    pub engine_id: String,
    /// The image it was made of.
    pub image: String,
    /// Its first process, as a pid seen from here.
    pub init: Pid,
    /// Whether that process lives.
    pub liveness: Liveness,
    /// Where its runtime listens. Of no worth once the first process has ended.
    pub address: SocketAddr,
    /// Docker's json-file log, if that is where its output goes.
    pub log_file: Option<PathBuf>,
    /// Counts what the kernel killed in it for want of memory.
    pub oom: OomCounter,
    /// Whether it may be suspended; for the backend only, which sets it before it suspends and clears it after it
    /// resumed.
    pub(super) suspended: AtomicBool,
    /// What its creation cost.
    pub start: StartReport,
}

/// The time a creation took, by step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StartReport {
    /// Waiting for a place among the parallel creations (`docker.client.parallel-runs`).
    pub waiting: Duration,
    /// Pulling the image.
    pub pull: Duration,
    /// Making and starting the container (`docker run`).
    pub run: Duration,
    /// Finding its process and its address.
    pub inspect: Duration,
}

impl StartReport {
    /// All of it.
    #[must_use]
    pub fn total(&self) -> Duration {
        self.waiting + self.pull + self.run + self.inspect
    }
}

/// A container that an earlier process left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// How the engine calls it.
    pub engine_id: String,
    /// Its name.
    pub name: String,
    /// The number in its name, if it is one that can be counted on from.
    pub number: Option<u64>,
    /// The engine says that it is suspended.
    pub suspended: bool,
}

/// A sweep ends after this, finished or not (contract 6.5).
pub const SWEEP_WITHIN: Duration = Duration::from_secs(30);

/// How many leftovers are removed at a time.
pub const SWEEP_PARALLEL: usize = 16;

/// What a sweep of leftovers did.
#[derive(Debug, Default)]
pub struct SweepReport {
    /// Names of the containers that were removed.
    pub removed: Vec<String>,
    /// Those that could not be, with the reason.
    pub failed: Vec<(String, EngineError)>,
}

/// A container engine.
///
/// Every call is bounded in time by the implementation.
#[async_trait]
pub trait ContainerBackend: fmt::Debug + Send + Sync {
    /// Its name and version in one line, for the log at start.
    fn describe(&self) -> String;

    /// Whether the engine answers now.
    async fn ping(&self) -> Result<(), EngineError>;

    /// Makes a container and starts it. When this fails nothing of it is left, except when the engine itself is
    /// out of reach: the next [`sweep`](Self::sweep) finds that.
    async fn create(&self, spec: &ContainerSpec) -> Result<Arc<Handle>, CreateError>;

    /// Stops all processes of the container where they are. Idempotent.
    async fn suspend(&self, container: &Handle) -> Result<(), EngineError>;

    /// Lets them go on. Idempotent.
    async fn resume(&self, container: &Handle) -> Result<(), EngineError>;

    /// Removes the container, suspended or not, dead or alive. Idempotent.
    async fn destroy(&self, container: &Handle) -> Result<(), EngineError>;

    /// Whether the engine says that the container was killed for want of memory: asked only when the
    /// container's control group is already gone.
    async fn says_oom_killed(&self, container: &Handle) -> Result<bool, EngineError>;

    /// The containers that an earlier process with our name prefix left behind, or this one has now.
    async fn leftovers(&self) -> Result<Vec<Leftover>, EngineError>;

    /// Removes one of them, suspended or not, dead or alive. Idempotent.
    async fn remove_leftover(&self, leftover: &Leftover) -> Result<(), EngineError>;

    /// Removes all of them, within [`SWEEP_WITHIN`].
    async fn sweep(&self) -> Result<SweepReport, EngineError> {
        let deadline = tokio::time::Instant::now() + SWEEP_WITHIN;
        let late = |what| EngineError::TimedOut { what, limit: SWEEP_WITHIN };
        let leftovers =
            tokio::time::timeout_at(deadline, self.leftovers()).await.map_err(|_| late("ps"))??;
        let mut report = SweepReport::default();
        let mut removals = futures::stream::iter(leftovers)
            .map(|one| async move {
                let outcome = self.remove_leftover(&one).await;
                (one.name, outcome)
            })
            .buffer_unordered(SWEEP_PARALLEL);
        loop {
            match tokio::time::timeout_at(deadline, removals.next()).await {
                Ok(Some((name, Ok(())))) => report.removed.push(name),
                Ok(Some((name, Err(error)))) => report.failed.push((name, error)),
                Ok(None) => return Ok(report),
                Err(_) => {
                    report.failed.push(("and others".to_owned(), late("rm")));
                    return Ok(report);
                }
            }
        }
    }
}
