//! Giving the answer that is owed: acknowledgement, journal, record, in whatever combination the
//! situation asks for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::FutureExt as _;
use openwhisk_compat::entity::{ActivationRecord, StoredActivation};
use openwhisk_compat::store::ActivationStore;
use tokio_util::task::TaskTracker;

use super::ack::{Acks, Asker, Sent};
use super::record::{StorePolicy, now_ms};
use crate::errors::chain;
use crate::journal::{Journal, Key};

/// Answers activations. What takes time after the answer is on its way (its delivery, the record)
/// goes on in tasks of its own, which [`Answers::finish`] waits for.
pub struct Answers {
    acks: Acks,
    store: Arc<dyn ActivationStore>,
    policy: StorePolicy,
    journal: Arc<Journal>,
    tasks: TaskTracker,
}

/// Which acknowledgement goes out when there is nothing to wait for (contract 2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtOnce {
    /// Failure before a container runs it.
    Combined,
    /// The same for a blacklisted namespace: shrunk whoever waits, and not stored (contract 3.5).
    CombinedByReference,
    /// Runs that were waiting for a container whose start failed: Combined if somebody waits.
    Aborted,
}

impl Answers {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        acks: Acks,
        store: Arc<dyn ActivationStore>,
        policy: StorePolicy,
        journal: Arc<Journal>,
    ) -> Self {
        Self { acks, store, policy, journal, tasks: TaskTracker::new() }
    }

    /// The journal, to note that `/run` is about to be sent.
    #[must_use]
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Answers an activation that no container runs.
    pub fn at_once(&self, key: Key, asker: &Asker<'_>, record: ActivationRecord, how: AtOnce) {
        let record = Arc::new(record);
        let sent = match how {
            AtOnce::Combined => self.acks.combined(asker, &record),
            AtOnce::CombinedByReference => self.acks.combined(&Asker { blocking: false, ..*asker }, &record),
            AtOnce::Aborted if asker.blocking => self.acks.combined(asker, &record),
            AtOnce::Aborted => self.acks.completion(asker, &record),
        };
        let stored = how != AtOnce::CombinedByReference;
        self.settle(key, asker, sent, stored.then(|| Arc::unwrap_or_clone(record)));
    }

    /// The Result of a blocking activation whose logs are being collected.
    pub fn result(&self, asker: &Asker<'_>, record: &Arc<ActivationRecord>) -> Sent {
        self.acks.result(asker, record)
    }

    /// The last acknowledgement of an activation that was run. `record` has the logs; they are not
    /// in the acknowledgement. `after_result`: its Result was sent before.
    pub fn last(
        &self,
        key: Key,
        asker: &Asker<'_>,
        record: Arc<ActivationRecord>,
        logs: Vec<String>,
        after_result: bool,
    ) {
        let sent = if after_result || !asker.blocking {
            self.acks.completion(asker, &record)
        } else {
            self.acks.combined(asker, &record)
        };
        let mut record = Arc::unwrap_or_clone(record);
        record.logs = logs;
        self.settle(key, asker, sent, Some(record));
    }

    /// Writes the record of an activation that an earlier process answered. If that one wrote a record after
    /// all, the store keeps it and refuses this one.
    pub fn record(&self, key: Key, asker: &Asker<'_>, record: ActivationRecord) {
        self.settle(key, asker, std::future::ready(()).boxed(), Some(record));
    }

    /// Waits for the acknowledgement's delivery and writes the record, beside each other; the journal keeps the
    /// entry until both are done.
    fn settle(&self, key: Key, asker: &Asker<'_>, sent: Sent, record: Option<ActivationRecord>) {
        let record = record.filter(|record| self.is_stored(asker, record));
        let owed = AtomicBool::new(record.is_some());
        let store = Arc::clone(&self.store);
        let journal = Arc::clone(&self.journal);
        let transid = asker.transid.clone();
        self.tasks.spawn(async move {
            let answered = async {
                sent.await;
                if owed.load(Ordering::Relaxed)
                    && let Err(error) = journal.acked(key)
                {
                    tracing::warn!(tid = transid.id(), error = %chain(&error), "answer is not noted");
                }
            };
            let stored = async {
                let Some(record) = record else { return };
                let id = record.activation_id.clone();
                // A lost record changes neither the answer nor the container (contract 4.1).
                if let Err(error) = store.store(StoredActivation { record, updated: now_ms() }).await {
                    tracing::error!(
                        tid = transid.id(),
                        activation = id.as_str(),
                        error = %chain(&error),
                        "record is not stored"
                    );
                }
                owed.store(false, Ordering::Relaxed);
            };
            tokio::join!(answered, stored);
            if let Err(error) = journal.settled(key) {
                tracing::warn!(tid = transid.id(), error = %chain(&error), "entry of the journal is not closed");
            }
        });
    }

    fn is_stored(&self, asker: &Asker<'_>, record: &ActivationRecord) -> bool {
        let wanted = asker.user.limits.stores_activations();
        let stored = self.policy.stores(wanted, asker.transid, asker.blocking, record.response.status_code);
        if !stored && self.policy.log_unstored {
            tracing::info!(
                tid = asker.transid.id(),
                activation = record.activation_id.as_str(),
                name = record.name,
                namespace = record.namespace,
                size = record.response.size,
                "activation is not stored"
            );
        }
        stored
    }

    /// Gives up an entry of the journal that nobody can be found for.
    pub fn forget(&self, key: Key) {
        if let Err(error) = self.journal.settled(key) {
            tracing::warn!(error = %chain(&error), "entry of the journal cannot be closed");
        }
    }

    /// How many answers are on their way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.tasks.len()
    }

    /// Returns when everything begun is done. Nothing may be begun afterwards.
    pub async fn finish(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use openwhisk_compat::config::StoreLevel;
    use openwhisk_compat::entity::{ActivationResponse, StatusCode};
    use openwhisk_compat::message::{ActivationMessage, InvokerInstanceId};
    use openwhisk_compat::size::ByteSize;
    use openwhisk_compat::store::memory::MemoryActivations;
    use serde_json::json;

    use super::*;
    use crate::activation::record::{Subject, fallback};
    use crate::bus::memory::MemoryBus;
    use crate::journal::{Entry, Origin, Progress};
    use crate::metrics::Metrics;

    struct Rig {
        bus: Arc<MemoryBus>,
        store: Arc<MemoryActivations>,
        journal: Arc<Journal>,
        answers: Answers,
        _dir: tempfile::TempDir,
    }

    const KEY: Key = Key([7; 16]);

    fn rig(level: StoreLevel) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let origin = Origin { bus: "memory".to_owned(), topic: "invoker0".to_owned() };
        let journal = Arc::new(Journal::open(dir.path(), origin).unwrap().0);
        journal
            .taken(vec![Entry { key: KEY, offset: 0, progress: Progress::Taken, note: Vec::new() }], 1)
            .unwrap();
        let (bus, store) = (Arc::new(MemoryBus::default()), Arc::new(MemoryActivations::default()));
        let instance = InvokerInstanceId::new(0, ByteSize::from_mb(1024));
        let acks = Acks::new(Arc::new(Arc::clone(&bus)), instance, String::new(), None, Metrics::for_tests());
        let policy = StorePolicy { blocking: level, non_blocking: level, log_unstored: true };
        let answers = Answers::new(acks, Arc::clone(&store) as _, policy, Arc::clone(&journal));
        Rig { bus, store, journal, answers, _dir: dir }
    }

    fn message(blocking: bool) -> ActivationMessage {
        let message = json!({"transid":["t1",1],"action":{"path":"guest","name":"hello"},"revision":null,
            "user":{"subject":"guest","namespace":{"name":"guest","uuid":"u"},"authkey":{},"rights":[],"limits":{}},
            "activationId":"07070707070707070707070707070707",
            "rootControllerIndex":{"asString":"0","instanceType":"controller"},
            "blocking":blocking,"initArgs":[],"lockedArgs":{}});
        ActivationMessage::parse(message.to_string().as_bytes()).unwrap()
    }

    fn record(message: &ActivationMessage, status: StatusCode) -> ActivationRecord {
        fallback(&Subject::of(message), ActivationResponse::error(status, "no", None), 9)
    }

    #[tokio::test]
    async fn the_journal_forgets_only_what_the_bus_has_taken() {
        let rig = rig(StoreLevel::Always);
        rig.bus.hold.lock().unwrap().push("completed0".to_owned());
        let message = message(true);
        let record = record(&message, StatusCode::WhiskError);
        rig.answers.at_once(KEY, &Asker::of(&message), record, AtOnce::Combined);
        // The record does not wait for the acknowledgement's delivery, nor the other way round.
        while rig.store.records().is_empty() {
            tokio::task::yield_now().await;
        }
        assert_eq!(rig.journal.open_count(), 1);
        rig.bus.release("completed0");
        rig.answers.finish().await;
        assert_eq!(rig.journal.open_count(), 0);
        assert!(rig.bus.sent("completed0")[0]["response"].is_object());
    }

    #[tokio::test]
    async fn a_record_that_an_earlier_process_owed_is_written_without_an_answer() {
        let rig = rig(StoreLevel::Always);
        let message = message(true);
        rig.answers.record(KEY, &Asker::of(&message), record(&message, StatusCode::WhiskError));
        rig.answers.finish().await;
        assert!(rig.bus.sent("completed0").is_empty());
        assert_eq!((rig.store.records().len(), rig.journal.open_count()), (1, 0));
    }

    #[tokio::test]
    async fn what_is_sent_and_stored_follows_the_situation() {
        for (blocking, how, shape, stored) in [
            (true, AtOnce::Combined, "whole", 1),
            (false, AtOnce::Combined, "id", 1),
            (true, AtOnce::CombinedByReference, "id", 0),
            (true, AtOnce::Aborted, "whole", 1),
            (false, AtOnce::Aborted, "none", 1),
        ] {
            let rig = rig(StoreLevel::Always);
            let message = message(blocking);
            let record = record(&message, StatusCode::ApplicationError);
            rig.answers.at_once(KEY, &Asker::of(&message), record, how);
            rig.answers.finish().await;
            let sent = rig.bus.sent("completed0");
            assert_eq!(sent.len(), 1);
            let found = match &sent[0].get("response") {
                Some(response) if response.is_object() => "whole",
                Some(_) => "id",
                None => "none",
            };
            assert_eq!((found, rig.store.records().len()), (shape, stored), "{blocking} {how:?}");
            assert!(sent[0]["instance"].is_object(), "it must free the slot");
        }
    }

    #[tokio::test]
    async fn the_last_acknowledgement_carries_no_logs_and_the_record_does() {
        let rig = rig(StoreLevel::Always);
        let message = message(true);
        let asker = Asker::of(&message);
        let record = Arc::new(record(&message, StatusCode::Success));
        rig.answers.result(&asker, &record).await;
        rig.answers.last(KEY, &asker, record, vec!["a line".to_owned()], true);
        rig.answers.finish().await;
        let sent = rig.bus.sent("completed0");
        assert_eq!(sent.len(), 2);
        assert!(sent[0].get("instance").is_none() && sent[0]["response"]["logs"] == json!([]));
        assert!(sent[1].get("response").is_none() && sent[1]["instance"].is_object());
        assert_eq!(rig.store.records()[0].record.logs, ["a line"]);
    }

    #[tokio::test]
    async fn what_the_policy_leaves_out_is_not_stored() {
        let rig = rig(StoreLevel::FailuresNotApplicationErrors);
        let message = message(true);
        let record = record(&message, StatusCode::ApplicationError);
        rig.answers.at_once(KEY, &Asker::of(&message), record, AtOnce::Combined);
        rig.answers.finish().await;
        assert!(rig.store.records().is_empty());
        assert_eq!(rig.journal.open_count(), 0);
    }
}
