//! Containers: what may be done with one when, and how.
//!
//! The promise of the whole program is in the types of [`state`]. A request can only be sent with a [`Lease`], a
//! lease only be had from an [`InUse`], that only be made of a [`Pristine`]; and a `Pristine` is made by a first
//! checkpoint, by a completed rewind, or by words said aloud: [`SingleUse`] for a container nothing has ever run in,
//! [`Waiver`] for an operator who wants plain reuse.
//!
//! ```text
//!   Containers::create
//!        |
//!     Created --init--> Initialised --checkpoint-------> Pristine <--resume-- Suspended
//!                          |   \---never_used(SingleUse)--^ |  |                  ^
//!                          |    \--unprotected(Waiver)----/ |  \-----suspend------/
//!                          |                          put_in_use
//!                          |                                |
//!                          |                                v      lease     run
//!                          |             rewind --------- InUse ---------> Lease --> Answered (logs)
//!                          |            /      \
//!                          |       Pristine  Quarantined --destroy
//!                          \--discard (from any state)--> Discarded --destroy
//! ```
//!
//! A container that is in use cannot be checkpointed:
//!
//! ```compile_fail,E0599
//! async fn snapshot_of_user_data(container: rewind_invoker::container::InUse) {
//!     let _ = container.checkpoint().await;
//! }
//! ```
//!
//! Nor can one that was only initialised, or one that was used, be given a request:
//!
//! ```compile_fail,E0599
//! fn not_yet(container: rewind_invoker::container::Initialised) {
//!     let _ = container.put_in_use(1);
//! }
//! ```
//!
//! ```compile_fail,E0599
//! fn not_again(container: rewind_invoker::container::InUse) {
//!     let _ = container.put_in_use(1);
//! }
//! ```
//!
//! ```compile_fail,E0599
//! fn never(container: rewind_invoker::container::Quarantined) {
//!     let _ = container.put_in_use(1);
//! }
//! ```
//!
//! A lease is good for one request:
//!
//! ```compile_fail,E0382
//! use rewind_invoker::container::{Lease, Request};
//! async fn twice(lease: Lease, request: Request<'_>) {
//!     let _ = lease.run(request, false).await;
//!     let _ = lease.run(request, false).await;
//! }
//! ```
//!
//! And a waiver cannot be made up:
//!
//! ```compile_fail,E0423
//! let waiver = rewind_invoker::container::Waiver(());
//! ```
//!
//! This is how it is meant to go:
//!
//! ```no_run
//! use rewind_invoker::container::{Initialised, Request};
//! async fn one_activation(container: Initialised, request: Request<'_>) -> Option<()> {
//!     let (pristine, _report) = container.checkpoint().await.ok()?;
//!     let in_use = pristine.put_in_use(1);
//!     let end = in_use.lease().ok()?.run(request, false).await;
//!     // The answer is sent here; logs may be collected; then:
//!     end.answered.end().await;
//!     let (_pristine_again, _report) = in_use.rewind().await.ok()?;
//!     Some(())
//! }
//! ```

pub mod backend;
mod client;
pub mod docker;
mod liveness;
mod logs;
mod memory;
mod report;
mod spec;
mod state;
mod sys;
mod warden;

pub use backend::{
    ContainerBackend, Handle, Leftover, SWEEP_PARALLEL, SWEEP_WITHIN, StartReport, SweepReport,
};
pub use liveness::Liveness;
pub use logs::LogRequest;
pub use memory::OomCounter;
pub use report::{CheckpointReport, QuarantineReason, RewindReport, Verdict};
pub use spec::{ContainerSpec, CreateError, EngineError, PullPolicy};
pub use state::{
    Answered, CheckpointRefused, ContainerRef, Created, Discarded, InUse, InitEnd, Initialised, Lease,
    LeaseRefused, Pristine, Quarantined, Request, RewindRefused, RunEnd, SingleUse, Suspended, Waiver,
};
pub use warden::WardenOptions;

use logs::LogWatches;
use std::sync::Arc;
use warden::Wardens;

/// Makes containers.
#[derive(Debug, Clone)]
pub struct Containers {
    backend: Arc<dyn ContainerBackend>,
    wardens: Wardens,
    watches: Option<Arc<LogWatches>>,
}

impl Containers {
    /// Containers of this backend, checkpointed and rewound with these options. Must be called within a tokio
    /// runtime.
    #[must_use]
    pub fn new(backend: Arc<dyn ContainerBackend>, options: WardenOptions) -> Self {
        let watches = LogWatches::start().inspect_err(|error| {
            tracing::warn!(%error, "no inotify, logs are looked at every few milliseconds");
        });
        Self { backend, wardens: Wardens::new(options), watches: watches.ok() }
    }

    /// The backend.
    #[must_use]
    pub fn backend(&self) -> &Arc<dyn ContainerBackend> {
        &self.backend
    }

    /// Creates and starts a container.
    ///
    /// # Errors
    /// See [`CreateError`]; nothing is left behind.
    pub async fn create(&self, spec: &ContainerSpec) -> Result<Created, CreateError> {
        let handle = self.backend.create(spec).await?;
        Ok(Created::new(handle, Arc::clone(&self.backend), self.wardens.clone(), self.watches.clone()))
    }
}
