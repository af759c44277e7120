//! Page tables that went away.
//!
//! A scan for written pages goes through the page tables there are: a page whose table is gone is not reported
//! at all, and gone it may be (MADV_DONTNEED over two megabytes frees it since Linux 6.14, moving memory with
//! mremap takes it along). Whatever the scan reports proves the table it is in. Of a table that holds pages of
//! the snapshot and about which the scan is silent, one page is a witness: a quadword of it that is not zero is
//! compared with those of [`super::words`], for in a lost table it reads as zero. Where there is no such
//! quadword the page is asked for by name.

use super::{PAGE, Run};
use crate::sys::memory::Region;

/// What one table spans.
pub(super) const TABLE: u64 = 512 * PAGE;

/// The range of the table that holds a page.
pub(super) fn table(page: u64) -> (u64, u64) {
    let start = page - page % TABLE;
    (start, start + TABLE)
}

/// One page of a run in each table that has any.
pub(super) fn witnesses(runs: &[Run]) -> Vec<u64> {
    let mut chosen: Vec<u64> = Vec::new();
    for run in runs {
        let mut page = run.start;
        while page < run.end {
            if chosen.last().is_none_or(|last| table(*last) != table(page)) {
                chosen.push(page);
            }
            page = table(page).1;
        }
    }
    chosen
}

/// Calls `silent` with the witness of each table of which nothing is in `regions`; both are in order.
pub(super) fn silent(witnesses: &[u64], regions: &[Region], mut silent: impl FnMut(u64)) {
    let mut regions = regions.iter().peekable();
    for witness in witnesses {
        let (start, end) = table(*witness);
        while regions.next_if(|region| region.end <= start).is_some() {}
        if regions.peek().is_none_or(|region| region.start >= end) {
            silent(*witness);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64) -> Run {
        Run { start, end, offset: 0, segment: 0 }
    }

    #[test]
    fn each_table_with_recorded_pages_has_one_witness() {
        let runs = [
            run(TABLE - 2 * PAGE, TABLE - PAGE),
            run(TABLE - PAGE, TABLE + PAGE),
            run(TABLE * 2 + PAGE, TABLE * 4 + PAGE),
        ];
        let expected = [TABLE - 2 * PAGE, TABLE, TABLE * 2 + PAGE, TABLE * 3, TABLE * 4];
        assert_eq!(witnesses(&runs), expected);
    }

    #[test]
    fn a_table_of_which_nothing_is_reported_is_named() {
        let all: Vec<u64> = (0..5).map(|n| n * TABLE + PAGE).collect();
        let region = |start, end| Region { start, end, categories: 0 };
        let named = |regions: &[Region]| {
            let mut named = Vec::new();
            silent(&all, regions, |witness| named.push(witness / TABLE));
            named
        };
        assert_eq!(named(&[]), [0, 1, 2, 3, 4]);
        assert_eq!(named(&[region(0, PAGE), region(PAGE * 7, TABLE * 2 + PAGE)]), [3, 4]);
        assert_eq!(named(&[region(TABLE - PAGE, TABLE), region(TABLE * 4, TABLE * 5)]), [1, 2, 3]);
    }
}
