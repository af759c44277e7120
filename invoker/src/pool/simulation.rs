//! Random lives of a pool, with everything it promises checked after each event.
//!
//! The world below knows containers and jobs only from the commands, as the dispatcher does; it answers them in
//! any order, late, or with any failure. Its own books are compared with the pool's at every step.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const RETURNS_MAX: u32 = 3;

/// Where the world's decisions come from.
trait Choices {
    /// A number below `bound`, which is positive.
    fn below(&mut self, bound: usize) -> usize;

    /// Whether something of this probability happens.
    fn percent(&mut self, probability: usize) -> bool {
        self.below(100) < probability
    }
}

/// A SplitMix64 sequence.
struct Seeded(u64);

impl Choices for Seeded {
    #[allow(clippy::cast_possible_truncation, reason = "the remainder is below a usize")]
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % bound as u64) as usize
    }
}

/// A list made, and shrunk, by proptest; zeros after its end.
struct Listed(std::vec::IntoIter<u16>);

impl Choices for Listed {
    fn below(&mut self, bound: usize) -> usize {
        usize::from(self.0.next().unwrap_or(0)) % bound
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Action {
    name: &'static str,
    kind: &'static str,
    memory_mb: u64,
    max_concurrent: u32,
}

const ACTIONS: [Action; 7] = [
    Action { name: "small", kind: "nodejs", memory_mb: 128, max_concurrent: 1 },
    Action { name: "other", kind: "nodejs", memory_mb: 128, max_concurrent: 1 },
    Action { name: "parallel", kind: "nodejs", memory_mb: 256, max_concurrent: 4 },
    Action { name: "python", kind: "python", memory_mb: 256, max_concurrent: 3 },
    Action { name: "large", kind: "python", memory_mb: 512, max_concurrent: 2 },
    Action { name: "whole", kind: "go", memory_mb: 1024, max_concurrent: 1 },
    Action { name: "absurd", kind: "go", memory_mb: 4096, max_concurrent: 1 },
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobState {
    /// No command has named it.
    Inside,
    InFlight(ContainerId),
    Answered,
}

#[derive(Debug)]
struct JobModel {
    action: usize,
    namespace: usize,
    state: JobState,
    returns: u32,
    /// The pool was told that it is answered, and not yet that it has ended.
    told: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Doing {
    CreatingStem,
    Stem,
    Initialising,
    /// Initialised; in use if anything is in flight, else idle.
    Serving,
    Rewinding,
    Suspending,
    Suspended,
    Removing,
}

#[derive(Debug)]
struct ContainerModel {
    doing: Doing,
    memory_mb: u64,
    stock: Option<usize>,
    owner: Option<(usize, usize)>,
    in_flight: Vec<JobId>,
    pristine: bool,
    /// It failed or died: it no longer counts, and must not be used again.
    failed: bool,
    quarantined: bool,
}

impl ContainerModel {
    /// Of an earlier process.
    fn leftover() -> Self {
        Self {
            doing: Doing::Removing,
            memory_mb: 0,
            stock: None,
            owner: None,
            in_flight: Vec::new(),
            pristine: false,
            failed: false,
            quarantined: false,
        }
    }

    fn counts(&self) -> bool {
        !self.failed && self.doing != Doing::Removing
    }
}

/// An answer that the world owes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owed {
    Stem(ContainerId),
    /// What became of the job that started the container.
    Init(ContainerId, JobId),
    Job(ContainerId, JobId),
    Rewind(ContainerId),
    Suspend(ContainerId),
    Destroy(ContainerId),
}

struct World<C> {
    choices: C,
    pool: Pool<&'static str>,
    config: PoolConfig,
    now: Millis,
    /// Probability in percent that something fails.
    trouble: usize,
    permits: u32,
    permits_all: u32,
    draining: bool,
    jobs: BTreeMap<JobId, JobModel>,
    unanswered: usize,
    containers: BTreeMap<ContainerId, ContainerModel>,
    owed: Vec<Owed>,
    next_job: u64,
    newest_container: u64,
    events: u64,
    commands: Vec<Command>,
    aborts: [u64; 4],
}

/// What was met in one or more lives.
#[derive(Debug, Default)]
struct Totals {
    events: u64,
    starts: [u64; Start::ALL.len()],
    /// Rescheduled, returned, evicted, quarantined, died, strays.
    others: [u64; 6],
    /// Initialisation failed, refused, larger than the budget, draining.
    aborts: [u64; 4],
    /// Expired stem cells, cold starts for want of one.
    stems: [u64; 2],
}

impl Totals {
    fn add<C>(&mut self, world: &World<C>) {
        let counters = world.pool.counters();
        let others = [
            counters.rescheduled,
            counters.returned,
            counters.evicted,
            counters.quarantined,
            counters.died,
            counters.strays,
        ];
        let stems = world.pool.stem_levels().fold([0, 0], |[expired, cold], level| {
            [expired + level.expired_total, cold + level.cold_starts_total]
        });
        self.events += world.events;
        for (sums, numbers) in [
            (&mut self.starts[..], &counters.starts[..]),
            (&mut self.others, &others),
            (&mut self.aborts, &world.aborts),
            (&mut self.stems, &stems),
        ] {
            sums.iter_mut().zip(numbers).for_each(|(sum, number)| *sum += number);
        }
    }
}

impl<C: Choices> World<C> {
    fn new(mut choices: C) -> Self {
        let isolation = [Isolation::Rewind, Isolation::SingleUse, Isolation::None][choices.below(3)];
        let reactive =
            |min_count| Reactive { min_count, max_count: 3, ttl_ms: 30_000, threshold: 2, increment: 1 };
        let stem_cells = match choices.below(4) {
            0 => Vec::new(),
            1 => vec![stem_cells("nodejs", 128, 2, None)],
            2 => vec![stem_cells("nodejs", 128, 1, Some(reactive(0))), stem_cells("python", 256, 1, None)],
            _ => vec![
                stem_cells("python", 256, 2, Some(reactive(1))),
                stem_cells("go", 64, 1, Some(reactive(1))),
            ],
        };
        let config = PoolConfig {
            budget_mb: [1024, 1100, 2048][choices.below(3)],
            isolation,
            pause_grace_ms: choices.percent(70).then_some(3_000),
            idle_container_ms: 20_000,
            stem_cells,
            stem_check: StemCheck {
                first_ms: 10_000,
                interval_ms: 15_000,
                variance_ms: 2_000,
                expired_max: 1 + choices.below(3),
            },
            returns_max: RETURNS_MAX,
            removing_max: 2 + choices.below(8),
            seed: 7,
        };
        let trouble = [0, 3, 15, 40][choices.below(4)];
        let permits_all = 1 + u32::try_from(choices.below(24)).unwrap();
        let mut pool = Pool::new(config.clone());
        let newest = choices.below(5) as u64;
        let leftovers = pool.adopt(newest, choices.below(6));
        let newest_container = leftovers.last().map_or(newest, |last| last.0);
        let being_removed = |id: &ContainerId| (*id, ContainerModel::leftover());
        let containers = leftovers.iter().map(being_removed).collect();
        let owed = leftovers.into_iter().map(Owed::Destroy).collect();
        Self {
            choices,
            pool,
            config,
            now: Millis(0),
            trouble,
            permits: permits_all,
            permits_all,
            draining: false,
            jobs: BTreeMap::new(),
            unanswered: 0,
            containers,
            owed,
            next_job: 0,
            newest_container,
            events: 0,
            commands: Vec::new(),
            aborts: [0; 4],
        }
    }

    /// One life: `events` random events, then the end, either way.
    fn live(mut self, events: u64, totals: &mut Totals) {
        self.send(Event::Tick);
        while self.events < events {
            self.step();
        }
        if self.choices.percent(50) {
            while !self.owed.is_empty() {
                self.answer();
            }
            assert_eq!(self.pool.jobs(), 0, "nothing is under way, yet jobs wait");
            assert_eq!(self.permits, self.permits_all, "every permit is back");
        }
        self.draining = true;
        self.send(Event::Drain);
        for _ in 0..self.choices.below(20) {
            self.step();
        }
        if self.choices.percent(50) {
            self.send(Event::GiveUp);
            assert!(self.pool.buffered().is_empty(), "jobs wait after giving up");
        }
        while !self.owed.is_empty() {
            self.answer();
        }
        assert!(self.pool.is_empty(), "something is left in the end");
        assert_eq!(self.unanswered, 0, "every job is answered");
        totals.add(&self);
    }

    fn step(&mut self) {
        match self.choices.below(20) {
            0..=7 if self.permits > 0 => self.arrive(),
            0..=16 if !self.owed.is_empty() => self.answer(),
            17 => self.mishap(),
            18 => self.stray(),
            _ => {
                self.now = self.now.plus(self.choices.below(2_000) as u64);
                self.send(Event::Tick);
            }
        }
    }

    fn arrive(&mut self) {
        self.permits -= 1;
        let id = JobId(self.next_job);
        self.next_job += 1;
        // The later ones in the list are rarer.
        let action = self.choices.below(ACTIONS.len()).min(self.choices.below(ACTIONS.len()));
        let namespace = self.choices.below(2);
        self.jobs
            .insert(id, JobModel { action, namespace, state: JobState::Inside, returns: 0, told: false });
        self.unanswered += 1;
        let action = ACTIONS[action];
        self.send(Event::Job(Job {
            id,
            action: action.name,
            namespace: ["guest", "team"][namespace].into(),
            memory_mb: action.memory_mb,
            kind: action.kind.into(),
            max_concurrent: action.max_concurrent,
        }));
    }

    /// Pays one of the owed answers.
    fn answer(&mut self) {
        let index = self.choices.below(self.owed.len());
        let bad = self.choices.percent(self.trouble);
        match self.owed.swap_remove(index) {
            Owed::Stem(container) => self.stem_answered(container, bad),
            Owed::Init(container, job) => self.init_answered(container, job, bad),
            Owed::Job(container, job) => self.job_answered(container, job, bad),
            Owed::Rewind(container) => {
                let late =
                    self.containers.get(&container).is_none_or(|model| model.doing != Doing::Rewinding);
                if bad {
                    if let Some(model) = self.containers.get_mut(&container) {
                        model.quarantined = true;
                    }
                    self.send(Event::Quarantined { container });
                } else {
                    if let Some(model) = self.containers.get_mut(&container).filter(|_| !late) {
                        model.pristine = true;
                        model.doing = Doing::Serving;
                    }
                    self.send(Event::Pristine { container });
                }
            }
            Owed::Suspend(container) => {
                if let Some(model) =
                    self.containers.get_mut(&container).filter(|it| it.doing == Doing::Suspending)
                {
                    model.doing = Doing::Suspended;
                    model.failed |= bad;
                }
                self.send(Event::Suspended { container, ok: !bad });
            }
            Owed::Destroy(container) => {
                self.containers.remove(&container);
                self.send(Event::Removed { container });
            }
        }
    }

    fn stem_answered(&mut self, container: ContainerId, bad: bool) {
        let awaited = self.containers.get(&container).is_some_and(|model| model.doing == Doing::CreatingStem);
        if bad {
            if awaited {
                self.containers.remove(&container);
            }
            self.send(Event::StemFailed { container });
        } else {
            if let Some(model) = self.containers.get_mut(&container).filter(|_| awaited) {
                model.doing = Doing::Stem;
            }
            self.send(Event::StemReady { container });
        }
    }

    fn init_answered(&mut self, container: ContainerId, job: JobId, bad: bool) {
        if !bad {
            self.containers.get_mut(&container).unwrap().doing = Doing::Serving;
            self.owed.push(Owed::Job(container, job));
            self.send(Event::Initialised { container });
            return;
        }
        let end = [JobEnd::BeforeInit, JobEnd::Returned, JobEnd::Failed][self.choices.below(3)];
        self.end_job(container, job, end);
    }

    fn job_answered(&mut self, container: ContainerId, job: JobId, bad: bool) {
        let model = self.jobs.get_mut(&job).unwrap();
        if !model.told && self.choices.percent(60) {
            model.told = true;
            self.owed.push(Owed::Job(container, job));
            return self.send(Event::Answered { container, job });
        }
        let end = if bad { [JobEnd::Failed, JobEnd::Returned][self.choices.below(2)] } else { JobEnd::Kept };
        self.end_job(container, job, end);
    }

    fn end_job(&mut self, container: ContainerId, job: JobId, end: JobEnd) {
        let model = self.containers.get_mut(&container).unwrap();
        model.in_flight.retain(|one| *one != job);
        model.pristine = false;
        model.failed |= end != JobEnd::Kept;
        let job_model = self.jobs.get_mut(&job).unwrap();
        assert_eq!(job_model.state, JobState::InFlight(container));
        job_model.told = false;
        if end == JobEnd::Returned {
            job_model.state = JobState::Inside;
            job_model.returns += 1;
        } else {
            job_model.state = JobState::Answered;
            self.unanswered -= 1;
        }
        self.send(Event::JobDone { container, job, end });
    }

    /// Something befalls a container out of the blue.
    fn mishap(&mut self) {
        if !self.choices.percent(self.trouble) || self.containers.is_empty() {
            return;
        }
        let index = self.choices.below(self.containers.len());
        let (&container, model) = self.containers.iter_mut().nth(index).unwrap();
        let known = model.doing != Doing::Removing;
        if self.choices.percent(50) {
            model.failed |= known;
            self.send(Event::Died { container });
        } else {
            model.quarantined |= known;
            self.send(Event::Quarantined { container });
        }
    }

    /// An event that does not fit: it must change nothing.
    fn stray(&mut self) {
        let container =
            ContainerId(self.choices.below(usize::try_from(self.newest_container).unwrap() + 10) as u64);
        let doing = self.containers.get(&container).map(|model| &model.doing);
        let job = JobId(self.choices.below(usize::try_from(self.next_job).unwrap() + 10) as u64);
        let in_flight_there = self.jobs.get(&job).map(|job| job.state) == Some(JobState::InFlight(container));
        let event = match self.choices.below(6) {
            0 if doing != Some(&Doing::Rewinding) => Event::Pristine { container },
            1 if doing != Some(&Doing::Removing) => Event::Removed { container },
            2 if doing != Some(&Doing::Initialising) => Event::Initialised { container },
            3 if doing != Some(&Doing::Suspending) => Event::Suspended { container, ok: true },
            4 if !in_flight_there => Event::JobDone { container, job, end: JobEnd::Failed },
            5 if !in_flight_there => Event::Answered { container, job },
            _ => return,
        };
        let before = self.pool.counters().strays;
        let mut commands = Vec::new();
        self.pool.handle(self.now, event, &mut commands);
        assert_eq!(self.pool.counters().strays, before + 1);
        assert_eq!(commands, []);
        self.events += 1;
    }

    /// Tells the pool, carries out what it commands, and compares the books.
    fn send(&mut self, event: Event<&'static str>) {
        self.events += 1;
        let gave_up = event == Event::GiveUp;
        let arrived = if let Event::Job(job) = &event { Some(job.id) } else { None };
        let mut before = self.pool.buffered();
        if !self.draining {
            before.extend(arrived);
        }

        let mut commands = std::mem::take(&mut self.commands);
        commands.clear();
        self.pool.handle(self.now, event, &mut commands);
        for command in &commands {
            self.obey(*command);
        }
        self.commands = commands;

        self.pool.audit();
        let after = self.pool.buffered();
        if let Some(head) = after.first() {
            assert!(after.is_sorted(), "the run buffer is not in the order of arrival: {after:?}");
            let last_out = before.iter().filter(|job| after.binary_search(job).is_err()).max();
            assert!(last_out.is_none_or(|job| job < head || gave_up), "{last_out:?} has overtaken {head}");
        }
        let used_mb: u64 =
            self.containers.values().filter(|model| model.counts()).map(|model| model.memory_mb).sum();
        assert_eq!(self.pool.used_mb(), used_mb, "memory that counts");
        assert!(used_mb <= self.config.budget_mb, "{used_mb} MB used");
        assert_eq!(self.pool.jobs(), self.unanswered, "jobs inside");
        if !self.draining {
            let out = (self.permits_all - self.permits) as usize;
            assert!(out >= self.unanswered, "more jobs than permits");
            assert!(out == self.unanswered || !after.is_empty(), "a permit is kept back");
        }
        if self.owed.is_empty() {
            assert_eq!(after, [], "nothing is under way, yet jobs wait");
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::CreateStem { container, stock } => {
                assert!(!self.draining);
                let memory_mb = self.config.stem_cells[stock].memory_mb;
                self.appear(container, Doing::CreatingStem, memory_mb).stock = Some(stock);
                self.owed.push(Owed::Stem(container));
            }
            Command::CreateFor { container, job, start } => {
                assert!(matches!(start, Start::Cold | Start::Recreated));
                let (action, namespace) = self.put_in_flight(job, container);
                let model = self.appear(container, Doing::Initialising, ACTIONS[action].memory_mb);
                model.owner = Some((action, namespace));
                model.in_flight.push(job);
                self.owed.push(Owed::Init(container, job));
            }
            Command::Specialise { container, job, start } => {
                assert_eq!(start, Start::Prewarmed);
                let (action, namespace) = self.put_in_flight(job, container);
                let model = self.containers.get_mut(&container).expect("a stem cell that exists");
                assert_eq!(model.doing, Doing::Stem);
                assert!(!model.failed && !model.quarantined);
                let stock = &self.config.stem_cells[model.stock.unwrap()];
                assert_eq!(
                    (&*stock.kind, stock.memory_mb),
                    (ACTIONS[action].kind, ACTIONS[action].memory_mb)
                );
                model.doing = Doing::Initialising;
                model.owner = Some((action, namespace));
                model.in_flight.push(job);
                self.owed.push(Owed::Init(container, job));
            }
            Command::Run { container, job, start, found } => self.run(container, job, start, found),
            Command::Rewind { container } => {
                let model = self.containers.get_mut(&container).expect("a container that exists");
                assert_eq!(self.config.isolation, Isolation::Rewind);
                assert_eq!(model.doing, Doing::Serving);
                assert!(model.in_flight.is_empty() && !model.pristine && !model.failed && !model.quarantined);
                model.doing = Doing::Rewinding;
                self.owed.push(Owed::Rewind(container));
            }
            Command::Suspend { container } => {
                let model = self.containers.get_mut(&container).expect("a container that exists");
                assert_eq!(model.doing, Doing::Serving);
                assert!(model.in_flight.is_empty() && !model.failed && !model.quarantined);
                assert!(model.pristine || self.config.isolation == Isolation::None);
                model.doing = Doing::Suspending;
                self.owed.push(Owed::Suspend(container));
            }
            Command::Destroy { container } => self.destroy(container),
            Command::Abort { job, cause } => self.abort(job, cause),
            Command::Permit { count } => {
                assert!(count > 0 && !self.draining);
                self.permits += count;
                assert!(self.permits <= self.permits_all, "a permit from nowhere");
            }
        }
    }

    fn appear(&mut self, container: ContainerId, doing: Doing, memory_mb: u64) -> &mut ContainerModel {
        assert!(container.0 > self.newest_container, "container {container} is not new");
        self.newest_container = container.0;
        let removing = self.containers.values().filter(|model| model.doing == Doing::Removing).count();
        // One eviction may destroy several at once.
        assert!(removing <= self.config.removing_max + 32, "{removing} containers under destruction");
        let model = ContainerModel {
            doing,
            memory_mb,
            stock: None,
            owner: None,
            in_flight: Vec::new(),
            pristine: false,
            failed: false,
            quarantined: false,
        };
        self.containers.entry(container).or_insert(model)
    }

    fn put_in_flight(&mut self, job: JobId, container: ContainerId) -> (usize, usize) {
        let model = self.jobs.get_mut(&job).expect("a job that exists");
        assert_eq!(model.state, JobState::Inside, "{job}");
        model.state = JobState::InFlight(container);
        (model.action, model.namespace)
    }

    fn run(&mut self, container: ContainerId, job: JobId, start: Start, found: Found) {
        let owner = self.put_in_flight(job, container);
        let model = self.containers.get_mut(&container).expect("a container that exists");
        assert_eq!(model.owner, Some(owner), "container of somebody else");
        assert!(!model.failed && !model.quarantined, "container {container} is not to be trusted");
        match found {
            Found::InUse => assert!(model.doing == Doing::Serving && !model.in_flight.is_empty()),
            Found::Pristine => assert!(model.doing == Doing::Serving && model.in_flight.is_empty()),
            Found::Suspended => assert!(model.doing == Doing::Suspended && model.in_flight.is_empty()),
        }
        if found != Found::InUse {
            assert_eq!(start, Start::Warmed);
            assert!(
                model.pristine || self.config.isolation == Isolation::None,
                "container {container} is not pristine"
            );
        }
        assert_ne!(self.config.isolation, Isolation::SingleUse, "container {container} is used twice");
        model.doing = Doing::Serving;
        model.pristine = false;
        model.in_flight.push(job);
        assert!(model.in_flight.len() <= ACTIONS[owner.0].max_concurrent as usize, "too many in flight");
        self.owed.push(Owed::Job(container, job));
    }

    fn destroy(&mut self, container: ContainerId) {
        let only_stems = self.containers.values().all(|model| !model.counts() || model.stock.is_some());
        let model = self.containers.get_mut(&container).expect("a container that exists");
        assert_eq!(model.in_flight, [], "container {container} is destroyed under its jobs");
        let expected = self.draining || model.failed || model.quarantined;
        match model.doing {
            Doing::Removing => panic!("container {container} is destroyed twice"),
            Doing::CreatingStem => assert!(expected || only_stems, "a stem cell is evicted"),
            Doing::Stem => {
                let stock = &self.config.stem_cells[model.stock.unwrap()];
                assert!(expected || only_stems || stock.reactive.is_some(), "a stem cell is evicted");
            }
            Doing::Initialising | Doing::Rewinding => assert!(expected),
            Doing::Serving => assert!(
                expected || model.pristine || self.config.isolation != Isolation::Rewind,
                "container {container} is destroyed instead of rewound"
            ),
            Doing::Suspending | Doing::Suspended => {}
        }
        model.doing = Doing::Removing;
        self.owed.push(Owed::Destroy(container));
        // An answer that was under way comes late, or never.
        if self.choices.percent(50) {
            self.owed.retain(|owed| {
                ![Owed::Stem(container), Owed::Rewind(container), Owed::Suspend(container)].contains(owed)
            });
        }
    }

    fn abort(&mut self, job: JobId, cause: AbortCause) {
        let leader_state = match cause {
            AbortCause::InitFailed { leader } => Some(self.jobs[&leader].state),
            _ => None,
        };
        let model = self.jobs.get_mut(&job).expect("a job that exists");
        assert_eq!(model.state, JobState::Inside, "{job} is aborted");
        model.state = JobState::Answered;
        self.unanswered -= 1;
        self.aborts[match cause {
            AbortCause::InitFailed { .. } => 0,
            AbortCause::Refused { .. } => 1,
            AbortCause::LargerThanBudget { .. } => 2,
            AbortCause::Draining => 3,
        }] += 1;
        match cause {
            AbortCause::InitFailed { .. } => {
                assert_eq!(leader_state, Some(JobState::Answered));
                assert!(ACTIONS[model.action].max_concurrent > 1);
            }
            AbortCause::Refused { times } => {
                assert_eq!((times, model.returns), (RETURNS_MAX + 1, RETURNS_MAX + 1));
            }
            AbortCause::LargerThanBudget { memory_mb, budget_mb } => assert!(memory_mb > budget_mb),
            AbortCause::Draining => assert!(self.draining),
        }
    }
}

fn stem_cells(kind: &str, memory_mb: u64, initial_count: u32, reactive: Option<Reactive>) -> StemCells {
    StemCells { kind: kind.into(), memory_mb, initial_count, reactive }
}

#[test]
fn a_million_events() {
    let mut totals = Totals::default();
    let mut seed = 0;
    while totals.events < 1_000_000 {
        seed += 1;
        println!("life {seed}");
        World::new(Seeded(seed)).live(10_000, &mut totals);
    }
    println!("{totals:?}");
    let (never, possible) = totals.starts.split_last().unwrap();
    assert_eq!(*never, 0, "a stem cell after an eviction");
    for numbers in [possible, &totals.others, &totals.aborts, &totals.stems] {
        assert!(numbers.iter().all(|number| *number > 0), "not everything was met: {totals:?}");
    }
}

proptest! {
    #[test]
    fn any_short_life(choices in prop::collection::vec(any::<u16>(), 0..1_500)) {
        let events = choices.len() as u64 / 4;
        World::new(Listed(choices.into_iter())).live(events, &mut Totals::default());
    }
}
