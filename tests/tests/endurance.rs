//! Many activations on one container of each image, each doing something else that ordinary functions do, with
//! idle pauses: no container is given up or replaced, none finds anything, and nothing grows, neither in the
//! containers nor in the invoker.
//!
//! `ENDURANCE_ACTIVATIONS` changes the number per image.

use rewind_tests::Lab;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// After each so many the container is left alone for a while, long enough to be suspended.
const PAUSE_EACH: usize = 50;
const PAUSE: Duration = Duration::from_millis(300);
/// After each so many rewinds everything is compared.
const PARANOID_EACH: usize = 100;
/// How long the last rewinds may take.
const SOON: Duration = Duration::from_secs(60);

/// What may grow, by name.
type Sizes = BTreeMap<String, u64>;

fn actions() -> Vec<Action> {
    let python = include_str!("../endurance/varied.py");
    let mut actions = vec![
        Action::new("guest/node", "nodejs:20", include_str!("../endurance/varied.js")),
        Action::new("guest/loop", "python:3.11", python),
        Action::new("guest/python", "python-single:3.11", python),
        Action::new("guest/native", "native:1", "").binary(&compiled()),
    ];
    for action in &mut actions {
        *action = action.clone().limit("memory", 256);
    }
    actions
}

/// `endurance/varied.c` as a shared object.
fn compiled() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let object = folder.path().join("varied.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("endurance/varied.c");
    let flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"];
    let status = Command::new("gcc").args(flags).args([&object, &source]).status();
    assert!(status.expect("gcc is needed for the native action").success());
    std::fs::read(object).expect("it was compiled")
}

#[tokio::test(flavor = "multi_thread")]
async fn one_container_of_each_image_serves_varied_requests_without_end() {
    let total = std::env::var("ENDURANCE_ACTIVATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(1000);
    let lab = Lab::new("endurance").await;
    let invoker = lab
        .invoker()
        .isolation("rewind")
        .env("REWIND_PARANOID_EVERY", PARANOID_EACH)
        // In a mount namespace of its own: what other containers of this machine mount is not counted.
        .through(&["unshare", "--mount"])
        // One container of each image has room.
        .user_memory("1024 m")
        .start(&lab)
        .await;
    let mut bases = Vec::new();
    for action in actions() {
        let revision = lab.store.put_action(&action).await;
        bases.push(Activation::of(action.id()).revision(&revision));
    }
    // What is allocated once has been by then, the first paranoid comparison included.
    let warm = (total / 4).max(PARANOID_EACH + PAUSE_EACH);
    let total = total.max(2 * warm);
    let mut hosts = serve(&lab, &bases, 0, warm).await;
    until_rewound(&invoker, bases.len() * warm).await;
    let before = sizes(&lab, &invoker);
    for (host, again) in hosts.iter_mut().zip(serve(&lab, &bases, warm, total).await) {
        assert_eq!(*host, again, "a container was replaced\n{}", invoker.tail());
    }
    until_rewound(&invoker, bases.len() * total).await;
    let after = sizes(&lab, &invoker);

    println!("{:<40} {:>10} {:>10}", "after activations on each image", warm, total);
    let mut grown = Vec::new();
    for (name, before) in &before {
        let now = after.get(name).copied().unwrap_or_default();
        println!("{name:<40} {before:>10} {now:>10}");
        if now > before + slack(name) {
            grown.push(format!("{name} grew from {before} to {now}"));
        }
    }
    assert_eq!(before.len(), after.len(), "there is more than there was: {after:?}");
    assert!(grown.is_empty(), "{grown:?}");
    let quarantined = invoker.metric("rewind_quarantined_total", "").await;
    assert!(quarantined < 0.5, "{quarantined} containers were quarantined\n{}", invoker.tail());
    let compared = invoker.metric("rewind_phase_seconds_count", r#"phase="verify""#).await;
    let wanted = (bases.len() * (total / PARANOID_EACH)) as f64;
    assert!((compared - wanted).abs() < 0.5, "{compared} paranoid comparisons in place of {wanted}");
    lab.controller.finish().await;
    assert!(invoker.stop().await.success());
}

/// Sends requests `from..to` to every action, one after another to each; the container of each.
async fn serve(lab: &Lab, bases: &[Activation], from: usize, to: usize) -> Vec<Value> {
    let serve = bases.iter().map(|base| async move {
        let mut host = Value::Null;
        for n in from..to {
            let id = rewind_tests::message::activation_id();
            let activation = base.clone().with("activationId", id.into()).content(json!({"n": n}));
            let ack = lab.controller.ask(activation).await;
            assert_eq!(ack.status(), Some(0), "request {n}: {}", ack.value);
            assert_eq!(ack.result()["found"], json!([]), "request {n} found another: {}", ack.value);
            let here = &ack.result()["host"];
            assert!(host.is_null() || host == *here, "request {n} of {base:?} came to another container");
            host = here.clone();
            if n % PAUSE_EACH == PAUSE_EACH - 1 {
                tokio::time::sleep(PAUSE).await;
            }
        }
        host
    });
    futures::future::join_all(serve).await
}

async fn until_rewound(invoker: &Invoker, times: usize) {
    let deadline = Instant::now() + SOON;
    while invoker.metric("rewind_seconds_count", "").await < times as f64 {
        assert!(Instant::now() < deadline, "fewer than {times} rewinds\n{}", invoker.tail());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// How much more than before is no growth: nothing for what is counted, and for memory what depends on which
/// pages of programs happen to be mapped, or on how much of its arenas an allocator happens to use.
fn slack(name: &str) -> u64 {
    match name.rsplit_once(' ') {
        Some(("invoker", "kB")) => 10 << 10,
        // Connections to the store, the broker and the engine come and go.
        Some(("invoker", "descriptors" | "threads")) => 16,
        Some((_, "kB")) => 4 << 10,
        Some((_, "page-tables-kB")) => 128,
        _ => 0,
    }
}

/// What the invoker and the containers hold.
fn sizes(lab: &Lab, invoker: &Invoker) -> Sizes {
    let mut sizes = Sizes::new();
    add(&mut sizes, "invoker", invoker.pid());
    for (id, name) in lab.docker.containers(&lab.container_prefix()) {
        let kind = name.rsplit('_').next().unwrap_or(&name).to_owned();
        let top = lab.docker.run(&["top", &id, "-eo", "pid"]);
        let pids = top.lines().skip(1).filter_map(|line| line.trim().parse().ok());
        for pid in pids {
            add(&mut sizes, &kind, pid);
        }
    }
    sizes
}

/// Adds what a process holds to what is known of `whose`.
fn add(sizes: &mut Sizes, whose: &str, pid: u32) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it runs");
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("the kernel says so");
        line.trim_end_matches(" kB").trim().parse::<u64>().expect("a number")
    };
    let entries = |what: &str| std::fs::read_dir(format!("/proc/{pid}/{what}")).expect("it runs").count();
    let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).expect("it runs").lines().count();
    for (what, much) in [
        ("processes", 1),
        ("kB", field("VmRSS:")),
        ("page-tables-kB", field("VmPTE:")),
        ("threads", field("Threads:")),
        ("descriptors", entries("fd") as u64),
        ("mounts", mounts as u64),
    ] {
        *sizes.entry(format!("{whose} {what}")).or_default() += much;
    }
}
