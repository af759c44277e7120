//! ptrace, typed.
//!
//! Each function is one request for one thread id. A wrong or foreign id is answered by the kernel with
//! `ESRCH`: it cannot harm memory of this process, which is why these functions are safe to call.

use super::alarm::Alarm;
use super::wake;
use nix::errno::Errno;
use std::mem::{MaybeUninit, offset_of};
use std::sync::atomic::AtomicU32;

pub(crate) use libc::user_regs_struct as Registers;

/// A kernel signal mask: bit n-1 is signal n.
pub(crate) type SignalMask = u64;

/// Everything blocked but SIGTRAP: a blocked SIGTRAP would be forced by the agent's last instruction, which
/// resets the target's handler.
pub(crate) const ALL_BUT_TRAP: SignalMask = !(1 << (libc::SIGTRAP - 1));

/// Kill the tracee when the tracer dies: a container must never be left stopped by a dead engine.
pub(crate) const EXITKILL: libc::c_int = libc::PTRACE_O_EXITKILL;
/// Injected system calls pass the container's seccomp filter. Only ever set on a stopped thread, and cleared
/// before it runs on.
pub(crate) const SUSPEND_SECCOMP: libc::c_int = libc::PTRACE_O_SUSPEND_SECCOMP;

const NT_X86_XSTATE: usize = 0x202;
const PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4210;
const PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG: libc::c_uint = 0x4211;

/// One ptrace request.
///
/// # Safety
/// `data` must be what `request` demands: a plain number, or a pointer to live memory of the right type.
unsafe fn request(op: libc::c_uint, tid: i32, addr: usize, data: usize) -> Result<(), Errno> {
    // SAFETY: forwarded to the caller. The libc wrapper returns -1 and errno on failure; the PEEK requests,
    // for which that is ambiguous, are not used here.
    Errno::result(unsafe { libc::ptrace(op, tid, addr, data) }).map(drop)
}

/// Attaches without stopping.
pub(crate) fn seize(tid: i32, options: libc::c_int) -> Result<(), Errno> {
    // SAFETY: PTRACE_SEIZE takes the options as a number.
    unsafe { request(libc::PTRACE_SEIZE, tid, 0, usize::try_from(options).unwrap_or(0)) }
}

/// Asks a seized thread to stop; the stop is reported by [`wait`].
pub(crate) fn interrupt(tid: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_INTERRUPT has no arguments.
    unsafe { request(libc::PTRACE_INTERRUPT, tid, 0, 0) }
}

/// Lets a stopped thread run, delivering `signal` (0: none).
pub(crate) fn resume(tid: i32, signal: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_CONT takes a signal number.
    unsafe { request(libc::PTRACE_CONT, tid, 0, usize::try_from(signal).unwrap_or(0)) }
}

/// Leaves a thread in its job-control stop, so that `SIGCONT` ends it as it always does.
pub(crate) fn listen(tid: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_LISTEN has no arguments.
    unsafe { request(libc::PTRACE_LISTEN, tid, 0, 0) }
}

/// Lets a stopped thread execute one instruction.
pub(crate) fn step(tid: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_SINGLESTEP takes a signal number, here none.
    unsafe { request(libc::PTRACE_SINGLESTEP, tid, 0, 0) }
}

/// Detaches from a stopped thread, which runs on.
pub(crate) fn detach(tid: i32) -> Result<(), Errno> {
    // SAFETY: PTRACE_DETACH takes a signal number, here none.
    unsafe { request(libc::PTRACE_DETACH, tid, 0, 0) }
}

/// Replaces the options of a stopped thread.
pub(crate) fn set_options(tid: i32, options: libc::c_int) -> Result<(), Errno> {
    // SAFETY: PTRACE_SETOPTIONS takes the options as a number.
    unsafe { request(libc::PTRACE_SETOPTIONS, tid, 0, usize::try_from(options).unwrap_or(0)) }
}

/// The general registers of a stopped thread.
pub(crate) fn registers(tid: i32) -> Result<Registers, Errno> {
    let mut regs = MaybeUninit::<Registers>::uninit();
    // SAFETY: the kernel fills the whole structure on success.
    unsafe { request(libc::PTRACE_GETREGS, tid, 0, regs.as_mut_ptr() as usize) }?;
    // SAFETY: initialised by the successful request above.
    Ok(unsafe { regs.assume_init() })
}

/// Sets the result of the system call that a stopped thread is about to leave.
pub(crate) fn set_result(tid: i32, result: i64) -> Result<(), Errno> {
    let (rax, result) = (offset_of!(Registers, rax), usize::try_from(result.cast_unsigned()).unwrap_or(0));
    // SAFETY: PTRACE_POKEUSER takes an offset into `struct user`, which begins with the registers, and a word.
    unsafe { request(libc::PTRACE_POKEUSER, tid, rax, result) }
}

/// Sets the general registers of a stopped thread.
pub(crate) fn set_registers(tid: i32, regs: &Registers) -> Result<(), Errno> {
    // SAFETY: the kernel only reads the structure.
    unsafe { request(libc::PTRACE_SETREGS, tid, 0, std::ptr::from_ref(regs) as usize) }
}

/// The extended state (x87, SSE, AVX, AVX-512, PKRU) of a stopped thread, as XSAVE lays it out.
pub(crate) fn extended_state(tid: i32) -> Result<Vec<u8>, Errno> {
    // AMX tiles make it 11 KiB; nothing known is larger.
    let mut buffer = vec![0u8; 32 * 1024];
    let mut io = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: `io` describes `buffer`, which outlives the call; the kernel writes at most iov_len bytes.
    unsafe { request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE, &raw mut io as usize) }?;
    buffer.truncate(io.iov_len);
    buffer.shrink_to_fit();
    Ok(buffer)
}

/// Sets the extended state of a stopped thread to what [`extended_state`] gave.
pub(crate) fn set_extended_state(tid: i32, state: &[u8]) -> Result<(), Errno> {
    let io = libc::iovec { iov_base: state.as_ptr().cast_mut().cast(), iov_len: state.len() };
    // SAFETY: `io` describes `state`, which the kernel only reads.
    unsafe { request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE, &raw const io as usize) }
}

/// The signal mask of a stopped thread. In a system call that swaps masks (epoll_pwait, ppoll, sigsuspend)
/// this is the mask that will hold afterwards.
pub(crate) fn signal_mask(tid: i32) -> Result<SignalMask, Errno> {
    let mut mask: SignalMask = 0;
    // SAFETY: the size passed in addr is that of the mask.
    unsafe { request(libc::PTRACE_GETSIGMASK, tid, size_of::<SignalMask>(), &raw mut mask as usize) }?;
    Ok(mask)
}

/// Sets the signal mask of a stopped thread, also undoing a swap of masks by the system call it is in.
pub(crate) fn set_signal_mask(tid: i32, mask: SignalMask) -> Result<(), Errno> {
    // SAFETY: the size passed in addr is that of the mask, which the kernel only reads.
    unsafe { request(libc::PTRACE_SETSIGMASK, tid, size_of::<SignalMask>(), &raw const mask as usize) }
}

/// The registration of a thread's restartable sequences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Rseq {
    /// Address of `struct rseq`, or 0.
    pub(crate) pointer: u64,
    pub(crate) size: u32,
    pub(crate) signature: u32,
    pub(crate) flags: u32,
    pad: u32,
}

/// How a stopped thread registered restartable sequences.
pub(crate) fn rseq(tid: i32) -> Result<Rseq, Errno> {
    let mut config = Rseq::default();
    // SAFETY: the size passed in addr is that of the structure; on success the kernel returns its size.
    unsafe {
        request(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, size_of::<Rseq>(), &raw mut config as usize)
    }?;
    Ok(config)
}

/// A thread's redirection of its own system calls (`PR_SET_SYSCALL_USER_DISPATCH`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Dispatch {
    /// 0: off.
    pub(crate) mode: u64,
    selector: u64,
    offset: u64,
    len: u64,
}

/// The redirection of a stopped thread. Linux 6.4.
pub(crate) fn dispatch(tid: i32) -> Result<Dispatch, Errno> {
    let mut config = Dispatch::default();
    // SAFETY: the size passed in addr is that of the structure.
    unsafe {
        request(PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size_of::<Dispatch>(), &raw mut config as usize)
    }?;
    Ok(config)
}

/// Sets the redirection of a stopped thread.
pub(crate) fn set_dispatch(tid: i32, config: &Dispatch) -> Result<(), Errno> {
    // SAFETY: the size passed in addr is that of the structure, which the kernel only reads.
    unsafe {
        request(
            PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG,
            tid,
            size_of::<Dispatch>(),
            std::ptr::from_ref(config) as usize,
        )
    }
}

/// What a tracee reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// It stopped because of [`interrupt`], or a job-control stop has ended.
    Interrupted,
    /// It is in a job-control stop.
    GroupStop,
    /// It is about to take a signal.
    Signal(i32),
    /// It is gone.
    Gone,
}

/// Why there was no event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WaitError {
    /// The alarm's deadline passed.
    Timeout,
    /// The kernel refused.
    Failed(Errno),
}

/// Waits for the next event of one tracee of this thread.
pub(crate) fn wait(tid: i32, alarm: &Alarm) -> Result<Event, WaitError> {
    loop {
        match wake::wait(tid, &wake::NEVER) {
            Ok((_, status)) => return Ok(decode(status)),
            Err(Errno::EINTR) if alarm.expired() => return Err(WaitError::Timeout),
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(Event::Gone),
            Err(errno) => return Err(WaitError::Failed(errno)),
        }
    }
}

/// Waits for the next event of any tracee of this thread: whose it is, and what. `EINTR`: the alarm ticked or
/// `flag` is set; `ECHILD`: there is no tracee. The wait sees children of this thread, too, and takes their end.
pub(crate) fn wait_any(flag: &AtomicU32) -> Result<(i32, Event), Errno> {
    wake::wait(-1, flag).map(|(tid, status)| (tid, decode(status)))
}

fn decode(status: i32) -> Event {
    if !libc::WIFSTOPPED(status) {
        return Event::Gone;
    }
    let signal = libc::WSTOPSIG(status);
    if status >> 16 == libc::PTRACE_EVENT_STOP {
        // A seized thread reports its interruption with SIGTRAP and a group stop with the stopping signal.
        return if signal == libc::SIGTRAP { Event::Interrupted } else { Event::GroupStop };
    }
    Event::Signal(signal)
}
