//! Kernel objects of a process: what is compared, what is put back, what is refused.
//!
//! Each module records at the checkpoint, and at the rewind either puts back or names a
//! [`Reason`](crate::Reason). Nothing is 'probably unchanged'.
//!
//! | module | from outside | from inside (one batch) |
//! |---|---|---|
//! | [`identity`] | ids, capabilities, seccomp, parent, namespaces | |
//! | [`advice`] | advice on memory (`madvise`) | |
//! | [`limits`] | resource limits, scheduling, affinity, I/O priority, OOM score | |
//! | [`attributes`] | comm, timers | signals, timers, prctl, altstack, IPC counts, keyrings |
//! | [`fds`] | description state, through kept duplicates | closing, putting back, interest lists |
//! | [`backing`] | times of mapped files | |
//! | [`place`] | root, mounts, executable | working directory |
//! | [`ipc`] | POSIX message queues | |

pub(crate) mod advice;
pub(crate) mod attributes;
pub(crate) mod backing;
pub(crate) mod fds;
pub(crate) mod identity;
pub(crate) mod ipc;
pub(crate) mod limits;
pub(crate) mod place;
