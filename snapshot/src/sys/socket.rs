//! Sockets shared with a target.

use nix::errno::Errno;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// An integer option, or a short opaque one, as the kernel gives it.
pub(crate) fn option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<Vec<u8>, Errno> {
    let mut value = [0u8; 64];
    let mut len = 64;
    // SAFETY: the kernel writes at most `len` bytes into `value`.
    let done =
        unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) };
    Errno::result(done)?;
    Ok(value[..usize::try_from(len).unwrap_or(0).min(64)].to_vec())
}

/// Sets an option to what [`option`] gave.
pub(crate) fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
    let len = libc::socklen_t::try_from(value.len()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel reads `len` bytes of `value`.
    let done = unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) };
    Errno::result(done).map(drop)
}

/// An integer option.
pub(crate) fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> Result<i32, Errno> {
    let value = option(fd, level, name)?;
    value.try_into().map(i32::from_ne_bytes).map_err(|_| Errno::EINVAL)
}

/// The state of a TCP socket, `TCP_*` of include/net/tcp_states.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TcpState(pub(crate) u8);

impl TcpState {
    pub(crate) const CLOSED: TcpState = TcpState(7);
    pub(crate) const LISTENING: TcpState = TcpState(10);
}

/// State of a TCP socket, and for a listening one the connections that wait to be accepted and their bound.
pub(crate) fn tcp_info(fd: BorrowedFd<'_>) -> Result<(TcpState, u32, u32), Errno> {
    let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = libc::socklen_t::try_from(size_of::<libc::tcp_info>()).map_err(|_| Errno::EINVAL)?;
    // SAFETY: the kernel writes at most `len` bytes, the size of the structure.
    let done = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    Errno::result(done)?;
    // SAFETY: zeroed before, and all fields are plain numbers.
    let info = unsafe { info.assume_init() };
    Ok((TcpState(info.tcpi_state), info.tcpi_unacked, info.tcpi_sacked))
}

/// Accepts and drops one waiting connection; false if none waits.
pub(crate) fn drop_waiting(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    // The caller has seen by poll that this does not block.
    // SAFETY: the peer's address is not asked for.
    let got = unsafe {
        libc::accept4(fd.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), libc::SOCK_CLOEXEC)
    };
    match Errno::result(got) {
        Ok(fd) => {
            // SAFETY: a fresh descriptor that nobody else owns.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
            Ok(true)
        }
        Err(Errno::EAGAIN | Errno::ECONNABORTED) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Receives and drops what waits in a socket, including descriptors under way. True if there was something.
pub(crate) fn drop_received(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    let mut buffer = [0u8; 16 * 1024];
    // SAFETY: the kernel writes at most the length of the buffer; without room for control data it closes
    // descriptors under way itself.
    let got =
        unsafe { libc::recv(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), libc::MSG_DONTWAIT) };
    match Errno::result(got) {
        Ok(got) => Ok(got > 0),
        Err(Errno::EAGAIN) => Ok(false),
        Err(errno) => Err(errno),
    }
}

/// Sends descriptors over a unix socket, with one byte.
pub(crate) fn send_fds(socket: BorrowedFd<'_>, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let byte = [std::io::IoSlice::new(b"x")];
    let control = [ControlMessage::ScmRights(&raw)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(socket.as_raw_fd(), &byte, &control, flags, None).map(drop)
}

/// The raw local and remote address.
pub(crate) fn names(fd: BorrowedFd<'_>) -> (Vec<u8>, Vec<u8>) {
    type Ask = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;
    let ask = |function: Ask| {
        let mut address = [0u8; size_of::<libc::sockaddr_storage>()];
        let mut len = libc::socklen_t::try_from(address.len()).unwrap_or(0);
        // SAFETY: both functions write at most `len` bytes into `address`.
        let done = unsafe { function(fd.as_raw_fd(), address.as_mut_ptr().cast(), &raw mut len) };
        let len = if done == 0 { usize::try_from(len).unwrap_or(0).min(address.len()) } else { 0 };
        address[..len].to_vec()
    };
    (ask(libc::getsockname), ask(libc::getpeername))
}

/// The events that hold for a socket now.
pub(crate) fn readiness(fd: BorrowedFd<'_>) -> Result<i16, Errno> {
    let events = libc::POLLIN | libc::POLLOUT | libc::POLLRDHUP;
    super::file::ready(fd, events)
}
