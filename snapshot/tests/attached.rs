//! A container that runs while it is traced behaves as if it were not.

mod support;

use snapshot::{Keeper, Reason};
use std::process::Command;
use support::{Puppet, eventually, wait_for};

/// A field of `/proc/<pid>/status`, or an empty text when the process is gone.
fn status(pid: i32, field: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap_or_default().trim().to_owned()
}

fn is_traced(p: &Puppet) -> bool {
    !matches!(status(p.init.as_raw(), "TracerPid").as_str(), "" | "0")
}

#[test]
fn signals_reach_their_handlers_in_order_and_number() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    for _ in 0..2 {
        // Handlers in C, as Python's merge signals; real-time signals queue, so each counts.
        let answer = p.py("
order = (ctypes.c_int * 5000)(); count = ctypes.c_int(0)
HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
def run(number):
    order[count.value] = number; count.value += 1
handler = HANDLER(run); kept['h'] = handler
libc.signal.restype = ctypes.c_void_p
for s in (10, 40, 41): libc.signal(s, handler)
for i in range(1000):
    os.kill(os.getpid(), 40 if i % 3 else 10)
first = [order[i] for i in range(count.value)]
expected = [(40 if i % 3 else 10) for i in range(1000)]
count.value = 0
signal.pthread_sigmask(signal.SIG_BLOCK, [40, 41])
for i in range(100): os.kill(os.getpid(), 41 if i % 2 else 40)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [40, 41])
# The frame of the one taken last is on top: 41 before 40.
second = sorted(order[i] for i in range(count.value))
result = [first == expected, second == [40] * 50 + [41] * 50]");
        assert_eq!(answer, "[true, true]");
        c.rewind();
    }
}

#[test]
fn what_a_signal_carries_arrives_with_it() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    let answer = p.py("
kept['got'] = None
pid = os.fork()
if pid == 0:
    signal.pthread_sigmask(signal.SIG_BLOCK, [40])
    info = signal.sigwaitinfo([40]); os._exit(7 if info.si_pid == 0 or info.si_pid == os.getppid() else 1)
signal.signal(signal.SIGCHLD, lambda s, f: kept.__setitem__('got', s))
time.sleep(0.05); os.kill(pid, 40)
_, how = os.waitpid(pid, 0)
result = [os.waitstatus_to_exitcode(how), kept['got']]");
    assert_eq!(answer, "[7, 17]");
    // The tracer itself is out of sight.
    assert!(is_traced(&p));
    let tracer = "result = open('/proc/self/status').read().split('TracerPid:')[1].split()[0]";
    assert_eq!(p.py(tracer), "\"0\"");
    c.rewind();
}

#[test]
fn an_ignored_signal_does_not_interrupt_a_wait() {
    needs_engine!();
    let mut p = Puppet::python();
    // epoll_wait and semop answer EINTR to a wake-up by a tracer; without one nothing would wake them.
    p.py("
kept['e'] = libc.epoll_create1(0); kept['p'] = os.pipe()
ev = ctypes.create_string_buffer(struct.pack('<IQ', 1, 0)); libc.epoll_ctl(kept['e'], 1, kept['p'][0], ev)
def wait(timeout):
    out = ctypes.create_string_buffer(64)
    def kick():
        for s in (signal.SIGCHLD, signal.SIGURG, signal.SIGWINCH, signal.SIGUSR1) * 5:
            time.sleep(0.005); call(234, os.getpid(), os.getpid(), int(s))
        os.write(kept['p'][1], b'x')
    t = threading.Thread(target=kick); t.start()
    got = libc.epoll_wait(kept['e'], out, 1, timeout); err = ctypes.get_errno()
    t.join(); os.read(kept['p'][0], 10)
    return [got, err if got < 0 else 0]");
    let mut c = p.checkpoint();
    for _ in 0..2 {
        assert_eq!(
            p.py("signal.signal(signal.SIGUSR1, signal.SIG_IGN); result = [wait(-1), wait(20000)]"),
            "[[1, 0], [1, 0]]"
        );
        // One with a handler does, as ever, even if it asks for restarts.
        assert_eq!(
            p.py("
signal.signal(signal.SIGUSR1, lambda *a: None); signal.siginterrupt(signal.SIGUSR1, False)
result = wait(-1)"),
            "[-1, 4]"
        );
        c.rewind();
    }
}

#[test]
fn job_control_works_and_is_seen_by_the_parent() {
    needs_engine!();
    let start = "
r, w = os.pipe(); g, go = os.pipe(); kept['r'] = r; kept['g'] = go
kept['c'] = os.fork()
if kept['c'] == 0:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    os.read(g, 1)
    while True: os.write(w, b'.'); time.sleep(0.001)
time.sleep(0.05)";
    let work = "
c = kept['c']; seen = []
os.write(kept['g'], b'x')
for _ in range(5):
    os.kill(c, signal.SIGSTOP)
    seen.append(os.WIFSTOPPED(os.waitpid(c, os.WUNTRACED)[1]))
    while select.select([kept['r']], [], [], 0.05)[0]: os.read(kept['r'], 65536)
    os.kill(c, signal.SIGCONT)
    seen.append(os.WIFCONTINUED(os.waitpid(c, os.WCONTINUED)[1]))
    os.read(kept['r'], 1)
result = all(seen)";
    let mut untraced = Puppet::python();
    untraced.py(start);
    assert_eq!(untraced.py(work), "true", "without a tracer");
    let mut p = Puppet::python();
    p.py(start);
    let mut c = p.checkpoint();
    for _ in 0..2 {
        assert_eq!(p.py(work), "true");
        c.rewind();
    }
}

#[test]
fn a_stopped_process_that_was_continued_is_rewound() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.05)");
    let mut c = p.checkpoint();
    p.py("
os.kill(kept['c'], signal.SIGSTOP); os.waitpid(kept['c'], os.WUNTRACED)
os.kill(kept['c'], signal.SIGCONT); os.waitpid(kept['c'], os.WCONTINUED)");
    c.rewind();
    p.py("os.kill(kept['c'], signal.SIGSTOP); os.waitpid(kept['c'], os.WUNTRACED)");
    assert_eq!(c.quarantined().reason, Reason::StoppedByJobControl);
    p.wait_dead();
}

#[test]
fn a_program_may_stop_and_trace_its_own_children() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    for _ in 0..2 {
        let answer = p.py("
pid = os.fork()
if pid == 0:
    libc.ptrace(0, 0, None, None); os.kill(os.getpid(), signal.SIGSTOP); os._exit(3)
how = []
how.append(os.waitpid(pid, 0)[1]); libc.ptrace(7, pid, None, None)
how.append(os.waitpid(pid, 0)[1])
result = [os.WSTOPSIG(how[0]), os.waitstatus_to_exitcode(how[1])]");
        assert_eq!(answer, "[19, 3]");
        c.rewind();
    }
}

#[test]
fn a_breakpoint_of_the_program_is_its_own() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    let answer = p.py("
hits = ctypes.c_int(0); HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
def run(number): hits.value += 1
handler = HANDLER(run); libc.signal(5, handler)
a = libc.mmap(None, 4096, 7, 34, -1, 0); ctypes.memmove(ctypes.c_void_p(a), b'\\xcc\\xc3', 2)
for _ in range(100): ctypes.CFUNCTYPE(None)(a)()
result = hits.value");
    assert_eq!(answer, "100");
    c.rewind();
}

#[test]
fn a_storm_of_signals_neither_stops_the_program_nor_keeps_orders_waiting() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    for _ in 0..3 {
        // Profiling at whatever rate the kernel manages, with work beside it.
        let answer = p.py("
hits = 0
def hit(*a):
    global hits; hits += 1
signal.signal(signal.SIGPROF, hit); signal.signal(signal.SIGALRM, hit)
signal.setitimer(signal.ITIMER_PROF, 0.001, 0.001); signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
total = 0
for i in range(300000): total += i
result = [total, hits > 10]");
        assert_eq!(answer, "[44999850000, true]");
        // The timers still run: the rewind is ordered in the middle of the storm.
        c.rewind();
        assert_eq!(p.py("result = signal.getitimer(signal.ITIMER_REAL)[1]"), "0.0");
        c.rewind();
    }
}

#[test]
fn orders_do_not_wait_for_a_signal() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    // Nothing happens in the container: only the bell ends the wait, two thousand times.
    for round in 0..2000 {
        assert_eq!(c.keeper.ask(move |_| round), Ok(round));
    }
    c.rewind();
}

#[test]
fn an_exec_is_seen_by_the_next_rewind_and_by_nobody_before() {
    needs_engine!();
    let exec = "
kept['c'] = os.fork()
if kept['c'] == 0:
    while os.read(kept['go'][0], 1): os.execv('/bin/sleep', ['sleep', '1000'])
time.sleep(0.05)";
    let mut p = Puppet::python();
    p.py(&format!("kept['go'] = os.pipe(){exec}"));
    let mut c = p.checkpoint();
    assert_eq!(
        p.py("
os.write(kept['go'][1], b'x'); time.sleep(0.1)
result = [open('/proc/%d/comm' % kept['c']).read(), os.waitpid(kept['c'], os.WNOHANG | os.WUNTRACED)[0]]"),
        "[\"sleep\\n\", 0]"
    );
    assert_eq!(c.quarantined().reason, Reason::FileMappingReplaced);
    p.wait_dead();
}

#[test]
fn an_exec_of_a_thread_of_the_snapshot_runs_on_and_is_seen() {
    needs_engine!();
    let mut p = Puppet::python();
    // The executing thread takes the number of the first one, which goes without a word.
    p.py("
kept['go'] = os.pipe()
kept['c'] = os.fork()
if kept['c'] == 0:
    def run(): os.read(kept['go'][0], 1); os.execv('/bin/sh', ['sh', '-c', 'kill -USR1 $$; sleep 1000'])
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    threading.Thread(target=run, daemon=True).start(); time.sleep(1000)
time.sleep(0.05)");
    let mut c = p.checkpoint();
    p.py("
os.write(kept['go'][1], b'x')
while not os.path.exists('/proc/%d/task/%d/children' % (kept['c'], kept['c'])) or not open('/proc/%d/task/%d/children' % (kept['c'], kept['c'])).read(): time.sleep(0.01)");
    let reason = c.quarantined().reason;
    assert!(matches!(reason, Reason::ThreadVanished | Reason::ProcessVanished), "{reason}");
    p.wait_dead();
}

#[test]
fn a_process_that_dies_between_rewinds_is_collected_and_seen() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("kept['c'] = os.fork() or time.sleep(1000); time.sleep(0.02)");
    let mut c = p.checkpoint();
    c.rewind();
    // Its parent gets it, status and all, though another waited for it first.
    assert_eq!(p.py("os.kill(kept['c'], 9); result = os.waitpid(kept['c'], 0)[1]"), "9");
    assert_eq!(c.quarantined().reason, Reason::ProcessVanished);
    p.wait_dead();
}

#[test]
fn a_container_that_is_killed_leaves_nothing_behind_and_its_keeper_ready() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    nix::sys::signal::kill(p.init, nix::sys::signal::Signal::SIGKILL).expect("killed");
    p.wait_dead();
    // Not even a zombie that only its tracer could collect.
    wait_for("the end of process 1", || status(p.init.as_raw(), "State").is_empty().then_some(()));
    assert_eq!(c.keeper.ask(|_| "here"), Ok("here"));
    assert_eq!(c.quarantined().reason, Reason::ProcessVanished);
    assert_eq!(c.quarantined().reason, Reason::Killed);
    assert_eq!(c.keeper.ask(|_| "here"), Ok("here"));
}

#[test]
fn a_first_thread_that_ended_alone_is_seen_without_waiting_for_it() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("
kept['go'] = os.pipe()
kept['c'] = os.fork()
if kept['c'] == 0:
    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
    os.read(kept['go'][0], 1); call(60, 0)
time.sleep(0.05)");
    let mut c = p.checkpoint();
    let gone = "os.write(kept['go'][1], b'x')\nwhile 'Z' not in open('/proc/%d/stat' % kept['c']).read(): time.sleep(0.01)";
    p.py(gone);
    assert_eq!(c.quarantined().reason, Reason::ProcessVanished);
    p.wait_dead();
}

#[test]
fn a_dropped_snapshot_leaves_the_container_alive_and_untraced() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("
kept['c'] = os.fork() or time.sleep(1000)
threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(); time.sleep(0.02)");
    let c = p.checkpoint();
    assert!(is_traced(&p));
    drop(c);
    wait_for("the release", || (!is_traced(&p)).then_some(()));
    assert_eq!(p.py("result = len([p for p in os.listdir('/proc') if p.isdigit()])"), "2");
}

#[test]
fn a_forgotten_snapshot_leaves_the_container_alive_and_untraced() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("threading.Thread(target=time.sleep, args=(1000,), daemon=True).start(); time.sleep(0.02)");
    for _ in 0..2 {
        let c = p.checkpoint();
        c.forget().expect("forgotten");
        assert!(!is_traced(&p));
        assert_eq!(p.py("result = len(os.listdir('/proc/self/task'))"), "2");
    }
}

#[test]
fn a_refused_checkpoint_leaves_nothing_traced() {
    needs_engine!();
    let mut p = Puppet::python();
    p.py("kept['m'] = mmap.mmap(-1, 4096)");
    assert_eq!(p.refused(), Reason::SharedMapping);
    assert!(!is_traced(&p));
    assert_eq!(p.py("result = 1"), "1");
}

#[test]
fn a_refused_checkpoint_leaves_sleepers_that_can_be_recorded() {
    needs_engine!();
    let mut p = Puppet::python();
    // Calls that the kernel goes on with as restart_syscall, were it left to itself.
    p.py("
kept['m'] = mmap.mmap(-1, 4096); kept['p'] = os.pipe(); polls = [select.poll(), select.poll()]
for poll in polls: poll.register(kept['p'][0])
for target, arguments in ((polls[0].poll, ()), (polls[1].poll, (1000000,)), (libc.usleep, (900000000,))):
    threading.Thread(target=target, args=arguments, daemon=True).start()
time.sleep(0.05)");
    for _ in 0..2 {
        assert_eq!(p.refused(), Reason::SharedMapping);
    }
    p.py("kept.pop('m').close()");
    drop(p.checkpoint());
    wait_for("the release", || (!is_traced(&p)).then_some(()));
    let calls = "result = sorted(open('/proc/self/task/%s/syscall' % t).read().split()[0] for t in os.listdir('/proc/self/task'))[1:]";
    assert_eq!(p.py(calls), "[\"230\", \"7\", \"7\"]");
}

#[test]
fn the_end_of_the_serving_thread_kills_the_container() {
    needs_engine!();
    let mut p = Puppet::python();
    let c = p.checkpoint();
    assert!(is_traced(&p));
    // Forgotten without being dropped: as if the thread had been torn away.
    c.keeper.ask(|kept| std::mem::forget(kept.take())).expect("the keeper lives");
    drop(c);
    p.wait_dead();
}

#[test]
fn the_end_of_the_engines_process_kills_the_container() {
    needs_engine!();
    const CHILD: &str = "REWIND_TEST_ENGINE_FOR";
    if let Ok(pid) = std::env::var(CHILD) {
        let keeper = Keeper::start("keeper".to_owned(), || None).expect("a thread");
        let target = snapshot::Target::from_init(snapshot::Pid::from_raw(pid.parse().expect("a pid")));
        let target = target.expect("a target");
        keeper
            .ask(move |kept| {
                let taken = snapshot::checkpoint(&target, &support::paranoid(), &mut || Ok(()));
                *kept = Some(taken.expect("a checkpoint").0);
            })
            .expect("the keeper lives");
        std::process::abort();
    }
    let p = Puppet::python();
    let this = std::env::current_exe().expect("a path");
    let test = "the_end_of_the_engines_process_kills_the_container";
    let ended = Command::new(this).args([test, "--exact"]).env(CHILD, p.init.to_string()).output();
    let ended = ended.expect("the engine starts");
    // SIGABRT.
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&ended.status), Some(6), "{ended:?}");
    p.wait_dead();
}

#[test]
fn the_filter_is_back_while_the_container_runs() {
    needs_engine!();
    let mut p = Puppet::python();
    // A filter that answers EPERM to personality(2), on every thread.
    p.py("
code = struct.pack('HBBI', 0x20, 0, 0, 0) + struct.pack('HBBI', 0x15, 0, 1, 135) + struct.pack('HBBI', 6, 0, 0, 0x50001) + struct.pack('HBBI', 6, 0, 0, 0x7fff0000)
buf = ctypes.create_string_buffer(code); kept['b'] = buf
prog = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(buf)))
libc.prctl(38, 1, 0, 0, 0); installed = libc.prctl(22, 2, prog, 0, 0)
result = [installed, call(135, 0xffffffff)]");
    let mut c = p.checkpoint();
    for _ in 0..3 {
        assert_eq!(p.py("result = call(135, 0xffffffff)"), "-1");
        c.rewind();
    }
}

#[test]
fn nothing_runs_while_nothing_happens() {
    needs_engine!();
    let mut p = Puppet::python();
    let c = p.checkpoint();
    let tid = c.keeper.ask(|_| nix::unistd::gettid()).expect("the keeper lives");
    let switches = || {
        let status = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")).expect("readable");
        let count = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key)).expect("a count");
            value.trim().parse::<u64>().expect("a number")
        };
        count("voluntary_ctxt_switches:") + count("nonvoluntary_ctxt_switches:")
    };
    // Once it sleeps, it sleeps: two looks with time between must be equal, sooner or later.
    let quiet = eventually(|| {
        let before = switches();
        std::thread::sleep(std::time::Duration::from_millis(300));
        (switches() == before).then_some(())
    });
    assert!(quiet.is_some(), "the serving thread keeps waking up");
}
