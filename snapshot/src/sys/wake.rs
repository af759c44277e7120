//! Blocking calls that a signal to their thread ends, without a gap.
//!
//! ptrace events arrive only through `waitpid`, which has neither a time-out nor a descriptor that could be
//! polled: a pidfd does not tell of stops, `SIGCHLD` belongs to the process and its handler to whoever embeds
//! this, and polling with `WNOHANG` was measured to be twenty times worse on two cores. So the wait blocks, and
//! a real-time signal sent to this very thread ends it.
//!
//! The classical race of that is a signal that arrives after the last look at what it announces and before the
//! call blocks: it would be lost, and the thread would sleep on. Here it cannot be. The look and the call are
//! one short piece of assembly, and the handler moves a thread that it finds in that piece to its exit:
//!
//! ```text
//!   window:  cmp  flag, 0       the signal came before: whoever sends it sets the flag first
//!            jne  interrupted
//!            syscall            in between, or in the call: the handler goes to 'interrupted'
//!   end:     ret                the call is done: nothing is lost, the caller looks at the flag next
//! ```
//!
//! The handler is installed with `SA_RESTART`. A wait that was interrupted is about to be restarted, so it
//! stands before the `syscall` instruction again, in the window; every other call of this thread that the
//! signal meets is restarted as if there had been no signal.
//!
//! Could another handler lie between the window and ours, so that ours does not see the window? Only one whose
//! signal the kernel takes at the same moment but before ours. Ours is sent to the thread, and those are taken
//! before the ones sent to the process; nothing sends others to this thread but faults, and the window has none.

use nix::errno::Errno;
use std::arch::global_asm;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU32;

/// A flag that nobody sets: for waits that only an [`Alarm`](super::alarm::Alarm) ends.
pub(crate) static NEVER: AtomicU32 = AtomicU32::new(0);

// fn(flag: *const u32, number, a0, a1, a2, a3) -> result or negative errno
global_asm!(
    ".pushsection .text.rewind_wait, \"ax\", @progbits",
    ".globl rewind_wait",
    ".hidden rewind_wait",
    "rewind_wait:",
    "mov r11, rdi",
    "mov rax, rsi",
    "mov rdi, rdx",
    "mov rsi, rcx",
    "mov rdx, r8",
    "mov r10, r9",
    ".globl rewind_wait_window",
    ".hidden rewind_wait_window",
    "rewind_wait_window:",
    "cmp dword ptr [r11], 0",
    "jne rewind_wait_interrupted",
    "syscall",
    ".globl rewind_wait_end",
    ".hidden rewind_wait_end",
    "rewind_wait_end:",
    "ret",
    ".globl rewind_wait_interrupted",
    ".hidden rewind_wait_interrupted",
    "rewind_wait_interrupted:",
    "mov rax, -4", // -EINTR
    "ret",
    ".popsection",
);

unsafe extern "C" {
    fn rewind_wait(flag: *const u32, number: i64, a0: i64, a1: usize, a2: i64, a3: usize) -> i64;
    static rewind_wait_window: u8;
    static rewind_wait_end: u8;
    static rewind_wait_interrupted: u8;
}

/// The signal used: real-time, so that nothing in the standard library or in tokio listens to it.
pub(super) fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 9
}

extern "C" fn leave_the_window(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let address = |symbol: *const u8| symbol as i64;
    let window = address(&raw const rewind_wait_window)..address(&raw const rewind_wait_end);
    // SAFETY: with SA_SIGINFO the kernel passes the interrupted context, which is this handler's alone until it
    // returns. Only code that stands in the window is moved, to an exit that expects nothing of its registers.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    if let Some(rip) = registers.get_mut(libc::REG_RIP as usize)
        && window.contains(rip)
    {
        *rip = address(&raw const rewind_wait_interrupted);
    }
}

/// Installs the handler, once per process, and lets the calling thread take the signal.
pub(crate) fn prepare_thread() -> Result<(), Errno> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    (*DONE.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid; handler and flags are set below, the mask is empty.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
        let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = leave_the_window;
        action.sa_sigaction = handler as usize;
        // SAFETY: `action` is fully initialised; the handler is async-signal-safe, it touches only its context.
        Errno::result(unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) }).map(drop)
    }))?;
    let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigemptyset initialises the set it is given.
    unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
    // SAFETY: the set was initialised above, the number is a valid signal.
    unsafe { libc::sigaddset(mask.as_mut_ptr(), signal()) };
    // SAFETY: the set is initialised; only the calling thread's mask changes.
    unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, mask.as_ptr(), std::ptr::null_mut()) };
    Ok(())
}

/// Sends the signal to a thread of this process. If it has ended, nothing happens.
pub(crate) fn interrupt(tid: i32) {
    let pid = i64::from(std::process::id());
    // SAFETY: no pointers are passed; the handler was installed before anybody could wait.
    unsafe { libc::syscall(libc::SYS_tgkill, pid, tid, signal()) };
}

/// `wait4` for a tracee of this thread (-1: any). `EINTR` if `flag` is set or the signal came.
pub(crate) fn wait(which: i32, flag: &AtomicU32) -> Result<(i32, i32), Errno> {
    let mut status = 0i32;
    let options = i64::from(libc::__WALL | libc::__WNOTHREAD);
    let number = libc::SYS_wait4;
    // SAFETY: the flag and the status live through the call; there is no rusage.
    let got =
        unsafe { rewind_wait(flag.as_ptr(), number, i64::from(which), &raw mut status as usize, options, 0) };
    answer(got).map(|tid| (tid, status))
}

/// Sleeps until `flag` is set or the signal comes.
pub(crate) fn sleep(flag: &AtomicU32) {
    // SAFETY: the flag lives through the call, which has no arguments. Its only answer is EINTR.
    unsafe { rewind_wait(flag.as_ptr(), libc::SYS_pause, 0, 0, 0, 0) };
}

fn answer(got: i64) -> Result<i32, Errno> {
    let got = i32::try_from(got).unwrap_or(-libc::EOVERFLOW);
    if got < 0 { Err(Errno::from_raw(-got)) } else { Ok(got) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    #[test]
    fn a_flag_that_is_set_ends_the_sleep_before_it_begins() {
        sleep(&AtomicU32::new(1));
        assert_eq!(wait(-1, &AtomicU32::new(1)), Err(Errno::EINTR));
    }

    #[test]
    fn no_wake_up_is_lost_however_it_falls() {
        prepare_thread().expect("a handler");
        let ours = nix::unistd::gettid().as_raw();
        let rounds = AtomicU32::new(0);
        let flag = AtomicU32::new(0);
        // The other thread sends exactly one signal per round, as early or late as it happens to be; one lost
        // would leave this thread asleep for ever.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 1..=20_000 {
                    flag.store(1, Ordering::SeqCst);
                    interrupt(ours);
                    while rounds.load(Ordering::SeqCst) != round {
                        std::hint::spin_loop();
                    }
                }
            });
            for _ in 0..20_000 {
                while flag.load(Ordering::SeqCst) == 0 {
                    sleep(&flag);
                }
                flag.store(0, Ordering::SeqCst);
                rounds.fetch_add(1, Ordering::SeqCst);
            }
        });
    }

    #[test]
    fn the_signal_does_not_disturb_other_calls() {
        prepare_thread().expect("a handler");
        let ours = nix::unistd::gettid().as_raw();
        let (read, write) = nix::unistd::pipe().expect("a pipe");
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..100 {
                    interrupt(ours);
                    std::thread::yield_now();
                }
                nix::unistd::write(&write, b"x").expect("written");
            });
            let mut byte = [0u8];
            assert_eq!(nix::unistd::read(&read, &mut byte), Ok(1));
        });
    }
}
