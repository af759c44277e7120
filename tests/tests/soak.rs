//! Many activations over four actions, 16 in flight, while containers are killed, the engine is slow and the
//! store fails now and then: each id is acked once, none is missing, and memory stays bounded.
//!
//! Once without any isolation, 5,000 of them, so that many go through each container, and once with the
//! rewind, fewer, where also no request finds what another left in its runtime.
//! `SOAK_ACTIVATIONS` changes both numbers.

use rand::Rng as _;
use rewind_tests::Lab;
use rewind_tests::controller::Ack;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use rewind_tests::proxy::FaultyStore;
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// In flight at once.
const WINDOW: usize = 16;
/// A container is killed after each so many.
const KILL_EACH: usize = 50;
/// The most the invoker may hold in memory besides its snapshots, whatever happens.
const MEMORY_BOUND_MB: f64 = 200.0;

/// Says which activation of this runtime it found itself to be.
const NODE: &str = "let seen = 0; function main(a) { seen += 1; return {n: a.n, seen} }";
const PYTHON: &str =
    "seen = 0\ndef main(a):\n  global seen\n  seen += 1\n  return {'n': a['n'], 'seen': seen}";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_activation_is_lost_or_answered_twice() {
    soak("none", 5000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_activation_is_lost_or_answered_twice_or_finds_another_when_containers_are_rewound() {
    soak("rewind", 2500).await;
}

async fn soak(isolation: &'static str, activations: usize) {
    let total = std::env::var("SOAK_ACTIVATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(activations);
    let lab = Lab::new("soak").await;
    let store = FaultyStore::before(&lab.services.couchdb, 0).await;
    let engine = SlowEngine::before(&lab, Duration::from_millis(150)).await;
    let invoker = lab
        .invoker()
        .isolation(isolation)
        // Each action has four callers; there is room for twice as many containers as can be busy, so that
        // one that is about to be free is not taken for busy and another evicted in its place.
        .user_memory("4096 m")
        .store_at(store.address)
        .env("REWIND_DOCKER_HOST", format!("unix://{}", engine.socket.display()))
        .start(&lab)
        .await;
    store.fail(20);

    let mut actions = Vec::new();
    for (name, kind, code) in [
        ("node", "nodejs:20", NODE),
        ("loop", "python:3.11", PYTHON),
        ("python", "python-single:3.11", PYTHON),
        ("native", "native:1", "global"),
    ] {
        let action = Action::new(&format!("guest/{name}"), kind, code).limit("memory", 128);
        let revision = lab.store.put_action(&action).await;
        actions.push(Activation::of(action.id()).revision(&revision));
    }

    let (lab, invoker) = (Arc::new(lab), Arc::new(invoker));
    let rewound = isolation == "rewind";
    let highest = Arc::new(Mutex::new(0.0));
    let killed = Arc::new(AtomicUsize::new(0));
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let workers: Vec<_> = (0..WINDOW)
        .map(|worker| {
            let (lab, invoker, actions) = (lab.clone(), invoker.clone(), actions.clone());
            let (next, killed, highest) = (next.clone(), killed.clone(), highest.clone());
            tokio::spawn(async move {
                let mut ids = Vec::new();
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    if n >= total {
                        return ids;
                    }
                    let activation = actions[worker % actions.len()]
                        .clone()
                        .with("activationId", rewind_tests::message::activation_id().into())
                        .with("blocking", (n % 3 == 0).into())
                        .content(json!({"n": n, "secret": format!("s{n}")}));
                    lab.controller.publish(&activation).await;
                    // A missing answer fails here, with its id.
                    let acks = lab.controller.answered(activation.id()).await;
                    if rewound {
                        found_nothing(&acks);
                    }
                    ids.push(activation.id().to_owned());
                    // By count, not by time: on a slow machine as many containers die as on a fast one.
                    if n % KILL_EACH == KILL_EACH - 1 {
                        kill_a_container(lab.clone(), killed.clone()).await;
                    }
                    if n % 100 == 99 {
                        let used = memory_beside_snapshots(&invoker).await;
                        let mut highest = highest.lock().unwrap_or_else(PoisonError::into_inner);
                        *highest = used.max(*highest);
                    }
                    if n % 500 == 499 {
                        println!("{isolation}: {} of {total} in {:.0?}", n + 1, start.elapsed());
                    }
                }
            })
        })
        .collect();
    let mut ids = Vec::new();
    for worker in workers {
        ids.extend(worker.await.expect("a worker does not fail"));
    }

    assert_eq!(ids.len(), total);
    let (passed, failed) = store.counts();
    let killed = killed.load(Ordering::Relaxed);
    let highest: f64 = *highest.lock().unwrap_or_else(PoisonError::into_inner);
    println!(
        "{isolation}: {total} activations in {:.1?}; {killed} containers killed, {failed} of {} store requests failed, at most {highest:.0} MB resident besides snapshots",
        start.elapsed(),
        passed + failed
    );
    assert!(killed > 0 && failed > 0, "nothing went wrong: {killed} killed, {failed} failed");
    assert!(highest < MEMORY_BOUND_MB, "the invoker grew to {highest:.0} MB besides its snapshots");
    if rewound {
        // Most requests ran in a container that was rewound for them, or little was shown.
        let rewinds = invoker.metric("rewind_seconds_count", "").await;
        println!("{rewinds} rewinds");
        assert!(rewinds > total as f64 / 2.0, "{rewinds} rewinds for {total} activations");
    }
    // A run that ends twice would be seen by the double as a second ack.
    lab.controller.finish().await;
    let invoker = Arc::into_inner(invoker).expect("the workers have ended");
    assert!(invoker.stop().await.success());
}

/// A request that succeeded was the first of its runtime, as far as it could see.
fn found_nothing(acks: &[Ack]) {
    for ack in acks.iter().filter(|ack| ack.status() == Some(0)) {
        let result = ack.result();
        let found = if result["seen"].is_u64() { result["seen"] != 1 } else { result["found"] != json!([]) };
        assert!(!found, "what another request left was found: {}", ack.value);
    }
}

/// Resident memory of the invoker less what its snapshots hold, in MB.
async fn memory_beside_snapshots(invoker: &Invoker) -> f64 {
    let snapshots = invoker.metric("rewind_snapshot_bytes", "").await;
    (invoker.resident_bytes() as f64 - snapshots) / f64::from(1 << 20)
}

/// Kills a random container of the lab.
async fn kill_a_container(lab: Arc<Lab>, killed: Arc<AtomicUsize>) {
    let done = tokio::task::spawn_blocking(move || {
        let containers = lab.docker.containers(&lab.container_prefix());
        if containers.is_empty() {
            return false;
        }
        let (id, _) = &containers[rand::rng().random_range(0..containers.len())];
        lab.docker.try_run(&["kill", id]).is_ok()
    });
    if done.await.expect("docker can be called") {
        killed.fetch_add(1, Ordering::Relaxed);
    }
}

/// A way to the Docker Engine on which every connection takes a while.
struct SlowEngine {
    socket: std::path::PathBuf,
}

impl SlowEngine {
    async fn before(lab: &Lab, delay: Duration) -> Self {
        let upstream = lab.services.docker.strip_prefix("unix://");
        let upstream = upstream.expect("the engine of the tests is on a unix socket").to_owned();
        let socket = std::env::temp_dir().join(format!("rewind-slow-{}.sock", lab.name));
        let _ = std::fs::remove_file(&socket);
        let listener = tokio::net::UnixListener::bind(&socket).expect("a socket can be bound");
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let upstream = upstream.clone();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    if let Ok(mut far) = tokio::net::UnixStream::connect(upstream).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Self { socket }
    }
}

impl Drop for SlowEngine {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}
