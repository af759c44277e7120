//! Why a container may not take another request: the fail-closed list, as data.

use std::error::Error;
use std::fmt;

macro_rules! reasons {
    ($( $(#[$doc:meta])* $variant:ident, $name:literal, $explain:literal; )*) => {
        /// Everything that makes a container unfit for another request.
        ///
        /// The list is closed: whatever cannot be proven restored ends in exactly one of these.
        /// [`Reason::name`] is the label in metrics, [`Reason::explain`] the sentence in the documentation.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[non_exhaustive]
        pub enum Reason {
            $( #[doc = $explain] $variant, )*
        }

        impl Reason {
            /// Every reason there is, in the order of the documentation.
            pub const ALL: &'static [Reason] = &[ $( Reason::$variant, )* ];

            /// The metric label: snake case, stable.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $( Reason::$variant => $name, )* }
            }

            /// One sentence for the operator.
            #[must_use]
            pub fn explain(self) -> &'static str {
                match self { $( Reason::$variant => $explain, )* }
            }
        }
    };
}

reasons! {
    // Processes and threads.
    ProcessVanished, "process_vanished", "A process of the snapshot exited, or was replaced by another program.";
    ThreadVanished, "thread_vanished", "A thread of the snapshot exited or was replaced by another one.";
    StrangerAlive, "stranger_alive", "Processes made by the request were still alive after the deadline.";
    StopTimeout, "stop_timeout", "A thread did not stop before the deadline.";
    Traced, "traced", "A thread is traced by somebody else, or tracing it is not permitted.";
    StoppedByJobControl, "stopped_by_job_control", "A process of the snapshot was left in a job-control stop.";
    Parentage, "parentage", "A process of the snapshot has another parent, process group or session.";
    CgroupChanged, "cgroup_changed", "Processes moved to another control group, or control groups were made.";

    // The agent that runs inside the target.
    AgentAltered, "agent_altered", "The mapping or the bytes of the injected agent are not what was put there.";
    InjectionFailed, "injection_failed", "An injected system call failed, or the injected code did not end where it must.";
    InjectionTimeout, "injection_timeout", "An injected batch did not finish before the deadline.";

    // Memory.
    FileMappingReplaced, "file_mapping_replaced", "A file mapping of the snapshot is gone or was replaced.";
    SpecialMappingChanged, "special_mapping_changed", "A kernel-provided mapping (vdso, vvar) is gone or has moved.";
    SharedMapping, "shared_mapping", "A writable shared mapping exists: its content cannot be put back.";
    LayoutNotRestored, "layout_not_restored", "The address space could not be brought back to the layout of the snapshot.";
    MemoryNotRestored, "memory_not_restored", "A page could not be written back, dropped or tracked.";
    ScanOverrun, "scan_overrun", "More changed regions than the scan may report.";
    AsyncIo, "async_io", "Kernel AIO contexts exist in the process.";
    HugePages, "huge_pages", "Explicit huge pages are mapped: they cannot be tracked.";
    MemoryLocked, "memory_locked", "Locked memory differs from the snapshot and could not be unlocked.";
    ExecutableReplaced, "executable_replaced", "The process runs another executable than at the checkpoint.";

    // Open files.
    FdUnsupported, "fd_unsupported", "A file descriptor of a kind that is not restored (io_uring, userfaultfd, perf, BPF, fanotify, memfd and others).";
    FdNotRestored, "fd_not_restored", "A file descriptor could not be put back.";
    FdTableUnshared, "fd_table_unshared", "Threads of one process no longer share file descriptors or file system context.";
    PipeNotDrained, "pipe_not_drained", "A pipe or socket of the snapshot could not be brought back to its queue.";
    EpollNotRestored, "epoll_not_restored", "An epoll interest list could not be brought back.";
    SocketChanged, "socket_changed", "A socket of the snapshot is in another state or has other options.";
    FileLock, "file_lock", "File locks or leases are held which were not held at the checkpoint.";
    FileOwner, "file_owner", "A file description sends signals (F_SETOWN, F_SETSIG, O_ASYNC) that it did not send.";
    WatchChanged, "watch_changed", "An inotify descriptor has other watches.";

    // Identity and limits.
    Credentials, "credentials", "User or group ids, capabilities, secure bits or no_new_privs changed.";
    Seccomp, "seccomp", "The seccomp mode or the number of filters changed.";
    Namespace, "namespace", "A thread entered another namespace, or one was prepared for its children.";
    Root, "root", "The root directory changed.";
    Mounts, "mounts", "The mount table of the container changed.";
    WorkingDirectory, "working_directory", "The working directory could not be brought back.";
    Limits, "limits", "Resource limits, scheduling, affinity or OOM score could not be brought back.";
    ProcessAttributes, "process_attributes", "A process attribute (prctl, personality, memory policy and the like) could not be brought back.";
    ThreadAttributes, "thread_attributes", "A thread attribute (rseq, robust list, syscall dispatch and the like) changed.";
    Keyring, "keyring", "Keyrings differ from the checkpoint.";

    // Signals and timers.
    SignalsPending, "signals_pending", "Pending signals could not be drained.";
    SignalActions, "signal_actions", "Signal actions could not be brought back.";
    Timers, "timers", "Timers made by the request could not be removed, or timers of the snapshot are gone.";

    // Outside the processes.
    SysvIpc, "sysv_ipc", "System V shared memory, semaphores or message queues exist in the container.";
    MessageQueue, "message_queue", "POSIX message queues exist that could not be removed.";
    Connections, "connections", "TCP connections of the container are still open.";
    Files, "files", "The files of the container could not be brought back.";

    // The engine itself.
    RegistersNotRestored, "registers_not_restored", "Registers or signal masks could not be written back.";
    VerificationFailed, "verification_failed", "The paranoid comparison found a difference after the rewind.";
    ThawFailed, "thaw_failed", "A thread could not be let go on.";
    Unreadable, "unreadable", "The state of the container could not be read from the kernel.";
    Kernel, "kernel", "This kernel or this permission set does not have what the engine needs.";
    FaultInjected, "fault_injected", "A test tripped a named fault point.";
    Killed, "killed", "The container died while it was being worked on.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The verdict 'not pristine': what was found, where.
///
/// Whoever receives one must destroy the container; the snapshot has already killed its processes.
#[derive(Debug)]
pub struct Quarantine {
    /// The class of the finding.
    pub reason: Reason,
    /// Where it was found: pids, addresses, descriptors. Never content of the request.
    pub detail: String,
    /// The error beneath, if there is one.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Quarantine {
    /// A finding without an error beneath it.
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Quarantine { reason, detail: detail.into(), source: None }
    }

    /// A finding caused by `source`.
    pub fn because(
        reason: Reason,
        detail: impl Into<String>,
        source: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> Self {
        Quarantine { reason, detail: detail.into(), source: Some(source.into()) }
    }
}

impl fmt::Display for Quarantine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.detail)
    }
}

impl Error for Quarantine {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|source| source as &(dyn Error + 'static))
    }
}

/// Turns the error of a step into a quarantine with the step's reason.
pub(crate) trait OrQuarantine<T> {
    /// Names the reason and where it happened.
    fn or_quarantine(self, reason: Reason, detail: impl FnOnce() -> String) -> Result<T, Quarantine>;
}

impl<T, E: Into<Box<dyn Error + Send + Sync>>> OrQuarantine<T> for Result<T, E> {
    fn or_quarantine(self, reason: Reason, detail: impl FnOnce() -> String) -> Result<T, Quarantine> {
        self.map_err(|source| Quarantine::because(reason, detail(), source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_labels_and_explanations_are_sentences() {
        let mut seen = HashSet::new();
        for reason in Reason::ALL {
            let name = reason.name();
            assert!(seen.insert(name), "{name} is used twice");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name} is no metric label");
            assert!(reason.explain().ends_with('.'), "{name} is not explained by a sentence");
        }
    }

    #[test]
    fn the_outer_message_does_not_repeat_its_source() {
        let q = Quarantine::because(Reason::Files, "sealing /", std::io::Error::other("disk gone"));
        assert_eq!(q.to_string(), "files: sealing /");
        assert_eq!(q.source().map(ToString::to_string).as_deref(), Some("disk gone"));
    }
}
