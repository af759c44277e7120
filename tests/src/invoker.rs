//! The program under test, as a child process, started as deployments start the JVM invoker: by command
//! line and environment (contract 1.1, 1.3).

use crate::env::repository;
use crate::lab::{Lab, manifest};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::time::{Duration, Instant};

/// How to start an invoker.
#[derive(Clone, Debug)]
pub struct Builder {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    directory: PathBuf,
    /// What starts the program: nothing, or a command and its arguments.
    wrapper: Vec<String>,
    instance: u32,
    port: u16,
    /// The program, if it is not the one of this build.
    program: Option<PathBuf>,
}

impl Builder {
    /// `--id 0`, the lab's topics, databases and images, user events on, 1 GB for containers.
    pub(crate) fn new(lab: &Lab) -> Self {
        let port = free_port();
        let directory = lab.services.run.join(format!("invoker-{}", lab.name));
        let couchdb = lab.services.couchdb.strip_prefix("http://").expect("the store speaks HTTP");
        let (host, couchdb_port) = couchdb.rsplit_once(':').expect("the store has a port");
        let store = &lab.store.prefix;
        let environment = [
            ("PORT", port.to_string()),
            ("KAFKA_HOSTS", lab.services.kafka.clone()),
            ("RUNTIMES_MANIFEST", manifest(&[]).to_string()),
            ("WHISK_API_HOST_PROTO", "http".to_owned()),
            ("WHISK_API_HOST_PORT", "3233".to_owned()),
            ("WHISK_API_HOST_NAME", "172.17.0.1".to_owned()),
            ("CONFIG_whisk_kafka_topics_prefix", lab.name.clone()),
            ("CONFIG_whisk_kafka_topics_userEvent_prefix", lab.name.clone()),
            ("CONFIG_whisk_userEvents_enabled", "true".to_owned()),
            ("CONFIG_whisk_couchdb_protocol", "http".to_owned()),
            ("CONFIG_whisk_couchdb_host", host.to_owned()),
            ("CONFIG_whisk_couchdb_port", couchdb_port.to_owned()),
            ("CONFIG_whisk_couchdb_username", lab.services.couchdb_username.clone()),
            ("CONFIG_whisk_couchdb_password", lab.services.couchdb_password.clone()),
            ("CONFIG_whisk_couchdb_provider", "CouchDB".to_owned()),
            ("CONFIG_whisk_couchdb_databases_WhiskAuth", format!("{store}subjects")),
            ("CONFIG_whisk_couchdb_databases_WhiskEntity", format!("{store}whisks")),
            ("CONFIG_whisk_couchdb_databases_WhiskActivation", format!("{store}activations")),
            ("CONFIG_whisk_containerPool_userMemory", "1024 m".to_owned()),
            ("CONFIG_whisk_containerProxy_timeouts_idleContainer", "10 minutes".to_owned()),
            ("METRICS_KAMON", "true".to_owned()),
            ("METRICS_KAMON_TAGS", "true".to_owned()),
            ("METRICS_LOG", "false".to_owned()),
            ("DOCKER_HOST", lab.services.docker.clone()),
            ("REWIND_DOCKER_HOST", lab.services.docker.clone()),
            ("REWIND_STATE_DIR", directory.join("state").display().to_string()),
            ("RUST_BACKTRACE", "1".to_owned()),
        ];
        let arguments = ["--id", "0", "--uniqueName", &lab.name];
        Self {
            arguments: arguments.map(str::to_owned).to_vec(),
            environment: environment.map(|(name, value)| (name.to_owned(), value)).into(),
            directory,
            wrapper: Vec::new(),
            instance: 0,
            port,
            program: None,
        }
    }

    /// Another build of the program, to compare with.
    pub fn program(mut self, program: &Path) -> Self {
        self.program = Some(program.to_owned());
        self
    }

    /// `--isolation`: `rewind`, `single-use` or `none`.
    pub fn isolation(self, isolation: &str) -> Self {
        self.argument("--isolation").argument(isolation)
    }

    /// `--id`, in place of 0.
    pub fn id(mut self, id: u32) -> Self {
        self.arguments[1] = id.to_string();
        self.instance = id;
        self.directory.set_extension(id.to_string());
        self.environment
            .insert("REWIND_STATE_DIR".to_owned(), self.directory.join("state").display().to_string());
        self
    }

    /// These arguments in place of all others; no first ping of a certain instance is waited for then.
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments = arguments.iter().map(|a| (*a).to_owned()).collect();
        self
    }

    /// One more argument.
    pub fn argument(mut self, argument: &str) -> Self {
        self.arguments.push(argument.to_owned());
        self
    }

    /// One environment variable.
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.environment.insert(name.to_owned(), value.to_string());
        self
    }

    /// All its environment variables, for who starts it in another way.
    pub fn environment(&self) -> &BTreeMap<String, String> {
        &self.environment
    }

    /// Started by this command, which gets the program and its arguments behind its own and becomes it.
    pub fn through(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// Without an environment variable.
    pub fn without(mut self, name: &str) -> Self {
        self.environment.remove(name);
        self
    }

    /// Memory for containers, such as `512 m`.
    pub fn user_memory(self, size: &str) -> Self {
        self.env("CONFIG_whisk_containerPool_userMemory", size)
    }

    /// The runtimes manifest.
    pub fn manifest(self, manifest: &Value) -> Self {
        self.env("RUNTIMES_MANIFEST", manifest)
    }

    /// The store behind `http://host:port`, in place of the lab's.
    pub fn store_at(self, address: std::net::SocketAddr) -> Self {
        self.env("CONFIG_whisk_couchdb_host", address.ip()).env("CONFIG_whisk_couchdb_port", address.port())
    }

    /// Starts it and waits for its first ping.
    pub async fn start(&self, lab: &Lab) -> Invoker {
        let before = Instant::now();
        let mut invoker = self.spawn();
        let instance = u64::from(self.instance);
        let ping =
            lab.controller.ping(|ping| ping["isEnabled"] == true && ping["name"]["instance"] == instance);
        tokio::select! {
            ping = ping => invoker.first_ping = Some(ping.at - before),
            status = invoker.exited(Duration::MAX) => panic!("the invoker ended before its first ping: {status:?}\n{}", invoker.tail()),
        }
        invoker
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&self) -> Invoker {
        std::fs::create_dir_all(&self.directory).expect("the run directory can be written");
        let path = self.directory.join("log");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .expect("the log can be written");
        let mut words: Vec<std::ffi::OsString> = self.wrapper.iter().map(Into::into).collect();
        words.push(self.program.clone().unwrap_or_else(binary).into());
        let mut command = Command::new(&words[0]);
        command
            .args(&words[1..])
            .arg("invoker")
            .args(&self.arguments)
            .env_clear()
            .envs(&self.environment)
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", std::env::var_os("HOME").unwrap_or_default())
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a file can be shared"))
            .stderr(log);
        if let Some(filter) = std::env::var_os("REWIND_LOG") {
            command.env("REWIND_LOG", filter);
        }
        let child = command.spawn().unwrap_or_else(|e| panic!("{}: {e}", words[0].display()));
        Invoker { child, log: path, port: self.port, first_ping: None }
    }
}

/// A running invoker; killed when dropped.
#[derive(Debug)]
pub struct Invoker {
    child: Child,
    log: PathBuf,
    port: u16,
    /// Time from its start to its first ping.
    pub first_ping: Option<Duration>,
}

impl Invoker {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// `http://host:port` of its HTTP server.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// The port of its HTTP server.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The text of `/metrics`.
    pub async fn metrics(&self) -> String {
        let answer = reqwest::get(format!("{}/metrics", self.url())).await.expect("the invoker answers");
        answer.text().await.expect("metrics are text")
    }

    /// The sum of a metric over all label sets that contain `labels` (such as `reason="x"`), 0 when there is none.
    pub async fn metric(&self, name: &str, labels: &str) -> f64 {
        let text = self.metrics().await;
        let value = |line: &str| line.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok());
        let named = |line: &&str| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']));
        text.lines().filter(named).filter(|line| line.contains(labels)).filter_map(value).sum()
    }

    /// Waits for its end; `None` when it does not come in time.
    pub async fn exited(&mut self, patience: Duration) -> Option<ExitStatus> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("a child can be waited for") {
                return Some(status);
            }
            if start.elapsed() > patience {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Whether it runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().expect("a child can be waited for").is_none()
    }

    /// Asks it to end.
    pub fn terminate(&self) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("pids are small"));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("our child can be signalled");
    }

    /// Asks it to end and waits for it.
    pub async fn stop(mut self) -> ExitStatus {
        self.terminate();
        let status = self.exited(Duration::from_secs(60)).await;
        status.unwrap_or_else(|| panic!("the invoker does not end within 60 s of SIGTERM\n{}", self.tail()))
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.child.kill().expect("our child can be killed");
        self.child.wait().expect("a killed child ends");
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("the kernel says so");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// The end of its output.
    pub fn tail(&self) -> String {
        let text = self.output();
        let lines: Vec<&str> = text.lines().collect();
        format!("the end of {}:\n{}", self.log.display(), lines[lines.len().saturating_sub(60)..].join("\n"))
    }
}

impl Drop for Invoker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("{}", self.tail());
            // Asks `tests/env/down` to keep the logs of this run.
            if let Some(run) = self.log.parent().and_then(Path::parent) {
                let _ = std::fs::write(run.join("keep"), "");
            }
        }
    }
}

/// The program, built if it is not current. `REWIND_BINARY` names another one.
pub fn binary() -> PathBuf {
    static BUILT: Once = Once::new();
    if let Some(path) = std::env::var_os("REWIND_BINARY") {
        return path.into();
    }
    // Test binaries are in target/PROFILE/deps, helper binaries in target/PROFILE.
    let here = std::env::current_exe().expect("this process has a path");
    let folder = here.parent().expect("a file is in a folder");
    let folder =
        if folder.ends_with("deps") { folder.parent().expect("deps is in a folder") } else { folder };
    BUILT.call_once(|| {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "-p", "rewind-invoker", "--bin", "rewind"]).current_dir(repository());
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        let status = cargo.stdin(Stdio::null()).status().expect("cargo can be run");
        assert!(status.success(), "the program under test cannot be built");
    });
    folder.join("rewind")
}

/// A port that is free now.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
    listener.local_addr().expect("it is bound").port()
}
