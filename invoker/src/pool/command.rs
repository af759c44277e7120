//! What the pool wants done.

use super::event::{ContainerId, JobId};

/// How a job came to its container: the tag `containerState` of upstream's `containerStart` counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Start {
    /// An initialised container of the same action and namespace.
    Warmed,
    /// A stem cell that was being initialised for the same action and namespace.
    Warming,
    /// A new container that was being created for the same action and namespace.
    WarmingCold,
    /// A stem cell.
    Prewarmed,
    /// A new container in free memory.
    Cold,
    /// A new container in the memory of evicted ones.
    Recreated,
    /// A stem cell after an eviction. Upstream has the label; a pool that looks for a stem cell before it
    /// evicts, as both do, never gets there.
    RecreatedPrewarm,
}

impl Start {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Warmed,
        Self::Warming,
        Self::WarmingCold,
        Self::Prewarmed,
        Self::Cold,
        Self::Recreated,
        Self::RecreatedPrewarm,
    ];

    /// Upstream's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Warmed => "warmed",
            Self::Warming => "warming",
            Self::WarmingCold => "warmingCold",
            Self::Prewarmed => "prewarmed",
            Self::Cold => "cold",
            Self::Recreated => "recreated",
            Self::RecreatedPrewarm => "recreatedPrewarm",
        }
    }
}

/// What a container was doing when a job was given to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Found {
    /// Other requests of the same action are in flight in it.
    InUse,
    /// Nothing: it is pristine (or, without isolation, idle).
    Pristine,
    /// Suspended: resume it first. If that fails, the job ends [`Returned`](super::JobEnd::Returned).
    Suspended,
}

/// Why a job is given up. The dispatcher answers it; the pool forgets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbortCause {
    /// The job waited for a container whose initialisation failed. It gets the answer of the job that
    /// started the container, if there is one, else a whisk error (contract 6.3).
    InitFailed {
        /// The job that started the container.
        leader: JobId,
    },
    /// So many containers refused it in turn.
    Refused {
        /// How often it was returned.
        times: u32,
    },
    /// It needs more memory than this invoker has, so its turn can never come.
    LargerThanBudget {
        /// What it needs, in MB.
        memory_mb: u64,
        /// All there is, in MB.
        budget_mb: u64,
    },
    /// The invoker is ending.
    Draining,
}

/// What is to be done. Commands about the same container are carried out in the order they were given; those
/// about different ones are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Command {
    /// Create a stem cell of entry `stock` of [`PoolConfig::stem_cells`](super::PoolConfig::stem_cells), which
    /// has kind and memory. Answered by `StemReady` or `StemFailed`.
    CreateStem {
        /// The new container.
        container: ContainerId,
        /// Index into the configured stem cells.
        stock: usize,
    },
    /// Create a container for the job's action, initialise it, checkpoint it, run the job.
    CreateFor {
        /// The new container.
        container: ContainerId,
        /// The job.
        job: JobId,
        /// `Cold` or `Recreated`.
        start: Start,
    },
    /// Initialise a stem cell for the job's action, checkpoint it, run the job.
    Specialise {
        /// The stem cell.
        container: ContainerId,
        /// The job.
        job: JobId,
        /// `Prewarmed` or `RecreatedPrewarm`.
        start: Start,
    },
    /// Run the job in a container that is initialised for its action.
    Run {
        /// The container.
        container: ContainerId,
        /// The job.
        job: JobId,
        /// `Warmed`, or `Warming`/`WarmingCold` for a job that waited for the initialisation.
        start: Start,
        /// What the container was doing. A connection refused by a container found at rest means that the
        /// container is unhealthy, not that the action failed (contract 5.4).
        found: Found,
    },
    /// The last request in flight has ended: put the container back. Answered by `Pristine`, `Quarantined` or
    /// `Died`.
    Rewind {
        /// The container.
        container: ContainerId,
    },
    /// Suspend an idle container. Answered by `Suspended`.
    Suspend {
        /// The container.
        container: ContainerId,
    },
    /// Destroy the container, whatever it is doing. Answered by `Removed`.
    Destroy {
        /// The container.
        container: ContainerId,
    },
    /// Answer the job: it will get no container.
    Abort {
        /// The job.
        job: JobId,
        /// Why.
        cause: AbortCause,
    },
    /// So many permits go back to the feed.
    Permit {
        /// How many; at least 1.
        count: u32,
    },
}
