//! Processor time and memory, from `/proc`.

use std::collections::BTreeMap;
use std::fs;

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
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    line.split_whitespace().next()?.parse().ok()
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
