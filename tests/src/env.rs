//! The services of a test run.
//!
//! `make test` starts them once and says where they are in the environment (what `tests/env/up` prints).
//! Without it they are started for this process, and a watcher stops them when it is gone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where the services of a run are.
#[derive(Clone, Debug)]
pub struct Services {
    /// State, logs and pids, as `tests/env/service` keeps them.
    pub run: PathBuf,
    /// `host:port` of the broker.
    pub kafka: String,
    /// `http://host:port` of the store.
    pub couchdb: String,
    /// The store's administrator.
    pub couchdb_username: String,
    /// The administrator's password.
    pub couchdb_password: String,
    /// `unix:///...` of the Docker Engine.
    pub docker: String,
}

impl Services {
    /// The services of this run; started if nobody has started them.
    pub fn get() -> &'static Services {
        static SERVICES: OnceLock<Services> = OnceLock::new();
        SERVICES.get_or_init(|| {
            if std::env::var_os("REWIND_TEST_RUN").is_some() {
                return Self::from_names(&std::env::vars().collect());
            }
            let run = std::env::temp_dir().join(format!("rewind-test-{}", std::process::id()));
            Self::up(&run, &["--images"], &["kafka", "couchdb", "docker"])
        })
    }

    /// Services that share nothing with those of other tests, so that a test may stop and kill them.
    /// Docker is a daemon of its own only if `docker-own` is among `services`; the images are then built
    /// into it.
    pub fn own(name: &str, services: &[&str]) -> Own {
        let run = std::env::temp_dir().join(format!("rewind-test-{}-{name}", std::process::id()));
        let mut all = services.to_vec();
        for needed in ["kafka", "couchdb"] {
            if !all.contains(&needed) {
                all.push(needed);
            }
        }
        if !all.contains(&"docker-own") {
            all.push("docker");
        }
        Own { services: Self::up(&run, &["--images"], &all) }
    }

    /// Starts one more service (`zookeeper`, `prometheus`) for this run and returns what it exports.
    pub fn start(&self, service: &str) -> BTreeMap<String, String> {
        parse(&script("service").args(["start", service]).arg(&self.run).run())
    }

    /// Ends a service: gently, or with SIGKILL.
    pub fn stop(&self, service: &str, kill: bool) {
        script("service").args([if kill { "kill" } else { "stop" }, service]).arg(&self.run).run();
    }

    /// Ends a service and starts it again, on the same port.
    pub fn restart(&self, service: &str, kill: bool) {
        self.stop(service, kill);
        self.start(service);
    }

    fn up(run: &Path, options: &[&str], services: &[&str]) -> Self {
        let pid = std::process::id().to_string();
        let text = script("up").args(["--until", &pid]).args(options).arg(run).args(services).run();
        Self::from_names(&parse(&text))
    }

    fn from_names(names: &BTreeMap<String, String>) -> Self {
        let get = |name: &str| names.get(name).unwrap_or_else(|| panic!("{name} is not set")).clone();
        Self {
            run: PathBuf::from(get("REWIND_TEST_RUN")),
            kafka: get("KAFKA_HOSTS"),
            couchdb: get("COUCHDB_URL"),
            couchdb_username: get("COUCHDB_USERNAME"),
            couchdb_password: get("COUCHDB_PASSWORD"),
            docker: get("DOCKER_HOST"),
        }
    }
}

/// Services of one test, stopped when dropped.
#[derive(Debug)]
pub struct Own {
    services: Services,
}

impl std::ops::Deref for Own {
    type Target = Services;
    fn deref(&self) -> &Services {
        &self.services
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        let mut down = script("down");
        if std::thread::panicking() {
            down = down.arg("--keep-logs");
        }
        down.arg(&self.services.run).run_unless_panicking();
    }
}

/// The top of the source tree.
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is inside the repository").to_owned()
}

/// `NAME=VALUE` lines, with or without `export`.
fn parse(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.trim_start_matches("export ").split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn script(name: &str) -> Script {
    Script(Command::new(repository().join("tests/env").join(name)))
}

struct Script(Command);

impl Script {
    fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    fn arg(mut self, arg: impl AsRef<std::ffi::OsStr>) -> Self {
        self.0.arg(arg);
        self
    }

    /// Runs to the end and returns the standard output; progress goes to this process's standard error.
    fn run(mut self) -> String {
        let output = self
            .0
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap_or_else(|e| panic!("{:?}: {e}", self.0));
        assert!(output.status.success(), "{:?} failed: {}", self.0, output.status);
        String::from_utf8(output.stdout).expect("scripts print text")
    }

    fn run_unless_panicking(mut self) {
        let status = self.0.stdin(Stdio::null()).status();
        if !status.as_ref().is_ok_and(std::process::ExitStatus::success) && !std::thread::panicking() {
            panic!("{:?} failed: {status:?}", self.0);
        }
    }
}
