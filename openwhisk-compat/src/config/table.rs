//! The one declaration of every setting.
//!
//! A row reads: meaning, field, type, where it comes from, its name there, its default. `Option`, list and map
//! types may be absent; any other type without a default is required.

use std::collections::BTreeMap;
use std::time::Duration;

use super::sources::Sources;
use super::value::{Choice, Fraction, ManifestText, Map, Scalar, Secret, Value};
use super::{Declaration, Mistake, Origin};
use crate::size::ByteSize;

macro_rules! origin {
    (flat) => {
        Origin::Flat
    };
    (tree) => {
        Origin::Tree
    };
    (env) => {
        Origin::Env
    };
}

macro_rules! default {
    () => {
        None
    };
    ($text:literal) => {
        Some($text)
    };
}

macro_rules! settings {
    ($(
        $(#[doc = $group_doc:literal])+
        $group:ident : $group_type:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident : $type:ty = $origin:ident $path:literal $(or $default:literal)?;
            )*
        }
    )*) => {
        /// Every setting, checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings {
            $( $(#[doc = $group_doc])+ pub $group: $group_type, )*
        }

        $(
            $(#[doc = $group_doc])+
            #[derive(Debug, Clone, PartialEq)]
            pub struct $group_type {
                $( $(#[doc = $doc])+ pub $field: $type, )*
            }
        )*

        /// A heading and the settings below it.
        pub(super) const GROUPS: &[(&str, &[Declaration])] = &[
            $((
                concat!($($group_doc, "\n"),+),
                &[$(Declaration {
                    origin: origin!($origin),
                    path: $path,
                    default: default!($($default)?),
                    doc: concat!($($doc, "\n"),+),
                    form: <$type as Value>::form,
                    optional: <$type as Value>::OPTIONAL,
                }),*],
            ),)*
        ];

        impl Settings {
            /// Parses every setting, whatever mistakes came before. `None` if there were any.
            pub(super) fn parse(sources: &Sources, mistakes: &mut Vec<Mistake>) -> Option<Self> {
                let mut groups = GROUPS.iter().map(|(_, declarations)| declarations.iter());
                $(
                    let mut rows = groups.next()?;
                    // Read all before giving up on any.
                    $( let $field = <$type as Value>::read(rows.next()?, sources, mistakes); )*
                    let $group = (|| Some($group_type { $( $field: $field?, )* }))();
                )*
                Some(Self { $( $group: $group?, )* })
            }
        }
    };
}

settings! {
    /// The OpenWhisk around the invoker
    openwhisk: OpenWhisk {
        /// Port of the invoker's HTTP server (`/ping`, `/metrics`, `/enable`, `/disable`, `/isEnabled`).
        port: u16 = flat "port" or "8080";
        /// Kafka's brokers, `host:port` separated by commas.
        kafka_hosts: String = flat "kafka.hosts";
        /// ZooKeeper's servers, `host:port` separated by commas. Needed only with `--uniqueName` and without `--id`.
        zookeeper_hosts: Option<String> = flat "zookeeper.hosts";
        /// The runtimes: kinds, their images, and how many containers of each are kept ready.
        runtimes_manifest: ManifestText = flat "runtimes.manifest";
        /// Protocol of the API's address that actions are given as `__OW_API_HOST`.
        api_host_proto: String = flat "whisk.api.host.proto" or "https";
        /// Port of that address; left out of `__OW_API_HOST` when it is the protocol's own.
        api_host_port: u16 = flat "whisk.api.host.port" or "443";
        /// Host of that address.
        api_host_name: String = flat "whisk.api.host.name";
        /// Name of the header that carries a transaction's id.
        transaction_header: String = tree "transactions.header" or "X-Request-ID";
        /// Tell users' events on the topic `<prefix>events`.
        user_events_enabled: bool = tree "user-events.enabled" or "false";
        /// How often the list of blocked namespaces is read.
        blacklist_poll_interval: Duration = tree "blacklist.poll-interval" or "5 minutes";
        /// Serve `/metrics`. Upstream's default is `false`; here a scrape is answered unless this is `false`.
        metrics_enabled: bool = env "METRICS_KAMON" or "true";
        /// Put what upstream calls tags into labels; without, it is glued to the metric's name.
        metrics_tags: bool = env "METRICS_KAMON_TAGS" or "false";
    }

    /// Kafka
    kafka: Kafka {
        /// Copies of each record in topics that the invoker creates.
        replication_factor: u16 = tree "kafka.replication-factor" or "1";
        /// How often the lag of the invoker's topic is measured.
        consumer_lag_check_interval: Duration = tree "kafka.consumer-lag-check-interval" or "60 seconds";
        /// Prefix of the topics `invoker<N>`, `completed<controller>` and `health`.
        topics_prefix: String = tree "kafka.topics.prefix" or "";
        /// Prefix of the topic `events`.
        user_event_prefix: String = tree "kafka.topics.user-event.prefix" or "";
        /// Settings of the topic `invoker<N>` when it is created, such as `retention-ms`; and `partitions`.
        invoker_topic: Map = tree "kafka.topics.invoker";
        /// Client properties of producer and consumer, `-` for `.`: `security-protocol`, `ssl-...`, `sasl-...`.
        common: Map = tree "kafka.common" or "security-protocol=PLAINTEXT, ssl-endpoint-identification-algorithm=";
        /// Client properties of the producer. Upstream's default is `acks=1`, with which an answer is lost with the leader that took it; with `all` retries also cannot send one twice.
        producer: Map = tree "kafka.producer" or "acks=all, request-timeout-ms=30000, metadata-max-age-ms=15000";
        /// Client properties of the consumer.
        consumer: Map = tree "kafka.consumer" or "session-timeout-ms=30000, heartbeat-interval-ms=10000, enable-auto-commit=false, auto-offset-reset=earliest, request-timeout-ms=30000, max-poll-interval-ms=1800000, fetch-max-wait-ms=500";
    }

    /// The document store
    couchdb: CouchDb {
        /// `http` or `https`.
        protocol: Protocol = tree "couchdb.protocol";
        /// Host.
        host: String = tree "couchdb.host";
        /// Port.
        port: u16 = tree "couchdb.port";
        /// User.
        username: String = tree "couchdb.username";
        /// Password.
        password: Secret = tree "couchdb.password";
        /// Database of subjects, where the list of blocked namespaces is.
        database_auth: String = tree "couchdb.databases.WhiskAuth";
        /// Database of actions.
        database_entity: String = tree "couchdb.databases.WhiskEntity";
        /// Database of activations.
        database_activation: String = tree "couchdb.databases.WhiskActivation";
    }

    /// Activations: size of what they say, and which are stored
    activation: Activation {
        /// Longest payload of a message, and longest answer of an action.
        payload_max: ByteSize = tree "activation.payload.max" or "1 m";
        /// How much of a longer answer is kept.
        payload_truncation: ByteSize = tree "activation.payload.truncation" or "1 m";
        /// Bytes added to the longest payload for the rest of a message.
        serdes_overhead: u64 = tree "activation.serdes-overhead" or "6068";
        /// Deprecated, read only where the next two are absent: `true` stores failures only.
        disable_store_result: bool = tree "activation.disable-store-result" or "false";
        /// Which blocking activations are stored; absent means all.
        store_blocking_result_level: Option<StoreLevel> = tree "activation.store-blocking-result-level";
        /// Which non-blocking activations are stored; absent means all.
        store_non_blocking_result_level: Option<StoreLevel> = tree "activation.store-non-blocking-result-level";
        /// Write a line about each activation that is not stored.
        unstored_logs_enabled: bool = tree "activation.unstored-logs-enabled" or "false";
        /// Where the output of actions goes.
        log_store: LogStore = tree "spi.LogStoreProvider" or "org.apache.openwhisk.core.containerpool.logging.DockerToActivationLogStoreProvider";
        /// Where the file log store puts its files, `userlogs-<ms>.log`. Read only with `DockerToActivationFileLogStoreProvider`.
        user_logs_dir: String = env "REWIND_USER_LOGS_DIR" or "logs";
        /// The key of parameters encrypted with `aes-128`, in base-64.
        parameter_key_128: Option<Secret> = tree "parameter-storage.aes-128";
        /// The key of parameters encrypted with `aes-256`, in base-64.
        parameter_key_256: Option<Secret> = tree "parameter-storage.aes-256";
    }

    /// Limits of actions
    limits: Limits {
        /// Shortest time limit.
        time_min: Duration = tree "time-limit.min" or "100 ms";
        /// Longest time limit.
        time_max: Duration = tree "time-limit.max" or "5 minutes";
        /// Time limit of actions without one.
        time_std: Duration = tree "time-limit.std" or "1 minute";
        /// Least memory; `container-pool.user-memory` divided by it is the number of containers reckoned with.
        memory_min: ByteSize = tree "memory.min" or "128 m";
        /// Most memory.
        memory_max: ByteSize = tree "memory.max" or "512 m";
        /// Memory of actions without a limit.
        memory_std: ByteSize = tree "memory.std" or "256 m";
        /// Least log limit.
        logs_min: ByteSize = tree "log-limit.min" or "0 m";
        /// Most log limit.
        logs_max: ByteSize = tree "log-limit.max" or "10 m";
        /// Log limit of actions without one.
        logs_std: ByteSize = tree "log-limit.std" or "10 m";
        /// Fewest activations at once in a container.
        concurrency_min: u32 = tree "concurrency-limit.min" or "1";
        /// Most activations at once in a container.
        concurrency_max: u32 = tree "concurrency-limit.max" or "1";
        /// Activations at once in a container of actions without a limit.
        concurrency_std: u32 = tree "concurrency-limit.std" or "1";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_time_min: Option<Duration> = tree "namespace-default-limit.time-limit.min";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_time_max: Option<Duration> = tree "namespace-default-limit.time-limit.max";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_memory_min: Option<ByteSize> = tree "namespace-default-limit.memory.min";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_memory_max: Option<ByteSize> = tree "namespace-default-limit.memory.max";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_logs_min: Option<ByteSize> = tree "namespace-default-limit.log-limit.min";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_logs_max: Option<ByteSize> = tree "namespace-default-limit.log-limit.max";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_concurrency_min: Option<u32> = tree "namespace-default-limit.concurrency-limit.min";
        /// Bound for namespaces without one of their own; absent means the system's.
        namespace_concurrency_max: Option<u32> = tree "namespace-default-limit.concurrency-limit.max";
    }

    /// The pool of containers
    pool: Pool {
        /// Memory for containers, all together.
        user_memory: ByteSize = tree "container-pool.user-memory" or "1024 m";
        /// CPUs for containers, all together; each gets a share by its memory. Absent: no limit.
        user_cpus: Option<f64> = tree "container-pool.user-cpus";
        /// How much of the concurrency that is possible is reckoned with when activations are taken from Kafka.
        concurrent_peek_factor: Fraction = tree "container-pool.concurrent-peek-factor" or "0.5";
        /// Time from the start to the first look at reactive stem cells.
        prewarm_check_init_delay: Duration = tree "container-pool.prewarm-expiration-check-init-delay" or "10 minutes";
        /// Time between two looks.
        prewarm_check_interval: Duration = tree "container-pool.prewarm-expiration-check-interval" or "10 minutes";
        /// Random time added to each.
        prewarm_check_interval_variance: Duration = tree "container-pool.prewarm-expiration-check-interval-variance" or "10 seconds";
        /// Most stem cells removed by one look.
        prewarm_expiration_limit: u32 = tree "container-pool.prewarm-expiration-limit" or "100";
        /// A container that was idle this long is removed.
        idle_container: Duration = tree "container-proxy.timeouts.idle-container" or "10 minutes";
        /// A container that was idle this long is suspended.
        pause_grace: Duration = tree "container-proxy.timeouts.pause-grace" or "10 seconds";
        /// Connect to stem cells now and then, and replace those that do not answer.
        health_check_enabled: bool = tree "container-proxy.action-health-check.enabled" or "false";
        /// Time between two such connections.
        health_check_period: Duration = tree "container-proxy.action-health-check.check-period" or "3 seconds";
        /// Failures in a row after which a stem cell is replaced.
        health_check_max_fails: u32 = tree "container-proxy.action-health-check.max-fails" or "3";
        /// Log activations that ended in an application error.
        log_application_errors: bool = tree "container-proxy.log-activation-errors.application-errors" or "false";
        /// Log activations that ended in a developer error.
        log_developer_errors: bool = tree "container-proxy.log-activation-errors.developer-errors" or "false";
        /// Log activations that ended in a whisk error.
        log_whisk_errors: bool = tree "container-proxy.log-activation-errors.whisk-errors" or "true";
    }

    /// Containers
    containers: Containers {
        /// Network of action containers.
        network: String = tree "container-factory.container-args.network" or "bridge";
        /// DNS servers of action containers.
        dns_servers: Vec<String> = tree "container-factory.container-args.dns-servers";
        /// DNS search domains.
        dns_search: Vec<String> = tree "container-factory.container-args.dns-search";
        /// DNS options.
        dns_options: Vec<String> = tree "container-factory.container-args.dns-options";
        /// Variables of action containers, `KEY` (taken from the invoker's environment) or `KEY=VALUE`.
        extra_env_vars: Vec<String> = tree "container-factory.container-args.extra-env-vars";
        /// Further flags of `docker run` and their values.
        extra_args: BTreeMap<String, Vec<String>> = tree "container-factory.container-args.extra-args";
        /// Registry of the manifest's images that name none.
        runtimes_registry: String = tree "container-factory.runtimes-registry.url" or "";
        /// Registry of blackbox images that name none.
        user_images_registry: String = tree "container-factory.user-images-registry.url" or "";
        /// Do not pull images whose prefix is `runtimes.local-image-prefix`.
        bypass_pull_for_local_images: bool = tree "runtimes.bypass-pull-for-local-images" or "false";
        /// See above.
        local_image_prefix: String = tree "runtimes.local-image-prefix" or "whisk";
        /// Containers started at the same time at most.
        parallel_runs: u32 = tree "docker.client.parallel-runs" or "10";
        /// Suspend and resume with `runc`, if there is a usable one, instead of through Docker.
        use_runc: bool = tree "docker.container-factory.use-runc" or "true";
        /// Time to create and start a container.
        timeout_run: Duration = tree "docker.client.timeouts.run" or "1 minute";
        /// Time to remove one.
        timeout_rm: Duration = tree "docker.client.timeouts.rm" or "1 minute";
        /// Time to pull an image.
        timeout_pull: Duration = tree "docker.client.timeouts.pull" or "10 minutes";
        /// Time to list containers.
        timeout_ps: Duration = tree "docker.client.timeouts.ps" or "1 minute";
        /// Time to inspect one.
        timeout_inspect: Duration = tree "docker.client.timeouts.inspect" or "1 minute";
        /// Time to suspend one through Docker.
        timeout_pause: Duration = tree "docker.client.timeouts.pause" or "10 seconds";
        /// Time to resume one through Docker.
        timeout_unpause: Duration = tree "docker.client.timeouts.unpause" or "10 seconds";
        /// Time to ask for Docker's version.
        timeout_version: Duration = tree "docker.client.timeouts.version" or "10 seconds";
        /// Time to suspend one with `runc`.
        timeout_runc_pause: Duration = tree "runc.timeouts.pause" or "10 seconds";
        /// Time to resume one with `runc`.
        timeout_runc_resume: Duration = tree "runc.timeouts.resume" or "10 seconds";
    }

    /// The invoker's HTTP server and its name among others
    server: Server {
        /// User of `/enable`, `/disable` and `/isEnabled`.
        username: String = tree "invoker.username" or "invoker.user";
        /// Its password.
        password: Secret = tree "invoker.password" or "invoker.pass";
        /// `http` or `https`.
        protocol: Protocol = tree "invoker.protocol" or "http";
        /// PKCS 12 file with key and certificate, for `https`.
        keystore_path: Option<String> = tree "invoker.https.keystore-path";
        /// Its password.
        keystore_password: Option<Secret> = tree "invoker.https.keystore-password";
        /// Ask clients for certificates.
        client_auth: Option<bool> = tree "invoker.https.client-auth";
        /// Tags the invoker tells controllers.
        tags: Vec<String> = tree "invoker.resource.tags";
        /// Namespaces the invoker is kept for, told to controllers.
        dedicated_namespaces: Vec<String> = tree "invoker.dedicated.namespaces";
    }

    /// Rewind's own
    rewind: Rewind {
        /// What separates two requests in one container. `rewind`: it is put back to its snapshot. `single-use`: it is destroyed. `none`: nothing, as upstream; warns at start. Also `--isolation`.
        isolation: Isolation = env "REWIND_ISOLATION" or "rewind";
        /// What puts memory back. `auto` takes the best there is and refuses to start without one; `none` goes only with an isolation that needs no engine. Also `--engine`.
        engine: Engine = env "REWIND_ENGINE" or "auto";
        /// Directory for the note of activations in hand, which lets the next start answer those that a crash cut off.
        state_dir: String = env "REWIND_STATE_DIR" or "/var/lib/rewind";
        /// Docker's address: `unix:///path` or `tcp://host:port`.
        docker_host: String = env "REWIND_DOCKER_HOST" or "unix:///var/run/docker.sock";
        /// Compare every container with its snapshot, byte for byte, after each rewind. Slow; for tests.
        paranoid: bool = env "REWIND_PARANOID" or "false";
        /// The same after every so many rewinds of a container, as a sample of a running system; 0 is never.
        paranoid_every: u32 = env "REWIND_PARANOID_EVERY" or "0";
        /// How long a stop waits for activations that run.
        drain_timeout: Duration = env "REWIND_DRAIN_TIMEOUT" or "25 seconds";
        /// How long a container may take to come to rest after `/init`, before its checkpoint.
        settle_timeout: Duration = env "REWIND_SETTLE_TIMEOUT" or "2 seconds";
        /// Paths in action containers where a volume is mounted that several of them share. What lies there is not put back after a request; every other mount is.
        shared_mounts: Vec<String> = env "REWIND_SHARED_MOUNTS" or "";
        /// What is logged, as a `tracing` filter: `info`, `rewind_invoker=debug,info`.
        log: String = env "REWIND_LOG" or "info";
        /// How it is written.
        log_format: LogFormat = env "REWIND_LOG_FORMAT" or "text";
    }
}

macro_rules! choices {
    ($(
        $(#[$meta:meta])*
        $type:ident { $( $(#[doc = $doc:literal])+ $variant:ident = $name:literal, )* }
    )*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $type {
            $( $(#[doc = $doc])+ $variant, )*
        }

        impl Choice for $type {
            const NAMES: &'static [(&'static str, Self)] = &[$( ($name, $type::$variant), )*];
        }

        impl $type {
            /// The name as it is written.
            pub fn name(self) -> &'static str {
                match self { $( $type::$variant => $name, )* }
            }
        }

        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::str::FromStr for $type {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                <Self as Scalar>::parse(text)
            }
        }
    )*};
}

choices! {
    /// What separates two requests in one container.
    Isolation {
        /// The container is put back to its snapshot.
        Rewind = "rewind",
        /// The container is destroyed.
        SingleUse = "single-use",
        /// Nothing, as upstream.
        None = "none",
    }

    /// What puts memory back.
    Engine {
        /// The best there is; refuse to start without one.
        Auto = "auto",
        /// userfaultfd write-protection and PAGEMAP_SCAN.
        Pagemap = "pagemap",
        /// None.
        None = "none",
    }

    /// How the log is written.
    LogFormat {
        /// Lines for people.
        Text = "text",
        /// One JSON object per line.
        Json = "json",
    }

    /// How a server is spoken to.
    Protocol {
        /// Plain.
        Http = "http",
        /// With TLS.
        Https = "https",
    }

    /// Which activations are stored (contract 4.7).
    StoreLevel {
        /// All.
        Always = "STORE_ALWAYS",
        /// Those that did not succeed.
        Failures = "STORE_FAILURES",
        /// Developer errors and whisk errors.
        FailuresNotApplicationErrors = "STORE_FAILURES_NOT_APPLICATION_ERRORS",
    }
}

impl StoreLevel {
    /// Whether an activation with this status is stored.
    pub fn allows(self, status: crate::entity::StatusCode) -> bool {
        use crate::entity::StatusCode;
        match self {
            StoreLevel::Always => true,
            StoreLevel::Failures => status != StatusCode::Success,
            StoreLevel::FailuresNotApplicationErrors => status >= StatusCode::DeveloperError,
        }
    }
}

/// Where the output of actions goes (contract 5.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogStore {
    /// Into the activation's record.
    Activation,
    /// Into the record and into a file.
    ActivationAndFile,
    /// Elsewhere, by a log driver of the engine: the record has no logs.
    OutOfBand,
}

impl LogStore {
    /// Whether the invoker collects logs at all, which decides the acknowledgements (contract 2.6).
    pub fn is_in_band(self) -> bool {
        self != LogStore::OutOfBand
    }
}

impl Scalar for LogStore {
    fn written() -> String {
        "the class of a log store: `...DockerToActivationLogStoreProvider`, \
         `...DockerToActivationFileLogStoreProvider`, `...LogDriverLogStoreProvider`"
            .to_owned()
    }

    /// By the class's simple name; the package differs between versions.
    fn parse(text: &str) -> Result<Self, String> {
        let class = text.trim().rsplit('.').next().unwrap_or_default().trim_end_matches('$');
        Ok(match class {
            "DockerToActivationLogStoreProvider" => LogStore::Activation,
            // The Elasticsearch store is the file store; it differs in how controllers read logs.
            "DockerToActivationFileLogStoreProvider" | "ElasticSearchLogStoreProvider" => {
                LogStore::ActivationAndFile
            }
            "LogDriverLogStoreProvider" | "SplunkLogStoreProvider" => LogStore::OutOfBand,
            _ => return Err(format!("`{text}` is not usable, expected {}", Self::written())),
        })
    }
}

/// Every declaration, group by group.
pub fn declarations() -> Vec<Declaration> {
    GROUPS.iter().flat_map(|(_, declarations)| declarations.iter().copied()).collect()
}

/// Names that deployments set and the invoker does not act on, with the reason; `*` stands for any end. Not
/// warned about.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("LIMITS_ACTIONS_INVOKES_PERMINUTE", "controllers enforce it"),
    ("LIMITS_ACTIONS_INVOKES_CONCURRENT", "controllers enforce it"),
    ("LIMITS_TRIGGERS_FIRES_PERMINUTE", "controllers enforce it"),
    ("LIMITS_ACTIONS_SEQUENCE_MAXLENGTH", "controllers enforce it"),
    ("METRICS_LOG", "log markers are not written; the log has fields, and the metrics are at `/metrics`"),
    ("JAVA_OPTS", "there is no JVM; `-Dwhisk-config.…` in it is not read either"),
    ("INVOKER_OPTS", "there is no JVM"),
    ("JMX_REMOTE", "there is no JVM"),
    ("INVOKER_CONTAINER_POLICY", "upstream does not read it"),
    ("WHISK_LOGS_DIR", "the log goes to standard output"),
    ("DB_WHISK_ACTIONS", "upstream does not read it; see `CONFIG_whisk_couchdb_databases_WhiskEntity`"),
    (
        "DB_WHISK_ACTIVATIONS",
        "upstream does not read it; see `CONFIG_whisk_couchdb_databases_WhiskActivation`",
    ),
    ("DB_WHISK_AUTHS", "upstream does not read it; see `CONFIG_whisk_couchdb_databases_WhiskAuth`"),
    ("CONFIG_whisk_spi_InvokerProvider", "there is one invoker in here"),
    ("CONFIG_whisk_spi_InvokerServerProvider", "there is one server in here"),
    ("CONFIG_whisk_spi_ContainerFactoryProvider", "containers are Docker's"),
    ("CONFIG_whisk_cluster_name", "the classic invoker does not use it"),
    ("CONFIG_whisk_couchdb_provider", "`CouchDB` and `Cloudant` are spoken to alike"),
    ("CONFIG_whisk_couchdb_retryConfig_*", "controllers act on it"),
    (
        "CONFIG_whisk_activationStore_retryConfig_maxTries",
        "a write is tried again three times, which is the default",
    ),
    ("CONFIG_whisk_db_subjectsDdoc", "the list of blocked namespaces is in a design document of its own"),
    ("CONFIG_whisk_docker_client_maskDockerRunArgs", "variables of action containers are never logged"),
    ("CONFIG_whisk_db_actionsDdoc", "the invoker asks no view of actions"),
    ("CONFIG_whisk_db_activationsDdoc", "the invoker asks no view of activations"),
    ("CONFIG_whisk_db_activationsFilterDdoc", "the invoker asks no view of activations"),
    ("CONFIG_whisk_db_maxInlineSize", "the invoker writes no attachments"),
    ("CONFIG_whisk_parameterStorage_current", "the invoker decrypts whatever is encrypted"),
    ("CONFIG_whisk_parameterSizeLimit", "controllers enforce it"),
    ("CONFIG_whisk_execSizeLimit", "controllers enforce it"),
    ("CONFIG_whisk_featureFlags_requireApiKeyAnnotation", "controllers act on it"),
    ("CONFIG_whisk_featureFlags_requireResponsePayload", "controllers act on it"),
    ("CONFIG_whisk_containerPool_pekkoClient", "there is one client for containers in here"),
    ("CONFIG_whisk_containerPool_akkaClient", "there is one client for containers in here"),
    ("CONFIG_whisk_containerPool_prewarmPromotion", "the scheduler's"),
    ("CONFIG_whisk_containerPool_prewarmMaxRetryLimit", "the scheduler's"),
    ("CONFIG_whisk_containerPool_memorySyncInterval", "the scheduler's"),
    ("CONFIG_whisk_containerPool_batchDeletionSize", "the scheduler's"),
    ("CONFIG_whisk_containerProxy_timeouts_keepingDuration", "the scheduler's"),
    ("CONFIG_whisk_apacheClient_retryNoHttpResponseException", "`/run` is never sent twice"),
    ("CONFIG_whisk_invoker_https_keystoreFlavor", "PKCS 12 is the one form read"),
    ("CONFIG_whisk_kafka_topics_completed_*", "controllers create this topic"),
    ("CONFIG_whisk_kafka_topics_health_*", "controllers create this topic"),
    ("CONFIG_whisk_kafka_topics_cacheInvalidation_*", "controllers create this topic"),
    ("CONFIG_whisk_kafka_topics_events_*", "controllers create this topic"),
    (
        "CONFIG_whisk_kakfa_topics_invoker_segmentBytes",
        "a misspelling in Ansible's playbooks that never had an effect",
    ),
    (
        "CONFIG_whisk_docker_containerFactory_containerArgs_network",
        "upstream's Helm chart sets it and nothing reads it; see `CONFIG_whisk_containerFactory_containerArgs_network`",
    ),
];

impl Settings {
    /// Variables that look like settings and are none: perhaps misspelt. To be logged once.
    pub fn unread(sources: &Sources) -> Vec<String> {
        let without_effect = |name: &String| {
            WITHOUT_EFFECT.iter().any(|(known, _)| match known.strip_suffix('*') {
                Some(prefix) => name.starts_with(prefix),
                None => known == name,
            })
        };
        sources.unread(&declarations()).into_iter().filter(|name| !without_effect(name)).collect()
    }

    /// The same for the variables of this process.
    pub fn unread_in_process() -> Vec<String> {
        Self::unread(&Sources::of_environment())
    }
}
