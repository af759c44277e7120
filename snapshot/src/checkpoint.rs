//! Taking a checkpoint.
//!
//! ```text
//!   settle -> stop -> record from outside -> agent in -> record from inside -> memory -> files -> go on
//!               |            |                  \______________________________________/
//!               +- busy: let go, settle again    an error here: agent out, let go, refuse
//! ```

use crate::census::Watch;
use crate::engine::{Heat, Pagemap};
use crate::fault::FaultPoint;
use crate::freeze::{Signals, Tracer};
use crate::objects::fds::RecordError;
use crate::objects::ipc::MessageQueues;
use crate::options::Options;
use crate::process::{Process, shares_memory, unattached};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::report::CheckpointReport;
use crate::rewind::Snapshot;
use crate::tree::Target;
use crate::{WhileFrozen, settle, sys};
use std::error::Error;
use std::time::{Duration, Instant};

/// Why there is no checkpoint.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The container was still busy when the time was up. It runs on unharmed and may be tried again.
    #[error("not settled: {}", busy.join(", "))]
    NotSettled {
        /// What was busy: threads and the system call they were in, connections.
        busy: Vec<String>,
    },
    /// Something in the container cannot be restored later. It runs on unharmed, but must not serve two
    /// requests.
    #[error("refused")]
    Refused(#[source] Quarantine),
    /// The caller's files failed. The container runs on unharmed.
    #[error("files")]
    Files(#[source] Box<dyn Error + Send + Sync>),
    /// The checkpoint broke half way. The processes of the container have been killed.
    #[error("broken")]
    Broken(#[source] Quarantine),
}

/// Records the state of a container once it has settled.
///
/// `files` is called at the end, with everything stopped.
///
/// The calling thread stays attached to all threads of the container, so it must go on to
/// [serve](Snapshot::serve) them; [`Keeper`](crate::Keeper) is a thread that does.
///
/// # Errors
/// See [`CheckpointError`]: each variant says what became of the container.
pub fn checkpoint(
    target: &Target,
    options: &Options,
    files: WhileFrozen<'_>,
) -> Result<(Snapshot, CheckpointReport), CheckpointError> {
    // Before anything stands still: the first one in this process loads a program.
    let mut census = Watch::new(options.census);
    let engine = Pagemap::new().ok_or_else(|| {
        CheckpointError::Refused(Quarantine::new(Reason::Kernel, "no engine works here, see probe()"))
    })?;
    let started = Instant::now();
    let deadline = started + options.settle;
    let (mut tracer, mut processes, settled) = loop {
        settle::wait(target, options.quiet, deadline).map_err(|busy| CheckpointError::NotSettled { busy })?;
        let settled = Instant::now();
        let mut tracer = Tracer::new(options.step_deadline).map_err(CheckpointError::Refused)?;
        tracer.begin();
        let recorded = stop(target, &mut tracer)
            .map_err(RecordError::Refused)
            .and_then(|()| options.faults.trip(FaultPoint::CheckpointStopped).map_err(RecordError::Refused))
            .and_then(|()| record(target, &tracer));
        match recorded {
            Ok(processes) => break (tracer, processes, settled),
            Err(error) => tracer.release().map_err(|q| broken(target, q)).and(match error {
                RecordError::Refused(quarantine) => Err(CheckpointError::Refused(quarantine)),
                RecordError::Busy(_) if Instant::now() < deadline => Ok(()),
                RecordError::Busy(busy) => Err(CheckpointError::NotSettled { busy: vec![busy] }),
            })?,
        }
    };

    let mut in_files = Duration::ZERO;
    let queues = from_inside(target, options, &engine, &mut tracer, &mut processes)
        .map_err(Failure::Own)
        .and_then(|queues| {
            if options.advice {
                processes.iter_mut().try_for_each(Process::record_advice).map_err(Failure::Own)?;
            }
            let begun = Instant::now();
            tracer.meanwhile(files).map_err(Failure::Files)?;
            in_files = begun.elapsed();
            options.faults.trip(FaultPoint::CheckpointThaw).map_err(Failure::Own)?;
            Ok(queues)
        });
    let queues = match queues {
        Ok(queues) => queues,
        Err(failure) => {
            undo(&mut tracer, &mut processes).map_err(|q| broken(target, q))?;
            return Err(match failure {
                Failure::Own(quarantine) => CheckpointError::Refused(quarantine),
                Failure::Files(source) => CheckpointError::Files(source),
            });
        }
    };
    census.keep(&mut processes);
    processes
        .iter_mut()
        .try_for_each(Process::finish)
        .and_then(|()| tracer.resume())
        .map_err(|q| broken(target, q))?;

    let mut report = CheckpointReport {
        settling: settled - started,
        frozen: settled.elapsed().saturating_sub(in_files),
        files: in_files,
        processes: processes.len(),
        ..CheckpointReport::default()
    };
    for process in &processes {
        let (threads, mappings, pages, fds) = process.sizes();
        report.threads += threads;
        report.mappings += mappings;
        report.pages += pages;
        report.fds += fds;
    }
    report.snapshot_bytes = report.pages * sys::PAGE;
    let groups = target.members().children().unwrap_or(0);
    let snapshot = Snapshot::new(target.clone(), options.clone(), tracer, processes, queues, census, groups);
    Ok((snapshot, report))
}

enum Failure {
    Own(Quarantine),
    Files(Box<dyn Error + Send + Sync>),
}

/// Kills what is left of a container whose checkpoint broke.
fn broken(target: &Target, quarantine: Quarantine) -> CheckpointError {
    crate::rewind::destroy(target);
    CheckpointError::Broken(quarantine)
}

/// Stops every thread of every process of the container.
fn stop(target: &Target, tracer: &mut Tracer) -> Result<(), Quarantine> {
    loop {
        let mut found = false;
        let pids = target
            .members()
            .processes()
            .or_quarantine(Reason::Unreadable, || format!("control group {}", target.cgroup().display()))?;
        if pids.is_empty() {
            return Err(Quarantine::new(Reason::ProcessVanished, "no process is left"));
        }
        for pid in pids {
            for tid in unattached(pid.as_raw(), tracer)? {
                found |= tracer.attach(pid.as_raw(), tid)? && tracer.interrupt(tid)?;
            }
        }
        if !found {
            return Ok(());
        }
        tracer.wait_stopped(Signals::Deliver)?;
    }
}

fn record(target: &Target, tracer: &Tracer) -> Result<Vec<Process>, RecordError> {
    let pids =
        target.members().processes().or_quarantine(Reason::Unreadable, || "control group".to_owned())?;
    let mut processes: Vec<Process> = Vec::with_capacity(pids.len());
    for pid in pids {
        let tids: Vec<i32> = tracer.threads_of(pid.as_raw()).collect();
        let process = Process::record(pid.as_raw(), &tids)?;
        if let Some(other) = processes.first()
            && shares_memory(other.pid, process.pid)?
        {
            let detail = format!("processes {} and {} share their memory", other.pid, process.pid);
            return Err(Quarantine::new(Reason::SharedMapping, detail).into());
        }
        processes.push(process);
    }
    Ok(processes)
}

/// Everything that needs the agent.
fn from_inside(
    target: &Target,
    options: &Options,
    engine: &Pagemap,
    tracer: &mut Tracer,
    processes: &mut [Process],
) -> Result<Option<MessageQueues>, Quarantine> {
    let queues = MessageQueues::record(target.init().as_raw())?;
    for process in processes.iter_mut() {
        process.install_agent(tracer)?;
    }
    options.faults.trip(FaultPoint::CheckpointAgent)?;
    for process in processes.iter_mut() {
        process.record_attributes(tracer)?;
    }
    options.faults.trip(FaultPoint::CheckpointObjects)?;
    let heat = Heat { hot_after: options.hot_after, cold_after: options.cold_after };
    for process in processes.iter_mut() {
        process.record_memory(tracer, engine, heat)?;
    }
    options.faults.trip(FaultPoint::CheckpointMemory)?;
    Ok(queues)
}

/// Takes the agents out and lets everything go.
pub(crate) fn undo(tracer: &mut Tracer, processes: &mut [Process]) -> Result<(), Quarantine> {
    for process in processes.iter_mut() {
        process.remove_agent(tracer)?;
    }
    processes.iter_mut().try_for_each(Process::finish)?;
    tracer.release()
}
