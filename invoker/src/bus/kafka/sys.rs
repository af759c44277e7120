//! What of librdkafka the rdkafka crate does not offer.
//!
//! A commit with a bounded wait: the crate's synchronous commit waits as long as the coordinator is
//! away, and the outcome of its asynchronous one is not told. And being told of events, instead of a
//! thread that waits for them.

#![allow(unsafe_code, reason = "librdkafka's queues are only there through its C interface")]

use std::os::raw::{c_int, c_void};
use std::sync::Arc;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::client::Client;
use rdkafka::error::{IsError as _, KafkaError};
use rdkafka::types::RDKafkaErrorCode;
use tokio::sync::Notify;

/// Commits `offsets` and waits at most `wait` for the group's answer.
///
/// # Errors
/// The group's refusal, or [`RDKafkaErrorCode::OperationTimedOut`]; after a time-out the commit may
/// still succeed later.
pub(super) fn commit<C: rdkafka::ClientContext>(
    client: &Client<C>,
    offsets: &TopicPartitionList,
    wait: Duration,
) -> Result<(), KafkaError> {
    let failed = |code: RDKafkaErrorCode| Err(KafkaError::ConsumerCommit(code));
    // SAFETY: the client's handle is valid for as long as `client` is borrowed.
    let queue = Queue(unsafe { rd::rd_kafka_queue_new(client.native_ptr()) });
    // SAFETY: client, list and queue are valid for the call; librdkafka copies the list and takes a
    // reference of its own on the queue. No callback is given, so nothing is called with `opaque`.
    let refused = unsafe {
        rd::rd_kafka_commit_queue(client.native_ptr(), offsets.ptr(), queue.0, None, std::ptr::null_mut())
    };
    if refused.is_error() {
        return failed(refused.into());
    }
    let wait_ms = c_int::try_from(wait.as_millis()).unwrap_or(c_int::MAX);
    // SAFETY: the queue is valid; the event, if there is one, is ours to destroy.
    let event = Event(unsafe { rd::rd_kafka_queue_poll(queue.0, wait_ms) });
    if event.0.is_null() {
        return failed(RDKafkaErrorCode::OperationTimedOut);
    }
    // SAFETY: the event was just checked not to be null, and lives until the end of this function.
    let answer = unsafe { rd::rd_kafka_event_error(event.0) };
    if answer.is_error() { failed(answer.into()) } else { Ok(()) }
}

/// The events of a client, which are to be polled for when they wake somebody.
pub(super) struct Events {
    queue: Queue,
    /// What librdkafka was given the address of.
    _wake: Arc<Notify>,
}

// SAFETY: librdkafka's queues may be used from any thread; they have a lock of their own.
unsafe impl Send for Events {}
// SAFETY: as above.
unsafe impl Sync for Events {}

impl Events {
    /// Notifies `wake` whenever there are events and there were none before. The value must not outlive
    /// `client`.
    pub(super) fn of<C: rdkafka::ClientContext>(client: &Client<C>, wake: Arc<Notify>) -> Self {
        // SAFETY: the client's handle is valid for as long as `client` is borrowed; the queue has a
        // reference of its own on what it needs.
        let queue = Queue(unsafe { rd::rd_kafka_queue_get_main(client.native_ptr()) });
        let opaque = Arc::as_ptr(&wake).cast_mut().cast::<c_void>();
        // SAFETY: the queue is valid. `opaque` points to a `Notify` that lives as long as `Events`, whose
        // drop takes the callback away first.
        unsafe { rd::rd_kafka_queue_cb_event_enable(queue.0, Some(there_are_events), opaque) };
        Self { queue, _wake: wake }
    }

    /// Whether there is something to poll for.
    pub(super) fn waiting(&self) -> bool {
        // SAFETY: the queue is valid until the drop.
        unsafe { rd::rd_kafka_queue_length(self.queue.0) > 0 }
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        // SAFETY: the queue is still valid. librdkafka calls and replaces the callback under the queue's
        // lock, so none is running when this returns, and none comes after it.
        unsafe { rd::rd_kafka_queue_cb_event_enable(self.queue.0, None, std::ptr::null_mut()) };
    }
}

/// Called on a thread of librdkafka's, with a lock held: nothing in here waits or calls back.
unsafe extern "C" fn there_are_events(_client: *mut rd::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: `opaque` is the pointer given with this callback, to a `Notify` that is alive; see `Events`.
    let wake = unsafe { &*opaque.cast_const().cast::<Notify>() };
    wake.notify_one();
}

struct Queue(*mut rd::rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_queue_new` or `_get_main`, destroyed once. An answer that comes later finds the
        // queue disabled and is dropped by librdkafka, which holds a reference of its own.
        unsafe { rd::rd_kafka_queue_destroy(self.0) }
    }
}

struct Event(*mut rd::rd_kafka_event_t);

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: null is accepted; anything else came from `rd_kafka_queue_poll` and is destroyed once.
        unsafe { rd::rd_kafka_event_destroy(self.0) }
    }
}
