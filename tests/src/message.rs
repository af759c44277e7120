//! Activations and action documents, as a controller makes them (contract 2.1, 4.3).

use base64::Engine as _;
use rand::Rng as _;
use serde_json::{Value, json};
use std::time::{SystemTime, UNIX_EPOCH};

/// The namespace, subject and key of the development user.
pub const GUEST: &str = "guest";
/// The development user's id.
pub const GUEST_UUID: &str = "23bc46b1-71f6-4ed5-8c54-816aa4f8c502";
/// The development user's `uuid:key`.
pub const GUEST_KEY: &str =
    "23bc46b1-71f6-4ed5-8c54-816aa4f8c502:123zO3xZCLrMN6v2BKK1dXYFpXlPkccOFqm12CdAsMgRU4VrNZ9lyGVCGuMDGIwP";

/// Milliseconds since the epoch.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    u64::try_from(since.as_millis()).expect("the year is reasonable")
}

/// A new activation id: 32 lower-case hexadecimal digits.
pub fn activation_id() -> String {
    format!("{:032x}", rand::rng().random::<u128>())
}

/// One activation message. Change `value` for what has no method.
#[derive(Clone, Debug)]
pub struct Activation {
    /// The message.
    pub value: Value,
}

impl Activation {
    /// A non-blocking activation of `namespace/[package/]name` by the development user, newest revision.
    pub fn of(action: &str) -> Self {
        let (path, name) = action.rsplit_once('/').expect("an action is namespace/name");
        let id = activation_id();
        Self {
            value: json!({
                "transid": [format!("t{}", &id[..31]), now_ms()],
                "action": {"path": path, "name": name, "version": "0.0.1"},
                "revision": null,
                "user": {
                    "subject": GUEST,
                    "namespace": {"name": GUEST, "uuid": GUEST_UUID},
                    "authkey": {"api_key": GUEST_KEY},
                    "rights": ["READ", "PUT", "DELETE", "ACTIVATE"],
                    "limits": {},
                },
                "activationId": id,
                "rootControllerIndex": {"asString": "0", "instanceType": "controller"},
                "blocking": false,
                "content": {},
                "initArgs": [],
                "lockedArgs": {},
            }),
        }
    }

    /// The same, for a revision of the action's document.
    pub fn revision(self, revision: &str) -> Self {
        self.with("revision", revision.into())
    }

    /// The same, waited for by its caller.
    pub fn blocking(self) -> Self {
        self.with("blocking", true.into())
    }

    /// The same, with these arguments.
    pub fn content(self, content: Value) -> Self {
        self.with("content", content)
    }

    /// The same, with one limit of the user.
    pub fn user_limit(mut self, name: &str, value: Value) -> Self {
        self.value["user"]["limits"][name] = value;
        self
    }

    /// The same, with a member set.
    pub fn with(mut self, member: &str, value: Value) -> Self {
        self.value[member] = value;
        self
    }

    /// The same, without a member.
    pub fn without(mut self, member: &str) -> Self {
        self.value.as_object_mut().expect("a message is an object").remove(member);
        self
    }

    /// Its id.
    pub fn id(&self) -> &str {
        self.value["activationId"].as_str().expect("an activation has an id")
    }
}

/// An action document. Change `value` for what has no method.
#[derive(Clone, Debug)]
pub struct Action {
    /// The document, without `_rev`.
    pub value: Value,
}

impl Action {
    /// `namespace/[package/]name` of `kind` with source text, and the standard limits.
    pub fn new(action: &str, kind: &str, code: &str) -> Self {
        let (namespace, name) = action.rsplit_once('/').expect("an action is namespace/name");
        Self {
            value: json!({
                "_id": action,
                "namespace": namespace,
                "name": name,
                "exec": {"kind": kind, "code": inline(code.as_bytes(), "text/plain; charset=UTF-8"), "binary": false},
                "parameters": [],
                "limits": {"timeout": 60000, "memory": 256, "logs": 10, "concurrency": 1},
                "version": "0.0.1",
                "publish": false,
                "annotations": [{"key": "provide-api-key", "value": false}, {"key": "exec", "value": kind}],
                "updated": now_ms(),
                "entityType": "action",
            }),
        }
    }

    /// The same, with binary code.
    pub fn binary(mut self, code: &[u8]) -> Self {
        self.value["exec"]["code"] = inline(code, "application/octet-stream");
        self.value["exec"]["binary"] = true.into();
        self
    }

    /// The same, as a blackbox of this image.
    pub fn blackbox(mut self, image: &str) -> Self {
        self.value["exec"]["kind"] = "blackbox".into();
        self.value["exec"]["image"] = image.into();
        self.value["annotations"][1]["value"] = "blackbox".into();
        self
    }

    /// The same, with one limit set: `timeout` (ms), `memory` (MB), `logs` (MB), `concurrency`.
    pub fn limit(mut self, name: &str, value: u64) -> Self {
        self.value["limits"][name] = value.into();
        self
    }

    /// The same, with an annotation.
    pub fn annotation(mut self, key: &str, value: Value) -> Self {
        self.value["annotations"].as_array_mut().expect("a list").push(json!({"key": key, "value": value}));
        self
    }

    /// `namespace/[package/]name`.
    pub fn id(&self) -> &str {
        self.value["_id"].as_str().expect("a document has an id")
    }
}

/// Code as an attachment whose content is in its name.
fn inline(code: &[u8], content_type: &str) -> Value {
    let encoded = base64::engine::general_purpose::URL_SAFE.encode(code);
    json!({"attachmentName": format!("mem:{encoded}"), "attachmentType": content_type, "length": code.len()})
}
