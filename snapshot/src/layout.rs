//! The layout of an address space: which mappings there must be, and how to get back to them.

use crate::inject::{Agent, Batch, args};
use crate::proc::{Mapping, mappings};
use crate::reason::{Quarantine, Reason};

/// One step back to the recorded layout, executed by the target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Not in the snapshot.
    Unmap { start: u64, end: u64 },
    /// Anonymous memory that is gone.
    Map { start: u64, end: u64, prot: i32, grows_down: bool },
    /// Another protection.
    Protect { start: u64, end: u64, prot: i32 },
    /// Another name of anonymous memory.
    Name { start: u64, end: u64, name: Option<String> },
}

/// The recorded mappings of a process.
#[derive(Debug)]
pub(crate) struct Layout {
    /// The text of `/proc/<pid>/maps`: equal text means an equal layout.
    text: Vec<u8>,
    pub(crate) mappings: Vec<Mapping>,
}

impl Layout {
    pub(crate) fn parse(text: &[u8]) -> Result<Layout, Quarantine> {
        let mappings = mappings(text)
            .map_err(|line| Quarantine::new(Reason::Unreadable, format!("a line of maps: {line}")))?;
        Ok(Layout { text: text.to_vec(), mappings })
    }

    /// The steps from the layout in `text` to this one; none if they are equal.
    pub(crate) fn difference(&self, text: &[u8], agent: &Agent) -> Result<Vec<Step>, Quarantine> {
        if text == self.text {
            return Ok(Vec::new());
        }
        let now = mappings(text)
            .map_err(|line| Quarantine::new(Reason::Unreadable, format!("a line of maps: {line}")))?;
        steps(&self.mappings, &now, &|address| agent.owns(address))
    }
}

/// Where two layouts agree or differ, piece by piece, in address order.
fn steps(
    want: &[Mapping],
    have: &[Mapping],
    is_agent: &dyn Fn(u64) -> bool,
) -> Result<Vec<Step>, Quarantine> {
    let mut steps = Vec::new();
    let (mut i, mut j, mut at) = (0, 0, 0u64);
    loop {
        while want.get(i).is_some_and(|m| m.end <= at) {
            i += 1;
        }
        while have.get(j).is_some_and(|m| m.end <= at) {
            j += 1;
        }
        let (old, new) = (want.get(i), have.get(j));
        let begins = |m: Option<&Mapping>| m.map_or(u64::MAX, |m| m.start.max(at));
        let start = begins(old).min(begins(new));
        if start == u64::MAX {
            return Ok(join(steps));
        }
        // A mapping that does not cover the piece bounds it by its start, one that does by its end.
        let old_here = old.filter(|m| m.start <= start);
        let new_here = new.filter(|m| m.start <= start);
        let bound =
            |m: Option<&Mapping>| m.map_or(u64::MAX, |m| if m.start <= start { m.end } else { m.start });
        let end = bound(old).min(bound(new));
        let mapping_of = old_here.or(new_here);
        if is_agent(start)
            && !matches!((old_here, new_here), (Some(a), Some(b)) if a.same_object(b, start) && a.prot == b.prot)
        {
            return Err(Quarantine::new(Reason::AgentAltered, format!("mapping at {start:#x}")));
        }
        match (old_here, new_here) {
            (Some(a), Some(b)) if a.same_object(b, start) => {
                if a.prot != b.prot {
                    if a.is_special() {
                        return Err(lost(a, start, end));
                    }
                    steps.push(Step::Protect { start, end, prot: a.prot });
                }
                if a.name != b.name && a.is_anonymous() && a.anonymous_name() != b.anonymous_name() {
                    steps.push(Step::Name { start, end, name: a.anonymous_name().map(str::to_owned) });
                }
            }
            (Some(a), now) => {
                if !a.is_anonymous() {
                    return Err(lost(a, start, end));
                }
                if now.is_some() {
                    steps.push(Step::Unmap { start, end });
                }
                steps.push(Step::Map { start, end, prot: a.prot, grows_down: a.name == "[stack]" });
                if let Some(name) = a.anonymous_name() {
                    steps.push(Step::Name { start, end, name: Some(name.to_owned()) });
                }
            }
            (None, Some(b)) => {
                if b.is_special() && b.name != "[uprobes]" {
                    // [aio] is a file mapping; here are only vdso and vvar, moved by mremap.
                    return Err(lost(b, start, end));
                }
                if b.name.starts_with("/[aio]") {
                    return Err(Quarantine::new(Reason::AsyncIo, format!("a ring at {start:#x}")));
                }
                steps.push(Step::Unmap { start, end });
            }
            (None, None) => unreachable_piece(mapping_of),
        }
        at = end;
    }
}

/// A piece starts where one of the two layouts has a mapping, so one of them covers it.
fn unreachable_piece(mapping: Option<&Mapping>) {
    debug_assert!(mapping.is_some(), "a piece of nothing");
}

fn lost(m: &Mapping, start: u64, end: u64) -> Quarantine {
    let reason = if m.is_special() {
        Reason::SpecialMappingChanged
    } else if m.shared && m.writable() {
        Reason::SharedMapping
    } else {
        Reason::FileMappingReplaced
    };
    Quarantine::new(reason, format!("{start:#x}-{end:#x} {}", m.name))
}

/// Joins neighbouring unmaps: a request that made 20,000 small mappings is undone by few calls. Unmapping
/// a range also unmaps nothing between, so pieces must touch.
fn join(steps: Vec<Step>) -> Vec<Step> {
    let mut joined: Vec<Step> = Vec::with_capacity(steps.len());
    for step in steps {
        if let (Some(Step::Unmap { end, .. }), Step::Unmap { start, end: next }) = (joined.last_mut(), &step)
            && *end == *start
        {
            *end = *next;
            continue;
        }
        joined.push(step);
    }
    joined
}

impl Step {
    /// Adds the system call of this step to a batch.
    pub(crate) fn add_to(&self, batch: &mut Batch) -> crate::inject::Call {
        const NO_FD: u64 = u64::MAX;
        match self {
            Step::Unmap { start, end } => batch.call(libc::SYS_munmap, [*start, end - start, 0, 0, 0, 0]),
            Step::Map { start, end, prot, grows_down } => {
                let flags = libc::MAP_PRIVATE
                    | libc::MAP_ANONYMOUS
                    | libc::MAP_FIXED_NOREPLACE
                    | libc::MAP_NORESERVE
                    | if *grows_down { libc::MAP_GROWSDOWN } else { 0 };
                batch.call(libc::SYS_mmap, [*start, end - start, bits(*prot), bits(flags), NO_FD, 0])
            }
            Step::Protect { start, end, prot } => {
                batch.call(libc::SYS_mprotect, [*start, end - start, bits(*prot), 0, 0, 0])
            }
            Step::Name { start, end, name } => {
                let (number, len) = (libc::SYS_prctl, end - start);
                let (op, sub) = (PR_SET_VMA, PR_SET_VMA_ANON_NAME);
                match name {
                    None => batch.call(number, [op, sub, *start, len, 0, 0]),
                    Some(name) => {
                        let mut text = name.clone().into_bytes();
                        text.push(0);
                        let text = batch.bytes(&text);
                        batch.add(number, args![op, sub, *start, len, text])
                    }
                }
            }
        }
    }

    /// Scratch bytes that the step needs.
    pub(crate) fn scratch(&self) -> usize {
        match self {
            Step::Name { name: Some(name), .. } => name.len() + 16,
            _ => 0,
        }
    }
}

const PR_SET_VMA: u64 = 0x5356_4d41;
const PR_SET_VMA_ANON_NAME: u64 = 0;

fn bits(value: i32) -> u64 {
    u64::from(value.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Vec<Mapping> {
        mappings(text.as_bytes()).expect("well formed")
    }

    fn diff(want: &str, have: &str) -> Result<Vec<Step>, Reason> {
        steps(&parse(want), &parse(have), &|_| false).map_err(|q| q.reason)
    }

    const ANON: &str = "1000-5000 rw-p 00000000 00:00 0 \n";

    #[test]
    fn equal_layouts_need_nothing_however_they_are_split() {
        let split = "1000-2000 rw-p 00000000 00:00 0 \n2000-5000 rw-p 00000000 00:00 0 \n";
        assert_eq!(diff(ANON, split), Ok(vec![]));
    }

    #[test]
    fn a_hole_is_filled_and_growth_is_cut() {
        let have = "1000-2000 rw-p 00000000 00:00 0 \n3000-9000 rw-p 00000000 00:00 0 \n";
        assert_eq!(
            diff(ANON, have),
            Ok(vec![
                Step::Map { start: 0x2000, end: 0x3000, prot: 3, grows_down: false },
                Step::Unmap { start: 0x5000, end: 0x9000 },
            ])
        );
    }

    #[test]
    fn a_protection_is_put_back_where_it_differs() {
        let have = "1000-2000 r--p 00000000 00:00 0 \n2000-5000 rw-p 00000000 00:00 0 \n";
        assert_eq!(diff(ANON, have), Ok(vec![Step::Protect { start: 0x1000, end: 0x2000, prot: 3 }]));
    }

    #[test]
    fn a_file_over_anonymous_memory_is_replaced_again() {
        let have = "1000-2000 rw-p 00000000 08:01 9    /f\n2000-5000 rw-p 00000000 00:00 0 \n";
        assert_eq!(
            diff(ANON, have),
            Ok(vec![
                Step::Unmap { start: 0x1000, end: 0x2000 },
                Step::Map { start: 0x1000, end: 0x2000, prot: 3, grows_down: false },
            ])
        );
    }

    #[test]
    fn a_lost_or_moved_file_mapping_is_refused() {
        let text = "1000-3000 r-xp 00000000 08:01 9    /bin/x\n";
        assert_eq!(diff(text, ""), Err(Reason::FileMappingReplaced));
        assert_eq!(
            diff(text, "1000-3000 r-xp 00001000 08:01 9    /bin/x\n"),
            Err(Reason::FileMappingReplaced)
        );
        assert_eq!(
            diff(text, "1000-3000 r-xp 00000000 08:01 8    /bin/x\n"),
            Err(Reason::FileMappingReplaced)
        );
    }

    #[test]
    fn the_vdso_must_stay_and_no_second_one_may_appear() {
        let vdso = "1000-2000 r-xp 00000000 00:00 0    [vdso]\n";
        assert_eq!(diff(vdso, ""), Err(Reason::SpecialMappingChanged));
        assert_eq!(diff("", vdso), Err(Reason::SpecialMappingChanged));
        assert_eq!(diff(vdso, vdso), Ok(vec![]));
    }

    #[test]
    fn the_agent_must_be_where_it_was_put() {
        let agent = "1000-2000 r-xs 00000000 00:01 77    /memfd:x (deleted)\n";
        let at = |address: u64| (0x1000..0x2000).contains(&address);
        let reason = |have: &str| steps(&parse(agent), &parse(have), &at).map_err(|q| q.reason);
        assert_eq!(reason(agent), Ok(vec![]));
        assert_eq!(reason(""), Err(Reason::AgentAltered));
        assert_eq!(reason(&agent.replace("r-xs", "---s")), Err(Reason::AgentAltered));
        assert_eq!(reason("1000-2000 rwxp 00000000 00:00 0 \n"), Err(Reason::AgentAltered));
    }

    #[test]
    fn many_small_neighbours_are_unmapped_at_once() {
        let mut have = String::new();
        for i in 0..1000u64 {
            let prot = if i % 2 == 0 { "rw-p" } else { "r--p" };
            have += &format!("{:x}-{:x} {prot} 00000000 00:00 0 \n", 0x10000 + i * 4096, 0x11000 + i * 4096);
        }
        assert_eq!(diff("", &have), Ok(vec![Step::Unmap { start: 0x10000, end: 0x10000 + 1000 * 4096 }]));
    }

    #[test]
    fn names_of_anonymous_memory_are_part_of_the_layout() {
        let named = "1000-5000 rw-p 00000000 00:00 0    [anon: Go: heap]\n";
        let name = Some(" Go: heap".to_owned());
        assert_eq!(diff(named, ANON), Ok(vec![Step::Name { start: 0x1000, end: 0x5000, name }]));
        assert_eq!(diff(ANON, named), Ok(vec![Step::Name { start: 0x1000, end: 0x5000, name: None }]));
    }
}
