//! A controller's double: publishes activations, consumes acks, pings and events, and checks every one of
//! them against contract 2 to the letter.
//!
//! It works on raw JSON and shares no type with the program under test, so that a mistake in those types
//! is seen. What is wrong is collected as it arrives ([`Controller::violations`]) and fails the test at
//! [`Controller::finish`].

use crate::message::Activation;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::message::{BorrowedMessage, Headers as _, Message as _};
use rdkafka::producer::{FutureProducer, FutureRecord};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// How long a test waits for what must come, unless it says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// The longest ack a controller's topic takes: 1 MB of payload and what the JSON around it takes (contract 1.4).
pub const ACK_BYTES: usize = 1_054_644;

/// What an acknowledgement is, told by its members (contract 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Frees the slot.
    Completion,
    /// Carries the answer.
    Result,
    /// Both.
    Combined,
}

/// One acknowledgement.
#[derive(Clone, Debug)]
pub struct Ack {
    /// The topic it came through.
    pub topic: String,
    /// Its kind.
    pub kind: Kind,
    /// The whole message.
    pub value: Value,
}

impl Ack {
    /// The activation it is for.
    pub fn id(&self) -> &str {
        match &self.value["response"] {
            Value::String(id) => id,
            Value::Object(record) => record["activationId"].as_str().unwrap_or_default(),
            _ => self.value["activationId"].as_str().unwrap_or_default(),
        }
    }

    /// Whether the controller counts the slot free after it.
    pub fn frees_slot(&self) -> bool {
        self.kind != Kind::Result
    }

    /// The activation's `response`, when the ack carries the record.
    pub fn response(&self) -> &Value {
        &self.value["response"]["response"]
    }

    /// `response.statusCode`, when the ack carries the record.
    pub fn status(&self) -> Option<u64> {
        self.response()["statusCode"].as_u64()
    }

    /// `response.result`, when the ack carries the record.
    pub fn result(&self) -> &Value {
        &self.response()["result"]
    }

    /// Whether this is what is answered for an activation that the end of the process cut off: a whisk
    /// error in one message, saying so where it carries the record.
    pub fn is_cut_off(&self) -> bool {
        self.kind == Kind::Combined
            && self.value["isSystemError"] == true
            && (self.value["response"].is_string()
                || self.result()["error"].as_str().is_some_and(|text| text.starts_with("The invoker ended ")))
    }

    /// An annotation of the record, when the ack carries it.
    pub fn annotation(&self, key: &str) -> Option<&Value> {
        annotation(&self.value["response"], key)
    }
}

/// An annotation of an activation record.
pub fn annotation<'a>(record: &'a Value, key: &str) -> Option<&'a Value> {
    record["annotations"].as_array()?.iter().find(|a| a["key"] == key).map(|a| &a["value"])
}

/// A ping and when it came.
#[derive(Clone, Debug)]
pub struct Ping {
    /// The message.
    pub value: Value,
    /// When it was read.
    pub at: Instant,
}

/// What was published for an activation.
#[derive(Clone, Debug)]
struct Published {
    transid: String,
    blocking: bool,
}

#[derive(Debug, Default)]
struct Log {
    published: BTreeMap<String, Published>,
    acks: Vec<Ack>,
    of: BTreeMap<String, Vec<usize>>,
    pings: Vec<Ping>,
    events: Vec<Value>,
    violations: Vec<String>,
    /// Activations that were published more than once and may be acked more than once.
    again: BTreeSet<String>,
    /// Activations that were published once and acked again, and what came.
    repeats: Vec<(String, String)>,
}

#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    changed: Notify,
    stop: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The double. Its topics are `<prefix>completed0`, `<prefix>health` and `<prefix>events`.
pub struct Controller {
    prefix: String,
    producer: FutureProducer,
    shared: Arc<Shared>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl Controller {
    /// Makes its topics as a controller does (contract 1.4) and begins to read them. `controllers` are the
    /// names acks may be addressed to, usually `["0"]`; the broker refuses acks of more than `ack_bytes`.
    pub async fn start(kafka: &str, prefix: &str, controllers: &[&str], ack_bytes: usize) -> Self {
        let mut topics: Vec<String> = controllers.iter().map(|c| format!("{prefix}completed{c}")).collect();
        create_limited(kafka, &topics, Some(ack_bytes)).await;
        let others = [format!("{prefix}health"), format!("{prefix}events")];
        create_topics(kafka, &others).await;
        topics.extend(others);

        let config = config(kafka);
        let producer: FutureProducer = config.create().expect("a producer can be made");
        let consumer: BaseConsumer = config.create().expect("a consumer can be made");
        let mut assignment = TopicPartitionList::new();
        for topic in &topics {
            assignment.add_partition_offset(topic, 0, Offset::Beginning).expect("a valid offset");
        }
        consumer.assign(&assignment).expect("topics can be assigned");

        let shared = Arc::new(Shared::default());
        let reader = std::thread::Builder::new()
            .name("controller".to_owned())
            .spawn({
                let (shared, prefix) = (shared.clone(), prefix.to_owned());
                move || read(&consumer, &shared, &prefix)
            })
            .expect("a thread can be started");
        Self { prefix: prefix.to_owned(), producer, shared, reader: Some(reader) }
    }

    /// Publishes an activation to invoker 0.
    pub async fn publish(&self, activation: &Activation) {
        self.publish_to(0, activation).await;
    }

    /// Publishes an activation to an invoker.
    pub async fn publish_to(&self, invoker: u32, activation: &Activation) {
        self.publish_as(invoker, activation, &activation.value.to_string()).await;
    }

    /// Publishes an activation to an invoker, in this wording of it.
    pub async fn publish_as(&self, invoker: u32, activation: &Activation, text: &str) {
        let transid = serde_json::to_string(&activation.value["transid"]).expect("JSON can be written");
        let blocking = activation.value["blocking"] == true;
        {
            let mut log = self.shared.lock();
            let before = log.published.insert(activation.id().to_owned(), Published { transid, blocking });
            if before.is_some() {
                log.again.insert(activation.id().to_owned());
            }
        }
        self.publish_text(invoker, text).await;
    }

    /// Publishes any bytes to an invoker; acks that answer them are not checked against anything.
    pub async fn publish_text(&self, invoker: u32, text: &str) {
        let topic = format!("{}invoker{invoker}", self.prefix);
        let record = FutureRecord::<(), str>::to(&topic).payload(text);
        if let Err((error, _)) = self.producer.send(record, PATIENCE).await {
            panic!("cannot publish to {topic}: {error}");
        }
    }

    /// Publishes and waits until the slot is free; the acks in their order.
    pub async fn invoke(&self, activation: &Activation) -> Vec<Ack> {
        self.publish(activation).await;
        self.answered(activation.id()).await
    }

    /// Publishes a blocking activation and returns the ack that carries its record.
    pub async fn ask(&self, activation: Activation) -> Ack {
        let activation = activation.blocking();
        let acks = self.invoke(&activation).await;
        let with_record = acks.iter().find(|ack| ack.kind != Kind::Completion);
        with_record
            .unwrap_or_else(|| panic!("no record in the acks of {}: {acks:?}", activation.id()))
            .clone()
    }

    /// The acks of an activation, once its slot is free.
    pub async fn answered(&self, id: &str) -> Vec<Ack> {
        let what = format!("the acks of activation {id}");
        self.until(&what, PATIENCE, |log| {
            let acks: Vec<Ack> = log.of.get(id)?.iter().map(|&at| log.acks[at].clone()).collect();
            acks.iter().any(Ack::frees_slot).then_some(acks)
        })
        .await
    }

    /// Waits until every one of `ids` is free, at most `patience`; those that are not.
    pub async fn unanswered(&self, ids: &[String], patience: Duration) -> Vec<String> {
        let deadline = Instant::now() + patience;
        loop {
            let changed = self.shared.changed.notified();
            let missing: Vec<String> = {
                let log = self.shared.lock();
                let free = |id: &String| {
                    log.of.get(id).is_some_and(|acks| acks.iter().any(|&at| log.acks[at].frees_slot()))
                };
                ids.iter().filter(|id| !free(id)).cloned().collect()
            };
            let now = Instant::now();
            if missing.is_empty() || now >= deadline {
                return missing;
            }
            let _ = tokio::time::timeout((deadline - now).min(Duration::from_millis(500)), changed).await;
        }
    }

    /// Every ack of an activation so far.
    pub fn acks_of(&self, id: &str) -> Vec<Ack> {
        let log = self.shared.lock();
        log.of.get(id).map(|acks| acks.iter().map(|&at| log.acks[at].clone()).collect()).unwrap_or_default()
    }

    /// The user event of an activation.
    pub async fn event(&self, id: &str) -> Value {
        let find = |log: &Log| log.events.iter().find(|e| e["body"]["activationId"] == id).cloned();
        self.until(&format!("the user event of activation {id}"), PATIENCE, find).await
    }

    /// Every user event so far.
    pub fn events(&self) -> Vec<Value> {
        self.shared.lock().events.clone()
    }

    /// The next ping that is read after now and that `wanted` accepts.
    pub async fn ping(&self, wanted: impl Fn(&Value) -> bool) -> Ping {
        let since = self.shared.lock().pings.len();
        self.until("a ping", PATIENCE, |log| {
            log.pings[since..].iter().find(|ping| wanted(&ping.value)).cloned()
        })
        .await
    }

    /// Every ping so far.
    pub fn pings(&self) -> Vec<Ping> {
        self.shared.lock().pings.clone()
    }

    /// What was wrong with what came so far.
    pub fn violations(&self) -> Vec<String> {
        let log = self.shared.lock();
        log.violations.iter().chain(log.repeats.iter().map(|(_, what)| what)).cloned().collect()
    }

    /// Waits a moment for stragglers, then fails the test if anything that came broke the contract, or came twice.
    pub async fn finish(&self) {
        let repeats = self.stragglers().await;
        assert!(
            repeats.is_empty(),
            "acked more than once:\n{}",
            repeats.into_values().collect::<Vec<_>>().join("\n")
        );
    }

    /// [`finish`](Self::finish) for an invoker that was killed outright `kills` times; how many activations
    /// were acked more than once.
    ///
    /// A process may die between the bus taking its ack and the note of that in its journal. Its successor
    /// cannot know and answers as for what was cut off: a whisk error, which a controller ignores because
    /// it has an answer. So of the acks of one activation only the first may be of its run, all others are
    /// that error, and there are no more of them than there were kills.
    pub async fn finish_after_kills(&self, kills: usize) -> usize {
        let repeats = self.stragglers().await;
        for (id, what) in &repeats {
            let acks = self.acks_of(id);
            assert!(
                crash_explains(&acks, kills),
                "killed {kills} times, and acked as no crash explains: {what}\nall its acks: {acks:#?}"
            );
        }
        repeats.len()
    }

    /// What was acked again, by activation, after a moment for stragglers; nothing may break the contract.
    async fn stragglers(&self) -> BTreeMap<String, String> {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let log = self.shared.lock();
        assert!(
            log.violations.is_empty(),
            "messages that break the contract:\n{}",
            log.violations.join("\n")
        );
        log.repeats.iter().cloned().collect()
    }

    async fn until<T>(&self, what: &str, patience: Duration, find: impl Fn(&Log) -> Option<T>) -> T {
        let deadline = Instant::now() + patience;
        loop {
            let changed = self.shared.changed.notified();
            if let Some(found) = find(&self.shared.lock()) {
                return found;
            }
            let now = Instant::now();
            assert!(
                now < deadline,
                "{what} did not come within {patience:?}; violations: {:?}",
                self.violations()
            );
            let _ = tokio::time::timeout((deadline - now).min(Duration::from_millis(500)), changed).await;
        }
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

fn config(kafka: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", kafka)
        .set("group.id", "controller-double")
        .set("enable.auto.commit", "false")
        .set("linger.ms", "0")
        .set("message.max.bytes", "2000000")
        .set("fetch.message.max.bytes", "2000000")
        .set("reconnect.backoff.max.ms", "1000")
        .set("allow.auto.create.topics", "false");
    config
}

/// Creates topics of one partition, as a controller does; those that exist are kept.
pub async fn create_topics(kafka: &str, topics: &[String]) {
    create_limited(kafka, topics, None).await;
}

async fn create_limited(kafka: &str, topics: &[String], bytes: Option<usize>) {
    let admin: AdminClient<DefaultClientContext> =
        config(kafka).create().expect("an admin client can be made");
    let bytes = bytes.map(|bytes| bytes.to_string());
    let new: Vec<NewTopic<'_>> = topics
        .iter()
        .map(|topic| {
            let new = NewTopic::new(topic, 1, TopicReplication::Fixed(1));
            if let Some(bytes) = &bytes { new.set("max.message.bytes", bytes) } else { new }
        })
        .collect();
    let results = admin.create_topics(&new, &AdminOptions::new()).await.expect("the broker answers");
    for result in results {
        if let Err((topic, code)) = result {
            assert_eq!(code, rdkafka::types::RDKafkaErrorCode::TopicAlreadyExists, "cannot create {topic}");
        }
    }
}

/// Whether the acks of one activation, in their order, are those of one run and then of ends that cut it off.
fn crash_explains(acks: &[Ack], kills: usize) -> bool {
    let answer = acks.iter().take_while(|ack| !ack.is_cut_off()).count();
    let (answer, errors) = acks.split_at(answer);
    errors.len() <= kills
        && errors.iter().all(Ack::is_cut_off)
        && answer.iter().filter(|ack| ack.frees_slot()).count() <= 1
        && answer.iter().filter(|ack| ack.kind == Kind::Result).count() <= 1
}

fn read(consumer: &BaseConsumer, shared: &Shared, prefix: &str) {
    while !shared.stop.load(Ordering::Relaxed) {
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                take(&message, &mut shared.lock(), prefix);
                shared.changed.notify_waiters();
            }
            // The broker is away: tests that stop it expect that; others miss their acks.
            Some(Err(_)) => std::thread::sleep(Duration::from_millis(50)),
            None => {}
        }
    }
}

fn take(message: &BorrowedMessage<'_>, log: &mut Log, prefix: &str) {
    let topic = message.topic().strip_prefix(prefix).unwrap_or(message.topic()).to_owned();
    let text = String::from_utf8_lossy(message.payload().unwrap_or_default()).into_owned();
    let mut wrong = Vec::new();
    if message.key().is_some() {
        wrong.push("has a key".to_owned());
    }
    if message.headers().is_some_and(|headers| headers.count() > 0) {
        wrong.push("has headers".to_owned());
    }
    match serde_json::from_str::<Value>(&text) {
        Err(error) => wrong.push(format!("is not JSON: {error}")),
        Ok(value) => match topic.as_str() {
            "health" => {
                check_ping(&value, &mut wrong);
                log.pings.push(Ping { value, at: Instant::now() });
            }
            "events" => {
                check_event(&value, &mut wrong);
                log.events.push(value);
            }
            _ => take_ack(topic.clone(), value, log, &mut wrong),
        },
    }
    for wrong in wrong {
        log.violations.push(format!("{topic}: {wrong}: {}", text.chars().take(1500).collect::<String>()));
    }
}

fn take_ack(topic: String, value: Value, log: &mut Log, wrong: &mut Vec<String>) {
    let kind = match (value.get("instance").is_some(), value.get("response").is_some()) {
        (true, true) => Kind::Combined,
        (true, false) => Kind::Completion,
        (false, _) => Kind::Result,
    };
    let ack = Ack { topic: topic.clone(), kind, value };
    check_ack(&ack, wrong);
    let id = ack.id().to_owned();
    let before: Vec<Kind> =
        log.of.get(&id).map(|acks| acks.iter().map(|&at| log.acks[at].kind).collect()).unwrap_or_default();
    match log.published.get(&id) {
        None => wrong.push("answers an activation that was never published".to_owned()),
        Some(published) => {
            let transid = serde_json::to_string(&ack.value["transid"]).unwrap_or_default();
            if transid != published.transid {
                wrong.push(format!("transid is not what was sent, {}", published.transid));
            }
            if !published.blocking && kind == Kind::Result {
                wrong.push("a result for a non-blocking activation".to_owned());
            }
            if !published.blocking && kind == Kind::Combined && ack.value["response"].is_object() {
                wrong.push("not shrunk although the activation is not blocking".to_owned());
            }
        }
    }
    if !log.again.contains(&id) {
        if kind == Kind::Result && before.iter().any(|kind| *kind != Kind::Result) {
            wrong.push("a result after the slot was freed".to_owned());
        }
        if before.contains(&kind) || (ack.frees_slot() && before.iter().any(|kind| *kind != Kind::Result)) {
            let what = format!("{topic}: acked before as {before:?}: {}", ack.value);
            log.repeats.push((id.clone(), what));
        }
    }
    log.of.entry(id).or_default().push(log.acks.len());
    log.acks.push(ack);
}

/// Every member of an object must be allowed, and every needed one there.
fn members(what: &str, value: &Value, needed: &[&str], optional: &[&str], wrong: &mut Vec<String>) {
    let Some(object) = value.as_object() else {
        wrong.push(format!("{what} is not an object"));
        return;
    };
    for name in needed {
        if !object.contains_key(*name) {
            wrong.push(format!("{what} lacks {name}"));
        }
    }
    for (name, value) in object {
        if !needed.contains(&name.as_str()) && !optional.contains(&name.as_str()) {
            wrong.push(format!("{what} has an unknown member {name}"));
        }
        if value.is_null() {
            wrong.push(format!("{what}.{name} is null; absent options are left out"));
        }
    }
}

fn check_instance(value: &Value, wrong: &mut Vec<String>) {
    members(
        "instance",
        value,
        &["instance", "userMemory", "instanceType", "tags", "dedicatedNamespaces"],
        &["uniqueName", "displayedName", "busyMemory"],
        wrong,
    );
    if !value["instance"].is_u64() || value["instanceType"] != "invoker" {
        wrong.push("instance or instanceType is not an invoker's".to_owned());
    }
    let size = value["userMemory"].as_str().unwrap_or_default();
    let parts: Vec<&str> = size.split(' ').collect();
    if !matches!(parts[..], [digits, "B" | "KB" | "MB" | "GB"] if digits.parse::<u64>().is_ok()) {
        wrong.push(format!("userMemory {size:?} is not a size"));
    }
    if !value["tags"].is_array() || !value["dedicatedNamespaces"].is_array() {
        wrong.push("tags or dedicatedNamespaces is not a list".to_owned());
    }
}

fn check_ping(value: &Value, wrong: &mut Vec<String>) {
    members("ping", value, &["name", "isEnabled"], &[], wrong);
    check_instance(&value["name"], wrong);
    if !value["isEnabled"].is_boolean() {
        wrong.push("isEnabled is not a boolean".to_owned());
    }
}

fn check_event(value: &Value, wrong: &mut Vec<String>) {
    members(
        "event",
        value,
        &["source", "body", "subject", "namespace", "userId", "eventType", "timestamp"],
        &[],
        wrong,
    );
    let body = &value["body"];
    let needed = [
        "name",
        "activationId",
        "statusCode",
        "duration",
        "waitTime",
        "initTime",
        "kind",
        "conductor",
        "memory",
    ];
    members("event body", body, &needed, &["causedBy", "size", "userDefinedStatusCode"], wrong);
    for name in ["statusCode", "duration", "waitTime", "initTime", "memory"] {
        if !body[name].is_u64() {
            wrong.push(format!("event body {name} is not a whole number of at least 0"));
        }
    }
}

fn check_ack(ack: &Ack, wrong: &mut Vec<String>) {
    match ack.kind {
        Kind::Completion => members(
            "completion",
            &ack.value,
            &["transid", "activationId", "isSystemError", "instance"],
            &[],
            wrong,
        ),
        Kind::Result => members("result", &ack.value, &["transid", "response"], &[], wrong),
        Kind::Combined => {
            members("combined", &ack.value, &["transid", "response", "isSystemError", "instance"], &[], wrong)
        }
    }
    if ack.frees_slot() {
        check_instance(&ack.value["instance"], wrong);
    }
    let record = &ack.value["response"];
    if record.is_object() {
        check_record(record, wrong);
        if record["logs"].as_array().is_none_or(|logs| !logs.is_empty()) {
            wrong.push("an ack carries no logs".to_owned());
        }
        let system_error = record["response"]["statusCode"] == 3;
        if ack.kind == Kind::Combined && ack.value["isSystemError"] != system_error {
            wrong.push("isSystemError is not what the status code says".to_owned());
        }
    }
}

/// An activation record without what only the store adds (contract 4.6).
pub fn check_record(record: &Value, wrong: &mut Vec<String>) {
    let needed = [
        "namespace",
        "name",
        "subject",
        "activationId",
        "start",
        "end",
        "response",
        "logs",
        "version",
        "publish",
        "annotations",
        "duration",
    ];
    members("record", record, &needed, &["cause"], wrong);
    members("response", &record["response"], &["statusCode"], &["result", "size"], wrong);
    let (start, end, duration) =
        (record["start"].as_u64(), record["end"].as_u64(), record["duration"].as_u64());
    match (start, end, duration) {
        (Some(start), Some(end), Some(duration)) if start.checked_add(duration) == Some(end) => {}
        times => wrong.push(format!("start, end, duration {times:?} do not fit each other")),
    }
    // In the order in which upstream writes them; which of them there are depends on the activation.
    let order = ["causedBy", "binding", "path", "waitTime", "kind", "timeout", "limits", "initTime"];
    let keys: Vec<&str> =
        record["annotations"].as_array().into_iter().flatten().filter_map(|a| a["key"].as_str()).collect();
    let places: Vec<Option<usize>> = keys.iter().map(|key| order.iter().position(|o| o == key)).collect();
    if places.contains(&None) || !places.is_sorted() {
        wrong.push(format!("annotations {keys:?} are not in upstream's order"));
    }
    for key in ["waitTime", "initTime"] {
        if annotation(record, key).is_some_and(|v| !v.is_u64()) {
            wrong.push(format!("annotation {key} is not a whole number of at least 0"));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wrong(log: &mut Log, value: Value) -> Vec<String> {
        let mut wrong = Vec::new();
        take_ack("completed0".to_owned(), value, log, &mut wrong);
        wrong
    }

    fn published(blocking: bool) -> Log {
        let mut log = Log::default();
        log.published
            .insert("4e6f".to_owned(), Published { transid: r#"["t1",1711531200123]"#.to_owned(), blocking });
        log
    }

    fn completion() -> Value {
        json!({"transid": ["t1", 1_711_531_200_123_u64], "activationId": "4e6f", "isSystemError": false,
            "instance": {"instance": 0, "userMemory": "1073741824 B", "instanceType": "invoker", "tags": [], "dedicatedNamespaces": []}})
    }

    fn result() -> Value {
        json!({"transid": ["t1", 1_711_531_200_123_u64], "response": {"namespace": "guest", "name": "hello", "subject": "guest",
            "activationId": "4e6f", "start": 1_711_531_200_200_u64, "end": 1_711_531_200_212_u64,
            "response": {"statusCode": 0, "result": {"greeting": "hi"}, "size": 17}, "logs": [], "version": "0.0.3",
            "publish": false, "annotations": [], "duration": 12}})
    }

    #[test]
    fn the_contract_s_own_messages_are_accepted() {
        let mut log = published(true);
        assert_eq!(wrong(&mut log, result()), Vec::<String>::new());
        assert_eq!(wrong(&mut log, completion()), Vec::<String>::new());
    }

    #[test]
    fn a_result_behind_its_completion_is_seen() {
        let mut log = published(true);
        wrong(&mut log, completion());
        assert_eq!(wrong(&mut log, result()), ["a result after the slot was freed"]);
    }

    #[test]
    fn a_second_completion_is_seen() {
        let mut log = published(true);
        wrong(&mut log, completion());
        wrong(&mut log, completion());
        assert!(
            log.repeats[0].1.starts_with("completed0: acked before as [Completion]"),
            "{:?}",
            log.repeats
        );
    }

    #[test]
    fn a_crash_explains_whisk_errors_behind_the_answer_and_nothing_else() {
        let mut log = published(false);
        let mut cut_off = completion();
        cut_off["response"] = cut_off["activationId"].take();
        cut_off.as_object_mut().expect("an object").remove("activationId");
        cut_off["isSystemError"] = true.into();
        for ack in [completion(), cut_off.clone(), completion(), cut_off] {
            assert_eq!(wrong(&mut log, ack), Vec::<String>::new());
        }
        let [answer, error, ..] = &log.acks[..] else { panic!("{:?}", log.acks) };
        assert_eq!(log.repeats.len(), 3);
        for (acks, kills, explained) in [
            (vec![answer, error], 1, true),
            (vec![answer, error, error], 2, true),
            (vec![error, error], 2, true),
            (vec![answer, error, error], 1, false),
            (vec![answer, answer], 1, false),
            (vec![error, answer], 1, false),
            (vec![answer, error, answer], 2, false),
        ] {
            let acks: Vec<Ack> = acks.into_iter().cloned().collect();
            assert_eq!(crash_explains(&acks, kills), explained, "{kills} kills, {acks:?}");
        }
    }

    #[test]
    fn a_changed_transid_a_missing_tag_list_and_a_null_are_seen() {
        let mut log = published(false);
        let mut ack = completion();
        ack["transid"][1] = 5.into();
        ack["instance"].as_object_mut().expect("an object").remove("tags");
        ack["instance"]["displayedName"] = Value::Null;
        let wrong = wrong(&mut log, ack);
        assert!(wrong.iter().any(|w| w.contains("transid")), "{wrong:?}");
        assert!(wrong.iter().any(|w| w.contains("instance lacks tags")), "{wrong:?}");
        assert!(wrong.iter().any(|w| w.contains("displayedName is null")), "{wrong:?}");
    }

    #[test]
    fn a_result_nobody_waits_for_is_seen() {
        let mut log = published(false);
        assert_eq!(wrong(&mut log, result()), ["a result for a non-blocking activation"]);
    }
}
