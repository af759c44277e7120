//! The pure parts, each alone: what the pool, the messages and the log lines cost.
//!
//! Every subject is repeated for a fixed time, several times over; the median of the repetitions is printed.
//! The subjects take turns, so that a slow moment of the machine falls on all of them.

use std::hint::black_box;
use std::time::{Duration, Instant};

use openwhisk_compat::entity::ActionDocument;
use openwhisk_compat::logs::{LogCollector, LogMode};
use openwhisk_compat::message::ActivationMessage;
use openwhisk_compat::size::ByteSize;
use rewind_benches::runs::median;
use rewind_invoker::pool::{Command, Event, Isolation, Job, JobEnd, JobId, Millis, Pool, PoolConfig};
use rewind_tests::message::{Action, Activation};
use serde_json::json;

const REPETITIONS: usize = 7;
const SPAN: Duration = Duration::from_millis(200);

/// Something that is repeated; one call is `units` units of work.
struct Subject {
    name: &'static str,
    units: u32,
    work: Box<dyn FnMut()>,
}

fn main() {
    let mut subjects = [
        pool("pool: one warm activation, 4 containers", 4),
        pool("pool: one warm activation, 200 containers", 200),
        message("message: parse, 1 KB", 10),
        message("message: parse, 100 KB of content", 100_000),
        document(),
        log_lines(),
    ];
    let mut results = vec![Vec::new(); subjects.len()];
    for _ in 0..REPETITIONS {
        for (subject, results) in subjects.iter_mut().zip(&mut results) {
            results.push(nanoseconds(subject));
        }
    }
    println!("| subject | ns | per second |\n|---|---|---|");
    for (subject, results) in subjects.iter().zip(results) {
        let ns = median(results);
        println!("| {} | {ns:.0} | {:.0} |", subject.name, 1e9 / ns);
    }
}

/// Nanoseconds per unit.
fn nanoseconds(subject: &mut Subject) -> f64 {
    let start = Instant::now();
    let mut calls = 0_u32;
    while start.elapsed() < SPAN {
        (subject.work)();
        calls += 1;
    }
    start.elapsed().as_secs_f64() * 1e9 / (f64::from(calls) * f64::from(subject.units))
}

/// A pool with so many warm containers of as many actions, one of which is used: job, end, rewind.
fn pool(name: &'static str, containers: u64) -> Subject {
    let config = PoolConfig {
        budget_mb: containers * 256,
        isolation: Isolation::Rewind,
        pause_grace_ms: None,
        ..PoolConfig::default()
    };
    let mut pool = Pool::new(config);
    let mut commands = Vec::new();
    let mut next = 0;
    let mut activation = move || {
        commands.clear();
        let id = JobId(next);
        let job = Job {
            id,
            action: next % containers,
            namespace: "guest".to_owned(),
            memory_mb: 256,
            kind: "native:1".to_owned(),
            max_concurrent: 1,
        };
        next += 1;
        let now = Millis(next);
        pool.handle(now, Event::Job(job), &mut commands);
        let container = match commands.first() {
            Some(Command::CreateFor { container, .. }) => {
                let container = *container;
                pool.handle(now, Event::Initialised { container }, &mut commands);
                container
            }
            Some(Command::Run { container, .. }) => *container,
            other => unreachable!("{other:?}"),
        };
        pool.handle(now, Event::JobDone { container, job: id, end: JobEnd::Kept }, &mut commands);
        pool.handle(now, Event::Pristine { container }, &mut commands);
        black_box(&commands);
    };
    for _ in 0..containers {
        activation();
    }
    Subject { name, units: 1, work: Box::new(activation) }
}

fn message(name: &'static str, content_bytes: usize) -> Subject {
    let content = json!({"payload": "x".repeat(content_bytes)});
    let text = Activation::of("guest/trivial").revision("1-abc").content(content).value.to_string();
    let work = move || {
        black_box(ActivationMessage::parse(black_box(text.as_bytes())).expect("it is a message"));
    };
    Subject { name, units: 1, work: Box::new(work) }
}

fn document() -> Subject {
    let mut value = Action::new("guest/trivial", "native:1", &"x".repeat(4096)).value;
    value["_rev"] = "1-abc".into();
    let text = value.to_string();
    let work = move || {
        black_box(ActionDocument::parse(black_box(text.as_bytes())).expect("it is an action"));
    };
    Subject { name: "document: parse an action of 4 KB", units: 1, work: Box::new(work) }
}

/// A hundred lines of output and their end, per line.
fn log_lines() -> Subject {
    let line = |log: &str| {
        json!({"log": log, "stream": "stdout", "time": "2026-11-21T10:00:00.123456789Z"}).to_string()
    };
    let mut text =
        [line("a line of the usual length, with some words in it\n"), String::new()].join("\n").repeat(100);
    for _ in 0..2 {
        text += &line("XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX\n");
        text.push('\n');
    }
    let work = move || {
        let mut collector = LogCollector::new(ByteSize::from_mb(10), LogMode::Wait);
        collector.feed(black_box(text.as_bytes()));
        black_box(collector.finish(std::time::SystemTime::UNIX_EPOCH, false));
    };
    Subject { name: "logs: collect, per line", units: 100, work: Box::new(work) }
}
