//! A note on local disk of every activation that was taken, so that none is lost without an answer
//! and none runs twice when the process dies (design section 9).
//!
//! ```text
//!  taken ──────────► started ──────────► acked ───────────► settled    the life of one entry
//!  (before its        (just before        (the bus took      (the store took
//!   offset is          `/run`)             the last ack)      the record, or
//!   committed)                                                 none is owed)
//!
//!  journal.<n>:  magic │ origin │ position │ recent ids │ open entries │ end of snapshot │ records…
//!                └───────────── written when the segment begins ───────────────────────┘ └ appended
//! ```
//!
//! At the next start every entry that is open, started or not, is answered as a whisk error and
//! never run: whoever asked has waited for a process that is gone. One that was acked before is not
//! answered again, but its record is still owed.
//! The position says where consumption goes on, also if the bus did not get the last commit.
//! The ids seen last are kept, so that a record that is delivered again is recognised.
//!
//! **What survives what.** A record is one `write` to the page cache: it survives any death of the
//! process, SIGKILL included. It is not flushed to the disk, because that would cost each
//! activation a flush. After a power cut the newest records may be missing: those activations stay
//! without an answer (the controller forces their completion, contract 7.2), and none runs twice,
//! because their offsets were committed to the bus before they were handed out.
//!
//! **Bounds.** A segment is closed after [`SEGMENT_BYTES`]; the next begins with a snapshot of what
//! is open and replaces it, so two segments exist for a moment and one otherwise.
//! A torn or damaged tail (each record has a checksum) ends the reading of a segment; what stands
//! before it counts.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{Flock, FlockArg};

use crate::bus::Offset;

/// First bytes of a segment; the digit is the version of the format.
const MAGIC: &[u8] = b"rewind journal 2\n";
/// A segment that has grown by this much since its snapshot is replaced.
const SEGMENT_BYTES: u64 = 4 << 20;
/// How many ids of answered activations are remembered. A bus delivers again what was taken after
/// the last commit (at most the hand-out window, contract 3.2) and what a controller's producer
/// sent twice (within its retries); this is several times both.
const RECENT: usize = 8192;
/// Longest record that is believed when reading; a note is a few hundred bytes.
const RECORD_BYTES_MAX: usize = 1 << 20;
/// Length and checksum in front of each record.
const FRAME_BYTES: usize = 8;

/// An activation id, as 16 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub [u8; 16]);

/// One activation that is about to be handed out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub key: Key,
    /// Where it stood in the topic.
    pub offset: Offset,
    /// How far it has come.
    pub progress: Progress,
    /// What is needed to answer it without the message; the journal does not look into it.
    pub note: Vec<u8>,
}

/// How far an activation has come that is not settled yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Progress {
    /// Its offset was committed.
    Taken,
    /// `/run` may have been sent.
    Started,
    /// The bus has its last acknowledgement; its record may not be stored.
    Acked,
}

/// Which topic of which bus the offsets belong to. Entries of another origin mean nothing here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// [`Bus::identity`](crate::bus::Bus::identity).
    pub bus: String,
    /// The invoker's own topic.
    pub topic: String,
}

/// What the last process left behind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Activations that were taken and not settled, by offset.
    pub open: Vec<Entry>,
    /// The offset after the last one taken; `None` for a new journal.
    pub next: Option<Offset>,
}

/// Why the journal cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Another process keeps it.
    #[error("journal {path:?} is kept by another process: does a second invoker with the same id run here?")]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// A file or directory operation failed.
    #[error("cannot {operation} {path:?}")]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
}

/// The journal of one invoker. All methods may be called from any thread; each holds a lock for
/// the time of one `write`.
#[derive(Debug)]
pub struct Journal {
    inner: Mutex<Inner>,
    /// Held for as long as the process keeps the journal.
    _lock: Flock<File>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    origin: Origin,
    state: State,
    segment: Segment,
}

#[derive(Debug)]
struct Segment {
    number: u64,
    path: PathBuf,
    file: File,
    /// Bytes that are known to be whole records.
    length: u64,
    /// Of these, the snapshot at the beginning.
    snapshot: u64,
    /// An append failed and could not be undone: the next one begins a new segment.
    broken: bool,
}

/// Everything the records say, in memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct State {
    next: Option<Offset>,
    open: HashMap<Key, Entry>,
    /// Ids no longer open, oldest first, and the same as a set.
    recent: VecDeque<Key>,
    known: HashSet<Key>,
}

impl Journal {
    /// Opens the journal in `dir`, which is created if absent, and takes over what it holds.
    ///
    /// # Errors
    /// [`JournalError::Locked`] if another process keeps it; [`JournalError::Io`] otherwise.
    /// Damaged content is no error: what can be read counts, the rest is reported in the log.
    pub fn open(dir: &Path, origin: Origin) -> Result<(Self, Recovered), JournalError> {
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io_error("create", dir))?;
        let lock = lock(&dir.join("lock"))?;
        let mut segments = segments(dir)?;
        let newest = segments.iter().map(|(number, _)| *number).max().unwrap_or(0);
        let state = read_newest(&mut segments, &origin);
        let segment = Segment::begin(dir, newest + 1, &origin, &state)?;
        remove(&segments);
        let mut open: Vec<Entry> = state.open.values().cloned().collect();
        open.sort_by_key(|entry| entry.offset);
        let recovered = Recovered { open, next: state.next };
        let inner = Mutex::new(Inner { dir: dir.to_owned(), origin, state, segment });
        Ok((Self { inner, _lock: lock }, recovered))
    }

    /// Was this activation taken before, as far back as the journal remembers?
    #[must_use]
    pub fn knows(&self, key: Key) -> bool {
        let inner = self.inner();
        inner.state.open.contains_key(&key) || inner.state.known.contains(&key)
    }

    /// Notes activations that are about to be handed out, and that consumption goes on at `next`.
    ///
    /// # Errors
    /// [`JournalError::Io`]: nothing of it is noted then, and nothing may be handed out.
    pub fn taken(&self, entries: Vec<Entry>, next: Offset) -> Result<(), JournalError> {
        let mut inner = self.inner();
        inner.renew_if_due()?;
        let mut records = Vec::with_capacity(entries.iter().map(|entry| entry.note.len() + 64).sum());
        for entry in &entries {
            Record::Taken(entry).write(&mut records);
        }
        Record::Position(next).write(&mut records);
        inner.segment.append(&records)?;
        for entry in entries {
            inner.state.open.insert(entry.key, entry);
        }
        inner.state.next = Some(next);
        Ok(())
    }

    /// Notes that `/run` is about to be sent.
    ///
    /// # Errors
    /// [`JournalError::Io`]; the activation stays noted as taken, so nothing is lost by going on.
    pub fn started(&self, key: Key) -> Result<(), JournalError> {
        self.progress(key, Progress::Started)
    }

    /// Notes that the bus has the activation's last acknowledgement, while its record is still owed.
    ///
    /// # Errors
    /// [`JournalError::Io`]; if the process dies before the activation is settled, it is answered
    /// once more, as a whisk error, which the controller ignores.
    pub fn acked(&self, key: Key) -> Result<(), JournalError> {
        self.progress(key, Progress::Acked)
    }

    fn progress(&self, key: Key, progress: Progress) -> Result<(), JournalError> {
        let mut inner = self.inner();
        let Some(entry) = inner.state.open.get_mut(&key) else { return Ok(()) };
        entry.progress = progress;
        let mut record = Vec::with_capacity(32);
        Record::Progress(key, progress).write(&mut record);
        inner.segment.append(&record)
    }

    /// Notes that nothing is owed any more.
    ///
    /// # Errors
    /// [`JournalError::Io`]; if the process dies before the next segment begins, what was owed is
    /// given once more, as a whisk error: the controller ignores a second answer, the store a second
    /// record.
    pub fn settled(&self, key: Key) -> Result<(), JournalError> {
        let mut inner = self.inner();
        if inner.state.open.remove(&key).is_none() {
            return Ok(());
        }
        inner.state.remember(key);
        let mut record = Vec::with_capacity(32);
        Record::Settled(key).write(&mut record);
        inner.segment.append(&record)
    }

    /// How many activations were taken and not settled yet.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.inner().state.open.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Begins a new segment when the present one is long or broken.
    fn renew_if_due(&mut self) -> Result<(), JournalError> {
        let grown = self.segment.length - self.segment.snapshot;
        if grown < SEGMENT_BYTES && !self.segment.broken {
            return Ok(());
        }
        let next = Segment::begin(&self.dir, self.segment.number + 1, &self.origin, &self.state)?;
        let old = std::mem::replace(&mut self.segment, next);
        remove(&[(old.number, old.path)]);
        Ok(())
    }
}

impl State {
    fn remember(&mut self, key: Key) {
        if self.known.insert(key) {
            self.recent.push_back(key);
        }
        while self.recent.len() > RECENT {
            if let Some(oldest) = self.recent.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    fn apply(&mut self, record: OwnedRecord) {
        match record {
            OwnedRecord::Position(next) => self.next = Some(next),
            OwnedRecord::Taken(entry) => {
                self.open.insert(entry.key, entry);
            }
            OwnedRecord::Progress(key, progress) => {
                if let Some(entry) = self.open.get_mut(&key) {
                    entry.progress = progress;
                }
            }
            OwnedRecord::Settled(key) => {
                self.open.remove(&key);
                self.remember(key);
            }
            OwnedRecord::Origin(_) | OwnedRecord::SnapshotEnd => {}
        }
    }
}

impl Segment {
    /// Creates segment `number` with a snapshot of `state`.
    fn begin(dir: &Path, number: u64, origin: &Origin, state: &State) -> Result<Self, JournalError> {
        let path = dir.join(format!("{SEGMENT_PREFIX}{number}"));
        let mut bytes = MAGIC.to_vec();
        Record::Origin(origin).write(&mut bytes);
        if let Some(next) = state.next {
            Record::Position(next).write(&mut bytes);
        }
        for key in &state.recent {
            Record::Settled(*key).write(&mut bytes);
        }
        for entry in state.open.values() {
            Record::Taken(entry).write(&mut bytes);
        }
        Record::SnapshotEnd.write(&mut bytes);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&path)
            .map_err(io_error("create", &path))?;
        file.write_all(&bytes).map_err(io_error("write", &path))?;
        let length = bytes.len() as u64;
        Ok(Self { number, path, file, length, snapshot: length, broken: false })
    }

    fn append(&mut self, records: &[u8]) -> Result<(), JournalError> {
        if self.broken {
            return Err(io_error("append to", &self.path)(io::Error::other(
                "an earlier write failed half-way",
            )));
        }
        if let Err(error) = self.file.write_all(records) {
            // Part of it may be there. Cut it off, or later records would stand behind damage and
            // never be read.
            use std::io::{Seek as _, SeekFrom};
            let undone = self.file.set_len(self.length).and_then(|()| self.file.seek(SeekFrom::End(0)));
            self.broken = undone.is_err();
            return Err(io_error("append to", &self.path)(error));
        }
        self.length += records.len() as u64;
        Ok(())
    }
}

const SEGMENT_PREFIX: &str = "journal.";

fn lock(path: &Path) -> Result<Flock<File>, JournalError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(io_error("create", path))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => JournalError::Locked { path: path.to_owned() },
        errno => io_error("lock", path)(errno.into()),
    })
}

/// The segments in `dir`, by number.
fn segments(dir: &Path) -> Result<Vec<(u64, PathBuf)>, JournalError> {
    let mut found = Vec::new();
    for file in fs::read_dir(dir).map_err(io_error("list", dir))? {
        let path = file.map_err(io_error("list", dir))?.path();
        let number = path
            .file_name()
            .and_then(|name| name.to_str())
            .and_then(|name| name.strip_prefix(SEGMENT_PREFIX))
            .and_then(|number| number.parse().ok());
        if let Some(number) = number {
            found.push((number, path));
        }
    }
    Ok(found)
}

/// The state of the newest segment whose snapshot is whole. (A process that died while it began a
/// segment leaves a part of one, and the one before it untouched.)
fn read_newest(segments: &mut [(u64, PathBuf)], origin: &Origin) -> State {
    segments.sort_by_key(|(number, _)| std::cmp::Reverse(*number));
    for (_, path) in segments.iter() {
        let bytes = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(?path, %error, "journal segment cannot be read");
                continue;
            }
        };
        let read = read_segment(&bytes);
        if !read.snapshot_whole {
            tracing::warn!(?path, "journal segment has no whole snapshot, the one before it counts");
            continue;
        }
        if read.damaged_bytes > 0 {
            tracing::warn!(?path, bytes = read.damaged_bytes, "journal ends in a damaged record, dropped");
        }
        if read.origin.as_ref() != Some(origin) {
            tracing::warn!(
                ?path,
                found = ?read.origin,
                expected = ?origin,
                open = read.state.open.len(),
                "journal belongs to another bus or topic and is not used"
            );
            return State::default();
        }
        return read.state;
    }
    State::default()
}

struct ReadSegment {
    origin: Option<Origin>,
    state: State,
    snapshot_whole: bool,
    /// Bytes behind the last readable record.
    damaged_bytes: usize,
}

fn read_segment(bytes: &[u8]) -> ReadSegment {
    let mut read =
        ReadSegment { origin: None, state: State::default(), snapshot_whole: false, damaged_bytes: 0 };
    let Some(mut rest) = bytes.strip_prefix(MAGIC) else {
        read.damaged_bytes = bytes.len();
        return read;
    };
    while !rest.is_empty() {
        let Some((record, after)) = OwnedRecord::read(rest) else {
            read.damaged_bytes = rest.len();
            break;
        };
        rest = after;
        match record {
            OwnedRecord::Origin(origin) => read.origin = Some(origin),
            OwnedRecord::SnapshotEnd => read.snapshot_whole = true,
            record => read.state.apply(record),
        }
    }
    read
}

fn remove(segments: &[(u64, PathBuf)]) {
    for (_, path) in segments {
        if let Err(error) = fs::remove_file(path) {
            tracing::warn!(?path, %error, "old journal segment cannot be removed");
        }
    }
}

impl Progress {
    fn byte(self) -> u8 {
        match self {
            Self::Taken => 0,
            Self::Started => 1,
            Self::Acked => 2,
        }
    }

    fn of(byte: u8) -> Option<Self> {
        [Self::Taken, Self::Started, Self::Acked].into_iter().find(|progress| progress.byte() == byte)
    }
}

/// One record: a tag and its fields, little-endian, in a frame of length and CRC-32.
enum Record<'a> {
    Origin(&'a Origin),
    Position(Offset),
    Taken(&'a Entry),
    Progress(Key, Progress),
    Settled(Key),
    SnapshotEnd,
}

/// The same, as read.
enum OwnedRecord {
    Origin(Origin),
    Position(Offset),
    Taken(Entry),
    Progress(Key, Progress),
    Settled(Key),
    SnapshotEnd,
}

const TAG_ORIGIN: u8 = 1;
const TAG_POSITION: u8 = 2;
const TAG_TAKEN: u8 = 3;
const TAG_PROGRESS: u8 = 4;
const TAG_SETTLED: u8 = 5;
const TAG_SNAPSHOT_END: u8 = 6;

impl Record<'_> {
    fn write(&self, out: &mut Vec<u8>) {
        let frame = out.len();
        out.extend_from_slice(&[0; FRAME_BYTES]);
        match self {
            Self::Origin(origin) => {
                out.push(TAG_ORIGIN);
                out.extend_from_slice(origin.bus.as_bytes());
                out.push(0);
                out.extend_from_slice(origin.topic.as_bytes());
            }
            Self::Position(next) => {
                out.push(TAG_POSITION);
                out.extend_from_slice(&next.to_le_bytes());
            }
            Self::Taken(entry) => {
                out.push(TAG_TAKEN);
                out.extend_from_slice(&entry.key.0);
                out.extend_from_slice(&entry.offset.to_le_bytes());
                out.push(entry.progress.byte());
                out.extend_from_slice(&entry.note);
            }
            Self::Progress(key, progress) => {
                out.push(TAG_PROGRESS);
                out.extend_from_slice(&key.0);
                out.push(progress.byte());
            }
            Self::Settled(key) => {
                out.push(TAG_SETTLED);
                out.extend_from_slice(&key.0);
            }
            Self::SnapshotEnd => out.push(TAG_SNAPSHOT_END),
        }
        let body = frame + FRAME_BYTES;
        let length = u32::try_from(out.len() - body).unwrap_or(u32::MAX);
        let sum = crc32fast::hash(&out[body..]);
        out[frame..frame + 4].copy_from_slice(&length.to_le_bytes());
        out[frame + 4..body].copy_from_slice(&sum.to_le_bytes());
    }
}

impl OwnedRecord {
    /// The first record of `bytes` and what follows it; `None` if it is cut, damaged or unknown.
    fn read(bytes: &[u8]) -> Option<(Self, &[u8])> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let (sum, rest) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        if length > RECORD_BYTES_MAX || length > rest.len() {
            return None;
        }
        let (body, after) = rest.split_at(length);
        if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
            return None;
        }
        Some((Self::parse(body)?, after))
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let (tag, fields) = body.split_first()?;
        let key = |fields: &[u8]| fields.try_into().ok().map(Key);
        Some(match *tag {
            TAG_ORIGIN => {
                let text = std::str::from_utf8(fields).ok()?;
                let (bus, topic) = text.split_once('\0')?;
                Self::Origin(Origin { bus: bus.to_owned(), topic: topic.to_owned() })
            }
            TAG_POSITION => Self::Position(Offset::from_le_bytes(fields.try_into().ok()?)),
            TAG_TAKEN => {
                let (key, fields) = fields.split_first_chunk::<16>()?;
                let (offset, fields) = fields.split_first_chunk::<8>()?;
                let (progress, note) = fields.split_first()?;
                Self::Taken(Entry {
                    key: Key(*key),
                    offset: Offset::from_le_bytes(*offset),
                    progress: Progress::of(*progress)?,
                    note: note.to_vec(),
                })
            }
            TAG_PROGRESS => {
                let (key, fields) = fields.split_first_chunk::<16>()?;
                let &[progress] = fields else { return None };
                Self::Progress(Key(*key), Progress::of(progress)?)
            }
            TAG_SETTLED => Self::Settled(key(fields)?),
            TAG_SNAPSHOT_END if fields.is_empty() => Self::SnapshotEnd,
            _ => return None,
        })
    }
}

fn io_error(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> JournalError + use<> {
    let path = path.to_owned();
    move |source| JournalError::Io { operation, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn origin() -> Origin {
        Origin { bus: "cluster".to_owned(), topic: "invoker0".to_owned() }
    }

    fn key(number: u8) -> Key {
        Key([number; 16])
    }

    fn entry(number: u8, offset: Offset) -> Entry {
        Entry {
            key: key(number),
            offset,
            progress: Progress::Taken,
            note: format!("note {number}").into_bytes(),
        }
    }

    fn open(dir: &Path) -> (Journal, Recovered) {
        Journal::open(dir, origin()).unwrap()
    }

    fn only_segment(dir: &Path) -> PathBuf {
        let mut found = segments(dir).unwrap();
        assert_eq!(found.len(), 1, "{found:?}");
        found.remove(0).1
    }

    #[test]
    fn what_was_taken_and_not_answered_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered, Recovered::default());
        journal.taken(vec![entry(1, 10), entry(2, 11), entry(3, 12)], 13).unwrap();
        journal.started(key(2)).unwrap();
        journal.started(key(1)).unwrap();
        journal.acked(key(1)).unwrap();
        journal.settled(key(1)).unwrap();
        journal.started(key(3)).unwrap();
        journal.acked(key(3)).unwrap();
        drop(journal);

        let (journal, recovered) = open(dir.path());
        assert_eq!(recovered.next, Some(13));
        assert_eq!(
            recovered.open,
            vec![
                Entry { progress: Progress::Started, ..entry(2, 11) },
                Entry { progress: Progress::Acked, ..entry(3, 12) },
            ]
        );
        assert!([1, 2, 3].into_iter().all(|number| journal.knows(key(number))));
        assert!(!journal.knows(key(4)));
        journal.settled(key(2)).unwrap();
        journal.settled(key(3)).unwrap();
        drop(journal);
        assert_eq!(open(dir.path()).1, Recovered { open: vec![], next: Some(13) });
    }

    #[test]
    fn a_second_process_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _held = open(dir.path());
        let error = Journal::open(dir.path(), origin()).unwrap_err();
        assert!(matches!(error, JournalError::Locked { .. }), "{error}");
    }

    #[test]
    fn a_journal_of_another_bus_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.taken(vec![entry(1, 10)], 11).unwrap();
        drop(journal);
        let other = Origin { bus: "another cluster".to_owned(), ..origin() };
        let (_, recovered) = Journal::open(dir.path(), other).unwrap();
        assert_eq!(recovered, Recovered::default());
    }

    #[test]
    fn it_stays_small_and_keeps_what_is_open() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.taken(vec![entry(7, 0)], 1).unwrap();
        let note = vec![b'x'; 4096];
        for number in 0..4096_u32 {
            let mut bytes = [0xaa; 16];
            bytes[..4].copy_from_slice(&number.to_le_bytes());
            let offset = Offset::from(number) + 1;
            let entry = Entry { key: Key(bytes), offset, progress: Progress::Taken, note: note.clone() };
            journal.taken(vec![entry], offset + 1).unwrap();
            journal.settled(Key(bytes)).unwrap();
        }
        drop(journal);
        let length = fs::metadata(only_segment(dir.path())).unwrap().len();
        assert!(length < 2 * SEGMENT_BYTES, "{length}");
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered, Recovered { open: vec![entry(7, 0)], next: Some(4097) });
    }

    #[test]
    fn ids_are_remembered_within_a_bound() {
        let mut state = State::default();
        for number in 0..RECENT + 5 {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&(number as u64).to_le_bytes());
            state.remember(Key(bytes));
        }
        assert_eq!((state.recent.len(), state.known.len()), (RECENT, RECENT));
        assert!(!state.known.contains(&Key([0; 16])));
    }

    #[test]
    fn a_process_that_died_while_it_began_a_segment_leaves_the_old_one_in_force() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.taken(vec![entry(1, 10)], 11).unwrap();
        let number = journal.inner().segment.number;
        drop(journal);
        fs::write(dir.path().join(format!("{SEGMENT_PREFIX}{}", number + 1)), MAGIC).unwrap();
        let (_, recovered) = open(dir.path());
        assert_eq!(recovered.open, vec![entry(1, 10)]);
        assert_eq!(segments(dir.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error_and_leaves_the_journal_readable() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, _) = open(dir.path());
        journal.taken(vec![entry(1, 10)], 11).unwrap();
        // /dev/full takes nothing, as a full disk does.
        let real = {
            let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
            std::mem::replace(&mut journal.inner().segment.file, full)
        };
        journal.taken(vec![entry(2, 11)], 12).unwrap_err();
        assert!(!journal.knows(key(2)), "what is not noted must not be handed out");
        drop(real);
        // The device cannot be cut back, so the next one begins a new segment.
        journal.taken(vec![entry(3, 11)], 12).unwrap();
        drop(journal);
        assert_eq!(open(dir.path()).1.open, vec![entry(1, 10), entry(3, 11)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Taken(u8),
        Started(u8),
        Acked(u8),
        Settled(u8),
        Reopen,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => any::<u8>().prop_map(Step::Taken),
            2 => any::<u8>().prop_map(Step::Started),
            2 => any::<u8>().prop_map(Step::Acked),
            3 => any::<u8>().prop_map(Step::Settled),
            1 => Just(Step::Reopen),
        ];
        proptest::collection::vec(step, 0..60)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever was written is read back, and a file that is cut or damaged anywhere gives the
        /// state after some prefix of what was written since the segment began, or a fresh journal.
        #[test]
        fn any_history_is_recovered_and_any_damage_gives_a_prefix(
            steps in steps(), cut in any::<prop::sample::Index>(), flip in any::<Option<u8>>(),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (mut journal, _) = open(dir.path());
            let mut states = vec![journal.inner().state.clone()];
            for (at, step) in steps.into_iter().enumerate() {
                let offset = Offset::try_from(at).unwrap();
                match step {
                    Step::Taken(number) => journal.taken(vec![entry(number, offset)], offset + 1).unwrap(),
                    Step::Started(number) => journal.started(key(number)).unwrap(),
                    Step::Acked(number) => journal.acked(key(number)).unwrap(),
                    Step::Settled(number) => journal.settled(key(number)).unwrap(),
                    Step::Reopen => {
                        let before = journal.inner().state.clone();
                        drop(journal);
                        journal = open(dir.path()).0;
                        prop_assert_eq!(&journal.inner().state, &before);
                        states.clear();
                    }
                }
                states.push(journal.inner().state.clone());
            }
            drop(journal);

            let path = only_segment(dir.path());
            let mut bytes = fs::read(&path).unwrap();
            let at = cut.index(bytes.len());
            match flip {
                Some(bits) if bits != 0 => bytes[at] ^= bits,
                _ => bytes.truncate(at),
            }
            fs::write(&path, bytes).unwrap();
            let (journal, _) = open(dir.path());
            let found = journal.inner().state.clone();
            // A `Taken` and the position behind it are two records; a cut between them is a state
            // of its own, in which the entry is open and its offset will be taken once more, and
            // recognised.
            let halves: Vec<State> = states.windows(2).map(|pair| State { next: pair[0].next, ..pair[1].clone() }).collect();
            prop_assert!(
                found == State::default() || states.contains(&found) || halves.contains(&found),
                "{:?}", found
            );
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut segment = MAGIC.to_vec();
            segment.extend_from_slice(&bytes);
            read_segment(&segment);
            read_segment(&bytes);
        }
    }
}
