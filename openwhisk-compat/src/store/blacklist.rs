//! Namespaces that may not invoke (contract 3.5.1).

use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use super::couch::{CouchError, Database};
use super::observe::{Observer, Operation};

/// Design document and view.
const VIEW: (&str, &str) = ("namespaceThrottlings", "blockedNamespaces");

/// Until the list has been read once, it is asked for this often.
const FIRST_RETRY: Duration = Duration::from_secs(5);

/// The blocked namespaces as last read. Cloning shares them. Empty until the first reading.
#[derive(Debug, Clone, Default)]
pub struct Blacklist {
    blocked: Arc<RwLock<HashSet<String>>>,
}

impl Blacklist {
    /// Whether activations of this namespace are refused.
    #[must_use]
    pub fn blocks(&self, namespace: &str) -> bool {
        self.blocked.read().unwrap_or_else(PoisonError::into_inner).contains(namespace)
    }

    /// How many namespaces are blocked.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocked.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Whether none is blocked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces the whole list.
    pub fn set(&self, namespaces: impl IntoIterator<Item = String>) {
        *self.blocked.write().unwrap_or_else(PoisonError::into_inner) = namespaces.into_iter().collect();
    }

    /// Reads the list once from the database of subjects; gives whether the store had it ready. On failure, and
    /// while the store has yet to build the view, the last list stays in force.
    ///
    /// # Errors
    /// As for any view.
    pub async fn refresh(&self, subjects: &Database) -> Result<bool, CouchError> {
        // The order of the query is upstream's.
        let query = [("stale", "update_after"), ("descending", "true"), ("reduce", "false")];
        let Some(rows) = subjects.view(VIEW.0, VIEW.1, &query).await? else { return Ok(false) };
        let names = rows.into_iter().filter_map(|row| match row.key {
            serde_json::Value::String(name) => Some(name),
            _ => None,
        });
        self.set(names);
        Ok(true)
    }

    /// Refreshes the list now and every `interval`, for ever; sooner while there is nothing to go by yet.
    pub async fn poll(self, subjects: Database, interval: Duration, observer: Arc<dyn Observer>) {
        let interval = interval.max(Duration::from_secs(1));
        let mut read = false;
        loop {
            let began = Instant::now();
            let outcome = self.refresh(&subjects).await;
            observer.ended(Operation::QueryView, began.elapsed(), outcome.is_ok());
            match outcome {
                Ok(ready) => {
                    read |= ready;
                    tracing::debug!(blocked = self.len(), ready, "blacklist read");
                }
                Err(error) => {
                    let error = super::chain(&error);
                    tracing::warn!(error, "blacklist could not be read, keeping the last one");
                }
            }
            tokio::time::sleep(if read { interval } else { interval.min(FIRST_RETRY) }).await;
        }
    }
}
