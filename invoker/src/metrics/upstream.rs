//! The JVM invoker's metrics under the names they had in Prometheus (contract section 8).
//!
//! A marker has a component, an action and a state (`invoker`, `activationRun`, `start`).
//! Kamon's reporter turned `started` into a counter, `finished` into a histogram of seconds and `failed` into
//! both; a sub-action (`run` of `docker run`) is a label in the tagged form and part of the name otherwise.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use openwhisk_compat::store::Operation;
use prometheus::{Gauge, Histogram, IntCounter};

use super::families::{Families, Labels};
use super::{Metrics, Naming, UPSTREAM_COUNTS, UPSTREAM_SECONDS, seconds};

/// Most label sets of `containerStart`; what comes after is counted under `_other`.
/// Upstream has no bound; a node that sees this many actions would otherwise grow with every one of them.
pub const CONTAINER_START_SERIES_MAX: usize = 10_000;

/// Start states of contract 6.2; pre-registered in the untagged form.
const START_STATES: &[&str] =
    &["warmed", "warming", "warmingCold", "prewarmed", "cold", "recreated", "recreatedPrewarm"];

/// Commands to Docker that upstream times; we speak to the Engine API and keep the names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the docker command of that name")]
pub enum DockerCommand {
    Run,
    Rm,
    Pull,
    Ps,
    Inspect,
    Pause,
    Unpause,
    Version,
}

/// Commands to runc that upstream times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the runc command of that name")]
pub enum RuncCommand {
    Pause,
    Resume,
}

/// Operations on the store that upstream times.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "each variant is the operation of that name in contract 8.2")]
pub enum StoreOperation {
    SaveDocument,
    SaveDocumentBulk,
    GetDocument,
    QueryView,
    GetDocumentAttachment,
}

/// A timed step: `started`, then `finished` or `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Step {
    /// `POST /init` of a container.
    ActivationInit,
    /// `POST /run` of a container.
    ActivationRun,
    /// Collecting the log lines of one activation.
    CollectLogs,
    /// A command to Docker.
    Docker(DockerCommand),
    /// A command to runc.
    Runc(RuncCommand),
    /// An operation on the store.
    Database(StoreOperation),
}

impl Step {
    /// Every step.
    pub const ALL: &[Self] = &[
        Self::ActivationInit,
        Self::ActivationRun,
        Self::CollectLogs,
        Self::Docker(DockerCommand::Run),
        Self::Docker(DockerCommand::Rm),
        Self::Docker(DockerCommand::Pull),
        Self::Docker(DockerCommand::Ps),
        Self::Docker(DockerCommand::Inspect),
        Self::Docker(DockerCommand::Pause),
        Self::Docker(DockerCommand::Unpause),
        Self::Docker(DockerCommand::Version),
        Self::Runc(RuncCommand::Pause),
        Self::Runc(RuncCommand::Resume),
        Self::Database(StoreOperation::SaveDocument),
        Self::Database(StoreOperation::SaveDocumentBulk),
        Self::Database(StoreOperation::GetDocument),
        Self::Database(StoreOperation::QueryView),
        Self::Database(StoreOperation::GetDocumentAttachment),
    ];

    /// Component and action, then the sub-action if there is one.
    fn marker(self) -> (&'static str, Option<&'static str>) {
        match self {
            Self::ActivationInit => ("invoker_activationInit", None),
            Self::ActivationRun => ("invoker_activationRun", None),
            Self::CollectLogs => ("invoker_collectLogs", None),
            Self::Docker(command) => (
                "invoker_docker",
                Some(match command {
                    DockerCommand::Run => "run",
                    DockerCommand::Rm => "rm",
                    DockerCommand::Pull => "pull",
                    DockerCommand::Ps => "ps",
                    DockerCommand::Inspect => "inspect",
                    DockerCommand::Pause => "pause",
                    DockerCommand::Unpause => "unpause",
                    DockerCommand::Version => "version",
                }),
            ),
            Self::Runc(command) => (
                "invoker_runc",
                Some(match command {
                    RuncCommand::Pause => "pause",
                    RuncCommand::Resume => "resume",
                }),
            ),
            Self::Database(operation) => (
                match operation {
                    StoreOperation::SaveDocument => "database_saveDocument",
                    StoreOperation::SaveDocumentBulk => "database_saveDocumentBulk",
                    StoreOperation::GetDocument => "database_getDocument",
                    StoreOperation::QueryView => "database_queryView",
                    StoreOperation::GetDocumentAttachment => "database_getDocumentAttachment",
                },
                None,
            ),
        }
    }
}

/// The pool's numbers, as upstream publishes them every 10 s.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PoolGauges {
    /// Jobs waiting in the run buffer.
    pub run_buffer: u64,
    /// Memory they ask for, MB.
    pub run_buffer_mb: u64,
    /// Containers with an activation in flight.
    pub active: u64,
    /// Their memory, MB.
    pub active_mb: u64,
    /// Stem cells, ready or being started.
    pub prewarm: u64,
    /// Their memory, MB.
    pub prewarm_mb: u64,
    /// Warm containers without an activation in flight.
    pub idle: u64,
    /// Their memory, MB.
    pub idle_mb: u64,
}

/// The four series of one step.
#[derive(Debug)]
struct Quartet {
    start: IntCounter,
    finish: Histogram,
    error: IntCounter,
    error_seconds: Histogram,
}

/// A step under way. Dropped without an end it counts as started only, as upstream's markers do.
#[derive(Debug)]
#[must_use = "a span that is never finished or failed has no duration"]
pub struct Span {
    quartet: Option<Arc<Quartet>>,
    began: Instant,
}

impl Span {
    /// The step ended well; gives what it took.
    pub fn finished(self) -> Duration {
        let took = self.began.elapsed();
        if let Some(quartet) = &self.quartet {
            quartet.finish.observe(seconds(took));
        }
        took
    }

    /// The step failed; gives what it took.
    pub fn failed(self) -> Duration {
        let took = self.began.elapsed();
        if let Some(quartet) = &self.quartet {
            quartet.error.inc();
            quartet.error_seconds.observe(seconds(took));
        }
        took
    }

    /// Ends well or not, by `ok`.
    pub fn ended(self, ok: bool) -> Duration {
        if ok { self.finished() } else { self.failed() }
    }
}

/// Pool gauges in the order of [`PoolGauges`].
#[derive(Debug)]
struct PoolSeries([Gauge; 8]);

#[derive(Debug)]
pub(super) struct Upstream {
    families: Arc<Families>,
    tagged: bool,
    activation_start: IntCounter,
    steps: HashMap<Step, Arc<Quartet>>,
    /// Tagged form: series by state, initiator, namespace and action, at most
    /// [`CONTAINER_START_SERIES_MAX`] of them; what comes later shares one series per state.
    container_start: Mutex<HashMap<String, IntCounter>>,
    /// Untagged form: one series per state.
    container_start_glued: HashMap<&'static str, IntCounter>,
    retries: Histogram,
    rescheduled: IntCounter,
    pool: PoolSeries,
    lag: Gauge,
    delay: Histogram,
    cache_hit: IntCounter,
    cache_miss: IntCounter,
    batch: Histogram,
}

/// Characters that Prometheus does not take in a name become `_`, as Kamon does it.
fn word(text: &str) -> String {
    text.chars().map(|c| if c.is_ascii_alphanumeric() || c == '_' { c } else { '_' }).collect()
}

impl Upstream {
    pub(super) fn new(families: Arc<Families>, naming: &Naming) -> Result<Self, prometheus::Error> {
        let mut steps = HashMap::new();
        for step in Step::ALL {
            steps.insert(*step, Arc::new(Self::quartet(&families, naming.tagged, *step)?));
        }

        let mut container_start_glued = HashMap::new();
        if !naming.tagged {
            for state in START_STATES {
                let name = format!("counter_invoker_containerStart_{state}_counter_total");
                container_start_glued
                    .insert(*state, families.counter(&name, "Containers given to an activation.", &[])?);
            }
        }

        let size = |what: &str, unit: &str, help: &str| {
            families.gauge(&format!("gauge_containerPool_{what}_counter{unit}"), help, &[])
        };
        let pool = PoolSeries([
            size("runBufferCount", "", "Jobs in the run buffer.")?,
            size("runBufferSize", "_bytes", "Memory the run buffer asks for.")?,
            size("activeCount", "", "Containers with an activation in flight.")?,
            size("activeSize", "_bytes", "Memory of containers with an activation in flight.")?,
            size("prewarmCount", "", "Stem cells.")?,
            size("prewarmSize", "_bytes", "Memory of stem cells.")?,
            size("idlesCount", "", "Warm containers that are idle.")?,
            size("idlesSize", "_bytes", "Memory of warm containers that are idle.")?,
        ]);

        let topic = naming.topic.as_str();
        let tag: Labels<'_> = &[("topic", topic)];
        let glued = word(topic);
        let (lag_name, delay_name, labels) = if naming.tagged {
            ("gauge_kafka_topic_counter".to_owned(), "histogram_kafka_topic_start_seconds".to_owned(), tag)
        } else {
            let none: Labels<'_> = &[];
            (
                format!("gauge_kafka_{glued}_counter"),
                format!("histogram_kafka_{glued}_delay_start_seconds"),
                none,
            )
        };
        let counter = |name: &str, help: &str| families.counter(name, help, &[]);

        Ok(Self {
            tagged: naming.tagged,
            activation_start: counter(
                "counter_invoker_activation_start_total",
                "Activation messages accepted.",
            )?,
            steps,
            container_start: Mutex::default(),
            container_start_glued,
            retries: families.histogram(
                "histogram_containerClient_retries_counter",
                "Retries of one request to a container.",
                &[],
                UPSTREAM_COUNTS,
            )?,
            rescheduled: counter(
                "counter_containerPool_rescheduledActivation_counter_total",
                "Jobs put into the run buffer.",
            )?,
            pool,
            lag: families.gauge(&lag_name, "Messages of the topic not yet taken.", labels)?,
            delay: families.histogram(
                &delay_name,
                "From a message's record time to its poll.",
                labels,
                UPSTREAM_SECONDS,
            )?,
            cache_hit: counter("counter_database_cacheHit_counter_total", "Actions found in the cache.")?,
            cache_miss: counter("counter_database_cacheMiss_counter_total", "Actions not in the cache.")?,
            batch: families.histogram(
                "histogram_database_batchSize_counter",
                "Documents per bulk write.",
                &[],
                UPSTREAM_COUNTS,
            )?,
            families,
        })
    }

    fn quartet(families: &Families, tagged: bool, step: Step) -> Result<Quartet, prometheus::Error> {
        let (marker, sub) = step.marker();
        let value = sub.unwrap_or_default();
        let tag: Labels<'_> = &[("cmd", value)];
        let (stem, labels) = match sub {
            Some(_) if tagged => (marker.to_owned(), tag),
            Some(sub) => {
                let none: Labels<'_> = &[];
                (format!("{marker}_{sub}"), none)
            }
            None => {
                let none: Labels<'_> = &[];
                (marker.to_owned(), none)
            }
        };
        Ok(Quartet {
            start: families.counter(&format!("counter_{stem}_start_total"), "Steps begun.", labels)?,
            finish: families.histogram(
                &format!("histogram_{stem}_finish_seconds"),
                "Steps that ended well.",
                labels,
                UPSTREAM_SECONDS,
            )?,
            error: families.counter(&format!("counter_{stem}_error_total"), "Steps that failed.", labels)?,
            error_seconds: families.histogram(
                &format!("histogram_{stem}_error_seconds"),
                "Steps that failed.",
                labels,
                UPSTREAM_SECONDS,
            )?,
        })
    }
}

impl Metrics {
    /// An activation message was accepted (`invoker_activation_start`).
    pub fn activation_started(&self) {
        self.upstream.activation_start.inc();
    }

    /// Begins a step; end it by [`Span::finished`] or [`Span::failed`].
    pub fn start(&self, step: Step) -> Span {
        let quartet = self.upstream.steps.get(&step).cloned();
        if let Some(quartet) = &quartet {
            quartet.start.inc();
        }
        Span { quartet, began: Instant::now() }
    }

    /// A whole step measured elsewhere.
    pub fn step(&self, step: Step, took: Duration, ok: bool) {
        let Some(quartet) = self.upstream.steps.get(&step) else { return };
        quartet.start.inc();
        if ok {
            quartet.finish.observe(seconds(took));
        } else {
            quartet.error.inc();
            quartet.error_seconds.observe(seconds(took));
        }
    }

    /// A container was given to an activation.
    ///
    /// `state` is one of `warmed`, `warming`, `warmingCold`, `prewarmed`, `cold`, `recreated`,
    /// `recreatedPrewarm` (contract 6.2); `initiator` is the invoking namespace; `namespace` is the action's
    /// path with its package.
    pub fn container_start(&self, state: &'static str, initiator: &str, namespace: &str, action: &str) {
        let upstream = &self.upstream;
        if !upstream.tagged {
            if let Some(counter) = upstream.container_start_glued.get(state) {
                counter.inc();
            }
            return;
        }
        // A blank is in none of the four, so the key is unique.
        let key = format!("{state} {initiator} {namespace} {action}");
        let mut known = upstream.container_start.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(series) = known.get(&key) {
            series.inc();
            return;
        }
        let full = known.len() >= CONTAINER_START_SERIES_MAX;
        let (action, initiator, namespace) =
            if full { ("_other", "_other", "_other") } else { (action, initiator, namespace) };
        let series = upstream.families.counter(
            "counter_invoker_containerStart_counter_total",
            "Containers given to an activation, by how they were found.",
            &[
                ("action", action),
                ("containerState", state),
                ("initiator", initiator),
                ("namespace", namespace),
            ],
        );
        if let Ok(series) = series {
            series.inc();
            if !full {
                known.insert(key, series);
            }
        }
    }

    /// A container refused or broke its connection where it should have served; `state` is `warm` or `prewarm`.
    pub fn container_health_failed(&self, state: &'static str) {
        let (name, labels): (_, Labels<'_>) = if self.upstream.tagged {
            ("counter_invoker_containerHealthFailed_counter_total".to_owned(), &[("containerState", state)])
        } else {
            (format!("counter_invoker_containerHealthFailed_{state}_counter_total"), &[])
        };
        if let Ok(series) = self.upstream.families.counter(&name, "Containers found unhealthy.", labels) {
            series.inc();
        }
    }

    /// Retries of one `/init`; `/run` is never tried again (contract 5.4).
    pub fn client_retries(&self, retries: u32) {
        self.upstream.retries.observe(f64::from(retries));
    }

    /// A job went to the run buffer.
    pub fn rescheduled(&self) {
        self.upstream.rescheduled.inc();
    }

    /// Sets the pool's gauges.
    pub fn pool(&self, now: &PoolGauges) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "a gauge is a float; counts and bytes stay far below 2^53"
        )]
        let values = [
            now.run_buffer as f64,
            (now.run_buffer_mb << 20) as f64,
            now.active as f64,
            (now.active_mb << 20) as f64,
            now.prewarm as f64,
            (now.prewarm_mb << 20) as f64,
            now.idle as f64,
            (now.idle_mb << 20) as f64,
        ];
        for (gauge, value) in self.upstream.pool.0.iter().zip(values) {
            gauge.set(value);
        }
    }

    /// A cold start of a kind and memory for which stem cells are configured.
    pub fn prewarm_cold_start(&self, kind: &str, memory_mb: u64) {
        self.prewarm("prewarmColdstart", "Cold starts where a stem cell could have served.", kind, memory_mb);
    }

    /// A stem cell was removed because its time was up.
    pub fn prewarm_expired(&self, kind: &str, memory_mb: u64) {
        self.prewarm("prewarmExpired", "Stem cells removed at the end of their time.", kind, memory_mb);
    }

    fn prewarm(&self, what: &str, help: &str, kind: &str, memory_mb: u64) {
        let memory = format!("{memory_mb} MB");
        let labels: Labels<'_> =
            if self.upstream.tagged { &[("kind", kind), ("memory", &memory)] } else { &[] };
        let name = format!("counter_containerPool_{what}_counter_total");
        if let Ok(series) = self.upstream.families.counter(&name, help, labels) {
            series.inc();
        }
    }

    /// How many messages of the topic are not yet taken.
    pub fn lag(&self, messages: u64) {
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        self.upstream.lag.set(messages as f64);
    }

    /// From a message's record time to its poll.
    pub fn delay(&self, delay: Duration) {
        self.upstream.delay.observe(seconds(delay));
    }

    /// One request to the invoker's own HTTP server.
    pub fn http(&self, method: &str, status: u16, took: Duration) {
        let method = match method {
            "GET" => "get",
            "POST" => "post",
            "PUT" => "put",
            "DELETE" => "delete",
            "HEAD" => "head",
            "OPTIONS" => "options",
            // The method is a word of the caller's choice; an open set of them would be an open set of names.
            _ => "other",
        };
        let status = status.to_string();
        let (stem, labels): (_, Labels<'_>) = if self.upstream.tagged {
            (format!("http_{method}"), &[("statusCode", &status)])
        } else {
            (format!("http_{method}_{status}"), &[])
        };
        let families = &self.upstream.families;
        if let Ok(series) =
            families.counter(&format!("counter_{stem}_counter_total"), "Requests answered.", labels)
        {
            series.inc();
        }
        if let Ok(series) = families.histogram(
            &format!("histogram_{stem}_counter_seconds"),
            "Time to answer a request.",
            labels,
            UPSTREAM_SECONDS,
        ) {
            series.observe(seconds(took));
        }
    }

    /// An action was looked up in the cache.
    pub fn cache(&self, hit: bool) {
        if hit { self.upstream.cache_hit.inc() } else { self.upstream.cache_miss.inc() }
    }

    /// Documents of one bulk write.
    pub fn batch(&self, documents: usize) {
        #[expect(clippy::cast_precision_loss, reason = "a batch has at most 500 documents")]
        self.upstream.batch.observe(documents as f64);
    }
}

impl openwhisk_compat::store::Observer for Metrics {
    fn ended(&self, operation: Operation, took: Duration, ok: bool) {
        let operation = match operation {
            Operation::SaveDocument => StoreOperation::SaveDocument,
            Operation::SaveDocumentBulk => StoreOperation::SaveDocumentBulk,
            Operation::GetDocument => StoreOperation::GetDocument,
            Operation::QueryView => StoreOperation::QueryView,
            Operation::GetDocumentAttachment => StoreOperation::GetDocumentAttachment,
        };
        self.step(Step::Database(operation), took, ok);
    }

    fn cache(&self, hit: bool) {
        Self::cache(self, hit);
    }

    fn batch(&self, documents: usize) {
        Self::batch(self, documents);
    }

    fn waiting(&self, records: usize) {
        self.store_waiting(records);
    }

    fn lost(&self) {
        self.store_lost(1);
    }
}
