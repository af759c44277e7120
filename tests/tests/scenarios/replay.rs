//! What a replay needs: services, the invoker, and a recorder for what arrives in the containers.

use base64::Engine as _;
use reqwest::Method;
use rewind_tests::Lab;
use rewind_tests::env::Services;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::Activation;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

/// The longest a scenario takes: the genuine `slow` actions sleep 5 s, logs without sentinels wait 2 s.
const PATIENCE: Duration = Duration::from_secs(40);

/// One recorded scenario, trimmed.
#[derive(Debug, Deserialize)]
pub(crate) struct Fixture {
    pub(crate) name: String,
    /// What was put into the invoker's topic, to the byte.
    pub(crate) messages: Vec<String>,
    /// `{topic, value}`, or `{topic, raw}` where the recording cut the text.
    pub(crate) acks: Vec<Value>,
    pub(crate) events: Vec<Value>,
    pub(crate) records: Vec<Value>,
    /// Requests the runtime received: `{path, body}`.
    pub(crate) container: Vec<Value>,
    documents: BTreeMap<String, Stored>,
}

/// A document with the revision the messages name.
#[derive(Debug, Deserialize)]
struct Stored {
    rev: String,
    doc: Value,
}

impl Fixture {
    /// Every fixture, in the order in which they were recorded.
    pub(crate) fn all() -> Vec<Self> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/scenarios");
        let mut paths: Vec<_> =
            std::fs::read_dir(folder).expect(folder).map(|e| e.expect(folder).path()).collect();
        paths.sort();
        let read = |path| serde_json::from_slice(&std::fs::read(&path).expect("fixture")).expect("fixture");
        paths.into_iter().map(read).collect()
    }

    /// The activation id of a message, if it has one.
    pub(crate) fn id_of(message: &str) -> Option<String> {
        let value: Value = serde_json::from_str(message).ok()?;
        Some(value["activationId"].as_str()?.to_owned())
    }
}

/// What our invoker did about one scenario, in the shape of the fixture.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) acks: Vec<Value>,
    pub(crate) events: Vec<Value>,
    pub(crate) records: Vec<Value>,
    pub(crate) container: Vec<Value>,
}

/// The invoker under test in a corner of its own.
pub(crate) struct Replay {
    lab: Lab,
    invoker: Invoker,
    received: Arc<Mutex<Vec<Value>>>,
}

impl Replay {
    /// An invoker set up as the genuine one was when the scenarios were recorded.
    pub(crate) async fn start() -> Self {
        let lab = Lab::within(Services::get(), "scenarios", &["0", "7"]).await;
        // The engine has the first address of its bridge's network; older engines do not say so.
        let subnet = lab.docker.run(&[
            "network",
            "inspect",
            "bridge",
            "--format",
            "{{(index .IPAM.Config 0).Subnet}}",
        ]);
        let network = subnet.split('/').next().and_then(|n| n.strip_suffix(".0")).expect("a.b.c.0/n");
        let gateway = format!("{network}.1");
        let listener = TcpListener::bind((gateway.as_str(), 0)).await.expect("the bridge has this address");
        let recorder = listener.local_addr().expect("bound");
        let received = Arc::new(Mutex::new(Vec::new()));
        tokio::spawn(record(listener, received.clone()));
        // The blackbox image of scenario 26: its pull fails, and it is there.
        lab.docker.run(&["tag", "rewind-test/action-scripted:latest", "127.0.0.1:5999/testuser/black:1.0"]);
        let image = json!({"prefix": "rewind-test", "name": "action-scripted", "tag": "latest"});
        let attached = json!({"attachmentName": "codefile", "attachmentType": "text/plain"});
        let manifest = json!({"runtimes": {
            "nodejs": [{"kind": "nodejs:20", "default": true, "image": image, "attached": attached}],
            "python": [{"kind": "python:3.11", "default": true, "image": image, "attached": attached}],
        }});
        let invoker = lab
            .invoker()
            .manifest(&manifest)
            .env("WHISK_API_HOST_NAME", "172.17.0.1")
            .env("WHISK_API_HOST_PORT", "18888")
            .env("CONFIG_whisk_containerFactory_containerArgs_extraEnvVars_0", format!("RECORDER={recorder}"))
            .start(&lab)
            .await;
        Self { lab, invoker, received }
    }

    pub(crate) async fn put_documents(&self, fixture: &Fixture) {
        let docs: Vec<Value> = fixture.documents.values().map(Stored::with_content).collect();
        if docs.is_empty() {
            return;
        }
        // Edits of another replica: the store keeps the revisions the messages name.
        let body = json!({"new_edits": false, "docs": docs});
        let (status, answer) =
            self.lab.store.request(Method::POST, "whisks", "/_bulk_docs", Some(body)).await;
        assert!(status.is_success(), "{}: {status} {answer}", fixture.name);
    }

    /// Publishes a message; one that has an id is checked by the controller's double from then on.
    pub(crate) async fn publish(&self, message: &str, answerable: bool) {
        match serde_json::from_str(message) {
            Ok(value) if answerable => self.lab.controller.publish(&Activation { value }).await,
            _ => self.lab.controller.publish_text(0, message).await,
        }
    }

    /// Waits until the slot of an activation is free again.
    pub(crate) async fn until_answered(&self, id: &str) {
        self.lab.controller.answered(id).await;
    }

    /// Everything the invoker did about a scenario whose acks have come.
    pub(crate) async fn seen(&self, fixture: &Fixture) -> Seen {
        let mut seen = Seen::default();
        let mut ids: Vec<String> = fixture.messages.iter().filter_map(|m| Fixture::id_of(m)).collect();
        ids.dedup();
        for id in &ids {
            for ack in self.lab.controller.acks_of(id) {
                seen.acks.push(json!({"topic": ack.topic, "value": ack.value}));
            }
            if !fixture.events.is_empty() {
                seen.events.push(self.lab.controller.event(id).await);
            }
            let patience = if fixture.records.is_empty() { Duration::from_millis(300) } else { PATIENCE };
            if let Some(mut record) = self.lab.store.activation("guest", id, patience).await {
                record.as_object_mut().expect("documents are objects").remove("_rev");
                seen.records.push(record);
            }
        }
        let received = self.received.lock().unwrap_or_else(PoisonError::into_inner);
        seen.container =
            received.iter().filter(|r| ids.iter().any(|id| r.to_string().contains(id))).cloned().collect();
        seen
    }

    pub(crate) async fn stop(self) {
        let status = self.invoker.stop().await;
        assert!(status.success(), "the invoker ended with {status}");
        self.lab.controller.finish().await;
    }
}

/// Takes one line of JSON per connection from the containers' runtime: `{path, headers, body}`.
async fn record(listener: TcpListener, received: Arc<Mutex<Vec<Value>>>) {
    while let Ok((mut peer, _)) = listener.accept().await {
        let mut text = Vec::new();
        if peer.read_to_end(&mut text).await.is_err() {
            continue;
        }
        let mut request: Value = serde_json::from_slice(&text).expect("the runtime reports JSON");
        let body = request["body"].as_str().expect("a body").to_owned();
        request["body"] = serde_json::from_str(&body).unwrap_or_else(|_| json!({"raw": body}));
        request.as_object_mut().expect("an object").remove("headers");
        received.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        let _ = peer.write_all(b"\n").await; // The runtime goes on when it is noted.
    }
}

impl Stored {
    /// The document as the store shall hold it: with its revision, attachments in line.
    ///
    /// The recordings cut the two attachments in the middle; they are a comment of one letter and one
    /// function, and are made again here in their old length.
    fn with_content(&self) -> Value {
        let mut doc = self.doc.clone();
        doc["_rev"] = self.rev.clone().into();
        if let Some(attachments) = doc.get_mut("_attachments").and_then(Value::as_object_mut) {
            for attachment in attachments.values_mut() {
                let length =
                    attachment["length"].as_u64().and_then(|n| usize::try_from(n).ok()).expect("length");
                let text = attachment["content_type"].as_str().expect("type").to_owned();
                let (letter, code) = match text.as_str() {
                    "application/octet-stream" => ("y", "\ndef main(a): return {\"bin\":True}\n"),
                    _ => ("x", "\ndef main(a): return {\"big\":True}\n"),
                };
                let content = format!("# {}{code}", letter.repeat(length - 2 - code.len()));
                let data = base64::engine::general_purpose::STANDARD.encode(content);
                *attachment = json!({"content_type": text, "data": data});
            }
        }
        doc
    }
}
