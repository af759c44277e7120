//! Going back to a checkpoint.
//!
//! ```text
//!   kill strangers, stop threads           Stop
//!     -> extra threads exit                Strangers
//!     -> compare from outside              Inspect
//!     -> one batch a thread, layout, fds   Objects
//!     -> memory                            Scan, Copy
//!     -> the caller's files                Files
//!     -> (paranoid comparison)             Verify
//!     -> registers, let go                 Thaw
//! ```
//! An error anywhere kills the container: nothing half restored ever runs.

use crate::WhileFrozen;
use crate::bell::Bell;
use crate::census::{Areas, Watch};
use crate::checkpoint::undo;
use crate::fault::FaultPoint;
use crate::freeze::{Signals, Tracer};
use crate::objects::ipc::MessageQueues;
use crate::options::Options;
use crate::process::Process;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::report::{Phase, RewindReport, Stopwatch};
use crate::sys::{PAGE, process as calls};
use crate::tree::{Counter, Target};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// The recorded state of a container.
///
/// It is attached to every thread of the container, and bound to the OS thread that took it. While the
/// container runs, that thread must [serve](Snapshot::serve); if it ends, the container is killed.
///
/// Dropping it forgets the state and leaves the container running, with a small foreign mapping in each
/// process; [`Snapshot::forget`] takes that out, too.
#[derive(Debug)]
pub struct Snapshot {
    target: Target,
    options: Options,
    /// `None`: a rewind failed, the container is dead.
    tracer: Option<Tracer>,
    processes: Vec<Process>,
    queues: Option<MessageQueues>,
    census: Watch,
    /// Control groups below the container's at the checkpoint.
    groups: u64,
    counter: Option<Counter>,
    /// Rewinds begun, counted round.
    rewinds: u32,
}

impl Snapshot {
    pub(crate) fn new(
        target: Target,
        options: Options,
        tracer: Tracer,
        processes: Vec<Process>,
        queues: Option<MessageQueues>,
        census: Watch,
        groups: u64,
    ) -> Snapshot {
        let (tracer, counter) = (Some(tracer), target.members().counter());
        Snapshot { target, options, tracer, processes, queues, census, groups, counter, rewinds: 0 }
    }

    /// Bytes of memory that the snapshot holds.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.processes.iter().map(|process| process.sizes().2 * PAGE).sum()
    }

    /// Lets the container run until the bell rings.
    ///
    /// Signals that its threads take are handed on to them meanwhile, unchanged and in order; nobody else does
    /// that, so the container must not be left without it for longer than its signals may wait.
    pub fn serve(&mut self, bell: &Bell) {
        let served = match &mut self.tracer {
            Some(tracer) => tracer.serve(bell),
            None => {
                Tracer::idle(bell);
                Ok(())
            }
        };
        if let Err(errno) = served {
            // Threads may have been left stopped, so nobody can vouch for it; the next rewind says so.
            tracing::warn!(init = %self.target.init(), %errno, "the container's signals cannot be handed on");
            if let Some(mut tracer) = self.tracer.take() {
                tracer.kill();
            }
            destroy(&self.target);
        }
    }

    /// Puts the container back to the snapshot.
    ///
    /// `files` is called after memory and kernel objects are back and before anything runs again.
    ///
    /// # Errors
    /// A [`Quarantine`] says why nobody can vouch for the container. Its processes are dead or dying, and it
    /// must be destroyed.
    pub fn rewind(&mut self, files: WhileFrozen<'_>) -> Result<RewindReport, Quarantine> {
        // Taken out: if the work panics, the tracer is dropped in the middle of an operation and kills.
        let mut tracer = self.tracer.take().ok_or_else(lost)?;
        tracer.begin();
        self.rewinds = self.rewinds.wrapping_add(1);
        match self.try_rewind(&mut tracer, files) {
            Ok(report) => {
                self.tracer = Some(tracer);
                Ok(report)
            }
            Err(quarantine) => {
                tracing::debug!(
                    reason = quarantine.reason.name(),
                    detail = quarantine.detail,
                    "rewind failed"
                );
                tracer.kill();
                destroy(&self.target);
                Err(quarantine)
            }
        }
    }

    /// Gives the snapshot up: the agents are taken out and the container runs on as it is.
    ///
    /// # Errors
    /// If that fails, the container's processes have been killed.
    pub fn forget(mut self) -> Result<(), Quarantine> {
        let mut files = || Ok(());
        self.rewind(&mut files)?;
        let mut tracer = self.tracer.take().ok_or_else(lost)?;
        tracer.begin();
        let done = self
            .stop(&mut tracer, &mut RewindReport::default())
            .and_then(|_| self.processes.iter().try_for_each(|process| process.prepare_main(&mut tracer)))
            .and_then(|()| undo(&mut tracer, &mut self.processes));
        if done.is_err() {
            tracer.kill();
            destroy(&self.target);
        }
        done
    }

    fn try_rewind(
        &mut self,
        tracer: &mut Tracer,
        files: WhileFrozen<'_>,
    ) -> Result<RewindReport, Quarantine> {
        let faults = self.options.faults.clone();
        let mut report = RewindReport::default();
        let mut watch = Stopwatch::start();
        let mut buffer = Vec::new();

        faults.trip(FaultPoint::Kill)?;
        let extra = self.stop(tracer, &mut report)?;
        faults.trip(FaultPoint::Stop)?;
        watch.lap(Phase::Stop);

        self.census.look(&mut self.processes);
        let mut areas = Areas::none();
        self.processes.iter().for_each(|process| areas.join(process.said()));
        report.areas_changed = areas.names().collect();
        let paranoid = self.is_paranoid();
        if paranoid {
            self.processes.iter_mut().try_for_each(|process| process.doubt(tracer, &mut buffer))?;
        }
        let mut layouts = Vec::with_capacity(self.processes.len());
        for process in &mut self.processes {
            let steps = process.check_agent(&mut buffer)?;
            layouts.push(steps);
            if let Some(tids) = extra.get(&process.pid) {
                process.remove_threads(tracer, tids)?;
                report.threads_removed += tids.len() as u64;
            }
        }
        faults.trip(FaultPoint::Threads)?;
        watch.lap(Phase::Strangers);

        let mut inspections = Vec::with_capacity(self.processes.len());
        for (process, steps) in self.processes.iter_mut().zip(layouts) {
            inspections.push(process.inspect(steps, &mut report, &mut buffer)?);
        }
        if let Some(queues) = &self.queues
            && self.processes.iter().any(Process::ipc_changed)
        {
            report.objects_restored += queues.restore()?;
        }
        faults.trip(FaultPoint::Inspect)?;
        watch.lap(Phase::Inspect);

        faults.trip(FaultPoint::Inject)?;
        let mut running = Vec::with_capacity(self.processes.len());
        for (process, inspection) in self.processes.iter_mut().zip(&inspections) {
            running.push(process.start_main(tracer, inspection)?);
        }
        for ((process, inspection), main) in self.processes.iter_mut().zip(&inspections).zip(&running) {
            process.restore_threads(tracer, inspection)?;
            process.finish_main(tracer, main.as_ref(), &mut report)?;
        }
        for process in &mut self.processes {
            process.reap_late(tracer, self.options.step_deadline)?;
        }
        faults.trip(FaultPoint::Objects)?;
        for (process, inspection) in self.processes.iter_mut().zip(&inspections) {
            process.begin_layout(tracer, inspection, &mut report)?;
        }
        if !paranoid && self.processes.iter().any(Process::layout_changed) {
            self.census.look_at_layouts(&mut self.processes);
        }
        for (process, inspection) in self.processes.iter_mut().zip(&inspections) {
            process.restore_layout(tracer, inspection, &mut buffer)?;
        }
        for process in &mut self.processes {
            process.restore_advice(tracer, &mut report)?;
        }
        faults.trip(FaultPoint::Layout)?;
        for (process, inspection) in self.processes.iter_mut().zip(&inspections) {
            process.restore_fds(tracer, inspection, &mut report)?;
        }
        watch.lap(Phase::Objects);

        for process in &mut self.processes {
            process.scan(tracer)?;
        }
        faults.trip(FaultPoint::Scan)?;
        watch.lap(Phase::Scan);
        for process in &mut self.processes {
            process.start_memory(tracer)?;
        }
        faults.trip(FaultPoint::Copy)?;
        for process in &mut self.processes {
            process.finish_memory(tracer, &mut report)?;
        }
        watch.lap(Phase::Copy);

        tracer.meanwhile(files).or_quarantine(Reason::Files, || "the caller's files".to_owned())?;
        for process in &mut self.processes {
            process.return_home(tracer, &mut report)?;
        }
        faults.trip(FaultPoint::Files)?;
        watch.lap(Phase::Files);

        let outdated = self.processes.iter().any(Process::outdated);
        if paranoid {
            for process in &mut self.processes {
                process.verify(tracer, &mut buffer)?;
            }
            watch.lap(Phase::Verify);
        }

        // Whoever joined the group meanwhile (nothing inside could) must not be left running. Those of the
        // snapshot were listed in it after their stop and could not leave, so that their number says it.
        if !self.are_all(tracer) && !self.strangers()?.is_empty() {
            return Err(Quarantine::new(
                Reason::StrangerAlive,
                "a process joined the container during the rewind",
            ));
        }
        if outdated {
            self.census.keep(&mut self.processes);
        }
        for process in &mut self.processes {
            process.finish()?;
        }
        faults.trip(FaultPoint::Thaw)?;
        tracer.resume()?;
        watch.lap(Phase::Thaw);
        watch.finish(&mut report);
        Ok(report)
    }

    /// Whether this rewind is one of those after which everything is compared.
    fn is_paranoid(&self) -> bool {
        let Options { paranoid, paranoid_every, .. } = self.options;
        paranoid || paranoid_every > 0 && self.rewinds.is_multiple_of(paranoid_every)
    }

    /// Kills strangers and stops the threads of the snapshot. Returns threads that the request started, by
    /// process.
    fn stop(
        &self,
        tracer: &mut Tracer,
        report: &mut RewindReport,
    ) -> Result<BTreeMap<i32, Vec<i32>>, Quarantine> {
        // All at once: they stop while strangers are looked for.
        for process in &self.processes {
            for tid in process.tids() {
                // It is attached from the checkpoint on, unless its end was reported since.
                if !tracer.interrupt(tid)? {
                    return Err(vanished(process, tid));
                }
            }
        }
        // This look finds what must be gone before all can stop: a thread of ours that waits for a vfork child
        // stops only then, and a stranger may trace a thread that is about to be attached.
        let mut killed = BTreeMap::new();
        if !self.are_all(tracer) {
            report.strangers_killed += self.kill_strangers(&mut killed)?.killed;
        }
        self.wait_for_ours(tracer)?;
        let mut extra: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
        // A thread that is not stopped yet may make others, so look until a look finds nothing new.
        loop {
            let mut found = false;
            for process in &self.processes {
                for tid in process.unattached(tracer)? {
                    if self.attach(tracer, process.pid, tid, &killed)? && tracer.interrupt(tid)? {
                        extra.entry(process.pid).or_default().push(tid);
                        found = true;
                    }
                }
            }
            if !found {
                break;
            }
            let gone = self.wait_for_ours(tracer)?;
            extra.values_mut().for_each(|tids| tids.retain(|tid| !gone.contains(tid)));
        }
        extra.retain(|_, tids| !tids.is_empty());
        // Nothing of ours runs, so only strangers make strangers: a look that finds none proves that there are
        // none, once those killed before are dead.
        let deadline = Instant::now() + self.options.step_deadline;
        let mut pause = Duration::from_micros(20);
        loop {
            let look = self.kill_strangers(&mut killed)?;
            report.strangers_killed += look.killed;
            killed.retain(|_, pidfd| !crate::sys::file::ready_to_read(pidfd.as_fd()).unwrap_or(false));
            if look.found == 0 && killed.is_empty() {
                break;
            }
            if Instant::now() >= deadline {
                let dying = self.strangers()?;
                let detail = format!("{} processes, such as {:?}", dying.len(), dying.first());
                return Err(Quarantine::new(Reason::StrangerAlive, detail));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(2));
        }
        // That no process of the snapshot has exited needs no look: each of its threads has reported its stop
        // since this began, and can only be killed from there, which the next request to it would tell.
        Ok(extra)
    }

    /// Attaches to a thread that the request started. A stranger that traces it lets it go when it dies.
    fn attach(
        &self,
        tracer: &mut Tracer,
        pid: i32,
        tid: i32,
        killed: &BTreeMap<i32, OwnedFd>,
    ) -> Result<bool, Quarantine> {
        let deadline = Instant::now() + self.options.step_deadline;
        loop {
            match tracer.attach(pid, tid) {
                Err(q) if q.reason == Reason::Traced && !killed.is_empty() && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_micros(100));
                }
                done => return done,
            }
        }
    }

    /// Waits for the stop of all attached threads; those of the snapshot must not have exited instead.
    fn wait_for_ours(&self, tracer: &mut Tracer) -> Result<Vec<i32>, Quarantine> {
        let gone = tracer.wait_stopped(Signals::Drop)?;
        for process in &self.processes {
            if let Some(tid) = process.tids().find(|tid| gone.contains(tid)) {
                return Err(vanished(process, tid));
            }
        }
        Ok(gone)
    }

    /// Whether the group has as many tasks as are attached: if those are in it, there are no others, in it or
    /// below it. `false` may mean that nobody counts.
    fn are_all(&self, tracer: &Tracer) -> bool {
        self.counter.as_ref().and_then(Counter::tasks) == Some(tracer.count())
    }

    /// Processes in the control group that are not of the snapshot.
    fn strangers(&self) -> Result<Vec<Pid>, Quarantine> {
        let members = self.target.members();
        let unreadable = || format!("control group {}", self.target.cgroup().display());
        if members.children().or_quarantine(Reason::Unreadable, unreadable)? != self.groups {
            return Err(Quarantine::new(Reason::CgroupChanged, unreadable()));
        }
        let mut pids = members.processes().or_quarantine(Reason::Unreadable, unreadable)?;
        let before = pids.len();
        pids.retain(|pid| !self.processes.iter().any(|process| process.pid == pid.as_raw()));
        if before - pids.len() < self.processes.len() {
            let listed = format!("{} of {} listed", before - pids.len(), self.processes.len());
            return Err(Quarantine::new(Reason::ProcessVanished, listed));
        }
        Ok(pids)
    }

    /// Sends SIGKILL to every stranger, without attaching to any. Handles of those killed go to `killed`.
    fn kill_strangers(&self, killed: &mut BTreeMap<i32, OwnedFd>) -> Result<Look, Quarantine> {
        let found = self.strangers()?;
        let mut look = Look { found: found.len(), killed: 0 };
        if found.is_empty() {
            return Ok(look);
        }
        let mut handles: Vec<(Pid, OwnedFd)> = Vec::with_capacity(found.len());
        for pid in found {
            if let Ok(handle) = calls::pidfd_open(pid.as_raw()) {
                handles.push((pid, handle));
            }
        }
        // Listed again after its handle was opened: the handle is of that process, not of another that got
        // its number in between.
        let still = self.strangers()?;
        for (pid, handle) in handles {
            if still.contains(&pid) {
                // An error means that it is gone.
                let _ = calls::pidfd_kill(handle.as_fd(), libc::SIGKILL);
                look.killed += u64::from(killed.insert(pid.as_raw(), handle).is_none());
            }
        }
        Ok(look)
    }
}

/// A look for strangers.
struct Look {
    /// How many there were, dying ones included.
    found: usize,
    /// How many of them got their SIGKILL now.
    killed: u64,
}

fn lost() -> Quarantine {
    Quarantine::new(Reason::Killed, "an earlier rewind failed")
}

fn vanished(process: &Process, tid: i32) -> Quarantine {
    if tid == process.pid {
        return Quarantine::new(Reason::ProcessVanished, format!("process {}", process.pid));
    }
    Quarantine::new(Reason::ThreadVanished, format!("thread {tid} of process {}", process.pid))
}

/// Kills every process of a container that nobody can vouch for any more. Best effort: the caller destroys
/// the container anyway, this only makes sure that nothing runs meanwhile.
pub(crate) fn destroy(target: &Target) {
    // A fork bomb is outrun by a few rounds: a process with SIGKILL pending cannot fork.
    for _ in 0..64 {
        let Ok(pids) = target.members().processes() else { return };
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
