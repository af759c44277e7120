//! The message bus: where activations come from and where acknowledgements, pings and events go.
//!
//! Everything above this module speaks of topics, records and offsets of the one partition an
//! invoker has; which bus carries them is chosen once, at start.
//! Kafka ([`kafka`]) is the only one today.

pub mod kafka;
#[cfg(test)]
pub(crate) mod memory;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;

/// The offset of a record in the invoker's own topic (partition 0).
pub type Offset = i64;

/// One record taken from the invoker's own topic.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// Where it stands in the topic.
    pub offset: Offset,
    /// When the bus received it, milliseconds since the epoch; absent when the bus does not say.
    pub timestamp_ms: Option<i64>,
    /// The record's value, as it is on the wire.
    pub payload: Vec<u8>,
}

/// What a topic must look like when it has to be created (contract 1.4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Full name, prefix included.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Number of copies of each record.
    pub replication_factor: i32,
    /// Settings of the topic under the bus's own names, such as `retention.ms`.
    pub config: Vec<(String, String)>,
}

/// Where a consumer begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartAt {
    /// At the offset committed for the group, or at the earliest record when there is none.
    Committed,
    /// At this offset, unless the group has committed a later one.
    AtLeast(Offset),
}

/// Why a bus could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A setting that the bus does not take.
    #[error("setting {name} = {value:?} is not usable: {reason}")]
    Setting {
        /// The name as the operator wrote it.
        name: String,
        /// Its value (secrets masked).
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The client refused its configuration.
    #[error("the bus client at {hosts} cannot be created")]
    Client {
        /// The addresses asked.
        hosts: String,
        /// The client's own complaint.
        #[source]
        source: rdkafka::error::KafkaError,
    },
    /// The bus does not answer.
    #[error("the bus at {hosts} does not answer")]
    Unreachable {
        /// The addresses asked.
        hosts: String,
        /// The client's own complaint.
        #[source]
        source: rdkafka::error::KafkaError,
    },
    /// The topic is absent and cannot be created.
    #[error("topic {topic:?} cannot be created: {reason}")]
    CreateTopic {
        /// The topic.
        topic: String,
        /// What the bus said.
        reason: String,
    },
    /// Taking or committing records failed.
    #[error("{operation} failed on topic {topic:?}")]
    Consume {
        /// `poll`, `commit`, `seek`...
        operation: &'static str,
        /// The topic.
        topic: String,
        /// The client's own complaint.
        #[source]
        source: rdkafka::error::KafkaError,
    },
}

/// Why a record was not sent.
#[derive(Debug, Clone, thiserror::Error)]
pub enum SendError {
    /// The record is larger than the bus takes; a smaller one may pass.
    #[error("a record of {bytes} bytes is too large for topic {topic:?}")]
    TooLarge {
        /// The topic.
        topic: String,
        /// Size of the value in bytes.
        bytes: usize,
    },
    /// The bus did not take it, also after the retries that the policy allows.
    #[error("a record of {bytes} bytes was not taken by topic {topic:?}: {reason}")]
    Refused {
        /// The topic.
        topic: String,
        /// Size of the value in bytes.
        bytes: usize,
        /// What the bus said last.
        reason: String,
    },
}

/// Sends records. One is shared by the whole process.
pub trait Producer: Send + Sync + 'static {
    /// Sends one record to partition 0 of `topic`, key null.
    ///
    /// The record is on its way when this returns: of two records sent one after the other to the
    /// same topic, the first is in front unless its sending fails. The future tells when the bus
    /// has taken it, and may be dropped by who does not want to know.
    ///
    /// # Errors
    /// [`SendError::TooLarge`] at once; [`SendError::Refused`] after bounded retries.
    fn send(&self, topic: &str, payload: Vec<u8>) -> BoxFuture<'static, Result<(), SendError>>;
}

/// Takes records from the invoker's own topic. Calls block: it lives on a thread of its own.
pub trait Consumer: Send {
    /// Takes up to `max` records, waiting at most `wait` for the first and not at all for the rest.
    ///
    /// An empty answer is normal. The position moves past what was returned.
    ///
    /// # Errors
    /// What the bus says; the consumer stays usable, and repeats the attempt at the next call.
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, BusError>;

    /// Makes `next` the offset at which the group goes on, and returns when the bus has it.
    ///
    /// # Errors
    /// What the bus says, within the time `wait`.
    fn commit(&mut self, next: Offset, wait: Duration) -> Result<(), BusError>;

    /// How many records of the topic have not been taken yet.
    ///
    /// # Errors
    /// What the bus says, within a second.
    fn lag(&mut self) -> Result<u64, BusError>;

    /// Throws the connection away; the next call makes a new one at the same position.
    fn reopen(&mut self);
}

/// A bus, connected.
#[async_trait]
pub trait Bus: Send + Sync {
    /// A name that tells this bus's data from that of another (Kafka: the cluster id).
    fn identity(&self) -> String;

    /// Makes sure that the topic exists. A topic that is present is taken as it is.
    ///
    /// # Errors
    /// [`BusError::CreateTopic`] after the retries of contract 1.4.
    async fn ensure_topic(&self, topic: &TopicSpec) -> Result<(), BusError>;

    /// The consumer of `topic`, whose offsets are kept for the group of the same name.
    ///
    /// # Errors
    /// [`BusError::Client`] when the client refuses its configuration.
    fn consumer(&self, topic: &str, start: StartAt) -> Result<Box<dyn Consumer>, BusError>;

    /// The producer.
    fn producer(&self) -> Arc<dyn Producer>;
}
