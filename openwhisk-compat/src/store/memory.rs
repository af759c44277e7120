//! Stores in memory, for tests of what uses stores.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;

use super::actions::{ActionStore, FetchError};
use super::writer::{ActivationStore, StoreError};
use crate::entity::{ExecutableAction, FullyQualifiedName, StoredActivation};

/// Actions that were put in. The revision of an action is the one it carries.
#[derive(Debug, Default)]
pub struct MemoryActions {
    actions: Mutex<HashMap<String, Result<Arc<ExecutableAction>, FetchError>>>,
}

impl MemoryActions {
    /// Adds or replaces an action.
    pub fn put(&self, action: ExecutableAction) {
        self.set(action.qualified_name(), Ok(Arc::new(action)));
    }

    /// Makes every read of `id` fail.
    pub fn fail(&self, id: &str, error: FetchError) {
        self.set(id.to_owned(), Err(error));
    }

    fn set(&self, id: String, outcome: Result<Arc<ExecutableAction>, FetchError>) {
        self.actions.lock().unwrap_or_else(PoisonError::into_inner).insert(id, outcome);
    }
}

#[async_trait]
impl ActionStore for MemoryActions {
    async fn action(
        &self,
        name: &FullyQualifiedName,
        revision: Option<&str>,
    ) -> Result<Arc<ExecutableAction>, FetchError> {
        let id = name.qualified();
        let outcome = self.actions.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
        let action = outcome.unwrap_or_else(|| Err(FetchError::NotFound { id: id.clone() }))?;
        let found = action.revision.clone().unwrap_or_default();
        match revision {
            Some(wanted) if wanted != found => {
                Err(FetchError::RevisionMismatch { id, wanted: wanted.to_owned(), found })
            }
            _ => Ok(action),
        }
    }
}

/// Records in order of arrival.
#[derive(Debug, Default)]
pub struct MemoryActivations {
    records: Mutex<Vec<StoredActivation>>,
}

impl MemoryActivations {
    /// What was stored so far.
    #[must_use]
    pub fn records(&self) -> Vec<StoredActivation> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[async_trait]
impl ActivationStore for MemoryActivations {
    async fn store(&self, record: StoredActivation) -> Result<(), StoreError> {
        let id = record.id();
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.iter().any(|known| known.id() == id) {
            return Err(StoreError::Conflict { id });
        }
        records.push(record);
        Ok(())
    }
}
