//! The main road: activations through a real Kafka, into real containers, answered and recorded.

use rewind_tests::Lab;
use rewind_tests::message::{Action, Activation};
use serde_json::json;
use std::time::{Duration, Instant};

const ECHO: &str = "def main(args):\n    print('hello')\n    return {'echo': args}\n";

#[tokio::test(flavor = "multi_thread")]
async fn first_light() {
    let lab = Lab::new("light").await;
    let mode = std::env::var("MODE").unwrap_or("none".into());
    let invoker = lab.invoker().isolation(&mode).start(&lab).await;
    eprintln!("first ping after {:?}", invoker.first_ping);
    let revision = lab.store.put_action(&Action::new("guest/echo", "python:3.11", ECHO)).await;
    for n in 0..20 {
        let begun = Instant::now();
        let ack = lab.controller.ask(Activation::of("guest/echo").revision(&revision).content(json!({"n": n}))).await;
        eprintln!("{:?} {}", begun.elapsed(), ack.response());
        assert_eq!(ack.result()["echo"], json!({"n": n}), "{}\n{}", ack.response(), invoker.tail());
    }
    for line in invoker.metrics().await.lines().filter(|l| l.starts_with("rewind_") && !l.contains(" 0") && !l.contains("bucket")) { eprintln!("{line}"); }
    let _ = Duration::ZERO; eprintln!("{}", invoker.tail());
    let status = invoker.stop().await;
    assert!(status.success(), "{status}");
    lab.controller.finish().await;
}
