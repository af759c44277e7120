//! Which pages stay writable because they change in most requests.
//!
//! A page that is protected costs the next request a fault (0.8 us) and the rewind another protection; one that
//! stays writable costs a copy in every rewind (0.3 us), changed or not. So pages that change often are *hot*.
//! Whether a hot page still changes cannot be seen, so each is put to the test once in a while: it is protected,
//! and unless it changes it stays so. Tests are spread evenly over the rewinds, so that no request pays for all.

use super::super::Heat;

/// A page that stays writable whatever happens.
const PINNED: u8 = u8::MAX;

/// The heat of every page of an image.
#[derive(Debug)]
pub(super) struct HeatMap {
    policy: Heat,
    /// How often a page changed, up to the bound at which it is hot.
    heat: Vec<u8>,
    /// The bound.
    bound: u8,
    hot: u64,
    round: u8,
}

impl HeatMap {
    /// `pages` cold pages.
    pub(super) fn new(pages: usize, policy: Heat) -> HeatMap {
        HeatMap { policy, heat: vec![0; pages], bound: policy.hot_after.min(PINNED - 1), hot: 0, round: 0 }
    }

    /// Keeps a page writable for good.
    pub(super) fn pin(&mut self, page: usize) {
        self.hot -= u64::from(self.is_hot(page));
        self.heat[page] = PINNED;
    }

    pub(super) fn is_pinned(&self, page: usize) -> bool {
        self.heat[page] == PINNED
    }

    fn is_hot(&self, page: usize) -> bool {
        self.bound != 0 && (self.bound..PINNED).contains(&self.heat[page])
    }

    /// Another rewind begins.
    pub(super) fn next_round(&mut self) {
        self.round = if self.round + 1 >= self.policy.cold_after.max(1) { 0 } else { self.round + 1 };
    }

    /// Whether a page with this number is put to the test in this round.
    pub(super) fn is_tested(&self, number: u64) -> bool {
        let rounds = u64::from(self.policy.cold_after);
        rounds != 0 && number % rounds == u64::from(self.round)
    }

    /// A page was put back. Returns whether to protect it. `changed`: because the request changed it.
    pub(super) fn put_back(&mut self, page: usize, changed: bool) -> bool {
        if self.is_pinned(page) {
            return false;
        }
        if self.bound == 0 {
            return true;
        }
        let was_hot = self.is_hot(page);
        if changed && self.heat[page] < self.bound {
            self.heat[page] += 1;
        }
        if self.is_hot(page) && self.is_tested(page as u64) {
            // One more change makes it hot again.
            self.heat[page] = self.bound - 1;
        }
        let hot = self.is_hot(page);
        self.hot = self.hot + u64::from(hot) - u64::from(was_hot);
        !hot
    }

    /// How many pages are hot.
    pub(super) fn hot(&self) -> u64 {
        self.hot
    }

    pub(super) fn len(&self) -> usize {
        self.heat.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(hot_after: u8, cold_after: u8) -> HeatMap {
        HeatMap::new(8, Heat { hot_after, cold_after })
    }

    fn count(map: &HeatMap) -> u64 {
        (0..map.len()).filter(|page| map.is_hot(*page)).count() as u64
    }

    #[test]
    fn a_page_that_keeps_changing_is_hot_but_for_its_tests() {
        let mut map = map(2, 4);
        let mut protected = Vec::new();
        for _ in 0..12 {
            map.next_round();
            protected.push(map.put_back(3, true));
            assert_eq!(map.hot(), count(&map));
        }
        // Round 3 of four is its test.
        assert_eq!(protected[..7], [true, false, true, false, false, false, true]);
    }

    #[test]
    fn a_page_that_no_longer_changes_is_cold_after_its_test() {
        let mut map = map(1, 4);
        map.next_round();
        assert!(!map.put_back(0, true));
        let mut copies = 0;
        let mut cold = false;
        while !cold {
            map.next_round();
            cold = map.put_back(0, true);
            copies += 1;
        }
        assert!(copies <= 4 && map.hot() == 0);
    }

    #[test]
    fn without_heat_all_is_protected_except_what_is_pinned() {
        let mut map = map(0, 0);
        map.pin(2);
        map.next_round();
        assert!(map.put_back(1, true) && !map.put_back(2, true));
        assert_eq!(map.hot(), 0);
    }

    #[test]
    fn rewriting_everything_is_no_sign_of_heat() {
        let mut map = map(1, 0);
        assert!(map.put_back(1, false));
        assert!(!map.put_back(1, true));
        assert_eq!(map.hot(), 1);
    }
}
