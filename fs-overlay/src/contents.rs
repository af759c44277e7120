//! Contents of regular files: keeping a copy, comparing with it, writing it back.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::work::{Stop, Work};

/// Bytes moved by one call. Large enough that the calls do not count, small enough for two on a
/// thread's heap.
const CHUNK: usize = 128 * 1024;

/// A run of data. What lies between runs are holes, which read as zeros.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    /// Where it lies in the file it describes.
    offset: u64,
    length: u64,
    /// Where it lies in the file that holds the bytes.
    at: u64,
}

/// The size of a file and where its data lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) size: u64,
    runs: Vec<Run>,
}

impl Layout {
    /// The layout of a file as it is, its runs lying in the file itself.
    pub(crate) fn of(file: &File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut runs = Vec::new();
        let mut position = 0;
        while let Some((offset, end)) = next_data(file, position, size)? {
            runs.push(Run { offset, length: end - offset, at: offset });
            position = end;
        }
        Ok(Self { size, runs })
    }

    fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.length).sum()
    }
}

/// The next run of data in `from..to`, as start and end.
fn next_data(file: &File, from: u64, to: u64) -> io::Result<Option<(u64, u64)>> {
    if from >= to {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(start) => start,
        Err(Errno::NXIO) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    if start >= to {
        return Ok(None);
    }
    let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(to);
    // A file that grows while it is read would never end; the container is frozen, but a volume
    // has other writers.
    if end <= start {
        return Err(io::Error::other("data without an end"));
    }
    Ok(Some((start, end)))
}

/// Bytes and where they lie.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Contents<'a> {
    pub(crate) file: &'a File,
    pub(crate) layout: &'a Layout,
}

/// One nameless file that holds the copied contents of a sealed container.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
    length: u64,
}

impl Store {
    pub(crate) fn create(directory: &Path) -> io::Result<Self> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?.into();
        Ok(Self { file, length: 0 })
    }

    /// Bytes held.
    pub(crate) fn length(&self) -> u64 {
        self.length
    }

    pub(crate) fn contents<'a>(&'a self, layout: &'a Layout) -> Contents<'a> {
        Contents { file: &self.file, layout }
    }

    /// Copies a file's data, at most `bytes_max` bytes; nothing when there are more.
    ///
    /// Always a copy of the bytes: a shared extent or a link would change with the original.
    pub(crate) fn add(&mut self, source: &File, bytes_max: u64) -> io::Result<Option<Layout>> {
        let mut layout = Layout::of(source)?;
        if layout.bytes() > bytes_max {
            return Ok(None);
        }
        let mut buffer = vec![0; CHUNK];
        for run in &mut layout.runs {
            let at = self.length;
            let mut done = 0;
            while done < run.length {
                let chunk = chunk_of(&mut buffer, run.length - done);
                source.read_exact_at(chunk, run.offset + done)?;
                self.file.write_all_at(chunk, at + done)?;
                done += chunk.len() as u64;
            }
            run.at = at;
            self.length += run.length;
        }
        Ok(Some(layout))
    }
}

fn chunk_of(buffer: &mut [u8], left: u64) -> &mut [u8] {
    let length = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
    &mut buffer[..length]
}

/// Goes through a file next to the bytes it should hold. `gap` is given each range that should read
/// as zeros, `differs` each chunk (what it should hold, and where) that holds other bytes; either
/// may end it by answering `false`, which is then the answer.
fn against(
    current: &File,
    wanted: Contents<'_>,
    work: &mut Work<'_>,
    mut gap: impl FnMut(Range<u64>, &mut [u8], &mut Work<'_>) -> Result<bool, Stop>,
    mut differs: impl FnMut(&[u8], u64) -> Result<bool, Stop>,
) -> Result<bool, Stop> {
    // Most files are far smaller than a chunk.
    let length = usize::try_from(wanted.layout.size).map_or(CHUNK, |size| size.clamp(1, CHUNK));
    let mut ours = vec![0; length];
    let mut theirs = vec![0; length];
    let mut position = 0;
    for run in &wanted.layout.runs {
        if !gap(position..run.offset, &mut theirs, work)? {
            return Ok(false);
        }
        let mut done = 0;
        while done < run.length {
            let ours = chunk_of(&mut ours, run.length - done);
            let theirs = &mut theirs[..ours.len()];
            wanted.file.read_exact_at(ours, run.at + done)?;
            current.read_exact_at(theirs, run.offset + done)?;
            work.moved(ours.len())?;
            if ours != theirs && !differs(ours, run.offset + done)? {
                return Ok(false);
            }
            done += ours.len() as u64;
        }
        position = run.offset + run.length;
    }
    gap(position..wanted.layout.size, &mut theirs, work)
}

/// Whether a file holds exactly these bytes.
pub(crate) fn same(current: &File, wanted: Contents<'_>, work: &mut Work<'_>) -> Result<bool, Stop> {
    if current.metadata()?.len() != wanted.layout.size {
        return Ok(false);
    }
    against(
        current,
        wanted,
        work,
        |range, buffer, work| zeros(current, range, buffer, work),
        |_, _| Ok(false),
    )
}

/// Whether `from..to` of a file reads as zeros. Holes are not read.
fn zeros(file: &File, range: Range<u64>, buffer: &mut [u8], work: &mut Work<'_>) -> Result<bool, Stop> {
    let mut position = range.start;
    while let Some((start, end)) = next_data(file, position, range.end)? {
        let mut at = start;
        while at < end {
            let chunk = chunk_of(buffer, end - at);
            file.read_exact_at(chunk, at)?;
            work.moved(chunk.len())?;
            if chunk.iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            at += chunk.len() as u64;
        }
        position = end;
    }
    Ok(true)
}

/// Makes a file hold exactly these bytes, writing only chunks that differ. Gives the number of
/// bytes written.
///
/// The file is not truncated first: freeing and allocating its blocks again is far slower (ext4).
pub(crate) fn restore(current: &File, wanted: Contents<'_>, work: &mut Work<'_>) -> Result<u64, Stop> {
    if current.metadata()?.len() != wanted.layout.size {
        rustix::fs::ftruncate(current, wanted.layout.size)?;
    }
    let mut written = 0;
    let clear = |range, buffer: &mut [u8], work: &mut Work<'_>| {
        clear(current, range, buffer, work)?;
        Ok(true)
    };
    let rewrite = |ours: &[u8], offset| {
        current.write_all_at(ours, offset)?;
        written += ours.len() as u64;
        Ok(true)
    };
    against(current, wanted, work, clear, rewrite)?;
    Ok(written)
}

/// Makes `from..to` of a file read as zeros again, by giving its blocks back.
fn clear(file: &File, range: Range<u64>, buffer: &mut [u8], work: &mut Work<'_>) -> Result<(), Stop> {
    let mut position = range.start;
    while let Some((start, end)) = next_data(file, position, range.end)? {
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match rustix::fs::fallocate(file, punch, start, end - start) {
            Ok(()) => {}
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                buffer.fill(0);
                let mut at = start;
                while at < end {
                    let chunk = chunk_of(buffer, end - at);
                    file.write_all_at(chunk, at)?;
                    work.moved(chunk.len())?;
                    at += chunk.len() as u64;
                }
            }
            Err(error) => return Err(error.into()),
        }
        position = end;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Options;
    use proptest::prelude::*;

    fn file_with(pieces: &[(u64, Vec<u8>)], size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        for (offset, bytes) in pieces {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file.set_len(size).unwrap();
        file
    }

    fn pieces() -> impl Strategy<Value = Vec<(u64, Vec<u8>)>> {
        let piece = (0_u64..600_000, proptest::collection::vec(any::<u8>(), 1..9_000));
        proptest::collection::vec(piece, 0..5)
    }

    fn bytes_of(file: &File) -> Vec<u8> {
        let size = usize::try_from(file.metadata().unwrap().len()).unwrap();
        let mut bytes = vec![0; size];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn whatever_was_written_is_put_back(
            before in pieces(), size in 0_u64..700_000,
            after in pieces(), new_size in 0_u64..700_000,
        ) {
            let options = Options::default();
            let mut store = Store::create(&std::env::temp_dir()).unwrap();
            let file = file_with(&before, size);
            let original = bytes_of(&file);
            // Something else first, so that offsets in the store are not those of the file.
            store.add(&file_with(&[(0, vec![7; 100])], 100), u64::MAX).unwrap().unwrap();
            let layout = store.add(&file, u64::MAX).unwrap().unwrap();
            for (offset, bytes) in &after {
                file.write_all_at(bytes, *offset).unwrap();
            }
            file.set_len(new_size).unwrap();

            let mut work = Work::start(&options);
            let unchanged = bytes_of(&file) == original;
            prop_assert_eq!(same(&file, store.contents(&layout), &mut work).unwrap(), unchanged);
            restore(&file, store.contents(&layout), &mut work).unwrap();
            prop_assert!(bytes_of(&file) == original);
            prop_assert!(same(&file, store.contents(&layout), &mut work).unwrap());
            prop_assert_eq!(restore(&file, store.contents(&layout), &mut work).unwrap(), 0);
        }
    }

    #[test]
    fn a_huge_sparse_file_costs_what_its_data_costs() {
        let options = Options::default();
        let mut store = Store::create(&std::env::temp_dir()).unwrap();
        let file = file_with(&[(1 << 39, vec![1; 10])], 1 << 40);
        let layout = store.add(&file, 1 << 20).unwrap().unwrap();
        assert!(store.length() <= 1 << 16, "{} bytes stored", store.length());
        file.write_all_at(b"secret", 1 << 38).unwrap();
        let mut work = Work::start(&options);
        assert!(!same(&file, store.contents(&layout), &mut work).unwrap());
        restore(&file, store.contents(&layout), &mut work).unwrap();
        assert!(same(&file, store.contents(&layout), &mut work).unwrap());
    }

    #[test]
    fn too_much_to_store_is_refused() {
        let mut store = Store::create(&std::env::temp_dir()).unwrap();
        let file = file_with(&[(0, vec![1; 5000])], 5000);
        assert_eq!(store.add(&file, 4999).unwrap(), None);
        assert_eq!(store.length(), 0);
    }

    #[test]
    fn more_bytes_than_allowed_stop_the_comparison() {
        let options = Options { undone_bytes_max: 1000, ..Options::default() };
        let mut store = Store::create(&std::env::temp_dir()).unwrap();
        let file = file_with(&[(0, vec![1; 5000])], 5000);
        let layout = store.add(&file, u64::MAX).unwrap().unwrap();
        let stopped = same(&file, store.contents(&layout), &mut Work::start(&options));
        assert!(matches!(stopped, Err(Stop::Reason(crate::FilesReason::TooManyBytes, _))));
    }
}
