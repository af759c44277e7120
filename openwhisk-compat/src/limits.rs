//! Whether an action's limits are within the user's (contract 3.5, step 4).

use std::fmt;

use crate::entity::ActionLimits;
use crate::message::UserLimits;

/// The limits that hold where a user has none of his own: `namespace-default-limit`, by default the
/// system's (contract 1.3). Inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimitBounds {
    /// Milliseconds.
    pub timeout_ms: (u64, u64),
    /// MB.
    pub memory_mb: (u64, u64),
    /// MB.
    pub logs_mb: (u64, u64),
    /// Activations at once.
    pub concurrency: (u64, u64),
}

impl LimitBounds {
    /// The bounds of an unconfigured system.
    pub const STANDARD: Self =
        Self { timeout_ms: (100, 300_000), memory_mb: (128, 512), logs_mb: (0, 10), concurrency: (1, 1) };
}

/// A limit out of bounds. Displays as the text of the activation's response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub struct LimitError {
    kind: Kind,
    value: i64,
    bound: i64,
    exceeds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Duration,
    Memory,
    Logs,
    Concurrency,
}

impl fmt::Display for LimitError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, unit) = match self.kind {
            Kind::Duration => ("duration", " milliseconds"),
            Kind::Memory => ("memory size", " MB"),
            Kind::Logs => ("log size", " MB"),
            Kind::Concurrency => ("concurrency", ""),
        };
        let relation = if self.exceeds { "exceeds" } else { "below" };
        let Self { value, bound, .. } = self;
        write!(f, "requirement failed: {what} {value}{unit} {relation} allowed threshold of {bound}{unit}")
    }
}

/// Checks an action's limits against a user's, the first violation wins: time, memory, logs, concurrency.
///
/// # Errors
/// The limit out of bounds.
pub fn check(action: &ActionLimits, user: &UserLimits, defaults: &LimitBounds) -> Result<(), LimitError> {
    let rows = [
        (
            Kind::Duration,
            action.timeout_ms,
            (user.min_action_timeout, user.max_action_timeout),
            defaults.timeout_ms,
        ),
        (
            Kind::Memory,
            action.memory_mb,
            (user.min_action_memory, user.max_action_memory),
            defaults.memory_mb,
        ),
        (Kind::Logs, action.logs_mb, (user.min_action_logs, user.max_action_logs), defaults.logs_mb),
        (
            Kind::Concurrency,
            action.concurrency,
            (user.min_action_concurrency, user.max_action_concurrency),
            defaults.concurrency,
        ),
    ];
    for (kind, value, (user_min, user_max), (min, max)) in rows {
        let value = i64::from(value);
        let bound =
            |own: Option<i64>, default: u64| own.unwrap_or(i64::try_from(default).unwrap_or(i64::MAX));
        let (min, max) = (bound(user_min, min), bound(user_max, max));
        if value > max {
            return Err(LimitError { kind, value, bound: max, exceeds: true });
        }
        if value < min {
            return Err(LimitError { kind, value, bound: min, exceeds: false });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(action: ActionLimits, user: UserLimits) -> String {
        match check(&action, &user, &LimitBounds::STANDARD) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn texts_are_upstream_s() {
        let standard = ActionLimits::STANDARD;
        assert_eq!(text(standard, UserLimits::default()), "");
        for (action, user, expected) in [
            (
                ActionLimits { memory_mb: 512, ..standard },
                UserLimits { max_action_memory: Some(256), ..Default::default() },
                "requirement failed: memory size 512 MB exceeds allowed threshold of 256 MB",
            ),
            (
                standard,
                UserLimits { max_action_logs: Some(5), ..Default::default() },
                "requirement failed: log size 10 MB exceeds allowed threshold of 5 MB",
            ),
            (
                standard,
                UserLimits { max_action_timeout: Some(1000), ..Default::default() },
                "requirement failed: duration 60000 milliseconds exceeds allowed threshold of 1000 milliseconds",
            ),
            (
                ActionLimits { concurrency: 5, ..standard },
                UserLimits::default(),
                "requirement failed: concurrency 5 exceeds allowed threshold of 1",
            ),
            (
                ActionLimits { memory_mb: 64, ..standard },
                UserLimits::default(),
                "requirement failed: memory size 64 MB below allowed threshold of 128 MB",
            ),
            (
                standard,
                UserLimits {
                    min_action_concurrency: Some(2),
                    max_action_concurrency: Some(9),
                    ..Default::default()
                },
                "requirement failed: concurrency 1 below allowed threshold of 2",
            ),
            (
                standard,
                UserLimits { max_action_memory: Some(-1), ..Default::default() },
                "requirement failed: memory size 256 MB exceeds allowed threshold of -1 MB",
            ),
        ] {
            assert_eq!(text(action, user), expected);
        }
    }

    #[test]
    fn a_user_s_own_bounds_replace_the_defaults() {
        let action = ActionLimits { memory_mb: 2048, concurrency: 100, ..ActionLimits::STANDARD };
        let user = UserLimits {
            max_action_memory: Some(2048),
            max_action_concurrency: Some(100),
            ..Default::default()
        };
        assert_eq!(text(action, user), "");
    }
}
