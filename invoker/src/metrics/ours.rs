//! `rewind_*`: what rollback costs, what it found, and what it gave up.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Gauge, Histogram, IntCounter};

use super::families::Families;
use super::{Metrics, REWIND_SECONDS, seconds};
use crate::container::QuarantineReason;

/// Isolation modes, as the command line names them.
const MODES: &[&str] = &["rewind", "single-use", "none"];

/// Outcomes of activations.
const STATUSES: &[&str] = &["success", "application_error", "developer_error", "whisk_error"];

/// Name and help of families that are found again by name.
const QUARANTINED: (&str, &str) =
    ("rewind_quarantined_total", "Containers that could not be proven pristine, by reason.");
const ENDED: (&str, &str) = ("rewind_activations_total", "Activations answered, by outcome.");

/// What one rewind did. All counts are of this rewind alone.
#[derive(Debug, Clone, Copy, Default)]
pub struct RewindSample<'a> {
    /// From the order to rewind until the container was pristine.
    pub total: Duration,
    /// Its phases by name, in order.
    pub phases: &'a [(&'static str, Duration)],
    /// Pages the engine looked at.
    pub pages_scanned: u64,
    /// Pages whose content was copied back.
    pub pages_copied: u64,
    /// Pages that were given back to the kernel.
    pub pages_dropped: u64,
    /// Pages kept writable because most requests write them.
    pub pages_hot: u64,
    /// File descriptors closed.
    pub fds_closed: u64,
    /// Threads the request had left running.
    pub threads_removed: u64,
    /// Processes the request had left running.
    pub strangers_killed: u64,
    /// Files put back, removed or re-created.
    pub files_undone: u64,
}

/// Containers by state of the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolStates {
    /// Being created.
    pub starting: u64,
    /// Stem cells.
    pub stem: u64,
    /// With an activation in flight.
    pub busy: u64,
    /// Being put back to their snapshot.
    pub rewinding: u64,
    /// Pristine and running.
    pub pristine: u64,
    /// Pristine and suspended.
    pub suspended: u64,
    /// Being destroyed.
    pub removing: u64,
}

#[derive(Debug)]
pub(super) struct Ours {
    families: Arc<Families>,
    total: Histogram,
    checkpoint: Histogram,
    scanned: IntCounter,
    copied: IntCounter,
    dropped: IntCounter,
    hot: IntCounter,
    fds: IntCounter,
    threads: IntCounter,
    strangers: IntCounter,
    files: IntCounter,
    snapshot_bytes: Gauge,
    snapshots: Gauge,
    isolation: Vec<(&'static str, Gauge)>,
    containers: [Gauge; 7],
    backend_up: Gauge,
    store_waiting: Gauge,
    store_lost: IntCounter,
    acks_failed: IntCounter,
    recovered: IntCounter,
    unparsable: IntCounter,
}

impl Ours {
    pub(super) fn new(families: &Arc<Families>) -> Result<Self, prometheus::Error> {
        let counter = |name: &str, help: &str| families.counter(name, help, &[]);
        let gauge = |name: &str, help: &str| families.gauge(name, help, &[]);
        let state = |state: &str| {
            families.gauge("rewind_pool_containers", "Containers by state.", &[("state", state)])
        };
        // Present from the first scrape, so that the first event is a step up from 0 and not a new series.
        for reason in QuarantineReason::all() {
            families.counter(QUARANTINED.0, QUARANTINED.1, &[("reason", reason.name())])?;
        }
        for status in STATUSES {
            families.counter(ENDED.0, ENDED.1, &[("status", status)])?;
        }
        let mut isolation = Vec::with_capacity(MODES.len());
        for mode in MODES {
            let help = "1 for the isolation mode in force. Mode none gives no isolation between requests.";
            isolation.push((*mode, families.gauge("rewind_isolation", help, &[("mode", mode)])?));
        }
        Ok(Self {
            total: families.histogram(
                "rewind_seconds",
                "From the order to rewind until the container is pristine.",
                &[],
                REWIND_SECONDS,
            )?,
            checkpoint: families.histogram(
                "rewind_checkpoint_seconds",
                "Recording the pristine state after /init.",
                &[],
                REWIND_SECONDS,
            )?,
            scanned: counter("rewind_pages_scanned_total", "Pages the engine looked at.")?,
            copied: counter("rewind_pages_copied_total", "Pages copied back.")?,
            dropped: counter("rewind_pages_dropped_total", "Pages given back to the kernel.")?,
            hot: counter("rewind_pages_hot_total", "Pages kept writable and copied back in place.")?,
            fds: counter("rewind_fds_closed_total", "File descriptors that requests left open.")?,
            threads: counter("rewind_threads_removed_total", "Threads that requests left running.")?,
            strangers: counter("rewind_strangers_killed_total", "Processes that requests left running.")?,
            files: counter("rewind_files_undone_total", "Files put back, removed or re-created.")?,
            snapshot_bytes: gauge("rewind_snapshot_bytes", "Memory held by snapshots.")?,
            snapshots: gauge("rewind_snapshots", "Snapshots held.")?,
            isolation,
            containers: [
                state("starting")?,
                state("stem")?,
                state("busy")?,
                state("rewinding")?,
                state("pristine")?,
                state("suspended")?,
                state("removing")?,
            ],
            backend_up: gauge("rewind_backend_up", "1 while the container backend answers.")?,
            store_waiting: gauge("rewind_store_waiting", "Activation records waiting to be written.")?,
            store_lost: counter(
                "rewind_store_lost_total",
                "Activation records given up after all tries; the caller had its answer.",
            )?,
            acks_failed: counter("rewind_acks_failed_total", "Acknowledgements the bus did not take.")?,
            recovered: counter(
                "rewind_recovered_activations_total",
                "Activations that a crash cut off and this start answered.",
            )?,
            unparsable: counter("rewind_unparsable_messages_total", "Messages that could not be read.")?,
            families: Arc::clone(families),
        })
    }
}

impl Metrics {
    /// The isolation mode in force: `rewind`, `single-use` or `none`.
    pub fn isolation(&self, mode: &str) {
        for (name, gauge) in &self.ours.isolation {
            gauge.set(f64::from(u8::from(*name == mode)));
        }
    }

    /// What this program is: its version and the memory engine it chose.
    pub fn build_info(&self, version: &str, engine: &str) {
        let info = self.ours.families.gauge(
            "rewind_build_info",
            "Always 1; version and memory engine in force.",
            &[("version", version), ("engine", engine)],
        );
        if let Ok(info) = info {
            info.set(1.0);
        }
    }

    /// A rewind completed.
    pub fn rewound(&self, sample: &RewindSample<'_>) {
        let ours = &self.ours;
        ours.total.observe(seconds(sample.total));
        for (phase, took) in sample.phases {
            self.phase(phase, *took);
        }
        ours.scanned.inc_by(sample.pages_scanned);
        ours.copied.inc_by(sample.pages_copied);
        ours.dropped.inc_by(sample.pages_dropped);
        ours.hot.inc_by(sample.pages_hot);
        ours.fds.inc_by(sample.fds_closed);
        ours.threads.inc_by(sample.threads_removed);
        ours.strangers.inc_by(sample.strangers_killed);
        ours.files.inc_by(sample.files_undone);
    }

    fn phase(&self, phase: &'static str, took: Duration) {
        let series = self.ours.families.histogram(
            "rewind_phase_seconds",
            "One phase of a rewind.",
            &[("phase", phase)],
            REWIND_SECONDS,
        );
        if let Ok(series) = series {
            series.observe(seconds(took));
        }
    }

    /// A checkpoint was taken; its snapshot holds `bytes` until [`Metrics::snapshot_dropped`].
    pub fn checkpointed(&self, took: Duration, bytes: u64) {
        self.ours.checkpoint.observe(seconds(took));
        self.ours.snapshots.inc();
        self.ours.snapshot_bytes.add(float(bytes));
    }

    /// A snapshot of `bytes` went with its container.
    pub fn snapshot_dropped(&self, bytes: u64) {
        self.ours.snapshots.dec();
        self.ours.snapshot_bytes.sub(float(bytes));
    }

    /// A container was quarantined; `reason` is one of the closed list of reasons.
    pub fn quarantined(&self, reason: &'static str) {
        let series = self.ours.families.counter(QUARANTINED.0, QUARANTINED.1, &[("reason", reason)]);
        if let Ok(series) = series {
            series.inc();
        }
    }

    /// An activation was answered; `status` is `success`, `application_error`, `developer_error` or
    /// `whisk_error`.
    pub fn activation_ended(&self, status: &'static str) {
        let series = self.ours.families.counter(ENDED.0, ENDED.1, &[("status", status)]);
        if let Ok(series) = series {
            series.inc();
        }
    }

    /// Sets the number of containers in each state.
    pub fn pool_states(&self, now: &PoolStates) {
        let values =
            [now.starting, now.stem, now.busy, now.rewinding, now.pristine, now.suspended, now.removing];
        for (gauge, value) in self.ours.containers.iter().zip(values) {
            gauge.set(float(value));
        }
    }

    /// Whether the container backend (Docker) answers.
    pub fn backend_up(&self, up: bool) {
        self.ours.backend_up.set(f64::from(u8::from(up)));
    }

    /// Activation records waiting to be written.
    pub fn store_waiting(&self, records: usize) {
        self.ours.store_waiting.set(float(u64::try_from(records).unwrap_or(u64::MAX)));
    }

    /// An activation record was given up.
    pub fn store_lost(&self, records: u64) {
        self.ours.store_lost.inc_by(records);
    }

    /// An acknowledgement could not be sent.
    pub fn ack_failed(&self) {
        self.ours.acks_failed.inc();
    }

    /// An activation that a crash cut off was answered at this start.
    pub fn recovered(&self) {
        self.ours.recovered.inc();
    }

    /// A message could not be read and was dropped (contract 3.4).
    pub fn unparsable(&self) {
        self.ours.unparsable.inc();
    }
}

#[expect(clippy::cast_precision_loss, reason = "gauges are floats; counts and bytes stay below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}
