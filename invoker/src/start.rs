//! The invoker, from its configuration to its end: the one place where the parts are put together.
//!
//! Order at start (contract 1.4): configuration, engine, id, own topic and producer, containers (and
//! removal of leftovers), journal, store, pool, answers to what a crash cut off, HTTP port, feed,
//! pings. Whatever fails says so and ends the process with status 1; nothing has been taken then.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use openwhisk_compat::config::{Isolation, Protocol};
use openwhisk_compat::message::InvokerInstanceId;
use openwhisk_compat::name::health_topic;
use openwhisk_compat::store::{
    ActionSettings, Blacklist, Couch, CouchActions, CouchWriter, Observer, WriterSettings,
};
use tokio_util::sync::CancellationToken;

use crate::activation::admit::Admission;
use crate::activation::execute::Executor;
use crate::activation::record::now_ms;
use crate::activation::{Acks, Answers, Asker, AtOnce, Note};
use crate::bus::kafka::Kafka;
use crate::bus::{Bus, StartAt};
use crate::container::docker::DockerBackend;
use crate::container::{ContainerBackend, Containers};
use crate::dispatch::keeper::{ContainerKeepers, Shared};
use crate::dispatch::{Dispatcher, Input, Parts as DispatchParts, Reports};
use crate::errors::chain;
use crate::feed::{Feed, Handed, Parts as FeedParts};
use crate::health::Health;
use crate::http::{HttpSettings, HttpsSettings, Server};
use crate::id::{self, IdChoice};
use crate::journal::{Journal, Origin, Recovered};
use crate::metrics::{Metrics, Naming};
use crate::settings::Settings;
use crate::shutdown::{self, Running, Signals};

/// Why the invoker does not start, or ended otherwise than asked.
pub type StartError = Box<dyn std::error::Error + Send + Sync>;

/// A failed start gives up after this, whatever hangs (contract 1.1: abort within 30 s).
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Runs the invoker until it is told to end.
///
/// # Errors
/// What kept it from starting.
pub async fn run(settings: Settings) -> Result<(), StartError> {
    let begun = Instant::now();
    // First of all, so that a signal during the start ends it.
    let mut signals = Signals::listen()?;
    let running = tokio::select! {
        started = tokio::time::timeout(START_DEADLINE, start(&settings)) => {
            started.map_err(|_| format!("the start was not complete after {} s", START_DEADLINE.as_secs()))??
        }
        () = signals.next() => return Err("told to end before the start was complete".into()),
    };
    tracing::info!(after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX), "invoker started");
    shutdown::wait_and_end(running, signals, settings.config.rewind.drain_timeout).await;
    Ok(())
}

async fn start(settings: &Settings) -> Result<Running, StartError> {
    let config = &settings.config;
    announce_isolation(settings)?;
    let id = id::choose(&IdChoice {
        id: settings.args.id(),
        unique_name: settings.args.unique_name().map(str::to_owned),
        overwrite: settings.args.overwrite_id(),
        zookeeper_hosts: config.openwhisk.zookeeper_hosts.clone(),
    })
    .await?;
    let instance = settings.instance(id);
    let topic = settings.topic(id);
    tracing::info!(
        invoker = %instance,
        topic = topic.name,
        memory_mb = config.pool.user_memory.mb(),
        capacity = settings.capacity(),
        "starting"
    );

    let metrics = Metrics::new(&Naming { tagged: config.openwhisk.metrics_tags, topic: topic.name.clone() })?;
    metrics.isolation(settings.isolation.name());
    metrics.build_info(env!("CARGO_PKG_VERSION"), settings.engine.name());

    // Kafka and the container engine do not know each other: neither waits for the other.
    let (bus, backend) = tokio::try_join!(connect_bus(settings, &topic), connect_engine(settings, &instance))?;
    metrics.backend_up(true);
    let (journal, recovered) =
        Journal::open(&settings.journal_dir(&topic.name), Origin { bus: bus.identity(), topic: topic.name.clone() })?;
    let journal = Arc::new(journal);

    let observer: Arc<dyn Observer> = Arc::new(crate::metrics::StoreObserver(Arc::clone(&metrics)));
    let couch = Couch::new(settings.couch())?;
    let databases = &config.couchdb;
    let writer = CouchWriter::start(
        couch.database(&databases.database_activation),
        WriterSettings::default(),
        Arc::clone(&observer),
    );
    let actions = CouchActions::new(
        couch.database(&databases.database_entity),
        Arc::new(settings.read_context()),
        &ActionSettings::default(),
        Arc::clone(&observer),
    );
    let blacklist = Blacklist::default();
    let poll = blacklist.clone().poll(
        couch.database(&databases.database_auth),
        config.openwhisk.blacklist_poll_interval,
        Arc::clone(&observer),
    );
    tokio::spawn(poll);

    let acks = Acks::new(
        bus.producer(),
        instance.clone(),
        config.kafka.topics_prefix.clone(),
        settings.events_topic(),
        Arc::clone(&metrics),
    );
    let answers = Arc::new(Answers::new(acks, Arc::new(writer), settings.store_policy(), Arc::clone(&journal)));
    answer_cut_off(&recovered, &answers, &metrics);

    let cut_off = CancellationToken::new();
    let (reports, inbox) = Reports::channel();
    let keepers = ContainerKeepers(Arc::new(Shared {
        containers: Containers::new(Arc::clone(&backend), settings.warden()),
        executor: Executor::new(settings.execute(), Arc::clone(&answers), Arc::clone(&metrics), cut_off.clone()),
        reports: reports.clone(),
        metrics: Arc::clone(&metrics),
        isolation: settings.pool_isolation(),
        images: settings.images(&instance),
        stem_cells: settings.pool().stem_cells,
        stem_check: settings.stem_ping(),
    }));

    let server = Server::bind(
        http_settings(settings),
        instance.clone(),
        health_of(settings, &instance, &bus, &backend, &metrics)?,
        Arc::clone(&metrics),
    )
    .await?;

    let admission = Arc::new(Admission {
        blacklist,
        actions: Arc::new(actions),
        bounds: config.limit_bounds(),
        keys: settings.keys.clone(),
    });
    let start_at = recovered.next.map_or(StartAt::Committed, StartAt::AtLeast);
    let feed = Arc::new(Feed::start(FeedParts {
        consumer: bus.consumer(&topic.name, start_at)?,
        journal: Arc::clone(&journal),
        sink: sink(admission, Arc::clone(&answers), reports.clone(), Arc::clone(&metrics)),
        capacity: settings.capacity(),
        lag_interval: config.kafka.consumer_lag_check_interval,
        metrics: Arc::clone(&metrics),
    })?);
    let permits = Arc::clone(&feed);
    let dispatcher = tokio::spawn(
        Dispatcher::new(DispatchParts {
            pool: settings.pool(),
            keepers,
            answers: Arc::clone(&answers),
            permit: Box::new(move |count| permits.permit(count)),
            inbox,
            metrics: Arc::clone(&metrics),
        })
        .run(),
    );
    todo!()
}
