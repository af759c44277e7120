//! What a seal and a rewind tell, and why a rewind may be impossible.

use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a seal covered and what it cost.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SealReport {
    /// Writable mounts covered, the root included.
    pub mounts: u64,
    /// Writable mounts left alone, as [`Options::shared`](crate::Options::shared) has it.
    pub mounts_shared: u64,
    /// Entries recorded.
    pub entries: u64,
    /// Regular files whose contents were copied.
    pub files_copied: u64,
    /// Bytes copied into the store.
    pub bytes_copied: u64,
    /// Time taken.
    pub duration: Duration,
}

/// The kinds of change a request can leave in the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChangeKind {
    /// An entry that was not there.
    Added,
    /// An entry that is gone.
    Removed,
    /// Another entry stands under the same name.
    Replaced,
    /// Contents of a regular file.
    Contents,
    /// Mode, owner, times, extended attributes; contents as they were.
    Metadata,
    /// An entry found under another name.
    Renamed,
    /// Only the time of last access.
    AccessTime,
}

impl ChangeKind {
    /// All kinds, in the order of [`Changes::counts`].
    pub const ALL: [Self; 7] = [
        Self::Added,
        Self::Removed,
        Self::Replaced,
        Self::Contents,
        Self::Metadata,
        Self::Renamed,
        Self::AccessTime,
    ];

    /// The name used in logs and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Added => "added",
            Self::Removed => "removed",
            Self::Replaced => "replaced",
            Self::Contents => "contents",
            Self::Metadata => "metadata",
            Self::Renamed => "renamed",
            Self::AccessTime => "access_time",
        }
    }
}

/// One change, by the path the container knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// What happened.
    pub kind: ChangeKind,
    /// Absolute path inside the container. Any bytes may be in it: show it with [`shown`].
    pub path: PathBuf,
}

/// What a request left behind in the files: counts by kind, and the first paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Changed entries by kind, in the order of [`ChangeKind::ALL`]. An added directory counts
    /// once, whatever is below it.
    pub counts: [u64; ChangeKind::ALL.len()],
    /// The first changes, at most [`Options::report_paths_max`](crate::Options::report_paths_max).
    pub paths: Vec<Change>,
    /// Whether there was more than was counted: a root that is swapped is not examined to the end.
    pub partial: bool,
}

impl Changes {
    /// How many changes of one kind.
    #[must_use]
    pub fn count(&self, kind: ChangeKind) -> u64 {
        self.counts[kind as usize]
    }

    /// How many changes in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Whether nothing changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.total() == 0 && !self.partial
    }

    pub(crate) fn note(&mut self, kind: ChangeKind, path: &Path, paths_max: usize) {
        self.counts[kind as usize] += 1;
        if self.paths.len() < paths_max {
            self.paths.push(Change { kind, path: path.to_owned() });
        }
    }
}

/// What one rewind of the files found and did.
///
/// The counts of work are there to be tested: `files_rewritten`, `entries_removed` and
/// `entries_recreated` follow the number of changes, `entries_examined` the number of entries that
/// were sealed (not those of the image).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FilesReport {
    /// What the request had left behind.
    pub changes: Changes,
    /// Entries whose status was read.
    pub entries_examined: u64,
    /// Entries compared by content because their change time could not be trusted to tell.
    pub entries_compared: u64,
    /// Regular files whose contents were written back.
    pub files_rewritten: u64,
    /// Bytes written back.
    pub bytes_written: u64,
    /// Entries removed.
    pub entries_removed: u64,
    /// Entries created again.
    pub entries_recreated: u64,
    /// Whether the root was swapped for a fresh overlay. Working directories that are not exactly the
    /// root are then still on the old one: the caller has to send the tasks back to theirs.
    pub swapped: bool,
    /// Why it was not, when so much had changed that it would have been cheaper.
    pub unswapped: Option<&'static str>,
    /// Time taken by looking for changes.
    pub examine: Duration,
    /// Time taken by undoing them.
    pub undo: Duration,
    /// Time taken by checking the result.
    pub verify: Duration,
}

impl FilesReport {
    /// How many entries were put back, removed or created again.
    #[must_use]
    pub fn undone(&self) -> u64 {
        self.files_rewritten + self.entries_removed + self.entries_recreated
    }
}

/// Why the files of a container could not be put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum FilesReason {
    /// The container's first process is gone.
    ContainerGone,
    /// The mounts are not those of the seal.
    MountsChanged,
    /// More entries changed than a rewind undoes.
    TooManyChanges,
    /// More bytes changed than a rewind puts back.
    TooManyBytes,
    /// A directory lies deeper than a rewind follows.
    TooDeep,
    /// The rewind took longer than allowed.
    Deadline,
    /// An inode flag (immutable, append-only and the like) changed.
    InodeFlagsChanged,
    /// A socket in the file tree was removed: a new one at its path would not be the same.
    SocketReplaced,
    /// A POSIX message queue that was there at the seal changed or is gone.
    MessageQueueChanged,
    /// An entry was replaced or removed that a process of the container still holds open.
    HeldOpen,
    /// An image layer could not be read, or uses a feature that is not followed.
    LowerLayer,
    /// A system call failed while looking for changes.
    ExamineFailed,
    /// A system call failed while undoing a change.
    UndoFailed,
    /// Putting a fresh root in the place of the old one failed halfway.
    SwapFailed,
    /// The check after the undoing found a difference.
    NotRestored,
}

impl FilesReason {
    /// All reasons.
    pub const ALL: [Self; 15] = [
        Self::ContainerGone,
        Self::MountsChanged,
        Self::TooManyChanges,
        Self::TooManyBytes,
        Self::TooDeep,
        Self::Deadline,
        Self::InodeFlagsChanged,
        Self::SocketReplaced,
        Self::MessageQueueChanged,
        Self::HeldOpen,
        Self::LowerLayer,
        Self::ExamineFailed,
        Self::UndoFailed,
        Self::SwapFailed,
        Self::NotRestored,
    ];

    /// The name used in logs and metric labels.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::ContainerGone => "files_container_gone",
            Self::MountsChanged => "files_mounts_changed",
            Self::TooManyChanges => "files_too_many_changes",
            Self::TooManyBytes => "files_too_many_bytes",
            Self::TooDeep => "files_too_deep",
            Self::Deadline => "files_deadline",
            Self::InodeFlagsChanged => "files_inode_flags_changed",
            Self::SocketReplaced => "files_socket_replaced",
            Self::MessageQueueChanged => "files_message_queue_changed",
            Self::HeldOpen => "files_held_open",
            Self::LowerLayer => "files_lower_layer",
            Self::ExamineFailed => "files_examine_failed",
            Self::UndoFailed => "files_undo_failed",
            Self::SwapFailed => "files_swap_failed",
            Self::NotRestored => "files_not_restored",
        }
    }

    /// One sentence for an operator.
    #[must_use]
    pub fn explain(self) -> &'static str {
        match self {
            Self::ContainerGone => "the container's first process ended, so its files cannot be reached",
            Self::MountsChanged => {
                "something was mounted, unmounted or remounted in the container since its checkpoint"
            }
            Self::TooManyChanges => {
                "the request changed more files than a rewind undoes; a new container is cheaper"
            }
            Self::TooManyBytes => {
                "the request changed more file contents than a rewind puts back; a new container is cheaper"
            }
            Self::TooDeep => "the request made directories deeper than a rewind follows",
            Self::Deadline => "putting the files back took longer than allowed",
            Self::InodeFlagsChanged => {
                "a file's immutable, append-only or similar flag changed, which needs a privilege a container should not have"
            }
            Self::SocketReplaced => {
                "a socket file of the runtime was removed or replaced, and a new one would lead nowhere"
            }
            Self::MessageQueueChanged => {
                "a POSIX message queue of the runtime changed, and its messages cannot be put back"
            }
            Self::HeldOpen => "a file was replaced or removed that the runtime still holds open or mapped",
            Self::LowerLayer => "an image layer could not be read to restore a file from it",
            Self::ExamineFailed => "the files could not be examined",
            Self::UndoFailed => "a change to the files could not be undone",
            Self::SwapFailed => "putting a fresh root in the place of the old one failed halfway",
            Self::NotRestored => "the files differ from the checkpoint although every change was undone",
        }
    }
}

impl fmt::Display for FilesReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The files could not be put back: the container must be destroyed.
#[derive(Debug, thiserror::Error)]
#[error("{}: {detail}: {}", .reason.name(), shown(.path))]
pub struct FilesQuarantine {
    /// Why, as data.
    pub reason: FilesReason,
    /// The path inside the container it happened at; `/` when it concerns all of them.
    pub path: PathBuf,
    /// What was being done.
    pub detail: &'static str,
    /// The system call's error, when there was one.
    #[source]
    pub source: Option<std::io::Error>,
}

impl FilesQuarantine {
    pub(crate) fn new(reason: FilesReason, path: &Path, detail: &'static str) -> Self {
        Self { reason, path: path.to_owned(), detail, source: None }
    }

    pub(crate) fn failed(
        reason: FilesReason,
        path: &Path,
        detail: &'static str,
        source: impl Into<std::io::Error>,
    ) -> Self {
        Self { reason, path: path.to_owned(), detail, source: Some(source.into()) }
    }
}

/// A path made safe for a log line: control characters, quotes and bytes that are not UTF-8 are
/// escaped, and what is longer than 512 bytes is cut.
#[must_use]
pub fn shown(path: &Path) -> String {
    const BYTES_MAX: usize = 512;
    let bytes = path.as_os_str().as_bytes();
    let cut = &bytes[..bytes.len().min(BYTES_MAX)];
    let mut text = String::with_capacity(cut.len());
    for chunk in cut.utf8_chunks() {
        for c in chunk.valid().chars() {
            if c.is_control() || c == '"' || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    if cut.len() < bytes.len() {
        text.push_str("...");
    }
    text
}
