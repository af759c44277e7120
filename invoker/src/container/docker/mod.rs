//! The Docker Engine as backend, through its API (contract 6.5). 20.10 and newer.
//!
//! What upstream asks the `docker` client for, we ask the engine for; the container that results is the same.

mod arguments;
mod body;
mod credentials;
mod engine;
mod pull;
mod runc;

pub use arguments::ArgumentError;
pub use engine::{DEFAULT_HOST, DockerTimeouts};

use super::backend::{ContainerBackend, Handle, Leftover, StartReport};
use super::liveness::Liveness;
use super::logs::log_path;
use super::memory::OomCounter;
use super::spec::{ContainerSpec, CreateError, EngineError, PullPolicy};
use async_trait::async_trait;
use bollard::Docker;
use bollard::models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary};
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptions, RemoveContainerOptions,
    StartContainerOptions,
};
use engine::{once, persistently};
use nix::unistd::Pid;
use openwhisk_compat::name::{is_own_container, own_container_number};
use pull::Pulls;
use runc::Runc;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// Where runtimes listen.
const RUNTIME_PORT: u16 = 8080;

/// Exit codes of `docker run`: 127 is what it makes of these words of the engine.
const COMMAND_NOT_FOUND: [&str; 3] =
    ["executable file not found", "no such file or directory", "system cannot find the file specified"];

/// How the Docker backend is set up.
#[derive(Debug, Clone, PartialEq)]
pub struct DockerConfig {
    /// `unix:///path` or `tcp://host:port`.
    pub host: String,
    /// What the names of all containers of this invoker begin with, as `openwhisk_compat::name` makes it. The sweep
    /// removes what begins with it, `_`, digits and `_`, and nothing else.
    pub name_prefix: String,
    /// Time-outs.
    pub timeouts: DockerTimeouts,
    /// Most containers that are being started at a time.
    pub parallel_runs: usize,
    /// The network that containers are in.
    pub network: String,
    /// Name servers; empty: the engine's.
    pub dns_servers: Vec<String>,
    /// Search domains.
    pub dns_search: Vec<String>,
    /// Resolver options.
    pub dns_options: Vec<String>,
    /// Environment, `KEY=VALUE`, or `KEY` to take the value from our own. `__OW_API_HOST` belongs here.
    pub env: Vec<String>,
    /// Further flags of `docker run`, without the dashes.
    pub extra_args: BTreeMap<String, Vec<String>>,
    /// Whether to suspend with `runc`, if there is one.
    pub use_runc: bool,
    /// Whether the log store reads the engine's json-file logs.
    pub json_file_logs: bool,
    /// Memory of all containers together in MB; CPU shares are parts of it.
    pub user_memory_mb: u64,
    /// Processors of all containers together; `None`: no limit.
    pub user_cpus: Option<f64>,
}

impl Default for DockerConfig {
    /// Upstream's defaults.
    fn default() -> Self {
        Self {
            host: DEFAULT_HOST.to_owned(),
            name_prefix: "wsk0".to_owned(),
            timeouts: DockerTimeouts::default(),
            parallel_runs: 10,
            network: "bridge".to_owned(),
            dns_servers: Vec::new(),
            dns_search: Vec::new(),
            dns_options: Vec::new(),
            env: Vec::new(),
            extra_args: BTreeMap::new(),
            use_runc: true,
            json_file_logs: true,
            user_memory_mb: 1024,
            user_cpus: None,
        }
    }
}

/// Why the backend cannot start.
#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    /// The configuration has something that cannot be honoured.
    #[error("configuration of containers")]
    Argument(#[from] ArgumentError),
    /// The engine is out of reach.
    #[error("docker engine at {host}")]
    Engine {
        /// Where it was looked for.
        host: String,
        /// Why.
        #[source]
        source: EngineError,
    },
}

/// The Docker Engine.
pub struct DockerBackend {
    config: DockerConfig,
    docker: Docker,
    description: String,
    template: ContainerCreateBody,
    runs: Semaphore,
    pulls: Pulls,
    runc: Option<Runc>,
    /// Set when `runc` turned out not to know the engine's containers; never cleared.
    runc_failed: AtomicBool,
}

impl fmt::Debug for DockerBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.description)
    }
}

impl DockerBackend {
    /// Checks the configuration and connects.
    ///
    /// # Errors
    /// See [`DockerError`].
    pub async fn connect(config: DockerConfig) -> Result<Self, DockerError> {
        let template = body::template(&config)?;
        let (docker, mut description) = engine::connect(&config.host, config.timeouts.version)
            .await
            .map_err(|source| DockerError::Engine { host: config.host.clone(), source })?;
        let runc = match config.use_runc {
            false => None,
            true => match Runc::find(config.timeouts.version).await {
                Ok(runc) => {
                    description.push_str(&format!(", {}", runc.version()));
                    Some(runc)
                }
                Err(error) => {
                    tracing::warn!(error = %crate::errors::chain(&error),
                        "use-runc is set, but there is no usable runc: suspending through the engine");
                    None
                }
            },
        };
        Ok(Self {
            runs: Semaphore::new(config.parallel_runs.clamp(1, Semaphore::MAX_PERMITS)),
            pulls: Pulls::new(docker.clone(), config.timeouts.pull),
            config,
            docker,
            description,
            template,
            runc,
            runc_failed: AtomicBool::new(false),
        })
    }

    /// `docker pull`, by the image's policy. `Some`: it failed, and running may be tried all the same.
    async fn pull_first(&self, spec: &ContainerSpec) -> Result<Option<EngineError>, CreateError> {
        if spec.pull == PullPolicy::Never {
            return Ok(None);
        }
        match (self.pulls.pull(&spec.image).await, spec.pull) {
            (Ok(()), _) => Ok(None),
            (Err(source), PullPolicy::Required) => {
                Err(CreateError::ImagePull { image: spec.image.clone(), source })
            }
            (Err(error), _) => {
                tracing::info!(image = %spec.image, error = %crate::errors::chain(&error),
                    "cannot pull; trying what is there");
                Ok(Some(error))
            }
        }
    }

    /// `docker run`: makes and starts. What was made is removed when it cannot be started.
    async fn run(&self, spec: &ContainerSpec) -> Result<String, RunFailure> {
        let engine_id = self.make(spec).await.map_err(RunFailure::Other)?;
        let start = persistently("start", self.config.timeouts.run, || {
            self.docker.start_container(&engine_id, None::<StartContainerOptions>)
        });
        match start.await {
            Ok(()) => Ok(engine_id),
            Err(error) => {
                self.remove_quietly(&engine_id).await;
                let message = error.to_string();
                match COMMAND_NOT_FOUND.iter().any(|words| message.contains(words)) {
                    true => Err(RunFailure::CommandNotFound(error)),
                    false => Err(RunFailure::Other(error)),
                }
            }
        }
    }

    async fn make(&self, spec: &ContainerSpec) -> Result<String, EngineError> {
        let limit = self.config.timeouts.run;
        let body = body::container(&self.template, &self.config, spec);
        let options = CreateContainerOptions { name: Some(spec.name.clone()), ..Default::default() };
        let make =
            || once("create", limit, self.docker.create_container(Some(options.clone()), body.clone()));
        let made = match make().await {
            // `docker run` pulls what is missing.
            Err(error) if error.is_status(404) && error.to_string().contains("No such image") => {
                match tokio::time::timeout(limit, self.pulls.pull(&spec.image)).await {
                    Ok(Ok(())) => make().await,
                    Ok(Err(error)) => Err(error),
                    Err(_) => Err(EngineError::TimedOut { what: "pull", limit }),
                }
            }
            // Cut off in the middle, perhaps after the container was made; or a name left over from such a case.
            Err(EngineError::Unreachable { .. }) => {
                self.remove(&spec.name).await?;
                make().await
            }
            Err(error) if error.is_status(409) => {
                self.remove(&spec.name).await?;
                make().await
            }
            done => done,
        };
        made.map(|made| made.id)
    }

    async fn inspect(&self, engine_id: &str) -> Result<ContainerInspectResponse, EngineError> {
        persistently("inspect", self.config.timeouts.inspect, || {
            self.docker.inspect_container(engine_id, None::<InspectContainerOptions>)
        })
        .await
    }

    /// `docker rm -f`, with its anonymous volumes. What is not there is removed.
    async fn remove(&self, engine_id: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptions { force: true, v: true, link: false };
        let removed = persistently("rm", self.config.timeouts.rm, || {
            self.docker.remove_container(engine_id, Some(options.clone()))
        });
        match removed.await {
            Err(error) if error.is_status(404) => Ok(()),
            // Somebody else is at it already.
            Err(error) if error.is_status(409) && error.to_string().contains("already in progress") => {
                self.wait_until_gone(engine_id).await
            }
            done => done,
        }
    }

    async fn wait_until_gone(&self, engine_id: &str) -> Result<(), EngineError> {
        let limit = self.config.timeouts.rm;
        let deadline = Instant::now() + limit;
        while Instant::now() < deadline {
            match self.inspect(engine_id).await {
                Err(error) if error.is_status(404) => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
        Err(EngineError::TimedOut { what: "rm", limit })
    }

    async fn remove_quietly(&self, engine_id: &str) {
        if let Err(error) = self.remove(engine_id).await {
            tracing::warn!(engine_id, error = %crate::errors::chain(&error),
                "cannot remove a container that did not start; the next sweep will");
        }
    }

    /// The handle of a container that was started just now.
    async fn handle(
        &self,
        spec: &ContainerSpec,
        engine_id: &str,
        start: StartReport,
    ) -> Result<Handle, EngineError> {
        let inspecting = Instant::now();
        let found = self.inspect(engine_id).await?;
        let pid = found.state.as_ref().and_then(|state| state.pid).unwrap_or(0);
        let pid = i32::try_from(pid).ok().filter(|pid| *pid > 0).map(Pid::from_raw);
        // It may have ended already: then it is a container whose `/init` fails, not one that could not be made.
        let alive = pid.and_then(|pid| Some((pid, watched(pid, engine_id)?)));
        let (init, liveness, oom, address) = match alive {
            Some((pid, liveness)) => {
                let oom = OomCounter::of(pid).unwrap_or_else(|error| {
                    tracing::warn!(container = %spec.name, %error, "cannot count what the kernel kills in it");
                    OomCounter::absent()
                });
                (pid, liveness, oom, self.address(&found)?)
            }
            None if self.has_ended(engine_id).await? => {
                let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
                (Pid::from_raw(0), Liveness::ended(), OomCounter::absent(), nowhere)
            }
            None => {
                return Err(EngineError::Unusable(format!(
                    "the first process of container {engine_id} is not visible here (is our pid namespace the host's?)"
                )));
            }
        };
        Ok(Handle {
            id: spec.id,
            name: spec.name.clone(),
            engine_id: engine_id.to_owned(),
            image: spec.image.clone(),
            init,
            liveness,
            address: SocketAddr::new(address, RUNTIME_PORT),
            log_file: self.config.json_file_logs.then(|| {
                log_path(found.log_path.as_deref().filter(|p| !p.is_empty()).map(Path::new), engine_id)
            }),
            oom,
            suspended: AtomicBool::new(false),
            start: StartReport { inspect: inspecting.elapsed(), ..start },
        })
    }

    async fn has_ended(&self, engine_id: &str) -> Result<bool, EngineError> {
        let found = self.inspect(engine_id).await?;
        Ok(found.state.is_none_or(|state| state.running != Some(true)))
    }

    fn address(&self, found: &ContainerInspectResponse) -> Result<IpAddr, EngineError> {
        let network = match self.config.network.as_str() {
            "default" => "bridge",
            network => network,
        };
        let networks = found.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        let address =
            networks.and_then(|all| all.get(network)).and_then(|endpoint| endpoint.ip_address.as_deref());
        let address = address.filter(|text| !text.is_empty());
        match address.map(str::parse) {
            Some(Ok(address)) => Ok(address),
            Some(Err(_)) => {
                Err(EngineError::Unusable(format!("unreadable address in network {network}: {address:?}")))
            }
            None => Err(EngineError::Unusable(format!("the container has no address in network {network}"))),
        }
    }

    fn runc(&self) -> Option<&Runc> {
        self.runc.as_ref().filter(|_| !self.runc_failed.load(Ordering::Relaxed))
    }

    /// Whether the engine counts the container as suspended.
    async fn is_paused(&self, engine_id: &str) -> Result<bool, EngineError> {
        Ok(self.inspect(engine_id).await?.state.and_then(|state| state.paused).unwrap_or(false))
    }

    async fn unpause(&self, engine_id: &str) -> Result<(), EngineError> {
        let limit = self.config.timeouts.unpause;
        match persistently("unpause", limit, || self.docker.unpause_container(engine_id)).await {
            Err(error @ EngineError::Refused { .. }) => match self.is_paused(engine_id).await {
                Ok(false) => Ok(()),
                _ => Err(error),
            },
            done => done,
        }
    }

    /// Lets a container go on that may have been suspended in either way, so that it can be killed.
    async fn let_go(&self, engine_id: &str, paused: bool) {
        let result = match self.runc() {
            Some(runc) if !paused => runc.resume(engine_id, self.config.timeouts.runc_resume).await,
            _ if paused => self.unpause(engine_id).await,
            _ => Ok(()),
        };
        if let Err(error) = result {
            tracing::debug!(engine_id, error = %crate::errors::chain(&error), "was not suspended");
        }
    }
}

enum RunFailure {
    CommandNotFound(EngineError),
    Other(EngineError),
}

/// Watches the process if it is the container's: its control groups are named after the container. Looked at after
/// the process was pinned, so that it cannot be another one by now.
fn watched(pid: Pid, engine_id: &str) -> Option<Liveness> {
    let liveness = Liveness::of(pid).ok()?;
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    (groups.contains(engine_id) && liveness.is_alive()).then_some(liveness)
}

#[async_trait]
impl ContainerBackend for DockerBackend {
    fn describe(&self) -> String {
        self.description.clone()
    }

    async fn ping(&self) -> Result<(), EngineError> {
        once("ping", self.config.timeouts.version, self.docker.ping()).await.map(drop)
    }

    async fn create(&self, spec: &ContainerSpec) -> Result<Arc<Handle>, CreateError> {
        let mut start = StartReport::default();
        let provision = |source| CreateError::Provision { name: spec.name.clone(), source };
        let begun = Instant::now();
        let pull_failure = self.pull_first(spec).await?;
        start.pull = begun.elapsed();

        let begun = Instant::now();
        let place = self.runs.acquire().await.map_err(|e| provision(EngineError::Unusable(e.to_string())))?;
        start.waiting = begun.elapsed();

        let begun = Instant::now();
        let engine_id = self.run(spec).await.map_err(|failure| match (failure, pull_failure) {
            (RunFailure::CommandNotFound(source), _) => {
                CreateError::CommandNotFound { image: spec.image.clone(), source }
            }
            // The pull that was forgiven is the reason after all.
            (RunFailure::Other(_), Some(source)) => {
                CreateError::ImagePull { image: spec.image.clone(), source }
            }
            (RunFailure::Other(source), None) => provision(source),
        })?;
        drop(place);
        start.run = begun.elapsed();

        match self.handle(spec, &engine_id, start).await {
            Ok(handle) => Ok(Arc::new(handle)),
            Err(error) => {
                self.remove_quietly(&engine_id).await;
                Err(provision(error))
            }
        }
    }

    async fn suspend(&self, container: &Handle) -> Result<(), EngineError> {
        let (id, limit) = (&container.engine_id, self.config.timeouts.pause);
        // Whether or not it works out: it may be suspended from now on.
        container.suspended.store(true, Ordering::Relaxed);
        if let Some(runc) = self.runc() {
            match runc.pause(id, self.config.timeouts.runc_pause).await {
                Ok(()) => return Ok(()),
                Err(error) if container.liveness.is_alive() => {
                    self.runc_failed.store(true, Ordering::Relaxed);
                    tracing::warn!(container = %container.name, error = %crate::errors::chain(&error),
                        "runc does not work here: suspending through the engine from now on");
                    // It may have got half way.
                    let _ = runc.resume(id, self.config.timeouts.runc_resume).await;
                }
                Err(error) => return Err(error),
            }
        }
        match persistently("pause", limit, || self.docker.pause_container(id)).await {
            Err(error @ EngineError::Refused { .. }) => match self.is_paused(id).await {
                Ok(true) => Ok(()),
                _ => Err(error),
            },
            done => done,
        }
    }

    async fn resume(&self, container: &Handle) -> Result<(), EngineError> {
        let id = &container.engine_id;
        match self.runc() {
            Some(runc) => runc.resume(id, self.config.timeouts.runc_resume).await?,
            None => self.unpause(id).await?,
        }
        container.suspended.store(false, Ordering::Relaxed);
        Ok(())
    }

    async fn destroy(&self, container: &Handle) -> Result<(), EngineError> {
        let id = &container.engine_id;
        if container.suspended.swap(false, Ordering::Relaxed) {
            // With runc the engine does not know that it is suspended, and its kill would wait for ever.
            self.let_go(id, self.runc().is_none()).await;
        }
        self.remove(id).await
    }

    async fn says_oom_killed(&self, container: &Handle) -> Result<bool, EngineError> {
        let state = self.inspect(&container.engine_id).await?.state;
        Ok(state.and_then(|state| state.oom_killed).unwrap_or(false))
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, EngineError> {
        // The engine looks for the name anywhere in names, as a pattern; which are ours is decided here.
        let filters = HashMap::from([("name".to_owned(), vec![format!("{}_", self.config.name_prefix)])]);
        let options = ListContainersOptions { all: true, filters: Some(filters), ..Default::default() };
        let all = persistently("ps", self.config.timeouts.ps, || {
            self.docker.list_containers(Some(options.clone()))
        })
        .await?;
        let prefix = &self.config.name_prefix;
        let own = |one: ContainerSummary| {
            let name = one.names?.into_iter().find(|name| is_own_container(prefix, name))?;
            Some(Leftover {
                engine_id: one.id.unwrap_or_default(),
                number: own_container_number(prefix, &name),
                name: name.trim_start_matches('/').to_owned(),
                suspended: one.state.is_some_and(|state| state.to_string() == "paused"),
            })
        };
        Ok(all.into_iter().filter_map(own).collect())
    }

    async fn remove_leftover(&self, leftover: &Leftover) -> Result<(), EngineError> {
        self.let_go(&leftover.engine_id, leftover.suspended).await;
        self.remove(&leftover.engine_id).await
    }
}
