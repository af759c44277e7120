//! Activations through Kafka in a closed loop: a window of them is under way, each answer releases the next.
//!
//! One thread, and no more work per activation than finding its id in the answer: the load must leave the
//! machine to the invoker. (The strict double of `rewind_tests` would not.)

use std::collections::HashMap;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer};
use rdkafka::{ClientConfig, Message as _, Offset, TopicPartitionList};
use rewind_tests::message::{Activation, activation_id, now_ms};

/// The controller that the load plays. The lab's double is controller 0 and reads its own topic only.
pub const CONTROLLER: &str = "1";

/// How long the load waits for the next answer before it gives up.
const PATIENCE: Duration = Duration::from_secs(60);

/// When a measurement ends.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After so many answers.
    Answers(usize),
    /// After so long; what is under way then is waited for, and counts.
    Elapsed(Duration),
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// From publishing to the answer, in microseconds, in the order of the answers.
    pub latencies_us: Vec<u64>,
    /// From the first publishing to the last answer.
    pub elapsed: Duration,
}

impl Measured {
    /// Answers per second.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
    pub fn per_second(&self) -> f64 {
        self.latencies_us.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that `share` (0 to 1) of the answers did not exceed, in microseconds.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "an index into the list"
    )]
    pub fn percentile_us(&self, share: f64) -> u64 {
        let mut sorted = self.latencies_us.clone();
        sorted.sort_unstable();
        let index = (sorted.len() as f64 * share).ceil() as usize;
        sorted.get(index.saturating_sub(1)).copied().unwrap_or(0)
    }
}

/// One action's activations, sent to invoker 0.
pub struct Load {
    producer: ThreadedProducer<DefaultProducerContext>,
    consumer: BaseConsumer,
    topic: String,
    /// The message around the two places where every activation differs: transaction and its start, id.
    parts: [String; 3],
    /// Published and not yet answered.
    under_way: HashMap<String, Instant>,
}

impl Load {
    /// Prepares messages like `activation` for the invoker whose topics start with `prefix`.
    ///
    /// # Panics
    /// When the broker cannot be used: this is a bench.
    pub async fn new(kafka: &str, prefix: &str, activation: &Activation) -> Self {
        let answers = format!("{prefix}completed{CONTROLLER}");
        rewind_tests::controller::create_topics(kafka, std::slice::from_ref(&answers)).await;
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", kafka)
            .set("group.id", format!("{prefix}load"))
            .set("enable.auto.commit", "false")
            .set("linger.ms", "0")
            .set("fetch.queue.backoff.ms", "1");
        let consumer: BaseConsumer = config.create().expect("a consumer can be made");
        let mut place = TopicPartitionList::new();
        place.add_partition_offset(&answers, 0, Offset::Beginning).expect("a valid offset");
        consumer.assign(&place).expect("the topic can be read");

        let activation = activation
            .clone()
            .with(
                "rootControllerIndex",
                serde_json::json!({"asString": CONTROLLER, "instanceType": "controller"}),
            )
            .with("transid", serde_json::json!("@"))
            .with("activationId", serde_json::json!("@"));
        let text = activation.value.to_string();
        let parts: Vec<_> = text.split("\"@\"").map(str::to_owned).collect();
        Self {
            producer: config.create().expect("a producer can be made"),
            consumer,
            topic: format!("{prefix}invoker0"),
            parts: parts.try_into().expect("two places"),
            under_way: HashMap::new(),
        }
    }

    /// Sends one activation.
    ///
    /// # Panics
    /// When the client does not take it.
    pub fn publish(&mut self) {
        let id = activation_id();
        let [head, middle, tail] = &self.parts;
        let transid = format!("[\"{id}\",{}]", now_ms());
        // The template's members are in this order: `transid` comes first.
        let message = format!("{head}{transid}{middle}\"{id}\"{tail}");
        self.under_way.insert(id, Instant::now());
        let record = BaseRecord::<(), str>::to(&self.topic).partition(0).payload(&message);
        self.producer.send(record).map_err(|(error, _)| error).expect("the client takes the record");
    }

    /// Waits for the next answer that frees a slot; how long its activation took, in microseconds.
    ///
    /// # Panics
    /// When none comes in time.
    pub fn answer(&mut self) -> u64 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < deadline, "{} activations are not answered", self.under_way.len());
            let Some(message) = self.consumer.poll(Duration::from_millis(200)) else { continue };
            let message = message.expect("the broker answers");
            let text = std::str::from_utf8(message.payload().unwrap_or_default()).expect("acks are text");
            // A result alone frees no slot; its completion follows.
            if !text.contains("\"isSystemError\"") {
                continue;
            }
            assert!(text.contains("\"isSystemError\":false"), "an activation failed: {text}");
            if let Some(sent) = find_id(text).and_then(|id| self.under_way.remove(id)) {
                return u64::try_from(sent.elapsed().as_micros()).unwrap_or(u64::MAX);
            }
        }
    }

    /// Keeps `window` activations under way.
    pub fn run(&mut self, window: usize, until: Until) -> Measured {
        let start = Instant::now();
        let more = |sent: usize| match until {
            Until::Answers(count) => sent < count,
            Until::Elapsed(span) => start.elapsed() < span,
        };
        let mut latencies_us = Vec::new();
        let mut sent = 0;
        while sent < window && more(sent) {
            self.publish();
            sent += 1;
        }
        while !self.under_way.is_empty() {
            latencies_us.push(self.answer());
            if more(sent) {
                self.publish();
                sent += 1;
            }
        }
        Measured { latencies_us, elapsed: start.elapsed() }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.producer.flush(Duration::from_secs(5));
    }
}

/// The activation that an ack is for (contract 2.6): a record's or a completion's own member, or the shrunk
/// response.
fn find_id(ack: &str) -> Option<&str> {
    ["\"activationId\":\"", "\"response\":\""].iter().find_map(|name| {
        let start = ack.find(name)? + name.len();
        ack.get(start..start + 32)
    })
}
