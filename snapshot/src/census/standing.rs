//! A container between two censuses.

use super::record::{Changes, FileKind, Reading, changes, provable};
use super::{Area, Areas, COUNTS_MAX, Program, REFERENCE_MAX, lazy_frees_of_proc};
use crate::process::Process;
use crate::reason::{Quarantine, Reason};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// The census of one container.
#[derive(Debug)]
pub(crate) struct Watch {
    program: Option<&'static Program>,
    /// Pages marked MADV_FREE on this machine when the references were taken.
    lazy_frees: Option<u64>,
}

/// What a process was when it was as the snapshot has it, and what may have changed since.
#[derive(Debug)]
pub(crate) struct Standing {
    reference: Option<Reference>,
    changes: Changes,
    /// Advice on memory may have changed.
    advice: bool,
    /// Pages may have been marked MADV_FREE.
    lazy_frees: bool,
    /// Some have been, of which the kernel does not tell yet.
    pending: bool,
    /// In paranoid mode everything is looked at, and what the census said is held against it.
    said: Areas,
    said_of_lazy_frees: bool,
    /// The census saw that pages were marked MADV_FREE, or wait to be.
    saw_lazy_frees: bool,
}

#[derive(Debug)]
struct Reference {
    reading: Reading,
    taken: Instant,
    /// Root, working directory and executable, held so that their addresses cannot be those of others.
    pins: Option<Vec<OwnedFd>>,
}

impl Watch {
    /// `wanted`: whether to use the census where there is one.
    pub(crate) fn new(wanted: bool) -> Watch {
        Watch { program: super::shared().ok().filter(|_| wanted), lazy_frees: None }
    }

    /// Asks what may have changed since the references were taken. Everything must be stopped.
    pub(crate) fn look(&self, processes: &mut [Process]) {
        let (pidfds, standings): (Vec<_>, Vec<_>) = processes
            .iter_mut()
            .map(Process::for_census)
            .map(|(_, pidfd, standing)| (pidfd, standing))
            .unzip();
        let sequences: Vec<u64> = standings.iter().map(|standing| standing.sequence()).collect();
        let answer = self.program.and_then(|program| program.take(&pidfds, &sequences).ok());
        let Some(answer) = answer.filter(|answer| answer.readings.len() == standings.len()) else {
            standings.into_iter().for_each(Standing::forget);
            return;
        };
        let lazy_frees = answer.lazy_frees.or_else(lazy_frees_of_proc);
        let more = lazy_frees.is_none() || lazy_frees != self.lazy_frees || answer.pending;
        for (standing, now) in standings.into_iter().zip(&answer.readings) {
            standing.compare(now, more);
            standing.pending = answer.pending;
        }
    }

    /// Asks again for the layouts, when they have been put back: where all mappings are as in the reference, so is
    /// the advice.
    pub(crate) fn look_at_layouts(&self, processes: &mut [Process]) {
        let Some(program) = self.program else { return };
        let (pidfds, standings): (Vec<_>, Vec<_>) = processes
            .iter_mut()
            .map(Process::for_census)
            .map(|(_, pidfd, standing)| (pidfd, standing))
            .unzip();
        let Ok(answer) = program.take(&pidfds, &[]) else { return };
        for (standing, now) in standings.into_iter().zip(&answer.readings) {
            let same = |reference: &Reference| reference.reading.same_layout(now, false);
            standing.advice = !standing.reference.as_ref().is_some_and(same);
        }
    }

    /// Takes references: everything is as the snapshot has it, and stopped.
    pub(crate) fn keep(&mut self, processes: &mut [Process]) {
        let Some(program) = self.program else { return };
        let mut all: Vec<_> = processes.iter_mut().map(Process::for_census).collect();
        // Held before the addresses are read.
        let pins: Vec<_> = all.iter().map(|(pid, ..)| pins(*pid)).collect();
        let pidfds: Vec<_> = all.iter().map(|(_, pidfd, _)| *pidfd).collect();
        let answer = program.take(&pidfds, &[]).ok();
        let Some(answer) = answer.filter(|answer| answer.readings.len() == all.len()) else {
            all.iter_mut().for_each(|(.., standing)| standing.reference = None);
            return;
        };
        self.lazy_frees = answer.lazy_frees.or_else(lazy_frees_of_proc);
        for (((.., standing), reading), pins) in all.iter_mut().zip(answer.readings).zip(pins) {
            standing.reference = Some(Reference { reading, taken: Instant::now(), pins });
        }
    }
}

impl Standing {
    /// Nothing is known yet.
    pub(crate) fn new() -> Standing {
        Standing {
            reference: None,
            changes: Changes::unknown(),
            advice: true,
            lazy_frees: true,
            pending: false,
            said: Areas::all(),
            said_of_lazy_frees: true,
            saw_lazy_frees: false,
        }
    }

    /// Whether the census saw that pages were marked MADV_FREE on this machine, or wait to be, also in doubt.
    pub(crate) fn saw_lazy_frees(&self) -> bool {
        self.saw_lazy_frees
    }

    /// The count of changes of the address space in the reference, if it can be trusted.
    fn sequence(&self) -> u64 {
        let young = self.reference.as_ref().filter(|reference| reference.taken.elapsed() < COUNTS_MAX);
        young.map_or(0, |reference| reference.reading.sequence())
    }

    /// Everything may have changed.
    pub(crate) fn forget(&mut self) {
        self.pending = false;
        self.changes = Changes::unknown();
        self.advice = true;
        self.lazy_frees = true;
        self.said = Areas::all();
        self.said_of_lazy_frees = true;
        self.saw_lazy_frees = false;
    }

    fn compare(&mut self, now: &Reading, lazy_frees: bool) {
        self.forget();
        let Some(reference) = &mut self.reference else { return };
        let age = reference.taken.elapsed();
        if age > REFERENCE_MAX {
            return;
        }
        self.changes = changes(&reference.reading, now, age < COUNTS_MAX);
        if reference.pins.is_none() {
            self.changes.areas.add(Area::Place);
        }
        if self.changes.areas.is_empty() {
            // As good as a new one.
            reference.taken = Instant::now();
            if reference.reading.sequence() != now.sequence() {
                reference.reading = now.clone();
            }
        }
        self.advice = self.changes.areas.has(Area::Layout);
        self.lazy_frees = lazy_frees;
        self.said = self.changes.areas;
        self.said_of_lazy_frees = lazy_frees;
        self.saw_lazy_frees = lazy_frees;
    }

    /// Looks at everything from now on, but remembers what the census said: [`Standing::contradicted`] tells
    /// when it was wrong.
    pub(crate) fn doubt(&mut self) {
        self.changes = Changes::unknown();
        self.advice = true;
        self.lazy_frees = true;
    }

    /// What the census said may have changed, also in doubt.
    pub(crate) fn said(&self) -> Areas {
        self.said
    }

    /// Something differs: an error if the census said that it cannot.
    pub(crate) fn contradicted(&self, area: Area, what: impl FnOnce() -> String) -> Result<(), Quarantine> {
        if self.said.has(area) {
            return Ok(());
        }
        Err(Quarantine::new(Reason::VerificationFailed, format!("the census missed {}", what())))
    }

    /// The same, for pages marked MADV_FREE.
    pub(crate) fn contradicted_of_lazy_frees(&self, what: impl FnOnce() -> String) -> Result<(), Quarantine> {
        if self.said_of_lazy_frees {
            return Ok(());
        }
        Err(Quarantine::new(Reason::VerificationFailed, format!("the census missed {}", what())))
    }

    /// Whether this area of the process (or of any thread) may have changed.
    pub(crate) fn changed(&self, area: Area) -> bool {
        self.changes.areas.has(area)
    }

    /// Whether any of these areas may have changed.
    pub(crate) fn any_changed(&self, areas: &[Area]) -> bool {
        self.changes.areas.has_any(areas)
    }

    /// Whether this area of one thread may have changed.
    pub(crate) fn changed_in(&self, tid: i32, area: Area) -> bool {
        self.changes.of_thread(tid).has(area)
    }

    /// Whether an unchanged area of descriptors says that this one is as it was: the census must know its kind.
    pub(crate) fn tells_of(&self, fd: i32, kind: FileKind) -> bool {
        provable(kind) && self.reference.as_ref().is_some_and(|r| r.reading.file(fd) == Some(kind))
    }

    /// Whether advice on memory may have changed.
    pub(crate) fn advice_changed(&self) -> bool {
        self.advice
    }

    /// Whether pages may have been marked MADV_FREE.
    pub(crate) fn lazily_freed(&self) -> bool {
        self.lazy_frees
    }

    /// Whether pages of the container have certainly been marked MADV_FREE, although the kernel does not count them
    /// yet.
    pub(crate) fn pending(&self) -> bool {
        self.pending
    }

    /// Whether the reference no longer describes the process, or there is none.
    pub(crate) fn outdated(&self) -> bool {
        self.reference.is_none() || !self.said.is_empty() || self.said_of_lazy_frees
    }
}

/// Holds what the addresses in a record stand for. `None`: one cannot be held.
fn pins(pid: i32) -> Option<Vec<OwnedFd>> {
    let hold = |what| {
        let path = format!("/proc/{pid}/{what}");
        open(path.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).ok()
    };
    ["root", "cwd", "exe"].into_iter().map(hold).collect()
}
