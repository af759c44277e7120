//! `rewind check`: what this machine can do, what is missing, and how to get it.
//!
//! Every line is a [`Finding`]; [`Report::starts`] says whether the invoker would start. Nothing is changed and
//! nothing is written, except an empty file in the state directory, which is removed again.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use openwhisk_compat::config::{Engine, Isolation, Mistakes, Settings};
use openwhisk_compat::store::{Couch, CouchSettings};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde::Serialize;

use crate::errors::chain;
use crate::id::{self, IdChoice};
use crate::privileges;

/// How long each service may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// The inode of the first process namespace (`PROC_PID_INIT_INO` in the kernel's `proc_ns.h`).
const FIRST_PID_NAMESPACE: u64 = 0xEFFF_FFFC;

/// What was found about one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, but see the remedy.
    Warning,
    /// The invoker would not start.
    Missing,
    /// Not looked at, because nothing in the configuration asks for it.
    Skipped,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// `machine`, `engine`, `docker`, `services` or `configuration`.
    pub area: &'static str,
    /// What was looked at.
    pub name: String,
    /// The verdict.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// How to get what is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

/// Everything that was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// In reading order.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Whether the invoker would start.
    #[must_use]
    pub fn starts(&self) -> bool {
        self.findings.iter().all(|finding| finding.status != Status::Missing)
    }

    /// The report for machines: `{"starts":bool,"findings":[...]}`.
    #[must_use]
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Whole<'a> {
            starts: bool,
            findings: &'a [Finding],
        }
        let whole = Whole { starts: self.starts(), findings: &self.findings };
        serde_json::to_string_pretty(&whole).unwrap_or_else(|error| format!("{{\"error\":\"{error}\"}}"))
    }

    fn add(
        &mut self,
        area: &'static str,
        name: impl Into<String>,
        status: Status,
        found: impl Into<String>,
    ) -> &mut Finding {
        let finding = Finding { area, name: name.into(), status, found: found.into(), remedy: None };
        let last = self.findings.len();
        self.findings.push(finding);
        &mut self.findings[last]
    }
}

impl Finding {
    fn remedy(&mut self, remedy: impl Into<String>) {
        self.remedy = Some(remedy.into());
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut area = "";
        for finding in &self.findings {
            if finding.area != area {
                area = finding.area;
                writeln!(f, "{area}")?;
            }
            let status = match finding.status {
                Status::Ok => "ok",
                Status::Warning => "warning",
                Status::Missing => "MISSING",
                Status::Skipped => "-",
            };
            writeln!(f, "  {status:<8} {:<22} {}", finding.name, finding.found)?;
            if let Some(remedy) = &finding.remedy {
                writeln!(f, "  {:<8} {:<22} -> {remedy}", "", "")?;
            }
        }
        match self.starts() {
            true => writeln!(f, "the invoker would start"),
            false => writeln!(f, "the invoker would NOT start"),
        }
    }
}

/// What the check goes by.
pub struct Input {
    /// The configuration, or its mistakes.
    pub settings: Result<Settings, Mistakes>,
    /// Whether there is a configuration at all. Without one only the machine is looked at, and its absence is
    /// no failure: see [`is_configured`].
    pub configured: bool,
    /// The mode asked for; the configuration's unless the command line says otherwise.
    pub isolation: Isolation,
    /// The engine asked for.
    pub engine: Engine,
    /// How the id would be found; `None` when the command line did not say.
    pub id: Option<IdChoice>,
}

impl Input {
    /// What this process's environment says. The command line of `rewind invoker` is not known here: an id may
    /// come either way.
    #[must_use]
    pub fn from_process() -> Self {
        let settings = crate::settings::Settings::from_process(&crate::cli::InvokerArgs::default());
        let names: Vec<String> =
            std::env::vars_os().map(|(name, _)| name.to_string_lossy().into_owned()).collect();
        // With mistakes elsewhere in the configuration these two still decide what is needed of the machine.
        let said = |name: &str| std::env::var(name).unwrap_or_default();
        let isolation = settings.as_ref().map_or_else(
            |_| said("REWIND_ISOLATION").parse().unwrap_or(Isolation::Rewind),
            |settings| settings.isolation,
        );
        let engine = settings.as_ref().map_or_else(
            |_| said("REWIND_ENGINE").parse().unwrap_or(Engine::Auto),
            |settings| settings.engine,
        );
        Self {
            settings: settings.map(|settings| settings.config),
            configured: is_configured(names.iter().map(String::as_str)),
            isolation,
            engine,
            id: None,
        }
    }
}

/// Whether the environment looks like that of an invoker.
pub fn is_configured<'a>(mut variables: impl Iterator<Item = &'a str>) -> bool {
    variables.any(|name| {
        matches!(name, "KAFKA_HOSTS" | "RUNTIMES_MANIFEST" | "OPENWHISK_CONFIG" | "OPENWHISK_ENCODED_CONFIG")
            || name.starts_with("CONFIG_whisk_couchdb_")
    })
}

/// Looks at everything.
pub async fn check(input: &Input) -> Report {
    let mut report = Report::default();
    let settings = input.settings.as_ref().ok();
    machine(&mut report, input.isolation);
    engine(&mut report, input.isolation, input.engine);
    state_dir(&mut report, settings);
    let host = settings.map_or("unix:///var/run/docker.sock", |settings| &settings.rewind.docker_host);
    docker(&mut report, host).await;
    configuration(&mut report, input);
    services(&mut report, settings, input.id.as_ref()).await;
    report
}

fn machine(report: &mut Report, isolation: Isolation) {
    const AREA: &str = "machine";
    match nix::sys::utsname::uname() {
        Ok(name) => report.add(
            AREA,
            "kernel",
            Status::Ok,
            format!("{} {}", name.release().to_string_lossy(), name.machine().to_string_lossy()),
        ),
        Err(error) => report.add(AREA, "kernel", Status::Warning, format!("unknown: {error}")),
    };

    let cgroup = |path: &str| {
        nix::sys::statfs::statfs(path)
            .is_ok_and(|found| found.filesystem_type() == nix::sys::statfs::CGROUP2_SUPER_MAGIC)
    };
    if cgroup("/sys/fs/cgroup") {
        report.add(AREA, "control groups", Status::Ok, "version 2");
    } else if Path::new("/sys/fs/cgroup/memory").exists() {
        let hybrid = if cgroup("/sys/fs/cgroup/unified") { " (hybrid)" } else { "" };
        report.add(AREA, "control groups", Status::Ok, format!("version 1{hybrid}"));
    } else {
        report
            .add(AREA, "control groups", Status::Missing, "nothing mounted on /sys/fs/cgroup")
            .remedy("mount them; in a container, mount the host's /sys/fs/cgroup");
    }

    match std::fs::read_to_string("/proc/filesystems") {
        Ok(list) if list.split_whitespace().any(|name| name == "overlay") => {
            report.add(AREA, "overlay", Status::Ok, "known to the kernel");
        }
        _ => report
            .add(AREA, "overlay", Status::Warning, "not loaded")
            .remedy("modprobe overlay (Docker loads it with its first container)"),
    }

    match std::fs::metadata("/proc/self/ns/pid").map(|found| std::os::unix::fs::MetadataExt::ino(&found)) {
        Ok(FIRST_PID_NAMESPACE) => {
            report.add(AREA, "processes", Status::Ok, "those of the host are visible");
        }
        _ => {
            report.add(AREA, "processes", Status::Warning, "this is not the host's process namespace").remedy(
                "run the invoker's container with --pid=host, unless dockerd lives in this namespace, too",
            )
        }
    }

    match privileges::missing(isolation) {
        Ok(missing) if missing.is_empty() => {
            report.add(AREA, "capabilities", Status::Ok, "all that are needed");
        }
        Ok(missing) => {
            for need in missing {
                let status = if need.essential { Status::Missing } else { Status::Warning };
                let name = need.capability.to_string();
                let short = name.trim_start_matches("CAP_").to_owned();
                report
                    .add(AREA, name, status, format!("absent, needed to {}", need.purpose))
                    .remedy(format!("run as root, or with --cap-add={short}"));
            }
        }
        Err(error) => {
            report.add(AREA, "capabilities", Status::Warning, format!("unknown: {error}"));
        }
    }
}

fn engine(report: &mut Report, isolation: Isolation, engine: Engine) {
    const AREA: &str = "engine";
    let features = snapshot::probe();
    let needed = isolation == Isolation::Rewind;
    for feature in &features.features {
        match &feature.state {
            Ok(found) => {
                report.add(AREA, feature.name, Status::Ok, found.as_str());
            }
            Err(missing) => {
                let status = if feature.required && needed { Status::Missing } else { Status::Warning };
                report.add(AREA, feature.name, status, missing.as_str());
            }
        }
    }
    let usable = features.pagemap() && engine != Engine::None;
    let (status, found) = match (isolation, usable) {
        (Isolation::Rewind, true) => (Status::Ok, "rewind, by the pagemap engine"),
        (Isolation::Rewind, false) => (Status::Missing, "rewind was asked for and no engine works"),
        (Isolation::SingleUse, _) => (Status::Ok, "single-use: a container serves one request"),
        (Isolation::None, _) => (Status::Warning, "none: requests can find what earlier ones left"),
    };
    let finding = report.add(AREA, "isolation", status, found);
    if status == Status::Missing {
        finding.remedy("give it what is MISSING above, or say REWIND_ISOLATION=single-use");
    }
}

fn state_dir(report: &mut Report, settings: Option<&Settings>) {
    let Some(settings) = settings else { return };
    let dir = Path::new(&settings.rewind.state_dir);
    let probe = dir.join(format!(".check-{}", std::process::id()));
    let outcome = std::fs::create_dir_all(dir)
        .and_then(|()| std::fs::File::create(&probe))
        .and_then(|_| std::fs::remove_file(&probe));
    let shown = dir.display().to_string();
    match outcome {
        Ok(()) => {
            report.add("machine", "state directory", Status::Ok, shown);
        }
        Err(error) => report
            .add("machine", "state directory", Status::Missing, format!("{shown}: {error}"))
            .remedy("make it writable, or name another in REWIND_STATE_DIR"),
    }
}

async fn docker(report: &mut Report, host: &str) {
    const AREA: &str = "docker";
    let asked = tokio::time::timeout(ANSWER_WITHIN, ask_docker(host)).await;
    let info = match asked {
        Ok(Ok(info)) => info,
        Ok(Err(error)) => return no_docker(report, host, &chain(&error)),
        Err(_) => return no_docker(report, host, "no answer"),
    };
    let word = |text: Option<String>| text.unwrap_or_else(|| "unknown".to_owned());
    report.add(AREA, "engine", Status::Ok, format!("Docker {} at {host}", word(info.server_version)));
    let driver = word(info.driver);
    if matches!(driver.as_str(), "overlay2" | "overlayfs") {
        report.add(AREA, "storage", Status::Ok, driver);
    } else {
        report
            .add(
                AREA,
                "storage",
                Status::Warning,
                format!("{driver}: files of containers cannot be put back"),
            )
            .remedy("set \"storage-driver\": \"overlay2\" in /etc/docker/daemon.json");
    }
    let cgroup = word(info.cgroup_version.map(|version| version.to_string()));
    report.add(AREA, "control groups", Status::Ok, format!("version {cgroup}"));
    let logs = Path::new(&word(info.docker_root_dir)).join("containers");
    match std::fs::read_dir(&logs) {
        Ok(_) => {
            report.add(AREA, "logs", Status::Ok, logs.display().to_string());
        }
        Err(error) => report
            .add(AREA, "logs", Status::Missing, format!("{}: {error}", logs.display()))
            .remedy("mount that directory of the host at the same place (read-only is enough)"),
    }
}

fn no_docker(report: &mut Report, host: &str, why: &str) {
    report
        .add("docker", "engine", Status::Missing, format!("{host} does not answer: {why}"))
        .remedy("install and start Docker (apt-get install docker.io), or mount its socket");
}

async fn ask_docker(host: &str) -> Result<bollard::models::SystemInfo, bollard::errors::Error> {
    crate::health::docker(host)?.info().await
}

fn configuration(report: &mut Report, input: &Input) {
    const AREA: &str = "configuration";
    match &input.settings {
        Ok(_) => {
            report.add(AREA, "settings", Status::Ok, "no mistakes");
        }
        Err(_) if !input.configured => {
            report.add(AREA, "settings", Status::Skipped, "no OpenWhisk configuration in the environment");
        }
        Err(Mistakes(mistakes)) => {
            for mistake in mistakes {
                report
                    .add(AREA, mistake.place.clone(), Status::Missing, mistake.what.clone())
                    .remedy("docs/configuration.md lists every setting");
            }
        }
    }
}

async fn services(report: &mut Report, settings: Option<&Settings>, id: Option<&IdChoice>) {
    const AREA: &str = "services";
    let Some(settings) = settings else {
        report.add(AREA, "Kafka, CouchDB", Status::Skipped, "not configured");
        return;
    };
    let hosts = settings.openwhisk.kafka_hosts.clone();
    match kafka(hosts.clone(), settings.kafka.common.dotted()).await {
        Ok(brokers) => {
            report.add(AREA, "Kafka", Status::Ok, format!("{brokers} broker(s) at {hosts}"));
        }
        Err(why) => report
            .add(AREA, "Kafka", Status::Missing, format!("{hosts} does not answer: {why}"))
            .remedy("see KAFKA_HOSTS and CONFIG_whisk_kafka_common_*"),
    }
    couchdb(report, settings).await;
    let Some(hosts) = settings.openwhisk.zookeeper_hosts.as_deref() else { return };
    if id.is_some_and(|id| id.id.is_some()) {
        report.add(AREA, "ZooKeeper", Status::Skipped, "not needed with --id");
        return;
    }
    let needed = id.is_some();
    match tokio::time::timeout(ANSWER_WITHIN, id::ping(hosts)).await {
        Ok(Ok(())) => {
            report.add(AREA, "ZooKeeper", Status::Ok, hosts);
        }
        outcome => {
            let why = match outcome {
                Ok(Err(error)) => error.to_string(),
                _ => "no answer".to_owned(),
            };
            let status = if needed { Status::Missing } else { Status::Warning };
            report
                .add(AREA, "ZooKeeper", status, format!("{hosts} does not answer: {why}"))
                .remedy("see ZOOKEEPER_HOSTS, or give the id with --id");
        }
    }
}

async fn kafka(hosts: String, common: std::collections::BTreeMap<String, String>) -> Result<usize, String> {
    let asked = tokio::task::spawn_blocking(move || {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &hosts);
        for (name, value) in common {
            // Names that only Java knows are the bus's business; here a plain answer is wanted.
            if name == "security.protocol" || name.starts_with("sasl.") {
                config.set(name, value);
            }
        }
        let consumer: BaseConsumer = config.create().map_err(|error| error.to_string())?;
        let metadata = consumer.fetch_metadata(None, ANSWER_WITHIN).map_err(|error| error.to_string())?;
        Ok(metadata.brokers().len())
    });
    asked.await.unwrap_or_else(|error| Err(error.to_string()))
}

async fn couchdb(report: &mut Report, settings: &Settings) {
    const AREA: &str = "services";
    let remedy = "see CONFIG_whisk_couchdb_*";
    let couch = match Couch::new(couch_settings(settings)) {
        Ok(couch) => couch,
        Err(error) => {
            return report.add(AREA, "CouchDB", Status::Missing, chain(&error)).remedy(remedy);
        }
    };
    for (what, name) in [
        ("subjects", &settings.couchdb.database_auth),
        ("actions", &settings.couchdb.database_entity),
        ("activations", &settings.couchdb.database_activation),
    ] {
        let label = format!("CouchDB {what}");
        match tokio::time::timeout(ANSWER_WITHIN, couch.database(name).exists()).await {
            Ok(Ok(())) => {
                report.add(AREA, label, Status::Ok, format!("{}{name}", couch.address()));
            }
            outcome => {
                let why = match outcome {
                    Ok(Err(error)) => chain(&error),
                    _ => "no answer".to_owned(),
                };
                report
                    .add(AREA, label, Status::Missing, format!("{}{name}: {why}", couch.address()))
                    .remedy(remedy);
            }
        }
    }
}

/// The store's address from the configuration.
#[must_use]
pub fn couch_settings(settings: &Settings) -> CouchSettings {
    let couchdb = &settings.couchdb;
    CouchSettings {
        protocol: couchdb.protocol.name().to_owned(),
        host: couchdb.host.clone(),
        port: couchdb.port,
        username: couchdb.username.clone(),
        password: couchdb.password.reveal().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openwhisk_compat::config::Sources;

    fn settings(more: &[(&str, &str)]) -> Result<Settings, Mistakes> {
        let state = std::env::temp_dir();
        let mut environment: std::collections::BTreeMap<String, String> = [
            // Port 9 discards; nobody answers there.
            ("KAFKA_HOSTS", "127.0.0.1:9"),
            ("RUNTIMES_MANIFEST", r#"{"runtimes":{}}"#),
            ("WHISK_API_HOST_NAME", "localhost"),
            ("CONFIG_whisk_couchdb_protocol", "http"),
            ("CONFIG_whisk_couchdb_host", "127.0.0.1"),
            ("CONFIG_whisk_couchdb_port", "9"),
            ("CONFIG_whisk_couchdb_username", "u"),
            ("CONFIG_whisk_couchdb_password", "p"),
            ("CONFIG_whisk_couchdb_databases_WhiskAuth", "subjects"),
            ("CONFIG_whisk_couchdb_databases_WhiskEntity", "whisks"),
            ("CONFIG_whisk_couchdb_databases_WhiskActivation", "activations"),
            ("REWIND_STATE_DIR", state.to_str().unwrap()),
            ("REWIND_DOCKER_HOST", "unix:///nowhere/docker.sock"),
        ]
        .into_iter()
        .chain(more.iter().copied())
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        environment.retain(|_, value| !value.is_empty());
        Settings::read(&Sources::from_environment(environment))
    }

    fn input(settings: Result<Settings, Mistakes>, isolation: Isolation) -> Input {
        Input { settings, configured: true, isolation, engine: Engine::Auto, id: None }
    }

    fn find<'a>(report: &'a Report, name: &str) -> &'a Finding {
        report
            .findings
            .iter()
            .find(|finding| finding.name == name)
            .unwrap_or_else(|| panic!("{name}\n{report}"))
    }

    #[tokio::test]
    async fn services_that_are_away_are_named_with_their_address_and_a_remedy() {
        let report = check(&input(Ok(settings(&[]).unwrap()), Isolation::SingleUse)).await;
        assert!(!report.starts());
        for (name, found) in [
            ("engine", "unix:///nowhere/docker.sock does not answer: "),
            ("Kafka", "127.0.0.1:9 does not answer: "),
            ("CouchDB actions", "http://127.0.0.1:9/whisks: the store did not answer"),
        ] {
            let finding = find(&report, name);
            assert_eq!(finding.status, Status::Missing);
            assert!(finding.found.starts_with(found), "{finding:?}");
            assert!(finding.remedy.is_some());
        }
        let json: serde_json::Value = serde_json::from_str(&report.json()).unwrap();
        assert_eq!(json["starts"], false);
        assert_eq!(json["findings"].as_array().unwrap().len(), report.findings.len());
        assert!(report.to_string().ends_with("the invoker would NOT start\n"));
    }

    #[tokio::test]
    async fn every_mistake_of_the_configuration_is_a_line() {
        let wrong = settings(&[("PORT", "many"), ("CONFIG_whisk_couchdb_host", "")]);
        let Mistakes(mistakes) = wrong.as_ref().unwrap_err();
        let count = mistakes.len();
        assert!(count >= 2);
        let report = check(&input(wrong, Isolation::SingleUse)).await;
        let lines = report.findings.iter().filter(|finding| finding.area == "configuration").count();
        assert_eq!(lines, count);
        assert!(!report.starts());
    }

    #[test]
    fn without_any_configuration_only_the_machine_is_judged() {
        let mut report = Report::default();
        let none = Settings::read(&Sources::from_environment(std::collections::BTreeMap::new()));
        let mut input = input(none, Isolation::SingleUse);
        input.configured = false;
        configuration(&mut report, &input);
        assert!(report.starts());
        assert!(!is_configured(["PATH", "REWIND_LOG"].into_iter()));
        assert!(is_configured(["PATH", "CONFIG_whisk_couchdb_host"].into_iter()));
    }

    #[test]
    fn isolation_without_an_engine_does_not_start_unless_said_aloud() {
        let starts = |isolation, engine_asked| {
            let mut report = Report::default();
            engine(&mut report, isolation, engine_asked);
            report.starts()
        };
        assert!(!starts(Isolation::Rewind, Engine::None));
        assert!(starts(Isolation::SingleUse, Engine::None));
        assert!(starts(Isolation::None, Engine::None));
    }
}
