//! The keeper of one container: carries out the dispatcher's orders, in order, and reports.
//!
//! ```text
//!   begin ─► created ─► (stem cell) ─ Specialise ─► init ─► checkpoint ─► in use ◄──┐
//!                                                                     │             │ Run
//!                                                     JobDone … Rewind ▼            │
//!                                                                  at rest ─────────┘
//!                                                             Suspend ⇅ Run         Destroy: from anywhere
//! ```
//!
//! Requests in flight are futures of this same task, so a container costs one task however many
//! requests are in it, and nothing about it needs a lock.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt as _, StreamExt as _};
use openwhisk_compat::entity::ActivationResponse;
use openwhisk_compat::manifest::RuntimesManifest;
use openwhisk_compat::name::container_name;
use tokio::sync::mpsc;

use super::{Birth, Input, Keepers, Order, Reports};
use crate::activation::Activation;
use crate::activation::execute::{Executor, InitFailed, InitTimes};
use crate::container::{
    CheckpointRefused, ContainerRef, ContainerSpec, Containers, CreateError, Created, InUse, Initialised,
    Lease, LeaseRefused, Pristine, PullPolicy, RewindRefused, SingleUse, Suspended, Verdict, Waiver,
};
use crate::errors::chain;
use crate::metrics::{Metrics, RewindSample};
use crate::pool::{ContainerId, Event, Found, Isolation, JobEnd, JobId, StemCells};

/// What all keepers share.
pub struct Shared {
    /// Makes containers.
    pub containers: Containers,
    /// Runs activations in them.
    pub executor: Executor,
    /// Where reports go.
    pub reports: Reports,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What happens between two uses.
    pub isolation: Isolation,
    /// Which image a container is made of.
    pub images: Images,
    /// As the pool has them.
    pub stem_cells: Vec<StemCells>,
    /// The health ping of stem cells (contract 6.4), if it is on.
    pub stem_check: Option<StemPing>,
}

/// `container-proxy.action-health-check`.
#[derive(Debug, Clone, Copy)]
pub struct StemPing {
    /// Time between two pings.
    pub period: Duration,
    /// So many failures in a row make the stem cell count as dead.
    pub fails_max: u32,
}

/// Which image a container is made of, and its name (contract 6.5).
#[derive(Debug, Clone)]
pub struct Images {
    /// Kinds and their images.
    pub manifest: Arc<RuntimesManifest>,
    /// `container-factory.runtimes-registry.url`.
    pub runtimes_registry: String,
    /// `container-factory.user-images-registry.url`.
    pub user_registry: String,
    /// `runtimes.local-image-prefix`, if `bypass-pull-for-local-images`.
    pub local_prefix: Option<String>,
    /// What the names of all our containers begin with.
    pub name_prefix: String,
}

impl Images {
    /// The container of a stem cell. `None` if the manifest has no such kind (any more).
    fn stem(&self, id: ContainerId, cells: &StemCells) -> Option<ContainerSpec> {
        let runtime = self.manifest.runtime(&cells.kind)?;
        Some(ContainerSpec {
            id,
            name: container_name(&self.name_prefix, id.0, "prewarm", &cells.kind),
            image: runtime.image.reference(&self.runtimes_registry),
            pull: PullPolicy::Never,
            memory_mb: cells.memory_mb,
        })
    }

    /// The container for an action. `None` if the manifest has no such kind.
    fn for_action(&self, id: ContainerId, activation: &Activation) -> Option<ContainerSpec> {
        let action = &activation.action;
        let (image, pull) = match &action.exec.image {
            Some(image) if self.manifest.skips_pull(image, self.local_prefix.as_deref()) => {
                (image.reference(&self.user_registry), PullPolicy::Never)
            }
            Some(image) => {
                (image.reference(&self.user_registry), PullPolicy::for_user_image(image.is_latest()))
            }
            None => {
                let runtime = self.manifest.runtime(&action.exec.kind)?;
                (runtime.image.reference(&self.runtimes_registry), PullPolicy::Never)
            }
        };
        let namespace = &activation.message.user.namespace.name;
        Some(ContainerSpec {
            id,
            name: container_name(&self.name_prefix, id.0, namespace, &action.name),
            image,
            pull,
            memory_mb: u64::from(action.limits.memory_mb),
        })
    }
}

/// Makes keepers of real containers.
#[derive(Clone)]
pub struct ContainerKeepers(pub Arc<Shared>);

impl Keepers for ContainerKeepers {
    fn begin(&self, container: ContainerId, birth: Birth) -> mpsc::UnboundedSender<Order> {
        // Bounded by the jobs the pool sends to one container, plus one of each other order.
        let (sender, orders) = mpsc::unbounded_channel();
        let keeper = Keeper {
            shared: Arc::clone(&self.0),
            id: container,
            orders,
            state: State::Gone,
            reference: None,
            running: FuturesUnordered::new(),
            dead: false,
            snapshot_bytes: 0,
            stem_pings_failed: 0,
        };
        tokio::spawn(keeper.keep(birth));
        sender
    }
}

/// What the container is.
#[derive(Debug)]
enum State {
    Stem(Created),
    AtRest(Pristine),
    Suspended(Suspended),
    InUse(InUse),
    /// Never there, or given up; what there is of it is destroyed by its reference.
    Gone,
}

/// A request that has come to its end.
struct Ended {
    job: JobId,
    end: JobEnd,
}

struct Keeper {
    shared: Arc<Shared>,
    id: ContainerId,
    orders: mpsc::UnboundedReceiver<Order>,
    state: State,
    reference: Option<ContainerRef>,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    /// Its death was reported.
    dead: bool,
    /// Held by its snapshot.
    snapshot_bytes: u64,
    stem_pings_failed: u32,
}

impl Keeper {
    async fn keep(mut self, birth: Birth) {
        match birth {
            Birth::Stem { stock } => self.create_stem(stock).await,
            Birth::For { job, activation } => self.create_for(job, activation).await,
        }
        loop {
            let resting = !self.dead && !matches!(self.state, State::InUse(_) | State::Gone);
            let reference = self.reference.clone();
            let died = async move {
                match reference {
                    Some(reference) if resting => reference.died().await,
                    _ => std::future::pending().await,
                }
            };
            let ping = match (&self.state, self.shared.stem_check) {
                (State::Stem(_), Some(ping)) => tokio::time::sleep(ping.period).left_future(),
                _ => std::future::pending().right_future(),
            };
            tokio::select! {
                order = self.orders.recv() => match order {
                    Some(Order::Destroy) | None => break,
                    Some(order) => self.obey(order).await,
                },
                Some(ended) = self.running.next() => self.ended(&ended),
                () = died => {
                    self.dead = true;
                    tracing::info!(container = %self.id, "container died while nobody used it");
                    self.report(Event::Died { container: self.id });
                }
                () = ping => self.ping_stem().await,
            }
        }
        self.destroy().await;
    }

    async fn obey(&mut self, order: Order) {
        match order {
            Order::Specialise { job, activation } => match std::mem::replace(&mut self.state, State::Gone) {
                State::Stem(container) => self.initialise(job, activation, container).await,
                state => {
                    self.state = state;
                    self.returned(job);
                }
            },
            Order::Run { job, activation, found } => self.run(job, activation, found).await,
            Order::Rewind => self.rewind().await,
            Order::Suspend => self.suspend().await,
            Order::Destroy => {}
        }
    }

    async fn create_stem(&mut self, stock: usize) {
        let spec =
            self.shared.stem_cells.get(stock).and_then(|cells| self.shared.images.stem(self.id, cells));
        let Some(spec) = spec else {
            tracing::error!(stock, "no image for this stem cell");
            self.report(Event::StemFailed { container: self.id });
            return;
        };
        match self.shared.containers.create(&spec).await {
            Ok(container) => {
                self.reference = Some(container.reference());
                self.state = State::Stem(container);
                self.report(Event::StemReady { container: self.id });
            }
            Err(error) => {
                tracing::error!(name = spec.name, error = %chain(&error), "stem cell could not be created");
                self.report(Event::StemFailed { container: self.id });
            }
        }
    }

    async fn create_for(&mut self, job: JobId, activation: Arc<Activation>) {
        let created = match self.shared.images.for_action(self.id, &activation) {
            Some(spec) => self.shared.containers.create(&spec).await,
            None => Err(CreateError::Provision {
                name: format!("for kind {}", activation.action.exec.kind),
                source: crate::container::EngineError::Unusable(
                    "the manifest does not have the kind".to_owned(),
                ),
            }),
        };
        match created {
            Ok(container) => {
                self.reference = Some(container.reference());
                self.initialise(job, activation, container).await;
            }
            Err(error) => {
                let response = self.shared.executor.not_created(&activation, &error);
                self.before_init(job, response);
            }
        }
    }

    /// `/init`, the checkpoint, and the first request.
    async fn initialise(&mut self, job: JobId, activation: Arc<Activation>, container: Created) {
        let shared = Arc::clone(&self.shared);
        let init = AssertUnwindSafe(shared.executor.init(&activation, container)).catch_unwind().await;
        let (container, times) = match init {
            Ok(Ok(initialised)) => initialised,
            Ok(Err(InitFailed::Answered(response))) => return self.before_init(job, *response),
            Ok(Err(InitFailed::Returned)) => return self.returned(job),
            Err(_) => {
                let response = shared.executor.broke_off(&activation);
                return self.before_init(job, response);
            }
        };
        let (pristine, verdict) = match self.protect(container).await {
            Ok(protected) => protected,
            Err(verdict) => {
                // The container is dying, and no request has been in it.
                self.quarantined(&verdict);
                return self.returned(job);
            }
        };
        let in_use = pristine.put_in_use(activation.action.limits.concurrency);
        let lease = in_use.lease();
        self.state = State::InUse(in_use);
        self.report(Event::Initialised { container: self.id });
        if let Some(verdict) = verdict {
            self.quarantined(&verdict);
            self.report(Event::Quarantined { container: self.id });
        }
        match lease {
            Ok(lease) => self.start(job, activation, lease, false, Some(times)),
            Err(error) => self.refused(job, error),
        }
    }

    /// Makes a pristine container of an initialised one, by the isolation that was chosen. With a
    /// verdict: it cannot be rewound, so it serves this one request.
    async fn protect(&mut self, container: Initialised) -> Result<(Pristine, Option<Verdict>), Verdict> {
        let isolation = self.shared.isolation;
        if let Some(waiver) = Waiver::from_setting(isolation) {
            return Ok((container.unprotected(waiver), None));
        }
        if isolation == Isolation::SingleUse {
            return Ok((container.never_used(SingleUse), None));
        }
        match container.checkpoint().await {
            Ok((pristine, report)) => {
                self.snapshot_bytes = report.memory.snapshot_bytes;
                self.shared.metrics.checkpointed(report.total, report.memory.snapshot_bytes);
                Ok((pristine, None))
            }
            Err(CheckpointRefused::Unharmed(container, verdict)) => {
                Ok((container.never_used(SingleUse), Some(verdict)))
            }
            Err(CheckpointRefused::Broken(quarantined)) => {
                let verdict = quarantined.into_verdict();
                Err(verdict)
            }
        }
    }

    async fn run(&mut self, job: JobId, activation: Arc<Activation>, found: Found) {
        let concurrency = activation.action.limits.concurrency;
        let in_use = match std::mem::replace(&mut self.state, State::Gone) {
            State::AtRest(container) => container.put_in_use(concurrency),
            State::Suspended(container) => match container.resume().await {
                Ok(container) => container.put_in_use(concurrency),
                Err((_discarded, error)) => {
                    tracing::error!(container = %self.id, error = %chain(&error), "resume failed");
                    self.shared.metrics.container_health_failed("warm");
                    return self.returned(job);
                }
            },
            State::InUse(container) => container,
            state @ (State::Stem(_) | State::Gone) => {
                self.state = state;
                return self.returned(job);
            }
        };
        let lease = in_use.lease();
        self.state = State::InUse(in_use);
        match lease {
            Ok(lease) => self.start(job, activation, lease, found != Found::InUse, None),
            // The last request in flight ended while this one was on its way: without isolation that
            // is how containers are used; otherwise the container is put back first.
            Err(LeaseRefused::Spent) => {
                if !self.put_back().await {
                    return self.returned(job);
                }
                let State::AtRest(container) = std::mem::replace(&mut self.state, State::Gone) else {
                    return self.returned(job);
                };
                let in_use = container.put_in_use(concurrency);
                let lease = in_use.lease();
                self.state = State::InUse(in_use);
                match lease {
                    Ok(lease) => self.start(job, activation, lease, true, None),
                    Err(error) => self.refused(job, error),
                }
            }
            Err(error) => self.refused(job, error),
        }
    }

    /// Sends the request; its end arrives by [`Keeper::ended`].
    fn start(
        &mut self,
        job: JobId,
        activation: Arc<Activation>,
        lease: Lease,
        found_at_rest: bool,
        init: Option<InitTimes>,
    ) {
        let shared = Arc::clone(&self.shared);
        let container = self.id;
        let request = async move {
            let answered = || shared.reports.event(Event::Answered { container, job });
            let run = shared.executor.run(&activation, lease, found_at_rest, init, answered);
            let end = match AssertUnwindSafe(run).catch_unwind().await {
                Ok(end) => end,
                Err(_) => {
                    shared.executor.broke_off(&activation);
                    JobEnd::Failed
                }
            };
            Ended { job, end }
        };
        self.running.push(request.boxed());
    }

    fn ended(&self, ended: &Ended) {
        self.done(ended.job, ended.end, None);
    }

    async fn rewind(&mut self) {
        if self.put_back().await {
            self.report(Event::Pristine { container: self.id });
        } else {
            self.report(Event::Quarantined { container: self.id });
        }
    }

    /// From in use to at rest, if that can be.
    async fn put_back(&mut self) -> bool {
        let in_use = match std::mem::replace(&mut self.state, State::Gone) {
            State::InUse(in_use) => in_use,
            state => {
                let at_rest = matches!(state, State::AtRest(_));
                self.state = state;
                return at_rest;
            }
        };
        let ordered = Instant::now();
        let outcome = match Waiver::from_setting(self.shared.isolation) {
            Some(waiver) => in_use.reuse_unprotected(waiver),
            None => in_use.rewind().await.map(|(pristine, report)| {
                self.count_rewind(ordered.elapsed(), &report);
                pristine
            }),
        };
        match outcome {
            Ok(pristine) => {
                self.state = State::AtRest(pristine);
                true
            }
            Err(RewindRefused::InFlight(in_use)) => {
                tracing::error!(container = %self.id, "a rewind was ordered while requests are in flight");
                self.state = State::InUse(in_use);
                false
            }
            Err(RewindRefused::Quarantined(quarantined)) => {
                self.quarantined(quarantined.verdict());
                false
            }
        }
    }

    async fn suspend(&mut self) {
        let ok = match std::mem::replace(&mut self.state, State::Gone) {
            State::AtRest(container) => match container.suspend().await {
                Ok(suspended) => {
                    self.state = State::Suspended(suspended);
                    true
                }
                Err((_discarded, error)) => {
                    tracing::error!(container = %self.id, error = %chain(&error), "suspend failed");
                    false
                }
            },
            // Without isolation the pool counts a container as idle whose last request has ended.
            State::InUse(in_use) => {
                self.state = State::InUse(in_use);
                if self.put_back().await {
                    return Box::pin(self.suspend()).await;
                }
                false
            }
            state => {
                self.state = state;
                false
            }
        };
        self.report(Event::Suspended { container: self.id, ok });
    }

    async fn ping_stem(&mut self) {
        let (State::Stem(container), Some(ping)) = (&self.state, self.shared.stem_check) else { return };
        if container.is_listening(ping.period).await {
            self.stem_pings_failed = 0;
            return;
        }
        self.stem_pings_failed += 1;
        if self.stem_pings_failed >= ping.fails_max && !self.dead {
            self.dead = true;
            self.shared.metrics.container_health_failed("prewarm");
            self.report(Event::Died { container: self.id });
        }
    }

    async fn destroy(mut self) {
        if let Some(reference) = &self.reference
            && let Err(error) = reference.destroy().await
        {
            tracing::error!(
                container = %self.id,
                name = reference.handle().name,
                error = %chain(&error),
                "container could not be removed, the next sweep will"
            );
        }
        // Their container is gone, so requests still in flight end now.
        while let Some(ended) = self.running.next().await {
            self.ended(&ended);
        }
        self.orders.close();
        while let Some(order) = self.orders.recv().await {
            if let Order::Run { job, .. } | Order::Specialise { job, .. } = order {
                self.returned(job);
            }
        }
        if self.snapshot_bytes > 0 {
            self.shared.metrics.snapshot_dropped(self.snapshot_bytes);
        }
        self.report(Event::Removed { container: self.id });
    }

    fn count_rewind(&self, total: Duration, report: &crate::container::RewindReport) {
        let memory = &report.memory;
        let phases: Vec<(&'static str, Duration)> =
            memory.phases.iter().map(|(phase, took)| (phase.name(), *took)).collect();
        self.shared.metrics.rewound(&RewindSample {
            total,
            phases: &phases,
            pages_scanned: memory.pages_scanned,
            pages_copied: memory.pages_copied,
            pages_dropped: memory.pages_dropped,
            pages_hot: memory.pages_hot,
            fds_closed: memory.fds_closed,
            threads_removed: memory.threads_removed,
            strangers_killed: memory.strangers_killed,
            files_undone: report.files.undone(),
        });
        tracing::debug!(
            container = %self.id,
            total_us = u64::try_from(total.as_micros()).unwrap_or(u64::MAX),
            pages = memory.pages_copied,
            files = report.files.undone(),
            "rewound"
        );
    }

    fn quarantined(&self, verdict: &Verdict) {
        self.shared.metrics.quarantined(verdict.reason.name());
        tracing::warn!(
            container = %self.id,
            reason = verdict.reason.name(),
            "container cannot be proven pristine: {}",
            chain(verdict)
        );
    }

    fn refused(&self, job: JobId, error: LeaseRefused) {
        tracing::debug!(container = %self.id, %error, "no lease");
        self.returned(job);
    }

    fn returned(&self, job: JobId) {
        self.done(job, JobEnd::Returned, None);
    }

    fn before_init(&self, job: JobId, response: ActivationResponse) {
        self.done(job, JobEnd::BeforeInit, Some(Box::new(response)));
    }

    fn done(&self, job: JobId, end: JobEnd, response: Option<Box<ActivationResponse>>) {
        self.shared.reports.tell(Input::Done { container: self.id, job, end, response });
    }

    fn report(&self, event: Event<super::ActionKey>) {
        self.shared.reports.event(event);
    }
}
