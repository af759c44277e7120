//! Every row of contract 5.6 and 5.8 by a real container that behaves that way, and every row of 2.6 on a
//! real Kafka.

use futures::{StreamExt as _, stream};
use rewind_tests::Lab;
use rewind_tests::controller::{Ack, Kind};
use rewind_tests::lab::manifest;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::time::Duration;

const INVALID: &str = "The action did not produce a valid JSON or JSON Array response";
const ABRUPT: &str = "The action did not produce a valid response and exited unexpectedly.";
const NO_INIT: &str = "The action did not initialize and exited unexpectedly.";
const OUT_OF_MEMORY: &str = "The action exhausted its memory and was aborted.";
const EAT_MEMORY: &str = "x = []\nwhile True: x.append(bytearray(1 << 20))\n";

/// What a response must be.
#[derive(Clone, Debug)]
enum Want {
    /// This status and this result.
    Result(u64, Value),
    /// This status and `{"error": value}`.
    Error(u64, Value),
    /// This status and an error that begins and ends so.
    ErrorLike(u64, &'static str, &'static str),
}

/// One row: its name, the code of an action, what it is called with, and the answer.
struct Row {
    name: &'static str,
    action: Action,
    content: Value,
    want: Want,
    /// `response.size`: `Some(None)` when it must be absent.
    size: Option<Option<u64>>,
}

fn scripted(name: &'static str, code: &str, want: Want) -> Row {
    let id = format!("guest/{}", name.replace(|c: char| !c.is_ascii_alphanumeric(), "-"));
    let action = Action::new(&id, "scripted:1", code).limit("memory", 128);
    Row { name, action, content: json!({"a": 1}), want, size: None }
}

/// An action whose `/run` answers with exactly this shape.
fn raw(name: &'static str, shape: &Value, want: Want) -> Row {
    scripted(
        name,
        &format!("import json\ndef main(a): return {{'__raw': json.loads({:?})}}\n", shape.to_string()),
        want,
    )
}

/// An action whose `/init` answers with exactly this shape.
fn raw_init(name: &'static str, shape: &Value, want: Want) -> Row {
    scripted(name, &format!("RAWINIT {shape}"), want)
}

fn error(status: u64, text: &str) -> Want {
    Want::Error(status, text.into())
}

fn rows() -> Vec<Row> {
    let truncated = "The action produced a response that exceeded the allowed length: ";
    let mut rows = vec![
        scripted(
            "init-1 run-1",
            "def main(a): return {'greeting': 'hi'}",
            Want::Result(0, json!({"greeting": "hi"})),
        ),
        raw_init(
            "init-2",
            &json!({"status": 502, "body": r#"{"error":{"why":"no"}}"#}),
            Want::Error(2, json!({"why": "no"})),
        ),
        raw_init(
            "init-3 text",
            &json!({"status": 500, "body": "oops"}),
            error(2, "The action failed during initialization: oops"),
        ),
        raw_init(
            "init-3 array",
            &json!({"status": 400, "body": "[1]"}),
            error(2, "The action failed during initialization: [1]"),
        ),
        raw_init(
            "init-3 empty",
            &json!({"status": 500, "body": ""}),
            error(2, "The action failed during initialization."),
        ),
        raw_init("init-4", &json!({"body": r#"{"x":""#, "pad": 5000}), Want::ErrorLike(2, truncated, "xxx")),
        scripted("init-5", EAT_MEMORY, error(2, OUT_OF_MEMORY)),
        scripted("init-6 exit", "import os\nos._exit(3)", error(2, NO_INIT)),
        raw_init("init-6 chunked", &json!({"body": "{}", "chunked": true}), error(2, NO_INIT)),
        scripted("run-2", "def main(a): return [1, {'b': 2}]", Want::Result(0, json!([1, {"b": 2}]))),
        scripted("run-3", "def main(a): return {'error': 'bad', 'other': 1}", error(1, "bad")),
        scripted(
            "run-3 object",
            "def main(a): return {'error': {'code': 5}}",
            Want::Error(1, json!({"code": 5})),
        ),
        scripted("run-3 null", "def main(a): return {'error': None}", Want::Error(1, Value::Null)),
        raw("run-4", &json!({"status": 404, "body": r#"{"error":"gone"}"#}), error(2, "gone")),
        raw(
            "run-5 object",
            &json!({"status": 404, "body": r#"{"a":1}"#}),
            error(2, &format!(r#"{INVALID}: {{"a":1}}"#)),
        ),
        raw("run-5 array", &json!({"status": 500, "body": "[1]"}), error(2, &format!("{INVALID}: [1]"))),
        raw(
            "run-5 created",
            &json!({"status": 201, "body": r#"{"a":1}"#}),
            error(2, &format!(r#"{INVALID}: {{"a":1}}"#)),
        ),
        raw("run-6 text", &json!({"body": "nope"}), error(2, &format!("{INVALID}: nope"))),
        raw("run-6 scalar", &json!({"body": "5"}), error(2, &format!("{INVALID}: 5"))),
        raw("run-6 null", &json!({"body": "null"}), error(2, &format!("{INVALID}: null"))),
        raw("run-6 empty", &json!({"body": ""}), error(2, &format!("{INVALID}."))),
        raw("run-7", &json!({"body": r#"{"x":""#, "pad": 5000}), Want::ErrorLike(1, truncated, "xxx")),
        scripted(
            "run-8",
            &format!("def main(a):\n    {}", EAT_MEMORY.replace('\n', "\n    ")),
            error(2, OUT_OF_MEMORY),
        ),
        scripted("run-9 exit", "import os\ndef main(a): os._exit(7)", error(2, ABRUPT)),
        raw("run-9 short", &json!({"body": r#"{"a":1}"#, "short": 100}), error(2, ABRUPT)),
        raw("run-9 chunked", &json!({"body": "{}", "chunked": true}), error(2, ABRUPT)),
        raw("run-9 no length", &json!({"body": "{}", "nolength": true}), error(2, ABRUPT)),
        scripted(
            "time-out in init",
            "import time\ntime.sleep(30)",
            error(2, "The action exceeded its time limits of 1000 milliseconds during initialization."),
        ),
        scripted(
            "time-out in run",
            "import time\ndef main(a): time.sleep(30)",
            error(2, "The action exceeded its time limits of 1000 milliseconds."),
        ),
    ];
    for row in &mut rows {
        if row.name.starts_with("time-out") {
            row.action = row.action.clone().limit("timeout", 1000);
        }
        row.size = match row.name {
            "init-1 run-1" => Some(Some(18)), // Python writes {"greeting": "hi"}.
            "init-4" | "run-7" => Some(Some(5000 + 6)),
            "init-5" | "run-8" | "init-6 exit" | "run-9 exit" => Some(None),
            _ => None,
        };
    }
    rows
}

fn check(want: &Want, size: Option<Option<u64>>, ack: &Ack) -> Vec<String> {
    let mut wrong = Vec::new();
    let (status, result) = (ack.status(), ack.result());
    let (wanted, fits) = match want {
        Want::Result(status, value) => (*status, result == value),
        Want::Error(status, value) => (*status, *result == json!({"error": value})),
        Want::ErrorLike(status, start, end) => {
            let text = result["error"].as_str().unwrap_or_default();
            (*status, text.starts_with(start) && text.ends_with(end))
        }
    };
    if status != Some(wanted) || !fits {
        wrong.push(format!("status {status:?}, result {result}, wanted {want:?}"));
    }
    if let Some(size) = size
        && ack.response()["size"].as_u64() != size
    {
        wrong.push(format!("size {}, wanted {size:?}", ack.response()["size"]));
    }
    wrong
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_of_a_container_becomes_the_response_of_the_contract() {
    let lab = Lab::new("responses").await;
    let invoker = lab
        .invoker()
        .env("CONFIG_whisk_activation_payload_max", "4000 B")
        .env("CONFIG_whisk_activation_payload_truncation", "200 B")
        .start(&lab)
        .await;
    let differences: Vec<String> = stream::iter(rows())
        .map(|row| {
            let lab = &lab;
            async move {
                let revision = lab.store.put_action(&row.action).await;
                let ack = lab
                    .controller
                    .ask(Activation::of(row.action.id()).revision(&revision).content(row.content))
                    .await;
                let mut wrong = check(&row.want, row.size, &ack);
                let timeout = ack.annotation("timeout").and_then(Value::as_bool);
                if timeout != Some(row.name.starts_with("time-out")) {
                    wrong.push(format!("annotation timeout {timeout:?}"));
                }
                // The record says what the ack said.
                let record = lab.store.activation("guest", ack.id(), Duration::from_secs(10)).await;
                if record.as_ref().map(|r| &r["response"]) != Some(ack.response()) {
                    wrong.push(format!("record {record:?}"));
                }
                println!("{} {}", if wrong.is_empty() { "ok       " } else { "DIFFERENT" }, row.name);
                wrong.into_iter().map(|text| format!("{}: {text}", row.name)).collect::<Vec<_>>()
            }
        })
        .buffer_unordered(3)
        .concat()
        .await;
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_cannot_be_made_is_answered() {
    let lab = Lab::new("provision").await;
    let no_command = format!("rewind-test/no-command:{}", lab.name);
    let base =
        lab.docker.run(&["create", "--name", &format!("wsk{}-base", lab.name), "rewind-test/action-native"]);
    lab.docker.run(&["commit", "-c", r#"CMD ["/no-such-command"]"#, &base, &no_command]);
    let mut kinds = manifest(&[]);
    kinds["runtimes"]["ghost"] = json!([{"kind": "ghost:1", "default": true, "image": {"prefix": "rewind-test", "name": "no-such-image", "tag": "latest"},
            "attached": {"attachmentName": "codefile", "attachmentType": "text/plain"}}]);
    let invoker = lab.invoker().manifest(&kinds).start(&lab).await;

    let missing = "127.0.0.1:1/nobody/nothing";
    let rows = [
        (
            "prov-1",
            Action::new("guest/ghost", "ghost:1", "x"),
            error(3, "Failed to provision resources to run the action."),
        ),
        (
            "prov-2",
            Action::new("guest/unpullable", "blackbox", "x").blackbox(missing),
            error(2, &format!("Failed to pull container image '{missing}'.")),
        ),
        (
            "prov-3",
            Action::new("guest/nocommand", "blackbox", "x").blackbox(&no_command),
            error(2, &format!("executable file not found in image {no_command}")),
        ),
    ];
    for (name, action, want) in rows {
        let revision = lab.store.put_action(&action).await;
        let activation = Activation::of(action.id()).revision(&revision).blocking();
        let acks = lab.controller.invoke(&activation).await;
        assert_eq!(acks.iter().map(|a| a.kind).collect::<Vec<_>>(), [Kind::Combined], "{name}: {acks:?}");
        assert_eq!(check(&want, None, &acks[0]), Vec::<String>::new(), "{name}");
    }
    // Nothing of them is left.
    assert_eq!(lab.docker.containers(&lab.container_prefix()), []);
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
    let _ = lab.docker.try_run(&["rm", "-f", &base]);
    let _ = lab.docker.try_run(&["rmi", &no_command]);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_collected_as_the_contract_says() {
    let lab = Lab::new("logs").await;
    let invoker = lab.invoker().start(&lab).await;
    let lost = "There was an issue while collecting your logs. Data might be missing.";
    let cut = "Logs were truncated because the total bytes size exceeds the limit of 1048576 bytes.";
    let failed = "The action did not initialize or run as expected. Log data might be missing.";
    let print = |text: &str| format!("import sys\ndef main(a):\n    {text}\n    return {{}}\n");
    // Name, code, limit in MB, the wanted lines (the last may be an outcome), whether the container is kept.
    let rows: Vec<(&str, String, u64, Vec<String>, bool)> = vec![
        ("plain", print("print('out'); print('err', file=sys.stderr)"), 10, vec!["stdout: out".into(), "stderr: err".into()], true),
        // Upstream drops a last line without a newline together with the sentinel it is glued to.
        ("glued", print("print('whole'); print('part', end='')"), 10, vec!["stdout: whole".into(), "stdout: part".into()], true),
        ("none wanted", print("print('unseen')"), 0, vec![], true),
        ("no sentinel", "def main(a):\n    print('seen', flush=True)\n    return {'__raw': {'body': '{}', 'nosentinel': True}}\n".into(), 10, vec!["stdout: seen".into(), format!("stderr: {lost}")], false),
        ("over the budget", print("print('x' * 999 + '\\n', end='')\n    for n in range(3000): print('y' * 999)"), 1, vec![format!("stderr: {cut}")], false),
        ("developer error", "def main(a):\n    print('before')\n    return {'__raw': {'body': 'nope'}}\n".into(), 10, vec!["stdout: before".into(), format!("stderr: {failed}")], false),
    ];
    let mut differences = Vec::new();
    for (name, code, limit, want, kept) in rows {
        let action = Action::new(&format!("guest/{}", name.replace(' ', "-")), "scripted:1", &code)
            .limit("logs", limit)
            .limit("memory", 128);
        let revision = lab.store.put_action(&action).await;
        let ack = lab.controller.ask(Activation::of(action.id()).revision(&revision)).await;
        let record =
            lab.store.activation("guest", ack.id(), Duration::from_secs(30)).await.unwrap_or_default();
        let lines: Vec<&str> =
            record["logs"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let mut texts: Vec<String> =
            lines.iter().filter_map(|line| line.get(31..)).map(str::to_owned).collect();
        // Each line begins with its time, padded to 30 characters, and a blank.
        if lines.iter().any(|line| line.as_bytes().get(30) != Some(&b' ') || !line.starts_with("20")) {
            differences.push(format!("{name}: malformed lines {:?}", lines.first()));
        }
        let mut want = want;
        if name == "over the budget" {
            let bytes: usize = texts.iter().map(String::len).sum();
            if !(500_000..1_048_576).contains(&bytes) {
                differences.push(format!("{name}: {bytes} bytes kept of a budget of 1048576"));
            }
            texts = texts.split_off(texts.len().saturating_sub(1));
        }
        // The order between the two streams is arbitrary.
        texts.sort();
        want.sort();
        if texts != want {
            differences.push(format!("{name}: {texts:?}, wanted {want:?}"));
        }
        // Whether the same container serves the next: an application error or success keeps it, unless the
        // logs could not be had.
        let prefix = format!(
            "{}.*{}",
            lab.container_prefix(),
            action.id().rsplit('/').next().unwrap_or_default().replace('-', "")
        );
        let there = settles(|| !lab.docker.containers(&prefix).is_empty(), kept).await;
        if there != kept {
            differences
                .push(format!("{name}: the container is {}", if there { "still there" } else { "gone" }));
        }
    }
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// The value of `look`, once it is `wanted` or after ten seconds.
async fn settles(look: impl Fn() -> bool, wanted: bool) -> bool {
    for _ in 0..100 {
        if look() == wanted {
            return wanted;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    !wanted
}

#[tokio::test(flavor = "multi_thread")]
async fn each_situation_is_acknowledged_with_its_messages() {
    let lab = Lab::new("acks").await;
    let invoker = lab.invoker().env("CONFIG_whisk_concurrencyLimit_max", 10).start(&lab).await;
    let echo = Action::new("guest/echo", "scripted:1", "def main(a): return a");
    let silent = Action::new("guest/silent", "scripted:1", "def main(a): return a").limit("logs", 0);
    let (echo_revision, silent_revision) =
        (lab.store.put_action(&echo).await, lab.store.put_action(&silent).await);
    let echo = Activation::of(echo.id()).revision(&echo_revision).content(json!({"n": 1}));
    let silent = Activation::of(silent.id()).revision(&silent_revision).content(json!({"n": 1}));
    let again = |activation: &Activation| {
        activation.clone().with("activationId", rewind_tests::message::activation_id().into())
    };
    let missing = Activation::of("guest/nobody").revision("1-0");

    // Situation, activation, the messages, whether the (first) message carries the whole record.
    let rows = [
        ("blocking, logs", again(&echo).blocking(), vec![Kind::Result, Kind::Completion], true),
        ("blocking, no logs", again(&silent).blocking(), vec![Kind::Combined], true),
        ("non-blocking, logs", again(&echo), vec![Kind::Completion], false),
        ("non-blocking, no logs", again(&silent), vec![Kind::Completion], false),
        ("blocking, not fetched", again(&missing).blocking(), vec![Kind::Combined], true),
        ("non-blocking, not fetched", again(&missing), vec![Kind::Combined], false),
    ];
    for (name, activation, kinds, whole) in rows {
        let acks = lab.controller.invoke(&activation).await;
        assert_eq!(acks.iter().map(|a| a.kind).collect::<Vec<_>>(), kinds, "{name}: {acks:?}");
        assert_eq!(acks[0].value["response"].is_object(), whole, "{name}: {acks:?}");
        let event = lab.controller.event(activation.id()).await;
        let wanted = if name.ends_with("not fetched") { "unknown" } else { "scripted:1" };
        assert_eq!(event["body"]["kind"], wanted, "{name}: {event}");
    }

    // Runs that wait in a container whose init then fails end with it.
    let failing =
        Action::new("guest/failing", "scripted:1", "import time\ntime.sleep(3)\nraise ValueError('no')")
            .limit("concurrency", 5);
    let revision = lab.store.put_action(&failing).await;
    let activation = Activation::of(failing.id()).revision(&revision);
    let (first, second, third) =
        (again(&activation).blocking(), again(&activation).blocking(), again(&activation));
    for activation in [&first, &second, &third] {
        lab.controller.publish(activation).await;
    }
    let kinds = |acks: Vec<Ack>| acks.iter().map(|a| a.kind).collect::<Vec<_>>();
    assert_eq!(kinds(lab.controller.answered(first.id()).await), [Kind::Result, Kind::Completion]);
    let aborted = lab.controller.answered(second.id()).await;
    assert_eq!(aborted[0].status(), Some(2), "{aborted:?}");
    assert_eq!(kinds(aborted), [Kind::Combined]);
    assert_eq!(kinds(lab.controller.answered(third.id()).await), [Kind::Completion]);

    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}
