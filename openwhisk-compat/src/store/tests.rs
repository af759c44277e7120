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

/// Writes the smallest document.
async fn write(writer: &CouchWriter, id: &str) -> Result<(), StoreError> {
    let document = serde_json::to_vec(&json!({ "_id": id, "logs": [] })).unwrap();
    writer.write(id.to_owned(), document.into()).await
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
    assert_eq!(write(&writer, "guest/1").await, Ok(()));
    assert_eq!(write(&writer, "guest/1").await, Err(StoreError::Conflict { id: "guest/1".to_owned() }));
    let refused = Bytes::from_static(br#"{"_id":"guest/2","refuse":1}"#);
    assert_eq!(
        writer.write("guest/2".to_owned(), refused).await,
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
    assert_eq!(write(&writer, "guest/1").await, Ok(()));
    assert_eq!(fake.asked().len(), 3);
}

#[tokio::test]
async fn a_store_that_stays_away_is_given_up_after_three_further_tries() {
    let (fake, couch) = start().await;
    fake.fail.store(4, Ordering::SeqCst);
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    let error = write(&writer, "guest/1").await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "record guest/1 was not written after 4 tries: \
         the store answered 500 to _bulk_docs of database activations: boom"
    );
    assert_eq!(write(&writer, "guest/1").await, Ok(()), "the next record has its own tries");
}

#[derive(Default)]
struct Batches(Mutex<Vec<usize>>);

impl Observer for Batches {
    fn batch(&self, documents: usize) {
        self.0.lock().unwrap().push(documents);
    }
}

/// Writes so many records at once, all of them successfully.
async fn write_many(writer: &CouchWriter, count: usize) {
    let all = (0..count).map(|n| {
        let writer = writer.clone();
        tokio::spawn(async move { write(&writer, &format!("guest/{n}")).await })
    });
    for outcome in futures::future::join_all(all).await {
        assert_eq!(outcome.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn records_that_arrive_close_together_share_requests() {
    let (fake, couch) = start().await;
    let batches = Arc::new(Batches::default());
    let settings = WriterSettings { spacing: Duration::from_millis(100), ..quick() };
    let writer = CouchWriter::start(couch.database("activations"), settings, Arc::clone(&batches) as _);
    write_many(&writer, 40).await;
    assert_eq!(fake.written.lock().unwrap().len(), 40);
    let batches = batches.0.lock().unwrap();
    assert_eq!(batches.iter().sum::<usize>(), 40);
    assert!(batches.len() < 20, "requests are free all the time: {batches:?}");
}

#[tokio::test]
async fn records_collect_while_requests_are_under_way() {
    let (fake, couch) = start().await;
    *fake.bulk_delay.lock().unwrap() = Duration::from_millis(20);
    let batches = Arc::new(Batches::default());
    let settings = WriterSettings { requests_max: 2, batch_documents_max: 50, ..quick() };
    let writer = CouchWriter::start(couch.database("activations"), settings, Arc::clone(&batches) as _);
    write_many(&writer, 300).await;
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
    let sized = |id: &str, bytes: usize| -> Bytes {
        serde_json::to_vec(&json!({ "_id": id, "logs": "x".repeat(bytes) })).unwrap().into()
    };
    let all = (0..40).map(|n| {
        let id = format!("guest/{n}");
        let document = sized(&id, 40_000);
        writer.write(id, document)
    });
    for outcome in futures::future::join_all(all).await {
        assert_eq!(outcome, Ok(()));
    }
    for (_, _, body) in fake.asked.lock().unwrap().iter() {
        assert!(body.len() < 100_100, "{}", body.len());
    }
    // Larger than the whole budget: still written, alone.
    let huge = sized("guest/huge", 500_000);
    assert_eq!(writer.write("guest/huge".to_owned(), huge).await, Ok(()));
}

#[tokio::test]
async fn what_was_admitted_is_written_when_callers_are_gone() {
    let (fake, couch) = start().await;
    *fake.bulk_delay.lock().unwrap() = Duration::from_millis(20);
    let writer = CouchWriter::start(couch.database("activations"), quick(), Arc::new(Unobserved));
    let waiting = tokio::spawn({
        let writer = writer.clone();
        async move { write(&writer, "guest/1").await }
    });
    while fake.asked().is_empty() {
        tokio::task::yield_now().await;
    }
    waiting.abort();
    let _ = waiting.await;
    assert_eq!(write(&writer, "guest/2").await, Ok(()));
    assert_eq!(writer.waiting(), 0);
    while fake.written.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
}

mod actions {
    use super::*;
    use crate::entity::{ActionLimits, FullyQualifiedName, ReadContext};

    /// The kinds of the recorded deployment.
    struct Kinds;

    impl ReadContext for Kinds {
        fn resolve_kind(&self, kind: &str) -> Option<String> {
            match kind {
                "nodejs:default" => Some("nodejs:20".to_owned()),
                "nodejs:20" | "python:3.11" => Some(kind.to_owned()),
                _ => None,
            }
        }

        fn standard_limits(&self) -> ActionLimits {
            ActionLimits { timeout_ms: 60_000, memory_mb: 256, logs_mb: 10, concurrency: 1, instances: None }
        }
    }

    async fn reader() -> (Arc<Fake>, CouchActions<Kinds>) {
        let (fake, couch) = start().await;
        let settings = ActionSettings { pauses: [Duration::from_millis(1); 2], ..ActionSettings::default() };
        let reader =
            CouchActions::new(couch.database("whisks"), Arc::new(Kinds), &settings, Arc::new(Unobserved));
        (fake, reader)
    }

    fn name(text: &str) -> FullyQualifiedName {
        FullyQualifiedName::parse(text).unwrap()
    }

    /// The genuine controller's documents and attachments, as the genuine invoker read them.
    fn recorded() -> Vec<Value> {
        serde_json::from_str(include_str!("../../tests/fixtures/couch-reads.json")).unwrap()
    }

    fn play(fake: &Fake, exchanges: &[Value]) {
        for exchange in exchanges {
            let line = format!("GET {}", exchange["path"].as_str().unwrap());
            let status = u16::try_from(exchange["status"].as_u64().unwrap()).unwrap();
            fake.answer(&line, status, exchange["body"].as_str().unwrap().to_owned());
        }
    }

    #[tokio::test]
    async fn the_recorded_documents_become_actions() {
        let (fake, reader) = reader().await;
        play(&fake, &recorded());

        let hello =
            reader.action(&name("guest/hello"), Some("2-5a1fdc3143a588544e7e5332cfdec0ff")).await.unwrap();
        assert!(hello.exec.code.as_ref().unwrap().as_str().starts_with("import sys\ndef main(a):"));
        assert_eq!((hello.exec.kind.as_str(), hello.exec.binary), ("python:3.11", false));

        let text =
            reader.action(&name("guest/big2"), Some("2-6b37d7dc0f7ac6078642c8fc6db3257b")).await.unwrap();
        assert!(text.exec.code.as_ref().unwrap().as_str().starts_with("# xxx"));
        let binary =
            reader.action(&name("guest/bin2"), Some("2-180f25a6f72c43394340f37db8547876")).await.unwrap();
        assert!(binary.exec.binary && binary.exec.code.as_ref().unwrap().as_str().starts_with("IyB5eX"));

        let health = reader.action(&name("whisk.system/invokerHealthTestAction0"), None).await.unwrap();
        assert_eq!(health.exec.kind, "nodejs:20");
    }

    #[tokio::test]
    async fn the_recorded_failures_are_rows_of_the_table() {
        let (fake, reader) = reader().await;
        play(&fake, &recorded());
        assert_eq!(
            reader.action(&name("guest/hello"), Some("9-0123456789abcdef0123456789abcdef")).await,
            Err(FetchError::RevisionMismatch {
                id: "guest/hello".to_owned(),
                wanted: "9-0123456789abcdef0123456789abcdef".to_owned(),
                found: "2-5a1fdc3143a588544e7e5332cfdec0ff".to_owned(),
            })
        );
        assert_eq!(
            reader.action(&name("guest/nothere"), None).await,
            Err(FetchError::NotFound { id: "guest/nothere".to_owned() })
        );
        assert_eq!(
            reader.action(&name("guest/t1"), None).await,
            Err(FetchError::WrongType { id: "guest/t1".to_owned(), found: "trigger".to_owned() })
        );
        assert_eq!(
            reader.action(&name("guest/seq"), None).await,
            Err(FetchError::NotExecutable { id: "guest/seq".to_owned() })
        );
    }

    fn document(code: &Value, more: Value) -> String {
        let mut document = json!({
            "_id": "guest/a", "_rev": "1-a", "namespace": "guest", "name": "a", "entityType": "action",
            "exec": { "kind": "nodejs:default", "code": code, "binary": false },
        });
        document.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        document.to_string()
    }

    #[tokio::test]
    async fn what_cannot_be_understood_is_unreadable_and_says_why() {
        let attached = |name: &str| json!({ "attachmentName": name, "attachmentType": "text/plain" });
        for (body, says) in [
            ("{".to_owned(), "EOF while parsing"),
            (r#"{"entityType":"action"}"#.to_owned(), "missing field"),
            (document(&attached("s3:x"), json!({})), "not supported"),
            (
                document(&attached("couch:b"), json!({ "_attachments": { "c": {} } })),
                "its code is attachment 'b', the document has 'c'",
            ),
            (document(&attached("couch:b"), json!({})), "the document has none"),
            (document(&attached("couch:.."), json!({ "_attachments": { "..": {} } })), "'..' is not a name"),
            (document(&attached("couch:raw"), json!({ "_attachments": { "raw": {} } })), "UTF-8"),
        ] {
            let (fake, reader) = reader().await;
            fake.answer("GET /whisks/guest%2Fa", 200, body.clone());
            fake.answer("GET /whisks/guest%2Fa/raw", 200, &b"\xff\xfe"[..]);
            match reader.action(&name("guest/a"), Some("1-a")).await {
                Err(FetchError::Unreadable { detail, .. }) => assert!(detail.contains(says), "{detail}"),
                other => panic!("{body}: {other:?}"),
            }
        }
    }

    #[tokio::test]
    async fn an_attachment_that_is_gone_is_an_action_that_is_gone() {
        let (fake, reader) = reader().await;
        let code = json!({ "attachmentName": "codefile", "attachmentType": "text/plain" });
        fake.answer(
            "GET /whisks/guest%2Fa",
            200,
            document(&code, json!({ "_attachments": { "codefile": {} } })),
        );
        assert!(matches!(
            reader.action(&name("guest/a"), Some("1-a")).await,
            Err(FetchError::NotFound { .. })
        ));
    }

    #[tokio::test]
    async fn one_revision_is_read_once_and_shared() {
        let (fake, reader) = reader().await;
        fake.answer("GET /whisks/guest%2Fa", 200, document(&json!("code"), json!({})));
        let wanted = name("guest/a");
        let all = (0..50).map(|_| reader.action(&wanted, Some("1-a")));
        let all = futures::future::join_all(all).await;
        let first = all[0].clone().unwrap();
        assert!(all.iter().all(|action| Arc::ptr_eq(action.as_ref().unwrap(), &first)));
        assert_eq!(fake.asked().len(), 1);
        assert_eq!(first.exec.kind, "nodejs:20");

        reader.action(&wanted, None).await.unwrap();
        reader.action(&wanted, None).await.unwrap();
        assert_eq!(fake.asked().len(), 3, "without a revision the store is asked each time");
    }

    #[tokio::test]
    async fn a_failure_is_not_kept_and_a_passing_one_is_tried_again() {
        let (fake, reader) = reader().await;
        let request = "GET /whisks/guest%2Fa";
        for _ in 0..4 {
            fake.answer(request, 503, "away");
        }
        fake.answer(request, 200, document(&json!("code"), json!({})));
        match reader.action(&name("guest/a"), Some("1-a")).await {
            Err(FetchError::Unavailable { detail, .. }) => {
                assert_eq!(detail, "the store answered 503 to guest/a of database whisks: away");
            }
            other => panic!("{other:?}"),
        }
        assert_eq!(fake.asked().len(), 3);
        reader.action(&name("guest/a"), Some("1-a")).await.unwrap();
        assert_eq!(fake.asked().len(), 5, "one more 503, then the answer");
    }

    #[tokio::test]
    async fn the_cache_is_bounded_by_bytes() {
        let (fake, couch) = start().await;
        let settings = ActionSettings { cache_bytes_max: 100_000, ..ActionSettings::default() };
        let reader =
            CouchActions::new(couch.database("whisks"), Arc::new(Kinds), &settings, Arc::new(Unobserved));
        let code = json!("x".repeat(30_000));
        fake.answer("GET /whisks/guest%2Fa", 200, document(&code, json!({})));
        for n in 0..20 {
            let body = document(&code, json!({ "_rev": format!("{n}-a") }));
            let request = format!("GET /whisks/guest%2Fa{n}");
            fake.answer(&request, 200, body);
            reader.action(&name(&format!("guest/a{n}")), Some(&format!("{n}-a"))).await.unwrap();
        }
        reader.settle().await;
        assert!(reader.cached_bytes() <= 100_000, "{}", reader.cached_bytes());
    }
}
