//! The thread that checkpoints and rewinds one container.
//!
//! Tracing ties a traced process to the thread that attached to it, and the work blocks; so each container has a
//! thread of its own, which owns the snapshot and the sealed files and does one order at a time. Between orders it
//! hands the container's signals on, which stop at their tracer ([`Keeper`]).
//!
//! ```text
//!   Warden (async) --order--> thread: checkpoint | rewind | (between them) signals --answer--> Warden
//! ```
//!
//! How many of them work at once is bounded: rewinds compete with requests for processors.

use super::logs::{Barrier, LogChannel};
use super::report::{CheckpointReport, QuarantineReason, RewindReport, Verdict};
use fs_overlay::{FilesQuarantine, FilesReport, OverlayRoot, SealReport, Sealed};
use nix::unistd::Pid;
use snapshot::{CheckpointError, Keeper, Kept, Snapshot, Target};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, oneshot};

/// How wardens work.
#[derive(Debug, Clone)]
pub struct WardenOptions {
    /// Processes.
    pub memory: snapshot::Options,
    /// Files.
    pub files: fs_overlay::Options,
    /// Most rewinds at a time, and a few times as many checkpoints.
    pub parallel_max: usize,
}

/// A checkpoint spends most of its time waiting for the runtime to settle, up to seconds. So that nobody's rewind
/// waits for that, checkpoints have places of their own, and more of them.
const CHECKPOINTS_PER_REWIND: usize = 8;

impl Default for WardenOptions {
    fn default() -> Self {
        Self {
            memory: snapshot::Options::default(),
            files: fs_overlay::Options::default(),
            // A rewind is processor work of under a millisecond; more of them than processors only wait for
            // each other, some more hide the waiting for threads to stop.
            parallel_max: 2 * std::thread::available_parallelism().map_or(2, usize::from),
        }
    }
}

/// Makes the wardens of one invoker.
#[derive(Debug, Clone)]
pub(super) struct Wardens {
    options: Arc<WardenOptions>,
    checkpoints: Arc<Semaphore>,
    rewinds: Arc<Semaphore>,
}

impl Wardens {
    pub(super) fn new(options: WardenOptions) -> Self {
        let places = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        let rewinds = places(options.parallel_max);
        let checkpoints = places(options.parallel_max.saturating_mul(CHECKPOINTS_PER_REWIND));
        Self { options: Arc::new(options), checkpoints, rewinds }
    }
}

/// Why there is no checkpoint, and what has become of the container.
#[derive(Debug)]
pub(super) enum NoCheckpoint {
    /// It runs on unharmed.
    Unharmed(Verdict),
    /// It is dead or dying.
    Broken(Verdict),
}

/// The async end of a warden. Dropping it ends the thread, which forgets the snapshot.
#[derive(Debug)]
pub(super) struct Warden {
    keeper: Keeper<Worker>,
    /// Where rewinds take their places.
    rewinds: Arc<Semaphore>,
}

impl Warden {
    /// Starts the thread for a container and takes the checkpoint.
    pub(super) async fn checkpoint(
        wardens: &Wardens,
        name: &str,
        init: Pid,
        channel: LogChannel,
    ) -> Result<(Self, CheckpointReport), NoCheckpoint> {
        let options = Arc::clone(&wardens.options);
        let keeper = Keeper::start(format!("warden-{name}"), move || Worker {
            options,
            init,
            channel,
            recorded: None,
        })
        .map_err(|error| NoCheckpoint::Unharmed(warden_gone(&error)))?;
        let warden = Self { keeper, rewinds: Arc::clone(&wardens.rewinds) };
        let (answer, waiting) =
            warden.order(&wardens.checkpoints, Worker::checkpoint).await.map_err(NoCheckpoint::Unharmed)?;
        answer.map(|report| (warden, CheckpointReport { waiting, ..report }))
    }

    /// Puts the container back. After an error it must be destroyed.
    pub(super) async fn rewind(&self, barrier: Option<Barrier>) -> Result<RewindReport, Verdict> {
        let (answer, waiting) =
            self.order(&self.rewinds, move |worker| worker.rewind(barrier.as_ref())).await?;
        answer.map(|report| RewindReport { waiting, ..report })
    }

    /// Gives an order and waits for its answer, and says how long it waited for a place.
    ///
    /// A panic in the middle of one leaves nobody knows what. It ends the thread, and the answer's sender is dropped
    /// with it, which quarantines the container.
    async fn order<T: Send + 'static>(
        &self,
        places: &Semaphore,
        order: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<(T, Duration), Verdict> {
        let started = Instant::now();
        let _place = places.acquire().await.map_err(|error| warden_gone(&error))?;
        let waiting = started.elapsed();
        let (answer, answered) = oneshot::channel();
        let order = move |worker: &mut Worker| {
            // Nobody waits any more: then nobody wants it.
            let _ = answer.send(order(worker));
        };
        self.keeper.order(order).map_err(|error| warden_gone(&error))?;
        let answer = answered.await.map_err(|error| warden_gone(&error))?;
        Ok((answer, waiting))
    }
}

fn warden_gone(why: &dyn std::fmt::Display) -> Verdict {
    Verdict::new(QuarantineReason::Warden, why.to_string())
}

struct Worker {
    options: Arc<WardenOptions>,
    init: Pid,
    channel: LogChannel,
    recorded: Option<(Snapshot, Sealed)>,
}

impl Kept for Worker {
    fn snapshot(&mut self) -> Option<&mut Snapshot> {
        self.recorded.as_mut().map(|(memory, _)| memory)
    }
}

impl Worker {
    fn checkpoint(&mut self) -> Result<CheckpointReport, NoCheckpoint> {
        let started = Instant::now();
        let target = Target::from_init(self.init).map_err(|error| {
            let reason = QuarantineReason::Memory(snapshot::Reason::Unreadable);
            NoCheckpoint::Unharmed(Verdict::because(reason, "finding the processes", error))
        })?;
        // What `/init` printed must not wait in the pipes and come out again after each rewind.
        self.channel.clear(None).map_err(|error| NoCheckpoint::Unharmed(uncleared(error)))?;
        let mut sealed: Option<(Sealed, SealReport)> = None;
        let mut seal = || {
            let root = OverlayRoot::discover_in(self.init, &self.options.files.relative_to)?;
            sealed = Some(fs_overlay::seal(root, &self.options.files)?);
            Ok(())
        };
        let (memory, report) =
            snapshot::checkpoint(&target, &self.options.memory, &mut seal).map_err(no_checkpoint)?;
        let Some((sealed, files)) = sealed else {
            let reason = QuarantineReason::Files(fs_overlay::FilesReason::NotRestored);
            return Err(NoCheckpoint::Broken(Verdict::new(reason, "the files were not sealed")));
        };
        self.recorded = Some((memory, sealed));
        Ok(CheckpointReport { waiting: Duration::ZERO, total: started.elapsed(), memory: report, files })
    }

    fn rewind(&mut self, barrier: Option<&Barrier>) -> Result<RewindReport, Verdict> {
        let started = Instant::now();
        // Taken out: after an error there is nothing to rewind to.
        let Some((mut memory, mut sealed)) = self.recorded.take() else {
            return Err(Verdict::new(QuarantineReason::NoSnapshot, "rewind without a checkpoint"));
        };
        let mut files = FilesReport::default();
        let mut found = None;
        let (mut clearing, mut not_cleared) = (None, None);
        let mut undo = || {
            // Nothing runs, and the descriptors are back: the pipes are read empty while the rest is put back.
            match self.channel.begin(barrier) {
                Ok(begun) => clearing = Some(begun),
                Err(error) => {
                    let text = error.to_string();
                    not_cleared = Some(error);
                    return Err(text.into());
                }
            }
            match sealed.rewind() {
                Ok(report) => {
                    files = report;
                    Ok(())
                }
                Err(quarantine) => {
                    let error = quarantine.to_string();
                    found = Some(quarantine);
                    Err(error.into())
                }
            }
        };
        let rewound = memory.rewind(&mut undo);
        if let Some(error) = not_cleared {
            return Err(uncleared(error));
        }
        let report = match (rewound, found) {
            (_, Some(quarantine)) => return Err(files_verdict(quarantine)),
            (Err(quarantine), None) => return Err(quarantine.into()),
            (Ok(report), None) => report,
        };
        let before_logs = Instant::now();
        let Some(clearing) = clearing else {
            return Err(Verdict::new(QuarantineReason::LogChannel, "the pipes to the log were not cleared"));
        };
        clearing.end().map_err(uncleared)?;
        self.recorded = Some((memory, sealed));
        Ok(RewindReport {
            waiting: Duration::ZERO,
            total: started.elapsed(),
            memory: report,
            files,
            logs: before_logs.elapsed(),
        })
    }
}

fn no_checkpoint(error: CheckpointError) -> NoCheckpoint {
    match error {
        CheckpointError::NotSettled { .. } => {
            NoCheckpoint::Unharmed(Verdict::new(QuarantineReason::NotSettled, error.to_string()))
        }
        CheckpointError::Refused(found) => NoCheckpoint::Unharmed(found.into()),
        CheckpointError::Files(source) => NoCheckpoint::Unharmed(Verdict {
            reason: QuarantineReason::Memory(snapshot::Reason::Files),
            detail: "sealing the files".to_owned(),
            source: Some(source),
        }),
        CheckpointError::Broken(found) => NoCheckpoint::Broken(found.into()),
        // A kind that did not exist when this was written: nothing is known about the container.
        other => NoCheckpoint::Broken(Verdict::because(
            QuarantineReason::Memory(snapshot::Reason::Kernel),
            "taking the checkpoint",
            other,
        )),
    }
}

fn files_verdict(found: FilesQuarantine) -> Verdict {
    let detail = format!("{} at {}", found.detail, fs_overlay::shown(&found.path));
    Verdict { reason: QuarantineReason::Files(found.reason), detail, source: found.source.map(Into::into) }
}

fn uncleared(error: io::Error) -> Verdict {
    Verdict::because(QuarantineReason::LogChannel, "clearing the pipes to the log", error)
}
