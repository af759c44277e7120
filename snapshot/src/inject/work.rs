//! Work on memory that the agent does beside system calls: giving pages back, zeroing and copying them, and
//! comparing some quadwords.
//!
//! Thousands of calls are usual here, so the table is written once, as the agent reads it, and kept between
//! rewinds; a lane takes a part of it at a time.

use super::LANE;
use crate::reason::{Quarantine, Reason};
use crate::sys::agent;
use nix::errno::Errno;

/// Bytes of one call, and where in it the result lies.
pub(super) const CALL: usize = 64;
pub(super) const RESULT: usize = 56;
/// Calls that a lane takes.
const PART: usize = LANE / CALL;
/// A result that no call has: shows one that was not reached.
const NOT_REACHED: i64 = i64::MIN;
/// Linux 5.18.
const MADV_DONTNEED_LOCKED: u64 = 24;
/// `MADV_GUARD_REMOVE`, Linux 6.13.
const MADV_GUARD_REMOVE: u64 = 103;

/// A list of things to do with the target's memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Work {
    bytes: Vec<u8>,
    /// The part that is being done: first call and how many.
    part: (usize, usize),
    different: u64,
}

impl Work {
    /// Forgets everything, but keeps its memory.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.part = (0, 0);
        self.different = 0;
    }

    /// Copies bytes within the target.
    pub(crate) fn copy(&mut self, to: u64, from: u64, len: u64) {
        self.add(agent::COPY, [to, from, len]);
    }

    /// Zeroes bytes.
    pub(crate) fn zero(&mut self, start: u64, len: u64) {
        self.add(agent::ZERO, [start, len, len]);
    }

    /// Gives pages back to the kernel, also locked ones.
    pub(crate) fn discard(&mut self, start: u64, len: u64) {
        self.add(libc::SYS_madvise, [start, len, MADV_DONTNEED_LOCKED]);
    }

    /// Takes guard markers away (`MADV_GUARD_INSTALL`), which survive [`Work::discard`]. Kernels that do not
    /// know it have none.
    pub(crate) fn unguard(&mut self, start: u64, len: u64) {
        self.add(libc::SYS_madvise, [start, len, MADV_GUARD_REMOVE]);
    }

    /// Counts the quadwords of a list (in the target's memory, of addresses and values) that differ.
    pub(crate) fn compare(&mut self, list: u64, pairs: u64) {
        self.add(agent::COMPARE, [0, list, pairs]);
    }

    fn add(&mut self, number: i64, args: [u64; 3]) {
        let mut call = [0; CALL];
        let words = [number.cast_unsigned(), args[0], args[1], args[2], 0, 0, 0, NOT_REACHED.cast_unsigned()];
        for (at, word) in call.chunks_exact_mut(8).zip(words) {
            at.copy_from_slice(&word.to_le_bytes());
        }
        self.bytes.extend_from_slice(&call);
    }

    /// How many quadwords were found to differ.
    pub(crate) fn different(&self) -> u64 {
        self.different
    }

    /// Goes on to the next part; returns its calls.
    pub(super) fn next_part(&mut self) -> usize {
        let first = self.part.0 + self.part.1;
        self.part = (first, (self.bytes.len() / CALL - first).min(PART));
        self.part.1
    }

    /// The part as the agent reads it.
    pub(super) fn part(&self) -> &[u8] {
        &self.bytes[self.part.0 * CALL..][..self.part.1 * CALL]
    }

    /// Looks at the results of the part, which `result` gives by the call's place in the lane.
    pub(super) fn judge(&mut self, result: impl Fn(usize) -> i64) -> Result<(), Quarantine> {
        for call in 0..self.part.1 {
            let bytes = &self.bytes[(self.part.0 + call) * CALL..][..CALL];
            let word = |index: usize| {
                bytes[index * 8..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
            };
            match (word(0).cast_signed(), result(call)) {
                (_, NOT_REACHED) => {
                    return Err(Quarantine::new(Reason::InjectionFailed, "the agent left work undone"));
                }
                (agent::COMPARE, different) => self.different += different.cast_unsigned(),
                (libc::SYS_madvise, error @ ..0) if word(3) != MADV_GUARD_REMOVE => {
                    let errno = Errno::from_raw(i32::try_from(-error).unwrap_or(0));
                    let detail = format!("dropping pages at {:#x}", word(1));
                    return Err(Quarantine::because(Reason::MemoryNotRestored, detail, errno));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_done_in_parts_that_fit_a_lane() {
        let mut work = Work::default();
        for page in 0..2500 {
            work.copy(page * 4096, 0, 4096);
        }
        let mut parts = Vec::new();
        loop {
            let count = work.next_part();
            if count == 0 {
                break;
            }
            assert!(work.part().len() == count * CALL && count * CALL <= LANE);
            work.judge(|_| 0).expect("done");
            parts.push(count);
        }
        assert_eq!(parts, [1024, 1024, 452]);
        work.clear();
        assert_eq!(work.next_part(), 0);
    }

    #[test]
    fn what_was_not_done_or_failed_is_an_error() {
        let mut work = Work::default();
        work.discard(0x1000, 0x1000);
        work.next_part();
        assert_eq!(work.judge(|_| NOT_REACHED).unwrap_err().reason, Reason::InjectionFailed);
        assert_eq!(work.judge(|_| -22).unwrap_err().reason, Reason::MemoryNotRestored);
        work.clear();
        work.unguard(0x1000, 0x1000);
        work.compare(0x9000, 4);
        work.next_part();
        work.judge(|call| if call == 0 { -22 } else { 3 }).expect("old kernels know no guards");
        assert_eq!(work.different(), 3);
    }
}
