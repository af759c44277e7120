//! Whether a container's first process lives.
//!
//! An address says nothing about who answers behind it: the engine gives the address of a dead container
//! to the next one at once (residue row 31). The pidfd of the first process cannot be mistaken for another's,
//! and the engine frees the address only after that process has ended. So: whoever connects, and finds the
//! pidfd *afterwards* still alive, has connected to this container.

use super::sys;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::io::unix::AsyncFd;

/// Watches one process; clones watch the same one.
#[derive(Debug, Clone)]
pub struct Liveness {
    /// `None`: it had ended before it could be watched.
    pidfd: Option<Arc<AsyncFd<OwnedFd>>>,
}

impl Liveness {
    /// Watches the process that has `pid` now. Whether it is the one meant, the caller must check *afterwards*.
    ///
    /// Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(pid: Pid) -> io::Result<Self> {
        Ok(Self { pidfd: Some(Arc::new(sys::watched(sys::pidfd_open(pid)?)?)) })
    }

    /// What became of a process that ended before it could be watched.
    #[must_use]
    pub const fn ended() -> Self {
        Self { pidfd: None }
    }

    /// Whether the process lives at this moment.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        let Some(pidfd) = &self.pidfd else { return false };
        let mut fds = [PollFd::new(pidfd.get_ref().as_fd(), PollFlags::POLLIN)];
        // A failing poll proves nothing, and what is not proven alive counts as dead.
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(0))
    }

    /// Returns when the process has ended.
    pub async fn died(&self) {
        let Some(pidfd) = &self.pidfd else { return };
        loop {
            match pidfd.readable().await {
                Ok(mut ready) => {
                    if !self.is_alive() {
                        return;
                    }
                    ready.clear_ready();
                }
                // The runtime is ending.
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Liveness;
    use nix::unistd::Pid;
    use std::process::Command;

    #[tokio::test]
    async fn a_death_is_seen_by_all_who_watch() {
        let mut child = Command::new("sleep").arg("1000").spawn().expect("sleep");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        let watch = Liveness::of(pid).expect("pidfd");
        assert!(watch.is_alive());
        let others = [watch.clone(), watch.clone()];
        child.kill().expect("kill");
        watch.died().await;
        for other in others {
            other.died().await;
        }
        assert!(!watch.is_alive());
        child.wait().expect("wait");
        assert!(!watch.is_alive());
    }
}
