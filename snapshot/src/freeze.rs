//! Staying attached to threads: stopping them, letting them run, handing on their signals.
//!
//! ```text
//!             +------------- serve: signals are handed on -----------+
//!             v                                                      |
//!   attach -> running --interrupt--> (waited for) --> stopped --> agent runs, registers set
//!             |                           |                          |
//!             +-- release: detached       +-- deadline, surprise ----+--> everything killed
//! ```
//! A [`Tracer`] attaches to each thread once and keeps it, since attaching and detaching cost about a third of
//! a rewind. The price: each signal that an attached thread is about to take stops it until the tracer lets it
//! go on, so somebody must [serve](Tracer::serve) while the container runs.
//!
//! All of it happens on one OS thread, to which the kernel ties the tracees. That thread must have no children
//! of its own, as it waits for whatever there is. If it ends, the kernel kills the tracees (`EXITKILL`); if a
//! tracer is dropped in the middle of an operation it does the same: a container is never left stopped, and
//! never runs half restored.

use crate::bell::Bell;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::registers;
use crate::sys::alarm::Alarm;
use crate::sys::ptrace::{self, Event, WaitError};
use crate::sys::wake;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens to a signal that a thread was about to take when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// It is the program's own: deliver it (checkpoint).
    Deliver,
    /// It is residue: drop it (rewind).
    Drop,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    /// It has reported a stop, and nothing has let it run on since.
    Stopped,
    /// The first thread of a process whose other threads live on. It is reported when they are dead, too.
    Dead,
}

/// An attached thread.
#[derive(Debug)]
struct Tracee {
    pid: i32,
    state: State,
    /// Its seccomp filter is suspended.
    unfiltered: bool,
}

/// All attached threads of one container.
#[derive(Debug)]
pub(crate) struct Tracer {
    alarm: Alarm,
    step: Duration,
    /// By thread id.
    tracees: BTreeMap<i32, Tracee>,
    /// An operation is under way: nothing may run on before it has ended well.
    working: bool,
}

impl Tracer {
    /// Nothing attached yet. `step` bounds each step of an operation.
    pub(crate) fn new(step: Duration) -> Result<Tracer, Quarantine> {
        let alarm = Alarm::new().or_quarantine(Reason::Kernel, || "making a timer".to_owned())?;
        Ok(Tracer { alarm, step, tracees: BTreeMap::new(), working: false })
    }

    /// An operation begins, which ends with [`Tracer::resume`], [`Tracer::release`] or [`Tracer::kill`].
    pub(crate) fn begin(&mut self) {
        self.working = true;
        self.alarm.start();
    }

    /// Does something of others' making in the middle of an operation, undisturbed by the alarm.
    pub(crate) fn meanwhile<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.alarm.stop();
        let done = work();
        self.alarm.start();
        done
    }

    fn end(&mut self) {
        self.working = false;
        self.alarm.stop();
    }

    /// Whether a thread is attached.
    pub(crate) fn holds(&self, tid: i32) -> bool {
        self.tracees.contains_key(&tid)
    }

    /// How many threads are attached.
    pub(crate) fn count(&self) -> usize {
        self.tracees.len()
    }

    /// The attached threads of a process.
    pub(crate) fn threads_of(&self, pid: i32) -> impl Iterator<Item = i32> {
        self.tracees.iter().filter(move |(_, tracee)| tracee.pid == pid).map(|(tid, _)| *tid)
    }

    /// Attaches to a thread. `false`: it is gone (or dying).
    pub(crate) fn attach(&mut self, pid: i32, tid: i32) -> Result<bool, Quarantine> {
        match ptrace::seize(tid, ptrace::EXITKILL) {
            Ok(()) => {
                self.tracees.insert(tid, Tracee { pid, state: State::Running, unfiltered: false });
                Ok(true)
            }
            Err(Errno::ESRCH) => Ok(false),
            // Traced by another, or exiting: dead threads answer EPERM too.
            Err(Errno::EPERM) if is_dead(pid, tid) => Ok(false),
            Err(errno) => {
                let detail = format!("attaching to thread {tid} of process {pid}");
                Err(Quarantine::because(Reason::Traced, detail, errno))
            }
        }
    }

    /// Asks an attached thread to stop. `false`: no such thread is attached.
    pub(crate) fn interrupt(&mut self, tid: i32) -> Result<bool, Quarantine> {
        if !self.holds(tid) {
            return Ok(false);
        }
        match ptrace::interrupt(tid) {
            // EIO: it is dead, which the wait will tell.
            Ok(()) | Err(Errno::EIO) => Ok(true),
            // Even a dead one stays ours until it is waited for, so it has become another thread: an exec gives
            // the thread that called it the number of the first.
            Err(Errno::ESRCH) => {
                self.tracees.remove(&tid);
                Ok(false)
            }
            Err(errno) => {
                Err(Quarantine::because(Reason::StopTimeout, format!("interrupting thread {tid}"), errno))
            }
        }
    }

    /// Waits until every attached thread has stopped; returns those that exited instead.
    pub(crate) fn wait_stopped(&mut self, signals: Signals) -> Result<Vec<i32>, Quarantine> {
        self.begin_step();
        let mut gone = Vec::new();
        let mut group_stopped = None;
        let mut waiting = self.late().count();
        while waiting > 0 {
            let (tid, event) = match ptrace::wait_any(&wake::NEVER) {
                Ok(event) => event,
                Err(Errno::EINTR) => {
                    for tid in self.dead_leaders() {
                        waiting -= 1;
                        gone.push(tid);
                    }
                    self.check_deadline()?;
                    continue;
                }
                Err(Errno::ECHILD) => {
                    gone.extend(self.late().map(|(tid, _)| *tid));
                    break;
                }
                Err(errno) => {
                    return Err(Quarantine::because(Reason::StopTimeout, "waiting for threads", errno));
                }
            };
            let Some(tracee) = self.tracees.get_mut(&tid) else { continue };
            match event {
                Event::Interrupted => {}
                // Told at the end: those that are stopped can be let go again.
                Event::GroupStop => group_stopped = Some((tracee.pid, tid)),
                Event::Gone => {
                    waiting -= usize::from(tracee.state == State::Running);
                    self.tracees.remove(&tid);
                    gone.push(tid);
                    continue;
                }
                Event::Signal(signal) => {
                    // The stop that was asked for comes after it.
                    let deliver = if signals == Signals::Deliver { signal } else { 0 };
                    match resume(tid, deliver, signals) {
                        Ok(()) | Err(Errno::ESRCH) => {}
                        Err(errno) => {
                            let detail = format!("handing a signal on to thread {tid}");
                            return Err(Quarantine::because(Reason::StopTimeout, detail, errno));
                        }
                    }
                    // Without the check a storm of signals would keep the wait busy for ever.
                    self.check_deadline()?;
                    continue;
                }
            }
            waiting -= usize::from(tracee.state == State::Running);
            tracee.state = State::Stopped;
        }
        match group_stopped {
            None => Ok(gone),
            Some((pid, tid)) => {
                Err(Quarantine::new(Reason::StoppedByJobControl, format!("thread {tid} of process {pid}")))
            }
        }
    }

    /// Threads that have not stopped yet.
    fn late(&self) -> impl Iterator<Item = (&i32, &Tracee)> {
        self.tracees.iter().filter(|(_, tracee)| tracee.state == State::Running)
    }

    /// Marks first threads that are dead though they will not be reported.
    fn dead_leaders(&mut self) -> Vec<i32> {
        let late = self.tracees.iter_mut().filter(|(_, tracee)| tracee.state == State::Running);
        let dead = late.filter(|(tid, tracee)| **tid == tracee.pid && is_dead(tracee.pid, **tid));
        dead.map(|(tid, tracee)| {
            tracee.state = State::Dead;
            *tid
        })
        .collect()
    }

    fn check_deadline(&self) -> Result<(), Quarantine> {
        match self.late().next() {
            Some((tid, tracee)) if self.alarm.expired() => {
                let pid = tracee.pid;
                let wchan = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan"));
                let wchan = wchan.unwrap_or_default();
                let detail = format!("thread {tid} of process {pid} waits in '{wchan}'");
                Err(Quarantine::new(Reason::StopTimeout, detail))
            }
            _ => Ok(()),
        }
    }

    /// Starts the clock for a series of [`Tracer::next_event`].
    pub(crate) fn begin_step(&mut self) {
        self.alarm.step(self.step);
    }

    /// Whether the step's time is up.
    pub(crate) fn expired(&self) -> bool {
        self.alarm.expired()
    }

    /// The next event of a thread that was let run.
    pub(crate) fn next_event(&mut self, tid: i32) -> Result<Event, WaitError> {
        let event = ptrace::wait(tid, &self.alarm)?;
        if event == Event::Gone {
            self.tracees.remove(&tid);
        }
        Ok(event)
    }

    /// Lets the system calls of a stopped thread pass its filter, until it is let go on.
    pub(crate) fn suspend_seccomp(&mut self, tid: i32) -> Result<(), Errno> {
        let tracee = self.tracees.get_mut(&tid).ok_or(Errno::ESRCH)?;
        if !tracee.unfiltered {
            // Noted first: it is cleared even if it is not known to have been set.
            tracee.unfiltered = true;
            ptrace::set_options(tid, ptrace::EXITKILL | ptrace::SUSPEND_SECCOMP)?;
        }
        Ok(())
    }

    /// Ends an operation: all threads run on, and stay attached.
    pub(crate) fn resume(&mut self) -> Result<(), Quarantine> {
        for (tid, tracee) in &mut self.tracees {
            let pid = tracee.pid;
            let failed = |what: &'static str| move || format!("{what} thread {tid} of process {pid}");
            if tracee.unfiltered {
                ptrace::set_options(*tid, ptrace::EXITKILL)
                    .or_quarantine(Reason::ThawFailed, failed("filtering the calls of"))?;
                tracee.unfiltered = false;
            }
            ptrace::resume(*tid, 0).or_quarantine(Reason::ThawFailed, failed("resuming"))?;
            tracee.state = State::Running;
        }
        self.end();
        Ok(())
    }

    /// Ends an operation: all threads run on and are let go. Those that have not stopped yet are waited for.
    pub(crate) fn release(&mut self) -> Result<(), Quarantine> {
        if self.late().next().is_some() {
            match self.wait_stopped(Signals::Deliver) {
                Err(q) if q.reason != Reason::StoppedByJobControl => return Err(q),
                _ => {}
            }
        }
        while let Some((tid, tracee)) = self.tracees.first_key_value() {
            let (tid, pid) = (*tid, tracee.pid);
            // Detaching also clears the options.
            match detach(tid) {
                // Dead already; what is left of it is collected when its parent is free to.
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    let detail = format!("detaching from thread {tid} of process {pid}");
                    return Err(Quarantine::because(Reason::ThawFailed, detail, errno));
                }
            }
            self.tracees.remove(&tid);
        }
        self.end();
        Ok(())
    }

    /// Lets the container run and hands its signals on, unchanged and in order, until the bell rings.
    pub(crate) fn serve(&mut self, bell: &Bell) -> Result<(), Errno> {
        let listening = bell.listen();
        while !listening.rung() {
            match ptrace::wait_any(listening.flag()) {
                Ok((tid, event)) => self.hand_on(tid, event)?,
                Err(Errno::EINTR) => {}
                // Nothing is left that could report anything.
                Err(Errno::ECHILD) => wake::sleep(listening.flag()),
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Waits for the bell, with nothing to trace.
    pub(crate) fn idle(bell: &Bell) {
        let listening = bell.listen();
        while !listening.rung() {
            wake::sleep(listening.flag());
        }
    }

    /// Does with a stop of a running thread what would have happened without a tracer.
    ///
    /// A thread that is not known is not left stopped either: an exec in a thread gives it its leader's number.
    fn hand_on(&mut self, tid: i32, event: Event) -> Result<(), Errno> {
        let done = match event {
            Event::Gone => {
                self.tracees.remove(&tid);
                Ok(())
            }
            // A job-control stop has ended.
            Event::Interrupted => ptrace::resume(tid, 0),
            Event::GroupStop => ptrace::listen(tid),
            Event::Signal(signal) => resume(tid, signal, Signals::Deliver),
        };
        match done {
            // Killed meanwhile: its end is reported next.
            Err(Errno::ESRCH) => Ok(()),
            done => done,
        }
    }

    /// Kills the processes of all attached threads and collects what is left of the threads.
    pub(crate) fn kill(&mut self) {
        for tracee in self.tracees.values() {
            // SIGKILL wakes a ptrace-stopped thread; a failure means that it is gone already.
            let _ = kill(Pid::from_raw(tracee.pid), Signal::SIGKILL);
        }
        // A dead tracee stays a zombie until its tracer has waited for it, and the first process of a pid
        // namespace does not even become one before all others are collected.
        self.alarm.start();
        self.begin_step();
        while !self.tracees.is_empty() && !self.alarm.expired() {
            match ptrace::wait_any(&wake::NEVER) {
                Ok((tid, Event::Gone)) => drop(self.tracees.remove(&tid)),
                // A stop from before the kill, or the alarm.
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => break,
            }
        }
        self.tracees.clear();
        self.end();
    }

    /// Stops all threads and lets them go, outside any operation.
    fn let_go(&mut self) -> Result<(), Quarantine> {
        self.begin();
        let tids: Vec<i32> = self.tracees.keys().copied().collect();
        for tid in tids {
            self.interrupt(tid)?;
        }
        self.release()
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.tracees.is_empty() && (self.working || self.let_go().is_err()) {
            self.kill();
        }
    }
}

/// Lets a thread take a signal (0: none) as if it had never stopped for a tracer.
///
/// The kernel wakes a traced thread even for a signal that is ignored, and some system calls answer that with
/// `EINTR`, which the program would never have seen. They are made to be restarted unless a handler runs.
fn resume(tid: i32, signal: i32, signals: Signals) -> Result<(), Errno> {
    if signals == Signals::Deliver
        && let Some(result) = registers::quietly_restarted(&ptrace::registers(tid)?)
    {
        ptrace::set_result(tid, result)?;
    }
    ptrace::resume(tid, signal)
}

/// Detaches from a stopped thread, which goes on as if it had never been stopped, and may be stopped again.
fn detach(tid: i32) -> Result<(), Errno> {
    if let Some(result) = registers::restarted_as_itself(&ptrace::registers(tid)?) {
        ptrace::set_result(tid, result)?;
    }
    ptrace::detach(tid)
}

/// Whether a thread is a zombie or gone.
fn is_dead(pid: i32, tid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")) else { return true };
    // The name in parentheses may contain anything, so look behind the last one.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('Z' | 'X'))
}
