//! From the invoker's topic to the dispatcher, never more than it asked for.
//!
//! ```text
//!   bus ──poll──► read ──► journal ──► commit ──► hand out
//!         max = permits      │           │
//!                            │           └ before processing, as upstream (contract 3.2): at most once
//!                            └ first, so that the position survives a commit that the group refuses
//! ```
//!
//! Upstream keeps a queue of its own between poll and hand-out, committed but not begun, which a
//! crash loses. Here the client's read-ahead plays that part (contract 3.2's pipeline depth sets
//! its size): only what is handed out at once is taken and committed.
//!
//! The feed is a thread: the bus's calls block, and a task that blocks would hold up others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use openwhisk_compat::message::{ActivationId, ActivationMessage};

use crate::activation::Note;
use crate::bus::{Consumer, Delivery, Offset};
use crate::errors::chain;
use crate::journal::{Entry, Journal, Key, Progress};
use crate::metrics::Metrics;

/// How long one poll waits for the first record. Only stopping has to wait for it.
const POLL_WAIT: Duration = Duration::from_millis(200);
/// How long a commit may hold up the hand-out. The journal has the position already, so a group
/// that does not answer, or refuses (another member is still in it), does not stop the service.
const COMMIT_WAIT: Duration = Duration::from_secs(2);
/// While the last commit has failed, each further one may only take this long: one tries, not waits.
const COMMIT_WAIT_AFTER_FAILURE: Duration = Duration::from_millis(50);
/// While most permits are out, those that come back within this time are waited for: what is taken together
/// costs one note in the journal and one commit, and the containers are busy meanwhile.
const GATHER: Duration = Duration::from_millis(1);
/// Pause after an error of the bus or of the journal.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// The same complaint is logged at most this often.
const COMPLAINT_PAUSE: Duration = Duration::from_secs(5);
/// Records are there, nothing arrives, and there is no error: after this long the consumer is replaced.
const SILENCE: Duration = Duration::from_secs(30);

/// An activation, taken from the bus and noted in the journal. Whoever holds it owes an answer.
#[derive(Debug)]
pub struct Handed {
    /// The message.
    pub message: ActivationMessage,
    /// Its entry in the journal.
    pub key: Key,
}

/// What the feed works with.
pub struct Parts {
    /// Where records come from.
    pub consumer: Box<dyn Consumer>,
    /// Where they are noted.
    pub journal: Arc<Journal>,
    /// Takes activations over, in order; must not block. It is given no more than there are permits.
    pub sink: Box<dyn Fn(Vec<Handed>) + Send>,
    /// Permits at the start, and the most there can be (contract 3.2, `maxPeek`).
    pub capacity: usize,
    /// How often the lag is measured (`kafka.consumer-lag-check-interval`).
    pub lag_interval: Duration,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// The running feed.
pub struct Feed {
    permits: Arc<Permits>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Feed {
    /// Starts the feed's thread.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(parts: Parts) -> std::io::Result<Self> {
        let permits = Arc::new(Permits::new(parts.capacity));
        let worker = Worker {
            permits: Arc::clone(&permits),
            parts,
            commit_failed: false,
            complained: None,
            lag_due: Instant::now() + FIRST_LAG_CHECK,
            quiet_since: Instant::now(),
        };
        let thread = std::thread::Builder::new().name("feed".to_owned()).spawn(move || worker.run())?;
        Ok(Self { permits, thread: Mutex::new(Some(thread)) })
    }

    /// Gives permits back: so many more activations may be handed out.
    pub fn permit(&self, count: usize) {
        self.permits.give(count);
    }

    /// Stops taking. When this returns, nothing more is handed out.
    ///
    /// Blocks for up to a poll and a commit.
    pub fn stop(&self) {
        self.permits.stop();
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // A panic in there has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// First measurement of the lag after the start (contract 8.2).
const FIRST_LAG_CHECK: Duration = Duration::from_secs(10);

/// Counts permits; the dispatcher gives, the feed takes.
struct Permits {
    free: Mutex<usize>,
    capacity: usize,
    changed: Condvar,
    stopped: AtomicBool,
}

impl Permits {
    fn new(capacity: usize) -> Self {
        Self {
            free: Mutex::new(capacity),
            capacity,
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
        }
    }

    fn free(&self) -> MutexGuard<'_, usize> {
        self.free.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give(&self, count: usize) {
        let mut free = self.free();
        let before = *free;
        *free = free.saturating_add(count).min(self.capacity);
        // Nobody waits for what lies between the first and so many that there is nothing to gather.
        if before == 0 || (before < self.many() && *free >= self.many()) {
            self.changed.notify_one();
        }
    }

    /// With so many free, it is not the permits that are waited for.
    fn many(&self) -> usize {
        self.capacity.div_ceil(2)
    }

    fn take(&self, count: usize) {
        let mut free = self.free();
        *free = free.saturating_sub(count);
    }

    fn stop(&self) {
        // Under the lock, or a waiter could test the flag and miss the call.
        let _free = self.free();
        self.stopped.store(true, Ordering::Release);
        self.changed.notify_all();
    }

    fn stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// Waits until there is a permit, at most for `wait`, and says how many there are.
    fn wait(&self, wait: Duration) -> usize {
        self.wait_for(1, wait)
    }

    /// Waits for more permits, while most are out.
    fn gather(&self) -> usize {
        self.wait_for(self.many(), GATHER)
    }

    fn wait_for(&self, wanted: usize, wait: Duration) -> usize {
        let deadline = Instant::now() + wait;
        let mut free = self.free();
        while *free < wanted && !self.stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            free = self.changed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *free
    }

    /// Sleeps, unless the feed is stopped.
    fn pause(&self, pause: Duration) {
        let deadline = Instant::now() + pause;
        let mut free = self.free();
        while !self.stopped() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            free = self.changed.wait_timeout(free, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

struct Worker {
    permits: Arc<Permits>,
    parts: Parts,
    commit_failed: bool,
    /// When something was last complained about.
    complained: Option<Instant>,
    lag_due: Instant,
    /// Since when there were permits and no record.
    quiet_since: Instant,
}

impl Worker {
    fn run(mut self) {
        // Whether the last poll found something; only then is there a next one to be expected.
        let mut busy = false;
        while !self.permits.stopped() {
            self.measure_lag();
            let mut permits = self.permits.wait(Duration::from_secs(1));
            if permits > 0 && std::mem::take(&mut busy) {
                permits = self.permits.gather();
            }
            if permits == 0 {
                self.quiet_since = Instant::now();
                continue;
            }
            match self.parts.consumer.poll(permits, POLL_WAIT) {
                Ok(batch) if batch.is_empty() => {}
                // Not taken: neither noted nor committed, so the next start finds it.
                Ok(_) if self.permits.stopped() => break,
                Ok(batch) => {
                    self.quiet_since = Instant::now();
                    busy = true;
                    self.take(&batch);
                }
                Err(error) => {
                    self.complain(&chain(&error), "the bus gives no records");
                    self.permits.pause(ERROR_PAUSE);
                }
            }
        }
        tracing::info!("feed stopped");
    }

    /// Notes, commits and hands out one batch, all of it.
    fn take(&mut self, batch: &[Delivery]) {
        let Some(last) = batch.last() else { return };
        let next = last.offset + 1;
        let mut handed: Vec<Handed> = Vec::with_capacity(batch.len());
        let mut entries = Vec::with_capacity(batch.len());
        for delivery in batch {
            self.observe_delay(delivery);
            let Some(message) = self.read(delivery) else { continue };
            let key = key(&message.activation_id);
            if self.parts.journal.knows(key) || handed.iter().any(|other| other.key == key) {
                tracing::warn!(
                    tid = message.transid.id(),
                    activation = message.activation_id.as_str(),
                    offset = delivery.offset,
                    "activation was delivered before, it is not run again"
                );
                continue;
            }
            entries.push(Entry {
                key,
                offset: delivery.offset,
                progress: Progress::Taken,
                note: Note::of(&message),
            });
            handed.push(Handed { message, key });
        }
        if !self.note(entries, next) {
            return;
        }
        self.commit(next);
        self.permits.take(handed.len());
        if !handed.is_empty() {
            (self.parts.sink)(handed);
        }
    }

    fn read(&self, delivery: &Delivery) -> Option<ActivationMessage> {
        match ActivationMessage::parse(&delivery.payload) {
            Ok(message) => Some(message),
            // No id, hence nobody to answer (contract 3.4).
            Err(error) => {
                tracing::error!(
                    offset = delivery.offset,
                    bytes = delivery.payload.len(),
                    "terminal failure while processing message: {}",
                    chain(&error)
                );
                self.parts.metrics.unparsable();
                None
            }
        }
    }

    /// Notes a batch; while that fails (a full disk) nothing is handed out, and it is tried again
    /// until it succeeds or the feed is stopped. False: the batch was not taken.
    fn note(&mut self, entries: Vec<Entry>, next: Offset) -> bool {
        loop {
            match self.parts.journal.taken(entries.clone(), next) {
                Ok(()) => return true,
                Err(error) => {
                    self.complain(&chain(&error), "activations wait, because the journal takes no notes")
                }
            }
            if self.permits.stopped() {
                return false;
            }
            self.permits.pause(ERROR_PAUSE * 10);
        }
    }

    fn commit(&mut self, next: Offset) {
        let wait = if self.commit_failed { COMMIT_WAIT_AFTER_FAILURE } else { COMMIT_WAIT };
        match self.parts.consumer.commit(next, wait) {
            Ok(()) => self.commit_failed = false,
            Err(error) => {
                self.commit_failed = true;
                self.complain(&chain(&error), "offset not committed, the journal alone has the position");
            }
        }
    }

    fn observe_delay(&self, delivery: &Delivery) {
        let Some(sent) = delivery.timestamp_ms.and_then(|ms| u64::try_from(ms).ok()) else { return };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.parts.metrics.delay(now.saturating_sub(Duration::from_millis(sent)));
    }

    fn measure_lag(&mut self) {
        let now = Instant::now();
        let silent = now.duration_since(self.quiet_since) >= SILENCE;
        if now < self.lag_due && !silent {
            return;
        }
        self.lag_due = now + self.parts.lag_interval;
        self.quiet_since = now;
        match self.parts.consumer.lag() {
            Ok(lag) => {
                self.parts.metrics.lag(lag);
                if silent && lag > 0 {
                    self.parts.consumer.reopen();
                }
            }
            Err(error) => tracing::debug!(error = %chain(&error), "lag unknown"),
        }
    }

    fn complain(&mut self, error: &str, what: &str) {
        let now = Instant::now();
        if self.complained.is_none_or(|last| now.duration_since(last) >= COMPLAINT_PAUSE) {
            self.complained = Some(now);
            tracing::warn!(error, "{what}");
        }
    }
}

/// The journal's key for an activation: its 32 digits as 16 bytes.
#[must_use]
pub fn key(id: &ActivationId) -> Key {
    let mut bytes = [0_u8; 16];
    for (byte, digits) in bytes.iter_mut().zip(id.as_str().as_bytes().chunks_exact(2)) {
        let digit =
            |c: u8| char::from(c).to_digit(16).and_then(|digit| u8::try_from(digit).ok()).unwrap_or(0);
        *byte = digit(digits[0]) << 4 | digit(digits[1]);
    }
    Key(bytes)
}

#[cfg(test)]
mod tests {
    use tokio::sync::mpsc;

    use super::*;
    use crate::bus::memory::{MemoryConsumer, Tape};
    use crate::journal::Origin;

    fn message(number: u64) -> Vec<u8> {
        let id = format!("{number:032x}");
        serde_json::json!({"transid":["t",1],"action":{"path":"guest","name":"hello"},"revision":null,
            "user":{"subject":"guest","namespace":{"name":"guest","uuid":"u"},"authkey":{},"rights":[],"limits":{}},
            "activationId":id,"rootControllerIndex":{"asString":"0","instanceType":"controller"},
            "blocking":false,"initArgs":[],"lockedArgs":{}})
        .to_string()
        .into_bytes()
    }

    struct Rig {
        tape: Arc<Tape>,
        journal: Arc<Journal>,
        feed: Feed,
        out: mpsc::UnboundedReceiver<Handed>,
        dir: tempfile::TempDir,
    }

    fn origin() -> Origin {
        Origin { bus: "memory".to_owned(), topic: "invoker0".to_owned() }
    }

    fn rig(capacity: usize) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = Journal::open(dir.path(), origin()).unwrap();
        let (journal, tape) = (Arc::new(journal), Arc::new(Tape::default()));
        let (sink, out) = mpsc::unbounded_channel();
        let feed = Feed::start(Parts {
            consumer: Box::new(MemoryConsumer(Arc::clone(&tape))),
            journal: Arc::clone(&journal),
            sink: Box::new(move |handed| {
                for one in handed {
                    let _ = sink.send(one);
                }
            }),
            capacity,
            lag_interval: Duration::from_secs(60),
            metrics: Metrics::for_tests(),
        })
        .unwrap();
        Rig { tape, journal, feed, out, dir }
    }

    #[test]
    fn a_key_is_the_id() {
        let id = ActivationId::new("00ff10Ab000000000000000000000001").unwrap();
        assert_eq!(key(&id).0, [0, 255, 16, 0xab, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[tokio::test]
    async fn no_more_is_handed_out_than_there_are_permits() {
        let mut rig = rig(2);
        for number in 0..5 {
            rig.tape.put(Offset::try_from(number).unwrap(), &message(number));
        }
        let first = rig.out.recv().await.unwrap();
        let second = rig.out.recv().await.unwrap();
        assert_eq!((first.key.0[15], second.key.0[15]), (0, 1));
        assert!(rig.out.try_recv().is_err());
        rig.feed.permit(1);
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 2);
        rig.feed.permit(100); // No more than the capacity counts.
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 3);
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 4);
        assert!(*rig.tape.asked_max.lock().unwrap() <= 2);
        rig.feed.stop();
        assert_eq!(rig.tape.committed.lock().unwrap().last(), Some(&5));
        assert_eq!(rig.journal.open_count(), 5);
    }

    #[tokio::test]
    async fn noted_before_handed_out_and_never_twice() {
        let mut rig = rig(8);
        rig.tape.put(0, &message(7));
        rig.tape.put(1, b"{\"not\":\"a message\"}");
        rig.tape.put(2, &message(7));
        rig.tape.put(3, &message(8));
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 7);
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 8);
        rig.feed.stop();
        assert!(rig.out.recv().await.is_none());
        assert_eq!(rig.tape.committed.lock().unwrap().last(), Some(&4));
        drop((rig.feed, rig.journal));
        let (_, recovered) = Journal::open(rig.dir.path(), origin()).unwrap();
        assert_eq!(recovered.next, Some(4));
        assert_eq!(recovered.open.iter().map(|entry| entry.offset).collect::<Vec<_>>(), [0, 3]);
        assert!(recovered.open.iter().all(|entry| Note::read(&entry.note).is_ok()));
    }

    #[tokio::test]
    async fn a_refused_commit_does_not_stop_the_service() {
        let mut rig = rig(8);
        *rig.tape.refuse_commits.lock().unwrap() = true;
        rig.tape.put(0, &message(1));
        assert_eq!(rig.out.recv().await.unwrap().key.0[15], 1);
        rig.feed.stop();
        drop((rig.feed, rig.journal));
        assert_eq!(Journal::open(rig.dir.path(), origin()).unwrap().1.next, Some(1));
    }

    #[tokio::test]
    async fn what_arrives_after_the_stop_is_left_on_the_bus() {
        let mut rig = rig(8);
        rig.feed.stop();
        rig.tape.put(0, &message(1));
        assert!(rig.out.recv().await.is_none());
        assert_eq!(rig.journal.open_count(), 0);
    }
}
