//! Makes what the genuine system sent and what ours sent comparable: times and random parts out,
//! everything else to the letter.

use serde_json::Value;

/// Members whose value is a moment or a length of time.
const TIMES: &[&str] = &["start", "end", "duration", "updated", "timestamp", "waitTime"];

/// A copy of `value` without what no two runs share.
///
/// Times become 0, deadlines and the invoker's name empty; `initTime` keeps whether it is zero, which says warm or cold; log
/// lines lose their time, and the lines of Python's stack traces, which name files, are left out.
pub(crate) fn normal(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let annotation = members.get("key").and_then(Value::as_str).map(str::to_owned);
            members
                .iter()
                .map(|(name, value)| {
                    // An annotation is {"key": name, "value": v}: its name stands beside the value.
                    let called = match &annotation {
                        Some(key) if name == "value" && members.len() == 2 => key.as_str(),
                        _ => name.as_str(),
                    };
                    (name.clone(), member(called, value))
                })
                .collect()
        }
        Value::Array(items) => items.iter().map(normal).collect(),
        other => other.clone(),
    }
}

fn member(name: &str, value: &Value) -> Value {
    match (name, value) {
        (_, Value::Number(_)) if TIMES.contains(&name) => 0.into(),
        ("initTime", Value::Number(n)) => u64::from(n.as_u64() != Some(0)).into(),
        ("deadline" | "__OW_DEADLINE" | "uniqueName", Value::String(_)) => "".into(),
        // The genuine invoker sends null for a version the message did not have; Python's launcher
        // dies of it. Ours sends the empty text.
        ("action_version", Value::Null) => "".into(),
        ("logs", Value::Array(lines)) => {
            lines.iter().filter_map(Value::as_str).filter_map(log_line).collect()
        }
        _ => normal(value),
    }
}

/// The stored form is 30 characters of time, a blank, the stream, a colon and a blank.
fn log_line(line: &str) -> Option<Value> {
    let text = line.get(31..)?;
    let trace = text.starts_with("stderr:   ") || text.starts_with("stderr: Traceback ");
    (!trace).then(|| text.into())
}

/// Whether `found` is what was recorded. The recordings cut long texts in the middle; of those the two
/// ends are compared.
pub(crate) fn same(recorded: &Value, found: &Value) -> bool {
    match (recorded, found) {
        (Value::String(a), Value::String(b)) => match a.split_once("...<") {
            Some((head, rest)) if rest.contains(" chars in all>...") => {
                let tail = rest.split_once(">...").map_or("", |(_, tail)| tail);
                b.starts_with(head) && b.ends_with(tail)
            }
            _ => a == b,
        },
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(name, a)| b.get(name).is_some_and(|b| same(a, b)))
        }
        _ => recorded == found,
    }
}

#[test]
fn what_two_runs_share_is_kept_and_the_rest_is_not() {
    let a = serde_json::json!({"start": 5, "annotations": [{"key": "waitTime", "value": 7}, {"key": "kind", "value": "x"}],
        "logs": ["2026-11-21T11:01:06.53843376Z  stderr: Traceback (most recent call last):", "2026-11-21T11:00:40.356039431Z stdout: hello"]});
    let b = serde_json::json!({"start": 0, "annotations": [{"key": "waitTime", "value": 0}, {"key": "kind", "value": "x"}], "logs": ["stdout: hello"]});
    assert_eq!(normal(&a), b);
    assert!(same(&"ab...<900 chars in all>...yz".into(), &"ab and so on yz".into()));
    assert!(!same(&"ab...<900 chars in all>...yz".into(), &"ab and so on".into()));
    assert!(!same(&serde_json::json!({"a": 1}), &serde_json::json!({"a": 1, "b": 2})));
}
