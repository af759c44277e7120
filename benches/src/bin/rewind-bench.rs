//! The whole invoker: real Kafka, real containers of a trivial native runtime, a store that costs nothing.
//!
//! Round by round, and within each round one isolation after the other: start, idle, throughput, latency, the
//! rewind by phase, death and return. Prints one table of medians and keeps everything that was measured.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use rewind_benches::load::{Load, Measured, Until};
use rewind_benches::process::{Usage, cpu_ms, cpu_ms_by_program, status, used_between};
use rewind_benches::runs::{Run, median};
use rewind_benches::store::{NullStore, REVISION};
use rewind_tests::Lab;
use rewind_tests::env::repository;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};

/// Measures throughput, latency, processor time, memory and recovery of the invoker, per isolation.
#[derive(Debug, Parser)]
struct Arguments {
    /// How often everything is measured.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds of full load per measurement.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Activations one at a time per measurement.
    #[arg(long, default_value_t = 300)]
    singles: usize,
    /// Activations under way at full load.
    #[arg(long, default_value_t = 16)]
    window: usize,
    /// Log limit of the action in MB; with 0 no logs are collected.
    #[arg(long, default_value_t = 10)]
    logs_mb: u64,
    /// Isolations to compare.
    #[arg(long, value_delimiter = ',', default_value = "none,rewind,single-use")]
    isolations: Vec<String>,
    /// Where raw data goes.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Builds to compare, as NAME=PATH of the program; without one, that of this tree.
    #[arg(long)]
    build: Vec<String>,
    /// One more environment variable for the invoker, as NAME=VALUE.
    #[arg(long)]
    env: Vec<String>,
}

const ACTION: &str = "guest/trivial";

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let arguments = Arguments::parse();
    let root = arguments.out.clone().unwrap_or_else(|| repository().join("target/bench"));
    let mut run = Run::create(&root).expect("the folder for raw data can be made");
    let action = Action::new(ACTION, "native:1", "\n").limit("logs", arguments.logs_mb);
    let store = NullStore::start(&action).await;
    let mut all = Vec::new();
    let subjects = subjects(&arguments);
    for round in 0..arguments.rounds {
        for subject in &subjects {
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, subject.name);
            let bench = Bench { arguments: &arguments, store: &store, run: &run, subject, round };
            let measurement = bench.measure().await;
            run.keep(&measurement).expect("a measurement can be kept");
            all.push(measurement);
        }
    }
    let names: Vec<_> = subjects.into_iter().map(|subject| subject.name).collect();
    let table = table(&names, &all);
    std::fs::write(run.folder().join("table.md"), &table).expect("the table can be kept");
    println!("{table}\nraw data: {}", run.folder().display());
}

/// What is compared: an isolation of a build.
struct Subject {
    name: String,
    isolation: String,
    program: Option<PathBuf>,
}

/// Each isolation, of each build; a name has only what differs.
fn subjects(arguments: &Arguments) -> Vec<Subject> {
    let builds = arguments.build.iter().map(|pair| pair.split_once('=').expect("NAME=PATH"));
    let mut builds: Vec<_> = builds.map(|(name, path)| (Some(name), Some(PathBuf::from(path)))).collect();
    if builds.is_empty() {
        builds.push((None, None));
    }
    let of_build = |isolation: &String| {
        let subject = |(build, program): &(Option<&str>, Option<PathBuf>)| Subject {
            name: build.map_or_else(|| isolation.clone(), |build| format!("{isolation}-{build}")),
            isolation: isolation.clone(),
            program: program.clone(),
        };
        builds.iter().map(subject).collect::<Vec<_>>()
    };
    arguments.isolations.iter().flat_map(of_build).collect()
}

struct Bench<'a> {
    arguments: &'a Arguments,
    store: &'a NullStore,
    run: &'a Run,
    subject: &'a Subject,
    round: usize,
}

impl Bench<'_> {
    async fn measure(&self) -> Value {
        let lab = Lab::new("bench").await;
        let mut builder = lab
            .invoker()
            .isolation(&self.subject.isolation)
            .store_at(self.store.address)
            .env("CONFIG_whisk_userEvents_enabled", "false")
            .env("METRICS_LOG", "false");
        for pair in &self.arguments.env {
            let (name, value) = pair.split_once('=').expect("NAME=VALUE");
            builder = builder.env(name, value);
        }
        if let Some(program) = &self.subject.program {
            builder = builder.program(program);
        }
        let mut invoker = builder.start(&lab).await;
        let pid = invoker.pid();
        let first_ping_ms = invoker.first_ping.map(ms);

        let idle_span = Duration::from_secs(3);
        let idle_before = cpu_ms(pid);
        tokio::time::sleep(idle_span).await;
        let idle = json!({
            "rss_kb": status(pid, "VmRSS"),
            "threads": status(pid, "Threads"),
            "cpu_ms_per_s": since(pid, idle_before) / idle_span.as_secs_f64(),
        });

        let activation = Activation::of(ACTION).revision(REVISION);
        let mut load = Load::new(&lab.services.kafka, &lab.name, &activation).await;
        let window = self.arguments.window;
        let cold = blocking(&mut load, |load| load.run(1, Until::Answers(1)));
        blocking(&mut load, |load| {
            load.run(window, Until::Answers(if self.single_use() { 16 } else { 500 }))
        });

        let records_before = self.store.records();
        let (used_before, programs_before) = (Usage::of(pid), cpu_ms_by_program());
        let span = Duration::from_secs(self.arguments.seconds);
        let full = blocking(&mut load, |load| load.run(window, Until::Elapsed(span)));
        let used = Usage::of(pid).per(&used_before, full.latencies_us.len());
        let programs = used_between(&programs_before, &cpu_ms_by_program());
        self.keep("full", &full);
        let loaded_rss_kb = status(pid, "VmRSS");

        let singles = if self.single_use() { 20 } else { self.arguments.singles };
        let used_before = Usage::of(pid);
        let single = blocking(&mut load, |load| load.run(1, Until::Answers(singles)));
        let single_used = Usage::of(pid).per(&used_before, single.latencies_us.len());
        self.keep("single", &single);

        let rewind = rewind_means(&invoker.metrics().await);
        invoker.kill();
        // Published before the new one exists, as by a controller that has not noticed yet.
        load.publish();
        let restarted = builder.start(&lab).await;
        let ping_after_kill_ms = restarted.first_ping.map(ms);
        let serving_us = blocking(&mut load, Load::answer);
        let peak_kb = status(restarted.pid(), "VmHWM");
        let violations = lab.controller.violations();
        restarted.stop().await;
        json!({
            "name": self.subject.name,
            "isolation": self.subject.isolation,
            "round": self.round,
            "first_ping_ms": first_ping_ms,
            "cold_start_us": cold.percentile_us(1.0),
            "idle": idle,
            "full": {
                "window": window,
                "answers": full.latencies_us.len(),
                "per_second": full.per_second(),
                "p50_us": full.percentile_us(0.5),
                "p99_us": full.percentile_us(0.99),
                "used_per_activation": used,
                "cpu_ms_by_program": Value::from_iter(programs.into_iter().map(|(name, ms)| (name, Value::from(ms)))),
                "records": self.store.records() - records_before,
                "rss_kb": loaded_rss_kb,
            },
            "single": {
                "per_second": single.per_second(),
                "p50_us": single.percentile_us(0.5),
                "p99_us": single.percentile_us(0.99),
                "used_per_activation": single_used,
            },
            "rewind": rewind,
            "after_kill": {
                "first_ping_ms": ping_after_kill_ms,
                "serving_us": serving_us,
                "peak_rss_kb": peak_kb,
            },
            "violations": violations,
        })
    }

    fn single_use(&self) -> bool {
        self.subject.isolation == "single-use"
    }

    fn keep(&self, what: &str, measured: &Measured) {
        let name = format!("{}-{}-{what}", self.subject.name, self.round);
        self.run.keep_latencies(&name, &measured.latencies_us).expect("latencies can be kept");
    }
}

/// The load is a thread's work, with blocking calls; the store and the lab go on meanwhile.
fn blocking<T>(load: &mut Load, work: impl FnOnce(&mut Load) -> T) -> T {
    tokio::task::block_in_place(|| work(load))
}

fn ms(span: Duration) -> f64 {
    span.as_secs_f64() * 1e3
}

/// Processor time of a process since a count, in milliseconds.
#[expect(clippy::cast_precision_loss, reason = "milliseconds of a bench are far below 2^52")]
fn since(pid: u32, before: Option<u64>) -> f64 {
    cpu_ms(pid).zip(before).map_or(f64::NAN, |(now, before)| (now - before) as f64)
}

/// Means per rewind out of the invoker's metrics: microseconds in all and by phase, pages, files.
fn rewind_means(metrics: &str) -> Value {
    let mut means = serde_json::Map::new();
    let rewinds = sum(metrics, "rewind_seconds_count");
    if rewinds == 0.0 {
        return Value::Null;
    }
    means.insert("rewinds".to_owned(), rewinds.into());
    means.insert("total_us".to_owned(), (sum(metrics, "rewind_seconds_sum") * 1e6 / rewinds).into());
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("rewind_phase_seconds_sum{phase=\"") else { continue };
        if let Some((phase, value)) = rest.split_once("\"} ") {
            let seconds: f64 = value.parse().unwrap_or(f64::NAN);
            means.insert(format!("phase_{phase}_us"), (seconds * 1e6 / rewinds).into());
        }
    }
    for name in ["pages_scanned", "pages_copied", "pages_dropped", "pages_hot", "files_undone"] {
        means.insert(name.to_owned(), (sum(metrics, &format!("rewind_{name}_total")) / rewinds).into());
    }
    means.insert("quarantined".to_owned(), sum(metrics, "rewind_quarantined_total").into());
    Value::Object(means)
}

/// The sum of a metric over its label sets.
fn sum(metrics: &str, name: &str) -> f64 {
    let value = |line: &str| {
        let rest = line.strip_prefix(name).filter(|rest| rest.starts_with(['{', ' ']))?;
        rest.rsplit(' ').next()?.parse::<f64>().ok()
    };
    metrics.lines().filter_map(value).sum()
}

/// Medians over the rounds, a column per subject.
fn table(subjects: &[String], all: &[Value]) -> String {
    let rows: [(&str, &str, f64); 22] = [
        ("throughput, 4 containers (1/s)", "/full/per_second", 1.0),
        ("latency at full load p50 (ms)", "/full/p50_us", 1e-3),
        ("latency at full load p99 (ms)", "/full/p99_us", 1e-3),
        ("invoker CPU per activation at full load (ms)", "/full/used_per_activation/cpu_us", 1e-3),
        ("its threads' sleeps per activation", "/full/used_per_activation/sleeps", 1.0),
        ("its threads' pre-emptions per activation", "/full/used_per_activation/preempted", 1.0),
        ("one at a time (1/s)", "/single/per_second", 1.0),
        ("one at a time p50 (ms)", "/single/p50_us", 1e-3),
        ("one at a time p99 (ms)", "/single/p99_us", 1e-3),
        ("invoker CPU per activation, one at a time (ms)", "/single/used_per_activation/cpu_us", 1e-3),
        ("its threads' sleeps per activation, one at a time", "/single/used_per_activation/sleeps", 1.0),
        ("activations answered at full load", "/full/answers", 1.0),
        ("cold start (ms)", "/cold_start_us", 1e-3),
        ("resident memory idle (MB)", "/idle/rss_kb", 1.0 / 1024.0),
        ("resident memory loaded (MB)", "/full/rss_kb", 1.0 / 1024.0),
        ("CPU idle (ms/s)", "/idle/cpu_ms_per_s", 1.0),
        ("threads", "/idle/threads", 1.0),
        ("start to first ping (ms)", "/first_ping_ms", 1.0),
        ("SIGKILL to first ping (ms)", "/after_kill/first_ping_ms", 1.0),
        ("SIGKILL to first answer, cold container (ms)", "/after_kill/serving_us", 1e-3),
        ("rewind (ms)", "/rewind/total_us", 1e-3),
        ("pages copied back per rewind", "/rewind/pages_copied", 1.0),
    ];
    let mut lines = vec![
        format!("| median | {} |", subjects.join(" | ")),
        format!("|---|{}", "---|".repeat(subjects.len())),
    ];
    let mut row = |title: &str, pointer: &str, unit: f64| {
        let cells = subjects.iter().map(|subject| {
            let mine = all.iter().filter(|one| one["name"] == **subject);
            let values: Vec<f64> = mine.filter_map(|one| one.pointer(pointer)?.as_f64()).collect();
            if values.is_empty() { "-".to_owned() } else { format!("{:.3}", median(values) * unit) }
        });
        lines.push(format!("| {title} | {} |", cells.collect::<Vec<_>>().join(" | ")));
    };
    for (title, pointer, unit) in rows {
        row(title, pointer, unit);
    }
    let mut phases: Vec<&String> = all
        .iter()
        .filter_map(|one| one["rewind"].as_object())
        .flat_map(serde_json::Map::keys)
        .filter(|name| name.starts_with("phase_"))
        .collect();
    phases.sort();
    phases.dedup();
    for phase in phases {
        row(&format!("rewind: {phase}"), &format!("/rewind/{phase}"), 1.0);
    }
    lines.join("\n") + "\n"
}
