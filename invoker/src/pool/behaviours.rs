//! The behaviours of upstream's pool and proxy tests (contract 10.1) that concern the pool, and our own rules,
//! one test each.

use super::*;

/// A pool and a clock, with shorthands. Memory is 128 MB per container unless said otherwise.
struct Scene {
    pool: Pool<&'static str>,
    now: Millis,
    next_job: u64,
}

impl Scene {
    fn new(config: PoolConfig) -> Self {
        Self { pool: Pool::new(config), now: Millis(1), next_job: 0 }
    }

    /// Room for so many containers of 128 MB, no stem cells.
    fn with_room_for(containers: u64) -> Self {
        Self::new(config(containers))
    }

    fn send(&mut self, event: Event<&'static str>) -> Vec<Command> {
        let mut commands = Vec::new();
        self.now = self.now.plus(1);
        self.pool.handle(self.now, event, &mut commands);
        self.pool.audit();
        commands
    }

    fn arrive(&mut self, job: Job<&'static str>) -> (JobId, Vec<Command>) {
        let id = job.id;
        (id, self.send(Event::Job(job)))
    }

    /// A job of namespace `guest`, 128 MB, one at a time.
    fn job(&mut self, action: &'static str) -> Job<&'static str> {
        self.next_job += 1;
        Job {
            id: JobId(self.next_job),
            action,
            namespace: "guest".into(),
            memory_mb: 128,
            kind: "nodejs".into(),
            max_concurrent: 1,
        }
    }

    fn parallel_job(&mut self, action: &'static str, max_concurrent: u32) -> Job<&'static str> {
        Job { max_concurrent, ..self.job(action) }
    }

    fn large_job(&mut self, action: &'static str, memory_mb: u64) -> Job<&'static str> {
        Job { memory_mb, ..self.job(action) }
    }

    fn done(&mut self, container: ContainerId, job: JobId, end: JobEnd) -> Vec<Command> {
        self.send(Event::JobDone { container, job, end })
    }

    /// A new container that is initialised and runs its first job.
    fn in_use(&mut self, job: Job<&'static str>) -> (ContainerId, JobId) {
        let (job, commands) = self.arrive(job);
        let container = created(&commands);
        self.send(Event::Initialised { container });
        (container, job)
    }

    /// A new container that has run a job and is pristine again.
    fn idle(&mut self, action: &'static str) -> ContainerId {
        let job = self.job(action);
        self.idle_after(job)
    }

    fn idle_after(&mut self, job: Job<&'static str>) -> ContainerId {
        let (container, job) = self.in_use(job);
        let commands = self.done(container, job, JobEnd::Kept);
        if commands.contains(&Command::Rewind { container }) {
            self.send(Event::Pristine { container });
        }
        container
    }

    fn ticks_after(&mut self, span_ms: u64) -> Vec<Command> {
        self.now = self.now.plus(span_ms);
        self.send(Event::Tick)
    }
}

fn config(containers: u64) -> PoolConfig {
    PoolConfig { budget_mb: containers * 128, ..PoolConfig::default() }
}

fn with_stems(containers: u64, stem_cells: Vec<StemCells>) -> PoolConfig {
    PoolConfig { stem_cells, ..config(containers) }
}

fn stems(initial_count: u32, reactive: Option<Reactive>) -> StemCells {
    StemCells { kind: "nodejs".into(), memory_mb: 128, initial_count, reactive }
}

const REACTIVE: Reactive =
    Reactive { min_count: 1, max_count: 3, ttl_ms: 60_000, threshold: 2, increment: 1 };

/// The container that the only creation for a job among the commands makes.
fn created(commands: &[Command]) -> ContainerId {
    let mut ids = commands.iter().filter_map(|command| match command {
        Command::CreateFor { container, .. } => Some(*container),
        _ => None,
    });
    let id = ids.next().unwrap_or_else(|| panic!("nothing is created: {commands:?}"));
    assert_eq!(ids.next(), None, "{commands:?}");
    id
}

fn stems_created(commands: &[Command]) -> Vec<ContainerId> {
    commands
        .iter()
        .filter_map(|command| match command {
            Command::CreateStem { container, stock: 0 } => Some(*container),
            _ => None,
        })
        .collect()
}

fn run(container: ContainerId, job: JobId, found: Found) -> Command {
    Command::Run { container, job, start: Start::Warmed, found }
}

fn permit(count: u32) -> Command {
    Command::Permit { count }
}

// Reuse

#[test]
fn creates_a_container_for_the_first_job() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [Command::CreateFor { container: ContainerId(1), job, start: Start::Cold }]);
    // The job that started the container runs without another command.
    assert_eq!(scene.send(Event::Initialised { container: ContainerId(1) }), []);
    assert_eq!(scene.pool.counters().starts, [0, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn reuses_a_warm_container() {
    let mut scene = Scene::with_room_for(2);
    let container = scene.idle("a");
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [run(container, job, Found::Pristine)]);
}

#[test]
fn uses_one_container_per_action_and_namespace() {
    let mut scene = Scene::with_room_for(3);
    let first = scene.idle("a");
    let other_action = scene.job("b");
    let (_, commands) = scene.arrive(other_action);
    assert_ne!(created(&commands), first);
    let other_namespace = Job { namespace: "team".into(), ..scene.job("a") };
    let (_, commands) = scene.arrive(other_namespace);
    assert_ne!(created(&commands), first);
}

#[test]
fn prefers_the_container_used_last() {
    let mut scene = Scene::with_room_for(2);
    let (first, job_1) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    let (second, job_2) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    for (container, job) in [(second, job_2), (first, job_1)] {
        scene.done(container, job, JobEnd::Kept);
        scene.send(Event::Pristine { container });
    }
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [run(second, job, Found::Pristine)], "used last, although the other ended last");
}

#[test]
fn prefers_warm_to_warming_to_warming_cold() {
    let mut scene = Scene::new(with_stems(3, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    let job = scene.parallel_job("a", 2);
    let (_, commands) = scene.arrive(job);
    let cold = created(&commands);
    scene.send(Event::StemReady { container: stem });
    // The second joins the new container, the third finds it full and takes the stem cell.
    for expected in [None, Some(stem)] {
        let job = scene.parallel_job("a", 2);
        let (job, commands) = scene.arrive(job);
        let specialise =
            expected.map(|container| Command::Specialise { container, job, start: Start::Prewarmed });
        assert_eq!(commands.first().copied(), specialise, "{commands:?}");
    }
    let job = scene.parallel_job("a", 2);
    let (joins_stem, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    let commands = scene.send(Event::Initialised { container: stem });
    let start = Start::Warming;
    assert_eq!(commands, [Command::Run { container: stem, job: joins_stem, start, found: Found::InUse }]);
    let commands = scene.send(Event::Initialised { container: cold });
    let start = Start::WarmingCold;
    assert!(matches!(commands[..], [Command::Run { start: given, .. }] if given == start), "{commands:?}");
}

#[test]
fn does_not_reuse_a_container_under_destruction() {
    let mut scene = Scene::with_room_for(2);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    assert_eq!(scene.done(container, job, JobEnd::Failed), [Command::Destroy { container }, permit(1)]);
    let job = scene.job("a");
    let (_, commands) = scene.arrive(job);
    assert_ne!(created(&commands), container);
}

#[test]
fn keeps_the_container_after_an_application_error_and_only_then() {
    for (end, kept) in [(JobEnd::Kept, true), (JobEnd::Failed, false)] {
        let mut scene = Scene::with_room_for(1);
        let (container, job) = {
            let job = scene.job("a");
            scene.in_use(job)
        };
        let next = if kept { Command::Rewind { container } } else { Command::Destroy { container } };
        assert_eq!(scene.done(container, job, end), [next, permit(1)]);
    }
}

// Rewinding

#[test]
fn rewinds_between_uses() {
    let mut scene = Scene::with_room_for(1);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    assert_eq!(scene.done(container, job, JobEnd::Kept), [Command::Rewind { container }, permit(1)]);
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [], "it is not pristine yet");
    assert_eq!(scene.send(Event::Pristine { container }), [run(container, job, Found::Pristine)]);
}

#[test]
fn waits_for_a_rewind_rather_than_start_cold_but_for_no_more_than_it_can_take() {
    let mut scene = Scene::with_room_for(2);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.done(container, job, JobEnd::Kept);
    let job = scene.job("a");
    assert_eq!(scene.arrive(job).1, []);
    let job = scene.job("a");
    assert_ne!(created(&scene.arrive(job).1), container);
}

#[test]
fn a_job_that_waits_for_a_rewind_blocks_nobody() {
    let mut scene = Scene::with_room_for(2);
    let other = scene.idle("b");
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.done(container, job, JobEnd::Kept);
    let job = scene.job("a");
    scene.arrive(job);
    let job = scene.job("b");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [run(other, job, Found::Pristine)]);
}

#[test]
fn quarantine_destroys_the_container_and_the_waiting_job_takes_another() {
    let mut scene = Scene::with_room_for(1);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.done(container, job, JobEnd::Kept);
    let job = scene.job("a");
    let (job, _) = scene.arrive(job);
    assert_eq!(
        scene.send(Event::Quarantined { container }),
        [
            Command::Destroy { container },
            Command::CreateFor { container: ContainerId(2), job, start: Start::Cold },
        ]
    );
}

#[test]
fn a_job_waits_in_vain_for_a_rewind_only_once() {
    let mut scene = Scene::with_room_for(2);
    let (first, job_1) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    let (second, job_2) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.done(first, job_1, JobEnd::Kept);
    scene.done(second, job_2, JobEnd::Kept);
    let job = scene.job("a");
    assert_eq!(scene.arrive(job).1, []);
    let commands = scene.send(Event::Quarantined { container: second });
    assert!(!commands.contains(&Command::Destroy { container: first }));
    created(&commands);
}

#[test]
fn a_container_whose_checkpoint_failed_serves_one_job() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.parallel_job("a", 2);
    let (job, commands) = scene.arrive(job);
    let container = created(&commands);
    let waiting = scene.parallel_job("a", 2);
    assert_eq!(scene.arrive(waiting).1, []);
    assert_eq!(scene.send(Event::Quarantined { container }), [], "its first job may still run");
    assert_eq!(scene.send(Event::Initialised { container }), [], "and no other");
    let commands = scene.done(container, job, JobEnd::Kept);
    assert_eq!(commands[0], Command::Destroy { container });
    created(&commands);
}

#[test]
fn without_isolation_the_container_is_free_at_once() {
    let mut scene = Scene::new(PoolConfig { isolation: Isolation::None, ..config(1) });
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    assert_eq!(scene.done(container, job, JobEnd::Kept), [permit(1)]);
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [run(container, job, Found::Pristine)]);
}

#[test]
fn a_single_use_container_serves_one_request_whatever_the_concurrency() {
    let mut scene = Scene::new(PoolConfig { isolation: Isolation::SingleUse, ..config(1) });
    let job = scene.parallel_job("a", 8);
    let (container, job) = scene.in_use(job);
    let next = scene.parallel_job("a", 8);
    let (next, commands) = scene.arrive(next);
    assert_eq!(commands, []);
    assert_eq!(
        scene.done(container, job, JobEnd::Kept),
        [
            Command::Destroy { container },
            Command::CreateFor { container: ContainerId(2), job: next, start: Start::Cold },
            permit(1),
        ]
    );
}

// Waiting for the end of a request that was answered

#[test]
fn a_request_that_was_answered_is_waited_for_rather_than_evict() {
    for isolation in [Isolation::Rewind, Isolation::None] {
        let mut scene = Scene::new(PoolConfig { isolation, ..config(2) });
        let other = scene.idle("b");
        let (container, job) = {
            let job = scene.job("a");
            scene.in_use(job)
        };
        assert_eq!(scene.send(Event::Answered { container, job }), []);
        let next = scene.job("a");
        let (next, commands) = scene.arrive(next);
        assert_eq!(commands, [], "the other container stays");
        // Whoever comes behind is not blocked.
        let of_other = scene.job("b");
        let (of_other, commands) = scene.arrive(of_other);
        assert_eq!(commands, [run(other, of_other, Found::Pristine)]);
        let commands = scene.done(container, job, JobEnd::Kept);
        if isolation == Isolation::Rewind {
            assert_eq!(commands, [Command::Rewind { container }, permit(1)]);
            assert_eq!(scene.send(Event::Pristine { container }), [run(container, next, Found::Pristine)]);
        } else {
            assert_eq!(commands, [run(container, next, Found::Pristine), permit(1)]);
        }
    }
}

#[test]
fn a_request_that_is_not_answered_is_not_waited_for() {
    let mut scene = Scene::with_room_for(2);
    let other = scene.idle("b");
    let job = scene.job("a");
    scene.in_use(job);
    let job = scene.job("a");
    let (_, commands) = scene.arrive(job);
    assert_eq!(commands[0], Command::Destroy { container: other }, "as upstream");
}

#[test]
fn each_answered_request_is_waited_for_by_one_job() {
    let mut scene = Scene::with_room_for(2);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.send(Event::Answered { container, job });
    let job = scene.job("a");
    assert_eq!(scene.arrive(job).1, []);
    let job = scene.job("a");
    assert_ne!(created(&scene.arrive(job).1), container);
}

#[test]
fn a_job_takes_the_place_of_the_answered_request_among_others() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.parallel_job("a", 2);
    let (container, first) = scene.in_use(job);
    let job = scene.parallel_job("a", 2);
    let (second, _) = scene.arrive(job);
    scene.send(Event::Answered { container, job: first });
    let job = scene.parallel_job("a", 2);
    let (third, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    assert_eq!(
        scene.done(container, second, JobEnd::Kept),
        [run(container, third, Found::InUse), permit(1)],
        "any end makes room"
    );
    assert_eq!(scene.done(container, first, JobEnd::Kept), [permit(1)]);
    assert_eq!(scene.done(container, third, JobEnd::Kept), [Command::Rewind { container }, permit(1)]);
}

#[test]
fn a_container_that_fails_after_the_answer_gives_back_who_waits_for_it() {
    let mut scene = Scene::with_room_for(1);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.send(Event::Answered { container, job });
    let next = scene.job("a");
    let (next, _) = scene.arrive(next);
    let new = Command::CreateFor { container: ContainerId(2), job: next, start: Start::Cold };
    assert_eq!(
        scene.done(container, job, JobEnd::Failed),
        [Command::Destroy { container }, new, permit(1)],
        "its logs could not be collected, say"
    );
}

#[test]
fn an_end_that_does_not_come_is_not_waited_for_for_long() {
    let mut scene = Scene::with_room_for(2);
    let other = scene.idle("b");
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.send(Event::Answered { container, job });
    let next = scene.job("a");
    let (next, _) = scene.arrive(next);
    assert_eq!(scene.send(Event::Tick), [], "it may still end soon");
    let new = Command::CreateFor { container: ContainerId(3), job: next, start: Start::Recreated };
    assert_eq!(scene.ticks_after(1_000), [Command::Destroy { container: other }, new]);
    // And nobody begins to wait for what has been ending for long.
    scene.send(Event::Removed { container: other });
    let job = scene.job("a");
    let (late, commands) = scene.arrive(job);
    assert_eq!((commands, scene.pool.buffered()), (vec![], vec![late]));
}

#[test]
fn a_single_use_container_is_not_waited_for() {
    let mut scene = Scene::new(PoolConfig { isolation: Isolation::SingleUse, ..config(2) });
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    scene.send(Event::Answered { container, job });
    let job = scene.job("a");
    assert_ne!(created(&scene.arrive(job).1), container);
}

#[test]
fn a_job_that_waits_for_an_end_is_finished_when_draining_and_aborted_when_giving_up() {
    for give_up in [false, true] {
        let mut scene = Scene::with_room_for(1);
        let (container, job) = {
            let job = scene.job("a");
            scene.in_use(job)
        };
        scene.send(Event::Answered { container, job });
        let next = scene.job("a");
        let (next, _) = scene.arrive(next);
        scene.send(Event::Drain);
        if give_up {
            let abort = Command::Abort { job: next, cause: AbortCause::Draining };
            assert_eq!(scene.send(Event::GiveUp), [abort]);
            assert_eq!(scene.done(container, job, JobEnd::Kept), [Command::Destroy { container }]);
        } else {
            assert_eq!(scene.done(container, job, JobEnd::Kept), [Command::Rewind { container }]);
            assert_eq!(scene.send(Event::Pristine { container }), [run(container, next, Found::Pristine)]);
        }
    }
}

// Concurrency

#[test]
fn counts_requests_in_flight_up_and_down() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.parallel_job("a", 2);
    let (container, first) = scene.in_use(job);
    let job = scene.parallel_job("a", 2);
    let (second, commands) = scene.arrive(job);
    assert_eq!(commands, [run(container, second, Found::InUse)]);
    let job = scene.parallel_job("a", 2);
    let (third, commands) = scene.arrive(job);
    assert_eq!(commands, [], "full");
    assert_eq!(scene.done(container, first, JobEnd::Kept), [run(container, third, Found::InUse), permit(1)]);
    assert_eq!(scene.done(container, second, JobEnd::Kept), [permit(1)], "not rewound under the third");
    assert_eq!(scene.done(container, third, JobEnd::Kept), [Command::Rewind { container }, permit(1)]);
}

#[test]
fn jobs_that_waited_for_the_initialisation_start_together() {
    let mut scene = Scene::with_room_for(1);
    let jobs: Vec<_> = (0..3).map(|_| scene.parallel_job("a", 3)).map(|job| (job.id, job)).collect();
    let ids: Vec<_> = jobs.iter().map(|(id, _)| *id).collect();
    for (_, job) in jobs {
        scene.arrive(job);
    }
    let container = ContainerId(1);
    let (start, found) = (Start::WarmingCold, Found::InUse);
    assert_eq!(
        scene.send(Event::Initialised { container }),
        [ids[1], ids[2]].map(|job| Command::Run { container, job, start, found })
    );
}

#[test]
fn a_failed_container_is_not_destroyed_under_its_other_requests() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.parallel_job("a", 2);
    let (container, first) = scene.in_use(job);
    let job = scene.parallel_job("a", 2);
    let (second, _) = scene.arrive(job);
    let job = scene.parallel_job("a", 2);
    let (third, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    let commands = scene.done(container, first, JobEnd::Failed);
    assert_eq!(
        commands,
        [Command::CreateFor { container: ContainerId(2), job: third, start: Start::Cold }, permit(1)],
        "it leaves the accounting, takes no more, and lives on"
    );
    assert_eq!(scene.done(container, second, JobEnd::Kept), [Command::Destroy { container }, permit(1)]);
}

#[test]
fn a_failed_initialisation_aborts_the_jobs_that_waited_for_it() {
    for end in [JobEnd::BeforeInit, JobEnd::Failed] {
        let mut scene = Scene::with_room_for(1);
        let job = scene.parallel_job("a", 3);
        let (leader, commands) = scene.arrive(job);
        let container = created(&commands);
        let waiting = [0, 1].map(|_| {
            let job = scene.parallel_job("a", 3);
            scene.arrive(job).0
        });
        let [first, second] =
            waiting.map(|job| Command::Abort { job, cause: AbortCause::InitFailed { leader } });
        assert_eq!(
            scene.done(container, leader, end),
            [first, second, Command::Destroy { container }, permit(3)]
        );
    }
}

// Refusal

#[test]
fn a_refused_job_takes_its_old_place_and_the_container_goes() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    let job = scene.job("a");
    let (refused, _) = scene.arrive(job);
    let job = scene.job("b");
    let (later, _) = scene.arrive(job);
    let commands = scene.done(container, refused, JobEnd::Returned);
    assert_eq!(commands[0], Command::Destroy { container });
    assert!(matches!(commands[1], Command::CreateFor { job, .. } if job == refused), "{commands:?}");
    assert_eq!(commands.len(), 2, "{later} still waits: {commands:?}");
}

#[test]
fn a_job_that_every_container_refuses_is_given_up() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.job("a");
    let (job, mut commands) = scene.arrive(job);
    for _ in 0..PoolConfig::default().returns_max {
        let container = created(&commands);
        commands = scene.done(container, job, JobEnd::Returned);
    }
    let container = created(&commands);
    let cause = AbortCause::Refused { times: PoolConfig::default().returns_max + 1 };
    assert_eq!(
        scene.done(container, job, JobEnd::Returned),
        [Command::Abort { job, cause }, Command::Destroy { container }, permit(1)]
    );
}

#[test]
fn a_container_that_refuses_before_it_is_initialised_gives_its_jobs_back() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.parallel_job("a", 2);
    let (leader, commands) = scene.arrive(job);
    let container = created(&commands);
    let job = scene.parallel_job("a", 2);
    scene.arrive(job);
    let commands = scene.done(container, leader, JobEnd::Returned);
    assert_eq!(commands[0], Command::Destroy { container });
    assert!(matches!(commands[1], Command::CreateFor { job, .. } if job == leader), "{commands:?}");
    assert_eq!(commands.len(), 2, "the second waits for the new container: {commands:?}");
}

// Death

#[test]
fn a_container_that_dies_idle_is_destroyed() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    assert_eq!(scene.send(Event::Died { container }), [Command::Destroy { container }]);
    assert_eq!(scene.send(Event::Died { container }), [], "once");
}

#[test]
fn a_container_that_dies_in_use_waits_for_its_jobs_to_end() {
    let mut scene = Scene::with_room_for(1);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    assert_eq!(scene.send(Event::Died { container }), []);
    assert_eq!(scene.pool.used_mb(), 0);
    assert_eq!(scene.done(container, job, JobEnd::Kept), [Command::Destroy { container }, permit(1)]);
}

// Eviction

#[test]
fn evicts_the_least_recently_used() {
    let mut scene = Scene::with_room_for(2);
    let older = scene.idle("a");
    scene.idle("b");
    let job = scene.job("c");
    let (job, commands) = scene.arrive(job);
    assert_eq!(
        commands,
        [
            Command::Destroy { container: older },
            Command::CreateFor { container: ContainerId(3), job, start: Start::Recreated },
        ]
    );
}

#[test]
fn evicts_several_for_a_large_one() {
    let mut scene = Scene::with_room_for(3);
    let evicted = [scene.idle("a"), scene.idle("b")];
    let kept = scene.idle("c");
    let job = scene.large_job("d", 256);
    let (_, commands) = scene.arrive(job);
    assert_eq!(commands[..2], evicted.map(|container| Command::Destroy { container }));
    assert_ne!(created(&commands), kept);
    assert_eq!(commands.len(), 3, "{commands:?}");
}

#[test]
fn evicts_none_if_all_idle_ones_would_not_suffice() {
    let mut scene = Scene::with_room_for(3);
    scene.idle("a");
    let job = scene.job("b");
    scene.in_use(job);
    let job = scene.large_job("c", 384);
    assert_eq!(scene.arrive(job).1, []);
}

#[test]
fn evicts_only_idle_containers() {
    let mut scene = Scene::with_room_for(2);
    let job = scene.job("a");
    scene.in_use(job);
    let (container, job) = {
        let job = scene.job("b");
        scene.in_use(job)
    };
    scene.done(container, job, JobEnd::Kept);
    let job = scene.job("c");
    assert_eq!(scene.arrive(job).1, [], "one in use, one being rewound");
    let commands = scene.send(Event::Pristine { container });
    assert_eq!(commands[0], Command::Destroy { container });
    created(&commands);
}

#[test]
fn a_container_under_destruction_no_longer_counts() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    let job = scene.job("b");
    scene.arrive(job);
    assert_eq!(scene.pool.used_mb(), 128);
    assert_eq!(scene.pool.gauges().removing, Gauge { count: 1, memory_mb: 128 });
    assert_eq!(scene.send(Event::Removed { container }), []);
}

#[test]
fn slow_destruction_stops_creation() {
    let mut scene = Scene::new(PoolConfig { removing_max: 2, ..config(1) });
    for _ in 0..2 {
        let (container, job) = {
            let job = scene.job("a");
            scene.in_use(job)
        };
        scene.done(container, job, JobEnd::Failed);
    }
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    let commands = scene.send(Event::Removed { container: ContainerId(1) });
    assert_eq!(commands, [Command::CreateFor { container: ContainerId(3), job, start: Start::Cold }]);
}

#[test]
fn containers_of_an_earlier_process_are_counted_on_from_and_delay_new_ones_when_many() {
    let mut scene = Scene::new(PoolConfig { removing_max: 2, ..config(1) });
    let leftovers = scene.pool.adopt(7, 2);
    assert_eq!(leftovers, [ContainerId(8), ContainerId(9)]);
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    assert_eq!(
        scene.send(Event::Removed { container: leftovers[1] }),
        [Command::CreateFor { container: ContainerId(10), job, start: Start::Cold }],
        "they hold no memory of ours"
    );
    scene.send(Event::Drain);
    scene.send(Event::Initialised { container: ContainerId(10) });
    scene.done(ContainerId(10), job, JobEnd::Kept);
    scene.send(Event::Removed { container: ContainerId(10) });
    assert!(!scene.pool.is_empty());
    scene.send(Event::Removed { container: leftovers[0] });
    assert!(scene.pool.is_empty());
}

#[test]
fn a_job_larger_than_all_memory_is_aborted() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.large_job("a", 256);
    let (job, commands) = scene.arrive(job);
    let cause = AbortCause::LargerThanBudget { memory_mb: 256, budget_mb: 128 };
    assert_eq!(commands, [Command::Abort { job, cause }, permit(1)]);
}

// Run buffer and permits

#[test]
fn buffers_in_order_and_nothing_overtakes_the_head() {
    let mut scene = Scene::with_room_for(2);
    let fits = scene.idle("a");
    let (container, job) = {
        let job = scene.job("b");
        scene.in_use(job)
    };
    let large = scene.large_job("c", 256);
    let (large, commands) = scene.arrive(large);
    assert_eq!(commands, []);
    let job_of_idle = scene.job("a");
    let (behind, commands) = scene.arrive(job_of_idle);
    assert_eq!(commands, [], "container {fits} is free, but the head comes first");
    assert_eq!(scene.pool.buffered(), [large, behind]);
    let commands = scene.done(container, job, JobEnd::Failed);
    assert_eq!(
        commands,
        [
            Command::Destroy { container },
            Command::Destroy { container: fits },
            Command::CreateFor { container: ContainerId(3), job: large, start: Start::Recreated },
        ]
    );
    assert_eq!(scene.pool.buffered(), [behind]);
    assert_eq!(scene.pool.counters().rescheduled, 2);
}

#[test]
fn serves_the_buffer_before_the_feed() {
    let mut scene = Scene::with_room_for(1);
    let (container, first) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    for _ in 0..2 {
        let job = scene.job("b");
        assert_eq!(scene.arrive(job).1, [], "no permit for a buffered job");
    }
    let commands = scene.done(container, first, JobEnd::Failed);
    let container = created(&commands);
    assert!(!commands.iter().any(|command| matches!(command, Command::Permit { .. })), "{commands:?}");
    let second = JobId(2);
    let commands = scene.done(container, second, JobEnd::Failed);
    assert!(commands.contains(&permit(2)), "the buffer is empty, both permits go back: {commands:?}");
}

#[test]
fn a_buffered_job_is_processed_once() {
    let mut scene = Scene::with_room_for(1);
    let (container, job) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    let next = scene.job("b");
    scene.arrive(next);
    let commands = scene.done(container, job, JobEnd::Failed);
    created(&commands);
    assert_eq!(scene.send(Event::Removed { container }), []);
    assert_eq!(scene.send(Event::Tick), []);
}

#[test]
fn serves_the_buffer_when_a_container_is_removed() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    scene.send(Event::Died { container });
    let job = scene.job("b");
    created(&scene.arrive(job).1);
}

#[test]
fn events_that_do_not_fit_change_nothing() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    let job = JobId(1);
    for event in [
        Event::Pristine { container },
        Event::Initialised { container },
        Event::Removed { container },
        Event::JobDone { container, job, end: JobEnd::Failed },
        Event::Suspended { container, ok: false },
        Event::StemReady { container },
        Event::StemFailed { container: ContainerId(77) },
        Event::Quarantined { container: ContainerId(77) },
    ] {
        assert_eq!(scene.send(event), []);
    }
    assert_eq!(scene.pool.counters().strays, 8);
}

// Rest

#[test]
fn suspends_after_the_grace_and_destroys_after_the_idle_time() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    assert_eq!(scene.ticks_after(9_000), []);
    assert_eq!(scene.ticks_after(1_000), [Command::Suspend { container }]);
    scene.send(Event::Suspended { container, ok: true });
    assert_eq!(scene.ticks_after(599_000), []);
    assert_eq!(scene.ticks_after(1_000), [Command::Destroy { container }]);
}

#[test]
fn a_busy_container_is_not_suspended() {
    let mut scene = Scene::with_room_for(1);
    let job = scene.job("a");
    scene.in_use(job);
    assert_eq!(scene.ticks_after(700_000), []);
}

#[test]
fn without_suspension_idle_containers_still_go() {
    let mut scene = Scene::new(PoolConfig { pause_grace_ms: None, ..config(1) });
    let container = scene.idle("a");
    assert_eq!(scene.ticks_after(599_000), []);
    assert_eq!(scene.ticks_after(1_000), [Command::Destroy { container }]);
}

#[test]
fn runs_in_a_suspended_container() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    scene.ticks_after(10_000);
    scene.send(Event::Suspended { container, ok: true });
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [run(container, job, Found::Suspended)]);
    // Resume fails: the job goes back, the container goes.
    let commands = scene.done(container, job, JobEnd::Returned);
    assert_eq!(commands[0], Command::Destroy { container });
    created(&commands);
}

#[test]
fn waits_until_a_suspension_under_way_has_ended() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    scene.ticks_after(10_000);
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, []);
    assert_eq!(scene.send(Event::Suspended { container, ok: true }), [run(container, job, Found::Suspended)]);
}

#[test]
fn a_failed_suspension_destroys() {
    let mut scene = Scene::with_room_for(1);
    let container = scene.idle("a");
    scene.ticks_after(10_000);
    assert_eq!(scene.send(Event::Suspended { container, ok: false }), [Command::Destroy { container }]);
}

// Stem cells

#[test]
fn creates_stem_cells_at_start() {
    let mut scene = Scene::new(with_stems(4, vec![stems(2, None)]));
    assert_eq!(stems_created(&scene.send(Event::Tick)).len(), 2);
    assert_eq!(scene.send(Event::Tick), []);
}

#[test]
fn creates_no_stem_cell_beyond_the_budget() {
    let mut scene = Scene::new(with_stems(2, vec![stems(3, None)]));
    assert_eq!(stems_created(&scene.send(Event::Tick)).len(), 2);
}

#[test]
fn takes_a_stem_cell_and_replaces_it() {
    for reactive in [None, Some(REACTIVE)] {
        let mut scene = Scene::new(with_stems(4, vec![stems(2, reactive)]));
        let made = stems_created(&scene.send(Event::Tick));
        for &container in &made {
            scene.send(Event::StemReady { container });
        }
        let job = scene.job("a");
        let (job, commands) = scene.arrive(job);
        assert_eq!(
            commands,
            [
                Command::Specialise { container: made[0], job, start: Start::Prewarmed },
                Command::CreateStem { container: ContainerId(3), stock: 0 },
            ]
        );
    }
}

#[test]
fn takes_only_a_stem_cell_of_the_same_kind_and_memory() {
    let mut scene = Scene::new(with_stems(6, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    scene.send(Event::StemReady { container: stem });
    let other_kind = Job { kind: "python".into(), ..scene.job("a") };
    assert_ne!(created(&scene.arrive(other_kind).1), stem);
    let other_memory = scene.large_job("b", 256);
    assert_ne!(created(&scene.arrive(other_memory).1), stem);
}

#[test]
fn a_stem_cell_being_created_is_not_taken() {
    let mut scene = Scene::new(with_stems(2, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    let job = scene.job("a");
    assert_ne!(created(&scene.arrive(job).1), stem);
}

#[test]
fn stem_cells_are_not_evicted() {
    let mut scene = Scene::new(with_stems(2, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    scene.send(Event::StemReady { container: stem });
    let job = Job { kind: "go".into(), ..scene.job("a") };
    scene.in_use(job);
    let job = Job { kind: "go".into(), ..scene.job("b") };
    assert_eq!(scene.arrive(job).1, []);
}

#[test]
fn stem_cells_that_alone_block_the_head_for_good_give_way() {
    let mut scene = Scene::new(with_stems(2, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    let job = scene.large_job("a", 256);
    let (_, commands) = scene.arrive(job);
    assert_eq!(commands[0], Command::Destroy { container: stem });
    created(&commands);
}

#[test]
fn a_dead_or_unhealthy_stem_cell_is_replaced_after_a_wait_that_grows() {
    let mut scene = Scene::new(with_stems(4, vec![stems(1, None)]));
    let mut stem = stems_created(&scene.send(Event::Tick))[0];
    for wait_ms in [1_000, 2_000, 4_000] {
        scene.send(Event::StemReady { container: stem });
        assert_eq!(scene.send(Event::Died { container: stem }), [Command::Destroy { container: stem }]);
        assert_eq!(scene.ticks_after(wait_ms - 500), []);
        stem = stems_created(&scene.ticks_after(500))[0];
    }
    assert_eq!(scene.send(Event::StemFailed { container: stem }), []);
    assert_eq!(stems_created(&scene.ticks_after(8_000)).len(), 1);
}

#[test]
fn backfills_when_memory_becomes_free_and_no_job_waits() {
    let mut scene = Scene::new(with_stems(1, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    scene.send(Event::StemReady { container: stem });
    let job = scene.job("a");
    let (job, commands) = scene.arrive(job);
    assert_eq!(commands, [Command::Specialise { container: stem, job, start: Start::Prewarmed }]);
    scene.send(Event::Initialised { container: stem });
    let commands = scene.done(stem, job, JobEnd::Failed);
    assert_eq!(stems_created(&commands).len(), 1);
}

#[test]
fn adjusts_stem_cells_to_cold_starts() {
    let reactive = Reactive { ttl_ms: 10_000_000, ..REACTIVE };
    let mut scene = Scene::new(with_stems(20, vec![stems(1, Some(reactive))]));
    // Never ready, so that every start is cold.
    assert_eq!(stems_created(&scene.send(Event::Tick)).len(), 1);
    for action in ["a", "b", "c", "d", "e"] {
        let job = scene.job(action);
        created(&scene.arrive(job).1);
    }
    assert_eq!(scene.ticks_after(500_000), []);
    let commands = scene.ticks_after(100_000);
    assert_eq!(stems_created(&commands).len(), 1, "5 cold starts / threshold 2 * increment 1 = 2");
    assert_eq!(scene.ticks_after(620_000), [], "the count begins anew, and none is removed before its time");
    assert_eq!(scene.pool.stem_levels().next().unwrap().cold_starts_total, 5);
}

#[test]
fn adjustment_stops_at_the_maximum() {
    let mut scene = Scene::new(with_stems(30, vec![stems(1, Some(REACTIVE))]));
    scene.send(Event::Tick);
    for action in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
        let job = scene.job(action);
        created(&scene.arrive(job).1);
    }
    assert_eq!(stems_created(&scene.ticks_after(600_000)).len(), 2, "3 at most, 1 being created");
}

#[test]
fn removes_expired_stem_cells_oldest_first_up_to_the_limit() {
    let reactive = Reactive { min_count: 0, ..REACTIVE };
    let mut config = with_stems(4, vec![stems(3, Some(reactive))]);
    config.stem_check.expired_max = 2;
    let mut scene = Scene::new(config);
    let made = stems_created(&scene.send(Event::Tick));
    for &container in made.iter().rev() {
        scene.send(Event::StemReady { container });
    }
    let commands = scene.ticks_after(600_000);
    assert_eq!(commands, [made[2], made[1]].map(|container| Command::Destroy { container }));
    assert_eq!(scene.ticks_after(620_000), [Command::Destroy { container: made[0] }]);
    assert_eq!(scene.pool.stem_levels().next().unwrap().expired_total, 3);
}

#[test]
fn expires_regardless_of_the_minimum_and_fills_up_again() {
    let mut scene = Scene::new(with_stems(4, vec![stems(1, Some(REACTIVE))]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    scene.send(Event::StemReady { container: stem });
    let commands = scene.ticks_after(600_000);
    assert_eq!(commands[0], Command::Destroy { container: stem });
    assert_eq!(stems_created(&commands).len(), 1);
}

#[test]
fn takes_the_stem_cell_that_expires_first() {
    let mut scene = Scene::new(with_stems(4, vec![stems(2, Some(REACTIVE))]));
    let made = stems_created(&scene.send(Event::Tick));
    scene.send(Event::StemReady { container: made[1] });
    scene.send(Event::StemReady { container: made[0] });
    let job = scene.job("a");
    let (_, commands) = scene.arrive(job);
    assert!(
        matches!(commands[0], Command::Specialise { container, .. } if container == made[1]),
        "{commands:?}"
    );
}

#[test]
fn without_reactive_entries_nothing_is_adjusted() {
    let mut scene = Scene::new(with_stems(4, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    scene.send(Event::StemReady { container: stem });
    assert_eq!(scene.ticks_after(100_000_000), []);
}

// The end

#[test]
fn draining_refuses_new_jobs_and_finishes_the_others() {
    let mut scene = Scene::with_room_for(1);
    let (container, running) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    let job = scene.job("b");
    let (buffered, _) = scene.arrive(job);
    assert_eq!(scene.send(Event::Drain), []);
    let job = scene.job("c");
    let (late, commands) = scene.arrive(job);
    assert_eq!(commands, [Command::Abort { job: late, cause: AbortCause::Draining }]);
    let commands = scene.done(container, running, JobEnd::Failed);
    assert_eq!(commands[0], Command::Destroy { container });
    let second = created(&commands);
    scene.send(Event::Initialised { container: second });
    assert_eq!(
        scene.done(second, buffered, JobEnd::Kept),
        [Command::Destroy { container: second }],
        "no rewind that nobody needs, no permit"
    );
    scene.send(Event::Removed { container });
    scene.send(Event::Removed { container: second });
    assert!(scene.pool.is_empty());
}

#[test]
fn draining_destroys_what_rests() {
    let mut scene = Scene::new(with_stems(2, vec![stems(1, None)]));
    let stem = stems_created(&scene.send(Event::Tick))[0];
    let idle = scene.idle("a");
    assert_eq!(scene.send(Event::Drain), [stem, idle].map(|container| Command::Destroy { container }));
}

#[test]
fn giving_up_aborts_what_no_container_has() {
    let mut scene = Scene::with_room_for(1);
    let (container, running) = {
        let job = scene.job("a");
        scene.in_use(job)
    };
    let job = scene.job("b");
    let (buffered, _) = scene.arrive(job);
    scene.send(Event::Drain);
    let cause = AbortCause::Draining;
    assert_eq!(scene.send(Event::GiveUp), [Command::Abort { job: buffered, cause }]);
    assert_eq!(
        scene.done(container, running, JobEnd::Returned),
        [Command::Abort { job: running, cause }, Command::Destroy { container }],
        "what comes back now is aborted too"
    );
}
