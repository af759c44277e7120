//! What the invoker counts, in Prometheus form.
//!
//! Two families side by side.
//! [`upstream`] keeps the names that operators' boards already hold: they are what Kamon's Prometheus
//! reporter made of the JVM invoker's markers (contract section 8).
//! [`ours`] adds `rewind_*`: what rollback costs, what it found, and which containers it gave up.
//!
//! Every method is cheap (an atomic add, for labelled series behind a read lock), never blocks on IO, and
//! never fails: a series that cannot be registered is left out rather than allowed to stop an activation.
//! [`Metrics::render`] gives the text of format version 0.0.4.

pub mod backend;
mod families;
pub mod ours;
mod process;
pub mod upstream;

use std::sync::Arc;
use std::time::Duration;

use prometheus::{Encoder, Registry, TextEncoder};

use families::Families;
pub use ours::{PoolStates, RewindSample};
pub use upstream::{DockerCommand, PoolGauges, RuncCommand, Span, Step, StoreOperation};

/// Content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4";

/// How metrics are named.
#[derive(Debug, Clone)]
pub struct Naming {
    /// `METRICS_KAMON_TAGS`: sub-actions as labels (the form the shipped dashboards need) instead of glued to
    /// the name (contract 8.1).
    pub tagged: bool,
    /// The topic this invoker reads (`<prefix>invoker<N>`); names or labels the lag and the delay.
    pub topic: String,
}

/// Everything the invoker counts. Shared as `Arc<Metrics>`.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    upstream: upstream::Upstream,
    ours: ours::Ours,
    process: process::Process,
}

impl Metrics {
    /// Registers every series whose labels are known beforehand, so that a rate exists from the first scrape.
    ///
    /// # Errors
    /// Fails only when two series claim one name, which is a mistake in this module.
    pub fn new(naming: &Naming) -> Result<Arc<Self>, prometheus::Error> {
        let registry = Registry::new();
        let families = Arc::new(Families::new(registry.clone()));
        Ok(Arc::new(Self {
            upstream: upstream::Upstream::new(Arc::clone(&families), naming)?,
            ours: ours::Ours::new(&families)?,
            process: process::Process::new(&families)?,
            registry,
        }))
    }

    /// For tests and tools that need a `Metrics` and look at nothing in it.
    ///
    /// # Panics
    /// Never in practice: the same construction is covered by this module's tests.
    #[must_use]
    pub fn for_tests() -> Arc<Self> {
        #[expect(clippy::expect_used, reason = "construction with constant names is covered by tests")]
        Self::new(&Naming { tagged: true, topic: "invoker0".to_owned() }).expect("constant names register")
    }

    /// All series in Prometheus text format 0.0.4 ([`CONTENT_TYPE`]).
    #[must_use]
    pub fn render(&self) -> String {
        self.process.refresh();
        let mut text = Vec::with_capacity(64 * 1024);
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "metrics could not be written");
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// Names of all families registered at this moment, sorted (for documentation tests).
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.registry.gather().iter().map(|family| family.name().to_owned()).collect()
    }
}

/// Bounds of upstream's time histograms, in seconds (Kamon's defaults, as seen on the wire).
const UPSTREAM_SECONDS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

/// Bounds of upstream's histograms without a unit (Kamon's defaults, as seen on the wire).
const UPSTREAM_COUNTS: &[f64] = &[10., 30., 100., 300., 1_000., 3_000., 10_000., 30_000., 100_000.];

/// Bounds for what takes micro- to milliseconds: a rewind and its phases, a checkpoint.
const REWIND_SECONDS: &[f64] = &[
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.000_75, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0,
    5.0,
];

fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(tagged: bool) -> Arc<Metrics> {
        Metrics::new(&Naming { tagged, topic: "invoker0".to_owned() }).unwrap()
    }

    /// Moves every metric once, with the values that the recordings hold.
    fn move_all(metrics: &Metrics) {
        metrics.activation_started();
        for step in Step::ALL {
            metrics.start(*step).finished();
            metrics.start(*step).failed();
        }
        metrics.container_start("cold", "guest", "guest/p1", "inpkg");
        metrics.container_start("warmed", "guest", "guest/p1", "inpkg");
        metrics.container_health_failed("warm");
        metrics.client_retries(3);
        metrics.rescheduled();
        metrics.pool(&PoolGauges { active: 1, active_mb: 256, ..PoolGauges::default() });
        metrics.prewarm_cold_start("nodejs:20", 256);
        metrics.prewarm_expired("nodejs:20", 256);
        metrics.lag(4);
        metrics.delay(Duration::from_millis(3));
        metrics.http("GET", 200, Duration::from_millis(1));
        metrics.cache(true);
        metrics.cache(false);
        metrics.batch(1);
    }

    /// `name{labels}` of every line of a recorded scrape that belongs to OpenWhisk, without values and buckets.
    fn series(text: &str) -> Vec<String> {
        text.lines()
            .filter(|line| ["counter_", "gauge_", "histogram_"].iter().any(|kind| line.starts_with(kind)))
            .map(|line| line.split(['{', ' ']).next().unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn tagged_names_are_those_of_the_recorded_invoker() {
        let metrics = metrics(true);
        move_all(&metrics);
        metrics.http("POST", 401, Duration::from_millis(1));
        let ours = series(&metrics.render());
        for name in series(include_str!("../../tests/fixtures/upstream-metrics-tagged.prom")) {
            assert!(ours.contains(&name), "{name} is missing");
        }
    }

    #[test]
    fn untagged_names_are_those_of_the_recorded_invoker() {
        let metrics = metrics(false);
        move_all(&metrics);
        let ours = series(&metrics.render());
        for name in series(include_str!("../../tests/fixtures/upstream-metrics-untagged.prom")) {
            assert!(ours.contains(&name), "{name} is missing");
        }
    }

    #[test]
    fn labels_are_upstreams() {
        let metrics = metrics(true);
        move_all(&metrics);
        let text = metrics.render();
        for line in [
            r#"counter_invoker_containerStart_counter_total{action="inpkg",containerState="cold",initiator="guest",namespace="guest/p1"} 1"#,
            r#"counter_invoker_docker_start_total{cmd="unpause"} 2"#,
            r#"counter_invoker_docker_error_total{cmd="run"} 1"#,
            r#"counter_containerPool_prewarmColdstart_counter_total{kind="nodejs:20",memory="256 MB"} 1"#,
            r#"gauge_kafka_topic_counter{topic="invoker0"} 4"#,
            r#"histogram_kafka_topic_start_seconds_bucket{topic="invoker0",le="0.005"} 1"#,
            r#"gauge_containerPool_activeSize_counter_bytes 268435456"#,
            r#"counter_http_get_counter_total{statusCode="200"} 1"#,
            r#"histogram_database_batchSize_counter_bucket{le="10"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    #[test]
    fn an_odd_topic_makes_a_legal_name() {
        let metrics = Metrics::new(&Naming { tagged: false, topic: "a-b.c invoker0".to_owned() }).unwrap();
        metrics.lag(1);
        assert!(metrics.render().contains("gauge_kafka_a_b_c_invoker0_counter 1"));
    }

    #[test]
    fn the_number_of_series_by_action_is_bounded() {
        let metrics = metrics(true);
        for n in 0..upstream::CONTAINER_START_SERIES_MAX + 50 {
            metrics.container_start("cold", "guest", "guest", &format!("action{n}"));
        }
        let text = metrics.render();
        let lines = text.lines().filter(|line| line.starts_with("counter_invoker_containerStart_")).count();
        assert_eq!(lines, upstream::CONTAINER_START_SERIES_MAX + 1);
        assert!(
            text.contains(
                r#"action="_other",containerState="cold",initiator="_other",namespace="_other"} 50"#
            )
        );
    }

    #[test]
    fn rewinds_are_counted_by_phase_and_kind() {
        let metrics = metrics(true);
        metrics.isolation("rewind");
        metrics.checkpointed(Duration::from_millis(2), 4096);
        metrics.rewound(&RewindSample {
            total: Duration::from_micros(400),
            phases: &[("freeze", Duration::from_micros(100)), ("memory", Duration::from_micros(300))],
            pages_scanned: 10,
            pages_copied: 3,
            pages_dropped: 2,
            pages_hot: 1,
            files_undone: 4,
            ..RewindSample::default()
        });
        metrics.quarantined("io_uring");
        metrics.snapshot_dropped(4096);
        let text = metrics.render();
        for line in [
            r#"rewind_isolation{mode="rewind"} 1"#,
            r#"rewind_isolation{mode="none"} 0"#,
            "rewind_pages_copied_total 3",
            "rewind_files_undone_total 4",
            r#"rewind_quarantined_total{reason="io_uring"} 1"#,
            "rewind_snapshot_bytes 0",
            "rewind_seconds_count 1",
            r#"rewind_phase_seconds_count{phase="memory"} 1"#,
            "rewind_checkpoint_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }

    /// A table of every family: name, type, labels, help.
    fn table(metrics: &Metrics) -> String {
        let mut table = String::from("\n| name | type | labels | what it says |\n|---|---|---|---|\n");
        let mut families = metrics.registry.gather();
        families.sort_by_key(|family| (family.name().starts_with("rewind_"), family.name().to_owned()));
        for family in families {
            let labels: Vec<String> = family.get_metric().first().map_or_else(Vec::new, |metric| {
                metric.get_label().iter().map(|label| format!("`{}`", label.name())).collect()
            });
            let kind = format!("{:?}", family.get_field_type()).to_lowercase();
            table.push_str(&format!(
                "| `{}` | {kind} | {} | {} |\n",
                family.name(),
                labels.join(", "),
                family.help()
            ));
        }
        table.push('\n');
        table
    }

    #[test]
    fn every_metric_is_in_the_operators_guide() {
        let metrics = metrics(true);
        move_all(&metrics);
        metrics.build_info("0", "pagemap");
        metrics.rewound(&RewindSample { phases: &[("freeze", Duration::ZERO)], ..RewindSample::default() });
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/operators-guide.md");
        let text = std::fs::read_to_string(&path).unwrap();
        let marker = text.find("<!-- generated: metrics").expect("the guide has a place for the table");
        let start = marker + text[marker..].find('\n').unwrap() + 1;
        let end = start + text[start..].find("<!-- end -->").unwrap();
        let wanted = table(&metrics);
        if text[start..end] != wanted {
            assert!(
                std::env::var_os("UPDATE_DOCS").is_some(),
                "{} is not current, run this test with UPDATE_DOCS=1; wanted:\n{wanted}",
                path.display()
            );
            std::fs::write(&path, format!("{}{wanted}{}", &text[..start], &text[end..])).unwrap();
        }
    }
}
