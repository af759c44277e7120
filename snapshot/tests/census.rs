//! What the census must see. That it is right when it sees nothing is what the paranoid mode of all other tests
//! compares.

mod support;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use snapshot::Options;
use support::Puppet;

/// Skips the calling test if the kernel cannot be asked.
macro_rules! needs_census {
    () => {
        needs_engine!();
        let features = snapshot::probe();
        if features.features.iter().any(|feature| feature.name == "census" && feature.state.is_err()) {
            eprintln!("SKIP {}: needs the census\n{features}", module_path!());
            return;
        }
    };
}

const QUIET: &str = "result = sum(range(100))";

/// A change, with what has to be there before it, must be told as one of an area.
fn named(before: &str, plant: &str, area: &str) {
    let mut p = Puppet::python();
    // A heap with room, which neither grows nor shrinks.
    p.py("libc.mallopt(-1, 1 << 30); libc.mallopt(-2, 1 << 22); [bytes(n) for n in range(0, 60000, 1000)]");
    p.py(before);
    let mut c = p.checkpoint_with(&Options::default());
    for _ in 0..3 {
        p.py(QUIET);
        c.rewind();
    }
    p.py(QUIET);
    let report = c.rewind();
    assert!(report.areas_changed.is_empty(), "nothing was planted: {:?}", report.areas_changed);
    p.py(plant);
    let report = c.rewind();
    assert!(report.areas_changed.contains(&area), "{plant}: {:?}", report.areas_changed);
    c.rewind();
    p.py(QUIET);
    let report = c.rewind();
    assert!(report.areas_changed.is_empty(), "after a rewind: {:?}", report.areas_changed);
}

macro_rules! named_tests {
    ($($name:ident: $before:expr, $plant:expr, $area:literal;)*) => {
        $( #[test] fn $name() { needs_census!(); named($before, $plant, $area); } )*
    };
}

named_tests! {
    a_mapping: "pass", "kept['m'] = libc.mmap(None, 4096, 3, 34, -1, 0)", "layout";
    advice: "kept['m'] = libc.mmap(None, 8192, 3, 34, -1, 0)", "libc.madvise(ctypes.c_void_p(kept['m']), 4096, 10)", "layout";
    a_protection: "kept['m'] = libc.mmap(None, 8192, 3, 34, -1, 0)", "libc.mprotect(ctypes.c_void_p(kept['m']), 4096, 1)", "layout";
    the_break: "pass", "libc.sbrk(16)", "layout";
    locked_memory: "pass", "libc.mlockall(2)", "layout";
    a_descriptor: "pass", "os.open('/etc/passwd', 0)", "descriptors";
    a_closed_descriptor: "kept['f'] = os.open('/etc/passwd', 0)", "os.close(kept['f'])", "descriptors";
    a_replaced_descriptor: "kept['f'] = os.open('/etc/passwd', 0)", "f = os.open('/etc/passwd', 0); os.dup2(f, kept['f'], False); os.close(f)", "descriptors";
    an_offset: "kept['f'] = os.open('/etc/passwd', 0)", "os.lseek(kept['f'], 3, 0)", "descriptors";
    close_on_exec: "kept['f'] = os.open('/etc/passwd', 0)", "os.set_inheritable(kept['f'], True)", "descriptors";
    status_flags: "kept['p'] = os.pipe()", "os.set_blocking(kept['p'][0], False)", "descriptors";
    an_owner: "kept['p'] = os.pipe()", "fcntl.fcntl(kept['p'][0], fcntl.F_SETOWN, os.getpid())", "descriptors";
    a_lock: "kept['f'] = os.open('/proc/self/exe', 0)", "fcntl.flock(kept['f'], fcntl.LOCK_SH)", "descriptors";
    bytes_in_a_pipe: "kept['p'] = os.pipe()", "os.write(kept['p'][1], b'x')", "descriptors";
    more_bytes_in_a_pipe: "kept['p'] = os.pipe(); os.write(kept['p'][1], b'x')", "os.write(kept['p'][1], b'y')", "descriptors";
    another_byte_in_a_pipe: "kept['p'] = os.pipe(); os.write(kept['p'][1], b'x')", "os.read(kept['p'][0], 1); os.write(kept['p'][1], b'y')", "descriptors";
    the_size_of_a_pipe: "kept['p'] = os.pipe()", "fcntl.fcntl(kept['p'][0], 1031, 4096)", "descriptors";
    an_event_counter: "kept['e'] = os.eventfd(3)", "os.eventfd_write(kept['e'], 1)", "descriptors";
    a_timer_descriptor: "kept['t'] = call(283, 1, 0)", "s = ctypes.create_string_buffer(struct.pack('qqqq', 5, 0, 5, 0)); call(286, kept['t'], 0, ctypes.addressof(s), 0)", "descriptors";
    a_signal_descriptor: "kept['m'] = ctypes.create_string_buffer(struct.pack('Q', 512)); kept['g'] = call(289, -1, ctypes.addressof(kept['m']), 8, 0)", "m = ctypes.create_string_buffer(struct.pack('Q', 1024)); call(289, kept['g'], ctypes.addressof(m), 8, 0)", "descriptors";
    an_interest: "kept['e'] = select.epoll(); kept['p'] = os.pipe()", "kept['e'].register(kept['p'][0], select.EPOLLIN)", "descriptors";
    a_changed_interest: "kept['e'] = select.epoll(); kept['p'] = [os.pipe() for _ in range(9)]; [kept['e'].register(p[0], select.EPOLLIN) for p in kept['p']]", "kept['e'].modify(kept['p'][5][0], select.EPOLLIN | select.EPOLLET)", "descriptors";
    a_lost_interest: "kept['e'] = select.epoll(); kept['p'] = [os.pipe() for _ in range(9)]; [kept['e'].register(p[0], select.EPOLLIN) for p in kept['p']]", "kept['e'].unregister(kept['p'][4][0])", "descriptors";
    a_handler: "pass", "signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "attributes";
    a_pending_signal: "pass", "signal.pthread_sigmask(signal.SIG_BLOCK, [10]); os.kill(os.getpid(), 10)", "attributes";
    a_signal_for_the_thread: "pass", "signal.pthread_sigmask(signal.SIG_BLOCK, [10]); signal.pthread_kill(threading.get_ident(), 10)", "thread attributes";
    the_umask: "pass", "os.umask(0o70)", "attributes";
    an_interval_timer: "pass", "signal.setitimer(signal.ITIMER_REAL, 1000)", "attributes";
    a_virtual_timer: "pass", "signal.setitimer(signal.ITIMER_VIRTUAL, 1000)", "attributes";
    a_posix_timer: "pass", "libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))", "attributes";
    dumpable: "pass", "libc.prctl(4, 0, 0, 0, 0)", "attributes";
    huge_pages: "pass", "libc.prctl(41, 1, 0, 0, 0)", "attributes";
    subreaper: "pass", "libc.prctl(36, 1, 0, 0, 0)", "attributes";
    a_zombie: "pass", "os.fork() or os._exit(0); time.sleep(0.05)", "attributes";
    a_name: "pass", "libc.prctl(15, b'x', 0, 0, 0)", "thread attributes";
    a_stack_for_signals: "pass", "kept['b'] = ctypes.create_string_buffer(65536); libc.sigaltstack(struct.pack('QiiQ', ctypes.addressof(kept['b']), 0, 0, 65536), None)", "thread attributes";
    the_end_of_the_parent: "pass", "libc.prctl(1, 12, 0, 0, 0)", "thread attributes";
    slack: "pass", "libc.prctl(29, 12345, 0, 0, 0)", "thread attributes";
    robust_futexes: "pass", "kept['r'] = ctypes.create_string_buffer(24); call(273, ctypes.addressof(kept['r']), 24)", "thread attributes";
    where_the_id_is_cleared: "pass", "kept['r'] = ctypes.create_string_buffer(8); call(218, ctypes.addressof(kept['r']))", "thread attributes";
    what_becomes_of_failing_memory: "pass", "libc.prctl(33, 1, 1, 0, 0)", "thread attributes";
    a_resource_limit: "pass", "resource.setrlimit(resource.RLIMIT_CORE, (1, resource.getrlimit(resource.RLIMIT_CORE)[1]))", "limits";
    the_oom_score: "pass", "open('/proc/self/oom_score_adj', 'w').write('555')", "limits";
    the_filter_of_dumps: "pass", "open('/proc/self/coredump_filter', 'w').write('0x1')", "limits";
    niceness: "pass", "os.nice(3)", "limits";
    a_class_of_scheduling: "pass", "os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "limits";
    the_priority_of_io: "pass", "call(251, 1, 0, 3 << 13)", "limits";
    the_working_directory: "pass", "os.chdir('/usr')", "place";
    a_queue: "pass", "call(240, ctypes.cast(b'q', ctypes.c_void_p).value, 0o102, 0o600, 0)", "ipc";
}

#[test]
fn a_mapping_that_came_and_went_is_no_change() {
    needs_census!();
    let mut p = Puppet::python();
    p.py("libc.mallopt(-1, 1 << 30); libc.mallopt(-2, 1 << 22); [bytes(n) for n in range(0, 60000, 1000)]");
    let mut c = p.checkpoint_with(&Options::default());
    let transient = "libc.munmap(ctypes.c_void_p(libc.mmap(None, 4096, 3, 34, -1, 0)), 4096)";
    for _ in 0..3 {
        // The first one may leave a mark in the flags of the address space.
        p.py(transient);
        c.rewind();
    }
    for _ in 0..3 {
        p.py(transient);
        assert_eq!(c.rewind().areas_changed, [""; 0]);
    }
}

#[test]
fn a_mapping_replaced_by_its_like_is_a_change() {
    needs_census!();
    let start = "kept['m'] = libc.mmap(None, 8192, 3, 34, -1, 0); ctypes.memset(kept['m'], 1, 8192)";
    named(start, "libc.mmap(kept['m'], 8192, 3, 0x32, -1, 0)", "layout");
}

#[test]
fn an_affinity() {
    needs_census!();
    if std::thread::available_parallelism().is_ok_and(|n| n.get() > 1) {
        named("pass", "os.sched_setaffinity(0, {0})", "limits");
    } else {
        eprintln!("SKIP an_affinity: there is one processor");
    }
}

#[test]
fn another_threads_attributes() {
    needs_census!();
    let start = "
kept['go'] = threading.Semaphore(0); kept['done'] = threading.Semaphore(0)
def run():
    while True:
        kept['go'].acquire(); libc.prctl(15, b'secret', 0, 0, 0); kept['done'].release()
threading.Thread(target=run, daemon=True).start(); time.sleep(0.02)";
    named(start, "kept['go'].release(); kept['done'].acquire()", "thread attributes");
}

#[test]
fn a_thread_that_came_is_none_of_the_snapshots() {
    needs_census!();
    named("pass", "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()", "layout");
}

#[test]
fn without_the_census_everything_is_looked_at() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint_with(&Options { census: false, ..Options::default() });
    p.py(QUIET);
    assert_eq!(c.rewind().areas_changed.len(), 8);
}

/// Changes that can be undone, for programs at random.
const CHANGES: &[&str] = &[
    "os.umask(0o31)",
    "os.chdir('/usr')",
    "os.chdir('/')",
    "kept.setdefault('f', []).append(os.open('/etc/passwd', 0))",
    "os.lseek(plain, 5, 0)",
    "os.set_blocking(pipe[0], False)",
    "os.write(pipe[1], b'secret')",
    "os.close(pipe[0])",
    "os.dup2(plain, counter)",
    "os.eventfd_write(counter, 9)",
    "os.set_inheritable(plain, True)",
    "poll.modify(pipe[0], select.EPOLLIN | select.EPOLLET)",
    "poll.unregister(pipe[0])",
    "signal.signal(signal.SIGUSR1, signal.SIG_IGN)",
    "signal.signal(signal.SIGUSR1, signal.SIG_DFL)",
    "signal.pthread_sigmask(signal.SIG_BLOCK, [10]); os.kill(os.getpid(), 10)",
    "signal.setitimer(signal.ITIMER_REAL, 1000)",
    "libc.timer_create(1, None, ctypes.byref(ctypes.c_void_p()))",
    "libc.prctl(15, b'secret', 0, 0, 0)",
    "libc.prctl(1, 12, 0, 0, 0)",
    "libc.prctl(29, 12345, 0, 0, 0)",
    "libc.prctl(36, 1, 0, 0, 0)",
    "libc.prctl(4, 0, 0, 0, 0)",
    "os.nice(1)",
    "resource.setrlimit(resource.RLIMIT_CORE, (5, resource.getrlimit(resource.RLIMIT_CORE)[1]))",
    "open('/proc/self/oom_score_adj', 'w').write('555')",
    "libc.mmap(None, 8192, 3, 34, -1, 0)",
    "libc.munmap(ctypes.c_void_p(area), 4096)",
    "libc.mprotect(ctypes.c_void_p(area), 4096, 1)",
    "libc.madvise(ctypes.c_void_p(area), 4096, 10)",
    "libc.sbrk(40000)",
    "libc.mlockall(3)",
    "os.fork() or os._exit(0)",
    "os.fork() or time.sleep(1000)",
    "threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()",
    "kept['x'] = [bytes(100000) for _ in range(20)]",
];

/// What of all this a program can see of itself.
const STATE: &str = "
u = os.umask(0); os.umask(u)
status = [l for l in open('/proc/self/status').read().splitlines() if l.split(':')[0] in ('Name', 'Umask', 'SigIgn', 'SigCgt', 'ShdPnd', 'Threads')]
fds = sorted(int(f) for f in os.listdir('/proc/self/fd'))[:-1]
info = [open('/proc/self/fdinfo/%d' % f).read() for f in (plain, pipe[0], pipe[1], counter, poll.fileno())]
v = ctypes.c_int(); libc.prctl(37, ctypes.byref(v), 0, 0, 0)
maps = [l.split()[:2] for l in open('/proc/self/maps')]
maps = [p for n in range(4) for r, p in maps if int(r.split('-')[0], 16) <= area + n * 4096 < int(r.split('-')[1], 16)]
result = [u, os.getcwd(), status, fds, info, v.value, libc.prctl(3, 0, 0, 0, 0), libc.prctl(30, 0, 0, 0, 0), os.nice(0), maps,
          resource.getrlimit(resource.RLIMIT_CORE), open('/proc/self/oom_score_adj').read(), signal.getitimer(signal.ITIMER_REAL)[0],
          open('/proc/self/timers').read().count('ID:'), select.select([pipe[0]], [], [], 0)[0], len([p for p in os.listdir('/proc') if p.isdigit()])]";

#[test]
fn any_program_is_undone_the_short_way_and_the_long_way_alike() {
    needs_engine!();
    let changes = proptest::collection::vec(proptest::sample::select(CHANGES), 0..5);
    for way in support::ways() {
        let puppet = std::cell::RefCell::new(Puppet::python());
        puppet.borrow_mut().py("
plain = os.open('/etc/passwd', 0); pipe = os.pipe(); counter = os.eventfd(3); poll = select.epoll(); poll.register(pipe[0], select.EPOLLIN)
area = libc.mmap(None, 16384, 3, 34, -1, 0)");
        let clean = puppet.borrow_mut().py(STATE);
        let checked = std::cell::RefCell::new(puppet.borrow_mut().checkpoint_with(&way));
        let config = Config { cases: 12, max_shrink_iters: 0, ..Config::default() };
        let result = TestRunner::new(config).run(&changes, |changes| {
            let mut program = String::new();
            for change in changes {
                program += &format!("try: {change}\nexcept (OSError, ValueError): pass\n");
            }
            puppet.borrow_mut().py(&(program.clone() + "result = 0"));
            checked.borrow_mut().rewind();
            prop_assert_eq!(puppet.borrow_mut().py(STATE), clean.as_str(), "after {}", program);
            checked.borrow_mut().rewind();
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
    }
}
