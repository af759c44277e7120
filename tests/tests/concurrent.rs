//! Several requests in one container at a time (contract 5.9): the Node runtime, told to allow it.
//!
//! What overlaps shares the container and may see each other. What comes after a quiet moment finds nothing
//! of it: the rewind happens when the last request in flight ends.

use rewind_tests::Lab;
use rewind_tests::controller::annotation;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// The action's limit.
const CONCURRENCY: usize = 5;
/// How long anything may take that is done within seconds.
const SOON: Duration = Duration::from_secs(40);

/// Waits until `together` requests are in it, and `ms` more; says what it found of other waves and how many
/// were in it at once. The timer is for the case that fewer come: the answer says so then.
const MEET: &str = r"
const os = require('os');
const waves = new Set();
let inside = 0, most = 0, waiting = [];
function main(a) {
  const found = [...waves].filter((wave) => wave !== a.wave);
  waves.add(a.wave);
  inside += 1;
  most = Math.max(most, inside);
  console.log('begin ' + a.n);
  return new Promise((met) => {
    waiting.push(met);
    setTimeout(met, 20000).unref();
    if (inside >= a.together) waiting.splice(0).forEach((met) => met());
  }).then(() => new Promise((slept) => setTimeout(slept, a.ms))).then(() => {
    inside -= 1;
    console.error('end ' + a.n);
    return { found, most, host: os.hostname() };
  });
}";

/// Publishes `count` requests of one wave at once; their results and the texts of their records' log lines.
async fn wave(lab: &Lab, base: &Activation, number: usize, count: usize, content: Value) -> Vec<Value> {
    let mut ids = Vec::new();
    for n in 0..count {
        let mut content = content.clone();
        content["wave"] = number.into();
        content["n"] = format!("{number}.{n}").into();
        let id = rewind_tests::message::activation_id();
        let activation = base.clone().with("activationId", id.clone().into()).blocking().content(content);
        lab.controller.publish(&activation).await;
        ids.push(id);
    }
    let mut results = Vec::new();
    let mut lines: BTreeMap<String, usize> = BTreeMap::new();
    for id in ids {
        lab.controller.answered(&id).await;
        let record =
            lab.store.activation("guest", &id, SOON).await.unwrap_or_else(|| panic!("no record of {id}"));
        assert_eq!(record["response"]["statusCode"], 0, "{record}");
        assert_eq!(annotation(&record, "limits").expect("limits")["concurrency"], CONCURRENCY);
        for line in record["logs"].as_array().expect("logs") {
            // Time, stream, text.
            let text = line.as_str().and_then(|line| line.split_once(' ')).expect("a line has a time").1;
            *lines.entry(text.trim_start().to_owned()).or_default() += 1;
        }
        results.push(record["response"]["result"].clone());
    }
    // Which line is in whose record is first come, first served; but each is in one, and nothing else is.
    let expected: BTreeMap<String, usize> = (0..count)
        .flat_map(|n| [format!("stdout: begin {number}.{n}"), format!("stderr: end {number}.{n}")])
        .map(|line| (line, 1))
        .collect();
    assert_eq!(lines, expected);
    results
}

async fn until_rewound(invoker: &Invoker, times: usize) {
    let deadline = Instant::now() + SOON;
    loop {
        let rewinds = invoker.metric("rewind_seconds_count", "").await;
        if rewinds >= times as f64 {
            assert!(rewinds < times as f64 + 0.5, "{rewinds} rewinds in place of {times}");
            return;
        }
        assert!(Instant::now() < deadline, "{rewinds} rewinds in place of {times}\n{}", invoker.tail());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_overlap_share_a_container_and_the_next_find_nothing_of_them() {
    let lab = Lab::new("together").await;
    let invoker = lab
        .invoker()
        .isolation("rewind")
        .env("CONFIG_whisk_containerFactory_containerArgs_extraEnvVars_0", "__OW_ALLOW_CONCURRENT=true")
        .env("CONFIG_whisk_concurrencyLimit_max", CONCURRENCY)
        // One container has room: what does not fit into it waits.
        .user_memory("256 m")
        .start(&lab)
        .await;
    let action = Action::new("guest/meet", "nodejs:20", MEET).limit("concurrency", CONCURRENCY as u64);
    let revision = lab.store.put_action(&action).await;
    let base = Activation::of(action.id()).revision(&revision);

    // One alone, which initialises the container; then as many as may, three times.
    let mut hosts = Vec::new();
    for (number, count) in [1, CONCURRENCY, CONCURRENCY, CONCURRENCY].into_iter().enumerate() {
        let results = wave(&lab, &base, number, count, json!({"together": count, "ms": 0})).await;
        for result in results {
            assert_eq!(result["most"], count, "they did not overlap: {result}");
            assert_eq!(result["found"], json!([]), "wave {number} found another");
            hosts.push(result["host"].clone());
        }
        // When the last ended, and not before: one rewind for the whole wave.
        until_rewound(&invoker, number + 1).await;
    }
    // More than may: the limit holds.
    for result in wave(&lab, &base, 4, 2 * CONCURRENCY, json!({"together": 1, "ms": 200})).await {
        assert!(result["most"].as_u64().is_some_and(|most| most <= CONCURRENCY as u64), "{result}");
        assert_eq!(result["found"], json!([]), "the last wave found another");
        hosts.push(result["host"].clone());
    }
    hosts.dedup();
    assert_eq!(hosts.len(), 1, "more than one container was used: {hosts:?}");
    assert!(invoker.metric("rewind_quarantined_total", "").await < 0.5, "{}", invoker.tail());
    lab.controller.finish().await;
    assert!(invoker.stop().await.success());
}
