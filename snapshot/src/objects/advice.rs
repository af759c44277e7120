//! What a process advised the kernel about its mappings (`madvise`).
//!
//! The text of maps does not show it, and nothing cheaper than smaps does: the page tables are walked, which
//! costs about 20 ns a page. V8 keeps pages it does not use out of core dumps, so advice changes in honest
//! requests too. Most of it can be taken back, but not all: there is no way from 'huge pages wanted' to 'no
//! advice'.

use crate::reason::{OrQuarantine, Quarantine, Reason};

/// Flags of smaps that advice sets: not copied to children, wiped in children, not dumped, huge pages wanted or
/// not, mergeable, read at random or in sequence; and mappings sealed for ever.
const WATCHED: [&str; 9] = ["dc", "wf", "dd", "hg", "nh", "mg", "rr", "sr", "sl"];

/// The advised stretches of an address space: start, end, and the flags as bits of [`WATCHED`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advice(Vec<(u64, u64, u16)>);

impl Advice {
    /// The advice now, and the KiB that are marked MADV_FREE: still there, until the kernel wants them.
    pub(crate) fn record(pid: i32) -> Result<(Advice, u64), Quarantine> {
        let path = format!("/proc/{pid}/smaps");
        let text = std::fs::read(&path).or_quarantine(Reason::Unreadable, || path.clone())?;
        let text = String::from_utf8_lossy(&text);
        let freed = text.lines().filter_map(|line| {
            line.strip_prefix("LazyFree:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        });
        Ok((parse(&text), freed.sum()))
    }

    /// The calls of `madvise` that lead from the advice now to this one: start, end, advice.
    pub(crate) fn difference(&self, now: &Advice) -> Result<Vec<(u64, u64, i32)>, Quarantine> {
        let mut bounds: Vec<u64> =
            self.0.iter().chain(&now.0).flat_map(|(start, end, _)| [*start, *end]).collect();
        bounds.sort_unstable();
        bounds.dedup();
        let mut calls = Vec::new();
        for piece in bounds.windows(2) {
            let &[start, end] = piece else { continue };
            let (want, have) = (self.at(start), now.at(start));
            if want == have {
                continue;
            }
            // Advice on the order of reading is one of three.
            let order = bit("rr") | bit("sr");
            if (want ^ have) & order != 0 {
                let advice = match want & order {
                    bits if bits == bit("rr") => libc::MADV_RANDOM,
                    bits if bits == bit("sr") => libc::MADV_SEQUENTIAL,
                    _ => libc::MADV_NORMAL,
                };
                calls.push((start, end, advice));
            }
            for (flag, on, off) in [
                ("dc", libc::MADV_DONTFORK, Some(libc::MADV_DOFORK)),
                ("wf", libc::MADV_WIPEONFORK, Some(libc::MADV_KEEPONFORK)),
                ("dd", libc::MADV_DONTDUMP, Some(libc::MADV_DODUMP)),
                ("mg", libc::MADV_MERGEABLE, Some(libc::MADV_UNMERGEABLE)),
                // Each of these two takes the other back, but nothing takes back both.
                ("hg", libc::MADV_HUGEPAGE, (want & bit("nh") != 0).then_some(libc::MADV_NOHUGEPAGE)),
                ("nh", libc::MADV_NOHUGEPAGE, (want & bit("hg") != 0).then_some(libc::MADV_HUGEPAGE)),
            ] {
                let advice = match (want & bit(flag) != 0, have & bit(flag) != 0) {
                    (true, false) => Some(on),
                    (false, true) => off,
                    _ => continue,
                };
                let advice = advice.ok_or_else(|| differs(flag, start))?;
                calls.push((start, end, advice));
            }
            if (want ^ have) & bit("sl") != 0 {
                return Err(differs("sl", start));
            }
        }
        Ok(calls)
    }

    fn at(&self, address: u64) -> u16 {
        self.0.iter().find(|(start, end, _)| (*start..*end).contains(&address)).map_or(0, |found| found.2)
    }
}

fn bit(flag: &str) -> u16 {
    WATCHED.iter().position(|watched| *watched == flag).map_or(0, |position| 1 << position)
}

fn differs(flag: &str, address: u64) -> Quarantine {
    let detail = format!("advice on memory at {address:#x}: {flag} cannot be taken back");
    Quarantine::new(Reason::LayoutNotRestored, detail)
}

fn parse(text: &str) -> Advice {
    let mut stretches: Vec<(u64, u64, u16)> = Vec::new();
    let mut span = None;
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let Some((start, end)) = span.take() else { continue };
            let mut bits = 0;
            for flag in flags.split_ascii_whitespace() {
                if let Some(bit) = WATCHED.iter().position(|watched| *watched == flag) {
                    bits |= 1 << bit;
                }
            }
            match stretches.last_mut() {
                // Advice on a part of a mapping divides it; what is advised the same is one stretch.
                Some(last) if last.1 == start && last.2 == bits => last.1 = end,
                _ if bits != 0 => stretches.push((start, end, bits)),
                _ => {}
            }
        } else if span.is_none() {
            span = line.split_ascii_whitespace().next().and_then(|head| {
                let (start, end) = head.split_once('-')?;
                Some((u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
            });
        }
    }
    Advice(stretches)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "7f00-7f10 rw-p 00000000 00:00 0 \nSize: 64 kB\nRss: 0 kB\nVmFlags: rd wr mr mw me ac \n\
        7f10-7f20 rw-p 00000000 00:00 0 \nSize: 64 kB\nVmFlags: rd wr dc wf \n\
        7f20-7f30 r--p 00000000 00:00 0    /a (deleted)\nVmFlags: rd wf dc \n\
        7f40-7f50 rw-p 00000000 00:00 0 \nVmFlags: rd hg \n";

    #[test]
    fn stretches_of_the_same_advice_are_one() {
        assert_eq!(parse(TEXT), Advice(vec![(0x7f10, 0x7f30, 3), (0x7f40, 0x7f50, 8)]));
        assert_eq!(parse(""), Advice(Vec::new()));
    }

    #[test]
    fn advice_is_taken_back_piece_by_piece() {
        let (dc, wf, dd) = (bit("dc"), bit("wf"), bit("dd"));
        let want = Advice(vec![(0x1000, 0x3000, dc)]);
        let now = Advice(vec![(0x2000, 0x4000, dc | wf), (0x5000, 0x6000, dd)]);
        let calls = want.difference(&now).unwrap();
        assert_eq!(
            calls,
            [
                (0x1000, 0x2000, libc::MADV_DONTFORK),
                (0x2000, 0x3000, libc::MADV_KEEPONFORK),
                (0x3000, 0x4000, libc::MADV_DOFORK),
                (0x3000, 0x4000, libc::MADV_KEEPONFORK),
                (0x5000, 0x6000, libc::MADV_DODUMP),
            ]
        );
        assert_eq!(want.difference(&want).unwrap(), []);
    }

    #[test]
    fn huge_pages_wanted_cannot_be_taken_back_to_no_advice() {
        let (hg, nh) = (bit("hg"), bit("nh"));
        let huge = Advice(vec![(0x1000, 0x2000, hg)]);
        assert_eq!(Advice(vec![]).difference(&huge).unwrap_err().reason, Reason::LayoutNotRestored);
        let none = Advice(vec![(0x1000, 0x2000, nh)]);
        assert!(none.difference(&huge).unwrap().contains(&(0x1000, 0x2000, libc::MADV_NOHUGEPAGE)));
    }

    #[test]
    fn order_of_reading_goes_back_to_normal() {
        let random = Advice(vec![(0x1000, 0x2000, bit("rr"))]);
        assert_eq!(Advice(vec![]).difference(&random).unwrap(), [(0x1000, 0x2000, libc::MADV_NORMAL)]);
    }
}
