//! How others get the attention of a thread that waits for its tracees.

use crate::sys::wake;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ends [`Snapshot::serve`](crate::Snapshot::serve), now or when it is next called: put an order where the
/// serving thread will look, then ring.
///
/// Clones are one bell. It is for one thread that serves; any may ring.
#[derive(Debug, Clone, Default)]
pub struct Bell {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// 1: rung, and nobody has come yet.
    rung: AtomicU32,
    /// The thread to interrupt. The lock is held while the signal is sent, so that none is sent to a thread
    /// that has stopped listening, or to another with its number.
    listener: Mutex<Option<i32>>,
}

impl Bell {
    /// A bell that nobody listens to yet.
    #[must_use]
    pub fn new() -> Bell {
        Bell::default()
    }

    /// Rings. Once is enough, and remembered.
    pub fn ring(&self) {
        // First the flag, then the signal: see `wake`.
        self.inner.rung.store(1, Ordering::SeqCst);
        if let Some(tid) = *self.listener() {
            wake::interrupt(tid);
        }
    }

    /// The calling thread listens until the guard is dropped, which answers the bell.
    pub(crate) fn listen(&self) -> Listening<'_> {
        *self.listener() = Some(nix::unistd::gettid().as_raw());
        Listening { bell: self }
    }

    fn listener(&self) -> MutexGuard<'_, Option<i32>> {
        self.inner.listener.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A thread that listens.
pub(crate) struct Listening<'a> {
    bell: &'a Bell,
}

impl Listening<'_> {
    /// Whether it has rung.
    pub(crate) fn rung(&self) -> bool {
        self.flag().load(Ordering::SeqCst) != 0
    }

    /// 1 when it has rung.
    pub(crate) fn flag(&self) -> &AtomicU32 {
        &self.bell.inner.rung
    }
}

impl Drop for Listening<'_> {
    fn drop(&mut self) {
        *self.bell.listener() = None;
        // Whoever rang has put its order where it belongs before, and this thread looks there after this.
        self.flag().store(0, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn every_order_is_found_by_a_thread_that_sleeps_between_them() {
        const ORDERS: u32 = 5_000;
        let (orders, inbox) = mpsc::channel();
        let bell = Bell::new();
        let ringer = bell.clone();
        let server = std::thread::spawn(move || {
            wake::prepare_thread().expect("a handler");
            let mut got = 0;
            while got < ORDERS {
                match inbox.try_recv() {
                    Ok(order) => {
                        assert_eq!(order, got);
                        got += 1;
                    }
                    Err(_) => {
                        let listening = bell.listen();
                        while !listening.rung() {
                            wake::sleep(listening.flag());
                        }
                    }
                }
            }
        });
        for order in 0..ORDERS {
            orders.send(order).expect("somebody listens");
            ringer.ring();
        }
        server.join().expect("all were found");
    }
}
