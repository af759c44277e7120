//! The system calls of this part that no library wraps.

#![allow(unsafe_code, reason = "pidfds and the fill level of a pipe have no safe wrapper in nix")]

use nix::errno::Errno;
use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A descriptor that stands for the process that has `pid` now; it becomes readable when that process ends.
///
/// # Errors
/// `ESRCH` when there is no such process.
pub(super) fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: the call takes two integers, touches no memory of ours, and returns a new descriptor or -1.
    let answer = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    let fd =
        RawFd::try_from(Errno::result(answer)?).map_err(|_| io::Error::other("descriptor out of range"))?;
    // SAFETY: the kernel has just made this descriptor (close-on-exec) for us, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Watches a descriptor for becoming readable. Must be called within a tokio runtime.
///
/// # Errors
/// When the descriptor cannot be watched.
pub(super) fn watched(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, is always the same descriptor, and stays so until the `AsyncFd` drops it.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}

/// How many bytes wait in a pipe.
///
/// # Errors
/// Those of `FIONREAD`.
pub(super) fn pipe_fill(pipe: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `FIONREAD` writes one int to the pointer, which points to an int that outlives the call.
    let answer = unsafe { libc::ioctl(pipe.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    Errno::result(answer)?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::{pidfd_open, pipe_fill};
    use nix::unistd::Pid;
    use std::io::Write;

    #[test]
    fn a_pidfd_of_ourselves_opens_and_one_of_nobody_does_not() {
        assert!(pidfd_open(Pid::this()).is_ok());
        // Above any pid_max that Linux accepts.
        let nobody = pidfd_open(Pid::from_raw(i32::MAX)).map(drop);
        assert_eq!(nobody.map_err(|e| e.raw_os_error()), Err(Some(libc::ESRCH)));
    }

    #[test]
    fn a_pipe_knows_what_is_in_it() {
        let (_reader, mut writer) = std::io::pipe().expect("pipe");
        assert_eq!(pipe_fill(&writer).expect("fill"), 0);
        writer.write_all(b"abc").expect("write");
        assert_eq!(pipe_fill(&writer).expect("fill"), 3);
    }
}
