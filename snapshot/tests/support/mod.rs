//! Programs in a sandbox of their own: fresh namespaces, a control group, no Docker.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test file uses a part")]

use snapshot::{
    CheckpointError, CheckpointReport, Keeper, Options, Pid, Quarantine, Reason, RewindReport, Snapshot,
    Target,
};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Whether tests that need root and the engine can run; says loudly if not.
pub fn can_run(test: &str) -> bool {
    let features = snapshot::probe();
    if nix::unistd::geteuid().is_root() && features.pagemap() {
        return true;
    }
    eprintln!("SKIP {test}: needs root and\n{features}");
    false
}

/// Skips the calling test if the machine cannot run it.
#[macro_export]
macro_rules! needs_engine {
    () => {
        if !support::can_run(module_path!()) {
            return;
        }
    };
}

fn build_directory() -> &'static Path {
    static DIR: OnceLock<tempfile::TempDir> = OnceLock::new();
    DIR.get_or_init(|| tempfile::tempdir().expect("a temporary directory")).path()
}

/// Compiles a C source once per test program.
pub fn compile(source: &str) -> PathBuf {
    static LOCK: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _guard = LOCK.lock().unwrap_or_else(|e| e.into_inner());
    let out = build_directory().join(source.trim_end_matches(".c"));
    if !out.exists() {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support").join(source);
        let status = Command::new("cc")
            .args(["-O1", "-g", "-Wall", "-pthread", "-o"])
            .arg(&out)
            .arg(&from)
            .status()
            .expect("cc runs");
        assert!(status.success(), "{source} does not compile");
    }
    out
}

/// A program that does what it is told, as process 1 of its own sandbox.
pub struct Puppet {
    launcher: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    pub init: Pid,
    pub target: Target,
    group: PathBuf,
    memory: PathBuf,
}

impl Puppet {
    /// The Python puppet.
    pub fn python() -> Puppet {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/puppet.py");
        let script = script.to_str().expect("a path in UTF-8").to_owned();
        // -I and -S keep it small and independent of the machine.
        let mut puppet = Puppet::start(&["python3", "-I", "-S", &script]);
        assert_eq!(puppet.line(), "\"ready\"");
        puppet
    }

    /// A compiled C puppet.
    pub fn c(source: &str) -> Puppet {
        let program = compile(source);
        let mut puppet = Puppet::start(&[program.to_str().expect("a path in UTF-8")]);
        assert_eq!(puppet.line(), "ready");
        puppet
    }

    pub fn start(command: &[&str]) -> Puppet {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("rewind-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::SeqCst));
        let pids = Path::new("/sys/fs/cgroup/pids");
        let root = if pids.exists() { pids } else { Path::new("/sys/fs/cgroup") };
        let group = root.join(&name);
        std::fs::create_dir(&group).expect("a control group");
        let mut groups = format!("{}/cgroup.procs", group.display());
        // Its own memory, too: the census asks whose pages wait to be freed.
        let memory = Path::new("/sys/fs/cgroup/memory").join(&name);
        if std::fs::create_dir(&memory).is_ok() {
            groups += &format!(":{}/cgroup.procs", memory.display());
        }
        let pidfile = build_directory().join(name);
        let mut launcher = Command::new(compile("launch.c"))
            .arg(groups)
            .arg(&pidfile)
            .args(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // Not that of the test: its offset moves while others write to it.
            .stderr(Stdio::null())
            .spawn()
            .expect("the launcher starts");
        let (stdin, stdout) = (launcher.stdin.take(), launcher.stdout.take());
        let pid = wait_for("the sandbox", || {
            let text = std::fs::read_to_string(&pidfile).ok()?;
            text.strip_suffix('\n')?.parse().ok()
        });
        let init = Pid::from_raw(pid);
        let target = Target::from_init(init).expect("a target");
        assert_eq!(target.cgroup(), group);
        Puppet {
            launcher,
            stdin: stdin.expect("a pipe"),
            stdout: BufReader::new(stdout.expect("a pipe")),
            init,
            target,
            group,
            memory,
        }
    }

    /// Sends a line and returns the answer.
    pub fn ask(&mut self, line: &str) -> String {
        self.send(line);
        self.line()
    }

    /// Sends a line.
    pub fn send(&mut self, line: &str) {
        self.stdin.write_all(line.as_bytes()).expect("the puppet listens");
        self.stdin.write_all(b"\n").expect("the puppet listens");
    }

    fn line(&mut self) -> String {
        let mut answer = String::new();
        self.stdout.read_line(&mut answer).expect("the puppet answers");
        assert!(answer.ends_with('\n'), "the puppet died: '{answer}'");
        answer.trim_end().to_owned()
    }

    /// Executes Python and returns what it assigned to `result`, as JSON.
    pub fn py(&mut self, code: &str) -> String {
        let answer = self.ask(&base64(code.as_bytes()));
        assert!(!answer.contains("\"error\""), "{}", answer.replace("\\n", "\n"));
        answer
    }

    /// Executes Python that will not answer (before the rewind).
    pub fn py_send(&mut self, code: &str) {
        self.send(&base64(code.as_bytes()));
    }

    /// Checkpoints with paranoid options.
    pub fn checkpoint(&mut self) -> Checked {
        self.checkpoint_with(&paranoid())
    }

    pub fn checkpoint_with(&mut self, options: &Options) -> Checked {
        self.try_checkpoint(options).unwrap_or_else(|e| panic!("{}", chain(&e)))
    }

    /// Tries to checkpoint, on a thread that goes on to serve the snapshot.
    pub fn try_checkpoint(&mut self, options: &Options) -> Result<Checked, CheckpointError> {
        let (target, options) = (self.target.clone(), options.clone());
        let keeper = Keeper::start("keeper".to_owned(), || None).expect("a thread");
        let report = keeper.ask(move |kept| {
            let (snapshot, report) = snapshot::checkpoint(&target, &options, &mut || Ok(()))?;
            *kept = Some(snapshot);
            Ok(report)
        });
        Ok(Checked { keeper, report: report.expect("the keeper lives")? })
    }

    /// The refusal of a checkpoint.
    pub fn refused(&mut self) -> Reason {
        match self.try_checkpoint(&paranoid()) {
            Err(CheckpointError::Refused(quarantine)) => quarantine.reason,
            Err(other) => panic!("not refused but {}", chain(&other)),
            Ok(_) => panic!("a checkpoint was taken"),
        }
    }

    /// Processes in the sandbox.
    pub fn processes(&self) -> Vec<i32> {
        let text = std::fs::read_to_string(self.group.join("cgroup.procs")).expect("readable");
        text.lines().map(|l| l.parse().expect("a pid")).collect()
    }

    /// Waits until nothing is left in the sandbox.
    pub fn wait_dead(&self) {
        wait_for("the end of all processes", || self.processes().is_empty().then_some(()));
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // Process 1 takes its pid namespace with it.
        let _ = nix::sys::signal::kill(self.init, nix::sys::signal::Signal::SIGKILL);
        let _ = self.launcher.wait();
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::remove_dir(&self.group).is_err() && self.group.exists() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = std::fs::remove_dir(&self.memory);
    }
}

/// A snapshot that is served, with its report.
pub struct Checked {
    pub keeper: Keeper<Option<Snapshot>>,
    pub report: CheckpointReport,
}

impl Checked {
    pub fn try_rewind(&mut self) -> Result<RewindReport, Quarantine> {
        self.with(|snapshot| snapshot.rewind(&mut || Ok(())))
    }

    pub fn rewind(&mut self) -> RewindReport {
        self.try_rewind().unwrap_or_else(|q| panic!("{}", chain(&q)))
    }

    pub fn quarantined(&mut self) -> Quarantine {
        match self.try_rewind() {
            Err(quarantine) => quarantine,
            Ok(report) => panic!("rewound: {report:?}"),
        }
    }

    /// Works on the snapshot on its thread.
    pub fn with<T: Send + 'static>(&self, work: impl FnOnce(&mut Snapshot) -> T + Send + 'static) -> T {
        self.keeper.ask(|kept| work(kept.as_mut().expect("a snapshot"))).expect("the keeper lives")
    }

    /// Gives the snapshot up.
    pub fn forget(self) -> Result<(), Quarantine> {
        self.keeper.ask(|kept| kept.take().expect("a snapshot").forget()).expect("the keeper lives")
    }
}

pub fn paranoid() -> Options {
    Options { paranoid: true, ..Options::default() }
}

/// The ways of a rewind: everything looked at twice, as in production, and without asking the kernel first.
pub fn ways() -> [Options; 3] {
    let census = Options::default();
    [paranoid(), census.clone(), Options { census: false, ..census }]
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text += &format!(": {error}");
        next = error.source();
    }
    text
}

/// Waits for a condition, with a deadline far beyond what it takes.
pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Waits a little for something that may never come.
pub fn eventually<T>(mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    (0..100).find_map(|_| {
        condition().or_else(|| {
            std::thread::sleep(Duration::from_millis(5));
            None
        })
    })
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |w, b| w << 8 | u32::from(*b)) << (8 * (3 - chunk.len()));
        for digit in 0..4 {
            let index = (word >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[index as usize]) });
        }
    }
    text
}
