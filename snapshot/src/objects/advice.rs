//! What a process advised the kernel about its mappings (`madvise`).
//!
//! The text of maps does not show it, and nothing cheaper than smaps does: the page tables are walked, which
//! costs about 20 ns a page. Most of it could be taken back, but not all (there is no way from 'huge pages
//! wanted' to 'no advice'), so any difference is refused.

use crate::reason::{OrQuarantine, Quarantine, Reason};

/// Flags of smaps that advice sets: not copied to children, wiped in children, not dumped, huge pages wanted or
/// not, mergeable, read at random or in sequence; and mappings sealed for ever.
const WATCHED: [&str; 9] = ["dc", "wf", "dd", "hg", "nh", "mg", "rr", "sr", "sl"];

/// The advised stretches of an address space: start, end, and the flags as bits of [`WATCHED`].
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Advice(Vec<(u64, u64, u16)>);

impl Advice {
    pub(crate) fn record(pid: i32) -> Result<Advice, Quarantine> {
        let path = format!("/proc/{pid}/smaps");
        let text = std::fs::read(&path).or_quarantine(Reason::Unreadable, || path.clone())?;
        Ok(parse(&String::from_utf8_lossy(&text)))
    }

    /// Refuses a process whose advice is another.
    pub(crate) fn check(&self, pid: i32) -> Result<(), Quarantine> {
        let now = Advice::record(pid)?;
        if now == *self {
            return Ok(());
        }
        let differs = |(a, b): &(&(u64, u64, u16), &(u64, u64, u16))| a != b;
        let first = now.0.iter().zip(&self.0).find(differs).map(|(now, _)| now.0);
        let at = first.or_else(|| now.0.last().or(self.0.last()).map(|stretch| stretch.0));
        let detail = format!("advice on the memory of process {pid} near {:#x}", at.unwrap_or_default());
        Err(Quarantine::new(Reason::LayoutNotRestored, detail))
    }
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
    fn advice_of_this_process_is_seen() {
        let pid = std::process::id().cast_signed();
        let before = Advice::record(pid).unwrap();
        before.check(pid).unwrap();
        let changed = Advice(vec![(0x1000, 0x2000, 1)]);
        assert_eq!(changed.check(pid).unwrap_err().reason, Reason::LayoutNotRestored);
    }
}
