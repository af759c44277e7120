//! A thread that keeps a snapshot.
//!
//! ```text
//!   Keeper --order, ring--> thread: order(&mut kept), and between orders Snapshot::serve
//! ```

use crate::bell::Bell;
use crate::rewind::Snapshot;
use std::fmt;
use std::io;
use std::sync::mpsc::{self, TryRecvError};

/// What a [`Keeper`] keeps: something that has a snapshot, sooner or later.
pub trait Kept {
    /// The snapshot to serve between orders, if there is one now.
    fn snapshot(&mut self) -> Option<&mut Snapshot>;
}

impl Kept for Snapshot {
    fn snapshot(&mut self) -> Option<&mut Snapshot> {
        Some(self)
    }
}

impl<K: Kept> Kept for Option<K> {
    fn snapshot(&mut self) -> Option<&mut Snapshot> {
        self.as_mut()?.snapshot()
    }
}

type Order<K> = Box<dyn FnOnce(&mut K) + Send>;

/// An OS thread that owns a snapshot, lets the container run between orders, and does one order at a time.
///
/// Dropping it ends the thread once it has done its orders; what it keeps is dropped there. An order that
/// panics ends the thread, too, and a container that was being worked on is killed.
pub struct Keeper<K> {
    // Dropped before the bell, which then tells the thread that no order will come.
    orders: mpsc::Sender<Order<K>>,
    bell: LastRing,
}

impl<K> fmt::Debug for Keeper<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keeper").finish_non_exhaustive()
    }
}

/// The thread has ended: an order panicked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the thread that kept the snapshot has ended")]
pub struct Gone;

struct LastRing(Bell);

impl Drop for LastRing {
    fn drop(&mut self) {
        self.0.ring();
    }
}

impl<K: Kept + 'static> Keeper<K> {
    /// Starts a thread that keeps what `make` makes there.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(name: String, make: impl FnOnce() -> K + Send + 'static) -> io::Result<Keeper<K>> {
        let (orders, inbox) = mpsc::channel();
        let bell = Bell::new();
        let ours = bell.clone();
        std::thread::Builder::new().name(name).spawn(move || keep(make(), &inbox, &ours))?;
        Ok(Keeper { orders, bell: LastRing(bell) })
    }

    /// Gives an order and does not wait for it. How many may wait is the caller's affair.
    ///
    /// # Errors
    /// If the thread has ended. If it ends before the order is done, the order is dropped.
    pub fn order(&self, order: impl FnOnce(&mut K) + Send + 'static) -> Result<(), Gone> {
        self.orders.send(Box::new(order)).map_err(|_| Gone)?;
        self.bell.0.ring();
        Ok(())
    }

    /// Gives an order and waits for its answer.
    ///
    /// # Errors
    /// If the thread ends before the order is done.
    pub fn ask<T: Send + 'static>(
        &self,
        order: impl FnOnce(&mut K) -> T + Send + 'static,
    ) -> Result<T, Gone> {
        let (answer, answered) = mpsc::sync_channel(1);
        self.order(move |kept| {
            // Nobody waits any more: then nobody wants it.
            let _ = answer.send(order(kept));
        })?;
        answered.recv().map_err(|_| Gone)
    }
}

fn keep<K: Kept>(mut kept: K, inbox: &mpsc::Receiver<Order<K>>, bell: &Bell) {
    loop {
        match inbox.try_recv() {
            Ok(order) => order(&mut kept),
            Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => match kept.snapshot() {
                // An order that comes now rings the bell, even before this begins.
                Some(snapshot) => snapshot.serve(bell),
                None => match inbox.recv() {
                    Ok(order) => order(&mut kept),
                    Err(mpsc::RecvError) => return,
                },
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_done_in_turn_and_a_panic_is_told() {
        let keeper: Keeper<Option<Snapshot>> = Keeper::start("keeper".into(), || None).expect("a thread");
        let first = keeper.ask(|_| std::thread::current().id()).expect("answered");
        let second = keeper.ask(|_| std::thread::current().id()).expect("answered");
        assert_eq!(first, second);
        assert_eq!(keeper.ask(|_| panic!("an order fails")), Err::<(), _>(Gone));
        assert_eq!(keeper.ask(|_| ()), Err(Gone));
    }
}
