//! The one task that owns the pool: it tells it what happened and has done what it says.
//!
//! ```text
//!   feed ──► admission ──► Input::Job ─┐                         ┌─► keeper of container 1
//!                                      ├─► Pool::handle ─► Command ─► keeper of container 2
//!   keepers ──► Input::Pool, Done ─────┘                         └─► answers, permits
//! ```
//!
//! Nothing in here waits: what takes time is a task of its own that reports back. A container has
//! one such task, its [keeper](Keepers), which carries out orders in the order they are given.

pub mod keeper;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::{Duration, Instant};

use openwhisk_compat::entity::{ActivationResponse, ExecutableAction, StatusCode};
use openwhisk_compat::response::Fallback;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;

use crate::activation::record::{Times, executed, now_ms};
use crate::activation::{Activation, Answers, AtOnce};
use crate::metrics::{Metrics, PoolGauges, PoolStates};
use crate::pool::{
    AbortCause, Command, ContainerId, Event, Found, Gauge, Job, JobEnd, JobId, Millis, Pool, PoolConfig,
    Start,
};

/// An action as the pool compares it: by value, without its revision (contract 6.2).
#[derive(Debug, Clone)]
pub struct ActionKey(pub Arc<ExecutableAction>);

impl PartialEq for ActionKey {
    fn eq(&self, other: &Self) -> bool {
        // Nearly always the very same value out of the store's cache.
        Arc::ptr_eq(&self.0, &other.0) || self.0 == other.0
    }
}

impl Eq for ActionKey {}

impl Hash for ActionKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Actions that differ in more than these are told apart by `eq`; they are few.
        self.0.namespace.hash(state);
        self.0.name.hash(state);
        self.0.version.hash(state);
    }
}

/// What the dispatcher is told.
#[derive(Debug)]
pub enum Input {
    /// An admitted activation, against one permit.
    Job(Box<Activation>),
    /// A message that was answered without becoming a job: its permit comes back.
    Settled,
    /// Something happened to a container.
    Pool(Event<ActionKey>),
    /// A job came to its end in a container.
    Done {
        /// Where.
        container: ContainerId,
        /// Which.
        job: JobId,
        /// How.
        end: JobEnd,
        /// Its response, for jobs that waited for the same initialisation (contract 6.3).
        response: Option<Box<ActivationResponse>>,
    },
    /// The invoker is about to end: finish what is inside, take nothing more.
    Drain,
    /// The time for that is over.
    GiveUp,
}

/// How reports reach the dispatcher. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reports(mpsc::UnboundedSender<Input>);

impl Reports {
    /// A channel to a dispatcher that is yet to be made. It needs no bound of its own: there are no
    /// more reports than jobs (bounded by permits) and containers (bounded by memory) cause.
    #[must_use]
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Input>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(sender), receiver)
    }

    /// Tells the dispatcher.
    pub fn tell(&self, input: Input) {
        // The dispatcher is gone only when the process ends.
        let _ = self.0.send(input);
    }

    /// Tells the dispatcher what happened to a container.
    pub fn event(&self, event: Event<ActionKey>) {
        self.tell(Input::Pool(event));
    }
}

/// What a new container is for.
#[derive(Debug)]
pub enum Birth {
    /// A stem cell of this entry of the configured ones.
    Stem {
        /// Index into [`PoolConfig::stem_cells`].
        stock: usize,
    },
    /// A job's action.
    For {
        /// The job.
        job: JobId,
        /// What is to run.
        activation: Arc<Activation>,
    },
}

/// What a keeper is told to do with its container, in this order.
#[derive(Debug)]
pub enum Order {
    /// Initialise the stem cell for the job's action, checkpoint, run.
    Specialise {
        /// The job.
        job: JobId,
        /// What is to run.
        activation: Arc<Activation>,
    },
    /// Run.
    Run {
        /// The job.
        job: JobId,
        /// What is to run.
        activation: Arc<Activation>,
        /// What the container was doing.
        found: Found,
    },
    /// Put the container back.
    Rewind,
    /// Suspend it.
    Suspend,
    /// Destroy it; the keeper ends.
    Destroy,
}

/// Makes keepers.
pub trait Keepers: Send + 'static {
    /// Begins a container. What becomes of it is reported; the keeper ends after
    /// [`Order::Destroy`] and reports `Removed`.
    fn begin(&self, container: ContainerId, birth: Birth) -> mpsc::UnboundedSender<Order>;
}

/// What the dispatcher works with.
pub struct Parts<K> {
    /// The pool's settings.
    pub pool: PoolConfig,
    /// Makes keepers.
    pub keepers: K,
    /// Answers what no container runs.
    pub answers: Arc<Answers>,
    /// Gives permits back to the feed.
    pub permit: Box<dyn Fn(usize) + Send>,
    /// What happens.
    pub inbox: mpsc::UnboundedReceiver<Input>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

/// See the module.
pub struct Dispatcher<K> {
    pool: Pool<ActionKey>,
    parts: Parts<K>,
    epoch: Instant,
    next_job: u64,
    jobs: HashMap<JobId, Arc<Activation>>,
    keepers: HashMap<ContainerId, mpsc::UnboundedSender<Order>>,
    /// Responses of jobs whose container's start failed, while the pool says who shares them.
    shared: HashMap<JobId, ActivationResponse>,
    commands: Vec<Command>,
    ticks: u64,
    draining: bool,
    counted: Counted,
}

/// What of the pool's totals has been counted in the metrics.
#[derive(Default)]
struct Counted {
    rescheduled: u64,
    strays: u64,
    /// By stock: cold starts, expired.
    stems: Vec<(u64, u64)>,
}

/// The pool's gauges are set this often (contract 8.2).
const GAUGES_EVERY_TICKS: u64 = 10;

impl<K: Keepers> Dispatcher<K> {
    /// Takes over the containers of an earlier process: see [`Pool::adopt`].
    pub fn adopt(&mut self, newest: u64, count: usize) -> Vec<ContainerId> {
        self.pool.adopt(newest, count)
    }

    /// A dispatcher with an empty pool.
    #[must_use]
    pub fn new(parts: Parts<K>) -> Self {
        Self {
            pool: Pool::new(parts.pool.clone()),
            parts,
            epoch: Instant::now(),
            next_job: 1,
            jobs: HashMap::new(),
            keepers: HashMap::new(),
            shared: HashMap::new(),
            commands: Vec::new(),
            ticks: 0,
            draining: false,
            counted: Counted::default(),
        }
    }

    /// Runs until it was told to drain and nothing is left.
    pub async fn run(mut self) {
        let mut ticks = tokio::time::interval(Duration::from_secs(1));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                _ = ticks.tick() => self.tick(),
                input = self.parts.inbox.recv() => match input {
                    Some(input) => self.take(input),
                    None => return,
                },
            }
            if self.draining && self.pool.is_empty() {
                return;
            }
        }
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Job(activation) => self.job(*activation),
            Input::Settled => (self.parts.permit)(1),
            Input::Pool(event) => {
                if let Event::Removed { container } = &event {
                    self.keepers.remove(container);
                }
                self.handle(event);
            }
            Input::Done { container, job, end, response } => {
                if let (JobEnd::BeforeInit, Some(response)) = (end, response) {
                    self.shared.insert(job, *response);
                }
                if end != JobEnd::Returned {
                    self.jobs.remove(&job);
                }
                self.handle(Event::JobDone { container, job, end });
                self.shared.remove(&job);
            }
            Input::Drain => {
                self.draining = true;
                self.handle(Event::Drain);
            }
            Input::GiveUp => self.handle(Event::GiveUp),
        }
    }

    fn job(&mut self, activation: Activation) {
        let id = JobId(self.next_job);
        self.next_job += 1;
        let action = &activation.action;
        let job = Job {
            id,
            action: ActionKey(Arc::clone(action)),
            namespace: activation.message.user.namespace.name.clone(),
            memory_mb: u64::from(action.limits.memory_mb),
            kind: action.exec.kind.clone(),
            max_concurrent: action.limits.concurrency,
        };
        self.jobs.insert(id, Arc::new(activation));
        self.handle(Event::Job(job));
    }

    fn tick(&mut self) {
        self.handle(Event::Tick);
        self.ticks += 1;
        if self.ticks % GAUGES_EVERY_TICKS == 1 {
            self.set_gauges();
        }
    }

    fn handle(&mut self, event: Event<ActionKey>) {
        let now = Millis(u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX));
        let mut commands = std::mem::take(&mut self.commands);
        self.pool.handle(now, event, &mut commands);
        for command in commands.drain(..) {
            self.carry_out(command);
        }
        self.commands = commands;
        self.count();
    }

    fn carry_out(&mut self, command: Command) {
        match command {
            Command::CreateStem { container, stock } => {
                let keeper = self.parts.keepers.begin(container, Birth::Stem { stock });
                self.keepers.insert(container, keeper);
            }
            Command::CreateFor { container, job, start } => {
                let Some(activation) = self.activation(job, start) else { return };
                let keeper = self.parts.keepers.begin(container, Birth::For { job, activation });
                self.keepers.insert(container, keeper);
            }
            Command::Specialise { container, job, start } => {
                let Some(activation) = self.activation(job, start) else { return };
                self.order(container, Order::Specialise { job, activation });
            }
            Command::Run { container, job, start, found } => {
                let Some(activation) = self.activation(job, start) else { return };
                self.order(container, Order::Run { job, activation, found });
            }
            Command::Rewind { container } => self.order(container, Order::Rewind),
            Command::Suspend { container } => self.order(container, Order::Suspend),
            Command::Destroy { container } => self.order(container, Order::Destroy),
            Command::Abort { job, cause } => self.abort(job, cause),
            Command::Permit { count } => (self.parts.permit)(usize::try_from(count).unwrap_or(usize::MAX)),
        }
    }

    /// The activation of a job that a command sends to a container.
    fn activation(&self, job: JobId, start: Start) -> Option<Arc<Activation>> {
        let activation = self.jobs.get(&job).cloned();
        match &activation {
            Some(activation) => {
                let message = &activation.message;
                self.parts.metrics.container_start(
                    start.name(),
                    &message.user.namespace.name,
                    &message.action.path,
                    &message.action.name,
                );
                tracing::debug!(
                    tid = message.transid.id(),
                    activation = message.activation_id.as_str(),
                    start = start.name(),
                    "to a container"
                );
            }
            None => tracing::error!(%job, "the pool speaks of a job that is not here"),
        }
        activation
    }

    fn order(&mut self, container: ContainerId, order: Order) {
        let sent = self.keepers.get(&container).map(|keeper| keeper.send(order));
        if !matches!(sent, Some(Ok(()))) {
            tracing::error!(%container, "the container has no keeper any more");
        }
    }

    fn abort(&mut self, job: JobId, cause: AbortCause) {
        let Some(activation) = self.jobs.remove(&job) else {
            tracing::error!(%job, "the pool aborts a job that is not here");
            return;
        };
        let response = match cause {
            AbortCause::InitFailed { leader } => self.shared.get(&leader).cloned(),
            AbortCause::LargerThanBudget { .. } => Some(Fallback::NotProvisioned.response()),
            AbortCause::Draining => Some(ActivationResponse::error(StatusCode::WhiskError, DRAINING, None)),
            AbortCause::Refused { .. } => None,
        };
        let response = response.unwrap_or_else(|| Fallback::Unexpected.response());
        let message = &activation.message;
        tracing::warn!(
            tid = message.transid.id(),
            activation = message.activation_id.as_str(),
            ?cause,
            "activation is given up"
        );
        let record = executed(message, &activation.action, response, Times::at(now_ms()), false);
        self.parts.answers.at_once(activation.key, &activation.asker(), record, AtOnce::Aborted);
    }

    /// Brings the metrics' totals up to the pool's.
    fn count(&mut self) {
        let counters = self.pool.counters();
        for _ in self.counted.rescheduled..counters.rescheduled {
            self.parts.metrics.rescheduled();
        }
        self.counted.rescheduled = counters.rescheduled;
        if counters.strays > self.counted.strays {
            tracing::debug!(strays = counters.strays, "an event did not fit its container's state");
            self.counted.strays = counters.strays;
        }
    }

    fn set_gauges(&mut self) {
        let now = self.pool.gauges();
        let count = |gauge: Gauge| gauge.count as u64;
        self.parts.metrics.pool(&PoolGauges {
            run_buffer: count(now.run_buffer),
            run_buffer_mb: now.run_buffer.memory_mb,
            active: count(now.active),
            active_mb: now.active.memory_mb,
            prewarm: count(now.prewarm),
            prewarm_mb: now.prewarm.memory_mb,
            idle: count(now.idle),
            idle_mb: now.idle.memory_mb,
        });
        let mut states = PoolStates {
            stem: count(now.prewarm),
            busy: count(now.active),
            rewinding: count(now.rewinding),
            pristine: count(now.idle),
            removing: count(now.removing),
            ..PoolStates::default()
        };
        let mut stems = std::mem::take(&mut self.counted.stems);
        for (stock, level) in self.pool.stem_levels().enumerate() {
            states.starting += u64::from(level.creating);
            if stems.len() <= stock {
                stems.push((0, 0));
            }
            for _ in stems[stock].0..level.cold_starts_total {
                self.parts.metrics.prewarm_cold_start(level.kind, level.memory_mb);
            }
            for _ in stems[stock].1..level.expired_total {
                self.parts.metrics.prewarm_expired(level.kind, level.memory_mb);
            }
            stems[stock] = (level.cold_starts_total, level.expired_total);
        }
        self.counted.stems = stems;
        self.parts.metrics.pool_states(&states);
    }
}

/// The answer to what was taken and can no longer be run.
const DRAINING: &str = "The invoker is shutting down and did not run the action.";
