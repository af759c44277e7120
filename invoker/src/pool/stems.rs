//! The stock of stem cells: how many there should be, which are there, when to look again (contract 6.4).

use std::collections::BTreeSet;

use super::config::{StemCells, StemCheck};
use super::event::{ContainerId, Millis};

/// Failures further apart than this do not count as a streak.
const STREAK_MS: u64 = 180_000;
/// Wait after the first failure of a streak; it doubles with each further one.
const BACKOFF_MIN_MS: u64 = 1_000;
const BACKOFF_MAX_MS: u64 = 60_000;

/// Stem cells of one kind and memory.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) config: StemCells,
    /// Being created.
    pub(super) creating: u32,
    /// Ready, the one that expires first in front.
    pub(super) ready: BTreeSet<(Millis, ContainerId)>,
    /// A level asked for once, beyond the one always kept: at start, by a replacement, by an adjustment.
    wanted: u32,
    /// Cold starts that a stem cell of this stock would have spared, since the last adjustment.
    cold_starts: u32,
    /// The same since the pool was made.
    pub(super) cold_starts_total: u64,
    /// Removed because of their age, since the pool was made.
    pub(super) expired_total: u64,
    failures: u32,
    failed_at: Millis,
    retry_at: Millis,
}

impl Stock {
    fn new(config: StemCells) -> Self {
        Self {
            wanted: config.initial_count,
            config,
            creating: 0,
            ready: BTreeSet::new(),
            cold_starts: 0,
            cold_starts_total: 0,
            expired_total: 0,
            failures: 0,
            failed_at: Millis::default(),
            retry_at: Millis::default(),
        }
    }

    fn count(&self) -> u32 {
        self.creating.saturating_add(u32::try_from(self.ready.len()).unwrap_or(u32::MAX))
    }

    /// The level that is always kept.
    fn floor(&self) -> u32 {
        self.config.reactive.map_or(self.config.initial_count, |reactive| reactive.min_count)
    }

    /// How many are missing and may be created now.
    pub(super) fn missing(&self, now: Millis) -> u32 {
        if now < self.retry_at {
            return 0;
        }
        self.floor().max(self.wanted).saturating_sub(self.count())
    }

    /// The level asked for once has been attended to, as far as memory allowed.
    pub(super) fn attended(&mut self, now: Millis) {
        if now >= self.retry_at {
            self.wanted = 0;
        }
    }

    /// When a stem cell that is ready now expires.
    pub(super) fn expiry(&self, now: Millis) -> Millis {
        self.config.reactive.map_or(Millis(u64::MAX), |reactive| now.plus(reactive.ttl_ms))
    }

    /// Takes the one that expires first, and asks for a replacement.
    fn take(&mut self) -> Option<ContainerId> {
        let before = self.count();
        let (_, container) = self.ready.pop_first()?;
        self.wanted = self.wanted.max(before);
        Some(container)
    }

    /// One could not be created, or died unused: the next is created after a wait that grows with the streak,
    /// so that a broken image does not keep the container engine busy for ever.
    pub(super) fn failed(&mut self, now: Millis) {
        if now.since(self.failed_at) > STREAK_MS {
            self.failures = 0;
        }
        let wait_ms = BACKOFF_MIN_MS.saturating_mul(1 << self.failures.min(16)).min(BACKOFF_MAX_MS);
        self.failures = self.failures.saturating_add(1);
        self.failed_at = now;
        self.retry_at = now.plus(wait_ms);
    }

    /// Sets the level that the cold starts of the last period call for.
    fn adjust(&mut self) {
        if let Some(reactive) = self.config.reactive {
            let steps = self.cold_starts / reactive.threshold.max(1);
            let level = steps.saturating_mul(reactive.increment).max(reactive.min_count);
            self.wanted = self.wanted.max(level.min(reactive.max_count));
        }
        self.cold_starts = 0;
    }
}

/// All stocks, in the order of the configuration.
#[derive(Debug)]
pub(super) struct Stems {
    pub(super) stocks: Vec<Stock>,
    check: StemCheck,
    next_check: Option<Millis>,
    random: u64,
}

impl Stems {
    pub(super) fn new(stem_cells: &[StemCells], check: StemCheck, seed: u64) -> Self {
        let stocks = stem_cells.iter().cloned().map(Stock::new).collect();
        Self { stocks, check, next_check: None, random: seed }
    }

    /// Takes a stem cell of exactly this kind and memory.
    pub(super) fn take(&mut self, kind: &str, memory_mb: u64) -> Option<ContainerId> {
        self.matching(kind, memory_mb)?.take()
    }

    /// Notes a container created for want of a stem cell.
    pub(super) fn cold_start(&mut self, kind: &str, memory_mb: u64) {
        if let Some(stock) = self.matching(kind, memory_mb) {
            stock.cold_starts = stock.cold_starts.saturating_add(1);
            stock.cold_starts_total += 1;
        }
    }

    fn matching(&mut self, kind: &str, memory_mb: u64) -> Option<&mut Stock> {
        self.stocks.iter_mut().find(|stock| stock.config.memory_mb == memory_mb && stock.config.kind == kind)
    }

    /// If a check is due: sets the new levels and returns the stem cells to remove because of their age,
    /// oldest first.
    pub(super) fn check(&mut self, now: Millis) -> Vec<ContainerId> {
        if self.stocks.iter().all(|stock| stock.config.reactive.is_none()) {
            return Vec::new();
        }
        let due = *self.next_check.get_or_insert_with(|| now.plus(self.check.first_ms));
        if now < due {
            return Vec::new();
        }
        let jitter_ms = self.jitter_ms();
        self.next_check = Some(now.plus(self.check.interval_ms).plus(jitter_ms));

        let mut expired: Vec<_> = (self.stocks.iter().enumerate())
            .flat_map(|(index, stock)| {
                (stock.ready.iter())
                    .take_while(|(expires, _)| *expires <= now)
                    .map(move |(expires, container)| (*expires, *container, index))
            })
            .collect();
        expired.sort_unstable();
        expired.truncate(self.check.expired_max);
        for (_, _, index) in &expired {
            self.stocks[*index].expired_total += 1;
        }
        for stock in &mut self.stocks {
            stock.adjust();
        }
        expired.into_iter().map(|(_, container, _)| container).collect()
    }

    /// The next number of a SplitMix64 sequence, cut to the configured variance.
    fn jitter_ms(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % self.check.variance_ms.saturating_add(1)
    }
}
