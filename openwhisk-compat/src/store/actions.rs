//! Reading actions (contract 3.5, 4.3, 4.5).

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use moka::future::Cache;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::couch::{CouchError, Database};
use super::observe::{Observer, Operation};
use super::writer::ObserverRef;
use crate::entity::{ActionDocument, EntityError, ExecutableAction, FullyQualifiedName, ReadContext};

/// Why there is no action to run. Each variant is one row of the table in contract 3.5.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// No such document, or the code's attachment went with an update or deletion just now.
    #[error("action {id} does not exist")]
    NotFound {
        /// `ns/[pkg/]name`.
        id: String,
    },
    /// The store holds another revision than the message names.
    #[error("action {id} has revision {found}, the message asks for {wanted}")]
    RevisionMismatch {
        /// `ns/[pkg/]name`.
        id: String,
        /// From the message.
        wanted: String,
        /// From the store.
        found: String,
    },
    /// The document is another kind of entity.
    #[error("document {id} is of type '{found}', not an action")]
    WrongType {
        /// `ns/[pkg/]name`.
        id: String,
        /// Its `entityType`.
        found: String,
    },
    /// The document is an action that cannot be understood.
    #[error("action {id} cannot be read: {detail}")]
    Unreadable {
        /// `ns/[pkg/]name`.
        id: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A sequence: controllers execute those.
    #[error("action {id} is not executable by an invoker")]
    NotExecutable {
        /// `ns/[pkg/]name`.
        id: String,
    },
    /// The store gave no usable answer.
    #[error("action {id} could not be fetched: {detail}")]
    Unavailable {
        /// `ns/[pkg/]name`.
        id: String,
        /// The last failure.
        detail: String,
    },
}

/// Where actions come from.
#[async_trait]
pub trait ActionStore: Send + Sync + 'static {
    /// The action at a revision, or the newest when no revision is given.
    async fn action(
        &self,
        name: &FullyQualifiedName,
        revision: Option<&str>,
    ) -> Result<Arc<ExecutableAction>, FetchError>;
}

/// Bounds of the reader.
#[derive(Debug, Clone, Copy)]
pub struct ActionSettings {
    /// Most bytes of actions kept; code counts most.
    pub cache_bytes_max: u64,
    /// An action nobody asked for in this time is dropped.
    pub cache_idle: Duration,
    /// Pauses before further tries when the store was away for a moment. Upstream does not try again; reading
    /// is repeatable, and a caller who waits is better served by an answer than by an error.
    pub pauses: [Duration; 2],
}

impl Default for ActionSettings {
    fn default() -> Self {
        Self {
            cache_bytes_max: 64 << 20,
            cache_idle: Duration::from_secs(30 * 60),
            pauses: [Duration::from_millis(50), Duration::from_millis(250)],
        }
    }
}

/// What an action weighs in the cache besides its code.
const ACTION_BYTES: usize = 2048;

/// Actions in CouchDB, cached by id and revision. A new revision is another key, so nothing is ever
/// invalidated; concurrent requests for one key share one read; failures are not kept.
#[derive(Debug, Clone)]
pub struct CouchActions<C> {
    database: Database,
    context: Arc<C>,
    cache: Cache<(String, String), Arc<ExecutableAction>>,
    pauses: [Duration; 2],
    observer: ObserverRef,
}

impl<C: ReadContext + Send + Sync + 'static> CouchActions<C> {
    /// A reader of the database of entities (`whisks`).
    #[must_use]
    pub fn new(
        database: Database,
        context: Arc<C>,
        settings: &ActionSettings,
        observer: Arc<dyn Observer>,
    ) -> Self {
        let cache = Cache::builder()
            .max_capacity(settings.cache_bytes_max)
            .time_to_idle(settings.cache_idle)
            .weigher(|(id, revision): &(String, String), action: &Arc<ExecutableAction>| {
                let code = action.exec.code.as_ref().map_or(0, |code| code.as_str().len());
                u32::try_from(ACTION_BYTES + id.len() + revision.len() + code).unwrap_or(u32::MAX)
            })
            .build();
        Self { database, context, cache, pauses: settings.pauses, observer: ObserverRef(observer) }
    }

    /// Bytes of actions in the cache, about.
    #[must_use]
    pub fn cached_bytes(&self) -> u64 {
        self.cache.weighted_size()
    }

    /// Lets the cache finish what it does in the background.
    #[cfg(test)]
    pub(super) async fn settle(&self) {
        self.cache.run_pending_tasks().await;
    }

    async fn read(&self, id: &str, revision: Option<&str>) -> Result<Arc<ExecutableAction>, FetchError> {
        let json =
            self.patiently(Operation::GetDocument, id, || self.database.document(id, revision)).await?;
        let document = ActionDocument::parse(&json).map_err(|error| refuse(id, &error))?;
        if let Some(wanted) = revision {
            // CouchDB ignores If-Match on GET.
            let found = document.rev.as_deref().unwrap_or_default();
            if found != wanted {
                return Err(FetchError::RevisionMismatch {
                    id: id.to_owned(),
                    wanted: wanted.to_owned(),
                    found: found.to_owned(),
                });
            }
        }
        let content = match document.attachment().map_err(|error| refuse(id, &error))? {
            None => None,
            Some(name) => {
                check_listed(id, &name, &json)?;
                let revision = document.rev.as_deref();
                let content = self
                    .patiently(Operation::GetDocumentAttachment, id, || {
                        self.database.attachment(id, &name, revision)
                    })
                    .await?;
                Some(content.into())
            }
        };
        let action = document.into_executable(content, &*self.context).map_err(|error| refuse(id, &error))?;
        Ok(Arc::new(action))
    }

    /// One read from the store, tried again while the failure may pass.
    async fn patiently<F>(
        &self,
        operation: Operation,
        id: &str,
        read: impl Fn() -> F,
    ) -> Result<Bytes, FetchError>
    where
        F: Future<Output = Result<Bytes, CouchError>>,
    {
        let mut pauses = self.pauses.iter();
        loop {
            let began = Instant::now();
            let outcome = read().await;
            // That a document does not exist is an answer.
            let ok = matches!(outcome, Ok(_) | Err(CouchError::NotFound { .. }));
            self.observer.0.ended(operation, began.elapsed(), ok);
            let error = match outcome {
                Ok(bytes) => return Ok(bytes),
                Err(error) => error,
            };
            match pauses.next() {
                Some(pause) if error.passing() => {
                    tracing::debug!(id, error = super::chain(&error), "reading again");
                    tokio::time::sleep(*pause).await;
                }
                _ => return Err(refused(id, &error)),
            }
        }
    }
}

#[async_trait]
impl<C: ReadContext + Send + Sync + 'static> ActionStore for CouchActions<C> {
    async fn action(
        &self,
        name: &FullyQualifiedName,
        revision: Option<&str>,
    ) -> Result<Arc<ExecutableAction>, FetchError> {
        let id = name.qualified();
        let Some(revision) = revision else {
            // Only the store knows what the newest is.
            self.observer.0.cache(false);
            return self.read(&id, None).await;
        };
        let key = (id, revision.to_owned());
        // Nearly always; the way below costs several times as much.
        if let Some(action) = self.cache.get(&key).await {
            self.observer.0.cache(true);
            return Ok(action);
        }
        let id = key.0.clone();
        let entry = self.cache.entry(key).or_try_insert_with(self.read(&id, Some(revision))).await;
        match entry {
            Ok(entry) => {
                self.observer.0.cache(!entry.is_fresh());
                Ok(entry.into_value())
            }
            Err(error) => {
                self.observer.0.cache(false);
                Err((*error).clone())
            }
        }
    }
}

/// Checks that the document lists the attachment that its action names.
fn check_listed(id: &str, name: &str, json: &[u8]) -> Result<(), FetchError> {
    #[derive(Deserialize)]
    struct Envelope {
        #[serde(rename = "_attachments", default)]
        attachments: BTreeMap<String, IgnoredAny>,
    }
    let unreadable = |detail: String| FetchError::Unreadable { id: id.to_owned(), detail };
    let Envelope { attachments } = serde_json::from_slice(json).map_err(|e| unreadable(e.to_string()))?;
    if attachments.contains_key(name) {
        return Ok(());
    }
    let found = attachments.keys().take(8).map(|key| format!("'{key}'")).collect::<Vec<_>>().join(", ");
    let found = if found.is_empty() { "none".to_owned() } else { found };
    Err(unreadable(format!("its code is attachment '{name}', the document has {found}")))
}

fn refuse(id: &str, error: &EntityError) -> FetchError {
    let id = id.to_owned();
    match error {
        EntityError::WrongType(found) => FetchError::WrongType { id, found: found.clone() },
        EntityError::NotExecutable => FetchError::NotExecutable { id },
        other => FetchError::Unreadable { id, detail: super::chain(other) },
    }
}

fn refused(id: &str, error: &CouchError) -> FetchError {
    let id = id.to_owned();
    match error {
        CouchError::NotFound { .. } => FetchError::NotFound { id },
        CouchError::TooLarge { .. } | CouchError::Name { .. } => {
            FetchError::Unreadable { id, detail: super::chain(error) }
        }
        other => FetchError::Unavailable { id, detail: super::chain(other) },
    }
}
