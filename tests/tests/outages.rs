//! Services that go away and come back while activations are under way. Nothing is lost without an answer,
//! nothing runs twice, and service resumes without help.

use rewind_tests::Lab;
use rewind_tests::env::Services;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use rewind_tests::proxy::FaultyStore;
use serde_json::json;
use std::time::{Duration, Instant};

const ECHO: &str = "def main(args):\n    return {'echo': args}\n";
/// By when everything must be answered.
const PATIENCE: Duration = Duration::from_secs(40);

/// Publishes activations of several actions, `window` at a time, and calls `disturb` after each tenth.
async fn soak(lab: &Lab, invoker: &Invoker, count: usize, window: usize, mut disturb: impl AsyncFnMut(usize)) {
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
            .with("blocking", (n % 3 == 0).into())
            .content(json!({"n": n}));
        lab.controller.publish(&activation).await;
        ids.push(activation.id().to_owned());
        if ids.len() >= window {
            let oldest = &ids[ids.len() - window..ids.len() - window + 1];
            let left = lab.controller.unanswered(oldest, PATIENCE).await;
            assert!(left.is_empty(), "{left:?} not answered\n{}", invoker.tail());
        }
        if ids.len() % 10 == 0 {
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
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let dir = task.unwrap().path();
        let stat = std::fs::read_to_string(dir.join("stat")).unwrap_or_default();
        let comm = std::fs::read_to_string(dir.join("comm")).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let sw = std::fs::read_to_string(dir.join("status")).unwrap_or_default();
        let sw: Vec<&str> = sw.lines().filter(|l| l.contains("ctxt")).collect();
        eprintln!("activation thread {} user {} sys {} {:?}", comm.trim(), fields[11], fields[12], sw);
    }

    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).map_or(0, |f| f.iter().filter_map(|t| t.parse::<u64>().ok()).sum());
    Duration::from_millis(ticks * 10)
}

#[tokio::test(flavor = "multi_thread")]
async fn soak_alone() {
    let lab = Lab::new("soak").await;
    let mode = std::env::var("MODE").unwrap_or("none".into());
    let count = std::env::var("COUNT").ok().and_then(|c| c.parse().ok()).unwrap_or(500);
    let invoker = lab.invoker().isolation(&mode).user_memory("4096 m").env("W", std::env::var("W").unwrap_or("2".into())).env("W", std::env::var("W").unwrap_or("2".into())).env("REWIND_LOG", std::env::var("RLOG").unwrap_or("info".into())).start(&lab).await;
    soak(&lab, &invoker, 40, 16, async |_| ()).await;
    let before = cpu(invoker.pid());
    soak(&lab, &invoker, count, 16, async |_| ()).await;
    let used = cpu(invoker.pid()) - before;
    eprintln!("{:?} of processor time an activation, {} MB resident", used / count as u32, invoker.resident_bytes() >> 20);
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}
