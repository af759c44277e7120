//! Every literal of contract section 2, and what readers must put up with.

use std::sync::Arc;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::*;
use crate::entity::{ActivationRecord, StatusCode};
use crate::size::ByteSize;

const ACTIVATION: &str = r#"{"transid":["7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn",1711531200123],"action":{"path":"guest","name":"hello","version":"0.0.3"},"revision":"3-0c1ab2c3d4e5f60718293a4b5c6d7e8f","user":{"subject":"guest","namespace":{"name":"guest","uuid":"23bc46b1-71f6-4ed5-8c54-816aa4f8c502"},"authkey":{"api_key":"23bc46b1-71f6-4ed5-8c54-816aa4f8c502:123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP"},"rights":["READ","PUT","DELETE","ACTIVATE"],"limits":{}},"activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","rootControllerIndex":{"asString":"0","instanceType":"controller"},"blocking":true,"content":{"name":"world"},"initArgs":[],"lockedArgs":{}}"#;
const INSTANCE: &str = r#"{"instance":0,"userMemory":"1073741824 B","instanceType":"invoker","tags":[],"dedicatedNamespaces":[],"uniqueName":"invoker-a","displayedName":"10.0.0.7"}"#;
const PING: &str = r#"{"name":{"instance":0,"userMemory":"1073741824 B","instanceType":"invoker","tags":[],"dedicatedNamespaces":[]},"isEnabled":true}"#;
const COMPLETION: &str = r#"{"transid":["t1",1711531200123],"activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","isSystemError":false,"instance":{"instance":0,"userMemory":"1073741824 B","instanceType":"invoker","tags":[],"dedicatedNamespaces":[]}}"#;
const RESULT: &str = r#"{"transid":["t1",1711531200123],"response":{"namespace":"guest","name":"hello","subject":"guest","activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","start":1711531200200,"end":1711531200212,"response":{"statusCode":0,"result":{"greeting":"hi"},"size":17},"logs":[],"version":"0.0.3","publish":false,"annotations":[],"duration":12}}"#;
const COMBINED: &str = r#"{"transid":["t1",1711531200123],"response":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","isSystemError":false,"instance":{"instance":0,"userMemory":"1073741824 B","instanceType":"invoker","tags":[],"dedicatedNamespaces":[]}}"#;
const EVENT: &str = r#"{"source":"invoker0","body":{"name":"guest/hello","activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","statusCode":0,"duration":12,"waitTime":77,"initTime":0,"kind":"nodejs:20","conductor":false,"memory":256,"size":17},"subject":"guest","namespace":"guest","userId":"23bc46b1-71f6-4ed5-8c54-816aa4f8c502","eventType":"Activation","timestamp":1711531200300}"#;
const METRIC: &str = r#"{"source":"controller0","body":{"metricName":"ConcurrentRateLimit","metricValue":1},"subject":"guest","namespace":"guest","userId":"23bc46b1-71f6-4ed5-8c54-816aa4f8c502","eventType":"Metric","timestamp":1711531200300}"#;
const INVALIDATION: &str = r#"{"key":{"mainId":"guest/hello"},"instanceId":"controller0"}"#;

/// Reads `json`, writes it again, and demands the same text; also with unknown members added.
fn same_text<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(json: &str) -> T {
    let value: T = serde_json::from_str(json).expect(json);
    assert_eq!(serde_json::to_string(&value).expect("serialises"), json);
    let more = format!("{},\"unknown\":{{\"a\":[null,1e3]}}}}", json.strip_suffix('}').expect("an object"));
    assert_eq!(serde_json::from_str::<T>(&more).expect(&more), value);
    value
}

fn activation(change: impl FnOnce(&mut Value)) -> Result<ActivationMessage, MessageError> {
    let mut message = serde_json::from_str(ACTIVATION).expect("JSON");
    change(&mut message);
    ActivationMessage::parse(message.to_string().as_bytes())
}

fn remove(message: &mut Value, name: &str) {
    message.as_object_mut().expect("an object").remove(name);
}

#[test]
fn literals_are_read_and_written_to_the_letter() {
    let message: ActivationMessage = same_text(ACTIVATION);
    assert_eq!(message.action.qualified(), "guest/hello");
    assert_eq!(message.user.namespace.name, "guest");
    assert!(message.blocking && !message.caused_by_sequence());
    let instance: InvokerInstanceId = same_text(INSTANCE);
    assert_eq!(instance.to_string(), "invoker0/invoker-a/10.0.0.7");
    same_text::<PingMessage>(PING);
    assert!(matches!(same_text(COMPLETION), Acknowledgement::Completion { is_system_error: false, .. }));
    assert!(matches!(same_text(RESULT), Acknowledgement::Result { response: AckResponse::Whole(_), .. }));
    assert!(matches!(
        same_text(COMBINED),
        Acknowledgement::Combined { response: AckResponse::Shrunk(_), .. }
    ));
    assert!(matches!(same_text::<UserEvent>(EVENT).body, EventBody::Activation(_)));
    assert!(matches!(same_text::<UserEvent>(METRIC).body, EventBody::Metric(_)));
    same_text::<CacheInvalidation>(INVALIDATION);
}

#[test]
fn an_absent_revision_is_the_one_null() {
    let message = activation(|message| {
        message["revision"] = Value::Null;
        remove(message, "content");
    })
    .expect("a health test's message");
    assert_eq!((&message.revision, &message.content), (&None, &None));
    let written = serde_json::to_string(&message).expect("serialises");
    assert!(written.contains(r#""revision":null"#) && !written.contains("content"), "{written}");
    assert_eq!(written.matches("null").count(), 1);
}

#[test]
fn newer_members_may_be_missing() {
    // What 1.0.0 does not write, and what a test's producer may leave out.
    for name in ["revision", "content", "lockedArgs", "cause", "traceContext"] {
        assert!(activation(|message| remove(message, name)).is_ok(), "{name}");
    }
    let message = activation(|message| {
        for name in ["authkey", "rights", "limits"] {
            remove(&mut message["user"], name);
        }
        remove(&mut message["rootControllerIndex"], "instanceType");
        remove(&mut message["action"], "version");
    })
    .expect("a message");
    assert!(message.user.limits.stores_activations() && message.user.authkey.is_empty());
    let ping: PingMessage =
        serde_json::from_str(r#"{"name":{"instance":3,"userMemory":"2 GB"}}"#).expect("1.0.0's ping");
    assert!(ping.is_enabled && ping.name.tags.is_empty());
    let completion = r#"{"transid":["t",1],"activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","instance":{"instance":0,"userMemory":"1 MB"}}"#;
    assert!(matches!(
        serde_json::from_str(completion).expect("a completion"),
        Acknowledgement::Completion { is_system_error: false, .. }
    ));
}

#[test]
fn what_is_always_there_must_be_there() {
    for name in ["transid", "action", "user", "activationId", "rootControllerIndex", "blocking", "initArgs"] {
        assert!(activation(|message| remove(message, name)).is_err(), "{name}");
    }
    for garbage in [&b"{this is not json"[..], b"", b"null", b"[]", b"\"text\"", b"\xff\xfe", b"{}"] {
        assert!(ActivationMessage::parse(garbage).is_err());
    }
}

#[test]
fn mistakes_are_named() {
    fn text(result: Result<ActivationMessage, MessageError>) -> String {
        let error = result.expect_err("a mistake");
        std::error::Error::source(&error).expect("a source").to_string()
    }
    assert!(text(activation(|m| m["activationId"] = json!("xyz"))).contains("`xyz` is not an activation id"));
    assert!(text(activation(|m| m["action"] = json!("/"))).contains("`/` is not the name"));
    assert!(
        text(activation(|m| m["user"]["limits"]["maxPayloadSize"] = json!("big")))
            .contains("`big` is not a size")
    );
    // A credential of the wrong type is not repeated.
    let secret = text(activation(|m| m["user"]["authkey"] = json!(["s3cret"])));
    assert!(!secret.contains("s3cret"), "{secret}");
}

#[test]
fn every_form_of_a_member_is_read() {
    let action = |value: Value| activation(|message| message["action"] = value).expect("a message").action;
    assert_eq!(action(json!("guest/pkg/hello")).qualified(), "guest/pkg/hello");
    assert_eq!(
        action(json!({"path":"guest/p1","name":"inpkg","version":"0.0.1","binding":"guest/b1"}))
            .binding
            .as_deref(),
        Some("guest/b1")
    );
    let content = activation(|message| message["content"] = json!([1, 2])).expect("an array").content;
    assert_eq!(content, Some(json!([1, 2])));
    let digits = "12345678901234567890123456789012";
    let numeric = ACTIVATION.replace("\"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c\"", digits);
    let message = ActivationMessage::parse(numeric.as_bytes()).expect("an id without quotes");
    assert_eq!(message.activation_id.as_str(), digits);
    let odd = activation(|message| message["traceContext"] = json!({"depth": 7})).expect("a message");
    assert_eq!(odd.trace_context, None);
    let key =
        activation(|message| message["user"]["authkey"] = json!("u:k")).expect("a bare key").user.authkey;
    assert_eq!(key.get("api_key"), Some(&json!("u:k")));
}

#[test]
fn arguments_that_cannot_be_used_are_answered() {
    let reason = |content: &str| {
        let json = ACTIVATION.replace(r#"{"name":"world"}"#, content);
        let message = ActivationMessage::parse(json.as_bytes()).expect("a message all the same");
        assert_eq!(message.content, None);
        message.unusable_content
    };
    assert_eq!(reason("null"), None);
    assert_eq!(reason("7").as_deref(), Some("arguments are 7, expected an object or an array"));
    assert_eq!(reason("\"text\"").as_deref(), Some("arguments are \"text\", expected an object or an array"));
    // A controller lets 1000 levels pass.
    let deep = format!("{}{}", "[".repeat(1000), "]".repeat(1000));
    assert!(
        reason(&deep)
            .is_some_and(|reason| reason.starts_with("arguments cannot be read: recursion limit exceeded"))
    );
}

#[test]
fn every_limit_of_a_user_is_carried() {
    let limits = json!({"invocationsPerMinute":1,"concurrentInvocations":2,"firesPerMinute":3,"allowedKinds":["a:1"],
        "storeActivations":false,"minActionMemory":4,"maxActionMemory":5,"minActionLogs":6,"maxActionLogs":7,
        "minActionTimeout":8,"maxActionTimeout":9,"minActionConcurrency":10,"maxActionConcurrency":11,
        "maxActionInstances":12,"maxParameterSize":"1 MB","maxPayloadSize":"2 MB","truncationSize":"3 KB",
        "warmedContainerKeepingCount":13,"warmedContainerKeepingTimeout":"10 minutes"});
    let read: UserLimits = serde_json::from_value(limits.clone()).expect("limits");
    assert_eq!(serde_json::to_value(&read).expect("serialises"), limits);
    assert_eq!(limits.as_object().map(serde_json::Map::len), Some(19));
    assert!(!read.stores_activations());
    assert_eq!(read.truncation_size, Some(ByteSize::from_bytes(3072)));
}

#[test]
fn a_sequence_s_step_is_carried() {
    let transid = r#"["child",1711531200200,["parent",1711531200123]]"#;
    let json = ACTIVATION.replace(r#"["7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn",1711531200123]"#, transid).replace(
        r#""lockedArgs":{}"#,
        r#""lockedArgs":{"a":"aes-128"},"cause":"ff0e0000000000000000000000000000","traceContext":{"k":"v"}"#,
    );
    let message: ActivationMessage = same_text(&json);
    assert!(message.caused_by_sequence());
    assert_eq!(message.transid.as_json(), transid);
}

#[test]
fn acknowledgements_shrink_to_the_id() {
    let Acknowledgement::Result { transid, response: AckResponse::Whole(record) } =
        serde_json::from_str(RESULT).expect("a result")
    else {
        panic!("not a whole result")
    };
    let instance = InvokerInstanceId::new(0, ByteSize::from_bytes(1 << 30));
    let combined = Acknowledgement::combined(transid.clone(), Arc::clone(&record), instance.clone());
    assert!(combined.is_whole() && combined.frees_slot());
    assert_eq!(serde_json::to_string(&combined.shrink()).expect("serialises"), COMBINED);
    let completion = Acknowledgement::completion(transid.clone(), &record, instance);
    assert!(!completion.is_whole() && completion.frees_slot());
    assert_eq!(serde_json::to_string(&completion.shrink()).expect("serialises"), COMPLETION);
    let result = Acknowledgement::result(transid, record);
    assert!(!result.frees_slot());
    let id = result.activation_id().clone();
    assert_eq!(result.shrink().activation_id(), &id);
}

#[test]
fn a_whisk_error_is_a_system_error() {
    for (status, expected) in [
        (StatusCode::Success, false),
        (StatusCode::ApplicationError, false),
        (StatusCode::DeveloperError, false),
        (StatusCode::WhiskError, true),
    ] {
        let mut record = record();
        record.response.status_code = status;
        let instance = InvokerInstanceId::new(0, ByteSize::from_mb(1));
        let ack = Acknowledgement::completion(TransactionId::new("t", 1), &record, instance);
        assert!(
            matches!(ack, Acknowledgement::Completion { is_system_error, .. } if is_system_error == expected)
        );
    }
}

#[test]
fn an_acknowledgement_needs_its_members() {
    for json in [
        r#"{"transid":["t",1]}"#,
        r#"{"transid":["t",1],"instance":{"instance":0,"userMemory":"1 MB"}}"#,
        r#"{"response":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c"}"#,
        r#"{"transid":["t",1],"response":7}"#,
    ] {
        assert!(serde_json::from_str::<Acknowledgement>(json).is_err(), "{json}");
    }
}

fn record() -> ActivationRecord {
    let Ok(Acknowledgement::Result { response: AckResponse::Whole(record), .. }) =
        serde_json::from_str(RESULT)
    else {
        panic!("not a whole result")
    };
    Arc::unwrap_or_clone(record)
}

fn event(change: impl FnOnce(&mut ActivationRecord)) -> Result<Value, MissingAnnotation> {
    let mut record = record();
    record.annotations.push("path", "guest/hello");
    record.annotations.push("waitTime", 77);
    record.annotations.push("kind", "nodejs:20");
    record.annotations.push("limits", json!({"timeout":60000,"memory":256,"logs":10,"concurrency":1}));
    change(&mut record);
    let user = ActivationMessage::parse(ACTIVATION.as_bytes()).expect("a message").user;
    UserEvent::activation("invoker0".to_owned(), &record, &user, 1_711_531_200_300)
        .map(|event| serde_json::to_value(event).expect("serialises"))
}

#[test]
fn events_are_made_of_records() {
    assert_eq!(event(|_| {}), Ok(serde_json::from_str(EVENT).expect("JSON")));
    let cold = event(|record| {
        record.annotations.push("initTime", 50);
        record.annotations.push("causedBy", "sequence");
        record.annotations.push("conductor", true);
        record.response.size = None;
    })
    .expect("an event");
    assert_eq!((&cold["body"]["initTime"], &cold["body"]["causedBy"]), (&json!(50), &json!("sequence")));
    assert_eq!((&cold["body"]["conductor"], cold["body"].get("size")), (&json!(true), None));
}

#[test]
fn an_event_needs_path_and_kind() {
    let without = |annotations: Value| {
        event(|record| record.annotations = serde_json::from_value(annotations).expect("annotations"))
    };
    assert_eq!(without(json!([{"key":"kind","value":"a"}])), Err(MissingAnnotation("path")));
    assert_eq!(without(json!([{"key":"path","value":"a/b"}])), Err(MissingAnnotation("kind")));
    let fallback = without(json!([{"key":"path","value":"a/b"},{"key":"kind","value":"unknown"}]))
        .expect("a fallback's event");
    assert_eq!((&fallback["body"]["memory"], &fallback["body"]["waitTime"]), (&json!(0), &json!(0)));
}

#[test]
fn the_status_an_action_defines_is_found() {
    for (result, expected) in [
        (json!({"error":{"statusCode":404}}), Some(404)),
        (json!({"error":{"statusCode":404},"statusCode":200}), Some(404)),
        (json!({"error":"text","statusCode":201}), Some(201)),
        (json!({"statusCode":201}), Some(201)),
        (json!({"statusCode":"418"}), Some(418)),
        (json!({"statusCode":"teapot"}), Some(400)),
        (json!({"statusCode":20.5}), Some(400)),
        (json!({"statusCode":null}), Some(400)),
        (json!({"error":"text"}), None),
        (json!([{"statusCode":201}]), None),
    ] {
        let event = event(|record| record.response.result = Some(result.clone())).expect("an event");
        let found = event["body"].get("userDefinedStatusCode").and_then(Value::as_i64);
        assert_eq!(found, expected, "{result}");
    }
}

#[test]
fn activation_ids_are_32_hexadecimal_digits() {
    assert!(ActivationId::new("4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c").is_ok());
    for bad in ["", "4e6f", "4e6fb1d1a2a84a2fafb1d1a2a8ba2f5g", "4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c0", "ä"] {
        assert!(ActivationId::new(bad).is_err(), "{bad}");
    }
    for json in ["null", "12", "[]", "\"\"", "1e31", "-2345678901234567890123456789012"] {
        assert!(serde_json::from_str::<ActivationId>(json).is_err(), "{json}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = ActivationMessage::parse(&bytes);
        let _ = serde_json::from_slice::<Acknowledgement>(&bytes);
        let _ = serde_json::from_slice::<UserEvent>(&bytes);
        let _ = serde_json::from_slice::<TransactionId>(&bytes);
    }

    /// A byte changed anywhere in a genuine message gives a message or an error, and an accepted transaction
    /// id is written back as it came.
    #[test]
    fn no_altered_message_panics(at in 0..ACTIVATION.len(), byte in any::<u8>()) {
        let mut bytes = ACTIVATION.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(message) = ActivationMessage::parse(&bytes) {
            let written = serde_json::to_string(&message).expect("serialises");
            prop_assert!(written.contains(message.transid.as_json()));
        }
        for literal in [RESULT, COMBINED, EVENT, PING] {
            let mut bytes = literal.as_bytes().to_vec();
            bytes[at % literal.len()] = byte;
            let _ = serde_json::from_slice::<Acknowledgement>(&bytes);
            let _ = serde_json::from_slice::<UserEvent>(&bytes);
            let _ = serde_json::from_slice::<PingMessage>(&bytes);
        }
    }

    /// Any value in any place.
    #[test]
    fn no_strange_member_panics(name in "[a-zA-Z]{1,12}|transid|action|user|content|initArgs|cause|revision",
                                value in strange()) {
        let _ = activation(|message| message[name.as_str()] = value.clone());
        let _ = activation(|message| message["user"][name.as_str()] = value);
    }
}

fn strange() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,10}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map("[a-zA-Z]{0,6}", inner, 0..4)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}
