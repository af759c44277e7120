//! What a test puts into the store and reads from it. Each test has databases of its own.

use crate::env::{Services, repository};
use crate::message::Action;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// The three databases of one test.
#[derive(Clone, Debug)]
pub struct Store {
    client: Client,
    url: String,
    username: String,
    password: String,
    /// Put before `subjects`, `whisks` and `activations`.
    pub prefix: String,
}

impl Store {
    /// Makes the databases `<prefix>subjects`, `<prefix>whisks` and `<prefix>activations` with their
    /// design documents; those that exist are kept.
    pub async fn create(services: &Services, prefix: &str) -> Self {
        let store = Self {
            client: Client::builder()
                .timeout(Duration::from_secs(30))
                .build()
                .expect("a plain client can be built"),
            url: services.couchdb.clone(),
            username: services.couchdb_username.clone(),
            password: services.couchdb_password.clone(),
            prefix: prefix.to_owned(),
        };
        store.prepare().await;
        store
    }

    /// Makes what a freshly started store lacks.
    pub async fn prepare(&self) {
        for database in ["subjects", "whisks", "activations"] {
            let (status, answer) = self.request(Method::PUT, database, "", None).await;
            assert!(
                status.is_success() || status == StatusCode::PRECONDITION_FAILED,
                "{database}: {status} {answer}"
            );
        }
        let folder = repository().join("tests/env/couchdb");
        for entry in std::fs::read_dir(&folder).expect("the design documents are there") {
            let path = entry.expect("a readable directory").path();
            let name = path.file_stem().and_then(|n| n.to_str()).expect("a plain name").to_owned();
            let (database, document) = name.split_once('.').expect("DATABASE.DOCUMENT.json");
            let text = std::fs::read(&path).expect("a readable file");
            let body = serde_json::from_slice(&text).expect("a design document is JSON");
            let (status, answer) =
                self.request(Method::PUT, database, &format!("/_design/{document}"), Some(body)).await;
            assert!(status.is_success() || status == StatusCode::CONFLICT, "{name}: {status} {answer}");
        }
        // A view that was never built answers `stale` queries with nothing.
        self.request(
            Method::GET,
            "subjects",
            "/_design/namespaceThrottlings/_view/blockedNamespaces?reduce=false",
            None,
        )
        .await;
    }

    /// Puts an action, over an older one if there is; returns its revision.
    pub async fn put_action(&self, action: &Action) -> String {
        let path = format!("/{}", action.id().replace('/', "%2F"));
        let (_, old) = self.request(Method::GET, "whisks", &path, None).await;
        let mut document = action.value.clone();
        if let Some(revision) = old["_rev"].as_str() {
            document["_rev"] = revision.into();
        }
        let (status, answer) = self.request(Method::PUT, "whisks", &path, Some(document)).await;
        assert!(status.is_success(), "put {}: {status} {answer}", action.id());
        answer["rev"].as_str().expect("an answer to PUT has a revision").to_owned()
    }

    /// Puts an action whose code is an attachment of the document; returns the last revision.
    pub async fn put_action_with_attachment(
        &self,
        action: &Action,
        name: &str,
        content_type: &str,
        bytes: &[u8],
    ) -> String {
        let mut action = action.clone();
        action.value["exec"]["code"] =
            json!({"attachmentName": format!("couch:{name}"), "attachmentType": content_type});
        let revision = self.put_action(&action).await;
        let path = format!(
            "{}/{}whisks/{}/{name}?rev={revision}",
            self.url,
            self.prefix,
            action.id().replace('/', "%2F")
        );
        let answer = self
            .client
            .put(path)
            .basic_auth(&self.username, Some(&self.password))
            .header("content-type", content_type)
            .body(bytes.to_vec())
            .send()
            .await
            .expect("the store answers");
        let status = answer.status();
        let body: Value = answer.json().await.expect("the store answers JSON");
        assert!(status.is_success(), "attach to {}: {status} {body}", action.id());
        body["rev"].as_str().expect("a revision").to_owned()
    }

    /// Puts any document into `whisks`.
    pub async fn put_document(&self, id: &str, document: Value) -> String {
        let (status, answer) = self
            .request(Method::PUT, "whisks", &format!("/{}", id.replace('/', "%2F")), Some(document))
            .await;
        assert!(status.is_success(), "put {id}: {status} {answer}");
        answer["rev"].as_str().expect("a revision").to_owned()
    }

    /// Deletes an action.
    pub async fn delete_action(&self, id: &str) {
        let path = format!("/{}", id.replace('/', "%2F"));
        let (_, old) = self.request(Method::GET, "whisks", &path, None).await;
        let path = format!("{path}?rev={}", old["_rev"].as_str().expect("the action is there"));
        let (status, answer) = self.request(Method::DELETE, "whisks", &path, None).await;
        assert!(status.is_success(), "delete {id}: {status} {answer}");
    }

    /// Blocks a namespace, as the operator of a deployment does.
    pub async fn block(&self, namespace: &str) {
        let document = json!({"subject": namespace, "blocked": true, "namespaces": [{"name": namespace, "uuid": "u", "key": "k"}]});
        let (status, answer) =
            self.request(Method::PUT, "subjects", &format!("/{namespace}"), Some(document)).await;
        assert!(status.is_success(), "block {namespace}: {status} {answer}");
        self.request(
            Method::GET,
            "subjects",
            "/_design/namespaceThrottlings/_view/blockedNamespaces?reduce=false",
            None,
        )
        .await;
    }

    /// The record of an activation of `namespace`, once it is there; `None` when it is not within `patience`.
    pub async fn activation(&self, namespace: &str, id: &str, patience: Duration) -> Option<Value> {
        let deadline = Instant::now() + patience;
        loop {
            let (status, answer) =
                self.request(Method::GET, "activations", &format!("/{namespace}%2F{id}"), None).await;
            if status.is_success() {
                return Some(answer);
            }
            if Instant::now() > deadline {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// The ids of all records.
    pub async fn activation_ids(&self) -> Vec<String> {
        let (status, answer) = self.request(Method::GET, "activations", "/_all_docs", None).await;
        assert!(status.is_success(), "list activations: {status} {answer}");
        let rows = answer["rows"].as_array().cloned().unwrap_or_default();
        rows.iter()
            .filter_map(|row| row["id"].as_str())
            .filter(|id| !id.starts_with('_'))
            .map(str::to_owned)
            .collect()
    }

    /// One request; `path` is below the database.
    pub async fn request(
        &self,
        method: Method,
        database: &str,
        path: &str,
        body: Option<Value>,
    ) -> (StatusCode, Value) {
        let url = format!("{}/{}{database}{path}", self.url, self.prefix);
        let mut request = self.client.request(method, &url).basic_auth(&self.username, Some(&self.password));
        if let Some(body) = body {
            request = request.json(&body);
        }
        match request.send().await {
            Ok(answer) => (answer.status(), answer.json().await.unwrap_or(Value::Null)),
            Err(error) => panic!("{url}: {error}"),
        }
    }
}
