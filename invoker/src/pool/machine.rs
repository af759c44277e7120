//! The machine itself: one function takes an event and adds commands.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::Hash;
use std::mem;
use std::sync::Arc;

use super::command::{AbortCause, Command, Found, Start};
use super::config::{Isolation, PoolConfig};
use super::event::{ContainerId, Event, Job, JobEnd, JobId, Millis};
use super::stems::Stems;

/// The pool of one invoker.
///
/// `A` is the action as the dispatcher holds it: cheap to clone, equal if the whole action value is equal.
#[derive(Debug)]
pub struct Pool<A> {
    config: PoolConfig,
    now: Millis,
    phase: Phase,
    /// In order of creation, so that everything here is deterministic.
    containers: BTreeMap<ContainerId, Container<A>>,
    jobs: HashMap<JobId, Waiting<A>>,
    /// The run buffer: jobs that no container has, by arrival. Only the first is ever looked at.
    buffer: BTreeMap<Arrival, JobId>,
    /// The containers of each owner that may take a job, now or soon.
    owned: HashMap<Arc<Owner<A>>, Vec<ContainerId>>,
    /// Containers that may be evicted, least recently used first.
    idle: BTreeSet<(Millis, ContainerId)>,
    idle_mb: u64,
    /// Everything that counts against the budget.
    used_mb: u64,
    /// The part of it that stem cells hold.
    stems_mb: u64,
    stems: Stems,
    /// Containers under destruction.
    removing: usize,
    /// Permits of finished jobs that the feed has not got back yet.
    permits_owed: u32,
    next_container: u64,
    next_arrival: u64,
    counters: Counters,
}

/// Place in the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Arrival(u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Open,
    Draining,
    GivenUp,
}

/// Whose a container is once it is initialised: the invoking namespace's and the action's.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Owner<A> {
    namespace: String,
    action: A,
}

/// A job inside the pool, in the run buffer or in a container.
#[derive(Debug)]
struct Waiting<A> {
    owner: Arc<Owner<A>>,
    arrival: Arrival,
    memory_mb: u64,
    kind: String,
    /// At least 1.
    capacity: usize,
    /// How the job came to its container, while it has one.
    start: Start,
    /// How many containers refused it.
    returns: u32,
    /// It waited in vain for a container to be rewound or suspended, and will not do so again: that bounds
    /// how often it can be moved.
    displaced: bool,
    /// It was counted as rescheduled.
    rescheduled: bool,
}

#[derive(Debug)]
struct Container<A> {
    state: State,
    memory_mb: u64,
    /// Whether it counts against the budget.
    counted: bool,
    /// It takes no further job and is destroyed when the last one in flight has ended.
    doomed: bool,
    /// None for stem cells.
    owner: Option<Arc<Owner<A>>>,
    /// How many requests may be in flight; at least 1.
    capacity: usize,
    /// When a job was last given to it.
    last_used: Millis,
}

/// What a container is doing. `waiting` are jobs that are given to the container and that no command has
/// named yet.
#[derive(Debug)]
enum State {
    CreatingStem {
        stock: usize,
    },
    Stem {
        stock: usize,
        expires: Millis,
    },
    Initialising {
        leader: JobId,
        joined_as: Start,
        waiting: Vec<JobId>,
    },
    InUse {
        running: Vec<Running>,
        /// Given to it because requests in it are about to end; no more of them than such requests.
        waiting: Vec<JobId>,
    },
    Rewinding {
        waiting: Vec<JobId>,
    },
    /// Pristine; without isolation just idle.
    Idle {
        since: Millis,
    },
    Suspending {
        waiting: Vec<JobId>,
    },
    Suspended {
        since: Millis,
    },
    Removing,
}

/// A request in flight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Running {
    job: JobId,
    /// When it was answered: what is left is the collection of its output.
    answered: Option<Millis>,
}

impl Running {
    const fn new(job: JobId) -> Self {
        Self { job, answered: None }
    }

    /// Whether it will end any moment: it was answered, and not long ago.
    fn is_ending(&self, now: Millis) -> bool {
        self.answered.is_some_and(|at| now.since(at) <= ENDING_MS)
    }
}

/// How long after its answer a request counts as about to end. Output is collected within a few milliseconds,
/// unless the runtime does not mark its end, or the machine is slow.
const ENDING_MS: u64 = 100;

/// What has happened since the pool was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Jobs that a command sent to a container, by the way they came to it, in the order of [`Start::ALL`].
    /// A returned job is counted each time.
    pub starts: [u64; Start::ALL.len()],
    /// Jobs that found no place when their turn came and stayed in the run buffer.
    pub rescheduled: u64,
    /// Jobs that a container refused.
    pub returned: u64,
    /// Jobs given up.
    pub aborted: u64,
    /// Idle containers destroyed to make room.
    pub evicted: u64,
    /// Containers that could not be proven pristine.
    pub quarantined: u64,
    /// Containers found dead.
    pub died: u64,
    /// Events that did not fit the state of their container or job and were ignored.
    pub strays: u64,
}

/// What is in the pool now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Jobs in the run buffer.
    pub run_buffer: Gauge,
    /// Containers being initialised or in use.
    pub active: Gauge,
    /// Stem cells that are ready.
    pub prewarm: Gauge,
    /// Containers that rest.
    pub idle: Gauge,
    /// Containers being rewound.
    pub rewinding: Gauge,
    /// Containers under destruction; they no longer count against the budget.
    pub removing: Gauge,
}

/// A number of things and their memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauge {
    /// How many.
    pub count: usize,
    /// Their memory together, in MB.
    pub memory_mb: u64,
}

impl Gauge {
    fn add(&mut self, memory_mb: u64) {
        self.count += 1;
        self.memory_mb += memory_mb;
    }
}

/// The stem cells of one kind and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StemLevel<'a> {
    /// The runtime kind.
    pub kind: &'a str,
    /// Memory of each in MB.
    pub memory_mb: u64,
    /// How many are being created.
    pub creating: u32,
    /// How many are ready.
    pub ready: usize,
    /// Containers created for want of one, since the pool was made.
    pub cold_starts_total: u64,
    /// Removed because of their age, since the pool was made.
    pub expired_total: u64,
}

impl<A: Clone + Eq + Hash> Pool<A> {
    /// An empty pool.
    #[must_use]
    pub fn new(config: PoolConfig) -> Self {
        Self {
            stems: Stems::new(&config.stem_cells, config.stem_check, config.seed),
            config,
            now: Millis::default(),
            phase: Phase::Open,
            containers: BTreeMap::new(),
            jobs: HashMap::new(),
            buffer: BTreeMap::new(),
            owned: HashMap::new(),
            idle: BTreeSet::new(),
            idle_mb: 0,
            used_mb: 0,
            stems_mb: 0,
            removing: 0,
            permits_owed: 0,
            next_container: 1,
            next_arrival: 0,
            counters: Counters::default(),
        }
    }

    /// Takes over `count` containers of an earlier process, the names of which have numbers up to `newest`, and
    /// which are being destroyed: like all such they do not count, and delay new ones when there are many.
    /// For each of the returned one [`Event::Removed`] must follow. To be called before any event.
    pub fn adopt(&mut self, newest: u64, count: usize) -> Vec<ContainerId> {
        self.next_container = self.next_container.max(newest.saturating_add(1));
        let adopted: Vec<_> = (0..count).map(|_| self.new_id()).collect();
        for id in &adopted {
            let container = Container {
                state: State::Removing,
                memory_mb: 0,
                counted: false,
                doomed: true,
                owner: None,
                capacity: 1,
                last_used: self.now,
            };
            self.containers.insert(*id, container);
        }
        self.removing += count;
        adopted
    }

    /// Takes note of an event and adds what is to be done because of it to `commands`.
    pub fn handle(&mut self, now: Millis, event: Event<A>, commands: &mut Vec<Command>) {
        self.now = self.now.max(now);
        let fits = match event {
            Event::Job(job) => self.job(job, commands),
            Event::StemReady { container } => self.stem_ready(container),
            Event::StemFailed { container } => self.stem_failed(container),
            Event::Initialised { container } => self.initialised(container, commands),
            Event::Answered { container, job } => self.answered(container, job),
            Event::JobDone { container, job, end } => self.job_done(container, job, end, commands),
            Event::Pristine { container } => self.pristine(container, commands),
            Event::Quarantined { container } => self.quarantined(container, commands),
            Event::Died { container } => self.died(container, commands),
            Event::Suspended { container, ok } => self.suspended(container, ok, commands),
            Event::Removed { container } => self.removed(container),
            Event::Tick => self.tick(commands),
            Event::Drain => self.drain(),
            Event::GiveUp => self.give_up(commands),
        };
        if !fits {
            self.counters.strays += 1;
        }
        self.serve(commands);
        if self.buffer.is_empty() {
            match self.phase {
                Phase::Open => self.backfill(commands),
                Phase::Draining | Phase::GivenUp => self.clear_out(commands),
            }
            // While jobs are buffered the feed has nothing to gain from handing out more (contract 6.2).
            let count = mem::take(&mut self.permits_owed);
            if count > 0 && self.phase == Phase::Open {
                commands.push(Command::Permit { count });
            }
        }
    }

    /// What has happened so far.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// What is in the pool now. Looks at every container.
    #[must_use]
    pub fn gauges(&self) -> Gauges {
        let mut gauges = Gauges::default();
        for job in self.buffer.values().filter_map(|job| self.jobs.get(job)) {
            gauges.run_buffer.add(job.memory_mb);
        }
        for container in self.containers.values() {
            let gauge = match container.state {
                State::CreatingStem { .. } => continue,
                State::Stem { .. } => &mut gauges.prewarm,
                State::Initialising { .. } | State::InUse { .. } => &mut gauges.active,
                State::Rewinding { .. } => &mut gauges.rewinding,
                State::Idle { .. } | State::Suspending { .. } | State::Suspended { .. } => &mut gauges.idle,
                State::Removing => &mut gauges.removing,
            };
            gauge.add(container.memory_mb);
        }
        gauges
    }

    /// The stem cells, in the order of the configuration.
    pub fn stem_levels(&self) -> impl Iterator<Item = StemLevel<'_>> {
        self.stems.stocks.iter().map(|stock| StemLevel {
            kind: &stock.config.kind,
            memory_mb: stock.config.memory_mb,
            creating: stock.creating,
            ready: stock.ready.len(),
            cold_starts_total: stock.cold_starts_total,
            expired_total: stock.expired_total,
        })
    }

    /// Memory of all containers that count against the budget, in MB.
    #[must_use]
    pub fn used_mb(&self) -> u64 {
        self.used_mb
    }

    /// How many jobs are inside, in the run buffer or in containers.
    #[must_use]
    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// Whether there is neither a job nor a container left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.containers.is_empty()
    }

    // Jobs

    fn job(&mut self, job: Job<A>, commands: &mut Vec<Command>) -> bool {
        if self.jobs.contains_key(&job.id) {
            return false;
        }
        let owner = Owner { namespace: job.namespace, action: job.action };
        let owner =
            self.owned.get_key_value(&owner).map_or_else(|| Arc::new(owner), |(key, _)| Arc::clone(key));
        let arrival = Arrival(self.next_arrival);
        self.next_arrival += 1;
        let waiting = Waiting {
            owner,
            arrival,
            memory_mb: job.memory_mb,
            kind: job.kind,
            capacity: match self.config.isolation {
                Isolation::SingleUse => 1,
                Isolation::Rewind | Isolation::None => {
                    usize::try_from(job.max_concurrent.max(1)).unwrap_or(1)
                }
            },
            start: Start::Cold,
            returns: 0,
            displaced: false,
            rescheduled: false,
        };
        self.jobs.insert(job.id, waiting);
        match self.phase {
            Phase::Open => {
                self.buffer.insert(arrival, job.id);
            }
            Phase::Draining | Phase::GivenUp => self.abort(job.id, AbortCause::Draining, commands),
        }
        true
    }

    /// Answers a job with a command, and forgets it.
    fn abort(&mut self, job: JobId, cause: AbortCause, commands: &mut Vec<Command>) {
        self.counters.aborted += 1;
        commands.push(Command::Abort { job, cause });
        self.forget(job);
    }

    /// The job is answered: its permit may go back.
    fn forget(&mut self, job: JobId) {
        if self.jobs.remove(&job).is_some() {
            self.permits_owed += 1;
        }
    }

    /// Puts a job back to its old place in the order of arrival.
    fn rebuffer(&mut self, job: JobId, commands: &mut Vec<Command>) {
        if self.phase == Phase::GivenUp {
            self.abort(job, AbortCause::Draining, commands);
        } else if let Some(waiting) = self.jobs.get(&job) {
            self.buffer.insert(waiting.arrival, job);
        }
    }

    /// A container refused the job.
    fn give_back(&mut self, job: JobId, commands: &mut Vec<Command>) {
        self.counters.returned += 1;
        let Some(waiting) = self.jobs.get_mut(&job) else { return };
        waiting.returns += 1;
        if waiting.returns > self.config.returns_max {
            let cause = AbortCause::Refused { times: waiting.returns };
            self.abort(job, cause, commands);
        } else {
            self.rebuffer(job, commands);
        }
    }

    /// The container for which these jobs waited will not take them.
    fn displace(&mut self, jobs: Vec<JobId>, commands: &mut Vec<Command>) {
        for job in jobs {
            if let Some(waiting) = self.jobs.get_mut(&job) {
                waiting.displaced = true;
                self.rebuffer(job, commands);
            }
        }
    }

    // Placement

    /// Gives the jobs in the run buffer to containers, strictly in order, until one finds no place.
    fn serve(&mut self, commands: &mut Vec<Command>) {
        while let Some((&arrival, &job)) = self.buffer.first_key_value() {
            let Some(waiting) = self.jobs.get(&job) else {
                self.buffer.remove(&arrival);
                continue;
            };
            if waiting.memory_mb > self.config.budget_mb {
                self.buffer.remove(&arrival);
                let cause = AbortCause::LargerThanBudget {
                    memory_mb: waiting.memory_mb,
                    budget_mb: self.config.budget_mb,
                };
                self.abort(job, cause, commands);
            } else if self.place(job, commands) {
                self.buffer.remove(&arrival);
            } else {
                if let Some(waiting) = self.jobs.get_mut(&job).filter(|waiting| !waiting.rescheduled) {
                    waiting.rescheduled = true;
                    self.counters.rescheduled += 1;
                }
                return;
            }
        }
    }

    /// Gives the job to the best container there is or can be. See the module's documentation for the order.
    fn place(&mut self, job: JobId, commands: &mut Vec<Command>) -> bool {
        let Some(waiting) = self.jobs.get(&job) else { return false };
        if let Some(container) = self.best_owned(waiting) {
            self.join(container, job, commands);
            return true;
        }
        let memory_mb = waiting.memory_mb;
        if let Some(container) = self.stems.take(&waiting.kind, memory_mb) {
            self.specialise(container, job, commands);
            return true;
        }
        if self.removing >= self.config.removing_max {
            return false;
        }
        let start = if self.fits(memory_mb) {
            Start::Cold
        } else if self.evict(memory_mb, commands) {
            Start::Recreated
        } else {
            return false;
        };
        self.create(job, start, commands);
        true
    }

    fn fits(&self, memory_mb: u64) -> bool {
        self.used_mb.saturating_add(memory_mb) <= self.config.budget_mb
    }

    /// The container of the job's owner that will run it soonest, if any can take it.
    fn best_owned(&self, job: &Waiting<A>) -> Option<ContainerId> {
        let ids = self.owned.get(&job.owner)?;
        let ranked = ids.iter().filter_map(|id| {
            let container = self.containers.get(id)?;
            let (rank, taken) = match &container.state {
                State::Idle { .. } => (0, 0),
                State::InUse { running, .. } if running.len() < container.capacity => (1, running.len()),
                State::Rewinding { waiting } if !job.displaced => (2, waiting.len()),
                // Full, but not for long. A container for single use will take nobody.
                State::InUse { running, waiting }
                    if !job.displaced && self.config.isolation != Isolation::SingleUse =>
                {
                    let ending = running.iter().filter(|one| one.is_ending(self.now)).count();
                    (3, container.capacity - ending.min(container.capacity) + waiting.len())
                }
                State::Suspended { .. } => (4, 0),
                State::Suspending { waiting } if !job.displaced => (5, waiting.len()),
                State::Initialising { joined_as, waiting, .. } => {
                    (if *joined_as == Start::Warming { 6 } else { 7 }, waiting.len() + 1)
                }
                State::InUse { .. }
                | State::Rewinding { .. }
                | State::Suspending { .. }
                | State::CreatingStem { .. }
                | State::Stem { .. }
                | State::Removing => return None,
            };
            // Among equals the one used last: the others may then grow old and go.
            let youth = u64::MAX - container.last_used.0;
            (taken < container.capacity).then_some((rank, taken, youth, *id))
        });
        ranked.min().map(|(_, _, _, id)| id)
    }

    /// Gives the job to a container of its owner that [`best_owned`](Self::best_owned) found.
    fn join(&mut self, id: ContainerId, job: JobId, commands: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let was_idle = container.is_evictable().then_some((container.last_used, id));
        container.last_used = self.now;
        let memory_mb = container.memory_mb;
        let mut start = Start::Warmed;
        let found = match &mut container.state {
            State::Idle { .. } => Some(Found::Pristine),
            State::Suspended { .. } => Some(Found::Suspended),
            State::InUse { running, .. } if running.len() < container.capacity => {
                running.push(Running::new(job));
                Some(Found::InUse)
            }
            State::InUse { waiting, .. } | State::Rewinding { waiting } | State::Suspending { waiting } => {
                waiting.push(job);
                None
            }
            State::Initialising { joined_as, waiting, .. } => {
                waiting.push(job);
                start = *joined_as;
                None
            }
            State::CreatingStem { .. } | State::Stem { .. } | State::Removing => return,
        };
        if matches!(found, Some(Found::Pristine | Found::Suspended)) {
            container.state = State::InUse { running: vec![Running::new(job)], waiting: Vec::new() };
        }
        if let Some(key) = was_idle {
            self.idle.remove(&key);
            self.idle_mb -= memory_mb;
        }
        if let Some(waiting) = self.jobs.get_mut(&job) {
            waiting.start = start;
        }
        if let Some(found) = found {
            self.counters.starts[start as usize] += 1;
            commands.push(Command::Run { container: id, job, start, found });
        }
    }

    /// Makes a stem cell, already taken out of its stock, the container of the job's owner.
    fn specialise(&mut self, id: ContainerId, job: JobId, commands: &mut Vec<Command>) {
        let (Some(container), Some(waiting)) = (self.containers.get_mut(&id), self.jobs.get(&job)) else {
            return;
        };
        self.stems_mb -= container.memory_mb;
        container.state = State::Initialising { leader: job, joined_as: Start::Warming, waiting: Vec::new() };
        container.capacity = waiting.capacity;
        container.last_used = self.now;
        container.owner = Some(Arc::clone(&waiting.owner));
        self.owned.entry(Arc::clone(&waiting.owner)).or_default().push(id);
        self.counters.starts[Start::Prewarmed as usize] += 1;
        commands.push(Command::Specialise { container: id, job, start: Start::Prewarmed });
    }

    fn create(&mut self, job: JobId, start: Start, commands: &mut Vec<Command>) {
        let id = self.new_id();
        let Some(waiting) = self.jobs.get(&job) else { return };
        let container = Container {
            state: State::Initialising { leader: job, joined_as: Start::WarmingCold, waiting: Vec::new() },
            memory_mb: waiting.memory_mb,
            counted: true,
            doomed: false,
            owner: Some(Arc::clone(&waiting.owner)),
            capacity: waiting.capacity,
            last_used: self.now,
        };
        self.used_mb += waiting.memory_mb;
        self.owned.entry(Arc::clone(&waiting.owner)).or_default().push(id);
        self.stems.cold_start(&waiting.kind, waiting.memory_mb);
        self.containers.insert(id, container);
        self.counters.starts[start as usize] += 1;
        commands.push(Command::CreateFor { container: id, job, start });
    }

    fn new_id(&mut self) -> ContainerId {
        let id = ContainerId(self.next_container);
        self.next_container += 1;
        id
    }

    /// Destroys idle containers, least recently used first, until `memory_mb` fits. Destroys nothing if that
    /// would not be enough.
    ///
    /// Stem cells are never evicted, with one exception: if they alone stand in the way, nothing that could
    /// still happen would ever free the memory, and the job at the head would block all others for good.
    fn evict(&mut self, memory_mb: u64, commands: &mut Vec<Command>) -> bool {
        let missing_mb = self.used_mb.saturating_add(memory_mb).saturating_sub(self.config.budget_mb);
        let only_stems_in_the_way = self.used_mb == self.idle_mb + self.stems_mb;
        if self.idle_mb < missing_mb && !only_stems_in_the_way {
            return false;
        }
        while !self.fits(memory_mb) {
            let Some(&(_, id)) = self.idle.first() else { break };
            self.counters.evicted += 1;
            self.destroy(id, commands);
        }
        if !self.fits(memory_mb) {
            let stems: Vec<_> = self
                .containers
                .iter()
                .filter(|(_, container)| container.is_stem())
                .map(|(id, _)| *id)
                .collect();
            for id in stems {
                if !self.fits(memory_mb) {
                    self.counters.evicted += 1;
                    self.destroy(id, commands);
                }
            }
        }
        self.fits(memory_mb)
    }

    // Life of a container

    fn initialised(&mut self, id: ContainerId, commands: &mut Vec<Command>) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        let State::Initialising { leader, waiting, .. } = &mut container.state else { return false };
        let waiting = mem::take(waiting);
        container.state = State::InUse { running: vec![Running::new(*leader)], waiting: Vec::new() };
        if container.doomed {
            self.displace(waiting, commands);
        } else {
            self.run_all(id, waiting, Found::InUse, commands);
        }
        true
    }

    /// Starts jobs that waited for the container.
    fn run_all(&mut self, id: ContainerId, jobs: Vec<JobId>, mut found: Found, commands: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if !matches!(container.state, State::InUse { .. }) {
            container.state = State::InUse { running: Vec::new(), waiting: Vec::new() };
        }
        let State::InUse { running, .. } = &mut container.state else { return };
        for job in jobs {
            running.push(Running::new(job));
            let start = self.jobs.get(&job).map_or(Start::Warmed, |waiting| waiting.start);
            self.counters.starts[start as usize] += 1;
            commands.push(Command::Run { container: id, job, start, found });
            found = Found::InUse;
        }
    }

    /// A request was answered: another job may wait for its end.
    fn answered(&mut self, id: ContainerId, job: JobId) -> bool {
        let now = self.now;
        let Some(State::InUse { running, .. }) = self.containers.get_mut(&id).map(|one| &mut one.state)
        else {
            return false;
        };
        let Some(request) = running.iter_mut().find(|one| one.job == job) else { return false };
        request.answered.get_or_insert(now);
        true
    }

    fn job_done(&mut self, id: ContainerId, job: JobId, end: JobEnd, commands: &mut Vec<Command>) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        match &mut container.state {
            State::Initialising { leader, waiting, .. } if *leader == job => {
                let waiting = mem::take(waiting);
                match end {
                    JobEnd::Kept => {
                        // The dispatcher left out `Initialised`; an answer to a run proves as much.
                        container.state =
                            State::InUse { running: vec![Running::new(job)], waiting: Vec::new() };
                        self.displace(waiting, commands);
                        return self.job_done(id, job, end, commands);
                    }
                    JobEnd::Failed | JobEnd::BeforeInit => {
                        self.forget(job);
                        for waiting in waiting {
                            self.abort(waiting, AbortCause::InitFailed { leader: job }, commands);
                        }
                    }
                    JobEnd::Returned => {
                        self.displace(waiting, commands);
                        self.give_back(job, commands);
                    }
                }
                self.destroy(id, commands);
                true
            }
            State::InUse { running, waiting } => {
                let Some(index) = running.iter().position(|one| one.job == job) else { return false };
                running.swap_remove(index);
                let last = running.is_empty();
                let waiting = mem::take(waiting);
                match end {
                    JobEnd::Kept => self.forget(job),
                    JobEnd::Failed | JobEnd::BeforeInit => {
                        self.doom(id, Accounting::Leave);
                        self.forget(job);
                    }
                    JobEnd::Returned => {
                        self.doom(id, Accounting::Leave);
                        self.give_back(job, commands);
                    }
                }
                if end != JobEnd::Kept {
                    self.displace(waiting, commands);
                    if last {
                        self.after_use(id, Vec::new(), commands);
                    }
                } else if last {
                    self.after_use(id, waiting, commands);
                } else {
                    self.fill(id, waiting, commands);
                }
                true
            }
            _ => false,
        }
    }

    /// One of several requests in flight has ended, and these jobs waited for that: the first takes its place.
    fn fill(&mut self, id: ContainerId, mut jobs: Vec<JobId>, commands: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let State::InUse { running, waiting } = &mut container.state else { return };
        let room = container.capacity.saturating_sub(running.len()).min(jobs.len());
        *waiting = jobs.split_off(room);
        self.run_all(id, jobs, Found::InUse, commands);
    }

    /// The last request in flight has ended; `waiting` are jobs that waited for that.
    fn after_use(&mut self, id: ContainerId, waiting: Vec<JobId>, commands: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        let needed = self.phase == Phase::Open || !self.buffer.is_empty() || !waiting.is_empty();
        if container.doomed || !needed {
            self.destroy(id, commands);
            self.displace(waiting, commands);
            return;
        }
        match self.config.isolation {
            Isolation::Rewind => {
                container.state = State::Rewinding { waiting };
                commands.push(Command::Rewind { container: id });
            }
            Isolation::SingleUse => {
                self.destroy(id, commands);
                self.displace(waiting, commands);
            }
            Isolation::None if waiting.is_empty() => self.rest(id),
            Isolation::None => self.run_all(id, waiting, Found::Pristine, commands),
        }
    }

    fn rest(&mut self, id: ContainerId) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.state = State::Idle { since: self.now };
        self.idle.insert((container.last_used, id));
        self.idle_mb += container.memory_mb;
    }

    fn pristine(&mut self, id: ContainerId, commands: &mut Vec<Command>) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        let State::Rewinding { waiting } = &mut container.state else { return false };
        let waiting = mem::take(waiting);
        if waiting.is_empty() {
            self.rest(id);
        } else {
            self.run_all(id, waiting, Found::Pristine, commands);
        }
        true
    }

    fn quarantined(&mut self, id: ContainerId, commands: &mut Vec<Command>) -> bool {
        let known = self.retire(id, Accounting::Stay, commands);
        self.counters.quarantined += u64::from(known);
        known
    }

    fn died(&mut self, id: ContainerId, commands: &mut Vec<Command>) -> bool {
        let known = self.retire(id, Accounting::Leave, commands);
        self.counters.died += u64::from(known);
        known
    }

    /// The container will take no further job. It is destroyed at once, or when the last request in flight
    /// has ended.
    fn retire(&mut self, id: ContainerId, accounting: Accounting, commands: &mut Vec<Command>) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        match &mut container.state {
            State::Removing => return false,
            State::Initialising { waiting, .. } => {
                // A dead container fails its initialisation, whose end will answer those who wait for it.
                // A quarantined one runs the job that started it, and only that.
                let displaced = match accounting {
                    Accounting::Stay => mem::take(waiting),
                    Accounting::Leave => Vec::new(),
                };
                self.doom(id, accounting);
                self.displace(displaced, commands);
            }
            State::InUse { waiting, .. } => {
                let displaced = mem::take(waiting);
                self.doom(id, accounting);
                self.displace(displaced, commands);
            }
            State::Rewinding { waiting } | State::Suspending { waiting } => {
                let displaced = mem::take(waiting);
                self.destroy(id, commands);
                self.displace(displaced, commands);
            }
            State::CreatingStem { stock } | State::Stem { stock, .. } => {
                self.stems.stocks[*stock].failed(self.now);
                self.destroy(id, commands);
            }
            State::Idle { .. } | State::Suspended { .. } => self.destroy(id, commands),
        }
        true
    }

    fn doom(&mut self, id: ContainerId, accounting: Accounting) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        container.doomed = true;
        if accounting == Accounting::Leave && mem::take(&mut container.counted) {
            self.used_mb -= container.memory_mb;
        }
        self.disown(id);
    }

    /// No job will find the container any more.
    fn disown(&mut self, id: ContainerId) {
        let Some(owner) = self.containers.get_mut(&id).and_then(|container| container.owner.take()) else {
            return;
        };
        if let Some(ids) = self.owned.get_mut(&owner) {
            ids.retain(|other| *other != id);
            if ids.is_empty() {
                self.owned.remove(&owner);
            }
        }
    }

    /// Starts the destruction of a container without jobs; from now on it does not count.
    fn destroy(&mut self, id: ContainerId, commands: &mut Vec<Command>) {
        let Some(container) = self.containers.get_mut(&id) else { return };
        if container.is_evictable() && self.idle.remove(&(container.last_used, id)) {
            self.idle_mb -= container.memory_mb;
        }
        match container.state {
            State::CreatingStem { stock } => {
                self.stems.stocks[stock].creating -= 1;
                self.stems_mb -= container.memory_mb;
            }
            State::Stem { stock, expires } => {
                self.stems.stocks[stock].ready.remove(&(expires, id));
                self.stems_mb -= container.memory_mb;
            }
            _ => {}
        }
        container.state = State::Removing;
        self.removing += 1;
        self.doom(id, Accounting::Leave);
        commands.push(Command::Destroy { container: id });
    }

    fn removed(&mut self, id: ContainerId) -> bool {
        if !matches!(self.containers.get(&id), Some(Container { state: State::Removing, .. })) {
            return false;
        }
        self.containers.remove(&id);
        self.removing -= 1;
        true
    }

    fn suspended(&mut self, id: ContainerId, ok: bool, commands: &mut Vec<Command>) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        let State::Suspending { waiting } = &mut container.state else { return false };
        if !ok {
            return self.retire(id, Accounting::Leave, commands);
        }
        let waiting = mem::take(waiting);
        if waiting.is_empty() {
            container.state = State::Suspended { since: self.now };
        } else {
            self.run_all(id, waiting, Found::Suspended, commands);
        }
        true
    }

    // Time

    fn tick(&mut self, commands: &mut Vec<Command>) -> bool {
        let idle: Vec<_> = self.idle.iter().map(|(_, id)| *id).collect();
        for id in idle {
            let Some(container) = self.containers.get_mut(&id) else { continue };
            match (&container.state, self.config.pause_grace_ms) {
                (State::Idle { since }, Some(grace_ms)) if self.now.since(*since) >= grace_ms => {
                    container.state = State::Suspending { waiting: Vec::new() };
                    commands.push(Command::Suspend { container: id });
                }
                (State::Idle { since }, None) | (State::Suspended { since }, _)
                    if self.now.since(*since) >= self.config.idle_container_ms =>
                {
                    self.destroy(id, commands);
                }
                _ => {}
            }
        }
        self.end_long_waits(commands);
        if self.phase == Phase::Open {
            for id in self.stems.check(self.now) {
                self.destroy(id, commands);
            }
        }
        true
    }

    /// Jobs that wait for requests which were about to end, and have not, go back: the wait is bounded by
    /// [`ENDING_MS`] and the time between two ticks.
    fn end_long_waits(&mut self, commands: &mut Vec<Command>) {
        let mut displaced = Vec::new();
        for container in self.containers.values_mut() {
            if let State::InUse { running, waiting } = &mut container.state {
                let ending = running.iter().filter(|one| one.is_ending(self.now)).count();
                displaced.extend(waiting.drain(ending.min(waiting.len())..));
            }
        }
        self.displace(displaced, commands);
    }

    // Stem cells

    fn stem_ready(&mut self, id: ContainerId) -> bool {
        let Some(container) = self.containers.get_mut(&id) else { return false };
        let State::CreatingStem { stock } = container.state else { return false };
        let shelf = &mut self.stems.stocks[stock];
        let expires = shelf.expiry(self.now);
        shelf.creating -= 1;
        shelf.ready.insert((expires, id));
        container.state = State::Stem { stock, expires };
        true
    }

    fn stem_failed(&mut self, id: ContainerId) -> bool {
        let Some(State::CreatingStem { stock }) = self.containers.get(&id).map(|container| &container.state)
        else {
            return false;
        };
        let shelf = &mut self.stems.stocks[*stock];
        shelf.creating -= 1;
        shelf.failed(self.now);
        if let Some(container) = self.containers.remove(&id) {
            self.used_mb -= container.memory_mb;
            self.stems_mb -= container.memory_mb;
        }
        true
    }

    /// Creates the stem cells that are missing, as far as memory allows. Jobs come first: nothing is created
    /// while one is buffered.
    fn backfill(&mut self, commands: &mut Vec<Command>) {
        for stock in 0..self.stems.stocks.len() {
            let shelf = &self.stems.stocks[stock];
            let memory_mb = shelf.config.memory_mb;
            for _ in 0..shelf.missing(self.now) {
                if !self.fits(memory_mb) || self.removing >= self.config.removing_max {
                    break;
                }
                let id = self.new_id();
                let container = Container {
                    state: State::CreatingStem { stock },
                    memory_mb,
                    counted: true,
                    doomed: false,
                    owner: None,
                    capacity: 1,
                    last_used: self.now,
                };
                self.containers.insert(id, container);
                self.used_mb += memory_mb;
                self.stems_mb += memory_mb;
                self.stems.stocks[stock].creating += 1;
                commands.push(Command::CreateStem { container: id, stock });
            }
            self.stems.stocks[stock].attended(self.now);
        }
    }

    // The end

    fn drain(&mut self) -> bool {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        true
    }

    fn give_up(&mut self, commands: &mut Vec<Command>) -> bool {
        self.phase = Phase::GivenUp;
        let mut jobs: Vec<_> = mem::take(&mut self.buffer).into_values().collect();
        for container in self.containers.values_mut() {
            if let State::Initialising { waiting, .. }
            | State::InUse { waiting, .. }
            | State::Rewinding { waiting }
            | State::Suspending { waiting } = &mut container.state
            {
                jobs.append(waiting);
            }
        }
        for job in jobs {
            self.abort(job, AbortCause::Draining, commands);
        }
        true
    }

    /// While draining with an empty run buffer: destroys every container that no job needs.
    fn clear_out(&mut self, commands: &mut Vec<Command>) {
        let unneeded: Vec<_> = (self.containers.iter())
            .filter(|(_, container)| match &container.state {
                State::CreatingStem { .. }
                | State::Stem { .. }
                | State::Idle { .. }
                | State::Suspended { .. } => true,
                State::Rewinding { waiting } | State::Suspending { waiting } => waiting.is_empty(),
                State::Initialising { .. } | State::InUse { .. } | State::Removing => false,
            })
            .map(|(id, _)| *id)
            .collect();
        for id in unneeded {
            self.destroy(id, commands);
        }
    }
}

/// What happens to the memory of a container that takes no further job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Accounting {
    /// It counts until the container is destroyed.
    Stay,
    /// It counts no longer (contract 6.3: a failed container leaves the accounting at once).
    Leave,
}

impl<A> Container<A> {
    fn is_evictable(&self) -> bool {
        match &self.state {
            State::Idle { .. } | State::Suspended { .. } => true,
            State::Suspending { waiting } => waiting.is_empty(),
            _ => false,
        }
    }

    fn is_stem(&self) -> bool {
        matches!(self.state, State::CreatingStem { .. } | State::Stem { .. })
    }
}

#[cfg(test)]
impl<A: Clone + Eq + Hash> Pool<A> {
    /// The run buffer, first to be served in front.
    pub(super) fn buffered(&self) -> Vec<JobId> {
        self.buffer.values().copied().collect()
    }

    /// Recounts everything that is kept up to date in passing.
    pub(super) fn audit(&self) {
        let (mut used_mb, mut stems_mb, mut idle_mb, mut removing, mut owned) = (0, 0, 0, 0, 0);
        let mut idle = BTreeSet::new();
        let mut placed: Vec<JobId> = self.buffer.values().copied().collect();
        let mut creating = vec![0; self.stems.stocks.len()];
        let mut ready = vec![BTreeSet::new(); self.stems.stocks.len()];
        for (id, container) in &self.containers {
            let memory_mb = container.memory_mb;
            used_mb += if container.counted { memory_mb } else { 0 };
            stems_mb += if container.is_stem() { memory_mb } else { 0 };
            if container.is_evictable() {
                idle_mb += memory_mb;
                idle.insert((container.last_used, *id));
                assert!(container.counted && !container.doomed, "idle container {id} is on its way out");
            }
            if let Some(owner) = &container.owner {
                owned += 1;
                assert!(self.owned[owner].contains(id), "container {id} is not found by its owner");
                assert!(!container.doomed, "doomed container {id} has an owner");
            }
            let in_flight = match &container.state {
                State::CreatingStem { stock } => {
                    creating[*stock] += 1;
                    0
                }
                State::Stem { stock, expires } => {
                    ready[*stock].insert((*expires, *id));
                    0
                }
                State::Initialising { leader, waiting, .. } => {
                    placed.push(*leader);
                    placed.extend(waiting);
                    1 + waiting.len()
                }
                State::InUse { running, waiting } => {
                    placed.extend(running.iter().map(|one| one.job));
                    placed.extend(waiting);
                    assert!(!running.is_empty(), "container {id} is in use by nobody");
                    let answered = running.iter().filter(|one| one.answered.is_some()).count();
                    assert!(waiting.len() <= answered, "container {id}: more jobs wait than requests end");
                    running.len()
                }
                State::Rewinding { waiting } | State::Suspending { waiting } => {
                    placed.extend(waiting);
                    waiting.len()
                }
                State::Idle { .. } | State::Suspended { .. } => 0,
                State::Removing => {
                    removing += 1;
                    0
                }
            };
            assert!(in_flight <= container.capacity, "container {id} has {in_flight} jobs");
        }
        assert_eq!(used_mb, self.used_mb, "memory that counts");
        assert_eq!(stems_mb, self.stems_mb, "memory of stem cells");
        assert_eq!(idle_mb, self.idle_mb, "memory of idle containers");
        assert_eq!(idle, self.idle, "idle containers");
        assert_eq!(removing, self.removing, "containers under destruction");
        assert_eq!(owned, self.owned.values().map(Vec::len).sum::<usize>(), "owned containers");
        for (stock, (creating, ready)) in self.stems.stocks.iter().zip(creating.into_iter().zip(ready)) {
            assert_eq!((creating, &ready), (stock.creating, &stock.ready), "stock of {}", stock.config.kind);
        }
        placed.sort_unstable();
        assert!(placed.windows(2).all(|pair| pair[0] != pair[1]), "a job is in two places: {placed:?}");
        assert_eq!(placed.len(), self.jobs.len(), "jobs in a place, and all jobs");
    }
}
