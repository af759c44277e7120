//! The client against a server that behaves, and misbehaves, as CouchDB may.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use serde_json::{Value, json};

use super::*;

/// A server that remembers requests and answers from a script.
#[derive(Default)]
pub(super) struct Fake {
    /// Answers by `METHOD path?query`; consumed in order, the last one stays.
    answers: Mutex<HashMap<String, Vec<(u16, Bytes)>>>,
    /// What was asked: `METHOD path?query`, `If-Match`, body.
    pub(super) asked: Mutex<Vec<(String, Option<String>, Bytes)>>,
    /// Requests under way now and at most.
    running: AtomicUsize,
    pub(super) running_max: AtomicUsize,
    /// Ids that `_bulk_docs` has seen.
    pub(super) written: Mutex<HashSet<String>>,
    /// `_bulk_docs` drops its answer this many times (after writing).
    pub(super) lose_answers: AtomicUsize,
    /// `_bulk_docs` answers 500 this many times (without writing).
    pub(super) fail: AtomicUsize,
    pub(super) bulk_delay: Mutex<Duration>,
}

impl Fake {
    pub(super) fn answer(&self, request: &str, status: u16, body: impl Into<Bytes>) {
        let mut answers = self.answers.lock().unwrap();
        answers.entry(request.to_owned()).or_default().push((status, body.into()));
    }

    pub(super) fn asked(&self) -> Vec<String> {
        self.asked.lock().unwrap().iter().map(|(line, _, _)| line.clone()).collect()
    }

    fn bulk(&self, body: &Bytes) -> Value {
        let body: Value = serde_json::from_slice(body).unwrap();
        let mut written = self.written.lock().unwrap();
        let answer = |document: &Value| {
            let id = document["_id"].as_str().unwrap();
            if document.get("refuse").is_some() {
                json!({ "id": id, "error": "forbidden", "reason": "no" })
            } else if written.insert(id.to_owned()) {
                json!({ "ok": true, "id": id, "rev": "1-a" })
            } else {
                json!({ "id": id, "error": "conflict", "reason": "Document update conflict." })
            }
        };
        body["docs"].as_array().unwrap().iter().map(answer).collect()
    }
}

fn take(count: &AtomicUsize) -> bool {
    count.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

async fn serve(State(fake): State<Arc<Fake>>, request: Request) -> Response {
    let running = fake.running.fetch_add(1, Ordering::SeqCst) + 1;
    fake.running_max.fetch_max(running, Ordering::SeqCst);
    let line = format!("{} {}", request.method(), request.uri());
    assert_eq!(
        request.headers().get("authorization").and_then(|value| value.to_str().ok()),
        Some("Basic dTpw"),
        "{line}"
    );
    let if_match = request.headers().get("if-match").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let body = to_bytes(request.into_body(), usize::MAX).await.unwrap();
    fake.asked.lock().unwrap().push((line.clone(), if_match, body.clone()));
    let response = if line.ends_with("/_bulk_docs") {
        let delay = *fake.bulk_delay.lock().unwrap();
        tokio::time::sleep(delay).await;
        if take(&fake.fail) {
            (axum::http::StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response()
        } else {
            let answer = fake.bulk(&body);
            if take(&fake.lose_answers) {
                // A body that breaks off: the client sees a transport error.
                Body::from_stream(futures::stream::once(async {
                    Err::<Bytes, _>(std::io::Error::other("gone"))
                }))
                .into_response()
            } else {
                axum::Json(answer).into_response()
            }
        }
    } else {
        let mut answers = fake.answers.lock().unwrap();
        match answers.get_mut(&line) {
            Some(script) => {
                let (status, body) = if script.len() > 1 { script.remove(0) } else { script[0].clone() };
                (axum::http::StatusCode::from_u16(status).unwrap(), body).into_response()
            }
            None => (axum::http::StatusCode::NOT_FOUND, r#"{"error":"not_found","reason":"missing"}"#)
                .into_response(),
        }
    };
    fake.running.fetch_sub(1, Ordering::SeqCst);
    response
}

/// The fake on a port of the system's choice, and a client of it.
pub(super) async fn start() -> (Arc<Fake>, Couch) {
    let fake = Arc::new(Fake::default());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = Router::new().fallback(serve).with_state(Arc::clone(&fake));
    tokio::spawn(async move { axum::serve(listener, app).await });
    (fake, couch(address))
}

fn couch(address: SocketAddr) -> Couch {
    Couch::new(settings("http", &address.ip().to_string(), address.port())).unwrap()
}

fn settings(protocol: &str, host: &str, port: u16) -> CouchSettings {
    CouchSettings {
        protocol: protocol.to_owned(),
        host: host.to_owned(),
        port,
        username: "u".to_owned(),
        password: "p".to_owned(),
    }
}

fn record(id: &str) -> StoredActivation {
    StoredActivation {
        id: id.to_owned(),
        document: serde_json::to_vec(&json!({ "_id": id, "logs": [] })).unwrap().into(),
    }
}

fn quick() -> WriterSettings {
    WriterSettings { pauses: [Duration::from_millis(1); 3], ..WriterSettings::default() }
}

#[test]
fn an_address_that_is_none_is_refused_without_showing_the_password() {
    for (protocol, host) in [("ftp", "a"), ("", "a"), ("http", ""), ("http", "a/b"), ("http", "a?b")] {
        let error = Couch::new(settings(protocol, host, 5984)).unwrap_err();
        assert_eq!(error.to_string(), format!("{protocol}://u@{host}:5984 is not a CouchDB address"));
    }
    assert_eq!(Couch::new(settings("http", "::1", 5984)).unwrap().address(), "http://[::1]:5984/");
}

#[tokio::test]
async fn ids_are_one_path_segment() {
    let (fake, couch) = start().await;
    let whisks = couch.database("whisks");
    fake.answer("GET /whisks/guest%2Fmy%20pkg%2Fh%40%2B%C3%A9.x", 200, "{}");
    assert_eq!(whisks.document("guest/my pkg/h@+\u{e9}.x", Some("3-a")).await.unwrap(), "{}");
    fake.answer("GET /whisks/guest%2Fa/b2f5", 200, "code");
    assert_eq!(whisks.attachment("guest/a", "b2f5", None).await.unwrap(), "code");
    let asked = fake.asked.lock().unwrap();
    assert_eq!(asked[0].1.as_deref(), Some("\"3-a\""));
    assert_eq!(asked[1].1, None);
}

#[tokio::test]
async fn a_name_that_climbs_is_refused_before_it_is_asked_for() {
    let (fake, couch) = start().await;
    for name in ["..", ".", ""] {
        let error = couch.database("whisks").attachment("guest/a", name, None).await.unwrap_err();
        assert_eq!(error.to_string(), format!("'{name}' is not a name"));
    }
    assert!(fake.asked().is_empty());
}

#[tokio::test]
async fn failures_are_told_apart() {
    let (fake, couch) = start().await;
    let whisks = couch.database("whisks");
    let missing = whisks.document("guest/none", None).await.unwrap_err();
    assert_eq!(missing.to_string(), "guest/none of database whisks does not exist");
    assert!(!missing.passing());

    fake.answer("GET /whisks/guest%2Fa", 503, "no quorum");
    let refused = whisks.document("guest/a", None).await.unwrap_err();
    assert_eq!(refused.to_string(), "the store answered 503 to guest/a of database whisks: no quorum");
    assert!(refused.passing());

    fake.answer("GET /whisks/guest%2Fb", 401, "x".repeat(5000));
    let refused = whisks.document("guest/b", None).await.unwrap_err();
    assert!(!refused.passing() && refused.to_string().len() < 400, "{refused}");

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = self::couch(listener.local_addr().unwrap());
    drop(listener);
    assert!(nobody.database("whisks").document("guest/a", None).await.unwrap_err().passing());
}

#[tokio::test]
async fn the_blacklist_follows_the_view_and_survives_the_store() {
    let (fake, couch) = start().await;
    let subjects = couch.database("subjects");
    let view = "GET /subjects/_design/namespaceThrottlings/_view/blockedNamespaces\
                ?stale=update_after&descending=true&reduce=false";
    fake.answer(view, 200, "[]\n");
    fake.answer(
        view,
        200,
        r#"{"total_rows":1,"offset":0,"rows":[{"key":"blocked","id":"blocked","value":1}]}"#,
    );
    fake.answer(view, 500, "boom");
    fake.answer(view, 200, r#"{"rows":[{"key":7}]}"#);
    let blacklist = Blacklist::default();
    assert!(!blacklist.refresh(&subjects).await.unwrap(), "never built");
    assert!(blacklist.refresh(&subjects).await.unwrap());
    assert!(blacklist.blocks("blocked") && !blacklist.blocks("guest"));
    blacklist.refresh(&subjects).await.unwrap_err();
    assert!(blacklist.blocks("blocked"), "a failure keeps the last list");
    assert!(blacklist.refresh(&subjects).await.unwrap());
    assert!(blacklist.is_empty());
}

#[tokio::test]
async fn a_record_is_written_and_a_duplicate_is_a_conflict() {
    let (fake, couch) = start().await;
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    assert_eq!(writer.store(record("guest/1")).await, Ok(()));
    assert_eq!(writer.store(record("guest/1")).await, Err(StoreError::Conflict { id: "guest/1".to_owned() }));
    let refused = StoredActivation {
        id: "guest/2".to_owned(),
        document: Bytes::from_static(br#"{"_id":"guest/2","refuse":1}"#),
    };
    assert_eq!(
        writer.store(refused).await,
        Err(StoreError::Refused { id: "guest/2".to_owned(), reason: "forbidden: no".to_owned() })
    );
    assert_eq!(
        fake.asked.lock().unwrap()[0].2,
        Bytes::from_static(br#"{"docs":[{"_id":"guest/1","logs":[]}]}"#)
    );
    assert_eq!(writer.waiting(), 0);
}

#[tokio::test]
async fn a_lost_answer_is_tried_again_and_the_conflict_then_means_written() {
    let (fake, couch) = start().await;
    fake.lose_answers.store(2, Ordering::SeqCst);
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    assert_eq!(writer.store(record("guest/1")).await, Ok(()));
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test]
async fn a_store_that_stays_away_is_given_up_after_three_further_tries() {
    let (fake, couch) = start().await;
    fake.fail.store(4, Ordering::SeqCst);
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    let error = writer.store(record("guest/1")).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "record guest/1 was not written after 4 tries: \
         the store answered 500 to _bulk_docs of database activations: boom"
    );
    assert_eq!(writer.store(record("guest/1")).await, Ok(()), "the next record has its own tries");
}

#[tokio::test]
async fn records_collect_while_requests_are_under_way() {
    #[derive(Default)]
    struct Batches(Mutex<Vec<usize>>);
    impl Observer for Batches {
        fn batch(&self, documents: usize) {
            self.0.lock().unwrap().push(documents);
        }
    }
    let (fake, couch) = start().await;
    *fake.bulk_delay.lock().unwrap() = Duration::from_millis(20);
    let batches = Arc::new(Batches::default());
    let settings = WriterSettings { requests_max: 2, batch_documents_max: 50, ..quick() };
    let writer = CouchWriter::start(couch.database("activations"), settings, Arc::clone(&batches) as _);
    let all = (0..300).map(|n| {
        let writer = writer.clone();
        tokio::spawn(async move { writer.store(record(&format!("guest/{n}"))).await })
    });
    for outcome in futures::future::join_all(all).await {
        assert_eq!(outcome.unwrap(), Ok(()));
    }
    assert_eq!(fake.written.lock().unwrap().len(), 300);
    assert!(fake.running_max.load(Ordering::SeqCst) <= 2);
    let batches = batches.0.lock().unwrap();
    assert_eq!(batches.iter().sum::<usize>(), 300);
    assert!(batches.iter().all(|batch| *batch <= 50) && batches.contains(&50), "{batches:?}");
}

#[tokio::test]
async fn bytes_bound_a_batch_and_what_is_admitted() {
    let (fake, couch) = start().await;
    *fake.bulk_delay.lock().unwrap() = Duration::from_millis(5);
    let settings =
        WriterSettings { requests_max: 1, batch_bytes_max: 100_000, waiting_bytes_max: 200_000, ..quick() };
    let writer = CouchWriter::start(couch.database("activations"), settings, Arc::new(Unobserved));
    let big = |n: usize| StoredActivation {
        id: format!("guest/{n}"),
        document: serde_json::to_vec(&json!({ "_id": format!("guest/{n}"), "logs": "x".repeat(40_000) }))
            .unwrap()
            .into(),
    };
    let all = (0..40).map(|n| writer.store(big(n)));
    for outcome in futures::future::join_all(all).await {
        assert_eq!(outcome, Ok(()));
    }
    for (_, _, body) in fake.asked.lock().unwrap().iter() {
        assert!(body.len() < 100_100, "{}", body.len());
    }
    // Larger than the whole budget: still written, alone.
    let huge = StoredActivation {
        id: "guest/huge".to_owned(),
        document: serde_json::to_vec(&json!({ "_id": "guest/huge", "logs": "x".repeat(500_000) }))
            .unwrap()
            .into(),
    };
    assert_eq!(writer.store(huge).await, Ok(()));
}

#[tokio::test]
async fn what_was_admitted_is_written_when_callers_are_gone() {
    let (fake, couch) = start().await;
    *fake.bulk_delay.lock().unwrap() = Duration::from_millis(20);
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    let waiting = tokio::spawn({
        let writer = writer.clone();
        async move { writer.store(record("guest/1")).await }
    });
    while fake.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    let _ = waiting.await;
    assert_eq!(writer.store(record("guest/2")).await, Ok(()));
    assert_eq!(writer.waiting(), 0);
    while fake.written.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
}
