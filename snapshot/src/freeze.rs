//! Stopping and letting go of threads.
//!
//! ```text
//!   running --seize, interrupt--> (waited for) --> stopped --> agent runs, registers set --> detached
//!                                      |                            |
//!                                      +-- deadline, surprise ------+--> everything killed
//! ```
//! A [`Tracer`] lives for one operation on one OS thread. If it is dropped with threads still attached it
//! kills them: a container is never left stopped, and never runs half restored.

use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::alarm::Alarm;
use crate::sys::ptrace::{self, Event, WaitError};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::{Duration, Instant};

/// What happens to a signal that a thread was about to take when it was stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// It is the program's own: deliver it (checkpoint).
    Deliver,
    /// It is residue: drop it (rewind).
    Drop,
}

#[derive(Debug)]
struct Tracee {
    pid: i32,
    tid: i32,
    stopped: bool,
}

/// All threads attached by one operation.
#[derive(Debug)]
pub(crate) struct Tracer {
    alarm: Alarm,
    step: Duration,
    tracees: Vec<Tracee>,
}

impl Tracer {
    /// Nothing attached yet. `step` bounds each wait.
    pub(crate) fn new(step: Duration) -> Result<Tracer, Quarantine> {
        let alarm = Alarm::new().or_quarantine(Reason::Kernel, || "making a timer".to_owned())?;
        Ok(Tracer { alarm, step, tracees: Vec::new() })
    }

    /// Whether a thread is attached.
    pub(crate) fn holds(&self, tid: i32) -> bool {
        self.tracees.iter().any(|t| t.tid == tid)
    }

    /// The attached threads of a process.
    pub(crate) fn threads_of(&self, pid: i32) -> Vec<i32> {
        self.tracees.iter().filter(|t| t.pid == pid).map(|t| t.tid).collect()
    }

    /// Attaches to a thread and asks it to stop. `false`: it is gone (or dying).
    pub(crate) fn interrupt(&mut self, pid: i32, tid: i32) -> Result<bool, Quarantine> {
        match ptrace::seize(tid, ptrace::EXITKILL) {
            Ok(()) => {}
            Err(Errno::ESRCH) => return Ok(false),
            // Traced by another, or exiting: dead threads answer EPERM too.
            Err(Errno::EPERM) if is_dead(pid, tid) => return Ok(false),
            Err(errno) => {
                return Err(Quarantine::because(
                    Reason::Traced,
                    format!("attaching to thread {tid} of process {pid}"),
                    errno,
                ));
            }
        }
        self.tracees.push(Tracee { pid, tid, stopped: false });
        match ptrace::interrupt(tid) {
            Ok(()) | Err(Errno::ESRCH) => Ok(true),
            Err(errno) => {
                Err(Quarantine::because(Reason::StopTimeout, format!("interrupting thread {tid}"), errno))
            }
        }
    }

    /// Waits until every attached thread has stopped; returns those that exited instead.
    pub(crate) fn wait_stopped(&mut self, signals: Signals) -> Result<Vec<i32>, Quarantine> {
        self.alarm.arm(self.step);
        let mut gone = Vec::new();
        let mut group_stopped = None;
        for tracee in self.tracees.iter_mut().filter(|t| !t.stopped) {
            loop {
                match ptrace::wait(tracee.tid, &self.alarm) {
                    Ok(Event::Interrupted) => tracee.stopped = true,
                    Ok(Event::Gone) => gone.push(tracee.tid),
                    Ok(Event::Signal(signal)) => {
                        let deliver = if signals == Signals::Deliver { signal } else { 0 };
                        match ptrace::resume(tracee.tid, deliver) {
                            // Without the check a storm of signals would keep the wait busy for ever.
                            Ok(()) | Err(Errno::ESRCH) if !self.alarm.expired() => continue,
                            _ => return Err(timeout(tracee.pid, tracee.tid)),
                        }
                    }
                    Ok(Event::GroupStop) => {
                        // Told at the end: those that are stopped can be let go again.
                        tracee.stopped = true;
                        group_stopped = Some((tracee.pid, tracee.tid));
                    }
                    Err(WaitError::Timeout) => return Err(timeout(tracee.pid, tracee.tid)),
                    Err(WaitError::Failed(errno)) => {
                        return Err(Quarantine::because(
                            Reason::StopTimeout,
                            format!("waiting for thread {}", tracee.tid),
                            errno,
                        ));
                    }
                }
                break;
            }
        }
        self.alarm.disarm();
        self.tracees.retain(|t| !gone.contains(&t.tid));
        match group_stopped {
            None => Ok(gone),
            Some((pid, tid)) => {
                Err(Quarantine::new(Reason::StoppedByJobControl, format!("thread {tid} of process {pid}")))
            }
        }
    }

    /// Starts the step's clock for a series of [`Tracer::next_event`]; ends with [`Tracer::end_step`].
    pub(crate) fn begin_step(&mut self) {
        self.alarm.arm(self.step);
    }

    /// Ends a step.
    pub(crate) fn end_step(&mut self) {
        self.alarm.disarm();
    }

    /// Whether the step's time is up.
    pub(crate) fn expired(&self) -> bool {
        self.alarm.expired()
    }

    /// The next event of a thread that was let run.
    pub(crate) fn next_event(&mut self, tid: i32) -> Result<Event, WaitError> {
        let event = ptrace::wait(tid, &self.alarm)?;
        if event == Event::Gone {
            self.tracees.retain(|t| t.tid != tid);
        }
        Ok(event)
    }

    /// Lets all threads go on. Those that have not stopped yet are waited for.
    pub(crate) fn release(&mut self) -> Result<(), Quarantine> {
        if self.tracees.iter().any(|t| !t.stopped) {
            match self.wait_stopped(Signals::Deliver) {
                Err(q) if q.reason != Reason::StoppedByJobControl => return Err(q),
                _ => {}
            }
        }
        while let Some(tracee) = self.tracees.last() {
            let (pid, tid) = (tracee.pid, tracee.tid);
            ptrace::detach(tid).or_quarantine(Reason::ThawFailed, || {
                format!("detaching from thread {tid} of process {pid}")
            })?;
            self.tracees.pop();
        }
        Ok(())
    }

    /// Kills the processes of all attached threads and collects what is left of the threads.
    pub(crate) fn kill(&mut self) {
        for tracee in &self.tracees {
            // SIGKILL wakes a ptrace-stopped thread; a failure means that it is gone already.
            let _ = kill(Pid::from_raw(tracee.pid), Signal::SIGKILL);
        }
        // A dead tracee stays a zombie until its tracer has waited for it, and the first process of a pid
        // namespace does not even become one before all others are collected: so look at all in turn.
        let deadline = Instant::now() + self.step;
        while !self.tracees.is_empty() && Instant::now() < deadline {
            self.tracees.retain(|t| !ptrace::collected(t.tid));
            std::thread::sleep(Duration::from_micros(100));
        }
        self.tracees.clear();
    }
}

impl Drop for Tracer {
    fn drop(&mut self) {
        if !self.tracees.is_empty() {
            self.kill();
        }
    }
}

fn timeout(pid: i32, tid: i32) -> Quarantine {
    let state = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/wchan")).unwrap_or_default();
    Quarantine::new(Reason::StopTimeout, format!("thread {tid} of process {pid} waits in '{state}'"))
}

/// Whether a thread is a zombie or gone.
fn is_dead(pid: i32, tid: i32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/task/{tid}/stat")) else { return true };
    // The name in parentheses may contain anything, so look behind the last one.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('Z' | 'X'))
}
