//! Services that go away and come back while activations are under way. Nothing is lost without an answer,
//! nothing runs twice, and service resumes without help.

use rewind_tests::Lab;
use rewind_tests::env::Services;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use rewind_tests::proxy::FaultyStore;
use serde_json::json;
use std::time::{Duration, Instant};

/// By when everything must be answered.
const PATIENCE: Duration = Duration::from_secs(90);

/// Publishes activations of several actions, `window` at a time, and calls `disturb` after each tenth.
async fn soak(
    lab: &Lab,
    invoker: &Invoker,
    count: usize,
    window: usize,
    mut disturb: impl AsyncFnMut(usize),
) {
    let actions: Vec<String> = (0..4).map(|n| format!("guest/echo{n}")).collect();
    let mut revisions = Vec::new();
    for action in &actions {
        revisions.push(lab.store.put_action(&Action::new(action, "native:1", NATIVE).limit("logs", 1)).await);
    }
    let begun = Instant::now();
    let mut ids: Vec<String> = Vec::new();
    while ids.len() < count {
        let n = ids.len();
        let activation = Activation::of(&actions[n % 4])
            .revision(&revisions[n % 4])
            .with("blocking", n.is_multiple_of(3).into())
            .content(json!({"n": n}));
        lab.controller.publish(&activation).await;
        ids.push(activation.id().to_owned());
        if ids.len() >= window {
            let oldest = &ids[ids.len() - window..ids.len() - window + 1];
            let left = lab.controller.unanswered(oldest, PATIENCE).await;
            assert!(left.is_empty(), "{left:?} not answered\n{}", invoker.tail());
        }
        if ids.len().is_multiple_of(10) {
            disturb(ids.len()).await;
        }
    }
    let left = lab.controller.unanswered(&ids, PATIENCE).await;
    assert!(left.is_empty(), "{} of {} not answered: {left:?}\n{}", left.len(), ids.len(), invoker.tail());
    let took = begun.elapsed();
    eprintln!("{count} activations in {took:?}: {:.0}/s", count as f64 / took.as_secs_f64());
}

const NATIVE: &str = include_str!("../demo/plant.native");

fn cpu(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).map_or(0, |f| f.iter().filter_map(|t| t.parse::<u64>().ok()).sum());
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn many_activations_through_few_containers() {
    let lab = Lab::new("soak").await;
    let invoker = lab.invoker().isolation("none").user_memory("4096 m").start(&lab).await;
    soak(&lab, &invoker, 40, 16, async |_| ()).await;
    let before = cpu(invoker.pid());
    soak(&lab, &invoker, 1000, 16, async |_| ()).await;
    let used = cpu(invoker.pid()) - before;
    eprintln!(
        "{:?} of processor time an activation, {} MB resident",
        used / 1000,
        invoker.resident_bytes() >> 20
    );
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_is_killed_and_comes_back() {
    let services = Services::own("kafka", &[]);
    let lab = Lab::within(&services, "kafkaout", &["0"]).await;
    let invoker = lab.invoker().isolation("none").user_memory("4096 m").start(&lab).await;
    soak(&lab, &invoker, 200, 16, async |n| {
        if n == 60 || n == 130 {
            services.restart("kafka", n == 130);
        }
    })
    .await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_fails_now_and_then() {
    let lab = Lab::new("storeout").await;
    let upstream = lab.services.couchdb.clone();
    let proxy = FaultyStore::before(&upstream, 0).await;
    let invoker =
        lab.invoker().isolation("none").user_memory("4096 m").store_at(proxy.address).start(&lab).await;
    soak(&lab, &invoker, 40, 16, async |_| ()).await;
    proxy.fail(100);
    soak(&lab, &invoker, 200, 16, async |_| ()).await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_answers_each_activation_once() {
    let lab = Lab::new("killrand").await;
    let builder = lab.invoker().isolation("none").user_memory("4096 m");
    let mut invoker = Some(builder.start(&lab).await);
    let action = Action::new("guest/echo", "native:1", NATIVE);
    let revision = lab.store.put_action(&action).await;
    let mut ids = Vec::new();
    for round in 0..4_u64 {
        for n in 0..30 {
            let activation = Activation::of("guest/echo")
                .revision(&revision)
                .with("blocking", (n % 2 == 0).into())
                .content(json!({"round": round, "n": n}));
            lab.controller.publish(&activation).await;
            ids.push(activation.id().to_owned());
            tokio::time::sleep(Duration::from_millis(7 * (round + 1))).await;
        }
        if let Some(mut running) = invoker.take() {
            running.kill();
        }
        invoker = Some(builder.start(&lab).await);
    }
    let running = invoker.take().expect("just started");
    let left = lab.controller.unanswered(&ids, PATIENCE).await;
    assert!(left.is_empty(), "{left:?}\n{}", running.tail());
    let errors = ids
        .iter()
        .filter(|id| lab.controller.acks_of(id).iter().any(|ack| ack.value["isSystemError"] == true))
        .count();
    eprintln!("{} activations, {errors} cut off", ids.len());
    assert!(running.stop().await.success());
    lab.controller.finish().await;
}
