//! A bus in memory, for tests: it takes everything, in order, and can be told to misbehave.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::BoxFuture;

use super::{BusError, Consumer, Delivery, Offset, Producer, SendError};

/// Records of all topics, and the misbehaviour asked for.
#[derive(Default)]
pub(crate) struct MemoryBus {
    /// Topic and value of everything taken, in order.
    pub(crate) taken: Mutex<Vec<(String, Vec<u8>)>>,
    /// Records longer than this are too large.
    pub(crate) record_bytes_max: Option<usize>,
    /// While set, records are taken only when [`MemoryBus::release`] lets them.
    pub(crate) held: Mutex<HashMap<String, Vec<tokio::sync::oneshot::Sender<()>>>>,
    /// Topics whose records are held.
    pub(crate) hold: Mutex<Vec<String>>,
}

impl MemoryBus {
    /// The values sent to `topic`, as JSON.
    pub(crate) fn sent(&self, topic: &str) -> Vec<serde_json::Value> {
        let taken = self.taken.lock().unwrap();
        taken.iter().filter(|(t, _)| t == topic).map(|(_, v)| serde_json::from_slice(v).unwrap()).collect()
    }

    /// Lets the oldest held record of `topic` be taken.
    pub(crate) fn release(&self, topic: &str) {
        let waiter = self.held.lock().unwrap().get_mut(topic).map(|waiters| waiters.remove(0));
        let _ = waiter.expect("a record is held").send(());
    }
}

impl Producer for Arc<MemoryBus> {
    fn send(&self, topic: &str, payload: Vec<u8>) -> BoxFuture<'static, Result<(), SendError>> {
        let bytes = payload.len();
        let topic = topic.to_owned();
        if self.record_bytes_max.is_some_and(|max| bytes > max) {
            return async move { Err(SendError::TooLarge { topic, bytes }) }.boxed();
        }
        self.taken.lock().unwrap().push((topic.clone(), payload));
        if self.hold.lock().unwrap().contains(&topic) {
            let (release, released) = tokio::sync::oneshot::channel();
            self.held.lock().unwrap().entry(topic).or_default().push(release);
            return async move {
                let _ = released.await;
                Ok(())
            }
            .boxed();
        }
        async { Ok(()) }.boxed()
    }
}

/// What a [`MemoryConsumer`] gives and remembers.
#[derive(Default)]
pub(crate) struct Tape {
    pub(crate) waiting: Mutex<VecDeque<Delivery>>,
    pub(crate) arrived: Condvar,
    pub(crate) committed: Mutex<Vec<Offset>>,
    /// The largest number of records asked for at once.
    pub(crate) asked_max: Mutex<usize>,
    /// Commits are refused.
    pub(crate) refuse_commits: Mutex<bool>,
}

impl Tape {
    pub(crate) fn put(&self, offset: Offset, payload: &[u8]) {
        let delivery = Delivery { offset, timestamp_ms: Some(1), payload: payload.to_vec() };
        self.waiting.lock().unwrap().push_back(delivery);
        self.arrived.notify_all();
    }
}

pub(crate) struct MemoryConsumer(pub(crate) Arc<Tape>);

impl Consumer for MemoryConsumer {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, BusError> {
        let mut asked = self.0.asked_max.lock().unwrap();
        *asked = max.max(*asked);
        drop(asked);
        let waiting = self.0.waiting.lock().unwrap();
        let (mut waiting, _) = self.0.arrived.wait_timeout_while(waiting, wait, |w| w.is_empty()).unwrap();
        let count = waiting.len().min(max);
        Ok(waiting.drain(..count).collect())
    }

    fn commit(&mut self, next: Offset, _wait: Duration) -> Result<(), BusError> {
        if *self.0.refuse_commits.lock().unwrap() {
            let source =
                rdkafka::error::KafkaError::ConsumerCommit(rdkafka::types::RDKafkaErrorCode::UnknownMemberId);
            return Err(BusError::Consume { operation: "commit", topic: "invoker0".to_owned(), source });
        }
        self.0.committed.lock().unwrap().push(next);
        Ok(())
    }

    fn lag(&mut self) -> Result<u64, BusError> {
        Ok(self.0.waiting.lock().unwrap().len() as u64)
    }

    fn reopen(&mut self) {}
}
