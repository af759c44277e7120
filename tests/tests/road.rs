//! The main road: activations through a real Kafka, into real containers, answered and recorded; and what
//! becomes of them when the invoker is told to end, is killed, or gets them twice.

use rewind_tests::Lab;
use rewind_tests::controller::Ack;
use rewind_tests::env::Services;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const ECHO: &str = "def main(args):\n    print('hello')\n    return {'echo': args}\n";
/// Sleeps, and says that it did in a file of its container.
const SLEEP: &str =
    "import time\ndef main(args):\n    time.sleep(args['seconds'])\n    return {'slept': args['seconds']}\n";
/// How long anything may take that is done within seconds.
const SOON: Duration = Duration::from_secs(40);

async fn echo(lab: &Lab) -> String {
    lab.store.put_action(&Action::new("guest/echo", "python:3.11", ECHO)).await
}

async fn record(lab: &Lab, id: &str) -> Value {
    lab.store.activation("guest", id, SOON).await.unwrap_or_else(|| panic!("no record of {id}"))
}

fn shapes(acks: &[Ack]) -> Vec<&'static str> {
    acks.iter()
        .map(|ack| match (ack.frees_slot(), ack.status().is_some()) {
            (false, true) => "result",
            (false, false) => "result, shrunk",
            (true, true) => "combined",
            (true, false) if ack.value.get("response").is_some() => "combined, shrunk",
            (true, false) => "completion",
        })
        .collect()
}

/// Waits until `done`.
async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !done().await {
        assert!(Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Waits until the container of `action` has a request in flight.
async fn until_running(invoker: &Invoker, count: f64) {
    until("requests are in flight", async || {
        invoker.metric("counter_invoker_activationRun_start_total", "").await >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_isolation_answers_and_records() {
    for isolation in ["none", "single-use", "rewind"] {
        let lab = Lab::new("road").await;
        let invoker = lab.invoker().isolation(isolation).start(&lab).await;
        let revision = echo(&lab).await;
        for n in 0..5 {
            let activation = Activation::of("guest/echo").revision(&revision).content(json!({"n": n}));
            let id = activation.id().to_owned();
            let ack = lab.controller.ask(activation).await;
            assert_eq!(ack.result(), &json!({"echo": {"n": n}}), "{isolation}: {}", invoker.tail());
            let record = record(&lab, &id).await;
            assert_eq!(record["response"], *ack.response());
            let logs = record["logs"].as_array().expect("logs");
            assert!(
                logs.len() == 1 && logs[0].as_str().is_some_and(|line| line.ends_with("stdout: hello")),
                "{logs:?}"
            );
        }
        let cold =
            invoker.metric("counter_invoker_containerStart_counter_total", r#"containerState="cold""#).await;
        if isolation == "none" {
            assert!((cold - 1.0).abs() < 0.1, "{cold} containers for one action after another");
        }
        if isolation == "single-use" {
            assert!((cold - 5.0).abs() < 0.1, "{cold} containers for five requests");
        }
        assert!(invoker.stop().await.success());
        assert_eq!(lab.docker.containers(&lab.container_prefix()), []);
        lab.controller.finish().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledgements_are_those_of_the_table() {
    let lab = Lab::new("acks").await;
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    echo(&lab).await;
    lab.store.put_action(&Action::new("guest/quiet", "python:3.11", ECHO).limit("logs", 0)).await;
    lab.store.put_action(&Action::new("guest/broken", "python:3.11", "def main(:\n")).await;
    for (action, blocking, expected) in [
        ("guest/echo", true, &["result", "completion"][..]),
        ("guest/echo", false, &["completion"]),
        ("guest/quiet", true, &["combined"]),
        ("guest/quiet", false, &["completion"]),
        ("guest/broken", true, &["result", "completion"]),
        ("guest/nothere", true, &["combined"]),
        ("guest/nothere", false, &["combined, shrunk"]),
    ] {
        let mut activation = Activation::of(action);
        if blocking {
            activation = activation.blocking();
        }
        let acks = lab.controller.invoke(&activation).await;
        assert_eq!(shapes(&acks), expected, "{action} blocking={blocking}\n{}", invoker.tail());
        let event = lab.controller.event(activation.id()).await;
        assert_eq!(event["body"]["activationId"], activation.id());
        record(&lab, activation.id()).await;
    }
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_acknowledgement_that_the_broker_finds_too_large_goes_by_reference() {
    // The program itself would send fifty times as much.
    let lab = Lab::limited(Services::get(), "toolarge", &["0"], 20_000).await;
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    let code = "def main(args):\n    return {'text': 'x' * args['length']}\n";
    lab.store.put_action(&Action::new("guest/logged", "python:3.11", code)).await;
    lab.store.put_action(&Action::new("guest/quiet", "python:3.11", code).limit("logs", 0)).await;
    for (action, blocking, length, expected) in [
        ("guest/logged", true, 40_000, &["result, shrunk", "completion"][..]),
        ("guest/quiet", true, 40_000, &["combined, shrunk"]),
        ("guest/logged", false, 40_000, &["completion"]),
        // The broker's refusal leaves nothing behind in the producer.
        ("guest/logged", true, 10_000, &["result", "completion"]),
        ("guest/quiet", true, 10_000, &["combined"]),
        ("guest/quiet", true, 900_000, &["combined, shrunk"]),
        ("guest/quiet", true, 10_000, &["combined"]),
    ] {
        let activation =
            Activation::of(action).with("blocking", blocking.into()).content(json!({"length": length}));
        let acks = lab.controller.invoke(&activation).await;
        assert_eq!(shapes(&acks), expected, "{action} {blocking} {length}\n{}", invoker.tail());
        for ack in &acks {
            assert_eq!(ack.id(), activation.id());
            assert_ne!(ack.value["isSystemError"], true);
        }
        // What the controller reads in place of it is whole.
        let record = record(&lab, activation.id()).await;
        assert_eq!(record["response"]["result"]["text"].as_str().map(str::len), Some(length));
    }
    assert!(invoker.metric("rewind_acks_failed_total", "").await < 0.5, "{}", invoker.tail());
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_delivery_is_not_run_again() {
    let lab = Lab::new("twice").await;
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    let revision = echo(&lab).await;
    let activation = Activation::of("guest/echo").revision(&revision);
    let text = activation.value.to_string();
    lab.controller.publish(&activation).await;
    lab.controller.publish_text(0, &text).await;
    lab.controller.answered(activation.id()).await;
    lab.controller.publish_text(0, &text).await;
    // Something behind it, so that the repetitions have been seen.
    lab.controller.ask(Activation::of("guest/echo").revision(&revision)).await;
    let runs = invoker.metric("counter_invoker_activationRun_start_total", "").await;
    assert!((runs - 2.0).abs() < 0.1, "{runs} runs");
    assert!(invoker.stop().await.success());
    // A restart does not forget it either.
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    lab.controller.publish_text(0, &text).await;
    lab.controller.ask(Activation::of("guest/echo").revision(&revision)).await;
    let runs = invoker.metric("counter_invoker_activationRun_start_total", "").await;
    assert!((runs - 1.0).abs() < 0.1, "{runs} runs");
    assert_eq!(lab.controller.acks_of(activation.id()).len(), 1);
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn told_to_end_it_finishes_what_it_took() {
    let lab = Lab::new("drain").await;
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    lab.store.put_action(&Action::new("guest/sleep", "python:3.11", SLEEP)).await;
    let running = Activation::of("guest/sleep").blocking().content(json!({"seconds": 3}));
    lab.controller.publish(&running).await;
    until_running(&invoker, 1.0).await;
    let begun = Instant::now();
    let stopping = tokio::spawn(invoker.stop());
    lab.controller.ping(|ping| ping["isEnabled"] == false).await;
    // Left on the bus for the next one.
    let later = Activation::of("guest/sleep").blocking().content(json!({"seconds": 0}));
    lab.controller.publish(&later).await;
    let acks = lab.controller.answered(running.id()).await;
    assert_eq!(acks[0].result(), &json!({"slept": 3}));
    assert!(stopping.await.expect("not cancelled").success());
    eprintln!("ended after {:?}", begun.elapsed());
    assert_eq!(lab.docker.containers(&lab.container_prefix()), []);
    assert!(lab.controller.acks_of(later.id()).is_empty());
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    let acks = lab.controller.answered(later.id()).await;
    assert_eq!(acks[0].result(), &json!({"slept": 0}), "{}", invoker.tail());
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_end_in_time_is_answered_all_the_same() {
    let lab = Lab::new("hurry").await;
    let invoker = lab.invoker().isolation("none").env("REWIND_DRAIN_TIMEOUT", "1 second").start(&lab).await;
    lab.store.put_action(&Action::new("guest/sleep", "python:3.11", SLEEP)).await;
    let running = Activation::of("guest/sleep").blocking().content(json!({"seconds": 50}));
    lab.controller.publish(&running).await;
    until_running(&invoker, 1.0).await;
    let begun = Instant::now();
    assert!(invoker.stop().await.success());
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
    let acks = lab.controller.answered(running.id()).await;
    assert_eq!(acks[0].status(), Some(3), "{:?}", acks[0].value);
    assert_eq!(record(&lab, running.id()).await["response"]["statusCode"], 3);
    assert_eq!(lab.docker.containers(&lab.container_prefix()), []);
    // Nothing is left for the next start to answer.
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    echo(&lab).await;
    lab.controller.ask(Activation::of("guest/echo")).await;
    assert_eq!(lab.controller.acks_of(running.id()).len(), 1);
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_it_answers_at_the_next_start_and_runs_nothing_twice() {
    let lab = Lab::new("kill").await;
    let mut invoker = lab.invoker().isolation("none").start(&lab).await;
    lab.store.put_action(&Action::new("guest/sleep", "python:3.11", SLEEP)).await;
    let cut_off: Vec<_> = (0..3)
        .map(|n| {
            Activation::of("guest/sleep")
                .with("blocking", (n != 1).into())
                .content(json!({"seconds": 30 + n}))
        })
        .collect();
    for activation in &cut_off {
        lab.controller.publish(activation).await;
    }
    until_running(&invoker, 3.0).await;
    invoker.kill();
    let waiting: Vec<_> = (0..2)
        .map(|n| Activation::of("guest/sleep").blocking().content(json!({"seconds": 0, "n": n})))
        .collect();
    for activation in &waiting {
        lab.controller.publish(activation).await;
    }
    let begun = Instant::now();
    let invoker = lab.invoker().isolation("none").start(&lab).await;
    for activation in &waiting {
        let acks = lab.controller.answered(activation.id()).await;
        assert_eq!(acks[0].result(), &json!({"slept": 0}), "{}", invoker.tail());
    }
    eprintln!("serving {:?} after the kill, first ping after {:?}", begun.elapsed(), invoker.first_ping);
    for activation in &cut_off {
        let acks = lab.controller.answered(activation.id()).await;
        let blocking = activation.value["blocking"] == true;
        assert_eq!(shapes(&acks), [if blocking { "combined" } else { "combined, shrunk" }]);
        assert_eq!(acks[0].value["isSystemError"], true);
        assert_eq!(record(&lab, activation.id()).await["response"]["statusCode"], 3);
    }
    let runs = invoker.metric("counter_invoker_activationRun_start_total", "").await;
    assert!((runs - 2.0).abs() < 0.1, "{runs} runs");
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}
