//! Bounded waits for tracees.
//!
//! A wait of [`wake`] ends when its thread gets the signal; here a timer sends it. The timer runs through a
//! whole operation and ticks rarely, while each step of the operation only notes its own deadline, which costs
//! no system call: a wait ends at the first tick after its deadline.

use super::wake;
use nix::errno::Errno;
use std::io;
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

/// The first tick of an operation. Its waits are over by then, unless something is in the way; then the first
/// tick is when to look what.
const FIRST: Duration = Duration::from_millis(2);
/// The later ones: by how much a step may exceed its deadline.
const TICK: Duration = Duration::from_millis(50);

/// A timer that interrupts waits of the thread that made it.
#[derive(Debug)]
pub(crate) struct Alarm {
    timer: libc::timer_t,
    deadline: Instant,
}

impl Alarm {
    /// An alarm for the calling thread, not yet running. It must be used on this thread only.
    pub(crate) fn new() -> io::Result<Alarm> {
        wake::prepare_thread()?;
        // SAFETY: an all-zero sigevent is valid; the fields used are set below.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = wake::signal();
        event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
        let mut timer = std::ptr::null_mut();
        // SAFETY: `event` and `timer` live through the call; the kernel copies them.
        Errno::result(unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) })?;
        Ok(Alarm { timer, deadline: Instant::now() })
    }

    /// An operation begins: ticks from now on.
    pub(crate) fn start(&mut self) {
        self.set(FIRST, TICK);
    }

    /// The operation is over: no more ticks.
    pub(crate) fn stop(&mut self) {
        self.set(Duration::ZERO, Duration::ZERO);
    }

    /// Begins a step of the operation that may take `length`.
    pub(crate) fn step(&mut self, length: Duration) {
        self.deadline = Instant::now() + length;
    }

    /// Whether the time of the step is up.
    pub(crate) fn expired(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn set(&self, first: Duration, repeat: Duration) {
        let spec = libc::itimerspec { it_value: timespec(first), it_interval: timespec(repeat) };
        // SAFETY: the timer is ours and lives as long as `self`; `spec` is initialised. It cannot fail with
        // these values, and if it did, the operation would lose its bound only until the next one starts it.
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
    fn a_wait_ends_after_the_deadline_of_its_step() {
        let mut alarm = Alarm::new().expect("a timer");
        alarm.start();
        for _ in 0..3 {
            alarm.step(Duration::from_millis(5));
            while !alarm.expired() {
                wake::sleep(&wake::NEVER);
            }
        }
        alarm.stop();
    }
}
