//! Taking records from the one partition of the invoker's own topic.
//!
//! The partition is assigned by hand. There is no group membership: offsets are still kept under
//! the group's name (contract 3.1), so that the classic invoker and this one can take over from
//! each other, but nothing has to be re-balanced and no dead member's session has to run out.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, KafkaResult, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};

use super::super::{BusError, Consumer, Delivery, Offset, StartAt};
use super::{Context, KafkaSettings, Role, client_config, create, reconnect_defaults};

const PARTITION: i32 = 0;
/// How long one question about offsets may take before it is asked again at the next poll.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(2);
/// A question for a gauge must not hold up the feed.
const LAG_TIMEOUT: Duration = Duration::from_secs(1);
/// Errors and nothing else for this long: the client is thrown away.
const PATIENCE: Duration = Duration::from_secs(15);

pub(super) struct KafkaConsumer {
    settings: Arc<KafkaSettings>,
    topic: String,
    start: StartAt,
    client: Option<Client>,
    /// The offset after the last record returned by `poll`; `None` before the first one when the
    /// group's committed offset decides.
    next: Option<Offset>,
    /// Since when there were only errors.
    failing_since: Option<Instant>,
}

struct Client {
    consumer: BaseConsumer<Context>,
    /// Has the partition been assigned? Until then the position is unknown.
    placed: bool,
}

impl KafkaConsumer {
    pub(super) fn new(settings: Arc<KafkaSettings>, topic: &str, start: StartAt) -> Result<Self, BusError> {
        let mut this =
            Self { settings, topic: topic.to_owned(), start, client: None, next: None, failing_since: None };
        this.client = Some(this.build()?);
        Ok(this)
    }

    fn build(&self) -> Result<Client, BusError> {
        let mut defaults = reconnect_defaults("consumer");
        defaults.extend([
            ("client.id", format!("consumer-{}", self.topic)),
            ("group.id", self.topic.clone()),
            ("enable.auto.commit", "false".to_owned()),
            ("enable.auto.offset.store", "false".to_owned()),
            ("auto.offset.reset", "earliest".to_owned()),
            ("allow.auto.create.topics", "false".to_owned()),
            ("enable.partition.eof", "false".to_owned()),
            // The broker answers a fetch as soon as there is one byte, so this wait costs no
            // latency; it is how often an idle fetch is repeated.
            ("fetch.min.bytes", "1".to_owned()),
            ("fetch.wait.max.ms", "500".to_owned()),
            ("fetch.error.backoff.ms", "50".to_owned()),
            // A fetch is sent only while there are fewer records than this in the local queue, or each
            // record that arrives would cost one. With the default of one second of back-off a burst
            // would be taken in steps.
            ("fetch.queue.backoff.ms", "2".to_owned()),
            ("queued.min.messages", self.settings.prefetch.max(1).to_string()),
            ("queued.max.messages.kbytes", "16384".to_owned()),
        ]);
        let config = client_config(
            Role::Consumer,
            &self.settings.hosts,
            &defaults,
            &[&self.settings.common, &self.settings.consumer],
        )?;
        let consumer = create(&self.settings.hosts, &config, Context::new("consumer"))?;
        Ok(Client { consumer, placed: false })
    }

    /// The client, built again if it was thrown away, with its partition assigned.
    fn ready(&mut self) -> Result<(), BusError> {
        if self.client.is_none() {
            self.client = Some(self.build()?);
        }
        let placed = self.client.as_ref().is_some_and(|client| client.placed);
        if placed {
            return Ok(());
        }
        let at = match (self.next, self.start) {
            (Some(next), _) => KafkaOffset::Offset(next),
            (None, StartAt::Committed) => KafkaOffset::Stored,
            (None, StartAt::AtLeast(wanted)) => self.later_of_committed_and(wanted)?,
        };
        let failed = |source| BusError::Consume { operation: "assign", topic: self.topic.clone(), source };
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.topic, PARTITION, at).map_err(failed)?;
        if let Some(client) = &mut self.client {
            client.consumer.assign(&list).map_err(failed)?;
            client.placed = true;
            tracing::info!(topic = self.topic, position = ?at, "taking records");
        }
        Ok(())
    }

    /// Where to begin when the journal knows of records that were taken up to `wanted`.
    fn later_of_committed_and(&self, wanted: Offset) -> Result<KafkaOffset, BusError> {
        let failed =
            |operation| move |source| BusError::Consume { operation, topic: self.topic.clone(), source };
        let Some(client) = &self.client else { return Ok(KafkaOffset::Offset(wanted)) };
        let (_, end) = client
            .consumer
            .fetch_watermarks(&self.topic, PARTITION, QUESTION_TIMEOUT)
            .map_err(failed("watermarks"))?;
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition(&self.topic, PARTITION);
        let committed =
            client.consumer.committed_offsets(list, QUESTION_TIMEOUT).map_err(failed("committed"))?;
        let committed = match committed
            .elements()
            .first()
            .map(rdkafka::topic_partition_list::TopicPartitionListElem::offset)
        {
            Some(KafkaOffset::Offset(offset)) => Some(offset),
            _ => None,
        };
        if wanted > end {
            // The topic was deleted and made anew since: the journal's offsets mean nothing in it.
            tracing::warn!(
                topic = self.topic,
                wanted,
                end,
                "the journal is ahead of the topic, its position is not used"
            );
            return Ok(KafkaOffset::Stored);
        }
        Ok(KafkaOffset::Offset(committed.map_or(wanted, |committed| committed.max(wanted))))
    }

    /// One record or event from the client; `None` when there was nothing to return in time.
    fn one(&mut self, wait: Duration) -> Option<KafkaResult<Delivery>> {
        let client = self.client.as_ref()?;
        let answer = client.consumer.poll(wait)?;
        Some(answer.map(|message| Delivery {
            offset: message.offset(),
            timestamp_ms: message.timestamp().to_millis(),
            payload: message.payload().unwrap_or_default().to_vec(),
        }))
    }

    fn trouble(&mut self, source: KafkaError) -> BusError {
        let fatal = source.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            || self.client.as_ref().is_some_and(|client| client.consumer.client().fatal_error().is_some());
        let since = *self.failing_since.get_or_insert_with(Instant::now);
        if fatal || since.elapsed() > PATIENCE {
            self.reopen();
        }
        BusError::Consume { operation: "poll", topic: self.topic.clone(), source }
    }
}

impl Consumer for KafkaConsumer {
    fn poll(&mut self, max: usize, wait: Duration) -> Result<Vec<Delivery>, BusError> {
        self.ready()?;
        let mut taken = Vec::new();
        while taken.len() < max {
            let wait = if taken.is_empty() { wait } else { Duration::ZERO };
            match self.one(wait) {
                Some(Ok(delivery)) => taken.push(delivery),
                None => break,
                // What we hold goes first; a lasting error shows again at the next call.
                Some(Err(error)) if !taken.is_empty() => {
                    tracing::debug!(%error, "poll");
                    break;
                }
                Some(Err(error)) => return Err(self.trouble(error)),
            }
        }
        if let Some(last) = taken.last() {
            self.next = Some(last.offset + 1);
            self.failing_since = None;
        }
        Ok(taken)
    }

    fn commit(&mut self, next: Offset, wait: Duration) -> Result<(), BusError> {
        let topic = self.topic.clone();
        let failed = |source| BusError::Consume { operation: "commit", topic: topic.clone(), source };
        let Some(client) = &self.client else { return Err(failed(KafkaError::Canceled)) };
        let mut list = TopicPartitionList::with_capacity(1);
        list.add_partition_offset(&self.topic, PARTITION, KafkaOffset::Offset(next)).map_err(failed)?;
        super::sys::commit(client.consumer.client(), &list, wait).map_err(failed)
    }

    fn lag(&mut self) -> Result<u64, BusError> {
        let failed =
            |source| BusError::Consume { operation: "watermarks", topic: self.topic.clone(), source };
        let Some(client) = &self.client else { return Err(failed(KafkaError::Canceled)) };
        let (low, high) =
            client.consumer.fetch_watermarks(&self.topic, PARTITION, LAG_TIMEOUT).map_err(failed)?;
        Ok(u64::try_from(high - self.next.unwrap_or(low)).unwrap_or(0))
    }

    fn reopen(&mut self) {
        tracing::warn!(topic = self.topic, position = self.next, "kafka consumer replaced");
        self.failing_since = None;
        self.client = None;
    }
}
