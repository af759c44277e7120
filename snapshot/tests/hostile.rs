//! Requests that fight the rewind.

mod support;

use snapshot::{FaultPoint, Faults, Options, Reason};
use std::time::Duration;
use support::{Puppet, paranoid, wait_for};

/// Pristine or given up; never anything between. Returns whether it was rewound.
fn rewound_or_dead(p: &Puppet, c: &mut support::Checked) -> bool {
    match c.try_rewind() {
        Ok(_) => true,
        Err(quarantine) => {
            eprintln!("given up: {}", support::chain(&quarantine));
            p.wait_dead();
            false
        }
    }
}

#[test]
fn a_fork_bomb_is_outrun() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint_with(&Options { step_deadline: Duration::from_secs(20), ..paranoid() });
    p.py("
if os.fork() == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_NPROC, (300, 300))
    while True:
        try:
            if os.fork() == 0: continue
            os.waitpid(-1, os.WNOHANG)
        except OSError: pass
time.sleep(0.1)");
    let before = p.processes().len();
    let report = c.rewind();
    assert!(report.strangers_killed >= 1, "{before} processes, {report:?}");
    assert_eq!(p.processes().len(), 1);
    assert_eq!(p.py("result = len([x for x in os.listdir('/proc') if x.isdigit()])"), "1");
}

#[test]
fn a_process_of_the_snapshot_that_forks_in_its_threads_is_stopped() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint_with(&Options { step_deadline: Duration::from_secs(20), ..paranoid() });
    p.py("
def run():
    while True:
        pid = os.fork()
        if pid == 0: time.sleep(1000)
        time.sleep(0.001)
for _ in range(4): threading.Thread(target=run, daemon=True).start()
time.sleep(0.05)");
    let report = c.rewind();
    assert!(report.threads_removed == 4 && report.strangers_killed >= 4, "{report:?}");
    assert_eq!(p.py("result = len(os.listdir('/proc/self/task'))"), "1");
}

#[test]
fn five_hundred_threads_are_removed() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    p.py("
threading.stack_size(65536)
for _ in range(500): threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()");
    let report = c.rewind();
    assert_eq!(report.threads_removed, 500);
    assert_eq!(p.py("result = len(os.listdir('/proc/self/task'))"), "1");
}

#[test]
fn a_thread_that_spins_and_one_that_is_in_vfork_do_not_hold_the_rewind_up() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    p.py("
import _posixsubprocess
def spin():
    while True: pass
def vfork():
    # The child of a vfork sleeps: the parent waits for it uninterruptibly, but for SIGKILL to the child.
    libc.vfork.restype = ctypes.c_int
    code = bytes([0xb8, 58, 0, 0, 0, 0x0f, 0x05, 0x85, 0xc0, 0x75, 0x0b, 0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7, 0x90, 0x90, 0xc3])
    a = libc.mmap(None, 4096, 7, 34, -1, 0)
    ctypes.memmove(ctypes.c_void_p(a), code, len(code))
    ctypes.CFUNCTYPE(ctypes.c_int)(a)()
    # Its child is killed before it can be stopped: then it must not end by itself.
    while True: time.sleep(1)
threading.Thread(target=spin, daemon=True).start()
threading.Thread(target=vfork, daemon=True).start()
time.sleep(0.1)");
    let report = c.rewind();
    assert_eq!(report.threads_removed, 2, "{report:?}");
    assert_eq!(report.strangers_killed, 1, "{report:?}");
    assert_eq!(p.py("result = 'ok'"), "\"ok\"");
}

#[test]
fn a_storm_of_signals_is_drained() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    for _ in 0..3 {
        p.py("
signal.signal(signal.SIGALRM, lambda *a: None)
signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
signal.pthread_sigmask(signal.SIG_BLOCK, range(34, 64))
for s in range(34, 64):
    for _ in range(100): os.kill(os.getpid(), s)");
        c.rewind();
        assert_eq!(p.py("result = [len(signal.sigpending()), signal.getitimer(0)[1]]"), "[0, 0.0]");
        c.rewind();
    }
}

#[test]
fn a_hostile_rseq_section_does_not_redirect_the_agent() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    // The critical section covers the whole address space below the kernel and aborts into a loop.
    p.py("
import re
m = [l for l in open('/proc/self/maps') if 'ELF' in l and 'r-xs' in l]
a = libc.mmap(None, 4096, 7, 34, -1, 0)
ctypes.memmove(ctypes.c_void_p(a), struct.pack('<I', 0x53053053) + b'\\xeb\\xfe', 6)
desc = libc.mmap(None, 4096, 3, 34, -1, 0)
start = int(m[0].split('-')[0], 16)
ctypes.memmove(ctypes.c_void_p(desc), struct.pack('<IIQQQ', 0, 0, start, 4096, a + 4), 32)
rseq = ctypes.c_long.in_dll(libc, '__rseq_offset').value
fs = ctypes.c_ulong(); call(158, 0x1003, ctypes.addressof(fs))
ctypes.memmove(ctypes.c_void_p(fs.value + rseq + 8), struct.pack('<Q', desc), 8)");
    c.rewind();
    assert_eq!(p.py("result = 'ok'"), "\"ok\"");
}

#[test]
fn system_call_dispatch_does_not_redirect_the_agent() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    // Everything outside libc is dispatched while the selector says so; the agent is outside.
    p.py("
sel = ctypes.create_string_buffer(1); kept['sel'] = sel
lib = [l for l in open('/proc/self/maps') if 'libc' in l and 'r-xp' in l][0].split()[0].split('-')
a, b = int(lib[0], 16), int(lib[1], 16)
call(157, 59, 1, a, b - a, ctypes.addressof(sel))
sel.raw = b'\\1'");
    c.rewind();
    assert_eq!(p.py("result = 'ok'"), "\"ok\"");
}

#[test]
fn descriptors_and_memory_exhausted_before_the_answer() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    p.py("
try:
    while True: os.open('/dev/null', 0)
except OSError: pass
resource.setrlimit(resource.RLIMIT_AS, (1 << 20, resource.getrlimit(resource.RLIMIT_AS)[1]))
resource.setrlimit(resource.RLIMIT_STACK, (4096, resource.getrlimit(resource.RLIMIT_STACK)[1]))");
    let report = c.rewind();
    assert!(report.fds_closed > 100, "{report:?}");
    assert_eq!(p.py("result = len(bytearray(10_000_000))"), "10000000");
}

#[test]
fn a_stack_unmapped_below_the_registers_is_put_back() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    p.py("
def run(): time.sleep(1000)
threading.Thread(target=run, daemon=True).start()
for line in open('/proc/self/maps'):
    if '[heap]' in line: a, b = [int(x, 16) for x in line.split()[0].split('-')]
libc.mprotect(ctypes.c_void_p(b - 8192), 4096, 1)");
    c.rewind();
    assert_eq!(p.py("result = 'ok'"), "\"ok\"");
}

#[test]
fn every_fault_ends_in_a_dead_or_an_unharmed_container() {
    needs_engine!();
    for point in FaultPoint::ALL {
        let faults = Faults::default();
        let options = Options { faults: faults.clone(), step_deadline: Duration::from_secs(5), ..paranoid() };
        let mut p = Puppet::python();
        if point.name().starts_with("checkpoint") {
            faults.arm(*point);
            match p.try_checkpoint(&options) {
                Err(snapshot::CheckpointError::Refused(q)) => assert_eq!(q.reason, Reason::FaultInjected),
                other => panic!("{}: {:?}", point.name(), other.map(|c| c.report)),
            }
            faults.disarm();
            assert_eq!(p.py("result = 'alive'"), "\"alive\"", "{}", point.name());
            let mut c = p.checkpoint_with(&options);
            c.rewind();
            continue;
        }
        let mut c = p.checkpoint_with(&options);
        p.py("secret = 1; kept['t'] = threading.Thread(target=time.sleep, args=(1000,), daemon=True); kept['t'].start()");
        faults.arm(*point);
        assert_eq!(c.quarantined().reason, Reason::FaultInjected, "{}", point.name());
        faults.disarm();
        p.wait_dead();
        // Nobody is left stopped or traced: not even a zombie of ours.
        wait_for("the end of process 1", || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", p.init)).unwrap_or_default();
            let traced = status.lines().any(|l| l.starts_with("TracerPid:") && !l.ends_with("\t0"));
            (!traced).then_some(())
        });
    }
}

#[test]
fn a_request_that_works_on_in_the_background_finds_nothing_to_work_with() {
    needs_engine!();
    let mut p = Puppet::python();
    let mut c = p.checkpoint();
    for _ in 0..5 {
        p.py("
def work():
    i = 0
    while True:
        i += 1; globals()['secret%d' % (i % 50)] = bytearray(10000)
for _ in range(3): threading.Thread(target=work, daemon=True).start()
if os.fork() == 0:
    while True: os.close(os.open('/dev/null', 0))");
        assert!(rewound_or_dead(&p, &mut c));
        assert_eq!(p.py("result = [any(k.startswith('secret') for k in globals()), len(os.listdir('/proc/self/task'))]"), "[false, 1]");
    }
}

#[test]
fn a_dead_engine_kills_the_container_it_has_stopped() {
    needs_engine!();
    let mut p = Puppet::python();
    let c = p.checkpoint();
    p.py("pass");
    // The thread that traces panics in the middle of a rewind: its tracees must not stay stopped.
    let died = c.keeper.ask(|kept| {
        let died = kept.as_mut().expect("a snapshot").rewind(&mut || panic!("the engine dies here"));
        died.is_err()
    });
    assert_eq!(died, Err(snapshot::Gone));
    p.wait_dead();
}
