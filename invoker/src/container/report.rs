//! What was done to a container, in numbers, and why one is not pristine.

use std::fmt;
use std::time::Duration;

/// What a checkpoint found and cost.
#[derive(Debug, Clone, Default)]
pub struct CheckpointReport {
    /// Waiting for a place among those that work at the same time.
    pub waiting: Duration,
    /// From the order to the answer, without the waiting.
    pub total: Duration,
    /// Processes.
    pub memory: snapshot::CheckpointReport,
    /// Files.
    pub files: fs_overlay::SealReport,
}

/// What a rewind did.
#[derive(Debug, Clone, Default)]
pub struct RewindReport {
    /// Waiting for a place among those that work at the same time.
    pub waiting: Duration,
    /// From the order to the answer, without the waiting.
    pub total: Duration,
    /// Processes.
    pub memory: snapshot::RewindReport,
    /// Files.
    pub files: fs_overlay::FilesReport,
    /// Clearing the log channel.
    pub logs: Duration,
}

/// Why a container may not take a request: the metric label of every quarantine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuarantineReason {
    /// Its processes could not be proven restored.
    Memory(snapshot::Reason),
    /// Its files could not be proven restored.
    Files(fs_overlay::FilesReason),
    /// Bytes of a request may be left in the pipes to the log (residue row 30).
    LogChannel,
    /// It did not become quiet in time for its checkpoint.
    NotSettled,
    /// It has no snapshot to go back to.
    NoSnapshot,
    /// The thread that works on it ended, or broke the order of its work.
    Warden,
}

impl QuarantineReason {
    /// The name used in logs and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Memory(reason) => reason.name(),
            Self::Files(reason) => reason.name(),
            Self::LogChannel => "log_channel",
            Self::NotSettled => "not_settled",
            Self::NoSnapshot => "no_snapshot",
            Self::Warden => "warden",
        }
    }

    /// One sentence for an operator.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::Memory(reason) => reason.explain(),
            Self::Files(reason) => reason.explain(),
            Self::LogChannel => {
                "What the request wrote to the log's pipes could not be separated from what the next one writes."
            }
            Self::NotSettled => "The runtime was still working when the time for its checkpoint was up.",
            Self::NoSnapshot => "The container has no snapshot, so it serves one request only.",
            Self::Warden => "The thread that checkpoints and rewinds the container ended.",
        }
    }

    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let own = [Self::LogChannel, Self::NotSettled, Self::NoSnapshot, Self::Warden];
        let memory = snapshot::Reason::ALL.iter().copied().map(Self::Memory);
        let files = fs_overlay::FilesReason::ALL.iter().copied().map(Self::Files);
        memory.chain(files).chain(own)
    }
}

impl fmt::Display for QuarantineReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The verdict 'not pristine'.
#[derive(Debug)]
pub struct Verdict {
    /// The class of the finding.
    pub reason: QuarantineReason,
    /// Where it was found. Never content of a request.
    pub detail: String,
    /// The error beneath, if there is one.
    pub source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Verdict {
    pub(super) fn new(reason: QuarantineReason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into(), source: None }
    }

    pub(super) fn because(
        reason: QuarantineReason,
        detail: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self { reason, detail: detail.into(), source: Some(source.into()) }
    }
}

impl From<snapshot::Quarantine> for Verdict {
    fn from(found: snapshot::Quarantine) -> Self {
        Self { reason: QuarantineReason::Memory(found.reason), detail: found.detail, source: found.source }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl std::error::Error for Verdict {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}
