//! How the invoker ends (design section 9; contract 1.5 and issues named in 11: drain without loss).
//!
//! ```text
//!  SIGTERM ─► no ping any more, "disabled" to the controller ─► feed stops ─► what is inside is finished
//!                                                                                │ within the drain time
//!  SIGTERM again, or time is up ─► what still runs is answered as a whisk error ◄┘
//!                                         ─► containers removed ─► acknowledgements and records out ─► exit 0
//! ```
//!
//! Every wait is bounded, so that the whole takes no longer than the drain time and [`END_WITHIN`].

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::activation::Answers;
use crate::container::ContainerBackend;
use crate::dispatch::{Input, Reports};
use crate::errors::chain;
use crate::feed::Feed;
use crate::health::Health;
use crate::start::StartError;

/// What follows the drain: containers are removed (up to a minute each if the engine is slow, which
/// is not waited for), records written.
const END_WITHIN: Duration = Duration::from_secs(8);
/// How long the disabling ping may take.
const WITHDRAW_WITHIN: Duration = Duration::from_secs(2);

/// SIGTERM and SIGINT.
pub struct Signals {
    term: Signal,
    interrupt: Signal,
}

impl Signals {
    /// From now on these signals are ours to handle.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Self { term: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Returns at the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.term.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Everything that must be told.
pub struct Running {
    /// Pings.
    pub health: Health,
    /// Takes activations.
    pub feed: Arc<Feed>,
    /// To the dispatcher.
    pub reports: Reports,
    /// The dispatcher; ends when it was told to drain and nothing is left.
    pub dispatcher: JoinHandle<()>,
    /// Removes what an earlier process left.
    pub sweep: JoinHandle<Result<(), StartError>>,
    /// Ends what still runs.
    pub cut_off: CancellationToken,
    /// Acknowledgements and records on their way.
    pub answers: Arc<Answers>,
    /// For what is left at the end.
    pub backend: Arc<dyn ContainerBackend>,
    /// Ends the HTTP server.
    pub stop_http: CancellationToken,
    /// The HTTP server.
    pub http: JoinHandle<std::io::Result<()>>,
}

/// Waits for a signal, then ends everything in order.
///
/// # Errors
/// When it is not a signal that ended it: containers of an earlier process could not be removed.
pub async fn wait_and_end(
    mut running: Running,
    mut signals: Signals,
    drain_timeout: Duration,
) -> Result<(), StartError> {
    let mut outcome = Ok(());
    tokio::select! {
        () = signals.next() => tracing::info!("told to end, draining"),
        // It ends only when told to; otherwise it has panicked, and an invoker that takes
        // activations without a dispatcher must not go on. A supervisor starts it again, and the
        // journal answers what was inside.
        ended = &mut running.dispatcher => {
            tracing::error!(?ended, "the dispatcher is gone, ending");
        }
        error = failed(&mut running.sweep) => {
            tracing::error!("{error}, ending");
            outcome = Err(error);
        }
    }
    let begun = Instant::now();
    if tokio::time::timeout(WITHDRAW_WITHIN, running.health.withdraw()).await.is_err() {
        tracing::warn!("the bus did not take the disabling ping in time");
    }
    let feed = Arc::clone(&running.feed);
    if let Err(error) = tokio::task::spawn_blocking(move || feed.stop()).await {
        tracing::error!(%error, "feed did not stop");
    }
    drain(&mut running, &mut signals, drain_timeout.saturating_sub(begun.elapsed())).await;

    let deadline = tokio::time::Instant::now() + END_WITHIN;
    if tokio::time::timeout_at(deadline, running.answers.finish()).await.is_err() {
        tracing::error!(
            pending = running.answers.pending(),
            "not everything could be answered or stored in time"
        );
    }
    match tokio::time::timeout_at(deadline, running.backend.sweep()).await {
        Ok(Ok(report)) if report.failed.is_empty() => {}
        Ok(Ok(report)) => {
            tracing::warn!(count = report.failed.len(), "containers are left, the next start removes them")
        }
        Ok(Err(error)) => {
            tracing::warn!(error = %chain(&error), "containers are left, the next start removes them")
        }
        Err(_) => {
            tracing::warn!("containers could not be removed in time, the next start removes what is left")
        }
    }
    running.stop_http.cancel();
    let _ = tokio::time::timeout(Duration::from_millis(500), running.http).await;
    tracing::info!(after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "ended");
    outcome
}

/// Returns when the removal of leftovers has failed.
async fn failed(sweep: &mut JoinHandle<Result<(), StartError>>) -> StartError {
    match sweep.await {
        Ok(Ok(())) => std::future::pending().await,
        Ok(Err(error)) => error,
        Err(error) => error.into(),
    }
}

/// Lets what was taken finish; when the time is up, or at the next signal, has it answered.
async fn drain(running: &mut Running, signals: &mut Signals, within: Duration) {
    if running.dispatcher.is_finished() {
        running.cut_off.cancel();
        return;
    }
    running.reports.tell(Input::Drain);
    tokio::select! {
        _ = &mut running.dispatcher => return,
        () = tokio::time::sleep(within) => tracing::warn!("time for draining is up, what still runs is answered now"),
        () = signals.next() => tracing::warn!("told to end again, what still runs is answered now"),
    }
    running.reports.tell(Input::GiveUp);
    running.cut_off.cancel();
    if tokio::time::timeout(END_WITHIN, &mut running.dispatcher).await.is_err() {
        tracing::warn!("containers are not all removed yet");
    }
}
