//! Kernel objects: what one request leaves, the next must not find. One test per feature.

mod support;

use snapshot::{Options, Reason};
use support::Puppet;

/// Plants, rewinds, looks; twice, since the second rewind starts from the first one's result.
fn undone(plant: &str, look: &str) {
    undone_after("pass", plant, look);
}

fn undone_after(before: &str, plant: &str, look: &str) {
    support::ways().iter().for_each(|way| undone_in(way, before, plant, look));
}

fn undone_in(way: &Options, before: &str, plant: &str, look: &str) {
    let mut p = Puppet::python();
    p.py(before);
    let clean = p.py(look);
    let mut c = p.checkpoint_with(way);
    assert_eq!(p.py(look), clean, "the look itself changes something");
    c.rewind();
    for _ in 0..2 {
        p.py(plant);
        assert_ne!(p.py(look), clean, "nothing was planted");
        c.rewind();
        assert_eq!(p.py(look), clean);
        c.rewind();
    }
}

/// Plants, and the rewind must give the container up for this reason; nothing may survive.
fn seen(plant: &str, reason: Reason) {
    seen_after("pass", plant, reason);
}

fn seen_after(before: &str, plant: &str, reason: Reason) {
    support::ways().iter().for_each(|way| seen_in(way, before, plant, reason));
}

fn seen_in(way: &Options, before: &str, plant: &str, reason: Reason) {
    let mut p = Puppet::python();
    p.py(before);
    let mut c = p.checkpoint_with(way);
    p.py("result = 1");
    c.rewind();
    p.py(plant);
    assert_eq!(c.quarantined().reason, reason);
    p.wait_dead();
    assert_eq!(c.quarantined().reason, Reason::Killed);
}

macro_rules! undone_tests {
    ($($name:ident: $plant:expr, $look:expr;)*) => {
        $( #[test] fn $name() { needs_engine!(); undone($plant, $look); } )*
    };
}

macro_rules! seen_tests {
    ($($name:ident: $plant:expr, $reason:ident;)*) => {
        $( #[test] fn $name() { needs_engine!(); seen($plant, Reason::$reason); } )*
    };
}

const FDS: &str = "result = sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1]";

undone_tests! {
    globals: "secret = 42", "result = 'secret' in globals()";
    environment: "os.environ['SECRET'] = '1'; libc.setenv(b'S', b'1', 1)", "result = [os.environ.get('SECRET'), libc.getenv(b'S') == 0]";
    new_descriptors: "kept['f'] = [os.open('/etc/passwd', 0) for _ in range(50)]", FDS;
    many_scattered_descriptors: "[os.dup2(0, n) for n in range(100, 400, 2)]", FDS;
    new_sockets: "s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); kept['s'] = s", FDS;
    abstract_unix_socket: "s = socket.socket(socket.AF_UNIX); s.bind('\\0rewind-' + str(os.getppid())); kept['s'] = s", FDS;
    signal_handlers: "signal.signal(signal.SIGUSR1, lambda *a: None)", "result = str(open('/proc/self/status').read().split('SigCgt:')[1].split()[0])";
    ignored_signals: "signal.signal(signal.SIGUSR2, signal.SIG_IGN)", "result = str(open('/proc/self/status').read().split('SigIgn:')[1].split()[0])";
    signal_mask: "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])", "result = len(signal.pthread_sigmask(signal.SIG_BLOCK, []))";
    pending_signals: "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, 40]); [os.kill(os.getpid(), s) for s in (signal.SIGUSR1, 40, 40, 40)]", "result = len(signal.sigpending())";
    interval_timer: "signal.setitimer(signal.ITIMER_REAL, 1000, 7)", "result = signal.getitimer(signal.ITIMER_REAL)[1]";
    posix_timers: "[libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p())) for _ in range(5)]", "result = open('/proc/self/timers').read().count('ID:')";
    alternate_stack: "buf = ctypes.create_string_buffer(65536); kept['b'] = buf; libc.sigaltstack(struct.pack('QiiQ', ctypes.addressof(buf), 0, 0, 65536), None)", "o = ctypes.create_string_buffer(24); libc.sigaltstack(None, o); result = struct.unpack('QiiQ', o.raw)[1]";
    umask: "os.umask(0o077)", "u = os.umask(0); os.umask(u); result = u";
    working_directory: "os.chdir('/usr')", "result = os.getcwd()";
    working_directory_that_is_gone: "d = '/tmp/rewind-' + str(time.time()); os.mkdir(d); os.chdir(d); os.rmdir(d)", "result = os.readlink('/proc/self/cwd')";
    resource_limits: "[resource.setrlimit(r, (50, resource.getrlimit(r)[1])) for r in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)]", "result = [resource.getrlimit(r) for r in range(16)]";
    nice: "os.nice(5)", "result = os.nice(0)";
    scheduling_class: "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "result = os.sched_getscheduler(0)";
    affinity: "os.sched_setaffinity(0, {0})", "result = len(os.sched_getaffinity(0))";
    io_priority: "call(251, 1, 0, (3 << 13))", "result = call(252, 1, 0)";
    oom_score: "open('/proc/self/oom_score_adj', 'w').write('555')", "result = open('/proc/self/oom_score_adj').read()";
    thread_name: "libc.prctl(15, b'secret', 0, 0, 0)", "result = open('/proc/self/comm').read()";
    dumpable: "libc.prctl(4, 0, 0, 0, 0)", "result = libc.prctl(3, 0, 0, 0, 0)";
    subreaper: "libc.prctl(36, 1, 0, 0, 0)", "v = ctypes.c_int(); libc.prctl(37, ctypes.byref(v), 0, 0, 0); result = v.value";
    parent_death_signal: "libc.prctl(1, 12, 0, 0, 0)", "v = ctypes.c_int(); libc.prctl(2, ctypes.byref(v), 0, 0, 0); result = v.value";
    timer_slack: "libc.prctl(29, 12345, 0, 0, 0)", "result = libc.prctl(30, 0, 0, 0, 0)";
    transparent_huge_pages_off: "libc.prctl(41, 1, 0, 0, 0)", "result = libc.prctl(42, 0, 0, 0, 0)";
    locked_memory: "libc.mlockall(3)", "result = open('/proc/self/status').read().split('VmLck:')[1].split()[0]";
    robust_list: "buf = ctypes.create_string_buffer(24); kept['r'] = buf; call(273, ctypes.addressof(buf), 24)", "h = ctypes.c_ulong(); l = ctypes.c_ulong(); call(274, 0, ctypes.addressof(h), ctypes.addressof(l)); result = h.value";
    threads: "kept['t'] = [threading.Thread(target=time.sleep, args=(1000,), daemon=True) for _ in range(20)]; [t.start() for t in kept['t']]", "result = len(os.listdir('/proc/self/task'))";
    children: "kept['c'] = os.fork() or time.sleep(1000)", "result = len([p for p in os.listdir('/proc') if p.isdigit()])";
    daemons: "
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(0.02)", "result = len([p for p in os.listdir('/proc') if p.isdigit()])";
    zombies: "
if os.fork() == 0:
    os._exit(0)
time.sleep(0.02)", "result = len([p for p in os.listdir('/proc') if p.isdigit()])";
    many_zombies: "
for _ in range(100):
    if os.fork() == 0:
        os._exit(0)
time.sleep(0.05)", "result = len([p for p in os.listdir('/proc') if p.isdigit()])";
    message_queue: "name = b'/q'; result = call(240, ctypes.cast(b'q', ctypes.c_void_p).value, 0o102, 0o600, 0)", "result = call(240, ctypes.cast(b'q', ctypes.c_void_p).value, 0, 0, 0) >= 0";
}

seen_tests! {
    changed_user: "os.setresuid(0, 1000, 0)", Credentials;
    changed_groups: "os.setgroups([1, 2, 3])", Credentials;
    dropped_capability: "libc.prctl(24, 5, 0, 0, 0)", Credentials;
    no_new_privs: "libc.prctl(38, 1, 0, 0, 0)", Credentials;
    secure_bits: "libc.prctl(28, 1 << 4, 0, 0, 0)", Credentials;
    seccomp_filter: "
prog = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0x7fff0000))
fprog = struct.pack('HxxxxxxQ', 1, ctypes.addressof(prog))
libc.prctl(22, 2, ctypes.cast(fprog, ctypes.c_void_p), 0, 0)", Seccomp;
    chroot: "os.chroot('/usr'); os.chdir('/')", Root;
    own_mount_namespace: "libc.unshare(0x20000)", Namespace;
    own_network_namespace: "libc.unshare(0x40000000)", Namespace;
    own_user_namespace: "libc.unshare(0x10000000)", Credentials;
    pid_namespace_for_children: "libc.unshare(0x20000000)", Namespace;
    a_mount: "libc.mount(b'none', b'/mnt', b'tmpfs', 0, None)", Mounts;
    sysv_shared_memory: "libc.shmget(0x1234, 4096, 0o1600)", SysvIpc;
    sysv_semaphores: "libc.semget(0x1234, 2, 0o1600)", SysvIpc;
    sysv_queue: "libc.msgget(0x1234, 0o1600)", SysvIpc;
    io_uring: "kept['p'] = ctypes.create_string_buffer(120); result = call(425, 4, ctypes.addressof(kept['p']))", FdUnsupported;
    userfaultfd: "call(323, 1)", FdUnsupported;
    fanotify: "call(300, 0, 0)", FdUnsupported;
    perf_event: "kept['a'] = ctypes.create_string_buffer(struct.pack('IIQ', 1, 112, 0).ljust(112, b'\\0')); call(298, ctypes.addressof(kept['a']), 0, -1, -1, 0)", FdUnsupported;
    bpf_map: "kept['a'] = ctypes.create_string_buffer(struct.pack('IIII', 2, 4, 4, 1).ljust(72, b'\\0')); call(321, 0, ctypes.addressof(kept['a']), 72)", FdUnsupported;
    aio: "kept['x'] = ctypes.c_ulong(0); call(206, 10, ctypes.addressof(kept['x']))", AsyncIo;
    session_keyring: "call(250, 1, 0)", Keyring;
    a_key: "call(248, ctypes.cast(b'user', ctypes.c_void_p).value, ctypes.cast(b'k', ctypes.c_void_p).value, ctypes.cast(b's', ctypes.c_void_p).value, 1, -2)", Keyring;
    membarrier: "call(324, 16, 0, 0)", ProcessAttributes;
    personality: "libc.personality(0x0040000)", ProcessAttributes;
    memory_policy: "kept['n'] = ctypes.c_ulong(1); call(238, 3, ctypes.addressof(kept['n']), 64)", ThreadAttributes;
    exec: "os.execv(sys.executable, [sys.executable, '-I', '-S', '-c', 'import os; os.write(1, b\"null\\\\n\"); os.read(0, 1)'])", FileMappingReplaced;
    agent_unmapped: "
for line in open('/proc/self/maps'):
    if 'memfd' in line or 'ELF' in line:
        a, b = [int(x, 16) for x in line.split()[0].split('-')]
        libc.munmap(ctypes.c_void_p(a), b - a)", AgentAltered;
    agent_replaced: "
for line in open('/proc/self/maps'):
    if 'ELF' in line and 'r-xs' in line:
        a, b = [int(x, 16) for x in line.split()[0].split('-')]
        libc.mmap(a, b - a, 7, 0x32, -1, 0)", AgentAltered;
}

#[test]
fn the_agents_code_cannot_be_written_through_proc_self_mem() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    let answer = p.py("
result = 'no agent'
for line in open('/proc/self/maps'):
    if 'ELF' in line and 'r-xs' in line:
        a = int(line.split('-')[0], 16)
        try:
            fd = os.open('/proc/self/mem', os.O_RDWR)
            os.pwrite(fd, b'\\xcc' * 16, a)
            result = 'written'
        except OSError as e:
            result = 'refused'");
    assert_eq!(answer, "\"refused\"");
    c.rewind();
    assert_eq!(p.py("result = 1"), "1");
}

#[test]
fn the_agents_data_keeps_nothing_for_the_next_request() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    let data = "
for line in open('/proc/self/maps'):
    if 'ELF' in line and 'rw-s' in line:
        a, b = [int(x, 16) for x in line.split()[0].split('-')]
";
    p.py(&format!("{data}        ctypes.memset(ctypes.c_void_p(a), 0x41, b - a)"));
    c.rewind();
    assert_eq!(
        p.py(&format!("{data}        result = ctypes.string_at(a, b - a).strip(bytes(1)) == b''")),
        "true"
    );
}

#[test]
fn descriptors_closed_or_replaced_come_back() {
    needs_engine!();
    undone_after(
        "kept['f'] = os.open('/etc/passwd', os.O_RDONLY); kept['g'] = os.open('/etc/group', os.O_RDONLY | os.O_CLOEXEC); kept['h'] = os.dup(kept['f'])",
        "os.dup2(kept['f'], kept['g']); os.close(kept['f']); os.set_inheritable(kept['h'], not os.get_inheritable(kept['h']))",
        "result = []
for k in 'fgh':
    try: result.append([os.readlink('/proc/self/fd/%d' % kept[k]), os.get_inheritable(kept[k])])
    except OSError as e: result.append(str(e))",
    );
}

#[test]
fn descriptors_lost_to_a_full_table_come_back() {
    needs_engine!();
    undone_after(
        "kept['f'] = [os.open('/etc/passwd', os.O_RDONLY) for _ in range(5)]",
        "
for f in kept['f']: os.close(f)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    while True: os.open('/etc/group', os.O_RDONLY)
except OSError: pass",
        "result = [os.readlink('/proc/self/fd/' + f) for f in ('3', '4', '5', '6', '7')]",
    );
}

#[test]
fn offsets_flags_and_locks_come_back() {
    needs_engine!();
    undone_after(
        "kept['f'] = os.open('/tmp', os.O_TMPFILE | os.O_RDWR) if False else os.open('/etc/passwd', os.O_RDONLY); r, w = os.pipe(); kept['r'] = r; kept['w'] = w",
        "
os.lseek(kept['f'], 7, 0)
os.set_blocking(kept['r'], False)
fcntl.fcntl(kept['f'], fcntl.F_SETFL, os.O_APPEND)
fcntl.flock(kept['f'], fcntl.LOCK_SH)
fcntl.lockf(kept['f'], fcntl.LOCK_SH, 1)
fcntl.fcntl(kept['r'], fcntl.F_SETOWN, os.getpid())
fcntl.fcntl(kept['r'], 10, signal.SIGUSR1)
fcntl.fcntl(kept['r'], 1031, 65536 * 4)
os.write(kept['w'], b'secret')",
        "
info = open('/proc/self/fdinfo/%d' % kept['f']).read()
result = [os.lseek(kept['f'], 0, 1), os.get_blocking(kept['r']), fcntl.fcntl(kept['f'], fcntl.F_GETFL), 'lock' in info,
          fcntl.fcntl(kept['r'], fcntl.F_GETOWN), fcntl.fcntl(kept['r'], 11), fcntl.fcntl(kept['r'], 1032),
          select.select([kept['r']], [], [], 0)[0] != []]",
    );
}

#[test]
fn socket_pairs_are_drained_with_the_descriptors_under_way() {
    needs_engine!();
    undone_after(
        "a, b = socket.socketpair(); kept['a'] = a; kept['b'] = b",
        "socket.send_fds(kept['a'], [b'secret'], [0, 1, 2]); kept['a'].send(b'x' * 10000)",
        "result = select.select([kept['b']], [], [], 0)[0] != []",
    );
}

#[test]
fn event_counters_timers_and_signal_descriptors_come_back() {
    needs_engine!();
    undone_after(
        "
kept['e'] = os.eventfd(3); kept['s'] = os.eventfd(2, os.EFD_SEMAPHORE)
kept['t'] = call(283, 1, 0)
mask = ctypes.create_string_buffer(struct.pack('Q', 1 << 9)); kept['g'] = call(289, -1, ctypes.addressof(mask), 8, 0)",
        "
os.eventfd_write(kept['e'], 100); os.eventfd_write(kept['s'], 100)
spec = ctypes.create_string_buffer(struct.pack('qqqq', 5, 0, 5, 0)); call(286, kept['t'], 0, ctypes.addressof(spec), 0)
mask = ctypes.create_string_buffer(struct.pack('Q', 1 << 11)); call(289, kept['g'], ctypes.addressof(mask), 8, 0)",
        "
result = []
for k in 'estg':
    info = open('/proc/self/fdinfo/%d' % kept[k]).read()
    result += [l for l in info.splitlines() if l.startswith(('eventfd-count', 'it_interval', 'sigmask'))]",
    );
}

#[test]
fn interest_lists_come_back() {
    needs_engine!();
    undone_after(
        "
e = select.epoll(); kept['e'] = e
kept['p'] = [os.pipe() for _ in range(4)]
e.register(kept['p'][0][0], select.EPOLLIN); e.register(kept['p'][1][0], select.EPOLLIN | select.EPOLLET); e.register(kept['p'][2][0], select.EPOLLIN)",
        "
e.unregister(kept['p'][0][0]); e.modify(kept['p'][1][0], select.EPOLLOUT); e.register(kept['p'][3][0], select.EPOLLIN)
r, w = os.pipe(); e.register(r, select.EPOLLIN)",
        "result = sorted(l.split('pos')[0] for l in open('/proc/self/fdinfo/%d' % kept['e'].fileno()).read().splitlines() if 'tfd' in l)",
    );
}

#[test]
fn an_interest_in_a_closed_descriptor_comes_back_with_it() {
    needs_engine!();
    undone_after(
        "e = select.epoll(); kept['e'] = e.fileno(); kept['p'] = os.pipe(); e.register(kept['p'][0], select.EPOLLIN)",
        "e.close(); os.close(kept['p'][0])",
        "
try: result = [l.split('pos')[0] for l in open('/proc/self/fdinfo/%d' % kept['e']).read().splitlines() if 'tfd' in l]
except OSError: result = 'gone'",
    );
}

#[test]
fn a_listener_is_the_same_with_an_empty_queue() {
    needs_engine!();
    let mut p = Puppet::python();
    let port = p.py("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); kept['s'] = s; result = s.getsockname()[1]");
    let mut c = p.checkpoint();
    let address = format!("127.0.0.1:{port}");
    let waiting = std::net::TcpStream::connect(&address).expect("connected");
    p.py("kept['s'].setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)");
    let report = c.rewind();
    assert!(report.fds_restored >= 1, "{report:?}");
    assert_eq!(p.py("result = [select.select([s], [], [], 0)[0] != [], s.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)]"), "[false, 0]");
    drop(waiting);
    c.rewind();
    // Closed, and another one opened on the same port: the first comes back, which is possible only if the
    // other is gone.
    p.py("s.close(); t = socket.socket(); t.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)");
    c.rewind();
    let client = std::net::TcpStream::connect(&address).expect("connected");
    assert_eq!(p.py("a, b = s.accept(); result = 'accepted'"), "\"accepted\"");
    drop(client);
    c.rewind();
    p.py("s.shutdown(socket.SHUT_RDWR)");
    assert_eq!(c.quarantined().reason, Reason::SocketChanged);
}

#[test]
fn a_shut_down_socket_pair_is_seen() {
    needs_engine!();
    seen_after(
        "kept['p'] = socket.socketpair()",
        "kept['p'][0].shutdown(socket.SHUT_WR)",
        Reason::SocketChanged,
    );
}

#[test]
fn changed_watches_are_seen() {
    needs_engine!();
    seen_after(
        "kept['i'] = libc.inotify_init()",
        "libc.inotify_add_watch(kept['i'], b'/tmp', 2)",
        Reason::WatchChanged,
    );
}

#[test]
fn a_replaced_thread_is_seen() {
    needs_engine!();
    let start = "
kept['go'] = threading.Event()
def run(): kept['go'].wait()
t = threading.Thread(target=run, daemon=True); t.start(); time.sleep(0.02)";
    seen_after(
        start,
        "kept['go'].set(); t.join(); kept['go'].clear(); u = threading.Thread(target=time.sleep, args=(1000,), daemon=True); u.start()",
        Reason::ThreadVanished,
    );
}

#[test]
fn a_thread_with_its_own_descriptor_table_is_seen() {
    needs_engine!();
    let start = "
kept['go'] = threading.Event()
def run():
    kept['go'].wait(); libc.unshare(0x400); time.sleep(1000)
t = threading.Thread(target=run, daemon=True); t.start(); time.sleep(0.02)";
    seen_after(start, "kept['go'].set(); time.sleep(0.05)", Reason::FdTableUnshared);
}

#[test]
fn threads_of_the_snapshot_come_back_where_they_slept() {
    needs_engine!();
    undone_after(
        "
kept['n'] = 0; kept['go'] = threading.Semaphore(0)
def run():
    while True:
        kept['go'].acquire(); kept['n'] += 1
kept['t'] = [threading.Thread(target=run, daemon=True) for _ in range(8)]
[t.start() for t in kept['t']]; time.sleep(0.05)",
        "[kept['go'].release() for _ in range(20)]; time.sleep(0.05)",
        "result = [kept['n'], len(os.listdir('/proc/self/task'))]",
    );
}

#[test]
fn a_child_of_the_snapshot_is_rewound_with_the_pipe_between() {
    needs_engine!();
    undone_after(
        "
a, b = os.pipe(); x, y = os.pipe()
if os.fork() == 0:
    n = 0
    while True:
        os.read(a, 1); n += 1; os.write(y, bytes([n]))
def ask():
    os.write(b, b'?'); return os.read(x, 1)[0]
result = ask()",
        "result = [ask() for _ in range(5)]; os.set_blocking(b, False); os.write(b, b'?' * 100)",
        "result = [ask() - len(kept.get('asked', [])), os.get_blocking(b)]; kept.setdefault('asked', []).append(1)",
    );
}

#[test]
fn names_of_anonymous_memory_come_back() {
    needs_engine!();
    let mut p = Puppet::python();
    let plant = "kept['a'] = libc.mmap(None, 8192, 3, 34, -1, 0); result = call(157, 0x53564d41, 0, kept['a'], 4096, ctypes.cast(b'first', ctypes.c_void_p).value)";
    if p.py(plant) != "0" {
        eprintln!("SKIP names_of_anonymous_memory_come_back: needs CONFIG_ANON_VMA_NAME");
        return;
    }
    let mut c = p.checkpoint();
    p.py("call(157, 0x53564d41, 0, kept['a'], 8192, ctypes.cast(b'second', ctypes.c_void_p).value)");
    c.rewind();
    p.py("libc.munmap(ctypes.c_void_p(kept['a']), 8192)");
    c.rewind();
    assert_eq!(
        p.py("m = open('/proc/self/maps').read(); result = ['anon:first' in m, 'anon:second' in m]"),
        "[true, false]"
    );
}

#[test]
fn a_killed_child_of_the_snapshot_is_seen() {
    needs_engine!();
    seen_after(
        "kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.02)",
        "os.kill(kept['c'], 9)",
        Reason::ProcessVanished,
    );
}

#[test]
fn a_child_of_the_snapshot_that_was_stopped_is_seen() {
    needs_engine!();
    seen_after(
        "kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.02)",
        "os.kill(kept['c'], signal.SIGSTOP); os.waitpid(kept['c'], os.WUNTRACED)",
        Reason::StoppedByJobControl,
    );
}

#[test]
fn a_process_of_the_snapshot_is_traced_by_nobody_inside() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.02)");
    let mut c = p.checkpoint();
    for _ in 0..2 {
        // It has its tracer already: a child cannot seize it, nor can it seize a child, nor ask to be traced.
        let refused = p.py("
r, w = os.pipe()
if os.fork() == 0:
    failed = libc.ptrace(0x4206, ctypes.c_long(os.getppid()), None, None); os.write(w, str(failed).encode()); time.sleep(1000)
result = [os.read(r, 9).decode(), libc.ptrace(0x4206, ctypes.c_long(kept['c']), None, None), libc.ptrace(0, 0, None, None)]");
        assert_eq!(refused, "[\"-1\", -1, -1]");
        c.rewind();
        assert_eq!(p.py("result = len([p for p in os.listdir('/proc') if p.isdigit()])"), "2");
    }
}

#[test]
fn a_new_thread_that_a_child_traces_is_removed() {
    needs_engine!();
    undone(
        "
kept['t'] = threading.Thread(target=time.sleep, args=(1000,), daemon=True); kept['t'].start()
r, w = os.pipe()
if os.fork() == 0:
    failed = libc.ptrace(0x4206, ctypes.c_long(kept['t'].native_id), None, None); os.write(w, b'x'); time.sleep(1000)
os.read(r, 1)",
        "result = len(os.listdir('/proc/self/task'))",
    );
}

#[test]
fn a_process_that_ended_is_seen() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    p.py_send("os._exit(0)");
    p.wait_dead();
    assert_eq!(c.quarantined().reason, Reason::ProcessVanished);
}

#[test]
fn a_moved_process_group_is_seen() {
    needs_engine!();
    seen_after(
        "kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.02)",
        "os.setpgid(kept['c'], kept['c'])",
        Reason::Parentage,
    );
}

#[test]
fn what_cannot_be_restored_later_is_refused_at_the_checkpoint() {
    needs_engine!();
    for (before, reason) in [
        ("kept['m'] = mmap.mmap(-1, 4096)", Reason::SharedMapping),
        ("kept['m'] = os.memfd_create('x')", Reason::FdUnsupported),
        ("libc.shmget(0x1234, 4096, 0o1600)", Reason::SysvIpc),
        ("kept['f'] = os.open('/etc/passwd', 0); fcntl.flock(kept['f'], fcntl.LOCK_SH)", Reason::FileLock),
        ("signal.signal(signal.SIGTRAP, signal.SIG_IGN)", Reason::SignalActions),
        ("if os.fork() == 0: os._exit(0)\ntime.sleep(0.05)", Reason::ProcessVanished),
        ("import tempfile; kept['f'] = tempfile.TemporaryFile()", Reason::FdUnsupported),
    ] {
        let mut p = Puppet::python();
        p.py(before);
        eprintln!("{before}");
        assert_eq!(p.refused(), reason, "{before}");
        // Unharmed, and without traces.
        assert_eq!(
            p.py("result = ['ELF' in open('/proc/self/maps').read(), len(os.listdir('/proc/self/task'))]"),
            "[false, 1]"
        );
    }
}

#[test]
fn a_busy_container_is_not_settled_and_unharmed() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("kept['t'] = threading.Thread(target=lambda: [i for i in iter(int, 1)], daemon=True); kept['t'].start()");
    let options = snapshot::Options { settle: std::time::Duration::from_millis(100), ..support::paranoid() };
    match p.try_checkpoint(&options) {
        Err(snapshot::CheckpointError::NotSettled { busy }) => assert!(!busy.is_empty()),
        other => panic!("{:?}", other.map(|c| c.report)),
    }
    assert_eq!(p.py("result = 1"), "1");
}

#[test]
fn an_open_connection_is_not_settled() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); c = socket.create_connection(s.getsockname()); a = s.accept()[0]");
    let options = snapshot::Options { settle: std::time::Duration::from_millis(100), ..support::paranoid() };
    match p.try_checkpoint(&options) {
        Err(snapshot::CheckpointError::NotSettled { busy }) => {
            assert!(busy.iter().any(|b| b.contains("TCP")), "{busy:?}");
        }
        other => panic!("{:?}", other.map(|c| c.report)),
    }
    p.py("c.close(); a.close()");
    let mut c = p.checkpoint();
    c.rewind();
}

#[test]
fn failing_files_leave_the_container_unharmed_at_the_checkpoint_and_dead_after_a_rewind() {
    needs_engine!();
    let mut p = Puppet::python();
    let (target, options) = (p.target.clone(), support::paranoid());
    match snapshot::checkpoint(&target, &options, &mut || Err("no".into())) {
        Err(snapshot::CheckpointError::Files(error)) => assert_eq!(error.to_string(), "no"),
        other => panic!("{:?}", other.map(|(_, report)| report)),
    }
    assert_eq!(p.py("result = 'ELF' in open('/proc/self/maps').read()"), "false");
    let c = p.checkpoint();
    let quarantine = c.with(|s| s.rewind(&mut || Err("no".into()))).expect_err("quarantined");
    assert_eq!(quarantine.reason, Reason::Files);
    p.wait_dead();
}

#[test]
fn a_forgotten_snapshot_leaves_no_trace_and_allows_another() {
    needs_engine!();
    let mut p = Puppet::python();
    let c = p.checkpoint();
    p.py("x = 1");
    c.forget().expect("forgotten");
    assert_eq!(
        p.py("result = ['ELF' in open('/proc/self/maps').read(), 'x' in globals()]"),
        "[false, false]"
    );
    let mut c = p.checkpoint();
    p.py("x = 2");
    c.rewind();
    assert_eq!(p.py("result = 'x' in globals()"), "false");
}

#[test]
fn a_changed_file_behind_a_mapping_is_seen() {
    needs_engine!();
    let start = "
import tempfile
kept['path'] = tempfile.mktemp(); open(kept['path'], 'wb').write(b'x' * 8192)
f = os.open(kept['path'], 0); kept['a'] = libc.mmap(None, 8192, 1, 2, f, 0); os.close(f)";
    seen_after(
        start,
        "f = open(kept['path'], 'r+b'); f.write(b'secret'); f.close(); os.utime(kept['path'], (0, 0))",
        Reason::FileMappingReplaced,
    );
}
