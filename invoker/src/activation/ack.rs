//! Acknowledgements and user events (contract 2.6, 2.7).
//!
//! ```text
//!                        collected logs                   none
//!   blocking      Result ──(logs)──► Completion         Combined
//!   not blocking            (logs)──► Completion        Completion
//! ```
//!
//! The Completion of an activation is sent only when its Result was taken by the bus or given up.
//! Non-blocking ones are shrunk; blocking ones go whole, and shrunk when the bus finds them too large.

use std::sync::Arc;

use futures::FutureExt as _;
use futures::future::BoxFuture;
use openwhisk_compat::entity::ActivationRecord;
use openwhisk_compat::message::{
    Acknowledgement, ActivationMessage, ControllerId, Identity, InvokerInstanceId, TransactionId, UserEvent,
};
use openwhisk_compat::name::completed_topic;

use super::record::now_ms;
use crate::bus::{Producer, SendError};
use crate::errors::chain;
use crate::metrics::Metrics;

/// Sends what the controllers wait for.
pub struct Acks {
    producer: Arc<dyn Producer>,
    instance: InvokerInstanceId,
    /// In front of `completed<controller>`.
    topic_prefix: String,
    /// The topic of user events; `None` when they are off.
    events_topic: Option<String>,
    metrics: Arc<Metrics>,
}

/// To whom an activation is answered.
#[derive(Debug, Clone, Copy)]
pub struct Asker<'a> {
    /// Echoed.
    pub transid: &'a TransactionId,
    /// Names the topic.
    pub controller: &'a ControllerId,
    /// Whether a caller waits; decides what is shrunk.
    pub blocking: bool,
    /// For the event.
    pub user: &'a Identity,
}

impl<'a> Asker<'a> {
    /// Of a message.
    #[must_use]
    pub fn of(message: &'a ActivationMessage) -> Self {
        Self {
            transid: &message.transid,
            controller: &message.root_controller_index,
            blocking: message.blocking,
            user: &message.user,
        }
    }
}

/// Resolves when the bus has taken the acknowledgement, or never will (which has been logged then).
pub type Sent = BoxFuture<'static, ()>;

impl Acks {
    /// `topic_prefix` is `kafka.topics.prefix`; `events_topic` the whole name.
    #[must_use]
    pub fn new(
        producer: Arc<dyn Producer>,
        instance: InvokerInstanceId,
        topic_prefix: String,
        events_topic: Option<String>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { producer, instance, topic_prefix, events_topic, metrics }
    }

    /// The answer alone; [`Acks::completion`] follows. Only for blocking activations.
    pub fn result(&self, asker: &Asker<'_>, record: &Arc<ActivationRecord>) -> Sent {
        self.send(asker, Acknowledgement::result(asker.transid.clone(), Arc::clone(record)))
    }

    /// The slot is free; and the event.
    pub fn completion(&self, asker: &Asker<'_>, record: &ActivationRecord) -> Sent {
        let ack = Acknowledgement::completion(asker.transid.clone(), record, self.instance.clone());
        let sent = self.send(asker, ack);
        self.event(asker, record);
        sent
    }

    /// Answer and completion in one; and the event.
    pub fn combined(&self, asker: &Asker<'_>, record: &Arc<ActivationRecord>) -> Sent {
        let ack = Acknowledgement::combined(asker.transid.clone(), Arc::clone(record), self.instance.clone());
        let sent = self.send(asker, ack);
        self.event(asker, record);
        sent
    }

    /// The record has been handed to the bus when this returns.
    fn send(&self, asker: &Asker<'_>, ack: Acknowledgement) -> Sent {
        let ack = if asker.blocking { ack } else { ack.shrink() };
        let Some(topic) = completed_topic(&self.topic_prefix, asker.controller) else {
            tracing::error!(
                tid = asker.transid.id(),
                controller = asker.controller.as_string,
                "controller's name makes no topic, nobody can be answered"
            );
            return async {}.boxed();
        };
        let first = self.producer.send(&topic, json(&ack));
        let id = ack.activation_id().clone();
        let transid = asker.transid.clone();
        // Keeps the record no longer than needed: shrunk, it holds the id only.
        let smaller = ack.is_whole().then(|| ack.shrink());
        let producer = Arc::clone(&self.producer);
        let metrics = Arc::clone(&self.metrics);
        async move {
            let outcome = match (first.await, smaller) {
                (Err(SendError::TooLarge { .. }), Some(smaller)) => {
                    tracing::info!(
                        tid = transid.id(),
                        activation = id.as_str(),
                        "result is too large for the bus, sent by reference"
                    );
                    producer.send(&topic, json(&smaller)).await
                }
                (outcome, _) => outcome,
            };
            if let Err(error) = outcome {
                metrics.ack_failed();
                tracing::error!(
                    tid = transid.id(),
                    activation = id.as_str(),
                    error = %chain(&error),
                    "acknowledgement was not taken, the controller will force completion"
                );
            }
        }
        .boxed()
    }

    /// Nobody waits for an event; a lost one is logged.
    fn event(&self, asker: &Asker<'_>, record: &ActivationRecord) {
        let Some(topic) = &self.events_topic else { return };
        // Without path and kind there is none (contract 2.7).
        let Ok(event) = UserEvent::activation(self.instance.source(), record, asker.user, now_ms()) else {
            return;
        };
        let sent = self.producer.send(topic, json(&event));
        tokio::spawn(async move {
            if let Err(error) = sent.await {
                tracing::warn!(error = %chain(&error), "user event was not taken");
            }
        });
    }
}

fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(768);
    // Plain data with text keys: this does not fail, and an empty record would be refused by its reader.
    if let Err(error) = serde_json::to_writer(&mut bytes, value) {
        tracing::error!(%error, "message cannot be written");
    }
    bytes
}

#[cfg(test)]
mod tests {
    use openwhisk_compat::entity::{ActivationResponse, StatusCode};
    use openwhisk_compat::size::ByteSize;
    use serde_json::{Value, json};

    use super::*;
    use crate::activation::record::{Subject, fallback};
    use crate::bus::memory::MemoryBus;

    const ID: &str = "4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c";

    fn message(blocking: bool) -> ActivationMessage {
        let message = json!({"transid":["t1",1_711_531_200_123_u64,["parent",7]],"action":{"path":"guest","name":"hello"},
            "revision":null,"user":{"subject":"guest","namespace":{"name":"guest","uuid":"u"},"authkey":{},
            "rights":[],"limits":{}},"activationId":ID,
            "rootControllerIndex":{"asString":"7","instanceType":"controller"},
            "blocking":blocking,"initArgs":[],"lockedArgs":{}});
        ActivationMessage::parse(message.to_string().as_bytes()).unwrap()
    }

    fn acks(bus: &Arc<MemoryBus>, events: bool) -> Acks {
        let instance = InvokerInstanceId::new(0, "1073741824 B".parse::<ByteSize>().unwrap());
        Acks::new(
            Arc::new(Arc::clone(bus)),
            instance,
            "p-".to_owned(),
            events.then(|| "events".to_owned()),
            Metrics::for_tests(),
        )
    }

    fn record(message: &ActivationMessage, result: &Value) -> Arc<ActivationRecord> {
        let response = ActivationResponse::success(result.clone(), 5);
        Arc::new(fallback(&Subject::of(message), response, 9))
    }

    fn asker(message: &ActivationMessage) -> Asker<'_> {
        Asker::of(message)
    }

    #[tokio::test]
    async fn a_blocking_answer_goes_whole_to_the_asking_controller() {
        let bus = Arc::new(MemoryBus::default());
        let (acks, message) = (acks(&bus, false), message(true));
        let record = record(&message, &json!({"greeting":"hi"}));
        acks.result(&asker(&message), &record).await;
        acks.completion(&asker(&message), &record).await;
        acks.combined(&asker(&message), &record).await;
        let sent = bus.sent("p-completed7");
        assert_eq!(sent.len(), 3);
        assert_eq!(sent[0]["response"]["response"]["result"], json!({"greeting":"hi"}));
        assert_eq!(sent[0].get("instance"), None);
        assert_eq!((&sent[1]["activationId"], sent[1].get("response")), (&json!(ID), None));
        assert_eq!(sent[1]["isSystemError"], json!(false));
        assert!(sent[2]["response"].is_object() && sent[2]["instance"].is_object());
        for ack in &sent {
            assert_eq!(ack["transid"], json!(["t1", 1_711_531_200_123_u64, ["parent", 7]]));
        }
    }

    #[tokio::test]
    async fn a_non_blocking_answer_is_shrunk() {
        let bus = Arc::new(MemoryBus::default());
        let (acks, message) = (acks(&bus, false), message(false));
        acks.combined(&asker(&message), &record(&message, &json!({"a":1}))).await;
        assert_eq!(bus.sent("p-completed7")[0]["response"], json!(ID));
    }

    #[tokio::test]
    async fn what_is_too_large_is_sent_again_by_reference() {
        let bus = Arc::new(MemoryBus { record_bytes_max: Some(1000), ..MemoryBus::default() });
        let (acks, message) = (acks(&bus, false), message(true));
        let record = record(&message, &json!({"big":"x".repeat(2000)}));
        acks.result(&asker(&message), &record).await;
        acks.combined(&asker(&message), &record).await;
        let sent = bus.sent("p-completed7");
        assert_eq!(sent.len(), 2);
        assert_eq!((&sent[0]["response"], sent[0].get("instance")), (&json!(ID), None));
        assert_eq!(sent[1]["response"], json!(ID));
        assert!(sent[1]["instance"].is_object());
    }

    #[tokio::test]
    async fn a_whisk_error_is_the_controllers_system_error_and_makes_one_event() {
        let bus = Arc::new(MemoryBus::default());
        let (acks, message) = (acks(&bus, true), message(true));
        let response = ActivationResponse::error(StatusCode::WhiskError, "no", None);
        let record = Arc::new(fallback(&Subject::of(&message), response, 9));
        acks.result(&asker(&message), &record).await;
        assert!(bus.sent("events").is_empty(), "a Result frees no slot");
        acks.completion(&asker(&message), &record).await;
        assert_eq!(bus.sent("p-completed7")[1]["isSystemError"], json!(true));
        let events = bus.sent("events");
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["body"]["statusCode"], json!(3));
        assert_eq!(events[0]["body"]["kind"], json!("unknown"));
    }
}
