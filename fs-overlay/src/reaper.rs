//! Removes what swaps leave behind, where nobody waits for it.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread;

use crate::swap;

/// A root that was swapped out.
#[derive(Debug)]
pub(crate) struct Replaced {
    /// It and its upper: the last descriptor of a mount that is mounted nowhere unmounts it, which may
    /// take long.
    pub(crate) root: [OwnedFd; 2],
    /// What to remove, unless it is the container's own.
    pub(crate) directory: Option<PathBuf>,
}

/// Most roots that wait to be removed. What comes on top stays until its container is removed,
/// since it lies in the container's own directory.
const WAITING_MAX: usize = 256;

/// Has a root let go and removed by a thread of its own.
pub(crate) fn take(replaced: Replaced) {
    static QUEUE: OnceLock<Option<SyncSender<Replaced>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (queue, waiting) = sync_channel::<Replaced>(WAITING_MAX);
        let work = move || {
            for Replaced { root, directory } in waiting {
                drop(root);
                let Some(directory) = directory else { continue };
                if let Err(error) = swap::remove(&directory) {
                    // The container may be on its way out, and take its directory with it.
                    tracing::debug!(?directory, %error, "an upper that was swapped out stays");
                }
            }
        };
        thread::Builder::new().name("files-reaper".to_owned()).spawn(work).ok().map(|_| queue)
    });
    let sent = queue.as_ref().map(|queue| queue.try_send(replaced));
    if let Some(Err(TrySendError::Full(replaced) | TrySendError::Disconnected(replaced))) = sent {
        tracing::debug!(directory = ?replaced.directory, "an upper that was swapped out stays");
    }
}
