//! The IPC namespace of a target, looked at from outside.

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

const FSOPEN_CLOEXEC: libc::c_uint = 1;
const FSMOUNT_CLOEXEC: libc::c_uint = 1;
const FSCONFIG_CMD_CREATE: libc::c_uint = 6;

/// A directory that shows the POSIX message queues of the IPC namespace `ipc`.
///
/// A mount of our own, detached from every tree: the container may have unmounted its `/dev/mqueue`, but its
/// queues live in the namespace. A short-lived thread enters the namespace, since a namespace belongs to a
/// thread and this one must stay where it is.
pub(crate) fn message_queues(ipc: &File) -> io::Result<OwnedFd> {
    std::thread::scope(|scope| {
        let mounting = scope.spawn(|| -> io::Result<OwnedFd> {
            setns(ipc, CloneFlags::CLONE_NEWIPC)?;
            mount(c"mqueue")
        });
        mounting.join().unwrap_or_else(|_| Err(io::Error::other("the mounting thread panicked")))
    })
}

/// Mounts a file system without a place in any tree.
fn mount(kind: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string.
    let fs = own(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) })?;
    use std::os::fd::AsRawFd;
    let none = std::ptr::null::<u8>();
    // SAFETY: this command takes no key, no value and no auxiliary number.
    let created =
        unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), FSCONFIG_CMD_CREATE, none, none, 0) };
    Errno::result(created)?;
    // SAFETY: no pointers are passed.
    own(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), FSMOUNT_CLOEXEC, 0) })
}

fn own(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(result)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).map_err(io::Error::other)?) })
}
