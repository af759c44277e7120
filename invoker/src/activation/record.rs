//! Records of activations (contract 4.6) and whether they are stored (contract 4.7).

use std::time::{SystemTime, UNIX_EPOCH};

use openwhisk_compat::config::StoreLevel;
use openwhisk_compat::entity::{
    ActivationFacts, ActivationRecord, ActivationResponse, Annotations, ExecutableAction, FullyQualifiedName,
    StatusCode,
};
use openwhisk_compat::message::{ActivationId, ActivationMessage, TransactionId};

/// Milliseconds since the epoch.
#[must_use]
pub fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// Whose record.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// As the message names it.
    pub action: &'a FullyQualifiedName,
    /// The activation.
    pub activation_id: &'a ActivationId,
    /// The invoking namespace.
    pub namespace: &'a str,
    /// The invoking subject.
    pub subject: &'a str,
    /// The enclosing sequence.
    pub cause: Option<&'a ActivationId>,
}

impl<'a> Subject<'a> {
    /// Of a message.
    #[must_use]
    pub fn of(message: &'a ActivationMessage) -> Self {
        Self {
            action: &message.action,
            activation_id: &message.activation_id,
            namespace: &message.user.namespace.name,
            subject: &message.user.subject,
            cause: message.cause.as_ref(),
        }
    }
}

/// The record of an activation that never came to a container: a moment long, kind unknown
/// (contract 3.5).
#[must_use]
pub fn fallback(subject: &Subject<'_>, response: ActivationResponse, now_ms: u64) -> ActivationRecord {
    let Subject { action, activation_id, namespace, subject, cause } = *subject;
    ActivationRecord {
        namespace: namespace.to_owned(),
        name: action.name.clone(),
        subject: subject.to_owned(),
        activation_id: activation_id.clone(),
        cause: cause.cloned(),
        start: now_ms,
        end: now_ms,
        response,
        logs: Vec::new(),
        version: action.version.clone().unwrap_or_else(|| "0.0.1".to_owned()),
        publish: false,
        annotations: Annotations::of_fallback(
            &action.qualified(),
            cause.is_some(),
            action.binding.as_deref(),
        ),
        duration: Some(0),
    }
}

/// When `/init` and `/run` happened, milliseconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// `/init`: start and end; `None` when the container was warm.
    pub init: Option<(u64, u64)>,
    /// `/run`: start and end; `None` when it never came to that.
    pub run: Option<(u64, u64)>,
}

impl Times {
    /// When the container was created in vain, or not at all: a moment.
    #[must_use]
    pub const fn at(now_ms: u64) -> Self {
        Self { init: None, run: Some((now_ms, now_ms)) }
    }

    /// Run start minus init duration; init start when it never ran.
    fn start(&self) -> u64 {
        match (self.init, self.run) {
            (Some((from, to)), Some((run, _))) => run.saturating_sub(to.saturating_sub(from)),
            (None, Some((run, _))) => run,
            (Some((from, _)), None) => from,
            (None, None) => 0,
        }
    }

    fn end(&self) -> u64 {
        self.run.or(self.init).map_or(0, |(_, end)| end).max(self.start())
    }

    /// When the waiting ended: init start, or run start when warm.
    fn wait_end(&self) -> u64 {
        self.init.or(self.run).map_or(0, |(start, _)| start)
    }

    fn init_ms(&self) -> Option<u64> {
        self.init.map(|(from, to)| to.saturating_sub(from))
    }
}

/// The record of an activation that reached a container, without logs.
#[must_use]
pub fn executed(
    message: &ActivationMessage,
    action: &ExecutableAction,
    response: ActivationResponse,
    times: Times,
    timed_out: bool,
) -> ActivationRecord {
    let (start, end) = (times.start(), times.end());
    let path = message.action.qualified();
    let annotations = Annotations::of_activation(&ActivationFacts {
        caused_by_sequence: message.caused_by_sequence(),
        binding: message.action.binding.as_deref(),
        path: &path,
        wait_ms: message.transid.waited_ms(times.wait_end()),
        kind: &action.exec.kind,
        timed_out,
        limits: &action.limits,
        init_ms: times.init_ms(),
    });
    ActivationRecord {
        namespace: message.user.namespace.name.clone(),
        name: action.name.clone(),
        subject: message.user.subject.clone(),
        activation_id: message.activation_id.clone(),
        cause: message.cause.clone(),
        start,
        end,
        response,
        logs: Vec::new(),
        version: action.version.clone(),
        publish: false,
        annotations,
        duration: Some(end - start),
    }
}

/// Which activations are stored (contract 4.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StorePolicy {
    /// Of those a caller waits for.
    pub blocking: StoreLevel,
    /// Of the others.
    pub non_blocking: StoreLevel,
    /// Write one line into the log for those that are not.
    pub log_unstored: bool,
}

impl StorePolicy {
    /// Is this one stored?
    #[must_use]
    pub fn stores(
        &self,
        user_wants: bool,
        transid: &TransactionId,
        blocking: bool,
        status: StatusCode,
    ) -> bool {
        let level = if blocking { self.blocking } else { self.non_blocking };
        user_wants && (transid.extra_logging() || level.allows(status))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_a_record() {
        let cold = Times { init: Some((100, 150)), run: Some((155, 167)) };
        assert_eq!((cold.start(), cold.end(), cold.wait_end(), cold.init_ms()), (105, 167, 100, Some(50)));
        let warm = Times { init: None, run: Some((200, 212)) };
        assert_eq!((warm.start(), warm.end(), warm.wait_end(), warm.init_ms()), (200, 212, 200, None));
        let failed = Times { init: Some((100, 150)), run: None };
        assert_eq!((failed.start(), failed.end(), failed.wait_end()), (100, 150, 100));
    }

    #[test]
    fn a_clock_that_runs_backwards_makes_no_negative_duration() {
        let odd = Times { init: Some((150, 100)), run: Some((90, 80)) };
        assert!(odd.end() >= odd.start());
        assert_eq!(odd.init_ms(), Some(0));
    }

    #[test]
    fn what_is_stored() {
        use StatusCode as S;
        let plain = TransactionId::new("t", 1);
        let extra = TransactionId::from_value(&serde_json::json!(["t", 1, true]));
        let policy = StorePolicy {
            blocking: StoreLevel::Failures,
            non_blocking: StoreLevel::FailuresNotApplicationErrors,
            log_unstored: false,
        };
        for (user, transid, blocking, status, expected) in [
            (true, &plain, true, S::Success, false),
            (true, &plain, true, S::ApplicationError, true),
            (true, &plain, false, S::ApplicationError, false),
            (true, &plain, false, S::DeveloperError, true),
            (true, &extra, false, S::Success, true),
            (false, &extra, true, S::WhiskError, false),
        ] {
            assert_eq!(
                policy.stores(user, transid, blocking, status),
                expected,
                "{user} {blocking} {status:?}"
            );
        }
    }
}
