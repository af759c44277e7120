//! Writing activation records (contract 4.1, 4.7).
//!
//! ```text
//! store() --budget of bytes--> queue --one request free?--> batch of what waits --> _bulk_docs --> store() returns
//!                                             ^                                        |
//!                                             +---- wait, again (at most 3 times) <----+ no answer, 5xx
//! ```
//!
//! A document goes out at once after a quiet moment. Requests begin at least [`WriterSettings::spacing`] apart, and
//! what arrives in between goes out together: under load that saves both sides most of the cost of a record. Memory is bounded by the bytes of records admitted, not by their number: who comes when
//! the budget is spent waits.
//!
//! Trying again is safe: a record's id is fixed, so a second write of one that had arrived ends in a conflict
//! and nothing is written twice. Upstream gives up on a status of 5xx at once; we try again as after a lost
//! connection, since both are what a restarting store looks like.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::couch::{BulkAnswer, CouchError, Database};
use super::observe::{Observer, Operation};
use crate::entity::StoredActivation;

/// Why a record is not in the store.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum StoreError {
    /// A document of this id is there already (a message delivered twice).
    #[error("a record {id} exists already")]
    Conflict {
        /// The record.
        id: String,
    },
    /// The store refused this document.
    #[error("the store refused record {id}: {reason}")]
    Refused {
        /// The record.
        id: String,
        /// What the store says.
        reason: String,
    },
    /// No try reached the store.
    #[error("record {id} was not written after {tries} tries: {reason}")]
    Unavailable {
        /// The record.
        id: String,
        /// How often it was tried.
        tries: u32,
        /// The last failure.
        reason: String,
    },
    /// The writer is shutting down.
    #[error("record {id} came after the writer was closed")]
    Closed {
        /// The record.
        id: String,
    },
}

/// Where activation records go.
#[async_trait]
pub trait ActivationStore: Send + Sync + 'static {
    /// Writes a record; returns when it is written or given up. Never changes what the caller of the action was
    /// told: a failure is for the log.
    async fn store(&self, record: StoredActivation) -> Result<(), StoreError>;
}

/// Bounds of the writer.
#[derive(Debug, Clone, Copy)]
pub struct WriterSettings {
    /// Most documents in one request (contract 4.1).
    pub batch_documents_max: usize,
    /// Most bytes in one request, unless a single document is larger.
    pub batch_bytes_max: usize,
    /// Most requests at a time. Fewer than upstream's 64: what waits goes out in larger batches, which costs
    /// both sides less per record.
    pub requests_max: usize,
    /// Least time between the beginnings of two requests.
    pub spacing: Duration,
    /// Most bytes of records admitted and not yet written.
    pub waiting_bytes_max: usize,
    /// Further tries after one that passed over nothing (contract 4.1: 3); the pause before each.
    pub pauses: [Duration; 3],
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self {
            batch_documents_max: 500,
            batch_bytes_max: 4 << 20,
            requests_max: 8,
            spacing: Duration::from_millis(10),
            waiting_bytes_max: 64 << 20,
            // Long enough in sum to outlast a restart of the store.
            pauses: [Duration::from_millis(250), Duration::from_secs(1), Duration::from_secs(4)],
        }
    }
}

/// The budget is counted in these, so that it fits the semaphore's range.
const BUDGET_UNIT: usize = 1024;

/// The writer. Cloning shares it; when the last clone is gone, what was admitted is still written.
#[derive(Debug, Clone)]
pub struct CouchWriter {
    queue: mpsc::UnboundedSender<Waiting>,
    budget: Arc<Semaphore>,
    budget_units: u32,
    waiting: Arc<AtomicUsize>,
    observer: ObserverRef,
}

#[derive(Clone)]
pub(super) struct ObserverRef(pub(super) Arc<dyn Observer>);

impl std::fmt::Debug for ObserverRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("observer")
    }
}

/// A record in the queue. The budget is held until it is written or given up.
#[derive(Debug)]
struct Waiting {
    id: String,
    document: Bytes,
    done: oneshot::Sender<Result<(), StoreError>>,
    _budget: OwnedSemaphorePermit,
}

impl CouchWriter {
    /// Starts the writer's task on the current Tokio runtime.
    pub fn start(database: Database, settings: WriterSettings, observer: Arc<dyn Observer>) -> Self {
        // The channel itself needs no bound: each element holds a part of the budget.
        let (queue, arrivals) = mpsc::unbounded_channel();
        let units = u32::try_from(settings.waiting_bytes_max / BUDGET_UNIT).unwrap_or(u32::MAX).max(1);
        let budget = Arc::new(Semaphore::new(usize::try_from(units).unwrap_or(1)));
        let sender = Sender { database, settings, observer: Arc::clone(&observer) };
        tokio::spawn(run(arrivals, sender));
        Self { queue, budget, budget_units: units, waiting: Arc::default(), observer: ObserverRef(observer) }
    }

    /// Records admitted and not yet written.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }
}

impl CouchWriter {
    /// Writes a document that is JSON already, `_id` included; `id` is for messages.
    ///
    /// # Errors
    /// As [`ActivationStore::store`].
    pub async fn write(&self, id: String, document: Bytes) -> Result<(), StoreError> {
        let began = Instant::now();
        let closed = || StoreError::Closed { id: id.clone() };
        let units =
            u32::try_from(document.len() / BUDGET_UNIT + 1).unwrap_or(u32::MAX).min(self.budget_units);
        let permit = Arc::clone(&self.budget).acquire_many_owned(units).await.map_err(|_| closed())?;
        let (done, outcome) = oneshot::channel();
        let counted = Counted::new(&self.waiting);
        self.observer.0.waiting(counted.now);
        let waiting = Waiting { id: id.clone(), document, done, _budget: permit };
        let outcome = match self.queue.send(waiting) {
            Ok(()) => outcome.await.unwrap_or_else(|_| Err(closed())),
            Err(_) => Err(closed()),
        };
        drop(counted);
        self.observer.0.waiting(self.waiting());
        self.observer.0.ended(Operation::SaveDocument, began.elapsed(), outcome.is_ok());
        if outcome.is_err() {
            self.observer.0.lost();
        }
        outcome
    }
}

#[async_trait]
impl ActivationStore for CouchWriter {
    async fn store(&self, record: StoredActivation) -> Result<(), StoreError> {
        let id = record.id();
        let document = serde_json::to_vec(&record)
            .map_err(|error| StoreError::Refused { id: id.clone(), reason: error.to_string() })?;
        // The record may hold megabytes; while it waits, one copy is enough.
        drop(record);
        self.write(id, document.into()).await
    }
}

/// Keeps the number of waiting records right when a caller gives up waiting.
struct Counted<'a> {
    count: &'a AtomicUsize,
    now: usize,
}

impl<'a> Counted<'a> {
    fn new(count: &'a AtomicUsize) -> Self {
        Self { count, now: count.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What one request needs.
#[derive(Clone)]
struct Sender {
    database: Database,
    settings: WriterSettings,
    observer: Arc<dyn Observer>,
}

async fn run(mut arrivals: mpsc::UnboundedReceiver<Waiting>, sender: Sender) {
    let requests = Arc::new(Semaphore::new(sender.settings.requests_max.max(1)));
    // A record taken from the queue that did not fit into the batch before it.
    let mut left_over: Option<Waiting> = None;
    let mut begin_at = tokio::time::Instant::now();
    loop {
        let first = match left_over.take() {
            Some(waiting) => waiting,
            None => match arrivals.recv().await {
                Some(waiting) => waiting,
                None => return,
            },
        };
        // The semaphore lives in this task and is never closed.
        let Ok(request) = Arc::clone(&requests).acquire_owned().await else { return };
        tokio::time::sleep_until(begin_at).await;
        begin_at = tokio::time::Instant::now() + sender.settings.spacing;
        let mut bytes = first.document.len();
        let mut batch = vec![first];
        while batch.len() < sender.settings.batch_documents_max {
            let Ok(next) = arrivals.try_recv() else { break };
            if bytes + next.document.len() > sender.settings.batch_bytes_max {
                left_over = Some(next);
                break;
            }
            bytes += next.document.len();
            batch.push(next);
        }
        let sender = sender.clone();
        tokio::spawn(async move {
            sender.send(batch).await;
            drop(request);
        });
    }
}

impl Sender {
    async fn send(&self, batch: Vec<Waiting>) {
        self.observer.batch(batch.len());
        let body = bulk_body(batch.iter().map(|waiting| &waiting.document));
        let mut tries = 0;
        let mut pauses = VecDeque::from(self.settings.pauses);
        let outcome = loop {
            tries += 1;
            let began = Instant::now();
            let outcome = self.database.bulk(body.clone()).await;
            self.observer.ended(Operation::SaveDocumentBulk, began.elapsed(), outcome.is_ok());
            match outcome {
                Err(error) if error.passing() => {
                    let Some(pause) = pauses.pop_front() else { break Err(error) };
                    tracing::debug!(%error, tries, "records could not be written, trying again");
                    tokio::time::sleep(pause).await;
                }
                other => break other,
            }
        };
        conclude(batch, outcome, tries);
    }
}

/// Tells each record what became of it.
fn conclude(batch: Vec<Waiting>, outcome: Result<Vec<BulkAnswer>, CouchError>, tries: u32) {
    let mut answers = match outcome {
        Ok(answers) => answers.into_iter(),
        Err(error) => {
            let reason = super::chain(&error);
            for waiting in batch {
                let id = waiting.id;
                let error = if error.passing() {
                    StoreError::Unavailable { id, tries, reason: reason.clone() }
                } else {
                    StoreError::Refused { id, reason: reason.clone() }
                };
                let _gone = waiting.done.send(Err(error));
            }
            return;
        }
    };
    for waiting in batch {
        let id = waiting.id;
        let outcome = match answers.next() {
            None => Err(StoreError::Refused { id, reason: "the answer leaves it out".to_owned() }),
            Some(BulkAnswer { error: None, .. }) => Ok(()),
            // An earlier try of ours may have arrived although no answer did.
            Some(BulkAnswer { error: Some(error), .. }) if error == "conflict" && tries > 1 => Ok(()),
            Some(BulkAnswer { error: Some(error), .. }) if error == "conflict" => {
                Err(StoreError::Conflict { id })
            }
            Some(BulkAnswer { error: Some(error), reason, .. }) => Err(StoreError::Refused {
                id,
                reason: reason.map_or(error.clone(), |reason| format!("{error}: {reason}")),
            }),
        };
        // Nobody waits when the caller was cancelled; the record is written all the same.
        let _gone = waiting.done.send(outcome);
    }
}

/// `{"docs":[a,b,c]}` from documents that are JSON already.
fn bulk_body<'a>(documents: impl Iterator<Item = &'a Bytes>) -> Bytes {
    let mut body = BytesMut::from(&b"{\"docs\":["[..]);
    for (n, document) in documents.enumerate() {
        if n > 0 {
            body.extend_from_slice(b",");
        }
        body.extend_from_slice(document);
    }
    body.extend_from_slice(b"]}");
    body.freeze()
}
