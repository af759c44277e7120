//! Who a thread is: everything that only ever changes by something we do not undo.

use crate::proc::{Held, lines};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::process::{self, Shared};
use std::os::unix::fs::MetadataExt;

/// Lines of `/proc/<pid>/task/<tid>/status` that must be what they were, and what it means if not.
const LINES: &[(&str, Reason)] = &[
    ("Tgid", Reason::ThreadVanished),
    ("Ngid", Reason::ThreadVanished),
    ("PPid", Reason::Parentage),
    ("Uid", Reason::Credentials),
    ("Gid", Reason::Credentials),
    ("Groups", Reason::Credentials),
    ("NStgid", Reason::Namespace),
    ("NSpid", Reason::Namespace),
    ("NSpgid", Reason::Parentage),
    ("NSsid", Reason::Parentage),
    ("CapInh", Reason::Credentials),
    ("CapPrm", Reason::Credentials),
    ("CapEff", Reason::Credentials),
    ("CapBnd", Reason::Credentials),
    ("CapAmb", Reason::Credentials),
    ("NoNewPrivs", Reason::Credentials),
    ("Seccomp", Reason::Seccomp),
    ("Seccomp_filters", Reason::Seccomp),
    ("Speculation_Store_Bypass", Reason::ThreadAttributes),
    ("SpeculationIndirectBranch", Reason::ThreadAttributes),
    ("x86_Thread_features", Reason::ThreadAttributes),
    ("x86_Thread_features_locked", Reason::ThreadAttributes),
];

/// Namespaces that only a thread with CAP_SYS_ADMIN (in its user namespace) can change.
const GUARDED: &[&str] = &["mnt", "net", "ipc", "uts", "pid_for_children", "cgroup", "time_for_children"];

const CAP_SYS_ADMIN: u32 = 21;

/// The recorded identity of one thread.
#[derive(Debug)]
pub(crate) struct Identity {
    status: Held,
    lines: Vec<(&'static str, String)>,
    /// Paths of the namespaces that are compared, with their inodes.
    namespaces: Vec<(String, u64)>,
}

/// What else the status of a thread tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) umask: u32,
    /// KiB of locked memory of the process.
    pub(crate) locked: u64,
    /// Signals pending for the thread or the process.
    pub(crate) pending: u64,
    /// Signals that the process ignores.
    pub(crate) ignored: u64,
}

impl Identity {
    /// Records a thread. The status file must belong to a live thread.
    pub(crate) fn record(pid: i32, tid: i32) -> Result<(Identity, Seen), Quarantine> {
        let path = format!("/proc/{pid}/task/{tid}/status");
        let status = Held::open(&path).or_quarantine(Reason::Unreadable, || path.clone())?;
        let mut buffer = Vec::new();
        let text = status.read(&mut buffer).or_quarantine(Reason::Unreadable, || path.clone())?;
        let seen = Seen::parse(text);
        let kept: Vec<(&'static str, String)> = lines(text)
            .filter_map(|(key, value)| {
                let (name, _) = LINES.iter().find(|(name, _)| *name == key)?;
                Some((*name, value.to_owned()))
            })
            .collect();
        if let Some((_, features)) = kept.iter().find(|(name, _)| *name == "x86_Thread_features")
            && features.contains("shstk")
        {
            let detail = format!("thread {tid} has a shadow stack, which is not recorded");
            return Err(Quarantine::new(Reason::ThreadAttributes, detail));
        }
        let admin = kept
            .iter()
            .find(|(name, _)| *name == "CapPrm")
            .and_then(|(_, caps)| u64::from_str_radix(caps, 16).ok())
            .is_none_or(|caps| caps >> CAP_SYS_ADMIN & 1 == 1);
        // Without CAP_SYS_ADMIN the only way into another namespace is a new user namespace, from which
        // there is no way back: so the user namespace tells.
        let mut namespaces = Vec::new();
        for name in std::iter::once(&"user").chain(GUARDED.iter().filter(|_| admin)) {
            let path = format!("/proc/{pid}/task/{tid}/ns/{name}");
            let inode = std::fs::metadata(&path).or_quarantine(Reason::Unreadable, || path.clone())?.ino();
            namespaces.push((path, inode));
        }
        Ok((Identity { status, lines: kept, namespaces }, seen))
    }

    /// Compares the thread with its record.
    pub(crate) fn check(&self, tid: i32, buffer: &mut Vec<u8>) -> Result<Seen, Quarantine> {
        let text =
            self.status.read(buffer).or_quarantine(Reason::ThreadVanished, || format!("thread {tid}"))?;
        let mut expected = self.lines.iter();
        for (key, value) in lines(text) {
            let Some((name, reason)) = LINES.iter().find(|(name, _)| *name == key) else { continue };
            match expected.next() {
                Some((was, old)) if was == name && old == value => {}
                _ => return Err(Quarantine::new(*reason, format!("{name} of thread {tid}"))),
            }
        }
        if expected.next().is_some() {
            return Err(Quarantine::new(Reason::Unreadable, format!("status of thread {tid} is cut off")));
        }
        for (path, inode) in &self.namespaces {
            // A namespace made for children that has none yet cannot be looked at.
            let now = std::fs::metadata(path).or_quarantine(Reason::Namespace, || path.clone())?.ino();
            if now != *inode {
                return Err(Quarantine::new(Reason::Namespace, path.clone()));
            }
        }
        Ok(Seen::parse(text))
    }
}

impl Seen {
    fn parse(text: &[u8]) -> Seen {
        let mut seen = Seen { umask: 0, locked: 0, pending: 0, ignored: 0 };
        for (key, value) in lines(text) {
            match key {
                "Umask" => seen.umask = u32::from_str_radix(value, 8).unwrap_or(0),
                "VmLck" => seen.locked = value.trim_end_matches(" kB").parse().unwrap_or(0),
                "SigPnd" | "ShdPnd" => seen.pending |= u64::from_str_radix(value, 16).unwrap_or(0),
                "SigIgn" => seen.ignored = u64::from_str_radix(value, 16).unwrap_or(0),
                _ => {}
            }
        }
        seen
    }
}

/// A thread must share descriptors and file system context with its process, or it could hide changes.
pub(crate) fn shares_tables(pid: i32, tid: i32) -> Result<(), Quarantine> {
    for what in [Shared::Files, Shared::Fs] {
        let shared = process::same(pid, tid, what)
            .or_quarantine(Reason::ThreadVanished, || format!("comparing thread {tid} with its process"))?;
        if !shared {
            let detail = format!("thread {tid} of process {pid} has its own {what:?}");
            return Err(Quarantine::new(Reason::FdTableUnshared, detail));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_signals_of_thread_and_process_are_joined() {
        let text = b"Name:\tx\nUmask:\t0027\nVmLck:\t       4 kB\nSigPnd:\t0000000000000001\nShdPnd:\t0000000000000100\n";
        assert_eq!(Seen::parse(text), Seen { umask: 0o27, locked: 4, pending: 0x101, ignored: 0 });
    }

    #[test]
    fn our_own_identity_is_stable_until_something_changes() {
        let tid = nix::unistd::gettid().as_raw();
        let pid = nix::unistd::getpid().as_raw();
        let (identity, _) = Identity::record(pid, tid).expect("recorded");
        let mut buffer = Vec::new();
        identity.check(tid, &mut buffer).expect("unchanged");
        nix::sys::prctl::set_no_new_privs().expect("allowed");
        let found = identity.check(tid, &mut buffer).expect_err("changed");
        assert_eq!(found.reason, Reason::Credentials);
    }
}
