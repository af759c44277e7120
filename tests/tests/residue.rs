//! Every residue attack, as a pair of requests: the first plants a secret, the second looks for it.
//!
//! The runner drives containers as the invoker does (checkpoint after `/init`, a rewind after each `/run`), but
//! without Kafka and pool between, so that each case is one line of a table:
//!
//! ```text
//! row  channel                       runtime            outcome
//! ```
//!
//! * `restored`: the second request found nothing.
//! * `quarantined(reason)`: the container was not given to a second request.
//! * `FOUND`: it found what was planted. The test fails.
//! * `unseen`: the same pair *without* a rewind found nothing either, so the case proves nothing. The test fails.
//! * `forbidden(why)`: the sandbox does not allow the plant; there is no such channel here.
//!
//! That a look finds nothing before the plant is checked too.
//!
//! `RESIDUE_CASE=name,name` and `RESIDUE_RUNTIME=python,...` choose some; `RESIDUE_REPORT=file` writes the table.

#![allow(missing_docs, reason = "a test")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use base64::Engine as _;
use fs_overlay::{OverlayRoot, Sealed};
use rand::Rng as _;
use rewind_tests::Lab;
use rewind_tests::docker::Docker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use snapshot::{CheckpointError, Keeper, Kept, Quarantine, Snapshot, Target};

/// What actions run in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Runtime {
    /// Python, one process.
    Python,
    /// A Go proxy and a Python child.
    Actionloop,
    /// A shell, and node as its child.
    Node,
    /// C, one process.
    Native,
}

impl Runtime {
    const ALL: [Self; 4] = [Self::Python, Self::Actionloop, Self::Node, Self::Native];

    fn name(self) -> &'static str {
        match self {
            Self::Python => "python",
            Self::Actionloop => "actionloop",
            Self::Node => "node",
            Self::Native => "native",
        }
    }

    fn image(self) -> &'static str {
        match self {
            Self::Python => "rewind-test/action-python",
            Self::Actionloop => "rewind-test/action-actionloop-python",
            Self::Node => "rewind-test/action-nodejs",
            Self::Native => "rewind-test/action-native",
        }
    }

    fn letter(self) -> char {
        match self {
            Self::Python => 'p',
            Self::Actionloop => 'a',
            Self::Node => 'n',
            Self::Native => 'c',
        }
    }
}

/// One channel and the functions of that name in `attacks.{py,js,c}`.
#[derive(Debug, Clone, Copy)]
struct Case {
    /// Row of the list of channels; 0 for an evasion that belongs to no single row.
    row: u8,
    name: &'static str,
    channel: &'static str,
    /// Letters of the runtimes it is tried in.
    runtimes: &'static str,
    /// What the action makes at `/init` to be tampered with.
    prepared: &'static str,
}

const fn case(row: u8, runtimes: &'static str, name: &'static str, channel: &'static str) -> Case {
    Case { row, name, channel, runtimes, prepared: "" }
}

const fn with(
    row: u8,
    runtimes: &'static str,
    prepared: &'static str,
    name: &'static str,
    channel: &'static str,
) -> Case {
    Case { row, name, channel, runtimes, prepared }
}

const CASES: &[Case] = &[
    case(1, "panc", "global", "a global variable"),
    case(1, "panc", "heap", "heap blocks"),
    case(1, "pac", "break", "the heap, grown by brk"),
    case(1, "nc", "freed", "freed heap blocks"),
    case(1, "n", "prototype", "a prototype"),
    case(1, "n", "closure", "a captured variable"),
    case(1, "n", "module_cache", "a loaded module"),
    case(1, "n", "web_assembly", "WebAssembly memory"),
    case(2, "pac", "anonymous", "a new anonymous mapping, searched through maps"),
    case(2, "pa", "hole", "a new mapping without access"),
    case(3, "pac", "unmap", "unmapped and mapped anew"),
    case(3, "pa", "remap", "mremap"),
    case(3, "pac", "protect", "mprotect"),
    case(3, "pac", "discard", "MADV_DONTNEED"),
    case(3, "pa", "free", "MADV_FREE"),
    case(3, "pac", "vm_writev", "process_vm_writev into oneself"),
    case(3, "pa", "self_mem", "a write through /proc/self/mem"),
    case(3, "c", "kernel_written", "a page only the kernel wrote to"),
    case(4, "pan", "first", "the first request's own bytes"),
    case(5, "c", "stack", "the stack"),
    case(5, "pac", "thread_local", "thread-local storage"),
    case(5, "pac", "rounding", "rounding mode (x87 and SSE control)"),
    case(5, "c", "denormals", "denormals-are-zero (SSE control)"),
    case(5, "c", "segment_base", "the GS base"),
    case(6, "pac", "library_data", "private data of a library"),
    case(6, "pac", "text", "patched code"),
    case(6, "pac", "text_by_mem", "code patched through /proc/self/mem"),
    case(7, "pan", "shm", "a file in /dev/shm"),
    case(7, "pac", "memfd", "a new memfd"),
    with(7, "pac", "memfd", "pristine_memfd", "a memfd of /init, changed"),
    with(7, "pac", "shared", "shared_map", "shared memory of /init, changed"),
    case(7, "n", "shared_buffer", "a SharedArrayBuffer"),
    with(7, "pa", "shmfile", "shm_mapped", "a file in /dev/shm, changed through a mapping"),
    case(7, "pa", "shared_anonymous", "new shared anonymous memory"),
    with(7, "pa", "unlinked", "pristine_unlinked", "an open file without a name, changed"),
    case(8, "pac", "sysv_shm", "System V shared memory"),
    case(8, "pa", "sysv_shm_attached", "System V shared memory, removed but attached"),
    case(8, "pa", "sysv_sem", "System V semaphores"),
    case(8, "pa", "sysv_msg", "System V messages"),
    case(8, "pa", "mqueue", "a POSIX message queue"),
    case(9, "panc", "new_file", "a new file"),
    case(9, "pa", "newline_name", "a file whose name is not text"),
    case(9, "pan", "changed_file", "a changed file, its times put back"),
    case(9, "pan", "appended", "a file appended to"),
    case(9, "pa", "truncated", "a truncated file"),
    case(9, "pan", "renamed", "a renamed file"),
    case(9, "pa", "linked", "a hard link"),
    case(9, "panc", "lower_changed", "a changed file of the image"),
    case(9, "pa", "directory_replaced", "a directory of the image become a file"),
    case(9, "pan", "own_code", "the runtime's own files"),
    case(9, "pa", "many_files", "100,000 new files"),
    case(9, "pa", "deep", "1,000 directories in each other"),
    case(10, "pan", "deleted", "a deleted file"),
    case(10, "pan", "lower_deleted", "a deleted file of the image"),
    case(10, "pan", "symlink", "a symbolic link"),
    case(10, "pan", "mode", "modes, setuid"),
    case(10, "pan", "owner", "owner"),
    case(10, "pa", "xattr", "an extended attribute"),
    case(10, "pa", "acl", "an access control list"),
    case(10, "pan", "times", "times"),
    case(10, "pa", "access_time", "time of last access"),
    case(10, "pac", "binary_unlinked", "its own binary, unlinked"),
    case(11, "pan", "hosts", "/etc/hosts"),
    case(11, "pa", "resolv", "/etc/resolv.conf"),
    case(11, "pa", "dev", "a file in /dev"),
    case(11, "pa", "fifo", "a fifo"),
    case(11, "pa", "unix_socket", "a socket in the tree"),
    case(12, "pan", "fd_open", "a descriptor left open"),
    case(12, "pa", "fd_unlinked", "a descriptor of a deleted file"),
    case(12, "c", "tmpfile", "a descriptor of a file that never had a name"),
    case(12, "panc", "fd_closed", "a descriptor closed"),
    case(12, "pac", "fd_replaced", "a descriptor replaced by dup2"),
    case(12, "pa", "fd_cloexec", "close-on-exec flipped"),
    case(12, "pa", "fd_nonblock", "O_NONBLOCK flipped"),
    case(12, "pa", "stdout_nonblock", "O_NONBLOCK flipped on standard output"),
    case(12, "pa", "exhaust_fds", "all descriptors used up"),
    case(13, "panc", "offset", "a file's offset"),
    case(13, "pac", "flock", "flock"),
    case(13, "pa", "record_lock", "a record lock"),
    case(13, "pa", "owner_signal", "F_SETOWN, F_SETSIG"),
    case(13, "pa", "lease", "a lease"),
    case(14, "pan", "listener", "a listening TCP socket"),
    case(14, "panc", "abstract", "a listening abstract socket"),
    case(14, "pa", "connected", "a connection to itself, with data under way"),
    case(14, "pa", "datagram", "a datagram waiting"),
    case(14, "p", "listener_replaced", "the listening socket replaced by another"),
    case(14, "p", "listener_option", "an option of the listening socket"),
    with(14, "pa", "pipe", "pipe_data", "data in a pipe of /init"),
    with(14, "pa", "pipe", "pipe_spliced", "pages given to a pipe of /init"),
    with(14, "pa", "pipe", "pipe_size", "the size of a pipe of /init"),
    with(14, "pa", "pair", "pair_data", "data in a socket pair of /init"),
    with(14, "pa", "pair", "pair_option", "an option of a socket pair of /init"),
    with(14, "pa", "pair", "pair_descriptor", "a descriptor under way in a socket pair"),
    case(15, "panc", "thread", "a thread"),
    case(15, "n", "threads", "worker threads"),
    case(15, "pac", "many_threads", "thousands of threads"),
    with(15, "pa", "worker", "thread_swapped", "a thread swapped for another"),
    case(15, "pan", "background", "work that goes on after the answer"),
    case(15, "n", "interval", "an interval timer of Node"),
    case(16, "pan", "child", "a child"),
    case(16, "panc", "daemon", "a daemon, deaf to signals"),
    case(16, "pa", "group", "a child in its own process group"),
    case(16, "pa", "stubborn", "a process that forks and leaves for ever"),
    case(16, "pan", "fork_storm", "a storm of forks during the rewind"),
    case(16, "pa", "zombie", "a zombie's exit status"),
    case(16, "pa", "stopped_child", "a stopped child"),
    case(16, "pa", "child_keeps_pipe", "a child that keeps the pipes open"),
    case(16, "c", "shared_memory_child", "a process that shares the memory"),
    case(16, "c", "vfork", "a vfork that never ends"),
    case(17, "panc", "handler", "a signal handler"),
    case(17, "pac", "pending", "pending signals"),
    case(17, "pac", "altstack", "the alternate signal stack"),
    case(18, "pac", "mask", "the signal mask"),
    case(19, "pac", "interval", "interval timers"),
    case(19, "pac", "posix_timer", "a POSIX timer"),
    with(19, "pa", "timerfd", "timerfd", "a timerfd of /init, armed"),
    case(20, "panc", "cwd", "the working directory"),
    case(20, "panc", "umask", "umask"),
    case(20, "pa", "chroot", "the root directory"),
    case(20, "pac", "rlimit", "resource limits"),
    case(20, "pan", "nice", "nice"),
    case(20, "pa", "affinity", "CPU affinity"),
    case(20, "pa", "scheduler", "scheduling class"),
    case(20, "pa", "io_priority", "IO priority"),
    case(20, "panc", "name", "the thread's name"),
    case(20, "pa", "dumpable", "dumpable"),
    case(20, "pac", "no_new_privs", "no_new_privs"),
    case(20, "pa", "subreaper", "child subreaper"),
    case(20, "pa", "death_signal", "parent-death signal"),
    case(20, "pa", "timer_slack", "timer slack"),
    case(20, "pa", "keep_caps", "keep-capabilities"),
    case(20, "pa", "secure_bits", "secure bits"),
    case(20, "c", "mce_policy", "machine-check policy"),
    case(20, "pac", "seccomp", "a seccomp filter"),
    case(20, "pa", "bounding", "the capability bounding set"),
    case(20, "pa", "capabilities", "capabilities"),
    case(20, "pac", "user", "user ids"),
    case(20, "pa", "groups", "supplementary groups"),
    case(20, "pac", "personality", "personality"),
    case(20, "a", "session", "session and process group"),
    case(20, "pa", "coredump_filter", "core dump filter"),
    case(21, "panc", "environment", "an environment variable"),
    with(22, "pa", "epoll", "epoll_changed", "an epoll set of /init, changed"),
    with(22, "pa", "epoll,pipe", "epoll_added", "an epoll set of /init, added to"),
    with(22, "pa", "eventfd", "eventfd", "an eventfd of /init"),
    with(22, "pa", "inotify", "inotify", "an inotify of /init"),
    case(22, "n", "watch", "a watch on files"),
    case(22, "pa", "signalfd", "a signalfd"),
    case(22, "pa", "aio", "kernel AIO"),
    case(22, "pa", "io_uring", "io_uring"),
    case(22, "pa", "userfaultfd", "userfaultfd"),
    case(22, "pa", "perf", "perf events"),
    case(22, "pa", "bpf", "bpf"),
    case(22, "pa", "fanotify", "fanotify"),
    case(23, "pa", "keyring", "a key"),
    case(23, "pa", "namespace", "another namespace"),
    case(23, "pa", "mount", "a mount"),
    case(23, "pa", "tracer", "a child that traces its parent"),
    case(23, "pa", "landlock", "a landlock restriction"),
    case(24, "pa", "oom_score", "the OOM score"),
    case(25, "a", "proxy", "the memory of the proxy"),
    case(26, "pac", "locked", "a locked page"),
    case(26, "pa", "mlockall", "all future pages locked"),
    case(26, "pa", "dontfork", "MADV_DONTFORK"),
    case(26, "pa", "wipeonfork", "MADV_WIPEONFORK"),
    case(26, "pa", "hugepage", "MADV_HUGEPAGE"),
    case(26, "pa", "dontdump", "MADV_DONTDUMP"),
    case(26, "pa", "thp", "transparent huge pages switched off"),
    case(27, "pa", "random", "a random generator seeded by the request"),
    case(0, "pac", "agent", "an injected agent's code, overwritten"),
    case(0, "pac", "mappings", "20,000 small mappings"),
    case(0, "pac", "big", "300 MB more memory"),
    case(0, "pa", "exhaust_address_space", "the address space used up"),
];

/// Rows, or parts of them, that no pair of requests to one container can show, and why.
const ELSEWHERE: &[(u8, &str, &str)] = &[
    (
        24,
        "cgroup statistics, page-cache timing, change times, inode numbers",
        "not put back: the kernel offers no way; described in the security model",
    ),
    (
        27,
        "random numbers that repeat after every rewind",
        "added by a rewind, not left by a request: the entropy hook's tests",
    ),
    (
        28,
        "hash seed and address layout",
        "the same for all requests of one container, different between containers; described",
    ),
    (29, "TLS nonces, cached clocks, DNS caches", "as 27: added by a rewind; described"),
    (30, "log lines without an end, listener queues", "bytes outside the container: the invoker's log tests"),
    (31, "a network address used again", "between containers, not requests: the invoker's container tests"),
];

/// How a case ended.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Outcome {
    Restored,
    Quarantined(String),
    Found(String),
    Unseen(String),
    Forbidden(String),
    /// The container took the rewind and then did not answer.
    Mute(String),
}

impl Outcome {
    fn kind(&self) -> &'static str {
        match self {
            Self::Restored => "restored",
            Self::Quarantined(_) => "quarantined",
            Self::Found(_) => "FOUND",
            Self::Unseen(_) => "unseen",
            Self::Forbidden(_) => "forbidden",
            Self::Mute(_) => "MUTE",
        }
    }

    fn is_failure(&self) -> bool {
        matches!(self, Self::Found(_) | Self::Unseen(_) | Self::Mute(_))
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Restored => f.write_str(self.kind()),
            Self::Quarantined(why)
            | Self::Found(why)
            | Self::Unseen(why)
            | Self::Forbidden(why)
            | Self::Mute(why) => write!(f, "{}({why})", self.kind()),
        }
    }
}

/// Longest time one request may take. Making 100,000 files takes a busy machine more than 30 s.
const ANSWER_MAX: Duration = Duration::from_secs(180);

/// A running container with its action.
struct Container {
    docker: Docker,
    name: String,
    init: i32,
    address: SocketAddr,
}

impl Container {
    /// Starts a container and gives it the attacks as its action.
    fn start(docker: &Docker, runtime: Runtime, prepared: &str) -> Result<Self, String> {
        let name = format!("residue-{}-{:08x}", std::process::id(), rand::rng().random::<u32>());
        let limits =
            ["--memory=768m", "--pids-limit=1024", "--ulimit=nofile=1024:1024", "--cap-drop=NET_RAW"];
        let mut arguments = vec!["run", "-d", "--name", &name];
        arguments.extend(limits);
        arguments.push(runtime.image());
        docker.try_run(&arguments)?;
        let facts = docker.inspect(&name);
        let init = facts["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        let ip = facts["NetworkSettings"]["IPAddress"].as_str().and_then(|ip| ip.parse().ok());
        let (Some(init @ 1..), Some(ip)) = (init, ip) else {
            return Err(format!("container {name} did not start: {}", facts["State"]));
        };
        let container = Self { docker: docker.clone(), name, init, address: SocketAddr::new(ip, 8080) };
        container.initialise(runtime, prepared)?;
        Ok(container)
    }

    fn initialise(&self, runtime: Runtime, prepared: &str) -> Result<(), String> {
        let deadline = Instant::now() + ANSWER_MAX;
        while TcpStream::connect_timeout(&self.address, Duration::from_secs(1)).is_err() {
            if Instant::now() > deadline {
                return Err(format!("{} does not listen", self.name));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let (code, binary) = action(runtime, prepared);
        let body = json!({ "value": {
            "name": "residue", "main": "main", "code": code, "binary": binary,
            "env": { "RESIDUE_PREPARED": format!("@{prepared}@") },
        }});
        match self.post("/init", &body)? {
            (200, _) => Ok(()),
            (status, answer) => Err(format!("/init answered {status}: {}", answer.trim())),
        }
    }

    /// One step of a case.
    fn run(&self, case: Case, step: &str, secret: &str) -> Result<Value, String> {
        let value = json!({ "case": case.name, "step": step, "secret": secret });
        match self.post("/run", &json!({ "value": value }))? {
            (200, answer) => serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}")),
            (status, answer) => Err(format!("{status}: {}", answer.trim())),
        }
    }

    /// Whether a look finds the secret; the text is where.
    fn look(&self, case: Case, secret: &str) -> Result<Option<String>, String> {
        let mark: String = secret.chars().rev().collect();
        let answer = self.run(case, "look", &mark)?;
        match answer["found"].as_bool() {
            Some(true) => Ok(Some(answer["where"].as_str().unwrap_or("yes").to_owned())),
            Some(false) => Ok(None),
            None => Err(format!("not an answer: {answer}")),
        }
    }

    fn post(&self, path: &str, body: &Value) -> Result<(u16, String), String> {
        exchange(self.address, path, &body.to_string()).map_err(|error| format!("no answer: {error}"))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is gone already needs no removal.
        let _ = self.docker.try_run(&["rm", "-f", &self.name]);
    }
}

/// One HTTP exchange over its own connection.
fn exchange(address: SocketAddr, path: &str, body: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    write!(
        stream,
        "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
         Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    read_answer(&mut BufReader::new(stream))
}

/// Reads one answer. Not up to the end of the stream: a child of the action may hold the connection open.
fn read_answer(stream: &mut impl BufRead) -> std::io::Result<(u16, String)> {
    let malformed = |line: &str| std::io::Error::other(format!("malformed answer {line:?}"));
    let mut line = String::new();
    let mut next = |stream: &mut dyn BufRead| {
        line.clear();
        stream.read_line(&mut line).map(|_| line.trim().to_ascii_lowercase())
    };
    let first = next(stream)?;
    let status =
        first.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| malformed(&first))?;
    let (mut length, mut chunked) = (None, false);
    loop {
        let header = next(stream)?;
        match header.split_once(':') {
            Some(("content-length", value)) => length = value.trim().parse::<usize>().ok(),
            Some(("transfer-encoding", value)) => chunked = value.trim() == "chunked",
            Some(_) => {}
            None => break,
        }
    }
    let mut body = Vec::new();
    loop {
        // Node answers in chunks.
        let size = if chunked {
            let size = next(stream)?;
            usize::from_str_radix(&size, 16).map_err(|_| malformed(&size))?
        } else {
            length.take().unwrap_or(0)
        };
        let before = body.len();
        body.resize(before + size, 0);
        stream.read_exact(&mut body[before..])?;
        if !chunked || size == 0 {
            return Ok((status, String::from_utf8_lossy(&body).into_owned()));
        }
        next(stream)?;
    }
}

/// The action's code for a runtime, and whether it is binary.
fn action(runtime: Runtime, prepared: &str) -> (String, bool) {
    static NATIVE: Mutex<Option<String>> = Mutex::new(None);
    match runtime {
        Runtime::Python | Runtime::Actionloop => {
            (include_str!("../residue/attacks.py").replace("@PREPARED@", prepared), false)
        }
        Runtime::Node => (include_str!("../residue/attacks.js").to_owned(), false),
        Runtime::Native => {
            let mut native = NATIVE.lock().unwrap();
            (native.get_or_insert_with(compile).clone(), true)
        }
    }
}

fn compile() -> String {
    let directory = tempfile::tempdir().unwrap();
    let object = directory.path().join("attacks.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("residue/attacks.c");
    let status = Command::new("gcc")
        .args(["-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-pthread", "-o"])
        .args([&object, &source])
        .arg("-lm")
        .status()
        .expect("gcc is needed for the native attacks");
    assert!(status.success(), "the native attacks do not compile");
    base64::engine::general_purpose::STANDARD.encode(std::fs::read(object).unwrap())
}

fn secret() -> String {
    let bytes: [u8; 12] = rand::rng().random();
    format!("RESIDUE-{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}

/// A container and its pristine state.
struct Protected {
    keeper: Keeper<State>,
    container: Container,
}

/// The pristine state, once it has been recorded.
#[derive(Default)]
struct State(Option<(Snapshot, Sealed)>);

impl Kept for State {
    fn snapshot(&mut self) -> Option<&mut Snapshot> {
        self.0.as_mut().map(|(snapshot, _)| snapshot)
    }
}

impl State {
    fn record(&mut self, init: nix::unistd::Pid) -> Result<Result<(), String>, String> {
        let target = Target::from_init(init).map_err(|error| chain(&error))?;
        let mut sealed = None;
        let mut files = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            let root = OverlayRoot::discover(init)?;
            sealed = Some(fs_overlay::seal(root, &fs_overlay::Options::default())?.0);
            Ok(())
        };
        // A busy machine keeps Node's idle work going for long.
        let settle = Duration::from_secs(30);
        let options = snapshot::Options { paranoid: paranoid(), settle, ..snapshot::Options::default() };
        let snapshot = match snapshot::checkpoint(&target, &options, &mut files) {
            Ok((snapshot, _)) => snapshot,
            Err(CheckpointError::Refused(quarantine)) => {
                return Ok(Err(format!("refused: {}", quarantine.reason.name())));
            }
            Err(error) => return Err(chain(&error)),
        };
        self.0 = Some((snapshot, sealed.ok_or("the checkpoint did not seal the files")?));
        Ok(Ok(()))
    }

    fn rewind(&mut self) -> Result<(), String> {
        let (snapshot, sealed) = self.0.as_mut().ok_or("there is no checkpoint")?;
        let mut files = || -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
            sealed.rewind()?;
            Ok(())
        };
        snapshot.rewind(&mut files).map(|_| ()).map_err(|quarantine| reason(&quarantine))
    }
}

impl Protected {
    /// The outer error is of the test's making, the inner one a checkpoint that was refused.
    fn start(docker: &Docker, runtime: Runtime, prepared: &str) -> Result<Result<Self, String>, String> {
        let container = Container::start(docker, runtime, prepared)?;
        let init = nix::unistd::Pid::from_raw(container.init);
        let keeper: Keeper<State> =
            Keeper::start("keeper".to_owned(), State::default).map_err(|error| chain(&error))?;
        let recorded = keeper.ask(move |state| state.record(init)).map_err(|error| chain(&error))??;
        Ok(recorded.map(|()| Self { keeper, container }))
    }

    fn rewind(&mut self) -> Result<(), String> {
        self.keeper.ask(State::rewind).map_err(|error| chain(&error))?
    }
}

fn paranoid() -> bool {
    std::env::var_os("RESIDUE_PARANOID").is_some()
}

/// The reason's name; for files, theirs.
fn reason(quarantine: &Quarantine) -> String {
    let mut source: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(quarantine);
    while let Some(error) = source {
        if let Some(files) = error.downcast_ref::<fs_overlay::FilesQuarantine>() {
            return format!("{} at {}", files.reason.name(), fs_overlay::shown(&files.path));
        }
        source = error.source();
    }
    if std::env::var_os("RESIDUE_VERBOSE").is_some() {
        return chain(quarantine);
    }
    quarantine.reason.name().to_owned()
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

/// One worker's containers of one runtime.
struct Bench {
    docker: Docker,
    runtime: Runtime,
    /// For pairs without a rewind.
    plain: Option<(&'static str, Container)>,
    protected: Option<(&'static str, Protected)>,
}

impl Bench {
    fn judge(&mut self, case: Case) -> Outcome {
        match self.without_rewind(case) {
            Ok(None) => {}
            Ok(Some(outcome)) => return outcome,
            Err(why) => return Outcome::Unseen(why),
        }
        self.with_rewind(case).unwrap_or_else(Outcome::Mute)
    }

    /// Checks that the pair works: nothing before the plant, something after. An outcome if there is no more to try.
    fn without_rewind(&mut self, case: Case) -> Result<Option<Outcome>, String> {
        // The container of the case before is used again if it shows nothing of this case.
        let used = self.plain.take().filter(|(prepared, _)| *prepared == case.prepared);
        if let Some((_, container)) = used
            && let Ok(outcome) = Self::pair(&container, case)
        {
            self.plain = Some((case.prepared, container));
            return Ok(outcome);
        }
        let container = Container::start(&self.docker, self.runtime, case.prepared)?;
        let outcome = Self::pair(&container, case)?;
        self.plain = Some((case.prepared, container));
        Ok(outcome)
    }

    fn pair(container: &Container, case: Case) -> Result<Option<Outcome>, String> {
        let secret = secret();
        if let Some(place) = container.look(case, &secret)? {
            return Err(format!("found before it was planted: {place}"));
        }
        let planted = container.run(case, "plant", &secret)?;
        if let Some(why) = planted["forbidden"].as_str() {
            return Ok(Some(Outcome::Forbidden(why.to_owned())));
        }
        if planted["planted"] != true {
            return Err(format!("not planted: {planted}"));
        }
        // As long as a rewind would take, for what is to show itself later.
        std::thread::sleep(Duration::from_millis(20));
        match container.look(case, &secret)? {
            Some(_) => Ok(None),
            None => Err("not found without a rewind either".to_owned()),
        }
    }

    fn with_rewind(&mut self, case: Case) -> Result<Outcome, String> {
        let used = self.protected.take().filter(|(prepared, _)| *prepared == case.prepared);
        let mut protected = match used {
            Some((_, protected)) => protected,
            None => match Protected::start(&self.docker, self.runtime, case.prepared)? {
                Ok(protected) => protected,
                Err(refused) => return Ok(Outcome::Quarantined(refused)),
            },
        };
        let secret = secret();
        // A plant may end the process that would have answered: then the rewind has to see it.
        let planted = protected.container.run(case, "plant", &secret);
        if let Err(why) = protected.rewind() {
            return Ok(Outcome::Quarantined(why));
        }
        let found = protected.container.look(case, &secret).map_err(|why| match planted {
            Ok(_) => why,
            Err(plant) => format!("{why}; the plant: {plant}"),
        })?;
        // What the look itself did goes too, before the next case.
        let again = protected.rewind();
        match (found, again) {
            (Some(place), _) => Ok(Outcome::Found(place)),
            (None, Err(why)) => Ok(Outcome::Quarantined(format!("{why}, after the look"))),
            (None, Ok(())) => {
                self.protected = Some((case.prepared, protected));
                Ok(Outcome::Restored)
            }
        }
    }
}

/// Which of the names in a variable are wanted; all without it.
fn wanted(variable: &str, name: &str) -> bool {
    std::env::var(variable).map_or(true, |list| list.split(',').any(|one| one == name))
}

#[test]
fn no_request_finds_what_another_left() {
    let host = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "unix:///var/run/docker.sock".to_owned());
    let docker = Docker::at(&host);
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP no_request_finds_what_another_left: needs root");
        return;
    }
    for runtime in Runtime::ALL {
        if let Err(why) = docker.try_run(&["image", "inspect", runtime.image()]) {
            eprintln!("SKIP no_request_finds_what_another_left: needs the action images: {why}");
            return;
        }
    }
    let mut runtimes: VecDeque<Runtime> =
        Runtime::ALL.into_iter().filter(|runtime| wanted("RESIDUE_RUNTIME", runtime.name())).collect();
    // The two that take longest first.
    runtimes.make_contiguous().sort_by_key(|runtime| (*runtime == Runtime::Native, *runtime));
    let queue = Mutex::new(runtimes);
    let rows: Mutex<Vec<(Case, Runtime, Outcome)>> = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while let Some(runtime) = next(&queue) {
                    let mut bench = Bench { docker: docker.clone(), runtime, plain: None, protected: None };
                    let mut cases: Vec<Case> = CASES.to_vec();
                    cases.retain(|case| {
                        case.runtimes.contains(runtime.letter()) && wanted("RESIDUE_CASE", case.name)
                    });
                    // Those with the same things prepared share containers.
                    cases.sort_by_key(|case| case.prepared);
                    for case in cases {
                        let started = Instant::now();
                        let outcome = bench.judge(case);
                        let took = started.elapsed();
                        println!("{}  [{took:.1?}]", line(&(case, runtime, outcome.clone())));
                        rows.lock().unwrap().push((case, runtime, outcome));
                    }
                }
            });
        }
    });
    let mut rows = rows.into_inner().unwrap();
    rows.sort_by_key(|(case, runtime, _)| {
        (case.row == 0, case.row, CASES.iter().position(|other| other.name == case.name), *runtime)
    });
    report(&rows);
    let failures: Vec<String> =
        rows.iter().filter(|(_, _, outcome)| outcome.is_failure()).map(line).collect();
    assert!(failures.is_empty(), "residue:\n{}", failures.join("\n"));
    // A rewind that quarantines everything would pass all of the above.
    for (case, runtime, outcome) in &rows {
        if case.name == "first" || case.name == "global" || case.name == "new_file" {
            assert_eq!(outcome, &Outcome::Restored, "{} in {}", case.name, runtime.name());
        }
    }
}

/// Pairs that also take the whole road: Kafka, the pool, the invoker's own checkpoint and rewind.
const THROUGH_THE_INVOKER: [&str; 10] = [
    "global",
    "environment",
    "new_file",
    "lower_changed",
    "shm",
    "listener",
    "thread",
    "daemon",
    "umask",
    "own_code",
];

#[tokio::test(flavor = "multi_thread")]
async fn no_request_through_the_invoker_finds_what_another_left() {
    for (isolation, finds) in [("none", true), ("rewind", false)] {
        let lab = Lab::new("residue").await;
        let _invoker = lab.invoker().isolation(isolation).start(&lab).await;
        let (code, _) = action(Runtime::Python, "");
        let document = Action::new("guest/residue", "python-single:3.11", &code);
        let revision = lab.store.put_action(&document).await;
        for name in THROUGH_THE_INVOKER {
            let secret = secret();
            let mark: String = secret.chars().rev().collect();
            let mut found = Value::Null;
            for (step, text) in [("plant", &secret), ("look", &mark)] {
                let content = json!({ "case": name, "step": step, "secret": text });
                let activation = Activation::of("guest/residue").revision(&revision).content(content);
                let ack = lab.controller.ask(activation).await;
                found = ack.result()["found"].clone();
                assert!(ack.result()["planted"] == true || found.is_boolean(), "{name}: {}", ack.result());
            }
            assert_eq!(found, finds, "{name} with isolation {isolation}");
        }
    }
}

fn next(queue: &Mutex<VecDeque<Runtime>>) -> Option<Runtime> {
    queue.lock().unwrap().pop_front()
}

fn line((case, runtime, outcome): &(Case, Runtime, Outcome)) -> String {
    let row = if case.row == 0 { "-".to_owned() } else { case.row.to_string() };
    format!("{row:>3}  {:<50} {:<22} {:<11} {outcome}", case.channel, case.name, runtime.name())
}

fn report(rows: &[(Case, Runtime, Outcome)]) {
    let mut text = format!("row  {:<50} {:<22} {:<11} outcome\n", "channel", "case", "runtime");
    for row in rows {
        text.push_str(&line(row));
        text.push('\n');
    }
    for (row, channel, why) in ELSEWHERE {
        text.push_str(&format!("{row:>3}  {channel}: {why}\n"));
    }
    let mut counts = BTreeMap::new();
    for (_, _, outcome) in rows {
        *counts.entry(outcome.kind()).or_insert(0) += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    text.push_str(&format!("{} cases: {}\n", rows.len(), counts.join(", ")));
    println!("\n{text}");
    if let Some(path) = std::env::var_os("RESIDUE_REPORT") {
        std::fs::write(path, text).unwrap();
    }
}

#[test]
fn every_row_is_tried_or_explained() {
    for row in 1..=31_u8 {
        let tried = CASES.iter().any(|case| case.row == row);
        let explained = ELSEWHERE.iter().any(|(other, _, _)| *other == row);
        assert!(tried || explained, "row {row}");
    }
}

#[test]
fn every_case_has_its_attacks() {
    let python = include_str!("../residue/attacks.py");
    let node = include_str!("../residue/attacks.js");
    let native = include_str!("../residue/attacks.c");
    for case in CASES {
        for runtime in Runtime::ALL {
            if !case.runtimes.contains(runtime.letter()) {
                continue;
            }
            let name = case.name;
            let there = match runtime {
                Runtime::Python | Runtime::Actionloop => {
                    let look = python.contains(&format!("def look_{name}("))
                        || python.contains(&format!("\nlook_{name} = "));
                    python.contains(&format!("def plant_{name}(")) && look
                }
                Runtime::Node => node.contains(&format!("\n    {name}: [")),
                Runtime::Native => native.contains(&format!("ATTACK({name})")),
            };
            assert!(there, "{name} is missing for {}", runtime.name());
        }
    }
}
