//! A store that fails now and then: a proxy that answers some requests with 500 instead of passing them on.

use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use rand::Rng as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// The proxy; ends with its runtime.
#[derive(Clone, Debug)]
pub struct FaultyStore {
    /// Where it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    upstream: String,
    client: reqwest::Client,
    per_mille: AtomicU64,
    passed: AtomicUsize,
    failed: AtomicUsize,
}

impl FaultyStore {
    /// A proxy to `http://host:port`, of whose requests `per_mille` in 1000 fail.
    pub async fn before(upstream: &str, per_mille: u64) -> Self {
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            client: reqwest::Client::new(),
            per_mille: AtomicU64::new(per_mille),
            passed: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let router = axum::Router::new().fallback(pass).with_state(shared.clone());
        tokio::spawn(async move { axum::serve(listener, router).await.expect("the proxy serves") });
        Self { address, shared }
    }

    /// Changes how often it fails.
    pub fn fail(&self, per_mille: u64) {
        self.shared.per_mille.store(per_mille, Ordering::Relaxed);
    }

    /// Requests passed on, and requests failed.
    pub fn counts(&self) -> (usize, usize) {
        (self.shared.passed.load(Ordering::Relaxed), self.shared.failed.load(Ordering::Relaxed))
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request<Body>) -> Response {
    if rand::rng().random_range(0..1000) < shared.per_mille.load(Ordering::Relaxed) {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        return (
            StatusCode::INTERNAL_SERVER_ERROR,
            r#"{"error":"internal_server_error","reason":"made to fail"}"#,
        )
            .into_response();
    }
    shared.passed.fetch_add(1, Ordering::Relaxed);
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let Ok(body) = to_bytes(body, 64 << 20).await else { return StatusCode::BAD_REQUEST.into_response() };
    let mut headers = parts.headers;
    headers.remove("host");
    let sent = shared
        .client
        .request(parts.method, format!("{}{path}", shared.upstream))
        .headers(headers)
        .body(body)
        .send()
        .await;
    let Ok(answer) = sent else { return StatusCode::BAD_GATEWAY.into_response() };
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove("transfer-encoding");
    match answer.bytes().await {
        Ok(bytes) => (status, headers, bytes).into_response(),
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
