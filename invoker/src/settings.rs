//! Everything the invoker was told, checked, in the form its parts take it.
//!
//! Two stages: [`openwhisk_compat::config`] parses each name and reports all mistakes at once; here the
//! command line is laid over it and what spans several settings is checked. Neither has any effect.

use std::path::PathBuf;
use std::sync::Arc;

use openwhisk_compat::config::{self, Engine, Isolation, LogStore, Mistake, Mistakes, Protocol};
use openwhisk_compat::crypt::ParameterKeys;
use openwhisk_compat::entity::{ActionLimits, ReadContext};
use openwhisk_compat::manifest::RuntimesManifest;
use openwhisk_compat::message::InvokerInstanceId;
use openwhisk_compat::name;
use openwhisk_compat::size::ByteSize;
use openwhisk_compat::store::CouchSettings;

use crate::activation::execute::{self, LogErrors};
use crate::activation::record::StorePolicy;
use crate::bus::TopicSpec;
use crate::bus::kafka::KafkaSettings;
use crate::cli::InvokerArgs;
use crate::container::WardenOptions;
use crate::container::docker::{DockerConfig, DockerTimeouts};
use crate::dispatch::keeper::{Images, StemPing};
use crate::pool::{self, PoolConfig, Reactive, StemCells, StemCheck};

/// See the module.
#[derive(Debug, Clone)]
pub struct Settings {
    /// As read and checked one by one.
    pub config: config::Settings,
    /// The command line.
    pub args: InvokerArgs,
    /// What separates two requests in one container.
    pub isolation: Isolation,
    /// What puts memory back.
    pub engine: Engine,
    /// Which kinds there are.
    pub manifest: Arc<RuntimesManifest>,
    /// For encrypted parameters.
    pub keys: ParameterKeys,
}

impl Settings {
    /// Reads the environment and lays the command line over it.
    ///
    /// # Errors
    /// All mistakes there are.
    pub fn from_process(args: &InvokerArgs) -> Result<Self, Mistakes> {
        Self::new(config::Settings::from_process()?, args)
    }

    /// Checks what spans several settings.
    ///
    /// # Errors
    /// All mistakes there are.
    pub fn new(config: config::Settings, args: &InvokerArgs) -> Result<Self, Mistakes> {
        let mut mistakes = Vec::new();
        let mut mistake = |place: &str, what: String| {
            mistakes.push(Mistake { place: place.to_owned(), what });
        };
        let isolation = args.isolation().unwrap_or(config.rewind.isolation);
        let engine = args.engine().unwrap_or(config.rewind.engine);
        if isolation == Isolation::Rewind && engine == Engine::None {
            mistake(
                "REWIND_ENGINE",
                "`none` cannot put containers back; say `REWIND_ISOLATION=single-use` (or `--isolation single-use`) to \
                 have each container destroyed after its request"
                    .to_owned(),
            );
        }
        let manifest = match RuntimesManifest::parse(&config.openwhisk.runtimes_manifest) {
            Ok(manifest) => Some(Arc::new(manifest)),
            Err(error) => {
                mistake("RUNTIMES_MANIFEST", error.to_string());
                None
            }
        };
        let key = |secret: &Option<config::Secret>| secret.as_ref().map(|secret| secret.reveal().to_owned());
        let activation = &config.activation;
        let keys = ParameterKeys::from_base64(
            key(&activation.parameter_key_128).as_deref(),
            key(&activation.parameter_key_256).as_deref(),
        );
        let keys = match keys {
            Ok(keys) => Some(keys),
            Err(error) => {
                mistake("CONFIG_whisk_parameterStorage", error.to_string());
                None
            }
        };
        if config.server.protocol == Protocol::Https && config.server.keystore_path.is_none() {
            mistake(
                "CONFIG_whisk_invoker_https_keystorePath",
                "is missing, and CONFIG_whisk_invoker_protocol is `https`".to_owned(),
            );
        }
        match (manifest, keys) {
            (Some(manifest), Some(keys)) if mistakes.is_empty() => {
                Ok(Self { config, args: args.clone(), isolation, engine, manifest, keys })
            }
            _ => Err(Mistakes(mistakes)),
        }
    }

    /// This invoker's name on the wire (contract 2.4).
    #[must_use]
    pub fn instance(&self, id: u32) -> InvokerInstanceId {
        let server = &self.config.server;
        // Read from a configuration it prints in bytes.
        let memory = ByteSize::from_bytes(self.config.pool.user_memory.bytes());
        let mut instance = InvokerInstanceId::new(id, memory);
        instance.tags.clone_from(&server.tags);
        instance.dedicated_namespaces.clone_from(&server.dedicated_namespaces);
        instance.unique_name = self.args.unique_name().map(str::to_owned);
        instance.displayed_name = self.args.displayed_name().map(str::to_owned);
        instance
    }

    /// How to reach Kafka.
    #[must_use]
    pub fn kafka(&self) -> KafkaSettings {
        let kafka = &self.config.kafka;
        KafkaSettings {
            hosts: self.config.openwhisk.kafka_hosts.clone(),
            common: kafka.common.dotted(),
            producer: kafka.producer.dotted(),
            consumer: kafka.consumer.dotted(),
            max_request_bytes: self.config.max_message_bytes(),
            prefetch: self.capacity().div_ceil(2),
        }
    }

    /// This invoker's own topic (contract 1.4).
    #[must_use]
    pub fn topic(&self, id: u32) -> TopicSpec {
        let (partitions, config) = self.config.invoker_topic_config();
        TopicSpec {
            name: name::invoker_topic(&self.config.kafka.topics_prefix, id),
            partitions,
            replication_factor: i32::from(self.config.kafka.replication_factor),
            config,
        }
    }

    /// How many activations may be handed out at once.
    #[must_use]
    pub fn capacity(&self) -> usize {
        usize::try_from(self.config.max_peek()).unwrap_or(usize::MAX)
    }

    /// Where user events go, if they are on.
    #[must_use]
    pub fn events_topic(&self) -> Option<String> {
        let config = &self.config;
        config.openwhisk.user_events_enabled.then(|| name::events_topic(&config.kafka.user_event_prefix))
    }

    /// How to reach the store.
    #[must_use]
    pub fn couch(&self) -> CouchSettings {
        let couch = &self.config.couchdb;
        CouchSettings {
            protocol: couch.protocol.name().to_owned(),
            host: couch.host.clone(),
            port: couch.port,
            username: couch.username.clone(),
            password: couch.password.reveal().to_owned(),
        }
    }

    /// Which activations are stored.
    #[must_use]
    pub fn store_policy(&self) -> StorePolicy {
        StorePolicy {
            blocking: self.config.store_level(true),
            non_blocking: self.config.store_level(false),
            log_unstored: self.config.activation.unstored_logs_enabled,
        }
    }

    /// Where the journal is: a directory per invoker, so that several may share the state directory.
    #[must_use]
    pub fn journal_dir(&self, topic: &str) -> PathBuf {
        PathBuf::from(&self.config.rewind.state_dir).join(topic)
    }

    /// The pool's settings.
    #[must_use]
    pub fn pool(&self) -> PoolConfig {
        let pool = &self.config.pool;
        let ms = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        PoolConfig {
            budget_mb: pool.user_memory.mb(),
            isolation: self.pool_isolation(),
            pause_grace_ms: Some(ms(pool.pause_grace)),
            idle_container_ms: ms(pool.idle_container),
            stem_cells: self.stem_cells(),
            stem_check: StemCheck {
                first_ms: ms(pool.prewarm_check_init_delay),
                interval_ms: ms(pool.prewarm_check_interval),
                variance_ms: ms(pool.prewarm_check_interval_variance),
                expired_max: usize::try_from(pool.prewarm_expiration_limit).unwrap_or(usize::MAX),
            },
            seed: rand::random(),
            ..PoolConfig::default()
        }
    }

    /// The isolation in the pool's words.
    #[must_use]
    pub fn pool_isolation(&self) -> pool::Isolation {
        match self.isolation {
            Isolation::Rewind => pool::Isolation::Rewind,
            Isolation::SingleUse => pool::Isolation::SingleUse,
            Isolation::None => pool::Isolation::None,
        }
    }

    /// The manifest's stem cells. Of several entries for one kind and memory the first counts.
    fn stem_cells(&self) -> Vec<StemCells> {
        let mut cells: Vec<StemCells> = Vec::new();
        for runtime in self.manifest.runtimes() {
            for cell in &runtime.stem_cells {
                let memory_mb = cell.memory.mb();
                if cells.iter().any(|other| other.kind == runtime.kind && other.memory_mb == memory_mb) {
                    continue;
                }
                cells.push(StemCells {
                    kind: runtime.kind.clone(),
                    memory_mb,
                    initial_count: cell.initial_count.get(),
                    reactive: cell.reactive.as_ref().map(|reactive| Reactive {
                        min_count: reactive.min_count,
                        max_count: reactive.max_count,
                        ttl_ms: u64::try_from(reactive.ttl.as_millis()).unwrap_or(u64::MAX),
                        threshold: reactive.threshold,
                        increment: reactive.increment,
                    }),
                });
            }
        }
        cells
    }

    /// How containers are made by Docker (contract 6.5).
    #[must_use]
    pub fn docker(&self, instance: &InvokerInstanceId) -> DockerConfig {
        let containers = &self.config.containers;
        let mut env = vec![format!("__OW_API_HOST={}", self.config.api_host())];
        env.extend(containers.extra_env_vars.iter().cloned());
        DockerConfig {
            host: self.config.rewind.docker_host.clone(),
            name_prefix: name::container_prefix(instance),
            timeouts: DockerTimeouts {
                run: containers.timeout_run,
                rm: containers.timeout_rm,
                pull: containers.timeout_pull,
                ps: containers.timeout_ps,
                inspect: containers.timeout_inspect,
                pause: containers.timeout_pause,
                unpause: containers.timeout_unpause,
                version: containers.timeout_version,
                runc_pause: containers.timeout_runc_pause,
                runc_resume: containers.timeout_runc_resume,
            },
            parallel_runs: usize::try_from(containers.parallel_runs).unwrap_or(usize::MAX),
            network: containers.network.clone(),
            dns_servers: containers.dns_servers.clone(),
            dns_search: containers.dns_search.clone(),
            dns_options: containers.dns_options.clone(),
            env,
            extra_args: containers.extra_args.clone(),
            use_runc: containers.use_runc,
            json_file_logs: self.config.activation.log_store.is_in_band(),
            user_memory_mb: self.config.pool.user_memory.mb(),
            user_cpus: self.config.pool.user_cpus,
        }
    }

    /// How containers are checkpointed and rewound.
    #[must_use]
    pub fn warden(&self) -> WardenOptions {
        let mut options = WardenOptions::default();
        options.memory.settle = self.config.rewind.settle_timeout;
        options.memory.paranoid = self.config.rewind.paranoid;
        options.memory.paranoid_every = self.config.rewind.paranoid_every;
        options.files.shared = self.config.rewind.shared_mounts.iter().map(PathBuf::from).collect();
        options
    }

    /// Which image a container is made of.
    #[must_use]
    pub fn images(&self, instance: &InvokerInstanceId) -> Images {
        let containers = &self.config.containers;
        Images {
            manifest: Arc::clone(&self.manifest),
            runtimes_registry: containers.runtimes_registry.clone(),
            user_registry: containers.user_images_registry.clone(),
            local_prefix: containers
                .bypass_pull_for_local_images
                .then(|| containers.local_image_prefix.clone()),
            name_prefix: name::container_prefix(instance),
        }
    }

    /// The health ping of stem cells, if it is on.
    #[must_use]
    pub fn stem_ping(&self) -> Option<StemPing> {
        let pool = &self.config.pool;
        pool.health_check_enabled
            .then_some(StemPing { period: pool.health_check_period, fails_max: pool.health_check_max_fails })
    }

    /// How activations are executed.
    #[must_use]
    pub fn execute(&self) -> execute::Settings {
        let (activation, pool) = (&self.config.activation, &self.config.pool);
        execute::Settings {
            payload_bytes_max: activation.payload_max.bytes(),
            truncation_bytes: activation.payload_truncation.bytes(),
            collect_logs: activation.log_store.is_in_band(),
            manifest: Arc::clone(&self.manifest),
            log_errors: LogErrors {
                application: pool.log_application_errors,
                developer: pool.log_developer_errors,
                whisk: pool.log_whisk_errors,
            },
        }
    }

    /// Where the file log store writes, if that is the one in use.
    #[must_use]
    pub fn user_logs_dir(&self) -> Option<PathBuf> {
        let activation = &self.config.activation;
        (activation.log_store == LogStore::ActivationAndFile)
            .then(|| PathBuf::from(&activation.user_logs_dir))
    }

    /// What an action's document needs besides itself.
    #[must_use]
    pub fn read_context(&self) -> DocumentContext {
        DocumentContext { manifest: Arc::clone(&self.manifest), standard: self.config.standard_limits() }
    }
}

/// The manifest and the standard limits, for reading actions.
#[derive(Debug, Clone)]
pub struct DocumentContext {
    manifest: Arc<RuntimesManifest>,
    standard: ActionLimits,
}

impl ReadContext for DocumentContext {
    fn resolve_kind(&self, kind: &str) -> Option<String> {
        self.manifest.read_context(self.standard).resolve_kind(kind)
    }

    fn standard_limits(&self) -> ActionLimits {
        self.standard
    }
}
