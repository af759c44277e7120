//! Pages that requests make and the snapshot does not have.
//!
//! Giving such a page back makes the next request fault it in anew, and the kernel zeroes it then. A request
//! that uses the same heap every time is served better by a page that stays and is zeroed in place. A few are
//! kept so; like hot pages each is put to the test now and then, and given back once it is not used any more.

/// A kept page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Kept {
    page: u64,
    /// It was protected at the last rewind, so that a change shows.
    tested: bool,
    /// This rewind's scan reported it.
    reported: bool,
}

/// The kept pages of one process, by address.
#[derive(Debug, Default)]
pub(super) struct Extras {
    kept: Vec<Kept>,
    new: Vec<u64>,
}

/// What becomes of a kept page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Zeroed, and left writable.
    Zero,
    /// Zeroed and protected, to see whether it is still used.
    Test,
    /// Given back: it was not used.
    Drop,
}

/// The most pages kept in one process (4 MiB).
const KEPT_MAX: usize = 1024;

impl Extras {
    /// Marks the kept pages in `[start, end)` as reported, and calls `unknown` with each part between them.
    pub(super) fn report(&mut self, start: u64, end: u64, mut unknown: impl FnMut(u64, u64)) {
        let mut at = start;
        let mut index = self.kept.partition_point(|kept| kept.page < start);
        while let Some(kept) = self.kept.get_mut(index).filter(|kept| kept.page < end) {
            kept.reported = true;
            if at < kept.page {
                unknown(at, kept.page);
            }
            at = kept.page + super::PAGE;
            index += 1;
        }
        if at < end {
            unknown(at, end);
        }
    }

    /// Keeps a page from now on; `false` if there are too many.
    pub(super) fn keep(&mut self, page: u64) -> bool {
        let room = self.kept.len() + self.new.len() < KEPT_MAX;
        if room {
            self.new.push(page);
        }
        room
    }

    /// Keeps nothing any more; calls `found` with each page.
    pub(super) fn give_up(&mut self, found: impl FnMut(u64)) {
        self.kept.drain(..).map(|kept| kept.page).chain(self.new.drain(..)).for_each(found);
    }

    /// Decides about every kept page and forgets those that are gone. `test` says which numbers are tested now.
    pub(super) fn settle(&mut self, test: impl Fn(u64) -> bool, mut found: impl FnMut(u64, Fate)) {
        self.kept.retain_mut(|kept| {
            let (tested, reported) = (kept.tested, std::mem::take(&mut kept.reported));
            kept.tested = false;
            match (reported, tested) {
                (true, _) => {
                    kept.tested = test(kept.page / super::PAGE);
                    found(kept.page, if kept.tested { Fate::Test } else { Fate::Zero });
                    true
                }
                (false, true) => {
                    found(kept.page, Fate::Drop);
                    false
                }
                // Unprotected and yet not reported: the page is gone with its mapping or its page table.
                (false, false) => false,
            }
        });
        if !self.new.is_empty() {
            for page in &self.new {
                found(*page, Fate::Zero);
            }
            let new = self.new.drain(..).map(|page| Kept { page, tested: false, reported: false });
            self.kept.extend(new);
            self.kept.sort_unstable_by_key(|kept| kept.page);
        }
    }

    /// Whether a page is kept.
    pub(super) fn holds(&self, page: u64) -> bool {
        self.kept.binary_search_by_key(&page, |kept| kept.page).is_ok()
    }

    pub(super) fn len(&self) -> usize {
        self.kept.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 4096;

    fn settle(extras: &mut Extras, test: bool) -> Vec<(u64, Fate)> {
        let mut fates = Vec::new();
        extras.settle(|_| test, |page, fate| fates.push((page / PAGE, fate)));
        fates
    }

    fn report(extras: &mut Extras, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut unknown = Vec::new();
        extras.report(start * PAGE, end * PAGE, |a, b| unknown.push((a / PAGE, b / PAGE)));
        unknown
    }

    #[test]
    fn a_kept_page_lives_as_long_as_it_is_used() {
        let mut extras = Extras::default();
        assert_eq!(report(&mut extras, 1, 9), [(1, 9)]);
        assert!(extras.keep(4 * PAGE) && extras.keep(2 * PAGE));
        assert_eq!(settle(&mut extras, true), [(4, Fate::Zero), (2, Fate::Zero)]);
        assert!(extras.holds(2 * PAGE) && !extras.holds(3 * PAGE));
        assert_eq!(report(&mut extras, 1, 9), [(1, 2), (3, 4), (5, 9)]);
        assert_eq!(settle(&mut extras, true), [(2, Fate::Test), (4, Fate::Test)]);
        // Page 2 was used, page 4 was not.
        assert_eq!(report(&mut extras, 2, 3), []);
        assert_eq!(settle(&mut extras, false), [(2, Fate::Zero), (4, Fate::Drop)]);
        // A writable page that is not reported is no more.
        assert_eq!(settle(&mut extras, false), []);
        assert_eq!(extras.len(), 0);
    }

    #[test]
    fn there_is_a_bound() {
        let mut extras = Extras::default();
        assert_eq!((0..2000).filter(|page| extras.keep(page * PAGE)).count(), KEPT_MAX);
    }
}
