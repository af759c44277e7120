//! What the pool is told: jobs that arrive and what became of the containers it commanded.

use std::fmt;

/// A moment, in milliseconds since an origin of the caller's choice; it never runs backwards.
///
/// The pool has no clock: every event carries the moment at which it happened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Millis(pub u64);

impl Millis {
    /// The moment `span_ms` milliseconds later.
    #[must_use]
    pub const fn plus(self, span_ms: u64) -> Self {
        Self(self.0.saturating_add(span_ms))
    }

    /// Milliseconds since `earlier`, 0 if `earlier` has not come yet.
    #[must_use]
    pub const fn since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// One container of this process, for as long as the process lives; never used twice.
///
/// It is the counter in the container's name (contract 6.5) and starts at 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(pub u64);

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One job, as the dispatcher numbers them; never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// An activation that waits for a container.
///
/// `A` is the action. Two jobs may share a container if namespace and action are equal, and only then:
/// equality is that of the whole action value without its revision (contract 6.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<A> {
    /// The dispatcher's number for it.
    pub id: JobId,
    /// The action to run.
    pub action: A,
    /// The namespace that invokes, which need not be the one that owns the action.
    pub namespace: String,
    /// Memory limit of the action in MB, which is what its container counts for.
    pub memory_mb: u64,
    /// The runtime kind, such as `nodejs:20`. Together with the memory it says which stem cells fit.
    pub kind: String,
    /// How many requests a container of this action may have in flight; 0 counts as 1.
    pub max_concurrent: u32,
}

/// How a job ended in its container.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum JobEnd {
    /// Answered, and the container may go on: success or application error, logs collected.
    Kept,
    /// Answered, and the container must go: developer or system error, or its logs could not be collected.
    Failed,
    /// Answered without ever having run: the container could not be created or initialised.
    /// Jobs that waited for this container are aborted ([`AbortCause::InitFailed`](super::AbortCause::InitFailed)).
    BeforeInit,
    /// Not answered: the container refused it (503, nobody listens, resume failed). It goes back to the pool.
    Returned,
}

/// What happened. For every job that a command named, exactly one [`Event::JobDone`] follows, whatever else
/// befalls the container; for every [`Destroy`](super::Command::Destroy) exactly one [`Event::Removed`].
///
/// An event that does not fit the container's state (it was overtaken by another) changes nothing and is
/// counted in [`Counters::strays`](super::Counters::strays).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<A> {
    /// The feed hands out a job, against one permit.
    Job(Job<A>),
    /// A stem cell is up.
    StemReady {
        /// The stem cell.
        container: ContainerId,
    },
    /// A stem cell could not be created.
    StemFailed {
        /// The stem cell that never was.
        container: ContainerId,
    },
    /// `/init` succeeded and the checkpoint is taken: further jobs may join, up to the action's concurrency.
    /// The job that started the container goes on to run without another command.
    Initialised {
        /// The container.
        container: ContainerId,
    },
    /// A job was answered in a container, which will be free of it as soon as its output is collected. A
    /// hint: the pool makes do without.
    Answered {
        /// The container it was given to.
        container: ContainerId,
        /// The job.
        job: JobId,
    },
    /// A job came to its end in a container.
    JobDone {
        /// The container it was given to.
        container: ContainerId,
        /// The job.
        job: JobId,
        /// How it ended.
        end: JobEnd,
    },
    /// A rewind is complete: the container may be used again.
    Pristine {
        /// The container.
        container: ContainerId,
    },
    /// The container cannot be proven pristine, now or after its present use: it takes no further job.
    Quarantined {
        /// The container.
        container: ContainerId,
    },
    /// The container was found dead (its first process is gone), or a stem cell failed its health ping.
    Died {
        /// The container.
        container: ContainerId,
    },
    /// A [`Suspend`](super::Command::Suspend) ended.
    Suspended {
        /// The container.
        container: ContainerId,
        /// Whether it is suspended now; if not, its state is unknown and it is destroyed.
        ok: bool,
    },
    /// A [`Destroy`](super::Command::Destroy) is complete, successfully or not.
    Removed {
        /// The container.
        container: ContainerId,
    },
    /// A second went by. The first tick, to be sent at once at start, creates the stem cells.
    Tick,
    /// The invoker is about to end: jobs that arrive from now on are aborted, those inside are finished,
    /// no permit is given back, and containers are destroyed as soon as no job needs them.
    Drain,
    /// The time for draining is over: jobs that no container has yet are aborted.
    GiveUp,
}
