//! Bounded waits for tracees.
//!
//! ptrace events arrive only through `waitpid`, which has no time-out. Polling with `WNOHANG` was measured to
//! be twenty times worse on two cores, `SIGCHLD` is not delivered per thread, and a pidfd of a live tracee
//! does not tell that it stopped. So the wait blocks, and a timer of this very thread interrupts it: the
//! signal's handler does nothing and is installed without `SA_RESTART`, hence `waitpid` returns `EINTR`.
//! The timer repeats, so a shot that falls between the check and the wait is followed by another.

use nix::errno::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// How soon a missed shot is repeated.
const REPEAT: Duration = Duration::from_millis(10);

/// The signal used: real-time, so that nothing in the standard library or in tokio listens to it.
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 9
}

extern "C" fn ignore(_: libc::c_int) {}

/// Installs the empty handler, once per process.
fn install() -> Result<(), Errno> {
    static DONE: OnceLock<Result<(), Errno>> = OnceLock::new();
    *DONE.get_or_init(|| {
        // SAFETY: an all-zero sigaction is valid: no flags (so no SA_RESTART), an empty mask.
        let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as usize;
        // SAFETY: `action` is fully initialised; the handler touches nothing and is async-signal-safe.
        Errno::result(unsafe { libc::sigaction(signal(), &raw const action, std::ptr::null_mut()) }).map(drop)
    })
}

/// A timer that interrupts blocking calls of the thread that made it.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: libc::timer_t,
    deadline: Instant,
}

impl Alarm {
    /// An alarm for the calling thread, not yet armed. It must be used on this thread only.
    pub(crate) fn new() -> io::Result<Alarm> {
        install()?;
        let mut mask = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: sigemptyset initialises the set it is given.
        unsafe { libc::sigemptyset(mask.as_mut_ptr()) };
        // SAFETY: the set was initialised above, the number is a valid signal.
        unsafe { libc::sigaddset(mask.as_mut_ptr(), signal()) };
        // SAFETY: the set is initialised; only the calling thread's mask changes.
        unsafe { libc::pthread_sigmask(libc::SIG_UNBLOCK, mask.as_ptr(), std::ptr::null_mut()) };

        // SAFETY: an all-zero sigevent is valid; the fields used are set below.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer = std::ptr::null_mut();
        // SAFETY: `event` and `timer` live through the call; the kernel copies them.
        Errno::result(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) })?;
        Ok(Alarm { timer, deadline: Instant::now() })
    }

    /// Starts a step that may take `length`.
    pub(crate) fn arm(&mut self, length: Duration) {
        self.deadline = Instant::now() + length;
        self.set(length, REPEAT);
    }

    /// The step is over: no more interruptions.
    pub(crate) fn disarm(&mut self) {
        self.set(Duration::ZERO, Duration::ZERO);
    }

    /// Whether the time of the step is up.
    pub(crate) fn expired(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn set(&self, first: Duration, repeat: Duration) {
        let spec = libc::itimerspec { it_value: timespec(first), it_interval: timespec(repeat) };
        // SAFETY: the timer is ours and lives as long as `self`; `spec` is initialised. It cannot fail with
        // these values, and if it did, the step would lose its bound only until the next one arms it.
        unsafe { libc::timer_settime(self.timer, 0, &raw const spec, std::ptr::null_mut()) };
    }
}

fn timespec(d: Duration) -> libc::timespec {
    libc::timespec {
        tv_sec: i64::try_from(d.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(d.subsec_nanos()),
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is not used after this.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blocking_call_is_interrupted_at_the_deadline() {
        let mut alarm = Alarm::new().expect("a timer");
        alarm.arm(Duration::from_millis(5));
        // A pipe nobody writes to: the read would block for ever.
        let (read, _write) = nix::unistd::pipe().expect("a pipe");
        let mut byte = [0u8];
        loop {
            match nix::unistd::read(&read, &mut byte) {
                Err(Errno::EINTR) if alarm.expired() => break,
                Err(Errno::EINTR) => {}
                other => panic!("the read ended with {other:?}"),
            }
        }
    }
}
