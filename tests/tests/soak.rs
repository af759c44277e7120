//! 5,000 activations over four actions, 16 in flight, while containers are killed, the engine is slow and the
//! store fails now and then: each id is acked once, none is missing, and memory stays bounded.
//!
//! `SOAK_ACTIVATIONS` changes the number. The isolation is `none`: what is tried here is that no answer is lost
//! or given twice under load and failure; that a container is pristine is tried elsewhere, and so is the
//! speed of a rewind.

use rand::Rng as _;
use rewind_tests::Lab;
use rewind_tests::message::{Action, Activation};
use rewind_tests::proxy::FaultyStore;
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// In flight at once.
const WINDOW: usize = 16;
/// A container is killed after each so many.
const KILL_EACH: usize = 50;
/// The most the invoker may hold in memory, whatever happens.
const MEMORY_BOUND: u64 = 200 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_activation_is_lost_or_answered_twice() {
    let total: usize = std::env::var("SOAK_ACTIVATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(5000);
    let lab = Lab::new("soak").await;
    let store = FaultyStore::before(&lab.services.couchdb, 0).await;
    let engine = SlowEngine::before(&lab.services.docker, Duration::from_millis(150)).await;
    let invoker = lab
        .invoker()
        .isolation("none")
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
        ("node", "nodejs:20", "function main(a) { return {n: a.n} }"),
        ("loop", "python:3.11", "def main(a): return {'n': a['n']}"),
        ("python", "python-single:3.11", "def main(a): return {'n': a['n']}"),
        ("native", "native:1", "global"),
    ] {
        let action = Action::new(&format!("guest/{name}"), kind, code).limit("memory", 128);
        let revision = lab.store.put_action(&action).await;
        actions.push(Activation::of(action.id()).revision(&revision));
    }

    let lab = Arc::new(lab);
    let killed = Arc::new(AtomicUsize::new(0));
    let next = Arc::new(AtomicUsize::new(0));
    let start = Instant::now();
    let workers: Vec<_> = (0..WINDOW)
        .map(|worker| {
            let (lab, next, actions, killed) = (lab.clone(), next.clone(), actions.clone(), killed.clone());
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
                        .content(json!({"n": n}));
                    lab.controller.publish(&activation).await;
                    // A missing answer fails here, with its id.
                    lab.controller.answered(activation.id()).await;
                    ids.push(activation.id().to_owned());
                    // By count, not by time: on a slow machine as many containers die as on a fast one.
                    if n % KILL_EACH == KILL_EACH - 1 {
                        kill_a_container(lab.clone(), killed.clone()).await;
                    }
                    if n % 500 == 499 {
                        println!("{} of {total} in {:.0?}", n + 1, start.elapsed());
                    }
                }
            })
        })
        .collect();
    let mut ids = Vec::new();
    let mut highest = 0;
    for worker in workers {
        ids.extend(worker.await.expect("a worker does not fail"));
        highest = highest.max(invoker.resident_bytes());
    }

    assert_eq!(ids.len(), total);
    let (passed, failed) = store.counts();
    let killed = killed.load(Ordering::Relaxed);
    println!(
        "{total} activations in {:.1?}; {killed} containers killed, {failed} of {} store requests failed, {} MB resident",
        start.elapsed(),
        passed + failed,
        highest >> 20
    );
    assert!(killed > 0 && failed > 0, "nothing went wrong: {killed} killed, {failed} failed");
    assert!(highest < MEMORY_BOUND, "the invoker grew to {highest} bytes");
    // A run that ends twice would be seen by the double as a second ack.
    lab.controller.finish().await;
    assert!(invoker.stop().await.success());
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
    async fn before(host: &str, delay: Duration) -> Self {
        let upstream =
            host.strip_prefix("unix://").expect("the engine of the tests is on a unix socket").to_owned();
        let socket = std::env::temp_dir().join(format!("rewind-slow-{}.sock", std::process::id()));
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
