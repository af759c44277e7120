//! A commit with a bounded wait, which the rdkafka crate does not offer: its synchronous commit
//! waits as long as the coordinator is away, and the outcome of its asynchronous one is not told.

#![allow(unsafe_code, reason = "librdkafka's commit queue is only there through its C interface")]

use std::os::raw::c_int;
use std::time::Duration;

use rdkafka::TopicPartitionList;
use rdkafka::bindings as rd;
use rdkafka::client::Client;
use rdkafka::error::{IsError as _, KafkaError};
use rdkafka::types::RDKafkaErrorCode;

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

struct Queue(*mut rd::rd_kafka_queue_t);

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: made by `rd_kafka_queue_new`, destroyed once. An answer that comes later finds the
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
