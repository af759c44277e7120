//! `make demo`: four actions plant secrets and look for them, 50 requests each, in the same containers:
//! first with plain reuse, as every platform does it, then with rewind.
//!
//! Exits with 1 if a request of the rewind run found anything, or if a container was replaced.

use rewind_tests::Lab;
use rewind_tests::controller::Ack;
use rewind_tests::invoker::Invoker;
use rewind_tests::lab::KINDS;
use rewind_tests::message::{Action, Activation};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

const REQUESTS: usize = 50;
const PHASES: &[&str] =
    &["stop", "strangers", "inspect", "objects", "scan", "copy", "files", "verify", "thaw"];

/// One action of the demo.
struct Plant {
    kind: &'static str,
    title: &'static str,
    code: &'static str,
}

const PLANTS: &[Plant] = &[
    Plant { kind: "nodejs:20", title: "node", code: include_str!("../../demo/plant.js") },
    Plant { kind: "python:3.11", title: "proxy+python", code: include_str!("../../demo/plant.py") },
    Plant { kind: "python-single:3.11", title: "python", code: include_str!("../../demo/plant.py") },
    Plant { kind: "native:1", title: "native", code: include_str!("../../demo/plant.native") },
];

/// What one action's requests showed.
#[derive(Default)]
struct Column {
    title: String,
    isolation: &'static str,
    containers: BTreeSet<String>,
    answered: usize,
    /// How often each channel was found.
    found: BTreeMap<String, usize>,
    requests_with_residue: usize,
    wait_ms: Vec<f64>,
    init_ms: Vec<f64>,
    run_ms: Vec<f64>,
    rewinds: f64,
    quarantined: f64,
    /// Sums over the requests, from the invoker's metrics.
    measured: BTreeMap<&'static str, f64>,
}

#[tokio::main]
async fn main() {
    let mut columns = Vec::new();
    for isolation in ["none", "rewind"] {
        eprintln!("== {}: {REQUESTS} requests to each of {} actions", title(isolation), PLANTS.len());
        let lab = Lab::new("demo").await;
        // Room for one container: a request that comes while it is put back waits for it.
        let invoker = lab.invoker().isolation(isolation).user_memory("256 m").start(&lab).await;
        eprintln!(
            "  rewind invoker --isolation {isolation} (pid {}, log {})",
            invoker.pid(),
            invoker.log().display()
        );
        for plant in PLANTS {
            columns.push(run(&lab, &invoker, plant, isolation).await);
        }
        let status = invoker.stop().await;
        assert!(status.success(), "the invoker ended with {status}");
        let left = lab.docker.containers(&lab.container_prefix());
        assert!(left.is_empty(), "containers left behind: {left:?}");
        lab.controller.finish().await;
    }
    print(&columns);
    let failures = judge(&columns);
    for failure in &failures {
        println!("NOT SHOWN: {failure}");
    }
    if !failures.is_empty() {
        std::process::exit(1);
    }
    println!(
        "Plain reuse: later requests find what earlier ones left. Rewind: nothing found, in the same containers throughout."
    );
}

fn title(isolation: &str) -> &str {
    if isolation == "none" { "plain reuse" } else { "rewind" }
}

async fn run(lab: &Lab, invoker: &Invoker, plant: &Plant, isolation: &'static str) -> Column {
    let name = format!("guest/{}", plant.title.replace('+', "-"));
    let revision = lab.store.put_action(&Action::new(&name, plant.kind, plant.code)).await;
    let mut column = Column { title: plant.title.to_owned(), isolation, ..Column::default() };
    let before = Measures::take(invoker).await;
    for n in 0..REQUESTS {
        let activation =
            Activation::of(&name).revision(&revision).content(json!({"secret": format!("secret-{n}")}));
        let ack = lab.controller.ask(activation).await;
        column.take(&ack);
    }
    if isolation == "rewind" {
        // The answers are out before the last rewind ends.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Measures::take(invoker).await.handled() - before.handled() + 0.5 < count(REQUESTS)
            && Instant::now() < deadline
        {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    column.measure(&before, &Measures::take(invoker).await);
    let image = KINDS.iter().find(|(kind, _)| *kind == plant.kind).map_or("", |(_, image)| image);
    let ids: Vec<&str> = column.containers.iter().map(String::as_str).collect();
    eprintln!(
        "  {image}: {} answers from container {}; {} found residue",
        column.answered,
        ids.join(", "),
        column.requests_with_residue
    );
    column
}

/// Counters of the invoker at one moment.
struct Measures {
    rewinds: f64,
    quarantined: f64,
    values: BTreeMap<&'static str, f64>,
}

impl Measures {
    const NAMES: &[(&'static str, &'static str)] = &[
        ("pages scanned", "rewind_pages_scanned_total"),
        ("pages copied", "rewind_pages_copied_total"),
        ("pages dropped", "rewind_pages_dropped_total"),
        ("pages hot", "rewind_pages_hot_total"),
        ("files undone", "rewind_files_undone_total"),
        ("fds closed", "rewind_fds_closed_total"),
        ("threads ended", "rewind_threads_removed_total"),
        ("processes killed", "rewind_strangers_killed_total"),
        ("total", "rewind_seconds_sum"),
    ];

    async fn take(invoker: &Invoker) -> Self {
        let mut values = BTreeMap::new();
        for (name, metric) in Self::NAMES {
            values.insert(*name, invoker.metric(metric, "").await);
        }
        for phase in PHASES {
            values.insert(
                *phase,
                invoker.metric("rewind_phase_seconds_sum", &format!("phase=\"{phase}\"")).await,
            );
        }
        Self {
            rewinds: invoker.metric("rewind_seconds_count", "").await,
            quarantined: invoker.metric("rewind_quarantined_total", "").await,
            values,
        }
    }

    fn handled(&self) -> f64 {
        self.rewinds + self.quarantined
    }
}

impl Column {
    fn take(&mut self, ack: &Ack) {
        let result = ack.result();
        assert_eq!(ack.status(), Some(0), "the action failed: {}", ack.value);
        self.answered += 1;
        self.containers.insert(result["container"].as_str().unwrap_or("?").to_owned());
        let found: Vec<&str> =
            result["found"].as_array().into_iter().flatten().filter_map(|f| f.as_str()).collect();
        self.requests_with_residue += usize::from(!found.is_empty());
        for channel in found {
            *self.found.entry(channel.to_owned()).or_default() += 1;
        }
        let number = |key: &str| ack.annotation(key).and_then(serde_json::Value::as_f64);
        let duration = ack.value["response"]["duration"].as_f64().unwrap_or_default();
        self.wait_ms.extend(number("waitTime"));
        self.init_ms.extend(number("initTime"));
        self.run_ms.push(duration - number("initTime").unwrap_or_default());
    }

    fn measure(&mut self, before: &Measures, after: &Measures) {
        self.rewinds = after.rewinds - before.rewinds;
        self.quarantined = after.quarantined - before.quarantined;
        for (name, value) in &after.values {
            self.measured.insert(name, value - before.values.get(name).copied().unwrap_or_default());
        }
    }

    /// Per rewind; a dash where there was none.
    fn per_rewind(&self, name: &str, scale: f64, digits: usize) -> String {
        if self.rewinds < 0.5 {
            return "-".to_owned();
        }
        format!("{:.digits$}", self.measured.get(name).copied().unwrap_or_default() / self.rewinds * scale)
    }
}

fn judge(columns: &[Column]) -> Vec<String> {
    let mut failures = Vec::new();
    for column in columns {
        let what = format!("{}, {}", title(column.isolation), column.title);
        if column.containers.len() != 1 {
            failures.push(format!("{what}: {} containers served, not 1", column.containers.len()));
        }
        match column.isolation {
            "rewind" => {
                if column.requests_with_residue > 0 {
                    failures.push(format!(
                        "{what}: {} requests found residue: {:?}",
                        column.requests_with_residue, column.found
                    ));
                }
                if column.quarantined > 0.5 {
                    failures.push(format!("{what}: {} containers were quarantined", column.quarantined));
                }
            }
            _ => {
                if column.found.len() != 5 {
                    failures
                        .push(format!("{what}: plain reuse shows {:?}, not all five channels", column.found));
                }
            }
        }
    }
    failures
}

fn median(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).map_or_else(|| "-".to_owned(), |middle| format!("{middle:.0}"))
}

fn count(n: usize) -> f64 {
    f64::from(u32::try_from(n).expect("counts of the demo are small"))
}

/// One row: its name and one cell per column.
type Row<'a> = (&'a str, Box<dyn Fn(&Column) -> String>);

fn print(columns: &[Column]) {
    let found = |channel: &'static str| -> Box<dyn Fn(&Column) -> String> {
        Box::new(move |c| format!("{}/{}", c.found.get(channel).copied().unwrap_or_default(), c.answered))
    };
    let mut rows: Vec<Row<'_>> = vec![
        ("isolation", Box::new(|c| title(c.isolation).to_owned())),
        ("container", Box::new(|c| c.containers.iter().cloned().collect::<Vec<_>>().join(" "))),
        ("requests", Box::new(|c| c.answered.to_string())),
        ("found: global", found("global")),
        ("found: file", found("file")),
        ("found: env", found("env")),
        ("found: thread", found("thread")),
        ("found: child", found("child")),
        ("quarantined", Box::new(|c| format!("{:.0}", c.quarantined))),
        ("wait, median ms", Box::new(|c| median(&c.wait_ms))),
        ("init, ms", Box::new(|c| median(&c.init_ms))),
        ("run, median ms", Box::new(|c| median(&c.run_ms))),
        ("rewinds", Box::new(|c| format!("{:.0}", c.rewinds))),
        ("rewind, mean ms", Box::new(|c| c.per_rewind("total", 1000.0, 2))),
    ];
    for phase in PHASES {
        rows.push((phase, Box::new(move |c| c.per_rewind(phase, 1000.0, 2))));
    }
    for (name, _) in &Measures::NAMES[..Measures::NAMES.len() - 1] {
        rows.push((name, Box::new(move |c| c.per_rewind(name, 1.0, 1))));
    }
    println!();
    println!("{:<18}{}", "", columns.iter().map(|c| format!("{:>15}", c.title)).collect::<String>());
    for (name, cell) in rows {
        let name = if PHASES.contains(&name) { format!("  {name}, ms") } else { name.to_owned() };
        println!("{name:<18}{}", columns.iter().map(|c| format!("{:>15}", cell(c))).collect::<String>());
    }
    println!("\nPages, files and the rest are means per rewind.\n");
}
