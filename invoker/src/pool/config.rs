//! What an operator can say about the pool.

/// What happens to a container between two uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Isolation {
    /// It is rewound to its checkpoint when its last request in flight has ended.
    #[default]
    Rewind,
    /// It serves one request, whatever the action's concurrency, and is destroyed.
    SingleUse,
    /// Nothing, as upstream: what one request leaves, the next finds.
    None,
}

/// Stem cells of one kind and memory: containers created ahead of need, not yet initialised (contract 6.4).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StemCells {
    /// The runtime kind, such as `nodejs:20`.
    pub kind: String,
    /// Memory of each in MB.
    pub memory_mb: u64,
    /// How many to create at start; without `reactive` also how many to keep.
    pub initial_count: u32,
    /// Adjusts the number to demand.
    pub reactive: Option<Reactive>,
}

/// How the number of stem cells follows demand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reactive {
    /// Never fewer than this, memory permitting.
    pub min_count: u32,
    /// Adjustment never asks for more than this.
    pub max_count: u32,
    /// Age in milliseconds beyond which an unused one is removed at the next check.
    pub ttl_ms: u64,
    /// Cold starts in one period that call for one `increment`.
    pub threshold: u32,
    /// How many more stem cells each `threshold` cold starts call for.
    pub increment: u32,
}

/// When the number of stem cells is adjusted. Nothing is adjusted if no entry is reactive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StemCheck {
    /// Time from the first event to the first check, in milliseconds.
    pub first_ms: u64,
    /// Time between checks, in milliseconds.
    pub interval_ms: u64,
    /// Each interval is lengthened by a random part of this, in milliseconds.
    pub variance_ms: u64,
    /// How many expired ones a check removes at most.
    pub expired_max: usize,
}

impl Default for StemCheck {
    /// Upstream's defaults (contract 1.3, `container-pool.prewarm-expiration-*`).
    fn default() -> Self {
        Self { first_ms: 600_000, interval_ms: 600_000, variance_ms: 10_000, expired_max: 100 }
    }
}

/// The pool's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Memory of all containers together in MB (`container-pool.user-memory`).
    pub budget_mb: u64,
    /// What happens between two uses.
    pub isolation: Isolation,
    /// Rest in milliseconds after which an idle container is suspended
    /// (`container-proxy.timeouts.pause-grace`); `None`: never.
    pub pause_grace_ms: Option<u64>,
    /// Further rest in milliseconds after which it is destroyed (`container-proxy.timeouts.idle-container`).
    pub idle_container_ms: u64,
    /// The stem cells to keep; kind and memory together are unique.
    pub stem_cells: Vec<StemCells>,
    /// When to adjust them.
    pub stem_check: StemCheck,
    /// How often a job may be returned by containers that refuse it before it is given up.
    pub returns_max: u32,
    /// How many containers may be under destruction before the pool creates no further ones. Containers leave
    /// the accounting when their destruction starts, so that a slow container engine would otherwise let
    /// their number, and their memory, grow without bound.
    pub removing_max: usize,
    /// Seed of the random part of the check intervals.
    pub seed: u64,
}

impl Default for PoolConfig {
    /// Upstream's defaults, without stem cells.
    fn default() -> Self {
        Self {
            budget_mb: 1024,
            isolation: Isolation::default(),
            pause_grace_ms: Some(10_000),
            idle_container_ms: 600_000,
            stem_cells: Vec::new(),
            stem_check: StemCheck::default(),
            returns_max: 3,
            removing_max: 64,
            seed: 0,
        }
    }
}
