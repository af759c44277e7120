//! The invoker, from its configuration to its end: the one place where the parts are put together.
//!
//! Order at start (contract 1.4): configuration, engine, id, own topic and producer, containers (and
//! what is left of an earlier process), journal, store, pool, answers to what a crash cut off, HTTP port,
//! feed, pings. Whatever fails says so and ends the process with status 1; nothing has been taken then.
//!
//! Leftovers are removed beside all that, which would otherwise wait for it longer than for anything else
//! after a crash. The pool knows of them as of containers under destruction, and their names are not used
//! again. One that cannot be removed ends the invoker, now or later.

use std::net::{Ipv4Addr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join_all;
use futures::{FutureExt as _, StreamExt as _, TryStreamExt as _};
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
use crate::activation::user_logs::UserLogs;
use crate::activation::{Acks, Answers, Asker, AtOnce, Note};
use crate::bus::kafka::Kafka;
use crate::bus::{Bus, StartAt, TopicSpec};
use crate::container::docker::DockerBackend;
use crate::container::{ContainerBackend, Containers, Leftover, SWEEP_PARALLEL, SWEEP_WITHIN};
use crate::dispatch::keeper::{ContainerKeepers, Shared};
use crate::dispatch::{Dispatcher, Input, Parts as DispatchParts, Reports};
use crate::errors::chain;
use crate::feed::{Feed, Handed, Parts as FeedParts};
use crate::health::Health;
use crate::http::{HttpSettings, HttpsSettings, Server};
use crate::id::{self, IdChoice};
use crate::journal::{Journal, Origin, Progress, Recovered};
use crate::metrics::backend::Metered;
use crate::metrics::{Metrics, Naming};
use crate::pool::{ContainerId, Event};
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
    tracing::info!(
        after_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        "invoker started"
    );
    shutdown::wait_and_end(running, signals, settings.config.rewind.drain_timeout).await
}

async fn start(settings: &Settings) -> Result<Running, StartError> {
    let config = &settings.config;
    let store = settings.couch();
    // Reads all certificates that the system trusts, which takes longer than the rest: begun first, and beside it.
    let couch = tokio::task::spawn_blocking(|| Couch::new(store));
    announce_isolation(settings)?;
    for variable in openwhisk_compat::config::Settings::unread_in_process() {
        tracing::warn!(variable, "looks like a setting and is none, see docs/configuration.md");
    }
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
    let (bus, (backend, leftovers)) =
        tokio::try_join!(connect_bus(settings, &topic), connect_engine(settings, &instance, &metrics))?;
    metrics.backend_up(true);
    let (journal, recovered) = Journal::open(
        &settings.journal_dir(&topic.name),
        Origin { bus: bus.identity(), topic: topic.name.clone() },
    )?;
    let journal = Arc::new(journal);

    let observer: Arc<dyn Observer> = Arc::<Metrics>::clone(&metrics);
    let couch = couch.await??;
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
    let answers =
        Arc::new(Answers::new(acks, Arc::new(writer), settings.store_policy(), Arc::clone(&journal)));
    answer_cut_off(&recovered, &answers, &metrics);

    let cut_off = CancellationToken::new();
    let (reports, inbox) = Reports::channel();
    let keepers = ContainerKeepers(Arc::new(Shared {
        containers: Containers::new(Arc::clone(&backend), settings.warden()),
        executor: Executor::new(
            settings.execute(),
            Arc::clone(&answers),
            Arc::clone(&metrics),
            settings.user_logs_dir().map(UserLogs::start).transpose()?,
            cut_off.clone(),
        ),
        reports: reports.clone(),
        metrics: Arc::clone(&metrics),
        isolation: settings.pool_isolation(),
        images: settings.images(&instance),
        stem_cells: settings.pool().stem_cells,
        stem_check: settings.stem_ping(),
    }));

    let (health, server) = open_to_the_outside(settings, &instance, &bus, &backend, &metrics).await?;

    let admission = Arc::new(Admission {
        blacklist,
        actions: Arc::new(actions),
        bounds: config.limit_bounds(),
        keys: settings.keys.clone(),
    });
    let start_at = recovered.next.map_or(StartAt::Committed, StartAt::AtLeast);
    let feed = Arc::new(Feed::start(FeedParts {
        consumer: bus.consumer(&topic.name, start_at)?,
        journal,
        sink: sink(admission, Arc::clone(&answers), reports.clone(), Arc::clone(&metrics)),
        capacity: settings.capacity(),
        lag_interval: config.kafka.consumer_lag_check_interval,
        metrics: Arc::clone(&metrics),
    })?);
    let permits = Arc::clone(&feed);
    let mut dispatcher = Dispatcher::new(DispatchParts {
        pool: settings.pool(),
        keepers,
        answers: Arc::clone(&answers),
        permit: Box::new(move |count| permits.permit(count)),
        inbox,
        metrics,
    });
    let newest = leftovers.iter().filter_map(|one| one.number).max().unwrap_or(0);
    let adopted = dispatcher.adopt(newest, leftovers.len()).into_iter().zip(leftovers).collect();
    let sweep = tokio::spawn(remove(adopted, Arc::clone(&backend), reports.clone()));
    let stop_http = CancellationToken::new();
    let http = tokio::spawn(server.serve(stop_http.clone().cancelled_owned()));
    Ok(Running {
        health,
        feed,
        reports,
        dispatcher: tokio::spawn(dispatcher.run()),
        sweep,
        cut_off,
        answers,
        backend,
        stop_http,
        http,
    })
}

/// Says what the chosen isolation means, and refuses what this machine cannot give.
fn announce_isolation(settings: &Settings) -> Result<(), StartError> {
    match settings.isolation {
        Isolation::Rewind => {
            let features = snapshot::probe();
            tracing::info!("this machine:\n{features}");
            if !features.pagemap() {
                let missing: Vec<&str> = features.missing().map(|feature| feature.name).collect();
                return Err(format!(
                    "containers cannot be rewound on this machine, which lacks: {} (`rewind check` says how to get it); \
                     `--isolation single-use` destroys each container after its request instead",
                    missing.join(", ")
                )
                .into());
            }
        }
        Isolation::SingleUse => {
            tracing::info!("isolation is single-use: every container is destroyed after one request");
        }
        Isolation::None => tracing::warn!(
            "isolation is OFF: what one request leaves in a container, the next one finds, as with the classic invoker"
        ),
    }
    Ok(())
}

async fn connect_bus(settings: &Settings, topic: &TopicSpec) -> Result<Kafka, StartError> {
    let bus = Kafka::connect(settings.kafka()).await?;
    bus.ensure_topic(topic).await?;
    Ok(bus)
}

/// Connects to the container engine and looks for what an earlier process left.
async fn connect_engine(
    settings: &Settings,
    instance: &InvokerInstanceId,
    metrics: &Arc<Metrics>,
) -> Result<(Arc<dyn ContainerBackend>, Vec<Leftover>), StartError> {
    let backend = DockerBackend::connect(settings.docker(instance)).await?;
    let backend = Metered::new(Arc::new(backend), Arc::clone(metrics));
    tracing::info!("{}", backend.describe());
    let leftovers = backend.leftovers().await?;
    Ok((Arc::new(backend), leftovers))
}

/// Removes what an earlier process left, and tells the dispatcher of each.
async fn remove(
    leftovers: Vec<(ContainerId, Leftover)>,
    backend: Arc<dyn ContainerBackend>,
    reports: Reports,
) -> Result<(), StartError> {
    if leftovers.is_empty() {
        return Ok(());
    }
    let count = leftovers.len();
    let ids: Vec<_> = leftovers.iter().map(|(id, _)| *id).collect();
    let removals = futures::stream::iter(leftovers)
        .map(|(id, one)| {
            let (backend, reports) = (&backend, &reports);
            async move {
                backend.remove_leftover(&one).await.map_err(|error| {
                    format!("leftover container {} cannot be removed: {}", one.name, chain(&error))
                })?;
                reports.event(Event::Removed { container: id });
                Ok::<_, String>(())
            }
        })
        .buffer_unordered(SWEEP_PARALLEL)
        .try_collect::<()>();
    let outcome = match tokio::time::timeout(SWEEP_WITHIN, removals).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("leftover containers were not removed within {} s", SWEEP_WITHIN.as_secs())),
    };
    match &outcome {
        Ok(()) => tracing::info!(count, "leftover containers removed"),
        // The process is about to end and must not wait for them. Those that are gone are told twice.
        Err(_) => ids.into_iter().for_each(|container| reports.event(Event::Removed { container })),
    }
    Ok(outcome?)
}

/// Begins to ping, and takes the HTTP port.
async fn open_to_the_outside(
    settings: &Settings,
    instance: &InvokerInstanceId,
    bus: &Kafka,
    backend: &Arc<dyn ContainerBackend>,
    metrics: &Arc<Metrics>,
) -> Result<(Health, Server), StartError> {
    let probed = Arc::clone(backend);
    let health = Health::start(
        instance.clone(),
        health_topic(&settings.config.kafka.topics_prefix),
        bus.producer(),
        Arc::new(move || {
            let backend = Arc::clone(&probed);
            async move { backend.ping().await.map_err(|error| chain(&error)) }.boxed()
        }),
        Arc::clone(metrics),
    )?;
    match Server::bind(http_settings(settings), instance.clone(), health.clone(), Arc::clone(metrics)).await {
        Ok(server) => {
            tracing::info!(address = %server.address(), "listening");
            Ok((health, server))
        }
        Err(error) => {
            // The controller may have heard of us already.
            let _ = tokio::time::timeout(Duration::from_secs(2), health.withdraw()).await;
            Err(error.into())
        }
    }
}

fn http_settings(settings: &Settings) -> HttpSettings {
    let (config, server) = (&settings.config, &settings.config.server);
    let https = (server.protocol == Protocol::Https).then(|| HttpsSettings {
        keystore_path: server.keystore_path.clone().unwrap_or_default().into(),
        keystore_password: server
            .keystore_password
            .as_ref()
            .map_or("", |password| password.reveal())
            .to_owned(),
        client_auth: server.client_auth.unwrap_or(false),
    });
    HttpSettings {
        address: SocketAddr::from((Ipv4Addr::UNSPECIFIED, config.openwhisk.port)),
        username: server.username.clone(),
        password: server.password.reveal().to_owned(),
        transaction_header: config.openwhisk.transaction_header.clone(),
        metrics: config.openwhisk.metrics_enabled,
        https,
    }
}

/// Settles what the last process took and did not settle. Nothing of it is run (design section 9).
fn answer_cut_off(recovered: &Recovered, answers: &Answers, metrics: &Metrics) {
    for entry in &recovered.open {
        let note = match Note::read(&entry.note) {
            Ok(note) => note,
            Err(error) => {
                tracing::error!(offset = entry.offset, %error, "note of a cut-off activation cannot be read");
                answers.forget(entry.key);
                continue;
            }
        };
        tracing::warn!(
            tid = note.transid.id(),
            activation = note.activation_id.as_str(),
            progress = ?entry.progress,
            "activation was cut off by the end of the last process, settled now"
        );
        metrics.recovered();
        let user = note.user();
        let asker = Asker {
            transid: &note.transid,
            controller: &note.controller,
            blocking: note.blocking,
            user: &user,
        };
        let record = note.cut_off(entry.progress, now_ms());
        match entry.progress {
            Progress::Taken | Progress::Started => {
                answers.at_once(entry.key, &asker, record, AtOnce::Combined);
            }
            Progress::Acked => answers.record(entry.key, &asker, record),
        }
    }
}

/// What the feed does with activations: admission, then to the dispatcher.
fn sink(
    admission: Arc<Admission>,
    answers: Arc<Answers>,
    reports: Reports,
    metrics: Arc<Metrics>,
) -> Box<dyn Fn(Vec<Handed>) + Send> {
    let runtime = tokio::runtime::Handle::current();
    let admit = move |handed: Handed| {
        let (admission, answers, reports) = (Arc::clone(&admission), Arc::clone(&answers), reports.clone());
        async move {
            match admission.admit(handed).await {
                Ok(activation) => reports.tell(Input::Job(Box::new(activation))),
                Err(refused) => {
                    let (handed, refusal) = *refused;
                    refusal.answer(&handed, &answers);
                    reports.tell(Input::Settled);
                }
            }
        }
    };
    Box::new(move |handed| {
        for _ in &handed {
            metrics.activation_started();
        }
        // One task for all: waking the runtime from outside costs more than what it is woken for. They are
        // begun in order, none waits for another, and what breaks one does not break another.
        let all = handed.into_iter().map(|one| AssertUnwindSafe(admit(one)).catch_unwind());
        runtime.spawn(join_all(all));
    })
}
