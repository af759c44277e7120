//! Quadwords that tell the snapshot's pages from what may have taken their place unseen.
//!
//! For page tables that went away see [`super::cover`]. The other case are pages of files.
//!
//! A private mapping of a file holds either the process's own page or the file's. When the process gives its
//! own page back (MADV_DONTNEED), the kernel leaves a write-protect marker, and whatever fills the place then,
//! the file's page or a fresh copy of it, counts as protected: the scan for written pages is silent about it.
//! But the file itself cannot have changed (its times are checked), so a page that was not written is one of
//! two known ones, and one quadword in which they differ tells which.

use super::{PAGE, Run, Segment, cover};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use std::fs::File;
use std::os::unix::fs::FileExt;

/// An address and what must be there.
pub(super) type Word = (u64, u64);

/// Bytes of one word in the list that the agent reads.
pub(super) const WORD: u64 = 16;

/// The words of a process.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) list: Vec<Word>,
    /// Pages (by their place in the image) that cannot be told from the file's: they have to be copied always.
    pub(super) unknown: Vec<u64>,
    /// Witnesses of tables for which there is no word.
    pub(super) wordless: Vec<u64>,
}

/// How many pages of a table are searched for a quadword that is not zero.
const SEARCHED_MAX: usize = 16;

impl Words {
    /// Chooses words, comparing the recorded pages of file mappings with their files. `read` copies bytes of the image.
    pub(super) fn find(
        pid: i32,
        segments: &[Segment],
        runs: &[Run],
        mut read: impl FnMut(u64, &mut [u8]),
    ) -> Result<Words, Quarantine> {
        let mut words = Words::default();
        let mut files = Files::new(pid)?;
        let (mut ours, mut theirs) = (vec![0u8; 1 << 16], vec![0u8; 1 << 16]);
        for run in runs {
            let segment = &segments[run.segment as usize];
            let Some(offset) = segment.file else { continue };
            let file = if segment.readable { files.open(segment.start) } else { None };
            let mut at = run.start;
            while at < run.end {
                let len = usize::try_from(run.end - at).unwrap_or(usize::MAX).min(ours.len());
                let in_image = run.offset + (at - run.start);
                read(in_image, &mut ours[..len]);
                let known = file
                    .is_some_and(|file| read_file(file, offset + (at - segment.start), &mut theirs[..len]));
                for page in (0..len).step_by(super::PAGE_LEN) {
                    let at = at + page as u64;
                    if !known {
                        words.unknown.push((in_image + page as u64) / PAGE);
                        continue;
                    }
                    let ours = quadwords(&ours[page..page + super::PAGE_LEN]);
                    let theirs = quadwords(&theirs[page..page + super::PAGE_LEN]);
                    match ours.iter().zip(theirs).position(|(a, b)| a != b) {
                        Some(index) => {
                            words.list.push((at + index as u64 * 8, u64::from_le_bytes(ours[index])));
                        }
                        None => words.unknown.push((in_image + page as u64) / PAGE),
                    }
                }
                at += len as u64;
            }
        }
        for witness in cover::witnesses(runs) {
            match nonzero(segments, runs, witness, &mut read) {
                Some(word) => words.list.push(word),
                None => words.wordless.push(witness),
            }
        }
        Ok(words)
    }
}

/// A quadword that is not zero, near a witness and in its table.
fn nonzero(
    segments: &[Segment],
    runs: &[Run],
    witness: u64,
    read: &mut impl FnMut(u64, &mut [u8]),
) -> Option<Word> {
    let end = cover::table(witness).1;
    let first = runs.partition_point(|run| run.end <= witness);
    let readable = runs[first..]
        .iter()
        .take_while(|run| run.start < end)
        .filter(|run| segments[run.segment as usize].readable);
    let mut bytes = [0; super::PAGE_LEN];
    for (run, page) in readable
        .flat_map(|run| {
            let pages = run.start.max(witness)..run.end.min(end);
            pages.step_by(super::PAGE_LEN).map(move |page| (run, page))
        })
        .take(SEARCHED_MAX)
    {
        read(run.offset + (page - run.start), &mut bytes);
        if let Some(index) = quadwords(&bytes).iter().position(|word| *word != [0; 8]) {
            return Some((page + index as u64 * 8, u64::from_le_bytes(quadwords(&bytes)[index])));
        }
    }
    None
}

fn quadwords(bytes: &[u8]) -> &[[u8; 8]] {
    bytes.as_chunks().0
}

/// Reads from a file what a mapping of it shows: zeros behind its end.
fn read_file(file: &File, at: u64, into: &mut [u8]) -> bool {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], at + done as u64) {
            Ok(0) => {
                into[done..].fill(0);
                return true;
            }
            Ok(got) => done += got,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return false,
        }
    }
    true
}

/// The mapped files of a process, by address.
struct Files {
    directory: String,
    ranges: Vec<(u64, u64)>,
    open: Option<(u64, Option<File>)>,
}

impl Files {
    fn new(pid: i32) -> Result<Files, Quarantine> {
        let directory = format!("/proc/{pid}/map_files");
        let mut ranges = Vec::new();
        let entries =
            std::fs::read_dir(&directory).or_quarantine(Reason::Unreadable, || directory.clone())?;
        for entry in entries.flatten() {
            let name = entry.file_name();
            let range = name.to_str().and_then(|name| {
                let (start, end) = name.split_once('-')?;
                Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
            });
            ranges.extend(range);
        }
        ranges.sort_unstable();
        Ok(Files { directory, ranges, open: None })
    }

    /// The file mapped at an address, if it can be read.
    fn open(&mut self, address: u64) -> Option<&File> {
        let index = self.ranges.partition_point(|(_, end)| *end <= address);
        let (start, end) = *self.ranges.get(index).filter(|(start, _)| *start <= address)?;
        if self.open.as_ref().is_none_or(|(at, _)| *at != start) {
            self.open = Some((start, File::open(format!("{}/{start:x}-{end:x}", self.directory)).ok()));
        }
        self.open.as_ref().and_then(|(_, file)| file.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn behind_its_end_a_file_is_zeros() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"abc").expect("written");
        let mut bytes = [1; 8];
        assert!(read_file(&file, 1, &mut bytes));
        assert_eq!(&bytes, b"bc\0\0\0\0\0\0");
        assert!(read_file(&file, 100, &mut bytes));
        assert_eq!(bytes, [0; 8]);
    }

    #[test]
    fn our_own_program_is_found_below_its_mapping() {
        let pid = i32::try_from(std::process::id()).expect("a pid");
        let Ok(mut files) = Files::new(pid) else { return };
        let code = our_own_program_is_found_below_its_mapping as fn() as usize as u64;
        let Some(file) = files.open(code) else {
            eprintln!("SKIP our_own_program_is_found_below_its_mapping: needs root");
            return;
        };
        let mut magic = [0; 4];
        assert!(read_file(file, 0, &mut magic));
        assert_eq!(&magic, b"\x7fELF");
        assert!(files.open(0).is_none());
    }
}
