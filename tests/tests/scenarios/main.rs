//! The recorded scenarios of the genuine system, replayed against this invoker.
//!
//! Each fixture holds what the genuine controller sent to the invoker's topic, the action documents it
//! meant, and everything the genuine invoker did about it: acks, user events, records, and the requests it
//! sent into the container. The same messages are published here, and every message ours sends must be the
//! same, in the same order, but for moments in time and random parts (`compare`).
//!
//! Where ours answers better than upstream on purpose, the scenario is in [`BETTER`] with the reason; the
//! same list is in `docs/quirks.md`.

mod compare;
mod replay;

use compare::{normal, same};
use replay::{Fixture, Replay, Seen};
use serde_json::{Value, json};

/// Scenarios upstream leaves without an answer, or answers in a way that cannot be compared.
const BETTER: &[(&str, &str)] = &[
    (
        "35k-503-warm",
        "upstream drops a job whose container answers 503 on its first run; ours tries again and answers",
    ),
    (
        "36e-init-503",
        "upstream drops a job whose container answers 503 to /init; ours tries again and answers",
    ),
];

/// Scenarios whose messages no invoker can answer: they have no id, or cannot be read.
const UNANSWERABLE: &[&str] = &["47-direct-malformed", "48-direct-missing-user", "49-direct-no-initargs"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_recorded_scenario_is_answered_as_the_genuine_invoker_did() {
    let replay = Replay::start().await;
    let fixtures = Fixture::all();
    assert!(fixtures.len() > 50, "only {} fixtures", fixtures.len());
    let mut differences = Vec::new();
    let mut compared = 0;
    for fixture in &fixtures {
        replay.put_documents(fixture).await;
        let answerable = !UNANSWERABLE.contains(&fixture.name.as_str());
        for message in &fixture.messages {
            replay.publish(message, answerable).await;
            if let Some(id) = Fixture::id_of(message).filter(|_| answerable) {
                replay.until_answered(&id).await;
            }
        }
        if !answerable {
            continue; // That the invoker lives on and says nothing is seen by the scenarios that follow.
        }
        let seen = replay.seen(fixture).await;
        let better = BETTER.iter().any(|(name, _)| *name == fixture.name);
        let found = if better { only_a_whisk_error(&seen) } else { differ(fixture, &seen) };
        compared += 1;
        println!("{} {}", if found.is_empty() { "same     " } else { "DIFFERENT" }, fixture.name);
        differences.extend(found.into_iter().map(|text| format!("{}: {text}", fixture.name)));
    }
    replay.stop().await;
    println!("{compared} scenarios compared, {} differences", differences.len());
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

fn only_a_whisk_error(seen: &Seen) -> Vec<String> {
    match seen.acks.as_slice() {
        [ack] if ack["value"]["isSystemError"] == true => vec![],
        other => vec![format!("wanted one ack with a whisk error, got {other:?}")],
    }
}

fn differ(fixture: &Fixture, seen: &Seen) -> Vec<String> {
    let mut differences = Vec::new();
    for (what, recorded, found) in [
        ("acks", &fixture.acks, &seen.acks),
        ("events", &fixture.events, &seen.events),
        ("records", &fixture.records, &seen.records),
        ("container", &fixture.container, &seen.container),
    ] {
        if recorded.len() != found.len() {
            differences.push(format!(
                "{what}: {} recorded, {} seen: {}",
                recorded.len(),
                found.len(),
                json!(found)
            ));
            continue;
        }
        for (recorded, found) in recorded.iter().zip(found) {
            if recorded.get("raw").is_some() {
                continue; // Cut so that it is no JSON any more; only its being there counts.
            }
            let (recorded, found) = (log_order(normal(recorded)), log_order(normal(found)));
            if !same(&recorded, &found) {
                differences.push(format!("{what}:\n  recorded {recorded}\n  found    {found}"));
            }
        }
    }
    differences
}

/// Lines of stdout and stderr come through two pipes; their order among each other is nobody's promise.
fn log_order(mut record: Value) -> Value {
    if let Some(lines) = record.get_mut("logs").and_then(Value::as_array_mut) {
        lines.sort_by_key(|line| line.as_str().is_some_and(|line| line.starts_with("stderr: ")));
    }
    record
}
