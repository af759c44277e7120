//! The configuration as an operator meets it.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::size::ByteSize;

fn minimal() -> BTreeMap<String, String> {
    [
        ("KAFKA_HOSTS", "kafka:9092"),
        ("RUNTIMES_MANIFEST", "{}"),
        ("WHISK_API_HOST_NAME", "api.example.org"),
        ("CONFIG_whisk_couchdb_protocol", "http"),
        ("CONFIG_whisk_couchdb_host", "db"),
        ("CONFIG_whisk_couchdb_port", "5984"),
        ("CONFIG_whisk_couchdb_username", "whisk_admin"),
        ("CONFIG_whisk_couchdb_password", "some_passw0rd"),
        ("CONFIG_whisk_couchdb_databases_WhiskAuth", "subjects"),
        ("CONFIG_whisk_couchdb_databases_WhiskEntity", "whisks"),
        ("CONFIG_whisk_couchdb_databases_WhiskActivation", "activations"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into()
}

fn with(more: &[(&str, &str)]) -> Sources {
    let mut environment = minimal();
    environment.extend(more.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    Sources::from_environment(environment)
}

fn settings(more: &[(&str, &str)]) -> Settings {
    Settings::read(&with(more)).expect("settings")
}

fn mistakes(more: &[(&str, &str)]) -> Vec<String> {
    match Settings::read(&with(more)) {
        Ok(_) => Vec::new(),
        Err(Mistakes(mistakes)) => mistakes.iter().map(ToString::to_string).collect(),
    }
}

#[test]
fn defaults_are_the_contract_s() {
    let settings = settings(&[]);
    assert_eq!(settings.openwhisk.port, 8080);
    assert_eq!(settings.pool.user_memory, ByteSize::from_mb(1024));
    assert_eq!(settings.pool.pause_grace, Duration::from_secs(10));
    assert_eq!(settings.standard_limits(), ActionLimits::STANDARD);
    assert_eq!(settings.limit_bounds(), LimitBounds::STANDARD);
    assert_eq!(settings.max_message_bytes(), 1_054_644);
    assert_eq!(settings.max_peek(), 8);
    assert_eq!(settings.activation.log_store, LogStore::Activation);
    assert_eq!(settings.rewind.isolation, Isolation::Rewind);
    assert_eq!(settings.store_level(true), StoreLevel::Always);
    assert_eq!(settings.api_host(), "https://api.example.org");
    let (partitions, topic) = settings.invoker_topic_config();
    let topic: Vec<_> = topic.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(partitions, 1);
    assert_eq!(
        topic,
        [
            ("max.message.bytes", "1054644"),
            ("retention.bytes", "1073741824"),
            ("retention.ms", "172800000"),
            ("segment.bytes", "536870912"),
        ]
    );
    assert_eq!(settings.kafka.consumer.dotted().get("fetch.max.wait.ms").map(String::as_str), Some("500"));
}

#[test]
fn an_ansible_environment_is_read() {
    let settings = settings(&[
        ("PORT", "9000"),
        ("ZOOKEEPER_HOSTS", "zk:2181"),
        ("WHISK_API_HOST_PROTO", "http"),
        ("WHISK_API_HOST_PORT", "8888"),
        ("CONFIG_whisk_containerPool_userMemory", "2048 m"),
        ("CONFIG_whisk_containerPool_userCpus", ""),
        ("CONFIG_whisk_kafka_topics_prefix", "p_"),
        ("CONFIG_whisk_kafka_topics_invoker_retentionMs", "1000"),
        ("CONFIG_whisk_kafka_topics_invoker_partitions", "3"),
        ("CONFIG_whisk_kafka_common_securityProtocol", "SSL"),
        ("CONFIG_whisk_kafka_common_sslTruststoreLocation", "/conf/kafka.jks"),
        ("CONFIG_whisk_kafka_consumer_maxPollIntervalMs", "360000"),
        ("CONFIG_whisk_containerFactory_containerArgs_network", "ow"),
        ("CONFIG_whisk_containerFactory_containerArgs_extraEnvVars_1", "B=2,3"),
        ("CONFIG_whisk_containerFactory_containerArgs_extraEnvVars_0", "A=1"),
        ("CONFIG_whisk_containerFactory_containerArgs_extraArgs_env_0", "X=1"),
        ("CONFIG_whisk_containerFactory_containerArgs_extraArgs_label", "l"),
        ("CONFIG_whisk_couchdb_password", "$DB_PASSWORD"),
        ("DB_PASSWORD", "from elsewhere"),
        ("CONFIG_whisk_concurrencyLimit_max", "20"),
        ("CONFIG_whisk_invoker_resource_tags", "gpu, big"),
        ("CONFIG_whisk_parameterStorage_aes128", "a2V5"),
        ("CONFIG_whisk_activation_disableStoreResult", "true"),
        (
            "CONFIG_whisk_spi_LogStoreProvider",
            "org.apache.openwhisk.core.containerpool.logging.LogDriverLogStoreProvider",
        ),
        ("CONFIG_whisk_namespaceDefaultLimit_memory_max", "256 m"),
    ]);
    assert_eq!(
        (settings.openwhisk.port, settings.api_host().as_str()),
        (9000, "http://api.example.org:8888")
    );
    assert_eq!(settings.pool.user_memory, ByteSize::from_mb(2048));
    assert_eq!(settings.pool.user_cpus, None);
    assert_eq!(settings.kafka.topics_prefix, "p_");
    let (partitions, topic) = settings.invoker_topic_config();
    assert_eq!(partitions, 3);
    assert!(topic.contains(&("retention.ms".to_owned(), "1000".to_owned())));
    let common = settings.kafka.common.dotted();
    assert_eq!(common.get("security.protocol").map(String::as_str), Some("SSL"));
    assert_eq!(common.get("ssl.truststore.location").map(String::as_str), Some("/conf/kafka.jks"));
    let consumer = settings.kafka.consumer.dotted();
    assert_eq!(consumer.get("max.poll.interval.ms").map(String::as_str), Some("360000"));
    assert_eq!(settings.containers.network, "ow");
    assert_eq!(settings.containers.extra_env_vars, ["A=1", "B=2,3"]);
    assert_eq!(
        settings.containers.extra_args,
        BTreeMap::from([
            ("env".to_owned(), vec!["X=1".to_owned()]),
            ("label".to_owned(), vec!["l".to_owned()]),
        ])
    );
    assert_eq!(settings.couchdb.password.reveal(), "from elsewhere");
    assert_eq!(settings.max_peek(), 160);
    assert_eq!(settings.server.tags, ["gpu", "big"]);
    assert_eq!(settings.activation.parameter_key_128.as_ref().map(Secret::reveal), Some("a2V5"));
    assert_eq!(settings.store_level(false), StoreLevel::Failures);
    assert_eq!(settings.activation.log_store, LogStore::OutOfBand);
    assert_eq!(settings.limit_bounds().memory_mb, (128, 256));
}

#[test]
fn all_mistakes_are_reported_at_once() {
    let mut environment = minimal();
    environment.remove("KAFKA_HOSTS");
    for (name, value) in [
        ("PORT", "99999"),
        ("CONFIG_whisk_containerPool_userMemory", "lots"),
        ("CONFIG_whisk_containerPool_concurrentPeekFactor", "1.5"),
        ("CONFIG_whisk_couchdb_protocol", "gopher"),
        ("CONFIG_whisk_couchdb_password", "$NOWHERE"),
        ("REWIND_ISOLATION", "Rewind"),
        ("CONFIG_whisk_blacklist_pollInterval", "often"),
        ("CONFIG_whisk_userEvents_enabled", "yes"),
        ("CONFIG_whisk_spi_LogStoreProvider", "org.example.Mine"),
        ("RUNTIMES_MANIFEST", r#"{"runtimes":{"x":[{"kind":"x:1"}]}}"#),
    ] {
        environment.insert(name.to_owned(), value.to_owned());
    }
    let Err(Mistakes(mistakes)) = Settings::read(&Sources::from_environment(environment)) else {
        panic!("mistakes went unseen")
    };
    let found: Vec<_> = mistakes.iter().map(ToString::to_string).collect();
    for expected in [
        "KAFKA_HOSTS: missing, expected a text",
        "PORT: `99999` is not usable, expected a whole number up to 65535",
        "CONFIG_whisk_containerPool_userMemory: `lots` is not a size",
        "CONFIG_whisk_containerPool_concurrentPeekFactor: `1.5` is not usable, expected a number above 0",
        "CONFIG_whisk_couchdb_protocol: `gopher` is not usable, expected `http` or `https`",
        "CONFIG_whisk_couchdb_password: takes its value from `NOWHERE`, which is not set",
        "REWIND_ISOLATION: `Rewind` is not usable, expected `rewind`, `single-use` or `none`",
        "CONFIG_whisk_blacklist_pollInterval: `often` is not a duration",
        "CONFIG_whisk_userEvents_enabled: `yes` is not usable, expected `true` or `false`",
        "CONFIG_whisk_spi_LogStoreProvider: `org.example.Mine` is not usable",
        "RUNTIMES_MANIFEST: family `x`: missing field `image`",
    ] {
        assert!(found.iter().any(|mistake| mistake.starts_with(expected)), "{expected}\nnot in\n{found:#?}");
    }
    assert_eq!(found.len(), 11);
}

#[test]
fn settings_that_do_not_go_together_are_mistakes() {
    for (more, expected) in [
        (
            &[("CONFIG_whisk_memory_std", "1 g")][..],
            "CONFIG_whisk_memory: min 134217728 B, std 1073741824 B, max 536870912 B are not in order",
        ),
        (
            &[("CONFIG_whisk_timeLimit_max", "1 s")],
            "CONFIG_whisk_timeLimit: min 100ms, std 60s, max 1s are not in order",
        ),
        (
            &[("CONFIG_whisk_containerPool_userMemory", "64 m")],
            "CONFIG_whisk_containerPool_userMemory: 67108864 B does not hold one container of 134217728 B",
        ),
        (&[("CONFIG_whisk_memory_min", "0 m")], "CONFIG_whisk_memory_min: 0 B is less than 1 MB"),
        (
            &[("CONFIG_whisk_kafka_topics_prefix", "a/b")],
            "CONFIG_whisk_kafka_topics_prefix: `a/b` cannot begin the name of a topic",
        ),
        (
            &[("CONFIG_whisk_kafka_topics_invoker_partitions", "0")],
            "CONFIG_whisk_kafka_topics_invoker_partitions: `0` is not a number of partitions: number would be zero for non-zero type",
        ),
    ] {
        assert_eq!(mistakes(more), [expected]);
    }
}

#[test]
fn secrets_are_never_shown() {
    let shown = format!("{:?}", settings(&[]));
    assert!(!shown.contains("some_passw0rd"), "{shown}");
}

#[test]
fn files_take_their_place() {
    let sources = with(&[("PORT", "1000"), ("CONFIG_whisk_containerPool_userMemory", "2 g")])
        .with_properties("/etc/whisk.properties", "port=2000\nkafka.hosts=\n")
        .with_tree_file("/etc/whisk.conf", "whisk { container-pool.user-memory = 4 g, memory { max = 1 g } }")
        .expect("a file");
    let settings = Settings::read(&sources).expect("settings");
    assert_eq!(settings.openwhisk.port, 2000, "the properties file wins");
    assert_eq!(settings.openwhisk.kafka_hosts, "kafka:9092", "an empty line overrides nothing");
    assert_eq!(settings.pool.user_memory.mb(), 2048, "variables win over the tree's file");
    assert_eq!(settings.limits.memory_max.mb(), 1024);
}

#[test]
fn files_are_found() {
    let directory = std::env::temp_dir().join(format!("rewind-config-{}", std::process::id()));
    let below = directory.join("a/b");
    std::fs::create_dir_all(&below).expect("a directory");
    std::fs::write(directory.join("whisk.properties"), "port=x\n").expect("a file");
    std::fs::write(directory.join("tree.conf"), "whisk.memory.max = 2 g").expect("a file");
    let tree = directory.join("tree.conf").display().to_string();
    let found =
        with(&[("OPENWHISK_CONFIG", &tree)]).with_files(Some(&below)).map(|sources| Settings::read(&sources));
    let missing = with(&[("OPENWHISK_CONFIG", "/nowhere/at/all")]).with_files(None);
    let encoded = with(&[("OPENWHISK_ENCODED_CONFIG", "d2hpc2subWVtb3J5Lm1heCA9IDMgZw==")]).with_files(None);
    std::fs::remove_dir_all(&directory).expect("removed");
    let mistakes = found.expect("readable").expect_err("the port is no number");
    let place = format!("{}, line 1, port", directory.join("whisk.properties").display());
    assert_eq!(mistakes.0.len(), 1);
    assert_eq!(mistakes.0[0].place, place);
    assert!(missing.expect_err("no such file").to_string().starts_with("/nowhere/at/all: "));
    let settings = Settings::read(&encoded.expect("readable")).expect("settings");
    assert_eq!(settings.limits.memory_max.mb(), 3072);
}

#[test]
fn what_nobody_reads_is_named() {
    let sources = with(&[
        ("CONFIG_whisk_containerPool_userMemroy", "1 g"),
        ("CONFIG_whisk_kafka_producer_lingerMs", "5"),
        ("CONFIG_whisk_kakfa_topics_invoker_segmentBytes", "1"),
        ("CONFIG_whisk_kafka_topics_completed_retentionMs", "1"),
        ("CONFIG_logback_level", "x"),
        ("REWIND_ISOLATON", "none"),
        ("PATH", "/bin"),
    ]);
    assert_eq!(Settings::unread(&sources), ["CONFIG_whisk_containerPool_userMemroy", "REWIND_ISOLATON"]);
}

#[test]
fn every_default_is_well_formed() {
    for declaration in declarations() {
        let variable = declaration.variable();
        assert!(!declaration.doc.trim().is_empty(), "{variable}");
        let known = declarations().iter().filter(|other| other.variable() == variable).count();
        assert_eq!(known, 1, "{variable} is declared {known} times");
    }
}

#[test]
fn configuration_document_is_current() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/configuration.md");
    let document = document();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, &document).expect("docs are writable");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        written == document,
        "docs/configuration.md is not current: run UPDATE_DOCS=1 cargo test -p openwhisk-compat configuration_document"
    );
}

proptest! {
    #[test]
    fn no_environment_panics(
        entries in proptest::collection::btree_map(
            prop_oneof![
                "CONFIG_whisk_[a-zA-Z0-9_]{0,20}",
                proptest::sample::select(declarations().iter().map(Declaration::variable).collect::<Vec<_>>()),
            ],
            "\\PC{0,12}|[0-9]{1,20} ?[a-zA-Z]{0,3}|\\$[A-Z_]{1,5}",
            0..30,
        )
    ) {
        let _ = Settings::read(&Sources::from_environment(entries));
    }
}
