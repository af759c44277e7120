//! Waking who waits for the engine to write into a container's log.
//!
//! Output is in the file some 0.3 ms after the answer; looking for it every few milliseconds would keep the
//! container busy for longer than the request did. One inotify instance serves all containers, since a user may
//! have few of them (128 by default).
//!
//! ```text
//!   engine writes ──► inotify ──► reader task ──► the follower of that file, if it waits
//!                                      └── if it does not: that file is told no more until it waits again
//! ```
//!
//! So a function that prints all the time wakes us only while its output is collected. Where inotify is not to be
//! had, and for what it misses (a file that is replaced), followers look again by themselves.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use inotify::{Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::sync::Notify;

use super::super::sys;

/// For a file nobody waits for: something that happens once, at its end. A changed mask costs much less than
/// taking the watch away and making it anew.
const QUIET: WatchMask = WatchMask::DELETE_SELF;

/// After so many writes that nobody wanted to know of, a file is told no more.
const STRAYS_MAX: u32 = 4;

/// How long who waits for an event waits before it looks all the same.
const LOOK_ANYWAY: Duration = Duration::from_millis(20);

/// Tells followers that their files have grown.
#[derive(Debug)]
pub(in crate::container) struct LogWatches {
    watches: Watches,
    files: Mutex<HashMap<i32, Arc<Watched>>>,
}

/// One file.
#[derive(Debug)]
struct Watched {
    path: PathBuf,
    grown: Notify,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Somebody waits.
    wanted: bool,
    /// Writes are told.
    armed: bool,
    /// How many were told while nobody waited, since somebody did.
    strays: u32,
    /// The watch, of the file that was at the path when it was armed.
    watch: Option<WatchDescriptor>,
}

impl LogWatches {
    /// Starts the reader task. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the system gives no inotify instance.
    pub(in crate::container) fn start() -> io::Result<Arc<Self>> {
        let mut inotify = Inotify::init()?;
        let readable = sys::watched(inotify.as_fd().try_clone_to_owned()?)?;
        let all = Arc::new(Self { watches: inotify.watches(), files: Mutex::default() });
        let weak = Arc::downgrade(&all);
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok(mut ready) = readable.readable().await {
                let Some(all) = weak.upgrade() else { return };
                match inotify.read_events(&mut buffer) {
                    Ok(events) => events.for_each(|event| all.told(&event.wd)),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => ready.clear_ready(),
                    Err(error) => {
                        tracing::warn!(%error, "inotify cannot be read, logs are looked at now and then");
                        return;
                    }
                }
            }
        });
        Ok(all)
    }

    fn told(&self, watch: &WatchDescriptor) {
        let file = locked(&self.files).get(&watch.get_watch_descriptor_id()).cloned();
        let Some(file) = file else { return };
        let mut state = locked(&file.state);
        if state.wanted {
            file.grown.notify_one();
            return;
        }
        // One is usual: a line that was read because of the one before it.
        state.strays += 1;
        if state.armed && state.strays >= STRAYS_MAX {
            state.armed = false;
            let _ = self.watches.clone().add(&file.path, QUIET);
        }
    }

    fn arm(&self, file: &Arc<Watched>) {
        let mut state = locked(&file.state);
        state.wanted = true;
        state.strays = 0;
        if state.armed {
            return;
        }
        let watch = match self.watches.clone().add(&file.path, WatchMask::MODIFY) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::debug!(path = %file.path.display(), %error, "a log cannot be watched");
                return;
            }
        };
        state.armed = true;
        if state.watch.as_ref() != Some(&watch) {
            locked(&self.files).insert(watch.get_watch_descriptor_id(), Arc::clone(file));
            if let Some(old) = state.watch.replace(watch) {
                self.forget(old);
            }
        }
    }

    fn forget(&self, watch: WatchDescriptor) {
        locked(&self.files).remove(&watch.get_watch_descriptor_id());
        // The kernel has taken it away already when the file is gone.
        let _ = self.watches.clone().remove(watch);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A follower's share.
#[derive(Debug)]
pub(super) struct LogWatch {
    all: Arc<LogWatches>,
    file: Arc<Watched>,
}

impl LogWatch {
    pub(super) fn new(all: Arc<LogWatches>, path: &Path) -> Self {
        let file =
            Watched { path: path.to_owned(), grown: Notify::new(), state: Mutex::new(State::default()) };
        Self { all, file: Arc::new(file) }
    }

    /// From now on writes are told. What was written before must be looked for afterwards.
    pub(super) fn begin(&self) {
        self.all.arm(&self.file);
    }

    /// Nobody waits any more.
    pub(super) fn end(&self) {
        locked(&self.file.state).wanted = false;
    }

    /// There is another file at the path.
    pub(super) fn replaced(&self) {
        locked(&self.file.state).armed = false;
        self.all.arm(&self.file);
    }

    /// Waits for a write, and no longer than [`LOOK_ANYWAY`]. False, at once: there is nothing to wait for, since
    /// the file cannot be watched.
    pub(super) async fn grown(&self) -> bool {
        if !locked(&self.file.state).armed {
            return false;
        }
        let _ = tokio::time::timeout(LOOK_ANYWAY, self.file.grown.notified()).await;
        true
    }
}

impl Drop for LogWatch {
    fn drop(&mut self) {
        if let Some(watch) = locked(&self.file.state).watch.take() {
            self.all.forget(watch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn armed(watch: &LogWatch) -> bool {
        locked(&watch.file.state).armed
    }

    async fn until(what: &str, condition: impl Fn() -> bool) {
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while !condition() {
            assert!(std::time::Instant::now() < deadline, "never: {what}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    #[tokio::test]
    async fn writes_wake_who_waits_and_nobody_else() {
        let directory = tempfile::tempdir().expect("directory");
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let mut files = paths.each_ref().map(|path| File::create(path).expect("file"));
        let all = LogWatches::start().expect("inotify");
        let watches = paths.each_ref().map(|path| LogWatch::new(Arc::clone(&all), path));
        watches.iter().for_each(LogWatch::begin);
        files[0].write_all(b"x").expect("write");
        watches[0].file.grown.notified().await;
        // Nobody waits: some writes are told to nobody, and are the last to be told.
        watches[0].end();
        for n in 1..=STRAYS_MAX {
            assert!(armed(&watches[0]));
            files[0].write_all(b"x").expect("write");
            until("a stray", || locked(&watches[0].file.state).strays >= n).await;
        }
        assert!(!armed(&watches[0]));
        assert!(!watches[0].grown().await);
        assert!(armed(&watches[1]));
        // And again.
        watches[0].begin();
        files[0].write_all(b"x").expect("write");
        watches[0].file.grown.notified().await;
        files[1].write_all(b"x").expect("write");
        watches[1].file.grown.notified().await;
    }

    #[tokio::test]
    async fn a_file_that_takes_the_place_is_watched_and_nothing_is_left_in_the_end() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("a");
        File::create(&path).expect("file");
        let all = LogWatches::start().expect("inotify");
        let watch = LogWatch::new(Arc::clone(&all), &path);
        watch.begin();
        std::fs::rename(&path, directory.path().join("b")).expect("rename");
        let mut file = File::create(&path).expect("file");
        watch.replaced();
        file.write_all(b"x").expect("write");
        watch.file.grown.notified().await;
        assert_eq!(locked(&all.files).len(), 1);
        drop(watch);
        assert_eq!(locked(&all.files).len(), 0);
    }

    #[tokio::test]
    async fn what_is_not_there_is_not_waited_for() {
        let all = LogWatches::start().expect("inotify");
        let watch = LogWatch::new(all, Path::new("/nowhere/x.log"));
        watch.begin();
        assert!(!watch.grown().await);
    }
}
