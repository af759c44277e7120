//! Every answer of the recorded server, over real sockets, plain and in TLS.

use std::sync::Mutex;

use futures::FutureExt;
use futures::future::BoxFuture;
use openssl::asn1::Asn1Time;
use openssl::bn::BigNum;
use openssl::hash::MessageDigest;
use openssl::pkcs12::Pkcs12;
use openssl::pkey::{PKey, Private};
use openssl::rsa::Rsa;
use openssl::x509::extension::BasicConstraints;
use openssl::x509::{X509, X509NameBuilder};
use openwhisk_compat::size::ByteSize;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::*;
use crate::bus::{Producer, SendError};

#[derive(Default)]
struct Bus(Mutex<Vec<String>>);

impl Producer for Bus {
    fn send(&self, _: &str, payload: Vec<u8>) -> BoxFuture<'static, Result<(), SendError>> {
        self.0.lock().unwrap().push(String::from_utf8(payload).unwrap());
        futures::future::ready(Ok(())).boxed()
    }
}

fn settings() -> HttpSettings {
    HttpSettings {
        address: ([127, 0, 0, 1], 0).into(),
        username: "invoker.user".to_owned(),
        password: "invoker.pass".to_owned(),
        transaction_header: "X-Request-ID".to_owned(),
        metrics: true,
        https: None,
    }
}

struct Running {
    url: String,
    bus: Arc<Bus>,
    _stop: DropGuard,
}

async fn start(settings: HttpSettings) -> Running {
    let bus = Arc::<Bus>::default();
    let metrics = Metrics::for_tests();
    let mut name = InvokerInstanceId::new(0, ByteSize::from_bytes(1 << 30));
    name.unique_name = Some("0".to_owned());
    let health = Health::start(
        name.clone(),
        "health".to_owned(),
        Arc::clone(&bus) as _,
        Arc::new(|| futures::future::ready(Ok(())).boxed()),
        Arc::clone(&metrics),
    )
    .unwrap();
    let scheme = if settings.https.is_some() { "https" } else { "http" };
    let server = Server::bind(settings, name, health, metrics).await.unwrap();
    let url = format!("{scheme}://{}", server.address());
    let stop = CancellationToken::new();
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(server.serve(stopped));
    Running { url, bus, _stop: stop.drop_guard() }
}

/// What an answer is, without its date.
#[derive(Debug, PartialEq)]
struct Answer {
    status: u16,
    kind: String,
    body: String,
}

async fn ask(running: &Running, method: &str, path: &str, auth: bool, accept: &str) -> Answer {
    let client = reqwest::Client::new();
    let mut request = client
        .request(method.parse().unwrap(), format!("{}{path}", running.url))
        .header("Accept", accept)
        .header("X-Request-ID", "my-own-id");
    if auth {
        request = request.basic_auth("invoker.user", Some("invoker.pass"));
    }
    let answer = request.send().await.unwrap();
    assert_eq!(answer.headers()["X-Request-ID"], "my-own-id", "{method} {path}");
    Answer {
        status: answer.status().as_u16(),
        kind: answer.headers()["content-type"].to_str().unwrap().to_owned(),
        body: answer.text().await.unwrap(),
    }
}

fn plain(body: &str) -> Answer {
    Answer { status: 200, kind: "text/plain; charset=UTF-8".to_owned(), body: body.to_owned() }
}

fn error(status: u16, body: &str) -> Answer {
    Answer { status, kind: "application/json".to_owned(), body: body.to_owned() }
}

#[tokio::test]
async fn answers_are_those_of_the_recorded_server() {
    let running = start(settings()).await;
    let unauthorized = || {
        error(
            401,
            "{\n  \"code\": \"my-own-id\",\n  \"error\": \"Authentication is possible but has failed or not yet been provided.\"\n}",
        )
    };
    for accept in ["*/*", "application/json"] {
        for (method, path, auth, expected) in [
            ("GET", "/ping", false, plain("pong")),
            ("GET", "/isEnabled", true, plain("{\"enabled\":true}")),
            ("GET", "/isEnabled", false, unauthorized()),
            ("POST", "/disable", false, unauthorized()),
            ("POST", "/enable", true, plain("invoker0/0 is already enabled.")),
            (
                "GET",
                "/enable",
                true,
                error(
                    405,
                    r#"{"code":"my-own-id","error":"HTTP method not allowed, supported methods: POST"}"#,
                ),
            ),
            ("GET", "/nothing", false, unauthorized()),
            (
                "GET",
                "/nothing",
                true,
                error(404, r#"{"code":"my-own-id","error":"The requested resource does not exist."}"#),
            ),
            ("POST", "/disable", true, plain("invoker0/0 is now disabled.")),
            ("POST", "/disable", true, plain("invoker0/0 is already disabled.")),
            ("GET", "/isEnabled", true, plain("{\"enabled\":false}")),
            ("POST", "/enable", true, plain("invoker0/0 is now enabled.")),
        ] {
            assert_eq!(ask(&running, method, path, auth, accept).await, expected, "{method} {path} {accept}");
        }
    }
    let told = running.bus.0.lock().unwrap();
    assert_eq!(told.iter().filter(|ping| ping.contains(r#""isEnabled":false"#)).count(), 4);
}

#[tokio::test]
async fn metrics_are_text_0_0_4_or_404() {
    let running = start(settings()).await;
    ask(&running, "GET", "/ping", false, "*/*").await;
    let answer = ask(&running, "GET", "/metrics", false, "*/*").await;
    assert_eq!((answer.status, answer.kind.as_str()), (200, "text/plain; version=0.0.4"));
    assert!(answer.body.contains(r#"counter_http_get_counter_total{statusCode="200"} 1"#), "{}", answer.body);

    let running = start(HttpSettings { metrics: false, ..settings() }).await;
    assert_eq!(ask(&running, "GET", "/metrics", false, "*/*").await.status, 404);
}

#[tokio::test]
async fn wrong_credentials_open_nothing() {
    let running = start(settings()).await;
    for header in [
        "Basic".to_owned(),
        "Basic !!!".to_owned(),
        format!("Basic {}", STANDARD.encode("invoker.user:invoker.pas")),
        format!("Basic {}", STANDARD.encode("invoker.user:invoker.pasS")),
        format!("Bearer {}", STANDARD.encode("invoker.user:invoker.pass")),
        String::new(),
    ] {
        let request = reqwest::Client::new().post(format!("{}/disable", running.url));
        let answer = request.header("Authorization", &header).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), 401, "{header}");
    }
}

#[tokio::test]
async fn a_request_without_a_usable_id_gets_one() {
    let running = start(settings()).await;
    for id in [None, Some(String::new()), Some("x".repeat(257))] {
        let mut request = reqwest::Client::new().get(format!("{}/ping", running.url));
        if let Some(id) = &id {
            request = request.header("X-Request-ID", id);
        }
        let answer = request.send().await.unwrap();
        let given = answer.headers()["X-Request-ID"].to_str().unwrap();
        assert!(given.len() == 32 && given.chars().all(|c| c.is_ascii_alphanumeric()), "{given}");
    }
}

#[tokio::test]
async fn mistakes_of_the_settings_are_named() {
    let metrics = Metrics::for_tests();
    let name = InvokerInstanceId::new(0, ByteSize::from_bytes(1));
    let health = Health::start(
        name.clone(),
        "health".to_owned(),
        Arc::<Bus>::default() as _,
        Arc::new(|| futures::future::ready(Ok(())).boxed()),
        Arc::clone(&metrics),
    )
    .unwrap();
    let bind = |settings| {
        let (name, health, metrics) = (name.clone(), health.clone(), Arc::clone(&metrics));
        async move { Server::bind(settings, name, health, metrics).await.err().unwrap() }
    };
    let error = bind(HttpSettings { transaction_header: "a b".to_owned(), ..settings() }).await;
    assert_eq!(error.to_string(), "'a b' is not the name of an HTTP header");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let error = bind(HttpSettings { address, ..settings() }).await;
    assert_eq!(error.to_string(), format!("cannot listen on {address}"));

    let https = HttpsSettings {
        keystore_path: "/nowhere".into(),
        keystore_password: String::new(),
        client_auth: false,
    };
    let error = bind(HttpSettings { https: Some(https), ..settings() }).await;
    assert!(
        crate::errors::chain(&error)
            .starts_with("https cannot be set up: keystore /nowhere cannot be read: ")
    );
}

/// A key and a certificate of its own for `127.0.0.1`.
fn certificate() -> (PKey<Private>, X509) {
    let key = PKey::from_rsa(Rsa::generate(2048).unwrap()).unwrap();
    let mut name = X509NameBuilder::new().unwrap();
    name.append_entry_by_text("CN", "127.0.0.1").unwrap();
    let name = name.build();
    let mut builder = X509::builder().unwrap();
    builder.set_version(2).unwrap();
    builder.set_serial_number(&BigNum::from_u32(1).unwrap().to_asn1_integer().unwrap()).unwrap();
    builder.set_subject_name(&name).unwrap();
    builder.set_issuer_name(&name).unwrap();
    builder.set_pubkey(&key).unwrap();
    builder.set_not_before(&Asn1Time::days_from_now(0).unwrap()).unwrap();
    builder.set_not_after(&Asn1Time::days_from_now(1).unwrap()).unwrap();
    builder.append_extension(BasicConstraints::new().critical().ca().build().unwrap()).unwrap();
    builder.sign(&key, MessageDigest::sha256()).unwrap();
    (key, builder.build())
}

fn keystore(key: &PKey<Private>, certificate: &X509) -> Vec<u8> {
    Pkcs12::builder().name("x").pkey(key).cert(certificate).build2("secret").unwrap().to_der().unwrap()
}

#[tokio::test]
async fn https_with_a_keystore_and_with_client_certificates() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keystore.p12");
    let (key, own) = certificate();
    std::fs::write(&path, keystore(&key, &own)).unwrap();
    let https = |client_auth, password: &str| HttpsSettings {
        keystore_path: path.clone(),
        keystore_password: password.to_owned(),
        client_auth,
    };
    assert!(matches!(door::acceptor(&https(false, "wrong")), Err(TlsError::Open { .. })));

    let client = || reqwest::Client::builder().tls_danger_accept_invalid_certs(true);
    let running = start(HttpSettings { https: Some(https(false, "secret")), ..settings() }).await;
    let ping = format!("{}/ping", running.url);
    let answer = client().build().unwrap().get(&ping).send().await.unwrap();
    assert_eq!(answer.text().await.unwrap(), "pong");
    let nonsense = reqwest::get(ping.replace("https", "http")).await;
    assert!(nonsense.is_err(), "plain text on the TLS port");

    let running = start(HttpSettings { https: Some(https(true, "secret")), ..settings() }).await;
    let ping = format!("{}/ping", running.url);
    client().build().unwrap().get(&ping).send().await.unwrap_err();
    let identity = |store: &[u8]| reqwest::Identity::from_pkcs12_der(store, "secret").unwrap();
    let known = client().identity(identity(&keystore(&key, &own))).build().unwrap();
    assert_eq!(known.get(&ping).send().await.unwrap().text().await.unwrap(), "pong");
    let (other_key, other) = certificate();
    let stranger = client().identity(identity(&keystore(&other_key, &other))).build().unwrap();
    stranger.get(&ping).send().await.unwrap_err();
}
