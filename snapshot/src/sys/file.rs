//! Open file descriptions shared with a target: flags, offsets, owners, queues, timers.

use nix::errno::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

fn fcntl(fd: BorrowedFd<'_>, op: libc::c_int, arg: libc::c_long) -> Result<libc::c_int, Errno> {
    // SAFETY: only operations whose argument is a number are passed by the functions below.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), op, arg) })
}

/// The status flags (O_NONBLOCK, O_APPEND and so on).
pub(crate) fn flags(fd: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    fcntl(fd, libc::F_GETFL, 0)
}

/// Sets the status flags.
pub(crate) fn set_flags(fd: BorrowedFd<'_>, flags: libc::c_int) -> Result<(), Errno> {
    fcntl(fd, libc::F_SETFL, libc::c_long::from(flags)).map(drop)
}

/// Who gets signals for this description: kind, id and signal (0: the default).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Owner {
    kind: libc::c_int,
    id: libc::c_int,
    signal: libc::c_int,
}

const F_SETSIG: libc::c_int = 10;
const F_GETSIG: libc::c_int = 11;
const F_SETOWN_EX: libc::c_int = 15;
const F_GETOWN_EX: libc::c_int = 16;

impl Owner {
    /// Nobody gets signals.
    pub(crate) fn is_nobody(self) -> bool {
        self.id == 0 && self.signal == 0
    }
}

/// Who gets signals for this description.
pub(crate) fn owner(fd: BorrowedFd<'_>) -> Result<Owner, Errno> {
    let mut pair = [0 as libc::c_int; 2];
    // SAFETY: F_GETOWN_EX fills two ints.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, pair.as_mut_ptr()) })?;
    // Without an id the kind means nothing, and setting 'nobody' does not bring the first kind back.
    let kind = if pair[1] == 0 { 0 } else { pair[0] };
    Ok(Owner { kind, id: pair[1], signal: fcntl(fd, F_GETSIG, 0)? })
}

/// Lets nobody get signals for this description.
pub(crate) fn clear_owner(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    let pair = [1 as libc::c_int, 0];
    // SAFETY: F_SETOWN_EX reads two ints: the kind (a process) and the id (none).
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, pair.as_ptr()) })?;
    fcntl(fd, F_SETSIG, 0).map(drop)
}

/// The capacity of a pipe.
pub(crate) fn pipe_size(fd: BorrowedFd<'_>) -> Result<libc::c_int, Errno> {
    fcntl(fd, libc::F_GETPIPE_SZ, 0)
}

/// Sets the capacity of a pipe.
pub(crate) fn set_pipe_size(fd: BorrowedFd<'_>, size: libc::c_int) -> Result<(), Errno> {
    fcntl(fd, libc::F_SETPIPE_SZ, libc::c_long::from(size)).map(drop)
}

/// Drops leases and whole-description locks (flock and OFD) of a regular file.
pub(crate) fn unlock(fd: BorrowedFd<'_>) -> Result<(), Errno> {
    const F_OFD_SETLK: libc::c_int = 37;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::flock(fd.as_raw_fd(), libc::LOCK_UN) })?;
    match fcntl(fd, libc::F_SETLEASE, libc::c_long::from(libc::F_UNLCK)) {
        // There is no lease, or cannot be one.
        Ok(_) | Err(Errno::EAGAIN | Errno::EINVAL | Errno::EACCES) => {}
        Err(errno) => return Err(errno),
    }
    // SAFETY: an all-zero flock is valid; the range 0+0 means the whole file.
    let mut range: libc::flock = unsafe { MaybeUninit::zeroed().assume_init() };
    range.l_type = i16::try_from(libc::F_UNLCK).unwrap_or(2);
    // SAFETY: `range` is initialised and lives through the call.
    let done = unsafe { libc::fcntl(fd.as_raw_fd(), F_OFD_SETLK, &raw mut range) };
    match Errno::result(done) {
        Ok(_) | Err(Errno::EINVAL | Errno::EBADF) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// Most bytes that [`peek_pipe`] looks at: what a pipe takes at once or not at all.
pub(crate) const PEEK_MAX: usize = 4096;

/// What lies in a pipe (up to [`PEEK_MAX`]), without taking it out.
pub(crate) fn peek_pipe(fd: BorrowedFd<'_>) -> Result<Vec<u8>, Errno> {
    if readable(fd)? == 0 {
        return Ok(Vec::new());
    }
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC | nix::fcntl::OFlag::O_NONBLOCK)?;
    // SAFETY: no pointers are passed.
    let copied = unsafe { libc::tee(fd.as_raw_fd(), writer.as_raw_fd(), PEEK_MAX, libc::SPLICE_F_NONBLOCK) };
    let copied = usize::try_from(Errno::result(copied)?).unwrap_or(0);
    let mut content = vec![0; copied];
    let mut read = 0;
    while read < copied {
        match nix::unistd::read(&reader, &mut content[read..])? {
            0 => return Err(Errno::EIO),
            more => read += more,
        }
    }
    Ok(content)
}

/// Writes into a pipe through any of its ends.
pub(crate) fn fill_pipe(fd: BorrowedFd<'_>, content: &[u8]) -> Result<(), Errno> {
    use nix::fcntl::OFlag;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlag::O_WRONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let writer = nix::fcntl::open(path.as_str(), flags, nix::sys::stat::Mode::empty())?;
    match nix::unistd::write(&writer, content)? {
        written if written == content.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

/// The offset of a seekable description, or an error for others.
pub(crate) fn offset(fd: BorrowedFd<'_>) -> Result<i64, Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::lseek(fd.as_raw_fd(), 0, libc::SEEK_CUR) })
}

/// Sets the offset.
pub(crate) fn seek(fd: BorrowedFd<'_>, offset: i64) -> Result<(), Errno> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::lseek(fd.as_raw_fd(), offset, libc::SEEK_SET) }).map(drop)
}

/// Bytes that can be read now.
pub(crate) fn readable(fd: BorrowedFd<'_>) -> Result<usize, Errno> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD fills one int.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::FIONREAD, &raw mut bytes) })?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// Whether a read would not block.
pub(crate) fn ready_to_read(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    poll(fd, libc::POLLIN)
}

/// Whether one of `events` holds now.
pub(crate) fn poll(fd: BorrowedFd<'_>, events: libc::c_short) -> Result<bool, Errno> {
    Ok(ready(fd, events)? & events != 0)
}

/// Which of `events` hold now, and what always counts (errors and hang-ups).
pub(super) fn ready(fd: BorrowedFd<'_>, events: libc::c_short) -> Result<libc::c_short, Errno> {
    let mut set = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    loop {
        // SAFETY: one pollfd, no waiting.
        match Errno::result(unsafe { libc::poll(&raw mut set, 1, 0) }) {
            // An alarm's tick: the one call here that is not restarted by itself.
            Err(Errno::EINTR) => {}
            done => return done.map(|_| set.revents),
        }
    }
}

/// A timer descriptor's setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimerSetting {
    /// Nanoseconds to the next expiry; 0: off.
    pub(crate) value: u64,
    /// Nanoseconds between expiries; 0: once.
    pub(crate) interval: u64,
}

fn nanoseconds(t: libc::timespec) -> u64 {
    u64::try_from(t.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(t.tv_nsec).unwrap_or(0)
}

fn timespec(ns: u64) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
        tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
    }
}

/// The setting of a timer descriptor.
pub(crate) fn timer(fd: BorrowedFd<'_>) -> Result<TimerSetting, Errno> {
    let mut spec = MaybeUninit::<libc::itimerspec>::uninit();
    // SAFETY: the kernel fills the structure on success.
    Errno::result(unsafe { libc::timerfd_gettime(fd.as_raw_fd(), spec.as_mut_ptr()) })?;
    // SAFETY: filled above.
    let spec = unsafe { spec.assume_init() };
    Ok(TimerSetting { value: nanoseconds(spec.it_value), interval: nanoseconds(spec.it_interval) })
}

/// Sets a timer descriptor; this also forgets expiries that nobody read.
pub(crate) fn set_timer(fd: BorrowedFd<'_>, setting: TimerSetting) -> Result<(), Errno> {
    let spec =
        libc::itimerspec { it_value: timespec(setting.value), it_interval: timespec(setting.interval) };
    // SAFETY: `spec` is only read; the old setting is not asked for.
    let done = unsafe { libc::timerfd_settime(fd.as_raw_fd(), 0, &raw const spec, std::ptr::null_mut()) };
    Errno::result(done).map(drop)
}

/// Gives a signal descriptor another mask.
pub(crate) fn set_signalfd_mask(fd: BorrowedFd<'_>, mask: u64) -> Result<(), Errno> {
    // SAFETY: the kernel reads eight bytes of mask.
    let done =
        unsafe { libc::syscall(libc::SYS_signalfd4, fd.as_raw_fd(), &raw const mask, size_of::<u64>(), 0) };
    Errno::result(done).map(drop)
}

/// The id of the mount that a path (also a magic link of `/proc`) leads to.
pub(crate) fn mount_id(path: &str) -> Result<u64, Errno> {
    let path = std::ffi::CString::new(path).map_err(|_| Errno::EINVAL)?;
    let mut out = MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the path is a C string and `out` has the kernel's layout.
    let done = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), 0, libc::STATX_MNT_ID, out.as_mut_ptr()) };
    Errno::result(done)?;
    // SAFETY: zeroed before and filled by the successful call; all fields are plain numbers.
    Ok(unsafe { out.assume_init() }.stx_mnt_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_pipe_is_looked_into_and_filled_again() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        assert_eq!(peek_pipe(reader.as_fd()).unwrap(), b"");
        nix::unistd::write(&writer, b"lock").unwrap();
        assert_eq!(peek_pipe(reader.as_fd()).unwrap(), b"lock");
        let mut buffer = [0; 10];
        assert_eq!(nix::unistd::read(&reader, &mut buffer).unwrap(), 4);
        fill_pipe(reader.as_fd(), b"again").unwrap();
        assert_eq!(peek_pipe(reader.as_fd()).unwrap(), b"again");
    }
}
