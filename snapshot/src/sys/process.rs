//! Other processes, by pid and pidfd.

use nix::errno::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// One range of a target and the bytes in this process that belong there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    /// Where the bytes are in this process.
    pub(crate) local: *const u8,
    /// Where they go in the target.
    pub(crate) remote: u64,
    pub(crate) len: usize,
}

fn fd_from(result: libc::c_long) -> Result<OwnedFd, Errno> {
    let fd = Errno::result(result)?;
    // SAFETY: the system call returned a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) })
}

/// A handle of a process that no later process with the same number can take over.
pub(crate) fn pidfd_open(pid: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    fd_from(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

/// A duplicate, in this process, of a descriptor of another (close-on-exec).
pub(crate) fn pidfd_getfd(pidfd: BorrowedFd<'_>, fd: i32) -> Result<OwnedFd, Errno> {
    // SAFETY: no pointers are passed.
    fd_from(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

/// Sends a signal through a pidfd.
pub(crate) fn pidfd_kill(pidfd: BorrowedFd<'_>, signal: i32) -> Result<(), Errno> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means an ordinary kill.
    let done = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) };
    Errno::result(done).map(drop)
}

/// Forbids the calling thread to read the time stamp counter (which asking for the time does), or allows it again.
#[cfg(feature = "bpf")]
pub(crate) fn forbid_time_stamps(forbid: bool) -> Result<(), Errno> {
    let mode = if forbid { libc::PR_TSC_SIGSEGV } else { libc::PR_TSC_ENABLE };
    // SAFETY: a number is passed.
    Errno::result(unsafe { libc::prctl(libc::PR_SET_TSC, mode, 0, 0, 0) }).map(drop)
}

/// What [`same`] compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    Memory = 1,
    Files = 2,
    Fs = 3,
}

/// Whether two threads share a table.
pub(crate) fn same(a: i32, b: i32, what: Shared) -> Result<bool, Errno> {
    // SAFETY: no pointers are passed.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, a, b, what as libc::c_int, 0, 0) };
    Errno::result(order).map(|order| order == 0)
}

/// Whether descriptor `ours` of this process and `theirs` of process `pid` are one open file description.
pub(crate) fn same_file(ours: BorrowedFd<'_>, pid: i32, theirs: i32) -> Result<bool, Errno> {
    const KCMP_FILE: libc::c_int = 0;
    let us = std::process::id();
    // SAFETY: no pointers are passed.
    let order = unsafe { libc::syscall(libc::SYS_kcmp, us, pid, KCMP_FILE, ours.as_raw_fd(), theirs) };
    Errno::result(order).map(|order| order == 0)
}

/// Writes pieces into the memory of a process, all or nothing as far as can be told: a short write is an
/// error. Pages that are not writable there make it fail; those go through `/proc/<pid>/mem`.
pub(crate) fn write_memory(pid: i32, pieces: &[Piece]) -> Result<(), Errno> {
    // UIO_MAXIOV.
    for chunk in pieces.chunks(1024) {
        let mut local = Vec::with_capacity(chunk.len());
        let mut remote = Vec::with_capacity(chunk.len());
        let mut want = 0usize;
        for piece in chunk {
            local.push(libc::iovec { iov_base: piece.local.cast_mut().cast(), iov_len: piece.len });
            let address = usize::try_from(piece.remote).map_err(|_| Errno::EFAULT)?;
            remote.push(libc::iovec { iov_base: address as *mut libc::c_void, iov_len: piece.len });
            want += piece.len;
        }
        // SAFETY: the kernel reads the local ranges, which `Shared::address` vouches for, and writes only to
        // memory of the other process. A bad local range would be answered with EFAULT, not with harm.
        let got = unsafe {
            libc::process_vm_writev(
                pid,
                local.as_ptr(),
                local.len() as libc::c_ulong,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        if usize::try_from(Errno::result(got)?).unwrap_or(0) != want {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}

/// Reads one quadword at each of some addresses, all or nothing.
pub(crate) fn read_quadwords(
    pid: i32,
    addresses: impl Iterator<Item = u64>,
    into: &mut [u64],
) -> Result<(), Errno> {
    let mut remote = Vec::with_capacity(into.len());
    for address in addresses.take(into.len()) {
        let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
        remote.push(libc::iovec { iov_base: address as *mut libc::c_void, iov_len: 8 });
    }
    // UIO_MAXIOV.
    for (into, remote) in into.chunks_mut(1024).zip(remote.chunks(1024)) {
        let want = size_of_val(into);
        let local = libc::iovec { iov_base: into.as_mut_ptr().cast(), iov_len: want };
        // SAFETY: the kernel writes at most `want` bytes to `into` and only reads the other process.
        let got = unsafe {
            libc::process_vm_readv(
                pid,
                &raw const local,
                1,
                remote.as_ptr(),
                remote.len() as libc::c_ulong,
                0,
            )
        };
        if usize::try_from(Errno::result(got)?).unwrap_or(0) != want {
            return Err(Errno::EFAULT);
        }
    }
    Ok(())
}

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limit {
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// The number of resource limits (`RLIM_NLIMITS`).
pub(crate) const LIMITS: u32 = 16;

/// Reads one resource limit of a process.
pub(crate) fn limit(pid: i32, resource: u32) -> Result<Limit, Errno> {
    let mut old = MaybeUninit::<libc::rlimit64>::uninit();
    // SAFETY: `old` has the kernel's layout; a null new limit changes nothing.
    Errno::result(unsafe { libc::prlimit64(pid, resource, std::ptr::null(), old.as_mut_ptr()) })?;
    // SAFETY: filled by the successful call.
    let old = unsafe { old.assume_init() };
    Ok(Limit { soft: old.rlim_cur, hard: old.rlim_max })
}

/// Sets one resource limit of a process.
pub(crate) fn set_limit(pid: i32, resource: u32, limit: Limit) -> Result<(), Errno> {
    let new = libc::rlimit64 { rlim_cur: limit.soft, rlim_max: limit.hard };
    // SAFETY: `new` is only read.
    Errno::result(unsafe { libc::prlimit64(pid, resource, &raw const new, std::ptr::null_mut()) }).map(drop)
}

/// `struct sched_attr` of sched_setattr(2).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
    util_min: u32,
    util_max: u32,
}

/// The scheduling class, nice value and clamps of a thread.
pub(crate) fn scheduling(tid: i32) -> Result<Scheduling, Errno> {
    let mut attr = Scheduling::default();
    let size = size_of::<Scheduling>();
    // SAFETY: `attr` has room for `size` bytes.
    let done = unsafe { libc::syscall(libc::SYS_sched_getattr, tid, &raw mut attr, size, 0) };
    Errno::result(done)?;
    Ok(attr)
}

/// Sets what [`scheduling`] gave.
pub(crate) fn set_scheduling(tid: i32, attr: &Scheduling) -> Result<(), Errno> {
    // SAFETY: `attr` has the kernel's layout and is only read.
    let done = unsafe { libc::syscall(libc::SYS_sched_setattr, tid, std::ptr::from_ref(attr), 0) };
    Errno::result(done).map(drop)
}

/// A set of processors: 1024 of them, glibc's own bound.
pub(crate) type Affinity = [u64; 16];

/// The processors a thread may run on.
pub(crate) fn affinity(tid: i32) -> Result<Affinity, Errno> {
    let mut set: Affinity = [0; 16];
    // SAFETY: `set` has the size that is passed.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid, size_of::<Affinity>(), set.as_mut_ptr()) };
    Errno::result(done)?;
    Ok(set)
}

/// Sets the processors a thread may run on.
pub(crate) fn set_affinity(tid: i32, set: &Affinity) -> Result<(), Errno> {
    // SAFETY: `set` has the size that is passed and is only read.
    let done =
        unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid, size_of::<Affinity>(), set.as_ptr()) };
    Errno::result(done).map(drop)
}

const IOPRIO_WHO_PROCESS: libc::c_int = 1;

/// The I/O priority of a thread.
pub(crate) fn io_priority(tid: i32) -> Result<i64, Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid) })
}

/// Sets the I/O priority of a thread.
pub(crate) fn set_io_priority(tid: i32, priority: i64) -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    let done = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid, priority) };
    Errno::result(done).map(drop)
}

/// Head and length of a thread's list of robust futexes.
pub(crate) fn robust_list(tid: i32) -> Result<(u64, u64), Errno> {
    let mut head = 0u64;
    let mut len = 0u64;
    // SAFETY: both results are quadwords on x86-64 and live through the call.
    let done = unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut len) };
    Errno::result(done)?;
    Ok((head, len))
}
