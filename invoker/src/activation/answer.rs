//! Giving the answer that is owed: acknowledgement, journal, record, in whatever combination the
//! situation asks for.

use std::sync::Arc;

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

    /// Waits for the acknowledgement's delivery and writes the record, beside each other.
    fn settle(&self, key: Key, asker: &Asker<'_>, sent: Sent, record: Option<ActivationRecord>) {
        let record = record.filter(|record| self.is_stored(asker, record));
        let store = Arc::clone(&self.store);
        let journal = Arc::clone(&self.journal);
        let transid = asker.transid.clone();
        self.tasks.spawn(async move {
            let answered = async {
                sent.await;
                if let Err(error) = journal.answered(key) {
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
            };
            tokio::join!(answered, stored);
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
        if let Err(error) = self.journal.answered(key) {
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
