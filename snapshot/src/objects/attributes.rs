//! What only the process itself can read or set: signals, timers, prctl, IPC counts, keyrings.
//!
//! Everything settable is set blindly to the recorded value: one more call in a batch costs a tenth of a
//! microsecond, finding out whether it is needed costs as much.

use crate::inject::{Answers, Batch, Call, Scratch, args};
use crate::proc::Held;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::process;

const SIGNALS: u64 = 64;
/// `struct sigaction` of the kernel: handler, flags, restorer, mask.
const SIGACTION: usize = 32;
const ITIMERVAL: usize = 32;
const STACK: usize = 24;

const PR_SET_PDEATHSIG: u64 = 1;
const PR_GET_PDEATHSIG: u64 = 2;
const PR_GET_DUMPABLE: u64 = 3;
const PR_SET_DUMPABLE: u64 = 4;
const PR_SET_NAME: u64 = 15;
const PR_GET_TSC: u64 = 25;
const PR_SET_TSC: u64 = 26;
const PR_GET_SECUREBITS: u64 = 27;
const PR_SET_TIMERSLACK: u64 = 29;
const PR_GET_TIMERSLACK: u64 = 30;
const PR_MCE_KILL: u64 = 33;
const PR_MCE_KILL_GET: u64 = 34;
const PR_MCE_KILL_SET: u64 = 1;
const PR_SET_CHILD_SUBREAPER: u64 = 36;
const PR_GET_CHILD_SUBREAPER: u64 = 37;
const PR_GET_TID_ADDRESS: u64 = 40;
const PR_SET_THP_DISABLE: u64 = 41;
const PR_GET_THP_DISABLE: u64 = 42;
const PR_GET_MDWE: u64 = 66;
const PR_GET_MEMORY_MERGE: u64 = 68;

const PERSONALITY_QUERY: u64 = 0xffff_ffff;
const MEMBARRIER_GET_REGISTRATIONS: u64 = 1 << 9;
const KEYCTL_GET_KEYRING_ID: u64 = 0;
const KEYCTL_READ: u64 = 11;
const SHM_INFO: u64 = 14;
const SEM_INFO: u64 = 19;
const MSG_INFO: u64 = 12;

/// Dead children collected per batch.
const REAPED_AT_ONCE: usize = 4;

fn word(bytes: &[u8], at: usize) -> i32 {
    bytes.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// Read-only state: raw results and buffers of some calls, compared as a whole.
#[derive(Debug, Default, PartialEq, Eq)]
struct Observation(Vec<(Reason, &'static str, Vec<u8>)>);

/// The calls of an [`Observation`] in a batch.
#[derive(Debug)]
struct Observer(Vec<(Reason, &'static str, Call, Option<Scratch>)>);

impl Observer {
    /// Calls about the whole process, to be run by its main thread.
    fn of_process(batch: &mut Batch) -> Observer {
        let mut calls = Vec::new();
        let mut plain =
            |reason, what, number, args| calls.push((reason, what, batch.call(number, args), None));
        plain(
            Reason::ProcessAttributes,
            "personality",
            libc::SYS_personality,
            [PERSONALITY_QUERY, 0, 0, 0, 0, 0],
        );
        plain(
            Reason::ProcessAttributes,
            "memory-deny-write-execute",
            libc::SYS_prctl,
            [PR_GET_MDWE, 0, 0, 0, 0, 0],
        );
        plain(
            Reason::ProcessAttributes,
            "memory merging",
            libc::SYS_prctl,
            [PR_GET_MEMORY_MERGE, 0, 0, 0, 0, 0],
        );
        plain(
            Reason::ProcessAttributes,
            "membarrier",
            libc::SYS_membarrier,
            [MEMBARRIER_GET_REGISTRATIONS, 0, 0, 0, 0, 0],
        );
        for (what, id) in [("process keyring", -2i64), ("session keyring", -3)] {
            let args = [KEYCTL_GET_KEYRING_ID, id.cast_unsigned(), 0, 0, 0, 0];
            plain(Reason::Keyring, what, libc::SYS_keyctl, args);
        }
        let session = batch.space(64);
        let read = batch.add(libc::SYS_keyctl, args![KEYCTL_READ, (-3i64).cast_unsigned(), session, 64u64]);
        calls.push((Reason::Keyring, "content of the session keyring", read, Some(session)));
        Observer(calls)
    }

    /// Calls about one thread, to be run by it.
    fn of_thread(batch: &mut Batch) -> Observer {
        let mut calls = Vec::new();
        calls.push((
            Reason::Credentials,
            "secure bits",
            batch.call(libc::SYS_prctl, [PR_GET_SECUREBITS, 0, 0, 0, 0, 0]),
            None,
        ));
        calls.push((
            Reason::Keyring,
            "thread keyring",
            batch.call(libc::SYS_keyctl, [KEYCTL_GET_KEYRING_ID, (-1i64).cast_unsigned(), 0, 0, 0, 0]),
            None,
        ));
        let mode = batch.space(8);
        let call = batch.add(libc::SYS_get_mempolicy, args![mode, 0u64, 0u64, 0u64, 0u64]);
        calls.push((Reason::ThreadAttributes, "memory policy", call, Some(mode)));
        Observer(calls)
    }

    fn read(&self, batch: &Batch, answers: &Answers) -> Observation {
        let read = |(reason, what, call, scratch): &(Reason, &'static str, Call, Option<Scratch>)| {
            let mut bytes = answers.raw(*call).to_ne_bytes().to_vec();
            if let Some(scratch) = scratch {
                bytes.extend_from_slice(answers.read(batch, *scratch));
            }
            (*reason, *what, bytes)
        };
        Observation(self.0.iter().map(read).collect())
    }
}

impl Observation {
    fn check(&self, now: &Observation, who: &str) -> Result<(), Quarantine> {
        for (was, is) in self.0.iter().zip(&now.0) {
            if was != is {
                return Err(Quarantine::new(was.0, format!("{} of {who}", was.1)));
            }
        }
        Ok(())
    }
}

/// System V objects of the caller's namespace.
#[derive(Debug)]
struct SysvCounter {
    shm: (Call, Scratch),
    sem: (Call, Scratch),
    msg: (Call, Scratch),
}

impl SysvCounter {
    fn new(batch: &mut Batch) -> SysvCounter {
        let shm = batch.space(128);
        let sem = batch.space(128);
        let msg = batch.space(128);
        SysvCounter {
            shm: (batch.add(libc::SYS_shmctl, args![0u64, SHM_INFO, shm]), shm),
            sem: (batch.add(libc::SYS_semctl, args![0u64, 0u64, SEM_INFO, sem]), sem),
            msg: (batch.add(libc::SYS_msgctl, args![0u64, MSG_INFO, msg]), msg),
        }
    }

    /// Refuses any object: their content is not recorded. A kernel without System V IPC has none.
    fn check(&self, batch: &Batch, answers: &Answers) -> Result<(), Quarantine> {
        // shm_info.used_ids; seminfo.semusz and msginfo.msgpool, in which the INFO calls return the number
        // of sets and queues.
        for (what, (call, scratch), at) in [
            ("shared memory segments", self.shm, 0),
            ("semaphore sets", self.sem, 28),
            ("message queues", self.msg, 0),
        ] {
            if answers.get(call).is_err() {
                if answers.raw(call) == -i64::from(libc::ENOSYS) {
                    continue;
                }
                return Err(Quarantine::new(Reason::Unreadable, format!("counting {what}")));
            }
            let count = word(answers.read(batch, scratch), at);
            if count != 0 {
                return Err(Quarantine::new(Reason::SysvIpc, format!("{count} {what}")));
            }
        }
        Ok(())
    }
}

/// Recorded attributes of a process.
#[derive(Debug)]
pub(crate) struct ProcessAttributes {
    pub(crate) brk: u64,
    umask: u32,
    locked: u64,
    actions: Vec<Vec<u8>>,
    interval_timers: Vec<Vec<u8>>,
    dumpable: u64,
    subreaper: i32,
    no_thp: u64,
    observed: Observation,
    /// `/proc/<pid>/timers` and the ids in it.
    timers: Option<Held>,
    timer_ids: Vec<u64>,
}

/// A reading of [`ProcessAttributes`] under way.
#[derive(Debug)]
pub(crate) struct ProcessReader {
    brk: Call,
    actions: Vec<(Call, Scratch)>,
    interval_timers: Vec<(Call, Scratch)>,
    dumpable: Call,
    subreaper: (Call, Scratch),
    no_thp: Call,
    observer: Observer,
    sysv: SysvCounter,
    dead_child: (Call, Scratch),
}

impl ProcessReader {
    pub(crate) fn new(batch: &mut Batch) -> ProcessReader {
        let brk = batch.call(libc::SYS_brk, [0; 6]);
        let actions = (1..=SIGNALS)
            .map(|signal| {
                let old = batch.space(SIGACTION);
                (batch.add(libc::SYS_rt_sigaction, args![signal, 0u64, old, 8u64]), old)
            })
            .collect();
        let interval_timers = (0..3u64)
            .map(|which| {
                let old = batch.space(ITIMERVAL);
                (batch.add(libc::SYS_getitimer, args![which, old]), old)
            })
            .collect();
        let dumpable = batch.call(libc::SYS_prctl, [PR_GET_DUMPABLE, 0, 0, 0, 0, 0]);
        let flag = batch.space(4);
        let subreaper = (batch.add(libc::SYS_prctl, args![PR_GET_CHILD_SUBREAPER, flag]), flag);
        let no_thp = batch.call(libc::SYS_prctl, [PR_GET_THP_DISABLE, 0, 0, 0, 0, 0]);
        let observer = Observer::of_process(batch);
        let sysv = SysvCounter::new(batch);
        let child = batch.space(128);
        let how = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
        let how = u64::from(how.cast_unsigned());
        let dead_child = (batch.add(libc::SYS_waitid, args![0u64, 0u64, child, how, 0u64]), child);
        ProcessReader {
            brk,
            actions,
            interval_timers,
            dumpable,
            subreaper,
            no_thp,
            observer,
            sysv,
            dead_child,
        }
    }

    pub(crate) fn read(
        &self,
        pid: i32,
        umask: u32,
        locked: u64,
        batch: &Batch,
        answers: &Answers,
    ) -> Result<ProcessAttributes, Quarantine> {
        let failed = |what: &'static str| move || format!("{what} of process {pid}");
        self.sysv.check(batch, answers)?;
        // siginfo_t.si_pid. A rewind collects every dead child, so there must be none that is to stay.
        if answers.get(self.dead_child.0).is_ok() && word(answers.read(batch, self.dead_child.1), 16) != 0 {
            return Err(Quarantine::new(Reason::ProcessVanished, format!("process {pid} has a dead child")));
        }
        let bytes = |pairs: &[(Call, Scratch)], what| -> Result<Vec<Vec<u8>>, Quarantine> {
            let read = |(call, scratch): &(Call, Scratch)| {
                answers.get(*call)?;
                Ok(answers.read(batch, *scratch).to_vec())
            };
            pairs
                .iter()
                .map(read)
                .collect::<Result<_, nix::errno::Errno>>()
                .or_quarantine(Reason::InjectionFailed, failed(what))
        };
        let get = |call, what| answers.get(call).or_quarantine(Reason::InjectionFailed, failed(what));
        let actions = bytes(&self.actions, "signal actions")?;
        get(self.subreaper.0, "subreaper flag")?;
        let timers = match Held::open(&format!("/proc/{pid}/timers")) {
            Ok(held) => Some(held),
            // CONFIG_CHECKPOINT_RESTORE or CONFIG_POSIX_TIMERS is off.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(Quarantine::because(
                    Reason::Unreadable,
                    format!("timers of process {pid}"),
                    error,
                ));
            }
        };
        let timer_ids = timers.as_ref().map_or(Ok(Vec::new()), |held| timer_ids(held, pid))?;
        Ok(ProcessAttributes {
            brk: get(self.brk, "program break")?,
            umask,
            locked,
            actions,
            interval_timers: bytes(&self.interval_timers, "interval timers")?,
            dumpable: get(self.dumpable, "dumpable flag")?,
            subreaper: word(answers.read(batch, self.subreaper.1), 0),
            no_thp: get(self.no_thp, "THP flag")?,
            observed: self.observer.read(batch, answers),
            timers,
            timer_ids,
        })
    }
}

/// A restoration of [`ProcessAttributes`] under way.
#[derive(Debug)]
pub(crate) struct ProcessWriter {
    /// Calls that must succeed.
    required: Vec<(Call, Reason, &'static str)>,
    reaped: Vec<Call>,
    observer: Observer,
    sysv: SysvCounter,
    timers_deleted: u64,
}

/// What the batch of a process found.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ProcessOutcome {
    /// More dead children may be waiting.
    pub(crate) more_children: bool,
    pub(crate) restored: u64,
}

impl ProcessAttributes {
    /// What differs from another record of the same process, if anything does: also in what belongs to its layout,
    /// if that is asked for.
    pub(crate) fn differs(&self, other: &ProcessAttributes, layout: bool) -> Option<&'static str> {
        [
            (self.umask != other.umask, "umask"),
            (layout && self.brk != other.brk, "break"),
            (self.actions != other.actions, "signal actions"),
            (self.interval_timers != other.interval_timers, "interval timers"),
            (self.dumpable != other.dumpable, "dumpable flag"),
            (self.subreaper != other.subreaper, "subreaper flag"),
            (self.no_thp != other.no_thp, "THP flag"),
            (self.observed != other.observed, "observed state"),
            (self.timer_ids != other.timer_ids, "timers"),
        ]
        .into_iter()
        .find_map(|(differs, what)| differs.then_some(what))
    }

    /// Adds the calls that put the process back.
    pub(crate) fn write(&self, pid: i32, batch: &mut Batch) -> Result<ProcessWriter, Quarantine> {
        let mut required = Vec::new();
        // Its result is judged when the layout has been put back: something may be in the way now.
        batch.call(libc::SYS_brk, [self.brk, 0, 0, 0, 0, 0]);
        if self.locked == 0 {
            // Also forgets MCL_FUTURE, of which no counter tells.
            let call = batch.call(libc::SYS_munlockall, [0; 6]);
            required.push((call, Reason::MemoryLocked, "munlockall"));
        }
        batch.call(libc::SYS_umask, [u64::from(self.umask), 0, 0, 0, 0, 0]);
        // Timers before the drain of pending signals.
        let mut timers_deleted = 0;
        if let Some(held) = &self.timers {
            let now = timer_ids(held, pid)?;
            if let Some(lost) = self.timer_ids.iter().find(|id| !now.contains(id)) {
                return Err(Quarantine::new(
                    Reason::Timers,
                    format!("timer {lost} of process {pid} is gone"),
                ));
            }
            for id in now.iter().filter(|id| !self.timer_ids.contains(id)) {
                if !batch.has_room(8 * 1024) {
                    return Err(Quarantine::new(
                        Reason::Timers,
                        format!("process {pid} made {} timers", now.len()),
                    ));
                }
                let call = batch.call(libc::SYS_timer_delete, [*id, 0, 0, 0, 0, 0]);
                required.push((call, Reason::Timers, "timer_delete"));
                timers_deleted += 1;
            }
        }
        for (which, value) in (0u64..).zip(&self.interval_timers) {
            let new = batch.bytes(value);
            let call = batch.add(libc::SYS_setitimer, args![which, new]);
            required.push((call, Reason::Timers, "setitimer"));
        }
        for (signal, action) in (1u64..).zip(&self.actions) {
            if signal == libc::SIGKILL as u64 || signal == libc::SIGSTOP as u64 {
                continue;
            }
            let new = batch.bytes(action);
            let call = batch.add(libc::SYS_rt_sigaction, args![signal, new, 0u64, 8u64]);
            required.push((call, Reason::SignalActions, "rt_sigaction"));
        }
        let mut prctl = |op, value, what| {
            let call = batch.call(libc::SYS_prctl, [op, value, 0, 0, 0, 0]);
            required.push((call, Reason::ProcessAttributes, what));
        };
        // 2 (by fs.suid_dumpable) cannot be set.
        if self.dumpable < 2 {
            prctl(PR_SET_DUMPABLE, self.dumpable, "PR_SET_DUMPABLE");
        }
        prctl(PR_SET_CHILD_SUBREAPER, u64::from(self.subreaper != 0), "PR_SET_CHILD_SUBREAPER");
        prctl(PR_SET_THP_DISABLE, self.no_thp, "PR_SET_THP_DISABLE");
        let flags = u64::from((libc::WNOHANG | libc::__WALL).cast_unsigned());
        let reaped =
            (0..REAPED_AT_ONCE).map(|_| batch.call(libc::SYS_wait4, [u64::MAX, 0, flags, 0, 0, 0])).collect();
        let observer = Observer::of_process(batch);
        let sysv = SysvCounter::new(batch);
        Ok(ProcessWriter { required, reaped, observer, sysv, timers_deleted })
    }
}

impl ProcessWriter {
    /// Judges the answers.
    pub(crate) fn check(
        &self,
        recorded: &ProcessAttributes,
        pid: i32,
        batch: &Batch,
        answers: &Answers,
    ) -> Result<ProcessOutcome, Quarantine> {
        for (call, reason, what) in &self.required {
            answers.get(*call).or_quarantine(*reason, || format!("{what} in process {pid}"))?;
        }
        self.sysv.check(batch, answers)?;
        recorded.observed.check(&self.observer.read(batch, answers), &format!("process {pid}"))?;
        let reaped = self.reaped.iter().filter(|call| matches!(answers.get(**call), Ok(1..))).count();
        Ok(ProcessOutcome { more_children: reaped == REAPED_AT_ONCE, restored: self.timers_deleted })
    }
}

/// Collects dead children that one batch could not.
pub(crate) fn reap_more(batch: &mut Batch) -> Vec<Call> {
    let flags = u64::from((libc::WNOHANG | libc::__WALL).cast_unsigned());
    (0..64).map(|_| batch.call(libc::SYS_wait4, [u64::MAX, 0, flags, 0, 0, 0])).collect()
}

/// A call that takes one pending signal of the thread or its process away.
pub(crate) fn take_signal(batch: &mut Batch) -> Call {
    let all = batch.bytes(&u64::MAX.to_ne_bytes());
    let now = batch.space(16);
    batch.add(libc::SYS_rt_sigtimedwait, args![all, 0u64, now, 8u64])
}

/// Whether [`take_signal`] found none.
pub(crate) fn no_signal(answers: &Answers, call: Call) -> Result<bool, Quarantine> {
    match answers.raw(call) {
        1.. => Ok(false),
        raw if raw == -i64::from(libc::EAGAIN) => Ok(true),
        raw => Err(Quarantine::new(Reason::SignalsPending, format!("rt_sigtimedwait answered {raw}"))),
    }
}

fn timer_ids(held: &Held, pid: i32) -> Result<Vec<u64>, Quarantine> {
    let mut buffer = Vec::new();
    let text = held
        .read(&mut buffer)
        .or_quarantine(Reason::ProcessVanished, || format!("timers of process {pid}"))?;
    Ok(crate::proc::lines(text)
        .filter(|(key, _)| *key == "ID")
        .filter_map(|(_, id)| id.parse().ok())
        .collect())
}

/// Recorded attributes of a thread.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ThreadAttributes {
    stack: Vec<u8>,
    death_signal: i32,
    slack: u64,
    tsc: i32,
    /// What happens to the thread when memory fails.
    mce: u64,
    /// Where the kernel clears the thread's id when it exits, if this kernel tells.
    tid_address: Option<u64>,
    robust: (u64, u64),
    name: Vec<u8>,
    observed: Observation,
}

/// A reading of [`ThreadAttributes`] under way.
#[derive(Debug)]
pub(crate) struct ThreadReader {
    stack: (Call, Scratch),
    death_signal: (Call, Scratch),
    slack: Call,
    tsc: (Call, Scratch),
    mce: Call,
    tid_address: (Call, Scratch),
    observer: Observer,
}

impl ThreadReader {
    pub(crate) fn new(batch: &mut Batch) -> ThreadReader {
        let stack = batch.space(STACK);
        let stack = (batch.add(libc::SYS_sigaltstack, args![0u64, stack]), stack);
        let signal = batch.space(4);
        let death_signal = (batch.add(libc::SYS_prctl, args![PR_GET_PDEATHSIG, signal]), signal);
        let slack = batch.call(libc::SYS_prctl, [PR_GET_TIMERSLACK, 0, 0, 0, 0, 0]);
        let mode = batch.space(4);
        let tsc = (batch.add(libc::SYS_prctl, args![PR_GET_TSC, mode]), mode);
        let mce = batch.call(libc::SYS_prctl, [PR_MCE_KILL_GET, 0, 0, 0, 0, 0]);
        let address = batch.space(8);
        let tid_address = (batch.add(libc::SYS_prctl, args![PR_GET_TID_ADDRESS, address]), address);
        let observer = Observer::of_thread(batch);
        ThreadReader { stack, death_signal, slack, tsc, mce, tid_address, observer }
    }

    pub(crate) fn read(
        &self,
        tid: i32,
        name: &[u8],
        batch: &Batch,
        answers: &Answers,
    ) -> Result<ThreadAttributes, Quarantine> {
        let failed = |what: &'static str| move || format!("{what} of thread {tid}");
        let get = |call, what| answers.get(call).or_quarantine(Reason::InjectionFailed, failed(what));
        get(self.stack.0, "alternate stack")?;
        get(self.death_signal.0, "parent-death signal")?;
        get(self.tsc.0, "TSC mode")?;
        let address = answers.read(batch, self.tid_address.1);
        let tid_address = answers
            .get(self.tid_address.0)
            .ok()
            .and_then(|_| address.try_into().ok())
            .map(u64::from_ne_bytes);
        let robust =
            process::robust_list(tid).or_quarantine(Reason::Unreadable, failed("list of robust futexes"))?;
        Ok(ThreadAttributes {
            stack: answers.read(batch, self.stack.1).to_vec(),
            death_signal: word(answers.read(batch, self.death_signal.1), 0),
            slack: get(self.slack, "timer slack")?,
            tsc: word(answers.read(batch, self.tsc.1), 0),
            mce: get(self.mce, "machine-check policy")?,
            tid_address,
            robust,
            name: name.strip_suffix(b"\n").unwrap_or(name).to_vec(),
            observed: self.observer.read(batch, answers),
        })
    }
}

/// A restoration of [`ThreadAttributes`] under way.
#[derive(Debug)]
pub(crate) struct ThreadWriter {
    required: Vec<(Call, &'static str)>,
    observer: Observer,
    signal: Call,
}

impl ThreadAttributes {
    /// Adds the calls that put the thread back. `name` is its name now.
    pub(crate) fn write(&self, name: &[u8], batch: &mut Batch) -> ThreadWriter {
        let mut required = Vec::new();
        let stack = batch.bytes(&self.stack);
        required.push((batch.add(libc::SYS_sigaltstack, args![stack, 0u64]), "sigaltstack"));
        let death = u64::from(self.death_signal.cast_unsigned());
        for (op, value, what) in [
            (PR_SET_PDEATHSIG, death, "PR_SET_PDEATHSIG"),
            (PR_SET_TIMERSLACK, self.slack, "PR_SET_TIMERSLACK"),
            (PR_SET_TSC, u64::from(self.tsc.cast_unsigned()), "PR_SET_TSC"),
        ] {
            required.push((batch.call(libc::SYS_prctl, [op, value, 0, 0, 0, 0]), what));
        }
        let mce = [PR_MCE_KILL, PR_MCE_KILL_SET, self.mce, 0, 0, 0];
        required.push((batch.call(libc::SYS_prctl, mce), "PR_MCE_KILL"));
        if let Some(address) = self.tid_address {
            required
                .push((batch.call(libc::SYS_set_tid_address, [address, 0, 0, 0, 0, 0]), "set_tid_address"));
        }
        // A thread that never registered a list has none: a null head with the right length is the same.
        let (head, _) = self.robust;
        required.push((batch.call(libc::SYS_set_robust_list, [head, 24, 0, 0, 0, 0]), "set_robust_list"));
        if name.strip_suffix(b"\n").unwrap_or(name) != self.name {
            let mut text = self.name.clone();
            text.resize(16, 0);
            let text = batch.bytes(&text);
            required.push((batch.add(libc::SYS_prctl, args![PR_SET_NAME, text]), "PR_SET_NAME"));
        }
        let observer = Observer::of_thread(batch);
        let signal = take_signal(batch);
        ThreadWriter { required, observer, signal }
    }
}

impl ThreadWriter {
    /// Judges the answers; true if no signal is pending any more.
    pub(crate) fn check(
        &self,
        recorded: &ThreadAttributes,
        tid: i32,
        batch: &Batch,
        answers: &Answers,
    ) -> Result<bool, Quarantine> {
        for (call, what) in &self.required {
            answers
                .get(*call)
                .or_quarantine(Reason::ThreadAttributes, || format!("{what} in thread {tid}"))?;
        }
        recorded.observed.check(&self.observer.read(batch, answers), &format!("thread {tid}"))?;
        no_signal(answers, self.signal)
    }
}
