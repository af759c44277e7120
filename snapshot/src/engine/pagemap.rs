//! The engine for stock kernels from 6.7 on: asynchronous write protection and page-map scans.
//!
//! ```text
//!   segment   one private mapping            [-----------------------------------------)
//!   runs      its pages with content of          [======)        [===)
//!             their own at the checkpoint           |              |
//!   image     a sealed memory file           [======][===] ...  (offsets)
//! ```
//! At a rewind a page of a segment is
//! - *clean*: of a run, present, not written since it was protected, and in a range where that
//!   can be known. Nothing else is clean: not WRITTEN alone proves nothing in a mapping that was replaced;
//! - *dirty*: of a run and not clean, which includes pages that are gone (MADV_DONTNEED). Copied back;
//! - *extra*: not of a run, but with content of its own: given back to the kernel, which then shows zeros, or
//!   the file's page again (a changed text page is such an extra: read-only mappings are scanned as well,
//!   since `/proc/self/mem` writes to them).
//!
//! Copied pages are protected again, unless they are *hot*: then they stay writable (the next request pays
//! no fault), are always reported as written, and always copied.

use super::{Heat, MemoryEngine, MemoryImage, MemoryReport, Stopped};
use crate::inject::Batch;
use crate::proc::Mapping;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::PAGE;
use crate::sys::memory::{self, Region, Scan, ScanError, Shared, WriteProtect, page};
use crate::sys::process::{self, Piece};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

/// The most regions one scan may report: 24 MiB of them. More changed runs than that is no request's work.
const REGIONS_MAX: usize = 1 << 20;

/// Asynchronous write protection plus page-map scans.
#[derive(Debug)]
pub(crate) struct Pagemap {
    _private: (),
}

impl Pagemap {
    /// The engine, if this kernel has what it needs.
    pub(crate) fn new() -> Option<Pagemap> {
        memory::probe_tracking().ok().map(|()| Pagemap { _private: () })
    }
}

/// A private mapping.
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: u64,
    end: u64,
    /// Backed by a file: pages without own content belong to the page cache.
    file: bool,
    writable: bool,
    /// VM_DROPPABLE: the kernel may drop it any time, so a rewind may too. It refuses userfaultfd.
    droppable: bool,
    /// Its runs, as indices.
    runs: (usize, usize),
}

/// Neighbouring pages with content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    /// Where the content begins in the image.
    offset: u64,
}

/// The recorded memory of one process.
#[derive(Debug)]
struct Image {
    segments: Vec<Segment>,
    runs: Vec<Run>,
    /// The content of all runs; absent if there is none.
    content: Option<Shared>,
    protect: WriteProtect,
    /// Per page of the image: how often it changed since the last cooling.
    heat: Vec<u8>,
    policy: Heat,
    rewinds_since_cooling: u8,
    regions: Vec<Region>,
    plan: Plan,
}

/// What a scan found to do.
#[derive(Debug, Default)]
struct Plan {
    /// Dirty pages: address range and offset in the image; ascending, within one segment each.
    dirty: Vec<Run>,
    /// For each dirty range whether its segment is writable.
    writable: Vec<bool>,
    /// Pages to give back.
    extra: Vec<(u64, u64)>,
    scanned: u64,
    /// Mappings were made anew and know no protection.
    remapped: bool,
    /// Every page is written, to take back MADV_FREE: that some were is no sign of heat.
    everything: bool,
}

impl MemoryEngine for Pagemap {
    fn checkpoint(
        &self,
        process: &mut Stopped<'_>,
        mappings: &[Mapping],
        heat: Heat,
    ) -> Result<Box<dyn MemoryImage>, Quarantine> {
        let protect = start_tracking(process)?;
        let mut image = Image {
            segments: Vec::new(),
            runs: Vec::new(),
            content: None,
            protect,
            heat: Vec::new(),
            policy: heat,
            rewinds_since_cooling: 0,
            regions: Vec::new(),
            plan: Plan::default(),
        };
        for mapping in mappings {
            if mapping.shared || mapping.is_special() || process.agent.owns(mapping.start) {
                continue;
            }
            image.add_segment(process, mapping)?;
        }
        image.copy(process.mem)?;
        for run in &image.runs {
            image.protect.protect(run.start, run.end).or_quarantine(Reason::MemoryNotRestored, || {
                format!("protecting {:#x}-{:#x}", run.start, run.end)
            })?;
        }
        Ok(Box::new(image))
    }
}

/// Makes a userfaultfd inside the target, where it must be made, and takes it over.
fn start_tracking(process: &mut Stopped<'_>) -> Result<WriteProtect, Quarantine> {
    let pid = process.runner.pid;
    let flags = (libc::O_CLOEXEC | libc::O_NONBLOCK | memory::UFFD_USER_MODE_ONLY).cast_unsigned();
    let mut batch = Batch::new();
    let made = batch.call(libc::SYS_userfaultfd, [u64::from(flags), 0, 0, 0, 0, 0]);
    let fd = process
        .agent
        .run(process.tracer, process.runner, &batch)?
        .get(made)
        .or_quarantine(Reason::Kernel, || format!("userfaultfd in process {pid}"))?;
    let number = i32::try_from(fd).unwrap_or(-1);
    let ours = process::pidfd_getfd(process.pidfd.as_fd(), number)
        .or_quarantine(Reason::InjectionFailed, || format!("taking descriptor {fd} of process {pid}"))?;
    let mut batch = Batch::new();
    let closed = batch.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
    process
        .agent
        .run(process.tracer, process.runner, &batch)?
        .get(closed)
        .or_quarantine(Reason::InjectionFailed, || format!("closing descriptor {fd} of process {pid}"))?;
    WriteProtect::start(ours).or_quarantine(Reason::Kernel, || "asynchronous write protection".to_owned())
}

/// Pages with content of their own: neither of a file nor the page of zeros.
const OWN: Scan = Scan {
    inverted: page::FILE | page::ZERO,
    all: page::FILE | page::ZERO,
    any: page::PRESENT | page::SWAPPED,
    report: page::PRESENT,
};

impl Image {
    fn add_segment(&mut self, process: &Stopped<'_>, mapping: &Mapping) -> Result<(), Quarantine> {
        let mut regions = Vec::new();
        memory::scan(process.pagemap.as_fd(), mapping.start, mapping.end, OWN, &mut regions, REGIONS_MAX)
            .map_err(|error| scan_failed(error, mapping.start, mapping.end))?;
        let first = self.runs.len();
        let mut droppable = false;
        if !regions.is_empty() {
            match self.protect.register(mapping.start, mapping.end) {
                Ok(()) => {}
                Err(Errno::EINVAL)
                    if mapping.is_anonymous() && is_droppable(process.runner.pid, mapping.start)? =>
                {
                    droppable = true;
                }
                Err(errno) => {
                    let detail = format!("tracking {:#x}-{:#x} {}", mapping.start, mapping.end, mapping.name);
                    return Err(Quarantine::because(Reason::MemoryNotRestored, detail, errno));
                }
            }
        }
        if !droppable {
            let mut offset = self.runs.last().map_or(0, |run| run.offset + (run.end - run.start));
            for region in regions {
                match self.runs[first..].last_mut() {
                    Some(last) if last.end == region.start => last.end = region.end,
                    _ => self.runs.push(Run { start: region.start, end: region.end, offset }),
                }
                offset += region.end - region.start;
            }
        }
        self.segments.push(Segment {
            start: mapping.start,
            end: mapping.end,
            file: mapping.inode != 0,
            writable: mapping.writable(),
            droppable,
            runs: (first, self.runs.len()),
        });
        Ok(())
    }

    /// Copies the content of all runs into a memory file and seals it.
    fn copy(&mut self, mem: &File) -> Result<(), Quarantine> {
        let Some(last) = self.runs.last() else { return Ok(()) };
        let bytes = last.offset + (last.end - last.start);
        let failed = || format!("copying {bytes} bytes");
        let len = usize::try_from(bytes).or_quarantine(Reason::MemoryNotRestored, failed)?;
        let file = memory::memfd(c"snapshot").or_quarantine(Reason::MemoryNotRestored, failed)?;
        memory::set_len(file.as_fd(), bytes).or_quarantine(Reason::MemoryNotRestored, failed)?;
        let mut content =
            Shared::map(file.as_fd(), len, true).or_quarantine(Reason::MemoryNotRestored, failed)?;
        for run in &self.runs {
            content
                .fill(position(run.offset), position(run.end - run.start), mem.as_fd(), run.start)
                .or_quarantine(Reason::Unreadable, || format!("reading {:#x}-{:#x}", run.start, run.end))?;
        }
        // A writable mapping would forbid the seal.
        drop(content);
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        memory::seal(file.as_fd(), seals).or_quarantine(Reason::MemoryNotRestored, failed)?;
        self.content =
            Some(Shared::map(file.as_fd(), len, false).or_quarantine(Reason::MemoryNotRestored, failed)?);
        self.heat = vec![0; len / position(PAGE)];
        Ok(())
    }

    /// Ranges to scan with one call each: neighbouring segments of one kind. Asking whether a page is of a
    /// file makes a scan many times dearer, so anonymous segments are scanned without.
    fn spans(&self) -> Vec<(u64, u64, bool)> {
        let mut spans: Vec<(u64, u64, bool)> = Vec::with_capacity(self.segments.len());
        for segment in &self.segments {
            match spans.last_mut() {
                Some((_, end, file)) if *end == segment.start && *file == segment.file => *end = segment.end,
                _ => spans.push((segment.start, segment.end, segment.file)),
            }
        }
        spans
    }

    /// Sorts what one segment's pages are into the plan.
    fn classify(&mut self, segment: Segment, regions: &[Region]) {
        let runs = &self.runs[segment.runs.0..segment.runs.1];
        let plan = &mut self.plan;
        let mut missing_from = segment.start;
        let mut next = 0;
        for region in regions {
            let (start, end) = (region.start.max(segment.start), region.end.min(segment.end));
            plan.scanned += (end - start) / PAGE;
            each_overlap(runs, &mut next, missing_from, start, |run| plan.add_dirty(run, segment.writable));
            missing_from = end;
            let has = |bits| region.categories & bits == bits;
            if segment.droppable {
                plan.extra.push((start, end));
                continue;
            }
            // What the kernel calls swapped may be a marker that a dropped page of a file mapping left
            // behind, protected and with nothing in it. So only what is present counts as clean.
            let clean = !plan.everything
                && has(page::PRESENT | page::WP_ALLOWED)
                && !has(page::WRITTEN)
                && !has(page::ZERO)
                && !has(page::FILE);
            let own = !has(page::FILE) && !has(page::ZERO);
            let mut extra_from = start;
            each_overlap(runs, &mut next, start, end, |run| {
                if own && run.start > extra_from {
                    plan.extra.push((extra_from, run.start));
                }
                extra_from = run.end;
                if !clean {
                    plan.add_dirty(run, segment.writable);
                }
            });
            if own && extra_from < end {
                plan.extra.push((extra_from, end));
            }
        }
        each_overlap(runs, &mut next, missing_from, segment.end, |run| plan.add_dirty(run, segment.writable));
    }

    /// Writes all dirty pages.
    fn write_back(&self, process: &Stopped<'_>) -> Result<u64, Quarantine> {
        let Some(content) = &self.content else { return Ok(0) };
        let mut pieces = Vec::with_capacity(self.plan.dirty.len());
        let mut pages = 0;
        for (run, writable) in self.plan.dirty.iter().zip(&self.plan.writable) {
            let len = position(run.end - run.start);
            pages += (run.end - run.start) / PAGE;
            if *writable {
                pieces.push(Piece { local: content.address(position(run.offset)), remote: run.start, len });
            } else {
                // Only /proc/<pid>/mem writes where the process itself may not.
                content
                    .drain(position(run.offset), len, process.mem.as_fd(), run.start)
                    .or_quarantine(Reason::MemoryNotRestored, || {
                        format!("writing {:#x}-{:#x}", run.start, run.end)
                    })?;
            }
        }
        process::write_memory(process.runner.pid, &pieces)
            .or_quarantine(Reason::MemoryNotRestored, || format!("writing {} ranges", pieces.len()))?;
        Ok(pages)
    }

    /// Gives back pages that the snapshot does not have.
    fn drop_extra(&self, process: &mut Stopped<'_>) -> Result<u64, Quarantine> {
        let mut pages = 0;
        let mut extra = self.plan.extra.iter().peekable();
        while extra.peek().is_some() {
            let mut batch = Batch::new();
            let mut calls = Vec::new();
            while batch.has_room(0)
                && let Some((start, end)) = extra.next()
            {
                // Only the process itself can be asked: process_madvise does not offer this advice.
                let advice = libc::MADV_DONTNEED as u64;
                calls.push((batch.call(libc::SYS_madvise, [*start, end - start, advice, 0, 0, 0]), *start));
                pages += (end - start) / PAGE;
            }
            let answers = process.agent.run(process.tracer, process.runner, &batch)?;
            for (call, start) in calls {
                answers
                    .get(call)
                    .or_quarantine(Reason::MemoryNotRestored, || format!("dropping pages at {start:#x}"))?;
            }
        }
        Ok(pages)
    }

    /// Counts the change of every dirty page and protects the cold ones again.
    fn protect_cold(&mut self) -> Result<(), Quarantine> {
        let cooling = self.policy.cold_after != 0 && self.rewinds_since_cooling >= self.policy.cold_after;
        self.rewinds_since_cooling = if cooling { 0 } else { self.rewinds_since_cooling + 1 };
        let hot_after = self.policy.hot_after;
        let mut pending: Option<(u64, u64)> = None;
        let (protect, segments) = (&self.protect, &self.segments);
        let flush = |range: Option<(u64, u64)>| match range {
            None => Ok(()),
            Some((start, end)) => protect_registered(protect, segments, start, end),
        };
        for run in &self.plan.dirty {
            let first = position(run.offset / PAGE);
            for (page, heat) in
                self.heat[first..][..position((run.end - run.start) / PAGE)].iter_mut().enumerate()
            {
                let start = run.start + page as u64 * PAGE;
                *heat = heat.saturating_add(u8::from(!self.plan.everything));
                if cooling && *heat >= hot_after {
                    // One more change makes it hot again.
                    *heat = hot_after.saturating_sub(1);
                }
                if hot_after != 0 && *heat >= hot_after {
                    continue;
                }
                match &mut pending {
                    Some((_, end)) if *end == start => *end = start + PAGE,
                    _ => flush(pending.replace((start, start + PAGE)))?,
                }
            }
        }
        flush(pending)
    }

    /// After mappings were made anew: everything with runs must be tracked again.
    fn register_again(&self) -> Result<(), Quarantine> {
        for segment in &self.segments {
            if segment.runs.0 != segment.runs.1 {
                self.protect
                    .register(segment.start, segment.end)
                    .or_quarantine(Reason::MemoryNotRestored, || {
                        format!("tracking {:#x}-{:#x}", segment.start, segment.end)
                    })?;
            }
        }
        Ok(())
    }
}

/// Protects a range that may lie in a mapping that was made anew at the same place with the same look, which
/// the layout does not show: then it is not registered.
fn protect_registered(
    protect: &WriteProtect,
    segments: &[Segment],
    start: u64,
    end: u64,
) -> Result<(), Quarantine> {
    let mut done = protect.protect(start, end);
    if done == Err(Errno::ENOENT) {
        for segment in segments.iter().filter(|s| s.start < end && s.end > start) {
            protect.register(segment.start, segment.end).or_quarantine(Reason::MemoryNotRestored, || {
                format!("tracking {:#x}-{:#x} again", segment.start, segment.end)
            })?;
        }
        done = protect.protect(start, end);
    }
    done.or_quarantine(Reason::MemoryNotRestored, || format!("protecting {start:#x}-{end:#x}"))
}

impl Plan {
    fn clear(&mut self) {
        self.dirty.clear();
        self.writable.clear();
        self.extra.clear();
        self.scanned = 0;
    }

    fn add_dirty(&mut self, run: Run, writable: bool) {
        match (self.dirty.last_mut(), self.writable.last()) {
            (Some(last), Some(w))
                if *w == writable
                    && last.end == run.start
                    && last.offset + (last.end - last.start) == run.offset =>
            {
                last.end = run.end;
            }
            _ => {
                self.dirty.push(run);
                self.writable.push(writable);
            }
        }
    }
}

/// Calls `found` with the part of each run that lies in `[start, end)`. `next` is the first run that may
/// matter; ranges must be asked for in ascending order.
fn each_overlap(runs: &[Run], next: &mut usize, start: u64, end: u64, mut found: impl FnMut(Run)) {
    while let Some(run) = runs.get(*next) {
        if run.start >= end {
            return;
        }
        let (from, to) = (run.start.max(start), run.end.min(end));
        if from < to {
            found(Run { start: from, end: to, offset: run.offset + (from - run.start) });
        }
        if run.end > end {
            return;
        }
        *next += 1;
    }
}

impl MemoryImage for Image {
    fn scan(
        &mut self,
        process: &mut Stopped<'_>,
        remapped: bool,
        everything: bool,
    ) -> Result<(), Quarantine> {
        self.plan.clear();
        self.plan.remapped = remapped;
        self.plan.everything = everything;
        let mut segments = self.segments.clone().into_iter().peekable();
        for (start, end, file) in self.spans() {
            let what = Scan {
                any: page::PRESENT | page::SWAPPED,
                report: page::PRESENT
                    | page::SWAPPED
                    | page::WRITTEN
                    | page::WP_ALLOWED
                    | page::ZERO
                    | if file { page::FILE } else { 0 },
                ..Scan::default()
            };
            let mut regions = std::mem::take(&mut self.regions);
            regions.clear();
            memory::scan(process.pagemap.as_fd(), start, end, what, &mut regions, REGIONS_MAX)
                .map_err(|error| scan_failed(error, start, end))?;
            let mut from = 0;
            while let Some(segment) = segments.next_if(|segment| segment.start < end) {
                // Regions may reach over the boundary of two segments.
                while regions.get(from).is_some_and(|r| r.end <= segment.start) {
                    from += 1;
                }
                let to = from + regions[from..].iter().take_while(|r| r.start < segment.end).count();
                self.classify(segment, &regions[from..to]);
            }
            self.regions = regions;
        }
        Ok(())
    }

    fn restore(&mut self, process: &mut Stopped<'_>) -> Result<MemoryReport, Quarantine> {
        // Before the copy: writing to a dropped page must not leave it untracked.
        if self.plan.remapped {
            self.register_again()?;
        }
        let dropped = self.drop_extra(process)?;
        // Protection comes after the content: a marker on an absent page would hide that it is absent.
        let copied = self.write_back(process)?;
        self.protect_cold()?;
        let hot_after = self.policy.hot_after;
        let hot = if hot_after == 0 { 0 } else { self.heat.iter().filter(|h| **h >= hot_after).count() };
        Ok(MemoryReport { scanned: self.plan.scanned, copied, dropped, hot: hot as u64 })
    }

    fn verify(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine> {
        let mut expected = vec![0u8; 1 << 20];
        let mut found = vec![0u8; 1 << 20];
        for run in &self.runs {
            let Some(content) = &self.content else { continue };
            let mut at = run.start;
            while at < run.end {
                let len = position(run.end - at).min(expected.len());
                content.read(position(run.offset + (at - run.start)), &mut expected[..len]);
                process
                    .mem
                    .read_exact_at(&mut found[..len], at)
                    .or_quarantine(Reason::VerificationFailed, || format!("reading {at:#x}"))?;
                if expected[..len] != found[..len] {
                    let differs = |(a, b): (&u8, &u8)| a != b;
                    let index = expected[..len].iter().zip(&found[..len]).position(differs).unwrap_or(0);
                    let detail =
                        format!("byte at {:#x} of process {}", at + index as u64, process.runner.pid);
                    return Err(Quarantine::new(Reason::VerificationFailed, detail));
                }
                at += len as u64;
            }
        }
        for segment in self.segments.iter().filter(|s| !s.droppable) {
            let mut regions = Vec::new();
            let (start, end) = (segment.start, segment.end);
            memory::scan(process.pagemap.as_fd(), start, end, OWN, &mut regions, REGIONS_MAX)
                .map_err(|error| scan_failed(error, start, end))?;
            let runs = &self.runs[segment.runs.0..segment.runs.1];
            let mut next = 0;
            for region in regions {
                let mut covered = region.start;
                each_overlap(runs, &mut next, region.start, region.end, |run| {
                    if run.start == covered {
                        covered = run.end;
                    }
                });
                if covered != region.end {
                    let detail = format!("a page at {covered:#x} that the snapshot does not have");
                    return Err(Quarantine::new(Reason::VerificationFailed, detail));
                }
            }
        }
        Ok(())
    }

    fn pages(&self) -> u64 {
        self.heat.len() as u64
    }
}

fn scan_failed(error: ScanError, start: u64, end: u64) -> Quarantine {
    let reason = match error {
        ScanError::Overrun(_) => Reason::ScanOverrun,
        ScanError::Failed(_) => Reason::Unreadable,
    };
    Quarantine::because(reason, format!("scanning {start:#x}-{end:#x}"), error)
}

/// Whether the mapping at `start` is VM_DROPPABLE (the vDSO's getrandom page), by its flags in smaps.
fn is_droppable(pid: i32, start: u64) -> Result<bool, Quarantine> {
    let path = format!("/proc/{pid}/smaps");
    let text = std::fs::read_to_string(&path).or_quarantine(Reason::Unreadable, || path.clone())?;
    let head = format!("{start:x}-");
    let mapping = text.lines().skip_while(|line| !line.starts_with(&head));
    let flags = mapping.skip(1).find_map(|line| line.strip_prefix("VmFlags:"));
    Ok(flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "dp")))
}

/// An offset in the image as an index. The image is mapped, so every offset in it is one.
fn position(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(start: u64, end: u64, offset: u64) -> Run {
        Run { start, end, offset }
    }

    fn overlaps(runs: &[Run], ranges: &[(u64, u64)]) -> Vec<Run> {
        let (mut next, mut all) = (0, Vec::new());
        for (start, end) in ranges {
            each_overlap(runs, &mut next, *start, *end, |run| all.push(run));
        }
        all
    }

    #[test]
    fn overlaps_are_cut_at_both_ends_and_found_once() {
        let runs = [run(10, 20, 0), run(30, 40, 10)];
        assert_eq!(
            overlaps(&runs, &[(0, 15), (15, 35), (35, 99)]),
            [run(10, 15, 0), run(15, 20, 5), run(30, 35, 10), run(35, 40, 15),]
        );
        assert_eq!(overlaps(&runs, &[(20, 30)]), []);
        assert_eq!(overlaps(&runs, &[(0, 10), (40, 50)]), []);
        assert_eq!(overlaps(&runs, &[(0, 99)]), runs);
    }

    #[test]
    fn dirty_ranges_that_touch_in_memory_and_image_are_one() {
        let mut plan = Plan::default();
        plan.add_dirty(run(0, 4096, 0), true);
        plan.add_dirty(run(4096, 8192, 4096), true);
        plan.add_dirty(run(8192, 12288, 8192), false);
        plan.add_dirty(run(12288, 16384, 20480), false);
        assert_eq!(plan.dirty.len(), 3);
        assert_eq!(plan.dirty[0], run(0, 8192, 0));
    }
}
