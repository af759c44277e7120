//! A store that costs nothing: it has one action, and forgets every record it is given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use rewind_tests::message::Action;
use serde_json::{Value, json};

/// The revision of the one action.
pub const REVISION: &str = "1-0123456789abcdef0123456789abcdef";

/// The running store.
#[derive(Clone, Debug)]
pub struct NullStore {
    /// Where it listens.
    pub address: SocketAddr,
    records: Arc<AtomicU64>,
}

struct Shared {
    action: String,
    records: Arc<AtomicU64>,
}

impl NullStore {
    /// Starts it on a port of the system's choice.
    ///
    /// # Panics
    /// When there is no port.
    pub async fn start(action: &Action) -> Self {
        let mut document = action.value.clone();
        document["_rev"] = REVISION.into();
        let records = Arc::new(AtomicU64::new(0));
        let shared = Arc::new(Shared { action: document.to_string(), records: Arc::clone(&records) });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let router = Router::new().fallback(answer).with_state(shared);
        tokio::spawn(async move { axum::serve(listener, router).await.expect("the store serves") });
        Self { address, records }
    }

    /// How many records were stored.
    #[must_use]
    pub fn records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

async fn answer(State(shared): State<Arc<Shared>>, method: Method, uri: Uri, body: String) -> Response {
    let path = uri.path();
    let (status, text) = if path.ends_with("/_bulk_docs") {
        let body: Value = serde_json::from_str(&body).unwrap_or_default();
        let documents = body["docs"].as_array().map(Vec::as_slice).unwrap_or_default();
        shared.records.fetch_add(documents.len() as u64, Ordering::Relaxed);
        let stored = |document: &Value| json!({"ok": true, "id": document["_id"], "rev": REVISION});
        (StatusCode::CREATED, Value::from_iter(documents.iter().map(stored)).to_string())
    } else if path.contains("/_view/") {
        (StatusCode::OK, json!({"total_rows": 0, "offset": 0, "rows": []}).to_string())
    } else if method == Method::GET && path.matches('/').count() > 1 {
        (StatusCode::OK, shared.action.clone())
    } else if method == Method::PUT {
        shared.records.fetch_add(1, Ordering::Relaxed);
        (StatusCode::CREATED, json!({"ok": true, "id": "id", "rev": REVISION}).to_string())
    } else {
        (StatusCode::OK, json!({"couchdb": "Welcome", "version": "3.3.3", "db_name": "null"}).to_string())
    };
    (status, [(header::CONTENT_TYPE, "application/json")], text).into_response()
}
