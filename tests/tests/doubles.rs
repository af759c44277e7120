//! The doubles and services the other tests stand on, tried against each other.

use reqwest::{Method, StatusCode};
use rewind_tests::message::{Action, Activation};
use rewind_tests::proxy::FaultyStore;
use rewind_tests::{Lab, store::Store};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_into_the_store_comes_back() {
    let lab = Lab::new("doubles").await;
    let action = Action::new("guest/hello", "nodejs:20", "function main() { return {} }");
    let first = lab.store.put_action(&action).await;
    let second = lab.store.put_action(&action).await;
    assert!(first.starts_with("1-") && second.starts_with("2-"), "{first} {second}");
    let revision =
        lab.store.put_action_with_attachment(&action, "b3f0", "text/plain", b"function main() {}").await;
    assert!(revision.starts_with("4-"), "{revision}");
    let (status, document) = lab.store.request(Method::GET, "whisks", "/guest%2Fhello", None).await;
    assert_eq!((status, &document["_rev"]), (StatusCode::OK, &revision.into()));
    lab.store.delete_action("guest/hello").await;
    let (status, _) = lab.store.request(Method::GET, "whisks", "/guest%2Fhello", None).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    lab.store.block("evil").await;
    let view = "/_design/namespaceThrottlings/_view/blockedNamespaces?reduce=false&stale=update_after&descending=true";
    let (_, answer) = lab.store.request(Method::GET, "subjects", view, None).await;
    assert_eq!(answer["rows"][0]["key"], "evil", "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_refuses_a_wrong_password() {
    let lab = Lab::new("doubles").await;
    let mut services = lab.services.clone();
    services.couchdb_password = "wrong".to_owned();
    let refused = tokio::spawn(async move { Store::create(&services, "x-").await }).await;
    let panic = refused.expect_err("a wrong password makes the helper panic").into_panic();
    let text = panic.downcast_ref::<String>().expect("a panic has a text");
    assert!(text.contains("401"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_faulty_store_fails_as_told_and_passes_the_rest() {
    let lab = Lab::new("doubles").await;
    let faulty = FaultyStore::before(&lab.services.couchdb, 1000).await;
    let url = format!("http://{}/", faulty.address);
    assert_eq!(reqwest::get(&url).await.expect("an answer").status(), StatusCode::INTERNAL_SERVER_ERROR);
    faulty.fail(0);
    assert_eq!(reqwest::get(&url).await.expect("an answer").status(), StatusCode::OK);
    assert_eq!(faulty.counts(), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unanswered_activation_is_named() {
    let lab = Lab::new("doubles").await;
    rewind_tests::controller::create_topics(&lab.services.kafka, &[format!("{}invoker0", lab.name)]).await;
    let activation = Activation::of("guest/nobody");
    lab.controller.publish(&activation).await;
    let missing = lab.controller.unanswered(&[activation.id().to_owned()], Duration::from_millis(50)).await;
    assert_eq!(missing, [activation.id()]);
    lab.controller.finish().await;
}
