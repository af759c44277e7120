//! The invoker's own HTTP server (contract 7.3): `/ping`, `/metrics`, `/enable`, `/disable`, `/isEnabled`.
//!
//! Texts, types and codes are upstream's, to the byte. One habit is not kept: upstream answers 406 or 401 to a
//! request that says `Accept: application/json` (and disables the invoker all the same); here `Accept` changes
//! nothing.

mod door;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{ALLOW, AUTHORIZATION, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use openwhisk_compat::message::InvokerInstanceId;
use rand::Rng;
use rand::distr::Alphanumeric;

pub use door::{HttpsSettings, TlsError};

use crate::health::{Health, Switched};
use crate::metrics::{self, Metrics};

/// A request id longer than this is replaced: it goes into logs and answers.
const REQUEST_ID_CHARS_MAX: usize = 256;

/// What the server needs to know.
#[derive(Clone)]
pub struct HttpSettings {
    /// Where to listen; upstream listens on all addresses.
    pub address: SocketAddr,
    /// `invoker.username`.
    pub username: String,
    /// `invoker.password`.
    pub password: String,
    /// `transactions.header`.
    pub transaction_header: String,
    /// Whether `/metrics` answers; 404 otherwise.
    pub metrics: bool,
    /// TLS, when `invoker.protocol` is `https`.
    pub https: Option<HttpsSettings>,
}

impl std::fmt::Debug for HttpSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.https.is_some() { "https" } else { "http" };
        write!(f, "{scheme}://{} metrics={}", self.address, self.metrics)
    }
}

/// Why the server cannot start.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The port is taken or not allowed.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// `transactions.header` is not a header's name.
    #[error("'{name}' is not the name of an HTTP header")]
    Header {
        /// As configured.
        name: String,
    },
    /// The certificate cannot be used.
    #[error("https cannot be set up")]
    Tls(#[source] TlsError),
}

/// A server that listens; requests are answered from [`Server::serve`] on.
pub struct Server {
    door: door::Door,
    address: SocketAddr,
    app: Router,
}

struct Site {
    name: InvokerInstanceId,
    health: Health,
    metrics: Arc<Metrics>,
    settings: HttpSettings,
    header: HeaderName,
    /// The whole `Authorization` value that opens the door.
    credentials: String,
}

impl Server {
    /// Takes the port.
    ///
    /// # Errors
    /// See [`HttpError`].
    pub async fn bind(
        settings: HttpSettings,
        name: InvokerInstanceId,
        health: Health,
        metrics: Arc<Metrics>,
    ) -> Result<Self, HttpError> {
        let header = HeaderName::from_bytes(settings.transaction_header.as_bytes())
            .map_err(|_| HttpError::Header { name: settings.transaction_header.clone() })?;
        let tls = settings.https.as_ref().map(door::acceptor).transpose().map_err(HttpError::Tls)?;
        let listen = |source| HttpError::Listen { address: settings.address, source };
        let listener = tokio::net::TcpListener::bind(settings.address).await.map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let credentials = STANDARD.encode(format!("{}:{}", settings.username, settings.password));
        let site = Site { name, health, metrics, settings, header, credentials };
        let app = Router::new().fallback(answer).with_state(Arc::new(site));
        Ok(Self { door: door::Door::new(listener, address, tls), address, app })
    }

    /// Where it listens, with the port the system chose if 0 was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `stop` ends, then finishes those under way.
    ///
    /// # Errors
    /// None in practice: failures of single connections are logged where they happen.
    pub async fn serve(self, stop: impl Future<Output = ()> + Send + 'static) -> std::io::Result<()> {
        axum::serve(self.door, self.app).with_graceful_shutdown(stop).await
    }
}

async fn answer(State(site): State<Arc<Site>>, request: Request) -> Response {
    let began = Instant::now();
    let id = request_id(request.headers(), &site.header);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let mut response = route(&site, &method, &path, request.headers(), &id);
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(site.header.clone(), value);
    }
    let status = response.status().as_u16();
    site.metrics.http(method.as_str(), status, began.elapsed());
    tracing::debug!(transid = id, %method, path, status, "request answered");
    response
}

fn route(site: &Site, method: &Method, path: &str, headers: &HeaderMap, id: &str) -> Response {
    let reads = matches!(*method, Method::GET | Method::HEAD);
    match path {
        "/ping" if reads => return text("pong".to_owned()),
        "/metrics" if reads && site.settings.metrics => {
            let kind = HeaderValue::from_static(metrics::CONTENT_TYPE);
            return ([(CONTENT_TYPE, kind)], site.metrics.render()).into_response();
        }
        "/metrics" if reads => return not_found(id),
        _ => {}
    }
    if !authorized(headers, &site.credentials) {
        return unauthorized(id);
    }
    let name = &site.name;
    let switched = |outcome: Switched, state: &str| match outcome {
        Switched::Now => text(format!("{name} is now {state}.")),
        Switched::Already => text(format!("{name} is already {state}.")),
    };
    match path {
        "/enable" if method == Method::POST => switched(site.health.enable(), "enabled"),
        "/disable" if method == Method::POST => switched(site.health.disable(), "disabled"),
        "/isEnabled" if reads => text(format!("{{\"enabled\":{}}}", site.health.is_enabled())),
        "/enable" | "/disable" => wrong_method("POST", id),
        "/isEnabled" | "/ping" | "/metrics" => wrong_method("GET", id),
        _ => not_found(id),
    }
}

fn text(body: String) -> Response {
    ([(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=UTF-8"))], body).into_response()
}

fn json(status: StatusCode, body: String) -> Response {
    (status, [(CONTENT_TYPE, HeaderValue::from_static("application/json"))], body).into_response()
}

/// Upstream prints this one error on several lines.
fn unauthorized(id: &str) -> Response {
    let code = quoted(id);
    json(
        StatusCode::UNAUTHORIZED,
        format!(
            "{{\n  \"code\": {code},\n  \"error\": \"Authentication is possible but has failed or not yet been \
             provided.\"\n}}"
        ),
    )
}

fn wrong_method(allowed: &'static str, id: &str) -> Response {
    let error = quoted(&format!("HTTP method not allowed, supported methods: {allowed}"));
    let mut response =
        json(StatusCode::METHOD_NOT_ALLOWED, format!("{{\"code\":{},\"error\":{error}}}", quoted(id)));
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn not_found(id: &str) -> Response {
    let error = quoted("The requested resource does not exist.");
    json(StatusCode::NOT_FOUND, format!("{{\"code\":{},\"error\":{error}}}", quoted(id)))
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// The caller's id if it is usable, else one of 32 letters and digits.
fn request_id(headers: &HeaderMap, name: &HeaderName) -> String {
    let given = headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    match given {
        Some(id) if !id.is_empty() && id.len() <= REQUEST_ID_CHARS_MAX => id.to_owned(),
        _ => rand::rng().sample_iter(&Alphanumeric).take(32).map(char::from).collect(),
    }
}

/// Compares in constant time: how much of a guess is right must not show.
fn authorized(headers: &HeaderMap, credentials: &str) -> bool {
    let given = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, given)) = given.and_then(|value| value.trim().split_once(' ')) else { return false };
    let given = given.trim();
    scheme.eq_ignore_ascii_case("basic")
        && given.len() == credentials.len()
        && openssl::memcmp::eq(given.as_bytes(), credentials.as_bytes())
}

#[cfg(test)]
mod tests;
