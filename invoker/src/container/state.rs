//! What a container may be given, as types.
//!
//! Each type has only the methods that are right in its state, and each method that changes the state takes the old
//! one away. See the drawing in [`container`](super).

use super::backend::{ContainerBackend, Handle};
use super::client::{self, Call, Closing, Exchanged, Outcome};
use super::logs::{Barrier, LogChannel, LogFollower, LogRequest, LogWatches};
use super::report::{CheckpointReport, QuarantineReason, RewindReport, Verdict};
use super::spec::EngineError;
use super::warden::{NoCheckpoint, Warden, Wardens};
use crate::pool::Isolation;
use openwhisk_compat::logs::CollectedLogs;
use openwhisk_compat::response::ContainerReply;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex as StdMutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Mutex;

/// What every state has: the container itself, and what reads its output.
struct Body {
    handle: Arc<Handle>,
    backend: Arc<dyn ContainerBackend>,
    wardens: Wardens,
    /// `None`: output goes elsewhere than to a file of ours.
    logs: Option<Mutex<LogFollower>>,
    /// The pipes of the output as they were at the start, or why they cannot be cleared between requests.
    channel: io::Result<LogChannel>,
    /// Whether output was ever asked for. If not (a log limit of 0), there is nobody to keep it apart for.
    collected: AtomicBool,
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.handle.name)
    }
}

/// Speaks about a container in whatever state, and can destroy it: that is safe at any time.
#[derive(Debug, Clone)]
pub struct ContainerRef {
    handle: Arc<Handle>,
    backend: Arc<dyn ContainerBackend>,
}

impl ContainerRef {
    /// The container as its engine knows it.
    #[must_use]
    pub fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Returns when the container's first process has ended.
    pub async fn died(&self) {
        self.handle.liveness.died().await;
    }

    /// Removes the container, whatever it is doing. Idempotent, bounded in time.
    ///
    /// # Errors
    /// When the engine could not; the next sweep will.
    pub async fn destroy(&self) -> Result<(), EngineError> {
        self.backend.destroy(&self.handle).await
    }
}

macro_rules! refers {
    ($($state:ident),*) => { $(
        impl $state {
            /// The container as its engine knows it.
            #[must_use]
            pub fn handle(&self) -> &Arc<Handle> {
                &self.body.handle
            }

            /// A reference to the container that stays valid in every state.
            #[must_use]
            pub fn reference(&self) -> ContainerRef {
                self.body.reference()
            }
        }
    )* };
}

refers!(Created, Initialised, Pristine, Suspended, InUse, Quarantined, Discarded);

impl Body {
    fn reference(&self) -> ContainerRef {
        ContainerRef { handle: Arc::clone(&self.handle), backend: Arc::clone(&self.backend) }
    }

    /// One request, and whether the kernel killed something meanwhile for want of memory.
    async fn call(&self, path: &'static str, request: &Request<'_>, until_listening: bool) -> Exchange {
        let killed_before = self.handle.oom.read();
        let started = Instant::now();
        let call = Call {
            address: self.handle.address,
            path,
            body: request.body,
            timeout: request.timeout,
            answer_bytes_max: request.answer_bytes_max,
            truncated_bytes: request.truncated_bytes,
            until_listening,
        };
        let Exchanged { outcome, closing, retries } = client::exchange(&call, &self.handle.liveness).await;
        let elapsed = started.elapsed();
        let outcome = match outcome {
            Outcome::Reply(ContainerReply::NoResponse) if self.ran_out_of_memory(killed_before).await => {
                Outcome::Reply(ContainerReply::OutOfMemory)
            }
            other => other,
        };
        Exchange { outcome, elapsed, closing, retries }
    }

    /// Asked after a broken connection (contract 5.7).
    async fn ran_out_of_memory(&self, killed_before: Option<u64>) -> bool {
        match (killed_before, self.handle.oom.read()) {
            (Some(before), Some(now)) => now > before,
            // The control group went with the container.
            _ if !self.handle.liveness.is_alive() => {
                self.backend.says_oom_killed(&self.handle).await.unwrap_or_else(|error| {
                    tracing::warn!(container = %self.handle.name, error = %crate::errors::chain(&error),
                        "cannot tell whether the container ran out of memory");
                    false
                })
            }
            _ => false,
        }
    }
}

struct Exchange {
    outcome: Outcome,
    elapsed: Duration,
    closing: Option<Closing>,
    retries: u32,
}

/// One request to a runtime.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// JSON, as `openwhisk_compat::protocol` makes it.
    pub body: &'a [u8],
    /// The action's time limit, for the whole exchange.
    pub timeout: Duration,
    /// The longest answer that is taken whole, in bytes (contract 5.5).
    pub answer_bytes_max: u64,
    /// How much is read of a longer one (`activation.payload.truncation`).
    pub truncated_bytes: u64,
}

/// A started container that has not been initialised: a stem cell, or one made for an action.
#[derive(Debug)]
pub struct Created {
    body: Arc<Body>,
}

/// How `/init` ended.
#[derive(Debug)]
pub struct InitEnd {
    /// The runtime's answer, to be mapped by `openwhisk_compat::response`. A container that died before anything
    /// could be sent counts as [`ContainerReply::NoResponse`].
    pub reply: ContainerReply,
    /// From the first attempt to connect to the end of the answer.
    pub elapsed: Duration,
    /// Further attempts to connect, until the runtime listened.
    pub retries: u32,
    /// The container: initialised if the answer was a whole 200 in time, else good for nothing.
    pub container: Result<Initialised, Discarded>,
}

impl Created {
    pub(super) fn new(
        handle: Arc<Handle>,
        backend: Arc<dyn ContainerBackend>,
        wardens: Wardens,
        watches: Option<Arc<LogWatches>>,
    ) -> Self {
        let channel = LogChannel::of(handle.init);
        let logs = handle.log_file.clone().map(|path| Mutex::new(LogFollower::new(path, watches)));
        let collected = AtomicBool::new(false);
        Self { body: Arc::new(Body { handle, backend, wardens, logs, channel, collected }) }
    }

    /// Sends `/init`. While nobody listens yet it tries again, until the time is used up.
    pub async fn init(self, request: Request<'_>) -> InitEnd {
        let Exchange { outcome, elapsed, closing, retries } = self.body.call("/init", &request, true).await;
        let reply = match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::NotSent(error) => {
                tracing::debug!(container = %self.body.handle.name, %error, "/init was not sent");
                match self.body.ran_out_of_memory(None).await {
                    true => ContainerReply::OutOfMemory,
                    false => ContainerReply::NoResponse,
                }
            }
        };
        if let Some(closing) = closing {
            closing.closed().await;
        }
        let good = matches!(reply, ContainerReply::Answer { status: 200, truncated: None, .. });
        let container =
            if good { Ok(Initialised { body: self.body }) } else { Err(Discarded { body: self.body }) };
        InitEnd { reply, elapsed, retries, container }
    }

    /// Whether something listens where the runtime should: the health ping of stem cells (contract 6.4).
    pub async fn is_listening(&self, within: Duration) -> bool {
        let connect = tokio::net::TcpStream::connect(self.body.handle.address);
        matches!(tokio::time::timeout(within, connect).await, Ok(Ok(_)))
            && self.body.handle.liveness.is_alive()
    }

    /// Gives the container up.
    #[must_use]
    pub fn discard(self) -> Discarded {
        Discarded { body: self.body }
    }
}

/// Says aloud that a container serves one request and is then destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SingleUse;

/// Says aloud that one request may find what another left. Only the operator can: it comes from the setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiver(());

impl Waiver {
    /// The waiver, if isolation `none` is what the operator chose.
    #[must_use]
    pub fn from_setting(isolation: Isolation) -> Option<Self> {
        (isolation == Isolation::None).then_some(Self(()))
    }
}

/// How the next request is kept from what this one leaves.
#[derive(Debug)]
enum Protection {
    Rewind(Warden),
    SingleUse,
    Waived,
}

/// A container whose `/init` was good and which has never had a request.
#[derive(Debug)]
pub struct Initialised {
    body: Arc<Body>,
}

/// How a checkpoint failed.
#[derive(Debug)]
pub enum CheckpointRefused {
    /// The container runs on unharmed. It may serve one request ([`Initialised::never_used`]).
    Unharmed(Initialised, Verdict),
    /// The container is dead or dying.
    Broken(Quarantined),
}

impl Initialised {
    /// Records the container as it is now: what every later request will find.
    ///
    /// # Errors
    /// When it cannot be recorded; the container comes back with the reason.
    pub async fn checkpoint(self) -> Result<(Pristine, CheckpointReport), CheckpointRefused> {
        let body = self.body;
        // Noted anew: a descriptor that is not the same any more was redirected by the runtime itself.
        let channel = match (&body.channel, LogChannel::of(body.handle.init)) {
            (Ok(first), Ok(now)) if *first == now => now,
            (Err(error), _) => return Err(no_channel(error.to_string(), Arc::clone(&body))),
            (_, Err(error)) => return Err(no_channel(error.to_string(), body)),
            (Ok(_), Ok(_)) => return Err(no_channel("redirected since the start".to_owned(), body)),
        };
        match Warden::checkpoint(&body.wardens, &body.handle.name, body.handle.init, channel).await {
            Ok((warden, report)) => Ok((Pristine { body, protection: Protection::Rewind(warden) }, report)),
            Err(NoCheckpoint::Unharmed(verdict)) => Err(CheckpointRefused::Unharmed(Self { body }, verdict)),
            Err(NoCheckpoint::Broken(verdict)) => {
                Err(CheckpointRefused::Broken(Quarantined { body, verdict }))
            }
        }
    }

    /// Pristine because nothing has ever run in it; there is no way back after its one request.
    #[must_use]
    pub fn never_used(self, _said_aloud: SingleUse) -> Pristine {
        Pristine { body: self.body, protection: Protection::SingleUse }
    }

    /// Counts as pristine now and after every request, by the operator's waiver.
    #[must_use]
    pub fn unprotected(self, _waiver: Waiver) -> Pristine {
        Pristine { body: self.body, protection: Protection::Waived }
    }

    /// Gives the container up.
    #[must_use]
    pub fn discard(self) -> Discarded {
        Discarded { body: self.body }
    }
}

impl Initialised {
    /// What is left to do when the answer to `/init` counts as a failure: the output, which is the activation's
    /// (contract 5.8). The container has been given up.
    #[must_use]
    pub fn into_answered(self) -> Answered {
        Answered { body: self.body, closing: None, _place: None }
    }
}

fn no_channel(detail: String, body: Arc<Body>) -> CheckpointRefused {
    CheckpointRefused::Unharmed(Initialised { body }, Verdict::new(QuarantineReason::LogChannel, detail))
}

/// The only state in which a container can be put in use.
#[derive(Debug)]
pub struct Pristine {
    body: Arc<Body>,
    protection: Protection,
}

impl Pristine {
    /// Puts the container in use: up to `concurrency` requests at a time, one at a time when it is for single use.
    #[must_use]
    pub fn put_in_use(self, concurrency: u32) -> InUse {
        let concurrency = match self.protection {
            Protection::SingleUse => 1,
            Protection::Rewind(_) | Protection::Waived => concurrency.max(1),
        };
        let usage = Usage { concurrency, counts: StdMutex::default() };
        InUse { body: self.body, protection: self.protection, usage: Arc::new(usage) }
    }

    /// Stops all its processes until it is needed.
    ///
    /// # Errors
    /// When the engine could not: the container's state is then unknown.
    pub async fn suspend(self) -> Result<Suspended, (Discarded, EngineError)> {
        match self.body.backend.suspend(&self.body.handle).await {
            Ok(()) => Ok(Suspended { body: self.body, protection: self.protection }),
            Err(error) => Err((Discarded { body: self.body }, error)),
        }
    }

    /// Gives the container up.
    #[must_use]
    pub fn discard(self) -> Discarded {
        Discarded { body: self.body }
    }
}

/// A pristine container whose processes are stopped.
#[derive(Debug)]
pub struct Suspended {
    body: Arc<Body>,
    protection: Protection,
}

impl Suspended {
    /// Lets its processes go on.
    ///
    /// # Errors
    /// When the engine could not: the container's state is then unknown.
    pub async fn resume(self) -> Result<Pristine, (Discarded, EngineError)> {
        match self.body.backend.resume(&self.body.handle).await {
            Ok(()) => Ok(Pristine { body: self.body, protection: self.protection }),
            Err(error) => Err((Discarded { body: self.body }, error)),
        }
    }

    /// Gives the container up.
    #[must_use]
    pub fn discard(self) -> Discarded {
        Discarded { body: self.body }
    }
}

/// A container that requests are in. It never becomes [`Initialised`] again, so there is no way to take a
/// snapshot of it.
#[derive(Debug)]
pub struct InUse {
    body: Arc<Body>,
    protection: Protection,
    usage: Arc<Usage>,
}

#[derive(Debug)]
struct Usage {
    /// At least 1.
    concurrency: u32,
    counts: StdMutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    /// Leases that have not ended; at most `concurrency`.
    in_flight: u32,
    /// Leases ever given.
    given: u64,
}

impl Usage {
    fn with_counts<T>(&self, work: impl FnOnce(&mut Counts) -> T) -> T {
        // Nothing that can panic happens while the lock is held.
        work(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A place among the requests in flight; given back when dropped.
#[derive(Debug)]
struct Place(Arc<Usage>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.with_counts(|counts| counts.in_flight -= 1);
    }
}

/// Why there is no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefused {
    /// As many requests are in flight as the action's concurrency allows.
    #[error("{0} requests are in flight, which is all the action's concurrency allows")]
    Full(u32),
    /// The last request in flight has ended: the container must be rewound first.
    #[error("the container was used and has not been rewound")]
    Spent,
}

/// A container that is not rewound now.
#[derive(Debug)]
pub enum RewindRefused {
    /// Requests are still in flight.
    InFlight(InUse),
    /// It cannot be proven pristine, and must be destroyed.
    Quarantined(Quarantined),
}

impl InUse {
    /// The right to send one request. Requests may join others in flight, but not follow the last of them.
    ///
    /// # Errors
    /// See [`LeaseRefused`].
    pub fn lease(&self) -> Result<Lease, LeaseRefused> {
        self.usage.with_counts(|counts| {
            if counts.given > 0 && counts.in_flight == 0 {
                return Err(LeaseRefused::Spent);
            }
            if counts.in_flight >= self.usage.concurrency {
                return Err(LeaseRefused::Full(self.usage.concurrency));
            }
            counts.given += 1;
            counts.in_flight += 1;
            Ok(())
        })?;
        Ok(Lease { body: Arc::clone(&self.body), place: Place(Arc::clone(&self.usage)) })
    }

    /// How many requests are in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.usage.with_counts(|counts| counts.in_flight)
    }

    /// Puts the container back to its checkpoint, once the last lease has ended.
    ///
    /// # Errors
    /// When requests are in flight, or when the container cannot be proven pristine.
    pub async fn rewind(self) -> Result<(Pristine, RewindReport), RewindRefused> {
        if self.in_flight() > 0 {
            return Err(RewindRefused::InFlight(self));
        }
        let Self { body, protection, .. } = self;
        let quarantined = |body, verdict| Err(RewindRefused::Quarantined(Quarantined { body, verdict }));
        let Protection::Rewind(warden) = protection else {
            let verdict = Verdict::new(QuarantineReason::NoSnapshot, "used, and never checkpointed");
            return quarantined(body, verdict);
        };
        let barrier = match &body.logs {
            Some(logs) if body.collected.load(Ordering::Relaxed) => Some((Barrier::random(), logs)),
            _ => None,
        };
        match warden.rewind(barrier.as_ref().map(|(barrier, _)| barrier.clone())).await {
            Ok(report) => {
                if let Some((barrier, logs)) = barrier {
                    logs.lock().await.expect_barrier(barrier);
                }
                Ok((Pristine { body, protection: Protection::Rewind(warden) }, report))
            }
            Err(verdict) => quarantined(body, verdict),
        }
    }

    /// Counts as pristine without being so, by the operator's waiver, once the last lease has ended.
    ///
    /// # Errors
    /// When requests are in flight, or the container was not made with the waiver.
    pub fn reuse_unprotected(self, _waiver: Waiver) -> Result<Pristine, RewindRefused> {
        if self.in_flight() > 0 {
            return Err(RewindRefused::InFlight(self));
        }
        let Self { body, protection, .. } = self;
        match protection {
            Protection::Waived => Ok(Pristine { body, protection }),
            Protection::Rewind(_) | Protection::SingleUse => {
                let verdict = Verdict::new(QuarantineReason::NoSnapshot, "used, and made without the waiver");
                Err(RewindRefused::Quarantined(Quarantined { body, verdict }))
            }
        }
    }

    /// Gives the container up. Requests in flight end when it is destroyed.
    #[must_use]
    pub fn discard(self) -> Discarded {
        Discarded { body: self.body }
    }
}

/// The right to send one request to a container in use.
#[derive(Debug)]
pub struct Lease {
    body: Arc<Body>,
    place: Place,
}

/// How `/run` ended.
#[derive(Debug)]
pub struct RunEnd {
    /// The runtime's answer, to be mapped by `openwhisk_compat::response`. With
    /// [`ContainerReply::ShuttingDown`] the action has not run, and the job goes back to the pool.
    pub reply: ContainerReply,
    /// From the attempt to connect to the end of the answer.
    pub elapsed: Duration,
    /// What is left to do before the lease ends: logs.
    pub answered: Answered,
}

impl Lease {
    /// Sends `/run`, once. `found_at_rest`: the container was idle or suspended when the job came to it; a refused
    /// connection then means an unhealthy container rather than a failed action (contract 5.4), and becomes
    /// [`ContainerReply::ShuttingDown`].
    pub async fn run(self, request: Request<'_>, found_at_rest: bool) -> RunEnd {
        let Exchange { outcome, elapsed, closing, .. } = self.body.call("/run", &request, false).await;
        let reply = match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::NotSent(error) => {
                tracing::debug!(container = %self.body.handle.name, %error, found_at_rest, "/run was not sent");
                if found_at_rest {
                    ContainerReply::ShuttingDown
                } else if self.body.ran_out_of_memory(None).await {
                    ContainerReply::OutOfMemory
                } else {
                    ContainerReply::NoResponse
                }
            }
        };
        RunEnd { reply, elapsed, answered: Answered { body: self.body, closing, _place: Some(self.place) } }
    }
}

/// A request that has been answered and whose output may still be on its way.
#[derive(Debug)]
pub struct Answered {
    body: Arc<Body>,
    closing: Option<Closing>,
    /// None for a failed `/init`, which no lease goes with.
    _place: Option<Place>,
}

impl Answered {
    /// Collects the request's output. Of several requests in one container each takes the next two sentinels, first
    /// come, first served (contract 5.9). Empty when output does not go to a file of ours.
    pub async fn collect_logs(&mut self, request: &LogRequest) -> CollectedLogs {
        let Some(logs) = &self.body.logs else {
            return CollectedLogs { lines: Vec::new(), failure: None, consumed: 0 };
        };
        self.body.collected.store(true, Ordering::Relaxed);
        let closing = self.closing.take();
        let closed = async {
            if let Some(closing) = closing {
                closing.closed().await;
            }
        };
        let collect = async {
            let mut logs = logs.lock().await;
            logs.collect(request, self.body.channel.as_ref().ok(), &self.body.handle.liveness).await
        };
        tokio::join!(collect, closed).0
    }

    /// Ends the lease. Dropping it does so too, without waiting for the runtime to close its end of the connection.
    pub async fn end(mut self) {
        if let Some(closing) = self.closing.take() {
            closing.closed().await;
        }
    }
}

/// A container that cannot be proven pristine. All that can be done with it is to destroy it.
#[derive(Debug)]
pub struct Quarantined {
    body: Arc<Body>,
    verdict: Verdict,
}

impl Quarantined {
    /// What was found.
    #[must_use]
    pub fn verdict(&self) -> &Verdict {
        &self.verdict
    }

    /// What was found, when who destroys the container has a reference to it.
    #[must_use]
    pub fn into_verdict(self) -> Verdict {
        self.verdict
    }

    /// Removes the container.
    ///
    /// # Errors
    /// When the engine could not; the next sweep will.
    pub async fn destroy(self) -> Result<(), EngineError> {
        self.body.reference().destroy().await
    }
}

/// A container that is no longer wanted. All that can be done with it is to destroy it.
#[derive(Debug)]
pub struct Discarded {
    body: Arc<Body>,
}

impl Discarded {
    /// Removes the container.
    ///
    /// # Errors
    /// When the engine could not; the next sweep will.
    pub async fn destroy(self) -> Result<(), EngineError> {
        self.body.reference().destroy().await
    }
}

impl Discarded {
    /// What is left to do when the answer to `/init` counts as a failure: the output, which is the activation's
    /// (contract 5.8). The container has been given up.
    #[must_use]
    pub fn into_answered(self) -> Answered {
        Answered { body: self.body, closing: None, _place: None }
    }
}
