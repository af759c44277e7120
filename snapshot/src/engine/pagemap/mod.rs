//! The engine for stock kernels from 6.7 on: asynchronous write protection and page-map scans.
//!
//! ```text
//!   segment   one private mapping            [-----------------------------------------)
//!   runs      its pages with content of          [======)        [===)
//!             their own at the checkpoint           |              |
//!   image     a sealed memory file           [======][===] ...  (offsets)
//! ```
//! At the checkpoint the pages of all runs are protected, and in anonymous memory also the empty places of their
//! page tables: the kernel then reports what was written and nothing else, at 1.2 ns a page. The empty places of
//! file mappings are not: a marker of protection where the page cache has no page makes the kernel fault for
//! ever (seen on 6.18: `filemap_fault` takes the marker for a page that somebody else has mapped meanwhile).
//!
//! At a rewind a page is
//! - *clean*: of a run and not reported. That means the snapshot's content only if three more things hold,
//!   each of which is looked at: its mapping is still the one that was registered (a new one at the same place
//!   knows no protection, and old kernels move protected pages along with their protection), its page table is
//!   still there ([`cover`]), and in a mapping of a file, it is not the file's own page instead ([`words`]);
//! - *dirty*: of a run and reported, which includes pages that are gone. Copied back, without asking further;
//! - *extra*: not of a run, but with content of its own. Zeroed in place if it is one of few ([`extra`]), or
//!   given back to the kernel, which then shows zeros, or the file's page again.
//!
//! Extras are looked for where the process has pages anyway. They may be elsewhere: in memory that was empty, in
//! read-only mappings and even in the vdso, since `/proc/self/mem` writes there. Looking there means to look at
//! every page of a file, at 27 ns each; so the process's anonymous pages are counted instead, once everything is
//! put back. If the number is that of the snapshot, there is none too many. If it is not, or the kernel does not
//! count exactly (before 6.17), or there is swap (swapped pages are not counted), everything is looked at.
//!
//! Pages are copied by the process itself, from a read-only mapping of the image, all processes at once; when
//! few changed, or the process has no room for that mapping, from outside. What the process itself may not
//! write goes through `/proc/<pid>/mem`. Then they are protected again, unless they are *hot* ([`heat`]).

mod cover;
mod extra;
mod heat;
mod words;

use super::{Heat, Hints, MemoryEngine, MemoryImage, MemoryReport, Stopped};
use crate::inject::{Batch, Work};
use crate::proc::{Held, Mapping};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::PAGE;
use crate::sys::memory::{self, Region, Scan, ScanError, Shared, WriteProtect, page};
use crate::sys::process::{self, Piece};
use extra::{Extras, Fate};
use heat::HeatMap;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use words::{WORD, Words};

/// The size of a page as a length in this process.
const PAGE_LEN: usize = 4096;

/// The most regions one scan may report: 24 MiB of them. More changed runs than that is no request's work.
const REGIONS_MAX: usize = 1 << 20;

/// From so many pages on they are copied inside the target: a batch there costs some 45 us, then 0.25 us a page
/// against 0.55 us from outside (measured).
const INSIDE_PAGES_MIN: u64 = 150;

/// The largest image that is mapped into the target. Beyond, the page tables of the mapping would cost more
/// than the faster copy saves.
const INSIDE_BYTES_MAX: u64 = 256 << 20;

/// Extra pages of one range, beyond which they are given back rather than kept.
const KEPT_AT_ONCE_MAX: u64 = 64;

/// The most spans that are scanned rather than everything.
const SPANS_MAX: usize = 4096;

/// Zeros, to be written from outside.
static ZEROS: [u8; PAGE_LEN] = [0; PAGE_LEN];

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
    /// The offset in the file that its first page shows. Pages without own content belong to the page cache.
    file: Option<u64>,
    readable: bool,
    writable: bool,
}

impl Segment {
    /// What the page tables that hold a part of it span of it.
    fn window(&self, part: &Region) -> (u64, u64) {
        let (start, end) = (part.start.max(self.start), part.end.min(self.end));
        (cover::table(start).0.max(self.start), cover::table(end - PAGE).1.min(self.end))
    }

    fn is_read_only_file(&self) -> bool {
        self.file.is_some() && !self.writable
    }
}

/// Neighbouring pages with content, all of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    start: u64,
    end: u64,
    /// Where the content begins in the image.
    offset: u64,
    segment: u32,
}

/// The recorded memory of one process.
#[derive(Debug)]
struct Image {
    segments: Vec<Segment>,
    runs: Vec<Run>,
    /// Stretches of segments with nothing else between: each is registered by one call.
    groups: Vec<(u64, u64)>,
    /// Where there are pages: these are scanned.
    spans: Vec<(u64, u64)>,
    /// `/proc/<pid>/statm`, if it counts exactly.
    counter: Option<Held>,
    /// VM_DROPPABLE: the kernel may drop them any time, so a rewind does. They refuse userfaultfd.
    droppable: Vec<(u64, u64)>,
    /// The vdso. Not ours to protect, but `/proc/self/mem` writes even there.
    kernel: Vec<(u64, u64)>,
    /// The content of all runs, then the list of words; absent if there is none.
    content: Option<Shared>,
    /// Where the target sees the content, and the list in it.
    source: Option<u64>,
    words: Words,
    words_offset: u64,
    protect: WriteProtect,
    heat: HeatMap,
    extras: Extras,
    /// Where the kernel tells the thread that does the work which processor it runs on (rseq): it writes there
    /// whenever the thread runs, also in the middle of the work. So this page is written when the work is done.
    last: Option<Run>,
    /// Reused between rewinds.
    regions: Vec<Region>,
    details: Vec<Region>,
    plan: Plan,
    work: Work,
}

/// What a scan found to do.
#[derive(Debug, Default)]
struct Plan {
    /// Ranges to look at, in order.
    found: Vec<(u64, u64)>,
    /// Ranges about which the scan's silence means nothing.
    suspects: Vec<(u64, u64)>,
    /// Witnesses of tables of which nothing was reported.
    silent: Vec<u64>,
    /// Dirty pages: ascending, within one segment each.
    dirty: Vec<Run>,
    /// Reported, and not of a run: with the segment.
    unknown: Vec<(u64, u64, u32)>,
    /// Kept pages to be zeroed, as ranges.
    zero: Vec<(u64, u64)>,
    /// Pages to give back, and whether they may be guard markers.
    extra: Vec<(u64, u64, bool)>,
    /// Places to protect: without content, so that their next change shows, and kept pages that are tested.
    arm: Vec<(u64, u64)>,
    /// Every page is written, to take back MADV_FREE: that some were is no sign of heat.
    everything: bool,
    /// Pages of no run that were asked about.
    looked_at: u64,
    /// Changed pages are given back before they are written.
    afresh: bool,
    /// Work was started inside the target.
    running: bool,
    /// Pieces were left to be copied by the target.
    inside: bool,
}

/// Pages that are neither of a file nor the page of zeros; see [`holds_content`].
const OWN: Scan = Scan {
    inverted: page::FILE | page::ZERO,
    all: page::FILE | page::ZERO,
    any: page::PRESENT | page::SWAPPED,
    report: page::PRESENT | page::SWAPPED | page::WRITTEN,
};

/// Pages that are not protected, whether there is something or not, as far as there are page tables. With
/// exactly these masks the kernel takes a short way.
const WRITTEN: Scan = Scan { inverted: 0, all: page::WRITTEN, any: 0, report: page::WRITTEN };

/// Mappings that are not registered, whether there is something in them or not.
const UNREGISTERED: Scan =
    Scan { inverted: page::WP_ALLOWED, all: page::WP_ALLOWED, any: 0, report: page::WP_ALLOWED };

/// Whatever is in a page.
const ANYTHING: Scan = Scan {
    inverted: 0,
    all: 0,
    any: page::PRESENT | page::SWAPPED,
    report: page::PRESENT | page::SWAPPED | page::WRITTEN | page::ZERO | page::FILE,
};

/// Whether there is something in a page with these categories. What is swapped and yet not written is a marker of
/// protection, with nothing behind it.
fn holds_content(categories: u64) -> bool {
    categories & page::PRESENT != 0 || categories & page::WRITTEN != 0
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
            groups: Vec::new(),
            spans: Vec::new(),
            counter: counter(process.runner.pid)?,
            droppable: Vec::new(),
            kernel: Vec::new(),
            content: None,
            source: None,
            words: Words::default(),
            words_offset: 0,
            protect,
            heat: HeatMap::new(0, heat),
            extras: Extras::default(),
            last: None,
            regions: Vec::new(),
            details: Vec::new(),
            plan: Plan::default(),
            work: Work::default(),
        };
        image.divide(process, mappings)?;
        image.find_runs(process)?;
        image.copy(process, heat)?;
        image.protect_tables(process)?;
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

impl Image {
    /// Divides the address space into segments and groups of them, and registers those.
    fn divide(&mut self, process: &Stopped<'_>, mappings: &[Mapping]) -> Result<(), Quarantine> {
        let mut joins = false;
        for mapping in mappings {
            let (start, end) = (mapping.start, mapping.end);
            if mapping.shared || mapping.is_special() || process.agent.owns(start) {
                joins = false;
                if mapping.name == "[vdso]" {
                    self.kernel.push((start, end));
                }
                continue;
            }
            match self.groups.last_mut().filter(|_| joins) {
                Some(group) => group.1 = end,
                None => self.groups.push((start, end)),
            }
            joins = true;
            self.segments.push(Segment {
                start,
                end,
                file: (mapping.inode != 0).then_some(mapping.offset),
                readable: mapping.prot & libc::PROT_READ != 0,
                writable: mapping.writable(),
            });
        }
        for (start, end) in std::mem::take(&mut self.groups) {
            match self.protect.register(start, end) {
                Ok(()) => self.groups.push((start, end)),
                // One of them refuses: find it.
                Err(_) => self.register_each(process.runner.pid, start, end)?,
            }
        }
        let droppable = &self.droppable;
        self.segments.retain(|segment| !droppable.contains(&(segment.start, segment.end)));
        Ok(())
    }

    fn register_each(&mut self, pid: i32, start: u64, end: u64) -> Result<(), Quarantine> {
        let mut joins = false;
        for segment in self.segments.iter().filter(|s| s.start >= start && s.end <= end) {
            match self.protect.register(segment.start, segment.end) {
                Ok(()) => {
                    match self.groups.last_mut().filter(|_| joins) {
                        Some(group) => group.1 = segment.end,
                        None => self.groups.push((segment.start, segment.end)),
                    }
                    joins = true;
                }
                Err(Errno::EINVAL) if segment.file.is_none() && is_droppable(pid, segment.start)? => {
                    self.droppable.push((segment.start, segment.end));
                    joins = false;
                }
                Err(errno) => {
                    let detail = format!("tracking {:#x}-{:#x}", segment.start, segment.end);
                    return Err(Quarantine::because(Reason::MemoryNotRestored, detail, errno));
                }
            }
        }
        Ok(())
    }

    /// Something else was mapped at an address between two segments.
    fn split_groups(&mut self, at: u64) {
        let Some(index) = self.groups.iter().position(|(start, end)| (*start..*end).contains(&at)) else {
            return;
        };
        let next = self.segments.partition_point(|segment| segment.end <= at);
        let (Some(below), Some(above)) = (self.segments[..next].last(), self.segments.get(next)) else {
            return;
        };
        let (start, end) = self.groups[index];
        self.groups.splice(index..=index, [(start, below.end), (above.start, end)]);
    }

    /// Finds the pages with content.
    fn find_runs(&mut self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let mut regions = std::mem::take(&mut self.regions);
        regions.clear();
        for (start, end) in &self.groups {
            scan(process, *start, *end, OWN, &mut regions)?;
        }
        let mut offset = 0;
        let mut index = 0;
        for region in regions.iter().filter(|region| holds_content(region.categories)) {
            let mut at = region.start;
            while at < region.end {
                while self.segments.get(index).is_some_and(|segment| segment.end <= at) {
                    index += 1;
                }
                let Some(segment) = self.segments.get(index) else { break };
                let (start, end) = (at.max(segment.start), region.end.min(segment.end));
                let segment = u32::try_from(index).unwrap_or(u32::MAX);
                match self.runs.last_mut() {
                    Some(last) if last.end == start && last.segment == segment => last.end = end,
                    _ => self.runs.push(Run { start, end, offset, segment }),
                }
                offset += end - start;
                at = end;
            }
        }
        for (start, end) in &self.kernel {
            regions.clear();
            scan(process, *start, *end, OWN, &mut regions)?;
            if !regions.is_empty() {
                let detail = format!("{start:#x}-{end:#x} was written to");
                return Err(Quarantine::new(Reason::SpecialMappingChanged, detail));
            }
        }
        self.regions = regions;
        Ok(())
    }

    /// Copies the content of all runs into a memory file, seals it, and shows it to the target.
    fn copy(&mut self, process: &mut Stopped<'_>, heat: Heat) -> Result<(), Quarantine> {
        let Some(last) = self.runs.last() else { return Ok(()) };
        let bytes = last.offset + (last.end - last.start);
        let of_files: u64 = self
            .runs
            .iter()
            .filter(|run| self.segments[run.segment as usize].file.is_some())
            .map(Run::len)
            .sum();
        self.words_offset = bytes;
        let words = of_files / PAGE + cover::witnesses(&self.runs).len() as u64;
        let total = bytes + (words * WORD).next_multiple_of(PAGE);
        let (fd, file) = process.agent.make_file(process.tracer, process.runner, process.pidfd)?;
        let filled = self.fill(process, &file, bytes, total);
        let inside = filled.is_ok() && total <= INSIDE_BYTES_MAX;
        // Also after a failure: it closes the descriptor there.
        let shown = process.agent.show(process.tracer, process.runner, fd, if inside { total } else { 0 })?;
        filled?;
        self.source = shown;
        if let Some(source) = shown {
            self.split_groups(source);
        }
        self.heat = HeatMap::new(position(bytes / PAGE), heat);
        for page in &self.words.unknown {
            self.heat.pin(position(*page));
        }
        let pointer = process.runner.state.rseq.pointer;
        let page = pointer - pointer % PAGE;
        self.last = run_at(&self.runs, page).map(|run| run.part(page, page + PAGE));
        if let Some(last) = &self.last {
            self.heat.pin(position(last.offset / PAGE));
        }
        Ok(())
    }

    fn fill(
        &mut self,
        process: &Stopped<'_>,
        file: &OwnedFd,
        bytes: u64,
        total: u64,
    ) -> Result<(), Quarantine> {
        let failed = || format!("copying {bytes} bytes");
        let len = usize::try_from(total).or_quarantine(Reason::MemoryNotRestored, failed)?;
        memory::set_len(file.as_fd(), total).or_quarantine(Reason::MemoryNotRestored, failed)?;
        let mut content =
            Shared::map(file.as_fd(), len, true).or_quarantine(Reason::MemoryNotRestored, failed)?;
        for run in &self.runs {
            content
                .fill(position(run.offset), position(run.len()), process.mem.as_fd(), run.start)
                .or_quarantine(Reason::Unreadable, || format!("reading {:#x}-{:#x}", run.start, run.end))?;
        }
        self.words = Words::find(process.runner.pid, &self.segments, &self.runs, |offset, into| {
            content.read(position(offset), into);
        })?;
        let mut list = Vec::with_capacity(self.words.list.len() * position(WORD));
        for (address, value) in &self.words.list {
            list.extend_from_slice(&address.to_le_bytes());
            list.extend_from_slice(&value.to_le_bytes());
        }
        content.write(position(self.words_offset), &list);
        // A writable mapping would forbid the seal.
        drop(content);
        let seals = libc::F_SEAL_SEAL | libc::F_SEAL_WRITE | libc::F_SEAL_SHRINK | libc::F_SEAL_GROW;
        memory::seal(file.as_fd(), seals).or_quarantine(Reason::MemoryNotRestored, failed)?;
        self.content =
            Some(Shared::map(file.as_fd(), len, false).or_quarantine(Reason::MemoryNotRestored, failed)?);
        Ok(())
    }

    /// Protects runs, and the empty places beside them in anonymous memory, except what stays writable.
    fn protect_tables(&mut self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let mut regions = std::mem::take(&mut self.regions);
        regions.clear();
        for (start, end) in &self.groups {
            scan(process, *start, *end, ANYTHING, &mut regions)?;
        }
        let mut windows: Vec<(u64, u64)> = Vec::new();
        for region in &regions {
            let first = self.segments.partition_point(|segment| segment.end <= region.start);
            let here = self.segments[first..].iter().take_while(|segment| segment.start < region.end);
            windows
                .extend(here.filter(|segment| segment.file.is_none()).map(|segment| segment.window(region)));
        }
        self.regions = regions;
        // Only where there are page tables: markers for reserved gigabytes would need tables of their own.
        windows.sort_unstable();
        windows.dedup_by(|next, last| {
            let touch = next.0 <= last.1;
            if touch {
                last.1 = last.1.max(next.1);
            }
            touch
        });
        for (start, end) in &windows {
            self.protect_but_pinned(*start, *end)?;
        }
        self.spans.append(&mut windows);
        for run in self.runs.clone() {
            if self.segments[run.segment as usize].file.is_some() {
                self.protect_but_pinned(run.start, run.end)?;
                self.spans.push((run.start, run.end));
            }
        }
        join_spans(&mut self.spans);
        Ok(())
    }

    fn protect_but_pinned(&self, start: u64, end: u64) -> Result<(), Quarantine> {
        let mut at = start;
        while let Some(pinned) = self.next_pinned(at, end) {
            self.protect(at, pinned)?;
            at = pinned + PAGE;
        }
        self.protect(at, end)
    }

    /// The first page in a range that is to stay writable.
    fn next_pinned(&self, start: u64, end: u64) -> Option<u64> {
        let first = self.runs.partition_point(|run| run.end <= start);
        self.runs[first..].iter().take_while(|run| run.start < end).find_map(|run| {
            let from = start.max(run.start);
            let pages = (end.min(run.end) - from) / PAGE;
            let index = (run.offset + (from - run.start)) / PAGE;
            let pinned = (0..pages).find(|page| self.heat.is_pinned(position(index + page)))?;
            Some(from + pinned * PAGE)
        })
    }

    fn protect(&self, start: u64, end: u64) -> Result<(), Quarantine> {
        if start >= end {
            return Ok(());
        }
        self.protect
            .protect(start, end)
            .or_quarantine(Reason::MemoryNotRestored, || format!("protecting {start:#x}-{end:#x}"))
    }

    /// Finds mappings that are no longer the registered ones, and registers them again.
    fn find_remapped(&mut self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        for (start, end) in &self.groups {
            self.details.clear();
            scan(process, *start, *end, UNREGISTERED, &mut self.details)?;
            if self.details.is_empty() {
                continue;
            }
            self.protect
                .register(*start, *end)
                .or_quarantine(Reason::MemoryNotRestored, || format!("tracking {start:#x}-{end:#x} again"))?;
            self.plan.suspects.extend(self.details.iter().map(|region| (region.start, region.end)));
        }
        Ok(())
    }

    /// Finds page tables that are gone, as far as no word tells.
    fn find_lost_tables(&mut self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let mut silent = std::mem::take(&mut self.plan.silent);
        silent.clear();
        cover::silent(&self.words.wordless, &self.regions, |witness| silent.push(witness));
        for witness in &silent {
            self.details.clear();
            scan(process, *witness, witness + PAGE, ANYTHING, &mut self.details)?;
            if self.details.is_empty() {
                self.plan.suspects.push(cover::table(*witness));
            }
        }
        self.plan.silent = silent;
        Ok(())
    }

    /// Looks for what changed: everywhere, or where there are pages anyway.
    fn look(
        &mut self,
        process: &Stopped<'_>,
        everywhere: bool,
        mappings_kept: bool,
    ) -> Result<(), Quarantine> {
        if !mappings_kept {
            self.find_remapped(process)?;
        }
        self.regions.clear();
        let spans = if everywhere { &self.groups } else { &self.spans };
        for (start, end) in spans {
            scan(process, *start, *end, WRITTEN, &mut self.regions)?;
        }
        self.find_lost_tables(process)?;
        self.plan.join(&self.regions);
        if self.plan.everything {
            self.plan.dirty.extend_from_slice(&self.runs);
        }
        let found = std::mem::take(&mut self.plan.found);
        for (start, end) in &found {
            self.classify(*start, *end);
        }
        self.plan.found = found;
        self.resolve(process, everywhere)?;
        if everywhere {
            self.look_into_files(process)?;
        }
        for (start, end) in &self.droppable {
            self.details.clear();
            scan(process, *start, *end, ANYTHING, &mut self.details)?;
            if !self.details.is_empty() {
                self.plan.extra.push((*start, *end, false));
            }
        }
        let (heat, plan) = (&self.heat, &mut self.plan);
        if plan.afresh {
            self.extras.give_up(|page| plan.extra.push((page, page + PAGE, false)));
            return Ok(());
        }
        self.extras.settle(
            |number| heat.is_tested(number),
            |page, fate| {
                match fate {
                    Fate::Zero | Fate::Test => push_range(&mut plan.zero, page),
                    Fate::Drop => plan.extra.push((page, page + PAGE, false)),
                }
                if fate != Fate::Zero {
                    push_range(&mut plan.arm, page);
                }
            },
        );
        Ok(())
    }

    /// Looks for pages of its own in mappings where the process cannot write, but `/proc/self/mem` can.
    fn look_into_files(&mut self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let read_only = self.segments.iter().filter(|segment| segment.is_read_only_file());
        let ranges = read_only.map(|segment| (segment.start, segment.end)).chain(self.kernel.iter().copied());
        for (start, end) in ranges {
            self.details.clear();
            scan(process, start, end, OWN, &mut self.details)?;
            for region in self.details.iter().filter(|region| holds_content(region.categories)) {
                let mut at = region.start;
                let first = self.runs.partition_point(|run| run.end <= at);
                for run in self.runs[first..].iter().take_while(|run| run.start < region.end) {
                    if at < run.start {
                        self.plan.extra.push((at, run.start, false));
                    }
                    at = run.end;
                }
                if at < region.end {
                    self.plan.extra.push((at, region.end, false));
                }
            }
        }
        Ok(())
    }

    /// Whether the process has as many anonymous pages as it must have.
    fn count_is_right(&self, process: &Stopped<'_>) -> Result<bool, Quarantine> {
        let Some(counter) = &self.counter else { return Ok(false) };
        let unreadable = || format!("statm of process {}", process.runner.pid);
        let mut buffer = [0; 128];
        let text = counter.read_into(&mut buffer).or_quarantine(Reason::Unreadable, unreadable)?;
        let want = (self.heat.len() + self.extras.len()) as u64;
        Ok(anonymous_pages(text) == Some(want) && !memory::has_swap())
    }

    /// Sorts a range into what is of runs and what is not.
    fn classify(&mut self, start: u64, end: u64) {
        let mut index = self.runs.partition_point(|run| run.end <= start);
        let mut at = start;
        while let Some(run) = self.runs.get(index).filter(|run| run.start < end).copied() {
            if at < run.start {
                self.beside(at, run.start);
                at = run.start;
            }
            let to = run.end.min(end);
            if !self.plan.everything {
                self.plan.add_dirty(run.part(at, to));
            }
            at = to;
            index += 1;
        }
        if at < end {
            self.beside(at, end);
        }
    }

    /// Looks at a range that is of no run.
    fn beside(&mut self, start: u64, end: u64) {
        let (plan, segments) = (&mut self.plan, &self.segments);
        self.extras.report(start, end, |start, end| {
            let first = segments.partition_point(|segment| segment.end <= start);
            let here = segments[first..].iter().take_while(|segment| segment.start < end);
            for (index, segment) in (first..).zip(here).filter(|(_, segment)| !segment.is_read_only_file()) {
                let index = u32::try_from(index).unwrap_or(u32::MAX);
                plan.unknown.push((start.max(segment.start), end.min(segment.end), index));
            }
        });
    }

    /// Asks what is in the places that were reported and are of no run.
    fn resolve(&mut self, process: &Stopped<'_>, everywhere: bool) -> Result<(), Quarantine> {
        let plan = &mut self.plan;
        let mut more = false;
        for (start, end, index) in plan.unknown.drain(..) {
            let segment = &self.segments[index as usize];
            plan.looked_at += (end - start) / PAGE;
            self.details.clear();
            scan(process, start, end, ANYTHING, &mut self.details)?;
            // Elsewhere and in suspicious ranges there may be no page tables, and protection would make some.
            let arms = !everywhere && plan.suspects.is_empty() && segment.file.is_none();
            let mut from = start;
            for region in &self.details {
                if region.categories & (page::FILE | page::ZERO) != 0 || !holds_content(region.categories) {
                    continue;
                }
                if everywhere && segment.file.is_none() && self.spans.len() < SPANS_MAX {
                    // Next time it is looked at in the first place.
                    self.spans.push(segment.window(region));
                    more = true;
                }
                let present = region.categories & page::PRESENT != 0;
                let pages = (region.end - region.start) / PAGE;
                let keep = present
                    && segment.file.is_none()
                    && segment.writable
                    && pages <= KEPT_AT_ONCE_MAX
                    && (0..pages).all(|page| self.extras.keep(region.start + page * PAGE));
                if !keep {
                    plan.extra.push((region.start, region.end, !present));
                    continue;
                }
                if arms && from < region.start {
                    plan.arm.push((from, region.start));
                }
                from = region.end;
            }
            if arms && from < end {
                plan.arm.push((from, end));
            }
        }
        if more {
            join_spans(&mut self.spans);
        }
        Ok(())
    }

    /// Writes dirty pages that the process itself may not write.
    fn write_protected(&self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let Some(content) = &self.content else { return Ok(()) };
        for run in self.plan.dirty.iter().filter(|run| !self.writes_itself(run)) {
            content
                .drain(position(run.offset), position(run.len()), process.mem.as_fd(), run.start)
                .or_quarantine(Reason::MemoryNotRestored, || {
                    format!("writing {:#x}-{:#x}", run.start, run.end)
                })?;
        }
        Ok(())
    }

    fn writes_itself(&self, run: &Run) -> bool {
        self.segments[run.segment as usize].writable
    }

    /// Writes the other dirty pages, and the zeros, from outside.
    fn write_outside(&self, process: &Stopped<'_>) -> Result<(), Quarantine> {
        let mut pieces = Vec::with_capacity(self.plan.dirty.len() + self.plan.zero.len());
        if let Some(content) = &self.content {
            pieces.extend(self.plan.dirty.iter().filter(|run| self.writes_itself(run)).map(|run| Piece {
                local: content.address(position(run.offset)),
                remote: run.start,
                len: position(run.len()),
            }));
        }
        for (start, end) in &self.plan.zero {
            for page in (*start..*end).step_by(PAGE_LEN) {
                pieces.push(Piece { local: ZEROS.as_ptr(), remote: page, len: PAGE_LEN });
            }
        }
        process::write_memory(process.runner.pid, &pieces)
            .or_quarantine(Reason::MemoryNotRestored, || format!("writing {} ranges", pieces.len()))
    }

    /// Lists what the target is to do itself.
    fn list_work(&mut self) {
        let (plan, work) = (&self.plan, &mut self.work);
        work.clear();
        for (start, end, guard) in &plan.extra {
            if *guard {
                work.unguard(*start, end - start);
            }
            work.discard(*start, end - start);
        }
        let written_here = |run: &&Run| self.segments[run.segment as usize].writable;
        if plan.afresh && !plan.everything {
            let anonymous = |run: &&Run| self.segments[run.segment as usize].file.is_none();
            for run in plan.dirty.iter().filter(written_here).filter(anonymous) {
                work.discard(run.start, run.len());
            }
        }
        let Some(source) = self.source.filter(|_| plan.inside) else { return };
        for (start, end) in &plan.zero {
            work.zero(*start, end - start);
        }
        for run in plan.dirty.iter().filter(written_here) {
            work.copy(run.start, source + run.offset, run.len());
        }
        if !self.words.list.is_empty() {
            work.compare(source + self.words_offset, self.words.list.len() as u64);
        }
    }

    /// Finds the words that are not what they must be, and suspects their tables. Whether there are any.
    fn suspect_words(&mut self, process: &Stopped<'_>) -> Result<bool, Quarantine> {
        let mut found = vec![0; self.words.list.len()];
        let addresses = self.words.list.iter().map(|(address, _)| *address);
        process::read_quadwords(process.runner.pid, addresses, &mut found)
            .or_quarantine(Reason::Unreadable, || "witnesses".to_owned())?;
        let wrong = self.words.list.iter().zip(&found).filter(|((_, want), have)| want != *have);
        let before = self.plan.suspects.len();
        self.plan.suspects.extend(wrong.map(|((address, _), _)| cover::table(*address)));
        Ok(self.plan.suspects.len() > before)
    }

    /// Starts the work that was found.
    fn begin(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine> {
        if self.plan.everything {
            self.replace_anonymous(process)?;
        }
        self.write_protected(process)?;
        self.plan.inside = self.source.is_some()
            && (self.plan.dirty_pages() >= INSIDE_PAGES_MIN || !self.plan.extra.is_empty());
        self.list_work();
        self.plan.running = process.agent.start_work(process.runner, &mut self.work)?;
        Ok(())
    }

    /// Gives all anonymous pages of runs back, to be made anew. A page that was marked MADV_FREE once and written
    /// to later is not marked again by the next such call, only looked upon as clean, and nothing would tell of it.
    fn replace_anonymous(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine> {
        self.work.clear();
        for run in &self.runs {
            if self.segments[run.segment as usize].file.is_none() {
                self.work.discard(run.start, run.len());
            }
        }
        while process.agent.start_work(process.runner, &mut self.work)? {
            process.agent.finish_work(process.tracer, process.runner, &mut self.work)?;
        }
        Ok(())
    }

    /// Waits for the work. Whether all words are right.
    fn end(&mut self, process: &mut Stopped<'_>) -> Result<bool, Quarantine> {
        let ran = self.plan.running;
        while self.plan.running {
            process.agent.finish_work(process.tracer, process.runner, &mut self.work)?;
            self.plan.running = process.agent.start_work(process.runner, &mut self.work)?;
        }
        if ran && let (Some(last), Some(content)) = (&self.last, &self.content) {
            content
                .drain(position(last.offset), PAGE_LEN, process.mem.as_fd(), last.start)
                .or_quarantine(Reason::MemoryNotRestored, || format!("writing {:#x}", last.start))?;
        }
        if self.plan.inside && self.work.different() == 0 {
            return Ok(true);
        }
        if !self.plan.inside {
            self.write_outside(process)?;
        }
        self.plan.suspects.clear();
        Ok(!self.suspect_words(process)?)
    }

    fn account(&self, report: &mut MemoryReport) {
        let pages = |ranges: &[(u64, u64)]| ranges.iter().map(|(start, end)| end - start).sum::<u64>() / PAGE;
        report.scanned += self.plan.dirty_pages() + self.plan.looked_at;
        report.copied += self.plan.dirty_pages() + pages(&self.plan.zero);
        report.dropped += self.plan.extra.iter().map(|(start, end, _)| end - start).sum::<u64>() / PAGE;
        report.hot = self.heat.hot() + self.extras.len() as u64;
    }

    /// Counts the change of every dirty page and protects the cold ones again. After the content: a marker on
    /// an absent page would hide that it is absent.
    fn protect_cold(&mut self) -> Result<(), Quarantine> {
        let mut pending: Option<(u64, u64)> = None;
        for index in 0..self.plan.dirty.len() {
            let run = self.plan.dirty[index];
            let first = position(run.offset / PAGE);
            for page in 0..position(run.len() / PAGE) {
                if !self.heat.put_back(first + page, !self.plan.everything) {
                    continue;
                }
                let start = run.start + page as u64 * PAGE;
                match &mut pending {
                    Some((_, end)) if *end == start => *end = start + PAGE,
                    _ => {
                        if let Some((start, end)) = pending.replace((start, start + PAGE)) {
                            self.protect(start, end)?;
                        }
                    }
                }
            }
        }
        if let Some((start, end)) = pending {
            self.protect(start, end)?;
        }
        self.plan.arm.iter().try_for_each(|(start, end)| self.protect(*start, *end))
    }
}

/// Adds a page to a list of ranges.
fn push_range(ranges: &mut Vec<(u64, u64)>, page: u64) {
    match ranges.last_mut() {
        Some((_, end)) if *end == page => *end += PAGE,
        _ => ranges.push((page, page + PAGE)),
    }
}

/// Sorts ranges and joins those that are near: to scan a gap costs less than another call.
fn join_spans(spans: &mut Vec<(u64, u64)>) {
    const NEAR: u64 = 256 * PAGE;
    spans.sort_unstable();
    spans.dedup_by(|next, last| {
        let near = next.0 <= last.1.saturating_add(NEAR);
        if near {
            last.1 = last.1.max(next.1);
        }
        near
    });
}

/// Opens the count of a process's pages, if this kernel counts exactly.
fn counter(pid: i32) -> Result<Option<Held>, Quarantine> {
    static EXACT: OnceLock<bool> = OnceLock::new();
    let path = format!("/proc/{pid}/statm");
    let exact = *EXACT.get_or_init(|| {
        let Ok(own) = Held::open("/proc/self/statm") else { return false };
        let count = || anonymous_pages(own.read_into(&mut [0; 128]).ok()?);
        memory::counts_every_page(count)
    });
    if !exact || memory::has_swap() {
        return Ok(None);
    }
    Held::open(&path).map(Some).or_quarantine(Reason::Unreadable, || path)
}

/// The anonymous pages in the text of statm: size, resident, and of those what belongs to files or is shared.
fn anonymous_pages(statm: &[u8]) -> Option<u64> {
    let mut fields = std::str::from_utf8(statm).ok()?.split_ascii_whitespace().skip(1);
    let resident: u64 = fields.next()?.parse().ok()?;
    resident.checked_sub(fields.next()?.parse().ok()?)
}

/// The run that holds an address.
fn run_at(runs: &[Run], address: u64) -> Option<&Run> {
    runs.get(runs.partition_point(|run| run.end <= address)).filter(|run| run.start <= address)
}

impl Run {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    /// The part of it between two addresses in it.
    fn part(&self, start: u64, end: u64) -> Run {
        Run { start, end, offset: self.offset + (start - self.start), segment: self.segment }
    }
}

impl Plan {
    fn clear(&mut self) {
        self.found.clear();
        self.dirty.clear();
        self.unknown.clear();
        self.zero.clear();
        self.extra.clear();
        self.arm.clear();
        self.looked_at = 0;
        self.running = false;
        self.inside = false;
    }

    fn add_dirty(&mut self, run: Run) {
        match self.dirty.last_mut() {
            Some(last)
                if last.segment == run.segment
                    && last.end == run.start
                    && last.offset + last.len() == run.offset =>
            {
                last.end = run.end;
            }
            _ => self.dirty.push(run),
        }
    }

    /// Joins what was reported and what is suspicious into one ascending list.
    fn join(&mut self, regions: &[Region]) {
        self.found.extend(regions.iter().map(|region| (region.start, region.end)));
        if self.suspects.is_empty() {
            return;
        }
        self.found.extend_from_slice(&self.suspects);
        self.found.sort_unstable();
        let mut last = 0;
        for index in 1..self.found.len() {
            let (start, end) = self.found[index];
            if start <= self.found[last].1 {
                self.found[last].1 = self.found[last].1.max(end);
            } else {
                last += 1;
                self.found[last] = (start, end);
            }
        }
        self.found.truncate(last + 1);
    }

    fn dirty_pages(&self) -> u64 {
        self.dirty.iter().map(Run::len).sum::<u64>() / PAGE
    }
}

impl MemoryImage for Image {
    fn scan(&mut self, process: &mut Stopped<'_>, hints: Hints) -> Result<(), Quarantine> {
        self.plan.clear();
        self.plan.suspects.clear();
        self.plan.everything = hints.everything;
        self.plan.afresh = hints.everything || hints.afresh;
        self.heat.next_round();
        // Injected work needs it, and it writes to the thread's memory, so it comes before the scan.
        process.runner.prepare(process.tracer, process.mem)?;
        self.look(process, self.counter.is_none(), hints.mappings_kept)
    }

    fn start(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine> {
        self.begin(process)
    }

    fn finish(&mut self, process: &mut Stopped<'_>) -> Result<MemoryReport, Quarantine> {
        let mut report = MemoryReport::default();
        let matching = self.end(process)?;
        self.protect_cold()?;
        self.account(&mut report);
        if matching && (self.counter.is_none() || self.count_is_right(process)?) {
            return Ok(report);
        }
        // Something is where it was not looked for.
        self.plan.clear();
        self.look(process, true, false)?;
        self.begin(process)?;
        if !self.end(process)? {
            let detail = format!("process {} does not hold what was written", process.runner.pid);
            return Err(Quarantine::new(Reason::MemoryNotRestored, detail));
        }
        self.protect_cold()?;
        self.account(&mut report);
        Ok(report)
    }

    fn verify(&mut self, process: &mut Stopped<'_>) -> Result<(), Quarantine> {
        let mut expected = vec![0u8; 1 << 20];
        let mut found = vec![0u8; 1 << 20];
        let pid = process.runner.pid;
        for run in &self.runs {
            let Some(content) = &self.content else { continue };
            let mut at = run.start;
            while at < run.end {
                let len = position(run.end - at).min(expected.len());
                content.read(position(run.offset + (at - run.start)), &mut expected[..len]);
                compare(process.mem, pid, at, &expected[..len], &mut found[..len])?;
                at += len as u64;
            }
        }
        for (start, end) in self.groups.iter().chain(&self.kernel) {
            self.details.clear();
            scan(process, *start, *end, OWN, &mut self.details)?;
            let with_content = self.details.iter().filter(|region| holds_content(region.categories));
            for page in with_content.flat_map(|region| (region.start..region.end).step_by(PAGE_LEN)) {
                if run_at(&self.runs, page).is_some() {
                    continue;
                }
                if !self.extras.holds(page) {
                    let detail = format!("a page at {page:#x} that the snapshot does not have");
                    return Err(Quarantine::new(Reason::VerificationFailed, detail));
                }
                compare(process.mem, pid, page, &ZEROS, &mut found[..PAGE_LEN])?;
            }
        }
        Ok(())
    }

    fn pages(&self) -> u64 {
        self.heat.len() as u64
    }
}

/// Compares memory of the target with what it must be.
fn compare(mem: &File, pid: i32, at: u64, expected: &[u8], found: &mut [u8]) -> Result<(), Quarantine> {
    mem.read_exact_at(found, at).or_quarantine(Reason::VerificationFailed, || format!("reading {at:#x}"))?;
    if expected == found {
        return Ok(());
    }
    let index = expected.iter().zip(found.iter()).position(|(a, b)| a != b).unwrap_or(0);
    let detail = format!("byte at {:#x} of process {pid}", at + index as u64);
    Err(Quarantine::new(Reason::VerificationFailed, detail))
}

/// Scans a range of the target's pages.
fn scan(
    process: &Stopped<'_>,
    start: u64,
    end: u64,
    what: Scan,
    regions: &mut Vec<Region>,
) -> Result<(), Quarantine> {
    memory::scan(process.pagemap.as_fd(), start, end, what, regions, REGIONS_MAX).map_err(|error| {
        let reason = match error {
            ScanError::Overrun(_) => Reason::ScanOverrun,
            ScanError::Failed(_) => Reason::Unreadable,
        };
        Quarantine::because(reason, format!("scanning {start:#x}-{end:#x}"), error)
    })
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

    fn run(start: u64, end: u64, offset: u64, segment: u32) -> Run {
        Run { start, end, offset, segment }
    }

    #[test]
    fn dirty_ranges_that_touch_in_memory_and_image_are_one() {
        let mut plan = Plan::default();
        plan.add_dirty(run(0, 4096, 0, 0));
        plan.add_dirty(run(4096, 8192, 4096, 0));
        plan.add_dirty(run(8192, 12288, 8192, 1));
        plan.add_dirty(run(12288, 16384, 20480, 1));
        assert_eq!(plan.dirty.len(), 3);
        assert_eq!(plan.dirty[0], run(0, 8192, 0, 0));
        assert_eq!(plan.dirty_pages(), 4);
    }

    #[test]
    fn suspects_join_what_was_reported() {
        let region = |start, end| Region { start, end, categories: 0 };
        let mut plan = Plan::default();
        plan.join(&[region(1, 2), region(5, 6)]);
        assert_eq!(plan.found, [(1, 2), (5, 6)]);
        plan.clear();
        plan.suspects = vec![(4, 9), (2, 3)];
        plan.join(&[region(1, 2), region(5, 6), region(20, 21)]);
        assert_eq!(plan.found, [(1, 3), (4, 9), (20, 21)]);
    }

    #[test]
    fn a_run_is_found_by_any_address_in_it() {
        let runs = [run(10, 20, 0, 0), run(30, 40, 10, 0)];
        assert_eq!(run_at(&runs, 10), Some(&runs[0]));
        assert_eq!(run_at(&runs, 39), Some(&runs[1]));
        assert_eq!([9, 20, 29, 40].map(|at| run_at(&runs, at)), [None; 4]);
        assert_eq!(runs[1].part(33, 35), run(33, 35, 13, 0));
    }

    #[test]
    fn neighbouring_pages_are_one_range() {
        let mut ranges = Vec::new();
        for page in [0, 1, 3, 4, 5] {
            push_range(&mut ranges, page * PAGE);
        }
        assert_eq!(ranges, [(0, 2 * PAGE), (3 * PAGE, 6 * PAGE)]);
    }
}
