//! Sending, with the error policy of contract 2.6.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use tokio::sync::{Notify, oneshot};

use super::super::{BusError, Producer, SendError};
use super::sys::Events;
use super::{Context, KafkaSettings, Role, client_config, create, reconnect_defaults, retriable};

/// Tries after the first one for errors that pass by themselves (contract 2.6).
const RETRIES: u32 = 3;
/// Pause between them (contract 2.6), also while the client's queue is full.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long librdkafka keeps a record through an outage before it gives up. The controller forces
/// completion after 2 x max(timeout, 60 s) + 60 s at the earliest (contract 7.2), so an answer that
/// is up to 5 minutes late is still of use, and librdkafka's own retries cannot duplicate it.
const DELIVERY_TIMEOUT: Duration = Duration::from_secs(300);

/// Deliveries are looked for when librdkafka says that there are some, and this often besides.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Where the outcome of a record goes.
type Outcomes = oneshot::Sender<Result<(), KafkaError>>;
/// What became of a record; an error when its client was dropped.
type Delivery = oneshot::Receiver<Result<(), KafkaError>>;

/// A client whose deliveries are handed out on the runtime's own threads: a thread that waits for them would
/// be woken for each, to wake the runtime in turn.
struct Client {
    // Dropped in this order.
    events: Events,
    producer: BaseProducer<Context>,
}

impl ProducerContext for Context {
    type DeliveryOpaque = Box<Outcomes>;

    fn delivery(&self, result: &DeliveryResult<'_>, outcome: Box<Outcomes>) {
        let result = result.as_ref().map(drop).map_err(|(error, _)| error.clone());
        // Whoever sent it may not want to know.
        let _ = outcome.send(result);
    }
}

impl Client {
    /// Takes the producer over. Must be called within a tokio runtime.
    fn new(producer: BaseProducer<Context>) -> Arc<Self> {
        let wake = Arc::new(Notify::new());
        let events = Events::of(producer.client(), Arc::clone(&wake));
        let client = Arc::new(Self { events, producer });
        let weak = Arc::downgrade(&client);
        tokio::spawn(async move {
            loop {
                let _ = tokio::time::timeout(LOOK_AGAIN, wake.notified()).await;
                let Some(client) = weak.upgrade() else { return };
                while client.events.waiting() {
                    client.producer.poll(Duration::ZERO);
                }
            }
        });
        client
    }
}

pub(super) struct KafkaProducer {
    shared: Arc<Shared>,
}

struct Shared {
    settings: Arc<KafkaSettings>,
    /// The client in use; replaced after an error that it will not recover from.
    client: Mutex<Generation>,
}

#[derive(Clone)]
struct Generation {
    client: Arc<Client>,
    number: u64,
}

impl KafkaProducer {
    pub(super) fn new(settings: Arc<KafkaSettings>) -> Result<Self, BusError> {
        let client = Generation { client: Client::new(client(&settings)?), number: 0 };
        Ok(Self { shared: Arc::new(Shared { settings, client: Mutex::new(client) }) })
    }
}

impl Producer for KafkaProducer {
    fn send(&self, topic: &str, payload: Vec<u8>) -> BoxFuture<'static, Result<(), SendError>> {
        let current = self.shared.current();
        let started = start(&current.client, topic, &payload);
        let shared = Arc::clone(&self.shared);
        let topic = topic.to_owned();
        async move { shared.finish(current, started, topic, payload).await }.boxed()
    }
}

impl Shared {
    fn current(&self) -> Generation {
        self.client.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    async fn finish(
        &self,
        mut current: Generation,
        mut started: Result<Delivery, KafkaError>,
        topic: String,
        payload: Vec<u8>,
    ) -> Result<(), SendError> {
        let mut tries = 0;
        loop {
            let error = match started {
                Ok(delivery) => match delivery.await {
                    Ok(Ok(())) => return Ok(()),
                    Ok(Err(error)) => error,
                    // The client was dropped under us: another sender replaced it.
                    Err(_) => KafkaError::Canceled,
                },
                Err(error) => error,
            };
            let code = error.rdkafka_error_code();
            if matches!(
                code,
                Some(RDKafkaErrorCode::MessageSizeTooLarge | RDKafkaErrorCode::InvalidMessageSize)
            ) {
                return Err(SendError::TooLarge { topic, bytes: payload.len() });
            }
            let outcome = judge(&error, code);
            if outcome != Outcome::Wait && outcome != Outcome::Retry {
                self.replace(current.number);
            }
            // A full queue is back-pressure, not an error of this record: librdkafka itself
            // empties it within DELIVERY_TIMEOUT, one way or the other.
            tries += u32::from(outcome != Outcome::Wait);
            if outcome == Outcome::GiveUp || tries > RETRIES {
                return Err(SendError::Refused { topic, bytes: payload.len(), reason: error.to_string() });
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            current = self.current();
            started = start(&current.client, &topic, &payload);
        }
    }

    /// Puts a new client in the place of generation `number`, unless somebody already did.
    ///
    /// Records still in the old one's queue end as [`KafkaError::Canceled`] at their senders,
    /// who try again with the new one.
    fn replace(&self, number: u64) {
        let mut current = self.client.lock().unwrap_or_else(PoisonError::into_inner);
        if current.number != number {
            return;
        }
        match client(&self.settings) {
            Ok(client) => {
                tracing::warn!(generation = number + 1, "kafka producer replaced");
                *current = Generation { client: Client::new(client), number: number + 1 };
            }
            // The old one stays, and the next failure tries again: never down for good (#4076).
            Err(error) => {
                tracing::error!(error = %crate::errors::chain(&error), "kafka producer cannot be replaced");
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The queue is full: wait.
    Wait,
    /// Passes by itself: try again with the same client.
    Retry,
    /// The client is broken, the record was not sent: try again with a new one.
    RetryWithNew,
    /// May have been sent, or will never be: fail, and use a new client from now on.
    GiveUp,
}

fn judge(error: &KafkaError, code: Option<RDKafkaErrorCode>) -> Outcome {
    use RDKafkaErrorCode as E;
    match code {
        Some(E::QueueFull) => Outcome::Wait,
        Some(E::Fatal | E::PurgeQueue) => Outcome::RetryWithNew,
        None if matches!(error, KafkaError::Canceled) => Outcome::RetryWithNew,
        // Time-outs and "not enough replicas after append": the record may be in the log.
        Some(
            E::MessageTimedOut | E::OperationTimedOut | E::RequestTimedOut | E::NotEnoughReplicasAfterAppend,
        ) => Outcome::GiveUp,
        Some(code) if retriable(code) => Outcome::Retry,
        _ => Outcome::GiveUp,
    }
}

fn start(client: &Client, topic: &str, payload: &[u8]) -> Result<Delivery, KafkaError> {
    let (outcome, delivery) = oneshot::channel();
    let record = BaseRecord::<'_, (), [u8], _>::with_opaque_to(topic, Box::new(outcome));
    client.producer.send(record.partition(0).payload(payload)).map_err(|(error, _)| error)?;
    Ok(delivery)
}

fn client(settings: &KafkaSettings) -> Result<BaseProducer<Context>, BusError> {
    let mut defaults = reconnect_defaults("producer");
    defaults.extend([
        // A record goes at once when none is on its way, and while one is, those behind it gather
        // into one request: no latency is added at rest, and under load the cost per record falls.
        ("linger.ms", "0".to_owned()),
        ("max.in.flight.requests.per.connection", "1".to_owned()),
        // Upstream's default is acks=1 without idempotence: an answer is lost with its leader, or
        // sent twice after a lost connection. Both are still to be had by setting `acks`.
        ("enable.idempotence", "true".to_owned()),
        ("acks", "all".to_owned()),
        ("message.timeout.ms", DELIVERY_TIMEOUT.as_millis().to_string()),
        ("message.max.bytes", settings.max_request_bytes.to_string()),
        ("queue.buffering.max.kbytes", "65536".to_owned()),
        ("allow.auto.create.topics", "false".to_owned()),
    ]);
    let asked = settings.producer.get("acks").map(String::as_str);
    if asked.is_some_and(|acks| !matches!(acks, "all" | "-1")) {
        defaults.retain(|(name, _)| *name != "enable.idempotence");
    }
    let config =
        client_config(Role::Producer, &settings.hosts, &defaults, &[&settings.common, &settings.producer])?;
    create(&settings.hosts, &config, Context::new("producer"))
}
