//! What can be read and put back from outside: limits and scheduling.

use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::process::{self, Affinity, Limit, Scheduling};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// Limits of a process.
#[derive(Debug)]
pub(crate) struct Limits {
    resources: Vec<Limit>,
    /// `/proc/<pid>/oom_score_adj`, read and write.
    oom: File,
    oom_value: Vec<u8>,
    /// `/proc/<pid>/coredump_filter`, read and write.
    dump: File,
    dump_value: Vec<u8>,
}

impl Limits {
    pub(crate) fn record(pid: i32) -> Result<Limits, Quarantine> {
        let resources = (0..process::LIMITS)
            .map(|resource| process::limit(pid, resource))
            .collect::<Result<_, _>>()
            .or_quarantine(Reason::Unreadable, || format!("resource limits of process {pid}"))?;
        let path = format!("/proc/{pid}/oom_score_adj");
        let oom = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .or_quarantine(Reason::Unreadable, || path.clone())?;
        let oom_value = read_short(&oom).or_quarantine(Reason::Unreadable, || path)?;
        let path = format!("/proc/{pid}/coredump_filter");
        let dump = File::options()
            .read(true)
            .write(true)
            .open(&path)
            .or_quarantine(Reason::Unreadable, || path.clone())?;
        let dump_value = read_short(&dump).or_quarantine(Reason::Unreadable, || path)?;
        Ok(Limits { resources, oom, oom_value, dump, dump_value })
    }

    /// Puts back what differs; returns how much did.
    pub(crate) fn restore(&self, pid: i32) -> Result<u64, Quarantine> {
        let mut restored = 0;
        for (resource, want) in (0..).zip(&self.resources) {
            let failed = || format!("resource limit {resource} of process {pid}");
            if process::limit(pid, resource).or_quarantine(Reason::Limits, failed)? != *want {
                process::set_limit(pid, resource, *want).or_quarantine(Reason::Limits, failed)?;
                restored += 1;
            }
        }
        let failed = || format!("OOM score of process {pid}");
        if read_short(&self.oom).or_quarantine(Reason::ProcessVanished, failed)? != self.oom_value {
            self.oom.write_all_at(&self.oom_value, 0).or_quarantine(Reason::Limits, failed)?;
            restored += 1;
        }
        let failed = || format!("core dump filter of process {pid}");
        if read_short(&self.dump).or_quarantine(Reason::ProcessVanished, failed)? != self.dump_value {
            // Read without a prefix, written in any base if it has one.
            let value = [b"0x", &self.dump_value[..]].concat();
            self.dump.write_all_at(&value, 0).or_quarantine(Reason::Limits, failed)?;
            restored += 1;
        }
        Ok(restored)
    }
}

fn read_short(file: &File) -> std::io::Result<Vec<u8>> {
    let mut buffer = [0u8; 32];
    let len = file.read_at(&mut buffer, 0)?;
    Ok(buffer[..len].to_vec())
}

/// Scheduling of a thread.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    attributes: Scheduling,
    affinity: Affinity,
    io_priority: i64,
}

impl Schedule {
    pub(crate) fn record(tid: i32) -> Result<Schedule, Quarantine> {
        let failed = || format!("scheduling of thread {tid}");
        Ok(Schedule {
            attributes: process::scheduling(tid).or_quarantine(Reason::Unreadable, failed)?,
            affinity: process::affinity(tid).or_quarantine(Reason::Unreadable, failed)?,
            io_priority: process::io_priority(tid).or_quarantine(Reason::Unreadable, failed)?,
        })
    }

    /// Puts back what differs; returns how much did.
    pub(crate) fn restore(&self, tid: i32) -> Result<u64, Quarantine> {
        let failed = || format!("scheduling of thread {tid}");
        let now = Schedule::record(tid)?;
        let mut restored = 0;
        if now.attributes != self.attributes {
            process::set_scheduling(tid, &self.attributes).or_quarantine(Reason::Limits, failed)?;
            restored += 1;
        }
        if now.affinity != self.affinity {
            process::set_affinity(tid, &self.affinity).or_quarantine(Reason::Limits, failed)?;
            restored += 1;
        }
        if now.io_priority != self.io_priority {
            process::set_io_priority(tid, self.io_priority).or_quarantine(Reason::Limits, failed)?;
            restored += 1;
        }
        Ok(restored)
    }
}
