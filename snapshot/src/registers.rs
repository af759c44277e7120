//! What a thread is in the middle of.

use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::ptrace::{self, Registers, SignalMask};

/// System calls in which a settled thread may sleep: re-executing them from the start is what the program
/// sees anyway when a signal handler with SA_RESTART ran, or changes nothing but a relative time-out.
const RESTARTABLE: &[(u64, &str)] = &[
    (0, "read"),
    (7, "poll"),
    (19, "readv"),
    (23, "select"),
    (34, "pause"),
    (35, "nanosleep"),
    (43, "accept"),
    (45, "recvfrom"),
    (47, "recvmsg"),
    (61, "wait4"),
    (128, "rt_sigtimedwait"),
    (130, "rt_sigsuspend"),
    (202, "futex"),
    (230, "clock_nanosleep"),
    (232, "epoll_wait"),
    (247, "waitid"),
    (270, "pselect6"),
    (271, "ppoll"),
    (281, "epoll_pwait"),
    (288, "accept4"),
    (299, "recvmmsg"),
    (441, "epoll_pwait2"),
    (449, "futex_waitv"),
];

/// The name of a system call in which a settled thread may sleep.
pub(crate) fn restartable(number: u64) -> Option<&'static str> {
    RESTARTABLE.iter().find(|(n, _)| *n == number).map(|(_, name)| *name)
}

const EINTR: i64 = 4;
/// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND, ERESTART_RESTARTBLOCK. Measured: epoll_wait answers EINTR,
/// futex and read 512, select and pause 514, poll and clock_nanosleep 516.
const RESTART: std::ops::RangeInclusive<i64> = 512..=516;

/// Everything of a thread that ptrace can read and write.
#[derive(Debug, Clone)]
pub(crate) struct ThreadState {
    /// Canonical: standing before the system call instruction, as if the call had not begun.
    pub(crate) registers: Registers,
    pub(crate) extended: Vec<u8>,
    pub(crate) mask: SignalMask,
    pub(crate) rseq: ptrace::Rseq,
}

impl ThreadState {
    /// Reads a stopped thread. The inner error says what it was busy with instead of sleeping in a
    /// restartable call.
    pub(crate) fn read(tid: i32) -> Result<Result<ThreadState, String>, Quarantine> {
        let unreadable = |what: &'static str| move || format!("{what} of thread {tid}");
        let registers = ptrace::registers(tid).or_quarantine(Reason::Unreadable, unreadable("registers"))?;
        let Some(registers) = canonical(&registers) else {
            return Ok(Err(busy(tid, &registers)));
        };
        let extended =
            ptrace::extended_state(tid).or_quarantine(Reason::Unreadable, unreadable("extended state"))?;
        let mask = ptrace::signal_mask(tid).or_quarantine(Reason::Unreadable, unreadable("signal mask"))?;
        let rseq = ptrace::rseq(tid).or_quarantine(Reason::Unreadable, unreadable("rseq"))?;
        Ok(Ok(ThreadState { registers, extended, mask, rseq }))
    }

    /// Writes the state back to a stopped thread.
    pub(crate) fn write(&self, tid: i32) -> Result<(), Quarantine> {
        let failed = |what: &'static str| move || format!("{what} of thread {tid}");
        ptrace::set_registers(tid, &self.registers)
            .or_quarantine(Reason::RegistersNotRestored, failed("registers"))?;
        ptrace::set_extended_state(tid, &self.extended)
            .or_quarantine(Reason::RegistersNotRestored, failed("extended state"))?;
        ptrace::set_signal_mask(tid, self.mask)
            .or_quarantine(Reason::RegistersNotRestored, failed("signal mask"))
    }

    /// The registers for a run of injected code at `rip`. Based on the recorded ones, since the current
    /// ones may be hostile (32-bit segments), with plain flags: a set trap or direction flag would be obeyed.
    /// The agent needs no stack; a stack pointer of 0 is on no alternate signal stack, which could not be
    /// replaced otherwise.
    pub(crate) fn for_injection(&self, rip: u64) -> Registers {
        Registers { rip, rsp: 0, orig_rax: u64::MAX, rax: 0, eflags: 0x202, ..self.registers }
    }
}

/// The registers put back before the system call that the thread sleeps in, or `None` if it does not sleep
/// in one that may be started again.
///
/// Without this, stopping by ptrace leaks EINTR out of epoll_wait, which no signal would have caused.
fn canonical(regs: &Registers) -> Option<Registers> {
    let result = regs.rax.cast_signed();
    restartable(regs.orig_rax)?;
    if result != -EINTR && !RESTART.contains(&-result) {
        return None;
    }
    // The instruction `syscall` has two bytes.
    Some(Registers { rax: regs.orig_rax, rip: regs.rip.wrapping_sub(2), orig_rax: u64::MAX, ..*regs })
}

/// System calls that answer a wake-up by an ignored signal with `EINTR`, and have done nothing then.
const INTERRUPTIBLE: &[u64] = &[
    43,  // accept, and the next two, on a socket with a time-out
    45,  // recvfrom
    47,  // recvmsg
    65,  // semop
    128, // rt_sigtimedwait
    208, // io_getevents
    220, // semtimedop
    232, // epoll_wait
    281, // epoll_pwait
    288, // accept4
    333, // io_pgetevents
    441, // epoll_pwait2
];

/// Code segment of 64-bit programs; others number their calls differently.
const USER_CS: u64 = 0x33;
/// The kernel restarts the call unless a handler runs.
const ERESTARTNOHAND: i64 = 514;

/// For a thread that a tracer stopped on its way out of an interrupted system call: the result that makes the
/// kernel restart the call, unless a handler is going to run, whereupon it answers `EINTR` as it should.
pub(crate) fn quietly_restarted(regs: &Registers) -> Option<i64> {
    let interrupted = regs.cs == USER_CS
        && regs.rax.cast_signed() == -EINTR
        && INTERRUPTIBLE.binary_search(&regs.orig_rax).is_ok();
    interrupted.then_some(-ERESTARTNOHAND)
}

/// The same for a thread that is let go by a checkpoint that was not taken, so that another can be.
///
/// Left to itself the kernel goes on with a poll or a sleep as `restart_syscall`. Which call that was and what is
/// left of its time stands in the kernel alone, so a thread in it cannot be recorded: it counts as busy, and one
/// that waits without end would be busy for ever. So the call starts anew, with its whole time.
pub(crate) fn restarted_as_itself(regs: &Registers) -> Option<i64> {
    const ERESTART_RESTARTBLOCK: i64 = 516;
    let by_the_kernel = regs.cs == USER_CS
        && regs.rax.cast_signed() == -ERESTART_RESTARTBLOCK
        && restartable(regs.orig_rax).is_some();
    if by_the_kernel { Some(-ERESTARTNOHAND) } else { quietly_restarted(regs) }
}

fn busy(tid: i32, regs: &Registers) -> String {
    match regs.orig_rax.cast_signed() {
        -1 => format!("thread {tid} runs at {:#x}", regs.rip),
        number => format!("thread {tid} in system call {number} with result {}", regs.rax.cast_signed()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(orig_rax: i64, rax: i64) -> Registers {
        // SAFETY is not needed: a register set can be made from a live thread only, so take our own fields.
        Registers {
            r15: 1,
            r14: 2,
            r13: 3,
            r12: 4,
            rbp: 5,
            rbx: 6,
            r11: 7,
            r10: 8,
            r9: 9,
            r8: 10,
            rax: rax.cast_unsigned(),
            rcx: 11,
            rdx: 12,
            rsi: 13,
            rdi: 14,
            orig_rax: orig_rax.cast_unsigned(),
            rip: 0x1002,
            cs: 0x33,
            eflags: 0x246,
            rsp: 15,
            ss: 0x2b,
            fs_base: 16,
            gs_base: 17,
            ds: 0,
            es: 0,
            fs: 0,
            gs: 0,
        }
    }

    #[test]
    fn an_interrupted_sleep_is_put_back_before_its_call() {
        for (call, result) in [(232, -4), (281, -4), (202, -512), (0, -512), (34, -514), (7, -516)] {
            let c = canonical(&regs(call, result)).expect("restartable");
            assert_eq!((c.rip, c.rax, c.orig_rax), (0x1000, call.cast_unsigned(), u64::MAX), "call {call}");
        }
    }

    #[test]
    fn only_calls_that_would_not_have_been_interrupted_are_restarted() {
        assert!(INTERRUPTIBLE.is_sorted());
        assert_eq!(quietly_restarted(&regs(232, -4)), Some(-514), "epoll_wait");
        assert_eq!(quietly_restarted(&regs(232, -514)), None, "the kernel restarts it anyway");
        assert_eq!(quietly_restarted(&regs(232, 1)), None, "a finished call");
        assert_eq!(quietly_restarted(&regs(-1, -4)), None, "user code");
        assert_eq!(quietly_restarted(&regs(42, -4)), None, "a connect goes on in the background");
        assert_eq!(quietly_restarted(&Registers { cs: 0x23, ..regs(232, -4) }), None, "a 32-bit program");
    }

    #[test]
    fn a_thread_that_is_let_go_is_found_in_its_own_call_again() {
        assert_eq!(restarted_as_itself(&regs(7, -516)), Some(-514), "poll");
        assert_eq!(restarted_as_itself(&regs(232, -4)), Some(-514), "epoll_wait");
        assert_eq!(restarted_as_itself(&regs(202, -512)), None, "the kernel does it");
        assert_eq!(restarted_as_itself(&regs(219, -516)), None, "nobody knows what it was");
        assert_eq!(quietly_restarted(&regs(7, -516)), None, "the time goes on");
    }

    #[test]
    fn a_finished_or_unknown_call_is_busy() {
        assert!(canonical(&regs(0, 5)).is_none(), "a read that returned");
        assert!(canonical(&regs(1, -512)).is_none(), "a write is not known to be idle");
        assert!(canonical(&regs(-1, 0)).is_none(), "user code");
        assert!(canonical(&regs(202, -11)).is_none(), "a futex call that returned EAGAIN");
    }

    #[test]
    fn injected_code_gets_plain_flags() {
        let mut registers = regs(0, -512);
        registers.eflags = 0x0ad7; // trap and direction flag among others
        let state = ThreadState { registers, extended: Vec::new(), mask: 0, rseq: ptrace::Rseq::default() };
        let injected = state.for_injection(0x5000);
        assert_eq!((injected.rip, injected.eflags, injected.orig_rax), (0x5000, 0x202, u64::MAX));
        assert_eq!(injected.fs_base, 16);
    }
}
