//! The Kafka bus against a real Kafka, named by `KAFKA_HOSTS`.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rewind_invoker::bus::kafka::{Kafka, KafkaSettings};
use rewind_invoker::bus::{Bus, BusError, Consumer, Delivery, SendError, StartAt, TopicSpec};

fn settings() -> Option<KafkaSettings> {
    let Ok(hosts) = std::env::var("KAFKA_HOSTS") else {
        eprintln!("SKIP kafka bus: KAFKA_HOSTS is not set (tests/env/up starts a Kafka)");
        return None;
    };
    Some(KafkaSettings { hosts, max_request_bytes: 1_054_644, prefetch: 16, ..KafkaSettings::default() })
}

/// A topic of this test's own.
async fn topic(bus: &Kafka, name: &str) -> TopicSpec {
    let unique = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
    let topic = TopicSpec {
        name: format!("bus-{name}-{unique}"),
        partitions: 1,
        replication_factor: 1,
        config: vec![
            ("retention.ms".to_owned(), "172800000".to_owned()),
            ("max.message.bytes".to_owned(), "1054644".to_owned()),
        ],
    };
    bus.ensure_topic(&topic).await.unwrap();
    topic
}

fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Delivery> {
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut taken = Vec::new();
    while taken.len() < count {
        assert!(Instant::now() < deadline, "{} of {count} records arrived", taken.len());
        taken.extend(consumer.poll(count - taken.len(), Duration::from_millis(200)).unwrap());
    }
    taken
}

fn offsets(taken: &[Delivery]) -> Vec<i64> {
    taken.iter().map(|delivery| delivery.offset).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_goes_on_where_its_predecessor_committed_at_once() {
    let Some(settings) = settings() else { return };
    let bus = Kafka::connect(settings).await.unwrap();
    assert!(!bus.identity().is_empty());
    let topic = topic(&bus, "resume").await;
    bus.ensure_topic(&topic).await.unwrap();
    let producer = bus.producer();
    for number in 0..10 {
        producer.send(&topic.name, format!("record {number}").into_bytes()).await.unwrap();
    }
    let mut first = bus.consumer(&topic.name, StartAt::Committed).unwrap();
    let taken = take(&mut *first, 4);
    assert_eq!(offsets(&taken), [0, 1, 2, 3]);
    assert_eq!(taken[3].payload, b"record 3");
    assert!(taken[0].timestamp_ms.is_some());
    // The first commit of a new cluster waits for the offsets topic to be made.
    let deadline = Instant::now() + Duration::from_secs(30);
    while let Err(error) = first.commit(4, Duration::from_secs(2)) {
        let error = rewind_invoker::errors::chain(&error);
        assert!(Instant::now() < deadline, "the group takes no commit: {error}");
    }
    assert_eq!(first.lag().unwrap(), 6);
    // Never closed, as after a SIGKILL: the successor must not wait for a session to end.
    std::mem::forget(first);
    let begun = Instant::now();
    let mut second = bus.consumer(&topic.name, StartAt::Committed).unwrap();
    assert_eq!(offsets(&take(&mut *second, 2)), [4, 5]);
    eprintln!("successor served after {:?}", begun.elapsed());
    // A journal that knows more than the group wins, one that knows less does not.
    let mut third = bus.consumer(&topic.name, StartAt::AtLeast(7)).unwrap();
    assert_eq!(offsets(&take(&mut *third, 1)), [7]);
    let mut fourth = bus.consumer(&topic.name, StartAt::AtLeast(1)).unwrap();
    assert_eq!(offsets(&take(&mut *fourth, 1)), [4]);
    // A journal of a topic that was deleted since is of no use.
    let mut fifth = bus.consumer(&topic.name, StartAt::AtLeast(1000)).unwrap();
    assert_eq!(offsets(&take(&mut *fifth, 1)), [4]);
    // And a replaced client goes on behind what was returned.
    fourth.reopen();
    assert_eq!(offsets(&take(&mut *fourth, 2)), [5, 6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_is_told_from_refused_and_order_is_kept() {
    let Some(settings) = settings() else { return };
    let bus = Kafka::connect(settings).await.unwrap();
    let topic = topic(&bus, "sizes").await;
    let producer = bus.producer();
    let error = producer.send(&topic.name, vec![b'x'; 1_100_000]).await.unwrap_err();
    assert!(matches!(error, SendError::TooLarge { bytes: 1_100_000, .. }), "{error}");
    let sent: Vec<_> =
        (0..200_u32).map(|number| producer.send(&topic.name, number.to_string().into_bytes())).collect();
    for outcome in futures::future::join_all(sent).await {
        outcome.unwrap();
    }
    let mut consumer = bus.consumer(&topic.name, StartAt::Committed).unwrap();
    let taken = take(&mut *consumer, 200);
    let expected: Vec<Vec<u8>> = (0..200_u32).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(taken.into_iter().map(|delivery| delivery.payload).collect::<Vec<_>>(), expected);
    // A record is on its way when `send` returns, also if nobody waits for it.
    drop(producer.send(&topic.name, b"dropped".to_vec()));
    assert_eq!(take(&mut *consumer, 1)[0].payload, b"dropped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_setting_that_kafka_does_not_take_is_named() {
    let Some(mut settings) = settings() else { return };
    settings.producer = BTreeMap::from([("linger.ms".to_owned(), "soon".to_owned())]);
    let Err(error) = Kafka::connect(settings).await else { panic!("it was taken") };
    let text = rewind_invoker::errors::chain(&error);
    assert!(matches!(error, BusError::Client { .. }) && text.contains("linger.ms"), "{text}");
}
