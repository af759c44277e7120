//! Bad input: each gets the contract's answer or a clear error that names the offending value; the process goes
//! on, nothing is lost, nothing loops.

use rewind_tests::Lab;
use rewind_tests::controller::{Ack, Kind};
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::time::Duration;

const ECHO: &str = "def main(a): return a";

/// An action that answers, and a check that it still does.
async fn works(lab: &Lab, what: &str) {
    let ack = lab.controller.ask(Activation::of("guest/works").content(json!({"ok": true}))).await;
    assert_eq!((ack.status(), ack.result()), (Some(0), &json!({"ok": true})), "after {what}: {}", ack.value);
}

async fn start(name: &str) -> (Lab, Invoker) {
    let lab = Lab::new(name).await;
    lab.store.put_action(&Action::new("guest/works", "scripted:1", ECHO).limit("memory", 128)).await;
    let invoker = lab.invoker().start(&lab).await;
    (lab, invoker)
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_read_are_named_and_dropped() {
    let (lab, invoker) = start("badmessage").await;
    let good = || Activation::of("guest/works");
    let unreadable = [
        String::new(),
        "not json".to_owned(),
        "{}".to_owned(),
        "[1,2,3]".to_owned(),
        "null".to_owned(),
        "\u{0}\u{1}".to_owned(),
        "{\"transid\":".repeat(200),
        "[".repeat(100_000),
        good().without("user").value.to_string(),
        good().without("initArgs").value.to_string(),
        good().without("activationId").value.to_string(),
        good().with("action", json!({"path": "guest"})).value.to_string(),
        good().with("activationId", "not an id".into()).value.to_string(),
    ];
    for text in &unreadable {
        lab.controller.publish_text(0, text).await;
    }
    works(&lab, "unreadable messages").await;
    let dropped = invoker.metric("rewind_unparsable_messages_total", "").await;
    assert!(dropped >= 12.0, "only {dropped} of {} were counted", unreadable.len());
    // Tolerated by the contract: a plain string as action, an unreadable transaction id.
    for odd in [good().with("action", "guest/works".into()), good().with("transid", json!({"odd": 1}))] {
        lab.controller.publish(&odd).await;
        let missing = lab.controller.unanswered(&[odd.id().to_owned()], Duration::from_secs(60)).await;
        assert!(missing.is_empty(), "not answered: {}", odd.value);
    }
    assert!(invoker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn actions_that_cannot_be_had_are_answered() {
    let (lab, invoker) = start("badaction").await;
    let store = &lab.store;
    store.put_action(&Action::new("guest/unknownkind", "cobol:60", "x")).await;
    let sequence = json!({"kind": "sequence", "components": ["/guest/a"]});
    let mut document = Action::new("guest/sequence", "scripted:1", "x").value;
    document["exec"] = sequence;
    store.put_document("guest/sequence", document).await;
    let mut document = Action::new("guest/rule", "scripted:1", "x").value;
    document["entityType"] = "rule".into();
    store.put_document("guest/rule", document).await;
    store.put_document("guest/rubbish", json!({"entityType": "action", "exec": 5})).await;
    let mut other = Action::new("guest/differs", "scripted:1", ECHO);
    store.put_action_with_attachment(&other, "one", "text/plain", ECHO.as_bytes()).await;
    other.value["exec"]["code"] = json!({"attachmentName": "couch:another", "attachmentType": "text/plain"});
    store.put_action(&other).await;
    let mut elsewhere = Action::new("guest/elsewhere", "scripted:1", ECHO);
    elsewhere.value["exec"]["code"] =
        json!({"attachmentName": "s3:bucket/key", "attachmentType": "text/plain"});
    store.put_action(&elsewhere).await;

    // Action, status, what the error must contain.
    let rows = [
        ("guest/nobody", 1, "Action could not be found or may have been deleted."),
        ("guest/sequence", 3, "Action could not be fetched."),
        ("guest/rule", 3, "Action version is not compatible and cannot be invoked."),
        ("guest/rubbish", 3, "Action version is not compatible and cannot be invoked."),
        ("guest/differs", 3, ""),
        ("guest/elsewhere", 3, ""),
        ("guest/unknownkind", 3, ""),
    ];
    for (action, status, text) in rows {
        let ack = lab.controller.ask(Activation::of(action)).await;
        let error = ack.result()["error"].as_str().unwrap_or_default().to_owned();
        assert_eq!(ack.status(), Some(status), "{action}: {}", ack.value);
        assert!(!error.is_empty() && error.contains(text), "{action}: {error}");
        assert_eq!(ack.kind, Kind::Combined, "{action}");
        let record = lab.store.activation("guest", ack.id(), Duration::from_secs(20)).await;
        assert!(record.is_some(), "{action}: no record");
    }
    works(&lab, "actions that cannot be had").await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

/// An object in which arrays and objects are nested, `levels` of them, itself included.
fn nested(levels: usize) -> Value {
    let mut value = json!("deep");
    for level in 1..levels {
        value = if level % 2 == 0 { json!({"v": value}) } else { json!([value]) };
    }
    json!({"v": value})
}

/// The deepest JSON that is read (quirks, "Narrower than upstream").
const DEPTH: usize = 127;

/// Publishes an activation of `action` with these arguments, as text; its status by the user event, which says
/// nothing of the result: this test's reader goes no deeper than the program, and a record is deeper than what
/// it holds.
async fn status_of(lab: &Lab, action: &str, arguments: &str) -> Value {
    let activation = Activation::of(action).content(json!("ARGUMENTS"));
    let text = activation.value.to_string().replace("\"ARGUMENTS\"", arguments);
    lab.controller.publish_as(0, &activation, &text).await;
    lab.controller.answered(activation.id()).await;
    lab.controller.event(activation.id()).await["body"]["statusCode"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_as_deep_as_may_be_passes_and_deeper_is_answered() {
    let (lab, invoker) = start("deep").await;
    // As deep as can be read of a record.
    for levels in [2, 100, DEPTH - 3] {
        let ack = lab.controller.ask(Activation::of("guest/works").content(nested(levels))).await;
        assert_eq!((ack.status(), ack.result()), (Some(0), &nested(levels)), "{levels} levels");
        let record = lab.store.activation("guest", ack.id(), Duration::from_secs(20)).await;
        assert_eq!(record.expect("a record")["response"]["result"], nested(levels), "{levels} levels");
    }
    // The runtime answers with text of its own, so that it is not its limits that are tried.
    let code = "def main(a): return {'__raw': {'body': '[' * a['levels'] + ']' * a['levels']}}";
    lab.store.put_action(&Action::new("guest/deep", "scripted:1", code).limit("memory", 128)).await;
    for levels in [DEPTH, DEPTH + 1, 500, 100_000] {
        let arguments = format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        let status = status_of(&lab, "guest/works", &arguments).await;
        assert_eq!(status, if levels <= DEPTH { 0 } else { 1 }, "arguments of {levels} levels");
        let status = status_of(&lab, "guest/deep", &json!({"levels": levels}).to_string()).await;
        assert_eq!(status, if levels <= DEPTH { 0 } else { 2 }, "an answer of {levels} levels");
    }
    let arguments = nested(DEPTH - 3);
    let refused = Activation::of("guest/works").content(json!([[[[arguments]]]]));
    let error = lab.controller.ask(refused).await.result()["error"].clone();
    assert!(error.as_str().is_some_and(|text| text.contains("recursion limit")), "{error}");
    let ack = lab.controller.ask(Activation::of("guest/deep").content(json!({"levels": DEPTH + 1}))).await;
    let error = ack.result()["error"].as_str().unwrap_or_default();
    let text = "The action did not produce a valid JSON or JSON Array response: [[[[";
    assert!(error.starts_with(text), "{error}");
    works(&lab, "deep JSON").await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn absurd_limits_are_refused() {
    let (lab, invoker) = start("badlimits").await;
    let put = |name: &str| Action::new(&format!("guest/{name}"), "scripted:1", ECHO);
    lab.store.put_action(&put("huge").limit("memory", 100_000)).await;
    lab.store.put_action(&put("patient").limit("timeout", 999_999_999)).await;
    lab.store.put_action(&put("chatty").limit("logs", 100_000)).await;
    lab.store.put_action(&put("crowded").limit("concurrency", 100_000)).await;
    let rows = [
        ("huge", "memory size 100000 MB exceeds allowed threshold of 512 MB"),
        ("patient", "duration 999999999 milliseconds exceeds allowed threshold of 300000 milliseconds"),
        ("chatty", "log size 100000 MB exceeds allowed threshold of 10 MB"),
        ("crowded", "concurrency 100000 exceeds allowed threshold of 1"),
    ];
    for (name, text) in rows {
        let ack = lab.controller.ask(Activation::of(&format!("guest/{name}"))).await;
        assert_eq!(ack.status(), Some(1), "{name}: {}", ack.value);
        assert_eq!(ack.result()["error"], format!("requirement failed: {text}"), "{name}");
    }
    // Limits of the user that no action can meet.
    let poor = Activation::of("guest/works").user_limit("maxActionMemory", 1.into());
    let ack = lab.controller.ask(poor).await;
    assert_eq!(ack.status(), Some(1), "{}", ack.value);
    works(&lab, "absurd limits").await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn runtimes_that_misbehave_do_not_take_others_with_them() {
    let (lab, invoker) = start("badruntime").await;
    let python = |name: &str, code: &str| {
        Action::new(&format!("guest/{name}"), "scripted:1", code).limit("memory", 128)
    };
    let hang = python("hang", "import time\ndef main(a): time.sleep(600)").limit("timeout", 1000);
    let die = python("die", "import os\ndef main(a): os._exit(1)");
    let flood =
        python("flood", "def main(a):\n    for n in range(200000): print('x' * 200)\n    return {}\n")
            .limit("logs", 1);
    let twice = python(
        "twice",
        "def main(a): return {'__raw': {'body': '{\"a\":1}HTTP/1.1 200 OK\\r\\nContent-Length: 2\\r\\n\\r\\n{}', 'short': -41}}",
    );
    for action in [&hang, &die, &flood, &twice] {
        lab.store.put_action(action).await;
    }
    // The address of the one that dies goes to the next container at once: neither must get the other's request.
    for round in 0..3 {
        let (dying, echo) = tokio::join!(
            lab.controller.ask(Activation::of(die.id())),
            lab.controller.ask(Activation::of("guest/works").content(json!({"round": round})))
        );
        assert_eq!(dying.status(), Some(2), "{}", dying.value);
        assert_eq!(echo.result(), &json!({"round": round}), "{}", echo.value);
    }
    let hung = lab.controller.ask(Activation::of(hang.id())).await;
    assert_eq!(hung.result()["error"], "The action exceeded its time limits of 1000 milliseconds.");
    let flooded = lab.controller.ask(Activation::of(flood.id())).await;
    assert_eq!(flooded.status(), Some(0), "{}", flooded.value);
    let doubled = lab.controller.ask(Activation::of(twice.id())).await;
    assert!(matches!(doubled.status(), Some(0 | 2)), "{}", doubled.value);
    works(&lab, "misbehaving runtimes").await;
    assert!(invoker.resident_bytes() < 200 << 20, "{} bytes resident", invoker.resident_bytes());
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_blocked_namespace_is_refused_and_not_recorded() {
    let lab = Lab::new("blocked").await;
    lab.store.block("guest").await;
    let invoker = lab.invoker().start(&lab).await;
    let activation = Activation::of("guest/works").blocking();
    let acks: Vec<Ack> = lab.controller.invoke(&activation).await;
    assert_eq!(acks.len(), 1);
    assert_eq!(
        (acks[0].kind, acks[0].value["response"].is_string()),
        (Kind::Combined, true),
        "{:?}",
        acks[0]
    );
    assert_eq!(lab.store.activation("guest", activation.id(), Duration::from_secs(1)).await, None);
    assert!(invoker.stop().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_with_mistakes_names_all_of_them() {
    let lab = Lab::new("badstart").await;
    let mut invoker = lab
        .invoker()
        .env("PORT", "eighty")
        .env("CONFIG_whisk_containerPool_userMemory", "plenty")
        .env("RUNTIMES_MANIFEST", "{\"runtimes\":")
        .without("KAFKA_HOSTS")
        .spawn();
    let status = invoker.exited(Duration::from_secs(60)).await.expect("it ends");
    assert_eq!(status.code(), Some(1));
    let output = invoker.output();
    for value in ["eighty", "plenty", "RUNTIMES_MANIFEST", "KAFKA_HOSTS"] {
        assert!(output.contains(value), "{value} is not named:\n{output}");
    }

    let mut invoker = lab.invoker().argument("--no-such-option").spawn();
    let status = invoker.exited(Duration::from_secs(60)).await.expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(invoker.output().contains("--no-such-option"), "{}", invoker.output());

    let mut invoker = lab.invoker().env("REWIND_DOCKER_HOST", "unix:///nowhere/docker.sock").spawn();
    let status = invoker.exited(Duration::from_secs(60)).await.expect("it ends");
    assert_eq!(status.code(), Some(1));
    assert!(invoker.output().contains("/nowhere/docker.sock"), "{}", invoker.output());
}

#[tokio::test(flavor = "multi_thread")]
async fn arguments_no_action_can_use_are_answered() {
    let (lab, invoker) = start("badarguments").await;
    for content in [json!([1, 2]), json!({}), json!({"deep": "x".repeat(900_000)})] {
        let ack = lab.controller.ask(Activation::of("guest/works").content(content.clone())).await;
        assert!(ack.status().is_some(), "{}", ack.value);
    }
    for odd in [json!("text"), json!(5), json!(true)] {
        let activation = Activation::of("guest/works").content(odd.clone());
        lab.controller.publish(&activation).await;
        let missing = lab.controller.unanswered(&[activation.id().to_owned()], Duration::from_secs(30)).await;
        // A scalar is no content the contract knows: answered or dropped as unreadable, but never fatal.
        println!("content {odd}: {}", if missing.is_empty() { "answered" } else { "dropped" });
    }
    let locked = Activation::of("guest/works")
        .with("lockedArgs", json!({"a": "aes-256"}))
        .content(json!({"a": "rubbish"}));
    let ack = lab.controller.ask(locked).await;
    assert!(matches!(ack.status(), Some(1..=3)), "{}", ack.value);
    let _: &Value = ack.result();
    works(&lab, "odd arguments").await;
    assert!(invoker.stop().await.success());
}
