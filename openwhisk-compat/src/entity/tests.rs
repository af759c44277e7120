//! Every literal of contract 4.3 and 4.6.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::manifest::RuntimesManifest;

const ACTION: &str = r#"{"_id":"guest/hello","_rev":"3-0c1a","namespace":"guest","name":"hello","exec":{"kind":"nodejs:20","code":{"attachmentName":"mem:ZnVuY3Rpb24gbWFpbigpe3JldHVybiB7fX0=","attachmentType":"text/plain","length":26,"digest":"sha256-<hex>"},"binary":false},"parameters":[{"key":"name","value":"you"},{"key":"SECRET","value":"s","init":true}],"limits":{"timeout":60000,"memory":256,"logs":10,"concurrency":1},"version":"0.0.3","publish":false,"annotations":[{"key":"provide-api-key","value":false},{"key":"exec","value":"nodejs:20"}],"updated":1711531000000,"entityType":"action"}"#;

const EXECS: &str = r#"[{"kind":"python:3.11","code":"def main(args): return {}","binary":false},{"kind":"python:3.11","code":{"attachmentName":"couch:b3f0a2de-6f0e-4b5c-9c3e-0a0b7d1f4a11","attachmentType":"application/octet-stream","length":48213,"digest":"sha256-<hex>"},"binary":true,"main":"hello"},{"kind":"go:1.20","code":"package main\nfunc Main(o map[string]interface{}) map[string]interface{} { return o }","binary":false},{"kind":"java:8","code":{"attachmentName":"couch:1a0d…","attachmentType":"application/octet-stream"},"binary":true,"main":"Hello"},{"kind":"blackbox","image":"openwhisk/dockerskeleton","binary":false},{"kind":"sequence","components":["/guest/a","/guest/b"]}]"#;

const ACTIVATION: &str = r#"{"_id":"guest/4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","namespace":"guest","name":"hello","subject":"guest","activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","start":1711531200200,"end":1711531200262,"response":{"statusCode":0,"result":{"greeting":"hi"},"size":17},"logs":["2024-03-27T09:20:00.210123456Z stdout: hello"],"version":"0.0.3","publish":false,"annotations":[{"key":"limits","value":{"timeout":60000,"memory":256,"logs":10,"concurrency":1}},{"key":"path","value":"guest/hello"},{"key":"kind","value":"nodejs:20"},{"key":"timeout","value":false},{"key":"initTime","value":50},{"key":"waitTime","value":77}],"duration":62,"updated":1711531200270,"entityType":"activation"}"#;

fn manifest() -> RuntimesManifest {
    let runtime = |kind: &str| json!([{"kind":kind,"image":{"name":"image"}}]);
    let manifest = json!({"runtimes":{"nodejs":runtime("nodejs:20"),"python":runtime("python:3.11"),
        "go":runtime("go:1.20"),"java":runtime("java:8")}});
    RuntimesManifest::parse(&manifest.to_string()).expect("a manifest")
}

fn document(change: impl FnOnce(&mut Value)) -> Result<ActionDocument, EntityError> {
    let mut document = serde_json::from_str(ACTION).expect("JSON");
    change(&mut document);
    ActionDocument::parse(document.to_string().as_bytes())
}

fn executable(
    attachment: Option<&[u8]>,
    change: impl FnOnce(&mut Value),
) -> Result<ExecutableAction, EntityError> {
    document(change)?
        .into_executable(attachment.map(<[u8]>::to_vec), &manifest().read_context(ActionLimits::STANDARD))
}

#[test]
fn literals_are_read_and_written_to_the_letter() {
    let document: ActionDocument = serde_json::from_str(ACTION).expect("an action");
    assert_eq!(serde_json::to_string(&document).expect("serialises"), ACTION);
    let execs: Vec<StoredExec> = serde_json::from_str(EXECS).expect("execs");
    let written: Value = serde_json::to_value(&execs).expect("serialises");
    assert_eq!(written, serde_json::from_str::<Value>(EXECS).expect("JSON"));
    let record: ActivationRecord = serde_json::from_str(ACTIVATION).expect("a record");
    let stored = StoredActivation { record, updated: 1_711_531_200_270 };
    assert_eq!(serde_json::to_string(&stored).expect("serialises"), ACTIVATION);
}

#[test]
fn the_literal_runs() {
    let action = executable(None, |_| {}).expect("an action");
    assert_eq!(action.qualified_name(), "guest/hello");
    assert_eq!(action.exec.code.as_ref().map(Code::as_str), Some("function main(){return {}}"));
    assert_eq!(
        (action.exec.kind.as_str(), action.exec.main(), action.exec.binary),
        ("nodejs:20", "main", false)
    );
    assert_eq!(action.revision.as_deref(), Some("3-0c1a"));
    assert!(action.parameters.get("SECRET").is_some_and(|parameter| parameter.init));
    assert!(!action.annotations.is_truthy(annotation::PROVIDE_API_KEY, true));
}

#[test]
fn every_kind_of_exec_becomes_what_it_should() {
    let execs: Vec<Value> = serde_json::from_str(EXECS).expect("execs");
    let made = |index: usize, attachment: Option<&[u8]>| {
        executable(attachment, |document| document["exec"] = execs[index].clone()).map(|action| action.exec)
    };
    let code = |exec: &Exec| exec.code.as_ref().map(|code| code.as_str().to_owned());
    let inline = made(0, None).expect("inline code");
    assert_eq!((code(&inline).as_deref(), inline.binary), (Some("def main(args): return {}"), false));
    let binary = made(1, Some(&[0xff, 0x00])).expect("a binary attachment");
    assert_eq!((code(&binary).as_deref(), binary.binary, binary.main()), (Some("/wA="), true, "hello"));
    assert!(matches!(made(1, None), Err(EntityError::MissingCode)));
    let java = made(3, Some(b"PK")).expect("a jar");
    assert_eq!((code(&java).as_deref(), java.main()), (Some("UEs="), "Hello"));
    let blackbox = made(4, None).expect("a blackbox");
    assert!(blackbox.is_blackbox() && blackbox.code.is_none());
    assert_eq!(blackbox.image.map(|image| image.to_string()).as_deref(), Some("openwhisk/dockerskeleton"));
    assert!(matches!(made(5, None), Err(EntityError::NotExecutable)));
    let old = json!({"kind":"java","jar":{"attachmentName":"jarfile","attachmentType":"application/java-archive"},
        "main":"Hello","binary":true});
    let document = document(|document| document["exec"] = old.clone()).expect("an old document");
    assert_eq!(document.attachment().expect("a name").as_deref(), Some("jarfile"));
    let old = executable(Some(b"PK"), |document| document["exec"] = old).expect("an old action");
    assert_eq!((old.exec.kind.as_str(), code(&old.exec).as_deref()), ("java:8", Some("UEs=")));
}

#[test]
fn attachments_are_found_where_the_name_says() {
    let place = |name: &str| {
        document(|document| {
            document["exec"]["code"] = json!({"attachmentName":name,"attachmentType":"text/plain"})
        })
        .expect("a document")
        .attachment()
    };
    assert_eq!(place("couch:1a0d").expect("a name").as_deref(), Some("1a0d"));
    assert_eq!(place("codefile").expect("a name").as_deref(), Some("codefile"));
    assert_eq!(place("mem:QUJD").expect("a name"), None);
    assert!(matches!(place("s3:x"), Err(EntityError::ExternalAttachment { scheme }) if scheme == "s3"));
    assert!(matches!(place("mem:*"), Err(EntityError::Attachment(_))));
    // `exec.binary` decides how bytes become text, for content in the name as well.
    let text = |binary: bool, content: &[u8]| {
        executable(None, |document| {
            document["exec"]["binary"] = json!(binary);
            document["exec"]["code"] = json!({ "attachmentName": AttachmentName::memory(content) });
        })
        .map(|action| action.exec.code.expect("code").as_str().to_owned())
    };
    assert_eq!(text(true, b"ABC").expect("binary"), "QUJD");
    assert_eq!(text(false, "ä".as_bytes()).expect("text"), "ä");
    assert!(matches!(text(false, &[0xff]), Err(EntityError::NotText)));
}

#[test]
fn binary_is_computed_anew_for_inline_code() {
    for (code, stored, expected) in
        [("UEsDBA==", false, true), (" UEsDBA==\n", false, true), ("def main(a): pass", true, false)]
    {
        let action = executable(None, |document| {
            document["exec"] = json!({"kind":"python:3.11","code":code,"binary":stored});
        })
        .expect("an action");
        assert_eq!(action.exec.binary, expected, "{code}");
        assert_eq!(action.exec.code.expect("code").as_str(), code);
    }
}

#[test]
fn kinds_are_resolved() {
    let kind = |kind: &str| {
        executable(None, |document| document["exec"]["kind"] = json!(kind)).map(|action| action.exec.kind)
    };
    assert_eq!(kind("nodejs:default").expect("a default"), "nodejs:20");
    assert!(matches!(kind("cobol:85"), Err(EntityError::UnknownKind(kind)) if kind == "cobol:85"));
}

#[test]
fn bad_documents_say_what_is_wrong() {
    type Change = fn(&mut Value);
    let rows: &[(Change, &str)] = &[
        (|d| d["entityType"] = json!("trigger"), "document is of type `trigger`, expected an action"),
        (
            |d| d["exec"] = json!({"kind":"blackbox","image":"Not An Image"}),
            "`Not An Image` is not the name of an image",
        ),
        (|d| d["exec"] = json!({"kind":"blackbox"}), "image of the action is not usable: there is none"),
        (|d| d["exec"] = json!({"kind":"nodejs:20"}), "code of the action is missing"),
        (|d| d["limits"]["memory"] = json!(0), "limit `memory` of the action is 0"),
        (|d| d["limits"]["concurrency"] = json!(0), "limit `concurrency` of the action is 0"),
        (|d| d["limits"]["timeout"] = json!(-1), "unreadable action document"),
        (|d| d["limits"]["memory"] = json!("256 MB"), "unreadable action document"),
        (|d| d["limits"]["memory"] = json!(1e30), "unreadable action document"),
        (|d| d["exec"] = Value::Null, "unreadable action document"),
        (|d| d["name"] = json!("a/b"), "unreadable action document"),
        (|d| d["namespace"] = json!(""), "unreadable action document"),
    ];
    for (change, expected) in rows {
        let error = executable(None, change).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error} instead of {expected}");
    }
    for garbage in [&b""[..], b"null", b"[]", b"\xff", b"{"] {
        assert!(ActionDocument::parse(garbage).is_err());
    }
}

#[test]
fn optional_members_may_be_missing() {
    let action = executable(None, |document| {
        let members = document.as_object_mut().expect("an object");
        for name in [
            "_id",
            "_rev",
            "parameters",
            "limits",
            "version",
            "publish",
            "annotations",
            "updated",
            "entityType",
        ] {
            members.remove(name);
        }
        members.insert("unknown".to_owned(), json!([1]));
    })
    .expect("an action");
    assert_eq!(action.limits, ActionLimits::STANDARD);
    assert_eq!((action.version.as_str(), action.revision), ("0.0.1", None));
    let partial = executable(None, |document| document["limits"] = json!({"memory":512,"instances":3}));
    let limits = partial.expect("an action").limits;
    assert_eq!((limits.memory_mb, limits.timeout_ms, limits.instances), (512, 60_000, Some(3)));
}

#[test]
fn equality_is_of_everything_but_the_revision() {
    type Change = fn(&mut Value);
    let action = |change: Change| executable(None, change).expect("an action");
    let original = action(|_| {});
    let same: &[Change] = &[
        |d| d["_rev"] = json!("4-other"),
        |d| d["updated"] = json!(1),
        |d| d["annotations"].as_array_mut().expect("a list").reverse(),
        |d| d["parameters"].as_array_mut().expect("a list").reverse(),
        |d| d["exec"]["code"] = json!("function main(){return {}}"),
        |d| d["exec"]["main"] = json!(""),
    ];
    for change in same {
        assert_eq!(action(*change), original);
    }
    let different: &[Change] = &[
        |d| d["name"] = json!("other"),
        |d| d["namespace"] = json!("other"),
        |d| d["version"] = json!("0.0.4"),
        |d| d["publish"] = json!(true),
        |d| d["exec"]["code"] = json!("function main(){return 1}"),
        |d| d["exec"]["main"] = json!("other"),
        |d| d["exec"]["kind"] = json!("python:3.11"),
        |d| d["limits"]["logs"] = json!(9),
        |d| d["parameters"][0]["value"] = json!("me"),
        |d| d["parameters"][1]["init"] = json!(false),
        |d| d["parameters"] = json!([]),
        |d| d["annotations"][0]["value"] = json!(true),
        |d| d["annotations"].as_array_mut().expect("a list").clear(),
    ];
    for change in different {
        assert_ne!(action(*change), original);
    }
}

#[test]
fn encrypted_parameters_are_carried() {
    let json =
        json!([{"key":"p","value":"AAAA","encryption":"aes-128"},{"key":"q","value":null,"init":true}]);
    let parameters: Parameters = serde_json::from_value(json.clone()).expect("parameters");
    assert_eq!(serde_json::to_value(&parameters).expect("serialises"), json);
    assert_eq!(parameters.get("p").and_then(|p| p.encryption.as_deref()), Some("aes-128"));
}

#[test]
fn records_of_controllers_are_read() {
    // A trigger's: no duration, no end.
    let trigger = json!({"namespace":"guest","name":"t","subject":"guest","activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
        "start":1,"end":0,"response":{"statusCode":0},"logs":[],"version":"0.0.1","publish":false,"annotations":[]});
    let record: ActivationRecord = serde_json::from_value(trigger.clone()).expect("a record");
    assert_eq!(serde_json::to_value(&record).expect("serialises"), trigger);
    assert!(serde_json::from_value::<StatusCode>(json!(4)).is_err());
    let logged = ActivationRecord { logs: vec!["line".to_owned()], ..record.clone() };
    assert_eq!(logged.without_logs(), record);
}

proptest! {
    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = ActionDocument::parse(&bytes);
        let _ = serde_json::from_slice::<ActivationRecord>(&bytes);
    }

    #[test]
    fn no_altered_document_panics(at in 0..ACTION.len(), byte in any::<u8>()) {
        let mut bytes = ACTION.as_bytes().to_vec();
        bytes[at] = byte;
        if let Ok(document) = ActionDocument::parse(&bytes) {
            let _ = document.attachment();
            let _ = document.into_executable(Some(bytes), &manifest().read_context(ActionLimits::STANDARD));
        }
    }

    #[test]
    fn no_text_panics_as_name_or_image(text in "\\PC{0,40}|[a-z0-9:/@._-]{0,40}") {
        if let Ok(image) = text.parse::<ImageName>() {
            prop_assert_eq!(image.to_string(), text.clone());
        }
        let _ = FullyQualifiedName::parse(&text);
        let _ = AttachmentName::parse(&text);
    }
}
