//! Kafka through librdkafka.
//!
//! ```text
//!   consumer   one client, partition 0 assigned by hand: no group membership, hence no rebalance
//!              and no wait for a dead predecessor's session (contract 3.3, "Seen live")
//!   producer   one client, linger 0, idempotent: a retry after a lost connection sends nothing twice
//!   admin      topic creation and the reachability test at start
//! ```
//!
//! librdkafka reconnects by itself; what it calls fatal, and silence that lasts although there are
//! records to take, make us throw the client away and build a new one at the same position.

mod consumer;
mod producer;
mod properties;
mod sys;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

use super::{Bus, BusError, Consumer, Producer, StartAt, TopicSpec};
use properties::{Role, client_config};

/// Tries after the first one when Kafka does not answer or cannot create a topic (contract 1.4).
const START_RETRIES: u32 = 5;
/// Pause between them (contract 1.4).
const START_RETRY_PAUSE: Duration = Duration::from_secs(1);
/// How long one question to the brokers may take at start; 6 of them stay within the 30 s of contract 1.1.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(4);

/// How to reach Kafka. Property maps use the Java client's dotted names.
#[derive(Debug, Clone, Default)]
pub struct KafkaSettings {
    /// `host:port,host:port`.
    pub hosts: String,
    /// `whisk.kafka.common.*`.
    pub common: BTreeMap<String, String>,
    /// `whisk.kafka.producer.*`.
    pub producer: BTreeMap<String, String>,
    /// `whisk.kafka.consumer.*`.
    pub consumer: BTreeMap<String, String>,
    /// Largest record the producer sends, bytes (payload maximum plus overhead, contract 1.4).
    pub max_request_bytes: u64,
    /// With this many records ready beyond those handed out, the client fetches no further ones. (It
    /// takes what a fetch brings whole, so under a backlog there are more.)
    pub prefetch: usize,
}

/// Kafka, connected.
pub struct Kafka {
    settings: Arc<KafkaSettings>,
    admin: Arc<AdminClient<Context>>,
    producer: Arc<producer::KafkaProducer>,
    cluster_id: String,
}

impl Kafka {
    /// Connects: asks the brokers for their metadata, with the retries of contract 1.4.
    ///
    /// # Errors
    /// [`BusError::Client`] for a refused property, [`BusError::Unreachable`] when nobody answers.
    pub async fn connect(settings: KafkaSettings) -> Result<Self, BusError> {
        let settings = Arc::new(settings);
        let admin_config =
            client_config(Role::Admin, &settings.hosts, &reconnect_defaults("admin"), &[&settings.common])?;
        let admin: AdminClient<Context> = create(&settings.hosts, &admin_config, Context::new("admin"))?;
        let admin = Arc::new(admin);
        let cluster_id = first_answer(&settings.hosts, &admin).await?;
        let producer = Arc::new(producer::KafkaProducer::new(Arc::clone(&settings))?);
        Ok(Self { settings, admin, producer, cluster_id })
    }
}

#[async_trait]
impl Bus for Kafka {
    fn identity(&self) -> String {
        self.cluster_id.clone()
    }

    async fn ensure_topic(&self, topic: &TopicSpec) -> Result<(), BusError> {
        ensure_topic(&self.admin, topic).await
    }

    fn consumer(&self, topic: &str, start: StartAt) -> Result<Box<dyn Consumer>, BusError> {
        Ok(Box::new(consumer::KafkaConsumer::new(Arc::clone(&self.settings), topic, start)?))
    }

    fn producer(&self) -> Arc<dyn Producer> {
        Arc::clone(&self.producer) as Arc<dyn Producer>
    }
}

/// Is Kafka there? Used by `rewind check`; one question, no retry.
///
/// # Errors
/// As [`Kafka::connect`].
pub async fn reachable(settings: &KafkaSettings) -> Result<String, BusError> {
    let config =
        client_config(Role::Admin, &settings.hosts, &reconnect_defaults("check"), &[&settings.common])?;
    let admin: AdminClient<Context> = create(&settings.hosts, &config, Context::new("check"))?;
    ask(&settings.hosts, &Arc::new(admin)).await
}

async fn first_answer(hosts: &str, admin: &Arc<AdminClient<Context>>) -> Result<String, BusError> {
    let mut tries = 0;
    loop {
        match ask(hosts, admin).await {
            Err(error @ BusError::Unreachable { .. }) if tries < START_RETRIES => {
                tries += 1;
                tracing::warn!(error = %crate::errors::chain(&error), tries, "kafka does not answer yet");
                tokio::time::sleep(START_RETRY_PAUSE).await;
            }
            answer => return answer,
        }
    }
}

/// Fetches metadata (which proves that a broker answers) and the cluster's id.
async fn ask(hosts: &str, admin: &Arc<AdminClient<Context>>) -> Result<String, BusError> {
    let admin = Arc::clone(admin);
    let hosts = hosts.to_owned();
    let unreachable = |hosts: String, source| BusError::Unreachable { hosts, source };
    let for_panic = hosts.clone();
    tokio::task::spawn_blocking(move || {
        let client = admin.inner();
        client.fetch_metadata(None, QUESTION_TIMEOUT).map_err(|source| unreachable(hosts, source))?;
        Ok(client.fetch_cluster_id(QUESTION_TIMEOUT).unwrap_or_default())
    })
    .await
    .unwrap_or_else(|_| Err(unreachable(for_panic, KafkaError::Canceled)))
}

async fn ensure_topic(admin: &Arc<AdminClient<Context>>, topic: &TopicSpec) -> Result<(), BusError> {
    if present(admin, &topic.name).await {
        tracing::info!(topic = topic.name, "topic is there, taken as it is");
        return Ok(());
    }
    let failed = |reason: String| BusError::CreateTopic { topic: topic.name.clone(), reason };
    let mut spec =
        NewTopic::new(&topic.name, topic.partitions, TopicReplication::Fixed(topic.replication_factor));
    for (name, value) in &topic.config {
        spec = spec.set(name, value);
    }
    let options =
        AdminOptions::new().request_timeout(Some(QUESTION_TIMEOUT)).operation_timeout(Some(QUESTION_TIMEOUT));
    let mut tries = 0;
    loop {
        let code = match admin.create_topics([&spec], &options).await {
            Ok(results) => match results.into_iter().next() {
                Some(Ok(_)) => {
                    tracing::info!(topic = topic.name, "topic created");
                    return Ok(());
                }
                Some(Err((_, RDKafkaErrorCode::TopicAlreadyExists))) => return Ok(()),
                Some(Err((_, code))) => code,
                None => return Err(failed("the broker answered nothing".to_owned())),
            },
            Err(error) => error.rdkafka_error_code().unwrap_or(RDKafkaErrorCode::Fail),
        };
        if tries == START_RETRIES || !retriable(code) {
            return Err(failed(code.to_string()));
        }
        tries += 1;
        tracing::warn!(topic = topic.name, %code, tries, "topic could not be created yet");
        tokio::time::sleep(START_RETRY_PAUSE).await;
    }
}

/// Lists all topics instead of asking for one: asking for one may create it.
async fn present(admin: &Arc<AdminClient<Context>>, topic: &str) -> bool {
    let admin = Arc::clone(admin);
    let topic = topic.to_owned();
    tokio::task::spawn_blocking(move || {
        admin
            .inner()
            .fetch_metadata(None, QUESTION_TIMEOUT)
            .is_ok_and(|metadata| metadata.topics().iter().any(|known| known.name() == topic))
    })
    .await
    .unwrap_or(false)
}

/// May the same request succeed a little later?
fn retriable(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as E;
    matches!(
        code,
        E::BrokerTransportFailure
            | E::AllBrokersDown
            | E::OperationTimedOut
            | E::MessageTimedOut
            | E::TimedOutQueue
            | E::RequestTimedOut
            | E::LeaderNotAvailable
            | E::NotLeaderForPartition
            | E::BrokerNotAvailable
            | E::NetworkException
            | E::CoordinatorLoadInProgress
            | E::CoordinatorNotAvailable
            | E::NotCoordinator
            | E::NotController
            | E::InvalidReplicationFactor // fewer brokers up than copies wanted, while they start
            | E::WaitingForCoordinator
            | E::NotEnoughReplicas
            | E::Resolve
    )
}

/// Settings by which every client comes back quickly after the brokers do.
fn reconnect_defaults(client: &str) -> Vec<(&'static str, String)> {
    vec![
        ("client.id", client.to_owned()),
        ("reconnect.backoff.ms", "50".to_owned()),
        ("reconnect.backoff.max.ms", "1000".to_owned()),
        ("socket.keepalive.enable", "true".to_owned()),
        // A connection per broker is kept; closing idle ones would put a reconnect into the path
        // of the first activation after a quiet hour.
        ("connections.max.idle.ms", "0".to_owned()),
        ("log.connection.close", "false".to_owned()),
    ]
}

fn create<C, T>(hosts: &str, config: &ClientConfig, context: C) -> Result<T, BusError>
where
    C: ClientContext,
    T: rdkafka::config::FromClientConfigAndContext<C>,
{
    config.create_with_context(context).map_err(|source| BusError::Client { hosts: hosts.to_owned(), source })
}

/// Carries librdkafka's log lines into ours, and keeps repeated ones down.
#[derive(Debug)]
pub(super) struct Context {
    client: &'static str,
    epoch: Instant,
    /// Milliseconds after `epoch` at which the last transport complaint was logged, plus one.
    complained_at: AtomicU64,
}

/// At most one line in this time about brokers that cannot be reached.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(5);

impl Context {
    fn new(client: &'static str) -> Self {
        Self { client, epoch: Instant::now(), complained_at: AtomicU64::new(0) }
    }

    fn may_complain(&self) -> bool {
        let now = u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX - 1) + 1;
        let last = self.complained_at.load(Ordering::Relaxed);
        let pause = u64::try_from(COMPLAINT_PAUSE.as_millis()).unwrap_or(u64::MAX);
        (last == 0 || now.saturating_sub(last) >= pause)
            && self.complained_at.compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl rdkafka::consumer::ConsumerContext for Context {}

impl ClientContext for Context {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Debug | RDKafkaLogLevel::Info | RDKafkaLogLevel::Notice => {
                tracing::debug!(client = self.client, facility, "{message}");
            }
            _ if facility == "FAIL" || facility == "ERROR" => {
                if self.may_complain() {
                    tracing::warn!(client = self.client, facility, "{message}");
                }
            }
            _ => tracing::warn!(client = self.client, facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        if self.may_complain() {
            tracing::warn!(client = self.client, %error, "kafka: {reason}");
        }
    }
}
