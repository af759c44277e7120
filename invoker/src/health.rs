//! Signs of life (contract 7.1): a ping each second on `<prefix>health`.
//!
//! A ping says two things: this process lives, and it can start containers.
//! So pings are sent by a thread of their own, which no load on the async runtime can starve (#5171), and only
//! while the container backend answers: a node without a working engine that calls itself healthy swallows
//! activations (#4988).
//!
//! ```text
//!              backend answers                 3 probes without an answer
//!   (waiting) ----------------> [pinging] ------------------------------> [backend down]
//!                                |     ^                                      |
//!                       disable()|     |enable()     one isEnabled:false,     | answers again:
//!                                v     |             then silence             | pinging
//!                              [disabled]  <----------------------------------+ (if still enabled)
//!                                |
//!                      withdraw()| from any state: one isEnabled:false, then silence for good
//!                                v
//!                             [stopped]
//! ```
//!
//! Enabled is what an operator wants and survives an outage of the backend; both must hold for a ping.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use openwhisk_compat::message::{InvokerInstanceId, PingMessage};

use crate::bus::{Producer, SendError};
use crate::errors::chain;
use crate::metrics::Metrics;

/// Between pings (contract 7.1). The controller gives an invoker up after 10 s of silence (contract 7.2).
const PING_INTERVAL: Duration = Duration::from_secs(1);

/// Between probes of the backend.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// A probe without an answer in this time has failed. Long, because a busy engine is not a dead one.
const PROBE_WITHIN: Duration = Duration::from_secs(5);

/// So many failed probes in a row make the backend down: a restart of the engine may pass unnoticed.
const FAILURES_MAX: u32 = 3;

/// Pings on their way at most. While the bus is away, later ones are left out instead of arriving in a heap.
const PINGS_IN_FLIGHT_MAX: usize = 5;

/// Asks the container backend whether it is there. The text of an error goes to the log.
pub type Probe = Arc<dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

/// A client of the Docker Engine at `unix:///path` or `tcp://host:port`.
///
/// # Errors
/// If the address is neither, or the socket does not exist.
pub fn docker(host: &str) -> Result<bollard::Docker, bollard::errors::Error> {
    const VERSION: &bollard::ClientVersion = bollard::API_DEFAULT_VERSION;
    let seconds = PROBE_WITHIN.as_secs();
    if host.starts_with("unix://") {
        bollard::Docker::connect_with_unix(host, seconds, VERSION)
    } else {
        bollard::Docker::connect_with_http(host, seconds, VERSION)
    }
}

/// Asks the Docker Engine at `host`; the smallest question there is.
pub fn docker_probe(host: &str) -> Probe {
    let host = host.to_owned();
    Arc::new(move || {
        // Connected anew each time: what is asked is whether a new connection is served.
        let docker = docker(&host);
        async move {
            match docker {
                Ok(docker) => docker.ping().await.map(drop).map_err(|error| chain(&error)),
                Err(error) => Err(chain(&error)),
            }
        }
        .boxed()
    })
}

/// What an operator's order did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switched {
    /// It changed the state.
    Now,
    /// The state was that already.
    Already,
}

/// Whether this invoker takes work, and the thread that says so. Cloning shares it.
#[derive(Clone)]
pub struct Health {
    shared: Arc<Shared>,
}

struct Shared {
    topic: String,
    producer: Arc<dyn Producer>,
    runtime: tokio::runtime::Handle,
    alive: Vec<u8>,
    withdrawn: Vec<u8>,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    changed: Condvar,
    in_flight: Arc<AtomicUsize>,
}

/// What decides about pings. Changed and obeyed under one lock, so that no `isEnabled:true` can follow the
/// `isEnabled:false` that was meant to be last.
#[derive(Debug)]
struct State {
    /// The operator's wish.
    enabled: bool,
    backend: Backend,
    stopped: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backend {
    /// Not heard of yet.
    Unknown,
    /// Answers, perhaps with this many probes failed since.
    Up { failures: u32 },
    /// Does not answer.
    Down,
}

impl State {
    fn pings(&self) -> bool {
        self.enabled && !self.stopped && matches!(self.backend, Backend::Up { .. })
    }

    /// Takes in a probe's outcome; true when the controller must be told at once that we are gone.
    fn probed(&mut self, answered: bool) -> bool {
        let before = self.backend;
        self.backend = match (before, answered) {
            (_, true) => Backend::Up { failures: 0 },
            (Backend::Up { failures }, false) if failures + 1 < FAILURES_MAX => {
                Backend::Up { failures: failures + 1 }
            }
            (Backend::Up { .. } | Backend::Down, false) => Backend::Down,
            (Backend::Unknown, false) => Backend::Unknown,
        };
        matches!(before, Backend::Up { .. }) && self.backend == Backend::Down && self.enabled && !self.stopped
    }
}

impl Health {
    /// Starts pinging as `name` on `topic` (`<prefix>health`) as soon as `probe` answers.
    ///
    /// Give it a producer of its own if the bus offers one: then answers of megabytes cannot delay a ping.
    /// Must be called inside a Tokio runtime.
    ///
    /// # Errors
    /// If the thread cannot be started or the name cannot be written as JSON.
    pub fn start(
        name: InvokerInstanceId,
        topic: String,
        producer: Arc<dyn Producer>,
        probe: Probe,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let ping = |is_enabled| serde_json::to_vec(&PingMessage { name: name.clone(), is_enabled });
        let health = Self {
            shared: Arc::new(Shared {
                topic,
                producer,
                runtime: tokio::runtime::Handle::current(),
                alive: ping(true)?,
                withdrawn: ping(false)?,
                metrics,
                state: Mutex::new(State { enabled: true, backend: Backend::Unknown, stopped: false }),
                changed: Condvar::new(),
                in_flight: Arc::default(),
            }),
        };
        let pinging = Arc::clone(&health.shared);
        std::thread::Builder::new().name("pings".to_owned()).spawn(move || pinging.ping_for_ever())?;
        tokio::spawn(Arc::clone(&health.shared).probe_for_ever(probe));
        Ok(health)
    }

    /// Whether the operator wants this invoker in service.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.shared.lock().enabled
    }

    /// Whether pings are being sent: enabled, and the backend answers.
    #[must_use]
    pub fn is_pinging(&self) -> bool {
        self.shared.lock().pings()
    }

    /// Puts this invoker into service.
    pub fn enable(&self) -> Switched {
        let mut state = self.shared.lock();
        if state.enabled {
            return Switched::Already;
        }
        state.enabled = true;
        self.shared.changed.notify_all();
        Switched::Now
    }

    /// Takes this invoker out of service: the controller is told each time, also when it was out already.
    pub fn disable(&self) -> Switched {
        let mut state = self.shared.lock();
        let before = std::mem::replace(&mut state.enabled, false);
        self.shared.tell_withdrawn();
        if before { Switched::Now } else { Switched::Already }
    }

    /// The last word before shutdown: out of service, and no ping after it. The future ends when the bus has
    /// taken the message.
    pub fn withdraw(&self) -> BoxFuture<'static, Result<(), SendError>> {
        let mut state = self.shared.lock();
        state.stopped = true;
        self.shared.changed.notify_all();
        self.shared.producer.send(&self.shared.topic, self.shared.withdrawn.clone())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends under the caller's lock; the outcome is waited for elsewhere.
    fn send(&self, payload: Vec<u8>) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        let sending = self.producer.send(&self.topic, payload);
        let in_flight = Arc::clone(&self.in_flight);
        self.runtime.spawn(sending.map(move |outcome| {
            in_flight.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = outcome {
                tracing::warn!(error = chain(&error), "ping not sent");
            }
        }));
    }

    fn tell_withdrawn(&self) {
        self.send(self.withdrawn.clone());
    }

    fn ping_for_ever(&self) {
        let mut next = Instant::now();
        let mut state = self.lock();
        while !state.stopped {
            if !state.pings() {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                next = Instant::now();
                continue;
            }
            let now = Instant::now();
            if now < next {
                let waited = self.changed.wait_timeout(state, next - now);
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
                continue;
            }
            if self.in_flight.load(Ordering::Relaxed) < PINGS_IN_FLIGHT_MAX {
                self.send(self.alive.clone());
            }
            // Steady, but without catching up after the machine slept.
            next = (next + PING_INTERVAL).max(now);
        }
    }

    async fn probe_for_ever(self: Arc<Self>, probe: Probe) {
        loop {
            let outcome = tokio::time::timeout(PROBE_WITHIN, probe())
                .await
                .unwrap_or_else(|_| Err(format!("no answer within {} s", PROBE_WITHIN.as_secs())));
            {
                let mut state = self.lock();
                if state.stopped {
                    return;
                }
                let before = state.backend;
                if state.probed(outcome.is_ok()) {
                    self.tell_withdrawn();
                }
                match (before, state.backend, &outcome) {
                    (Backend::Up { .. }, Backend::Up { .. }, Ok(())) => {}
                    (_, Backend::Up { .. }, Ok(())) => {
                        tracing::info!("container backend answers");
                        self.metrics.backend_up(true);
                    }
                    (Backend::Down, _, _) | (_, _, Ok(())) => {}
                    (Backend::Unknown, _, Err(error)) => {
                        tracing::warn!(error, "container backend does not answer yet, no pings");
                        self.metrics.backend_up(false);
                    }
                    (_, Backend::Down, Err(error)) => {
                        tracing::error!(error, "container backend is gone, out of service until it answers");
                        self.metrics.backend_up(false);
                    }
                    (_, _, Err(error)) => tracing::warn!(error, "container backend did not answer"),
                }
                self.changed.notify_all();
            }
            tokio::time::sleep(PROBE_INTERVAL).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openwhisk_compat::size::ByteSize;
    use std::sync::atomic::AtomicBool;

    /// Remembers what was sent; holds deliveries back on request.
    #[derive(Default)]
    struct Bus {
        sent: Mutex<Vec<String>>,
        away: AtomicBool,
    }

    impl Producer for Bus {
        fn send(&self, topic: &str, payload: Vec<u8>) -> BoxFuture<'static, Result<(), SendError>> {
            assert_eq!(topic, "health");
            self.sent.lock().unwrap().push(String::from_utf8(payload).unwrap());
            if self.away.load(Ordering::SeqCst) {
                return futures::future::pending().boxed();
            }
            futures::future::ready(Ok(())).boxed()
        }
    }

    impl Bus {
        fn sent(&self) -> Vec<bool> {
            let sent = self.sent.lock().unwrap();
            sent.iter().map(|ping| serde_json::from_str::<PingMessage>(ping).unwrap().is_enabled).collect()
        }
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn start(bus: &Arc<Bus>, up: &Arc<AtomicBool>) -> (Health, Arc<Metrics>) {
        let metrics = Metrics::for_tests();
        let up = Arc::clone(up);
        let probe: Probe = Arc::new(move || {
            let up = up.load(Ordering::SeqCst);
            async move { if up { Ok(()) } else { Err("connection refused".to_owned()) } }.boxed()
        });
        let name = InvokerInstanceId::new(0, ByteSize::from_bytes(1 << 30));
        let bus = Arc::clone(bus) as Arc<dyn Producer>;
        (Health::start(name, "health".to_owned(), bus, probe, Arc::clone(&metrics)).unwrap(), metrics)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn pings_look_as_in_the_contract() {
        let bus = Arc::default();
        let (health, _) = start(&bus, &Arc::new(AtomicBool::new(true)));
        until("a ping", || !bus.sent().is_empty()).await;
        health.withdraw().await.unwrap();
        assert_eq!(
            bus.sent.lock().unwrap()[0],
            r#"{"name":{"instance":0,"userMemory":"1073741824 B","instanceType":"invoker","tags":[],"dedicatedNamespaces":[]},"isEnabled":true}"#
        );
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_said_before_the_backend_answers() {
        let bus = Arc::default();
        let up = Arc::new(AtomicBool::new(false));
        let (health, metrics) = start(&bus, &up);
        until("a failed probe", || metrics.render().contains("rewind_backend_up 0")).await;
        assert!(bus.sent().is_empty() && !health.is_pinging() && health.is_enabled());
        up.store(true, Ordering::SeqCst);
        until("a ping", || bus.sent() == [true]).await;
        assert!(metrics.render().contains("rewind_backend_up 1"));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lost_backend_takes_the_invoker_out_and_its_return_brings_it_back() {
        let bus = Arc::default();
        let up = Arc::new(AtomicBool::new(true));
        let (health, _) = start(&bus, &up);
        until("a ping", || !bus.sent().is_empty()).await;
        up.store(false, Ordering::SeqCst);
        until("the disabling ping", || bus.sent().last() == Some(&false)).await;
        assert!(!health.is_pinging() && health.is_enabled());
        let silent = bus.sent().len();
        up.store(true, Ordering::SeqCst);
        until("pings again", || bus.sent().len() > silent).await;
        assert_eq!(bus.sent().last(), Some(&true));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn each_disable_is_told_and_enable_starts_again() {
        let bus = Arc::default();
        let (health, _) = start(&bus, &Arc::new(AtomicBool::new(true)));
        until("a ping", || bus.sent() == [true]).await;
        assert_eq!(health.enable(), Switched::Already);
        assert_eq!(health.disable(), Switched::Now);
        assert_eq!(health.disable(), Switched::Already);
        assert!(!health.is_enabled());
        let sent = bus.sent();
        assert_eq!(sent[sent.len() - 2..], [false, false]);
        assert_eq!(health.enable(), Switched::Now);
        until("pings again", || bus.sent().last() == Some(&true)).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_follows_the_last_word() {
        let bus = Arc::default();
        let (health, _) = start(&bus, &Arc::new(AtomicBool::new(true)));
        until("a ping", || !bus.sent().is_empty()).await;
        health.withdraw().await.unwrap();
        let shared = Arc::clone(&health.shared);
        drop(health);
        // The thread and the prober let go of what they share when they have ended.
        until("both gone", || Arc::strong_count(&shared) == 1).await;
        assert_eq!(bus.sent().iter().position(|enabled| !enabled), Some(bus.sent().len() - 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_bus_that_is_away_does_not_pile_up_pings() {
        let bus: Arc<Bus> = Arc::default();
        bus.away.store(true, Ordering::SeqCst);
        let up = Arc::new(AtomicBool::new(false));
        let (health, _) = start(&bus, &up);
        health.shared.in_flight.store(PINGS_IN_FLIGHT_MAX, Ordering::SeqCst);
        up.store(true, Ordering::SeqCst);
        until("pings are due", || health.is_pinging()).await;
        health.disable();
        assert_eq!(bus.sent(), [false], "an order is told all the same");
        health.enable();
        health.shared.in_flight.store(0, Ordering::SeqCst);
        until("a ping", || bus.sent() == [false, true]).await;
    }

    #[test]
    fn the_backend_is_down_after_three_failures_in_a_row() {
        let mut state = State { enabled: true, backend: Backend::Unknown, stopped: false };
        assert!(!state.probed(false) && state.backend == Backend::Unknown);
        assert!(!state.probed(true) && state.pings());
        for _ in 0..10 {
            assert!(!state.probed(false) && !state.probed(false) && !state.probed(true));
        }
        assert!(!state.probed(false) && !state.probed(false) && state.pings());
        assert!(state.probed(false) && !state.pings());
        assert!(!state.probed(false), "told once");
        state.enabled = false;
        assert!(!state.probed(true) && !state.pings());
        assert!(!state.probed(false) && !state.probed(false) && !state.probed(false), "nobody expects us");
    }
}
