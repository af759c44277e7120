//! Processor time and memory, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

use serde_json::{Value, json};

/// The kernel reports processor time in these: 100 a second on every architecture we run on.
pub const TICK_MS: u64 = 10;

/// User and system time of a process and all its threads so far, in milliseconds; `None` when it is gone.
#[must_use]
pub fn cpu_ms(pid: u32) -> Option<u64> {
    parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?).map(|(_, ticks)| ticks * TICK_MS)
}

/// User and system time of all processes that run now, in milliseconds, by program name.
#[must_use]
pub fn cpu_ms_by_program() -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        if let Some((name, ticks)) = parse(&stat) {
            *sums.entry(name.to_owned()).or_default() += ticks * TICK_MS;
        }
    }
    sums
}

/// What each program used between two counts, the largest first; programs below 1 % of a second are left out.
#[must_use]
pub fn used_between(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Vec<(String, u64)> {
    let mut used: Vec<_> = after
        .iter()
        .map(|(name, ms)| (name.clone(), ms.saturating_sub(before.get(name).copied().unwrap_or(0))))
        .filter(|(_, ms)| *ms > TICK_MS)
        .collect();
    used.sort_by_key(|(_, ms)| std::cmp::Reverse(*ms));
    used
}

/// Fields of `/proc/<pid>/status`, such as `Threads`, as numbers (sizes in kB).
#[must_use]
pub fn status(pid: u32, field: &str) -> Option<u64> {
    self::field(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?, field)
}

fn field(text: &str, field: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
}

/// What a process has used so far.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Processor time of all threads, in nanoseconds.
    pub cpu_ns: u64,
    /// How often a thread went to sleep, and so had to be woken.
    pub sleeps: u64,
    /// How often a thread was taken off its processor for another one.
    pub preempted: u64,
    /// Processor time by thread name, in nanoseconds; threads of one name together.
    pub threads_ns: BTreeMap<String, u64>,
}

impl Usage {
    /// Of a process now; threads that have ended are not in it.
    #[must_use]
    pub fn of(pid: u32) -> Self {
        let mut usage = Self::default();
        for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
            let read = |name: &str| fs::read_to_string(thread.path().join(name)).unwrap_or_default();
            let (name, schedstat, status) = (read("comm"), read("schedstat"), read("status"));
            let cpu_ns = schedstat.split(' ').next().and_then(|field| field.parse().ok()).unwrap_or(0);
            usage.cpu_ns += cpu_ns;
            usage.sleeps += field(&status, "voluntary_ctxt_switches").unwrap_or(0);
            usage.preempted += field(&status, "nonvoluntary_ctxt_switches").unwrap_or(0);
            *usage.threads_ns.entry(name.trim().to_owned()).or_default() += cpu_ns;
        }
        usage
    }

    /// What was used between `before` and now, per one of `count`: microseconds and switches.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of a bench are far below 2^52")]
    pub fn per(&self, before: &Self, count: usize) -> Value {
        let per = |now: u64, before: u64| now.saturating_sub(before) as f64 / count.max(1) as f64;
        let threads = self.threads_ns.iter().map(|(name, ns)| {
            let us = per(*ns, before.threads_ns.get(name).copied().unwrap_or(0)) / 1e3;
            (name.clone(), Value::from(us))
        });
        json!({
            "cpu_us": per(self.cpu_ns, before.cpu_ns) / 1e3,
            "sleeps": per(self.sleeps, before.sleeps),
            "preempted": per(self.preempted, before.preempted),
            "threads_us": Value::from_iter(threads),
        })
    }
}

/// Program name, and user plus system time in ticks (proc(5): fields 2, 14 and 15).
fn parse(stat: &str) -> Option<(&str, u64)> {
    // The name may contain blanks and parentheses.
    let (head, tail) = stat.rsplit_once(") ")?;
    let name = head.split_once('(')?.1;
    let mut fields = tail.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some((name, user + system))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_stat_line_whose_name_is_odd() {
        let stat = "42 (a ) (b) S 1 42 42 0 -1 4194560 100 0 0 0 7 3 0 0 20 0 1 0 100 1000 10";
        assert_eq!(parse(stat), Some(("a ) (b", 10)));
    }

    #[test]
    fn this_process_has_threads_and_memory() {
        let pid = std::process::id();
        assert!(cpu_ms(pid).is_some());
        assert!(status(pid, "Threads").unwrap() >= 1);
        assert!(status(pid, "VmRSS").unwrap() > 100);
    }
}
