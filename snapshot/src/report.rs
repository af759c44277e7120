//! What a checkpoint and a rewind did, in numbers.

use std::fmt;
use std::time::{Duration, Instant};

/// The steps of a rewind, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Strangers killed, all threads of the snapshot stopped.
    Stop,
    /// Extra threads made to exit, dead children reaped.
    Strangers,
    /// Kernel objects compared with the snapshot, from outside.
    Inspect,
    /// Kernel objects and the layout put back, from inside.
    Objects,
    /// Memory scanned for changes.
    Scan,
    /// Memory put back.
    Copy,
    /// The caller's files.
    Files,
    /// The paranoid comparison.
    Verify,
    /// Registers and masks put back, threads let go.
    Thaw,
}

impl Phase {
    /// Every phase, in order.
    pub const ALL: [Phase; 9] = [
        Phase::Stop,
        Phase::Strangers,
        Phase::Inspect,
        Phase::Objects,
        Phase::Scan,
        Phase::Copy,
        Phase::Files,
        Phase::Verify,
        Phase::Thaw,
    ];

    /// The metric label.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Phase::Stop => "stop",
            Phase::Strangers => "strangers",
            Phase::Inspect => "inspect",
            Phase::Objects => "objects",
            Phase::Scan => "scan",
            Phase::Copy => "copy",
            Phase::Files => "files",
            Phase::Verify => "verify",
            Phase::Thaw => "thaw",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a checkpoint found and cost.
#[derive(Debug, Clone, Default)]
pub struct CheckpointReport {
    /// Waiting for the container to settle.
    pub settling: Duration,
    /// From the first stop to the last thaw, without the caller's files.
    pub frozen: Duration,
    /// Time in the caller's callback.
    pub files: Duration,
    /// Processes in the snapshot.
    pub processes: usize,
    /// Threads in the snapshot.
    pub threads: usize,
    /// Mappings in the snapshot.
    pub mappings: usize,
    /// Pages whose content the snapshot holds.
    pub pages: u64,
    /// Bytes of memory that the snapshot holds.
    pub snapshot_bytes: u64,
    /// File descriptors in the snapshot.
    pub fds: usize,
}

/// What a rewind did.
#[derive(Debug, Clone, Default)]
pub struct RewindReport {
    /// Time spent by phase; a phase may occur once per process and is summed.
    pub phases: Vec<(Phase, Duration)>,
    /// From the first stop to the last thaw.
    pub total: Duration,
    /// Pages that the scan reported as possibly changed.
    pub pages_scanned: u64,
    /// Pages whose content was written back.
    pub pages_copied: u64,
    /// Pages given back to the kernel because the snapshot does not have them.
    pub pages_dropped: u64,
    /// Pages left writable since they change in most requests.
    pub pages_hot: u64,
    /// Calls (system calls, copies and the like) that the processes were made to execute.
    pub calls_injected: u64,
    /// Mappings unmapped, mapped or given their protection back.
    pub mappings_restored: u64,
    /// Descriptors closed.
    pub fds_closed: u64,
    /// Descriptors put back or set right (offset, flags, content, interest list).
    pub fds_restored: u64,
    /// Threads of the request made to exit.
    pub threads_removed: u64,
    /// Processes of the request killed.
    pub strangers_killed: u64,
    /// Other kernel objects put right (signals, timers, limits and so on).
    pub objects_restored: u64,
    /// Areas of kernel state that may have changed in any process and were looked at: all of them where the kernel
    /// cannot be asked.
    pub areas_changed: Vec<&'static str>,
}

impl RewindReport {
    /// The time spent in one phase.
    #[must_use]
    pub fn phase(&self, phase: Phase) -> Duration {
        self.phases.iter().find(|(p, _)| *p == phase).map_or(Duration::ZERO, |(_, d)| *d)
    }
}

/// Splits the time of one rewind among the phases.
#[derive(Debug)]
pub(crate) struct Stopwatch {
    started: Instant,
    lap: Instant,
    spent: [Duration; Phase::ALL.len()],
}

impl Stopwatch {
    pub(crate) fn start() -> Self {
        let now = Instant::now();
        Stopwatch { started: now, lap: now, spent: [Duration::ZERO; Phase::ALL.len()] }
    }

    /// Books the time since the last call to `phase`.
    pub(crate) fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.spent[phase as usize] += now - self.lap;
        self.lap = now;
    }

    pub(crate) fn finish(self, report: &mut RewindReport) {
        report.total = self.started.elapsed();
        report.phases =
            Phase::ALL.iter().map(|&p| (p, self.spent[p as usize])).filter(|(_, d)| !d.is_zero()).collect();
    }
}
