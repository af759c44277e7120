//! One process of a snapshot: what was recorded of it, and the steps that put it back.

use crate::census::{Area, Areas, Standing};
use crate::engine::{Heat, Hints, MemoryEngine, MemoryImage, Stopped};
use crate::freeze::Tracer;
use crate::inject::{Agent, Answers, Batch, Call, LANES, Runner};
use crate::layout::{Layout, Step};
use crate::objects::advice::Advice;
use crate::objects::attributes::{
    self, ProcessAttributes, ProcessReader, ProcessWriter, ThreadAttributes, ThreadReader, ThreadWriter,
};
use crate::objects::backing::Backing;
use crate::objects::fds::{Descriptors, RecordError, TableDifference};
use crate::objects::identity::{Identity, Seen, shares_tables};
use crate::objects::limits::{Limits, Schedule};
use crate::objects::place::Place;
use crate::proc::{self, Held};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::registers::ThreadState;
use crate::report::RewindReport;
use crate::sys::process::{self, Shared};
use crate::sys::ptrace;
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, Instant};

/// How often the layout is compared and corrected before it counts as not restorable.
const LAYOUT_ROUNDS: usize = 5;
/// Pending signals taken away per batch, and batches.
const SIGNALS_AT_ONCE: usize = 128;
const SIGNAL_ROUNDS: usize = 1024;

type Image = Box<dyn MemoryImage>;

/// A thread of the snapshot.
#[derive(Debug)]
struct Thread {
    tid: i32,
    /// Its name; and, since it is held open, the proof that it is the same thread.
    comm: Held,
    /// The children it forked: they hang on the forking thread, not on the leader.
    children: Option<Held>,
    known_children: Vec<u8>,
    identity: Identity,
    schedule: Schedule,
    state: ThreadState,
    /// Recorded by injection, after everything else.
    attributes: Option<ThreadAttributes>,
}

/// A process of the snapshot.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pidfd: OwnedFd,
    mem: File,
    pagemap: File,
    maps: Held,
    /// `/proc/<pid>/task`.
    tasks: File,
    /// The main thread first.
    threads: Vec<Thread>,
    limits: Limits,
    place: Place,
    fds: Descriptors,
    seen: Seen,
    /// A `syscall` instruction in the vdso and the address of a short string.
    entry: (u64, u64),
    agent: Option<Agent>,
    layout: Option<Layout>,
    attributes: Option<ProcessAttributes>,
    image: Option<Image>,
    advice: Option<Advice>,
    /// KiB of memory marked MADV_FREE at the checkpoint, and whether there is more now.
    lazily_freed: (u64, bool),
    backing: Backing,
    /// What the census said at the beginning of this rewind.
    standing: Standing,
}

/// What [`Process::inspect`] found.
#[derive(Debug)]
pub(crate) struct Inspection {
    table: TableDifference,
    /// From the layout as it was found to the recorded one.
    steps: Vec<Step>,
    names: Vec<Vec<u8>>,
}

impl Inspection {
    fn layout_differs(&self) -> bool {
        !self.steps.is_empty()
    }

    /// The name of a thread, if it may have changed.
    fn name(&self, index: usize) -> &[u8] {
        self.names.get(index).map_or(&[], Vec::as_slice)
    }
}

/// A batch that is running on the main thread.
#[derive(Debug)]
pub(crate) struct MainBatch {
    batch: Batch,
    writer: ProcessWriter,
    thread: ThreadWriter,
    fds: Vec<Call>,
}

impl Process {
    /// Records a stopped process as far as that is possible from outside.
    pub(crate) fn record(pid: i32, tids: &[i32]) -> Result<Process, RecordError> {
        let open = |what: &str, write: bool| {
            let path = format!("/proc/{pid}/{what}");
            File::options().read(true).write(write).open(&path).or_quarantine(Reason::Unreadable, || path)
        };
        let pidfd =
            process::pidfd_open(pid).or_quarantine(Reason::Unreadable, || format!("process {pid}"))?;
        let path = format!("/proc/{pid}/maps");
        let maps = Held::open(&path).or_quarantine(Reason::Unreadable, || path)?;
        let mem = open("mem", true)?;
        let mut threads = Vec::with_capacity(tids.len());
        let mut first = None;
        // The main thread first: it runs the batches of the process.
        for tid in std::iter::once(&pid).chain(tids.iter().filter(|tid| **tid != pid)) {
            let (thread, seen) = Thread::record(pid, *tid)?;
            if seen.pending != 0 {
                return Err(RecordError::Busy(format!("thread {tid} has signals pending")));
            }
            if seen.ignored & !ptrace::ALL_BUT_TRAP != 0 {
                // Injected code ends in a breakpoint, and the kernel gives an ignored forced signal its
                // default action.
                return Err(
                    Quarantine::new(Reason::SignalActions, format!("process {pid} ignores SIGTRAP")).into()
                );
            }
            first.get_or_insert(seen);
            threads.push(thread);
        }
        let seen = first.ok_or_else(|| Quarantine::new(Reason::ProcessVanished, format!("process {pid}")))?;
        let text = maps.text().or_quarantine(Reason::Unreadable, || format!("mappings of process {pid}"))?;
        let layout = Layout::parse(text.as_bytes())?;
        refuse_mappings(&layout)?;
        let backing = Backing::record(pid, &layout.mappings)?;
        let entry = syscall_instruction(&layout, &mem)?;
        Ok(Process {
            pid,
            mem,
            pagemap: open("pagemap", false)?,
            maps,
            tasks: open("task", false)?,
            threads,
            limits: Limits::record(pid)?,
            place: Place::record(pid)?,
            fds: Descriptors::record(pid, &pidfd)?,
            pidfd,
            seen,
            entry,
            agent: None,
            layout: None,
            attributes: None,
            image: None,
            advice: None,
            lazily_freed: (0, false),
            backing,
            standing: Standing::new(),
        })
    }

    /// Number and handle of the process, and its standing, for the census.
    pub(crate) fn for_census(&mut self) -> (i32, BorrowedFd<'_>, &mut Standing) {
        (self.pid, self.pidfd.as_fd(), &mut self.standing)
    }

    /// Maps the agent into the process.
    pub(crate) fn install_agent(&mut self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        let runner = self.threads[0].runner(self.pid);
        runner.prepare(tracer, &self.mem)?;
        let (instruction, name) = self.entry;
        self.agent = Some(Agent::install(tracer, runner, &self.pidfd, instruction, name)?);
        let text = self
            .maps
            .text()
            .or_quarantine(Reason::Unreadable, || format!("mappings of process {}", self.pid))?;
        self.layout = Some(Layout::parse(text.as_bytes())?);
        Ok(())
    }

    /// Takes the agent out again.
    pub(crate) fn remove_agent(&mut self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        // Tracking ends with its descriptor.
        self.image = None;
        let runner = self.threads[0].runner(self.pid);
        match self.agent.take() {
            Some(agent) => agent.remove(tracer, runner, self.entry.0),
            None => Ok(()),
        }
    }

    /// Records what only the process itself can tell.
    pub(crate) fn record_attributes(&mut self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        let pid = self.pid;
        let agent = agent(&mut self.agent)?;
        let mut batch = Batch::new();
        let reader = ProcessReader::new(&mut batch);
        let answers = agent.run(tracer, self.threads[0].runner(pid), &batch)?;
        self.attributes = Some(reader.read(pid, self.seen.umask, self.seen.locked, &batch, &answers)?);
        for (index, thread) in self.threads.iter_mut().enumerate() {
            if index > 0 {
                thread.runner(pid).prepare(tracer, &self.mem)?;
            }
            let name = thread.name()?;
            let mut batch = Batch::new();
            let reader = ThreadReader::new(&mut batch);
            let answers = agent.run(tracer, thread.runner(pid), &batch)?;
            thread.attributes = Some(reader.read(thread.tid, &name, &batch, &answers)?);
        }
        Ok(())
    }

    /// Records the memory.
    pub(crate) fn record_memory(
        &mut self,
        tracer: &mut Tracer,
        engine: &dyn MemoryEngine,
        heat: Heat,
    ) -> Result<(), Quarantine> {
        let layout = self.layout.take().ok_or_else(|| missing("layout"))?;
        let (mut stopped, _) = self.stopped(tracer)?;
        let image = engine.checkpoint(&mut stopped, &layout.mappings, heat);
        self.layout = Some(layout);
        self.image = Some(image?);
        // The engine has mapped the image into the process.
        let text = self
            .maps
            .text()
            .or_quarantine(Reason::Unreadable, || format!("mappings of process {}", self.pid))?;
        self.layout = Some(Layout::parse(text.as_bytes())?);
        Ok(())
    }

    /// The process as an engine sees it, and its image.
    fn stopped<'a>(
        &'a mut self,
        tracer: &'a mut Tracer,
    ) -> Result<(Stopped<'a>, Option<&'a mut Image>), Quarantine> {
        let stopped = Stopped {
            tracer,
            agent: agent(&mut self.agent)?,
            runner: self.threads[0].runner(self.pid),
            pidfd: &self.pidfd,
            mem: &self.mem,
            pagemap: &self.pagemap,
        };
        Ok((stopped, self.image.as_mut()))
    }

    /// The threads of the snapshot.
    pub(crate) fn tids(&self) -> impl Iterator<Item = i32> {
        self.threads.iter().map(|thread| thread.tid)
    }

    /// How many threads, mappings, pages and descriptors were recorded.
    pub(crate) fn sizes(&self) -> (usize, usize, u64, usize) {
        let mappings = self.layout.as_ref().map_or(0, |l| l.mappings.len());
        let pages = self.image.as_ref().map_or(0, |i| i.pages());
        (self.threads.len(), mappings, pages, self.fds.len())
    }

    /// First look after the stop: the agent must be what it was, before anything is run by it.
    pub(crate) fn check_agent(&mut self, buffer: &mut Vec<u8>) -> Result<Vec<Step>, Quarantine> {
        let agent = agent(&mut self.agent)?;
        if !self.standing.changed(Area::Layout) {
            agent.verify(&self.mem)?;
            return Ok(Vec::new());
        }
        let text = self
            .maps
            .read(buffer)
            .or_quarantine(Reason::ProcessVanished, || format!("mappings of process {}", self.pid))?;
        let layout = self.layout.as_ref().ok_or_else(|| missing("layout"))?;
        let steps = layout.difference(text, agent)?;
        if !steps.is_empty() {
            self.standing.contradicted(Area::Layout, || format!("the layout of process {}", self.pid))?;
        }
        agent.verify(&self.mem)?;
        Ok(steps)
    }

    /// Makes sure of what the census said: from now on everything is looked at, and a difference in what it called
    /// unchanged is an error. What is put back blindly is compared here.
    pub(crate) fn doubt(&mut self, tracer: &mut Tracer, buffer: &mut Vec<u8>) -> Result<(), Quarantine> {
        let (pid, said) = (self.pid, self.standing.said());
        let quiet: Vec<bool> =
            self.threads.iter().map(|t| !self.standing.changed_in(t.tid, Area::ThreadAttributes)).collect();
        self.standing.doubt();
        // The agent runs only where it was found unaltered.
        self.check_agent(buffer)?;
        if !said.has(Area::Identity) {
            for thread in &self.threads {
                if let Err(found) = thread.identity.check(thread.tid, buffer) {
                    return Err(Quarantine::because(Reason::VerificationFailed, "the census missed", found));
                }
            }
        }
        let agent = agent(&mut self.agent)?;
        if !said.has_any(&[Area::Attributes, Area::ThreadAttributes]) {
            let mut batch = Batch::new();
            let reader = ProcessReader::new(&mut batch);
            let runner = self.threads[0].runner(pid);
            runner.prepare(tracer, &self.mem)?;
            let answers = agent.run(tracer, runner, &batch)?;
            let seen = self.threads[0].identity.check(pid, buffer)?;
            let now = reader.read(pid, seen.umask, seen.locked, &batch, &answers)?;
            let recorded = self.attributes.as_ref().ok_or_else(|| missing("attributes"))?;
            if let Some(what) = recorded.differs(&now, !said.has(Area::Layout)) {
                self.standing.contradicted(Area::Attributes, || format!("{what} of process {pid}"))?;
            }
            if seen.pending != 0 {
                self.standing.contradicted(Area::Attributes, || format!("a signal for process {pid}"))?;
            }
        }
        for (thread, _) in self.threads.iter().zip(quiet).filter(|(_, quiet)| *quiet) {
            let tid = thread.tid;
            let runner = thread.runner(pid);
            runner.prepare(tracer, &self.mem)?;
            let mut batch = Batch::new();
            let reader = ThreadReader::new(&mut batch);
            let answers = agent.run(tracer, runner, &batch)?;
            let now = reader.read(tid, &thread.name()?, &batch, &answers)?;
            if thread.attributes.as_ref() != Some(&now) {
                let detail = format!("the census missed attributes of thread {tid}: {now:?}");
                return Err(Quarantine::new(Reason::VerificationFailed, detail));
            }
        }
        Ok(())
    }

    /// Whether the layout may have changed.
    pub(crate) fn layout_changed(&self) -> bool {
        self.standing.changed(Area::Layout)
    }

    /// What the census said may have changed.
    pub(crate) fn said(&self) -> Areas {
        self.standing.said()
    }

    /// Whether objects of the IPC namespace may have been made.
    pub(crate) fn ipc_changed(&self) -> bool {
        self.standing.changed(Area::Ipc)
    }

    /// Whether the reference of the census has to be taken again.
    pub(crate) fn outdated(&self) -> bool {
        self.standing.outdated()
    }

    /// Makes threads that the request started exit, before memory is looked at: an exiting thread writes
    /// to it.
    pub(crate) fn remove_threads(&mut self, tracer: &mut Tracer, extra: &[i32]) -> Result<(), Quarantine> {
        for tid in extra {
            // They run the agent with the main thread's registers, but with their own rseq section cleared.
            let rseq =
                ptrace::rseq(*tid).or_quarantine(Reason::Unreadable, || format!("rseq of thread {tid}"))?;
            let state = ThreadState { rseq, extended: Vec::new(), ..self.threads[0].state.clone() };
            let runner = Runner { pid: self.pid, tid: *tid, state: &state };
            disable_dispatch(*tid)?;
            runner.prepare(tracer, &self.mem)?;
            agent(&mut self.agent)?.exit_thread(tracer, runner)?;
        }
        Ok(())
    }

    /// Compares from outside, and puts back what can be put back from there.
    pub(crate) fn inspect(
        &mut self,
        steps: Vec<Step>,
        report: &mut RewindReport,
        buffer: &mut Vec<u8>,
    ) -> Result<Inspection, Quarantine> {
        let standing = &self.standing;
        let mut names = Vec::with_capacity(self.threads.len());
        for thread in &self.threads {
            let tid = thread.tid;
            names.push(if standing.changed_in(tid, Area::ThreadAttributes) {
                thread.name()?
            } else {
                Vec::new()
            });
            if standing.changed(Area::Identity) {
                thread.identity.check(tid, buffer)?;
                if tid != self.pid {
                    shares_tables(self.pid, tid)?;
                }
            }
            if standing.changed(Area::Limits) {
                let restored = thread.schedule.restore(tid)?;
                if restored != 0 {
                    standing.contradicted(Area::Limits, || format!("the scheduling of thread {tid}"))?;
                }
                report.objects_restored += restored;
            }
            if standing.changed_in(tid, Area::ThreadAttributes) {
                let rseq = ptrace::rseq(tid)
                    .or_quarantine(Reason::Unreadable, || format!("rseq of thread {tid}"))?;
                if rseq != thread.state.rseq {
                    let detail = format!("rseq registration of thread {tid}");
                    return Err(Quarantine::new(Reason::ThreadAttributes, detail));
                }
                disable_dispatch(tid)?;
            }
        }
        if standing.changed(Area::Limits) {
            let restored = self.limits.restore(self.pid)?;
            if restored != 0 {
                standing.contradicted(Area::Limits, || format!("the limits of process {}", self.pid))?;
            }
            report.objects_restored += restored;
        }
        if standing.changed(Area::Place) {
            self.place.check(self.pid)?;
        }
        self.backing.check(self.pid)?;
        let table = if standing.changed(Area::Descriptors) {
            self.fds.difference(self.pid)?
        } else {
            TableDifference::default()
        };
        if !table.is_empty() {
            standing
                .contradicted(Area::Descriptors, || format!("the descriptors of process {}", self.pid))?;
        }
        report.fds_restored += self.fds.restore_descriptions(self.pid, standing)?;
        report.fds_closed += table.closed;
        Ok(Inspection { table, steps, names })
    }

    /// Starts the batch of the process on its main thread; [`Process::finish_main`] must follow.
    pub(crate) fn start_main(
        &mut self,
        tracer: &mut Tracer,
        inspection: &Inspection,
    ) -> Result<Option<MainBatch>, Quarantine> {
        // The break and locked memory belong to the layout; dead children of any thread are collected here.
        const TRIED: [Area; 5] =
            [Area::Layout, Area::Descriptors, Area::Attributes, Area::ThreadAttributes, Area::Ipc];
        // Whatever is found, memory is put back by this thread: it must be fit for that.
        self.threads[0].runner(self.pid).prepare(tracer, &self.mem)?;
        if !self.standing.any_changed(&TRIED) {
            return Ok(None);
        }
        let attributes = self.attributes.as_ref().ok_or_else(|| missing("attributes"))?;
        let main = &self.threads[0];
        let mut batch = Batch::new();
        let writer = attributes.write(self.pid, &mut batch)?;
        let fds = self.fds.write(&inspection.table, &mut batch)?;
        let thread = main
            .attributes
            .as_ref()
            .ok_or_else(|| missing("attributes"))?
            .write(inspection.name(0), &mut batch);
        agent(&mut self.agent)?.start(main.runner(self.pid), 0, &batch)?;
        Ok(Some(MainBatch { batch, writer, thread, fds }))
    }

    /// Puts back the other threads, some at a time.
    pub(crate) fn restore_threads(
        &mut self,
        tracer: &mut Tracer,
        inspection: &Inspection,
    ) -> Result<(), Quarantine> {
        let pid = self.pid;
        let agent = agent(&mut self.agent)?;
        let standing = &self.standing;
        let others: Vec<_> = (0..)
            .zip(&self.threads)
            .skip(1)
            .filter(|(_, thread)| standing.changed_in(thread.tid, Area::ThreadAttributes))
            .map(|(index, thread)| (thread, inspection.name(index)))
            .collect();
        for chunk in others.chunks(LANES - 1) {
            let mut running = Vec::with_capacity(chunk.len());
            for (lane, (thread, name)) in (1..).zip(chunk) {
                let recorded = thread.attributes.as_ref().ok_or_else(|| missing("attributes"))?;
                let mut batch = Batch::new();
                let writer = recorded.write(name, &mut batch);
                let runner = thread.runner(pid);
                runner.prepare(tracer, &self.mem)?;
                agent.start(runner, lane, &batch)?;
                running.push((lane, *thread, recorded, batch, writer));
            }
            for (lane, thread, recorded, batch, writer) in running {
                let runner = thread.runner(pid);
                let answers = agent.finish(tracer, runner, lane, &batch)?;
                if !writer.check(recorded, thread.tid, &batch, &answers)? {
                    take_signals(agent, tracer, runner, lane)?;
                }
            }
        }
        Ok(())
    }

    /// Waits for the batch of the main thread and judges it.
    pub(crate) fn finish_main(
        &mut self,
        tracer: &mut Tracer,
        main: Option<&MainBatch>,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        let Some(main) = main else { return Ok(()) };
        let attributes = self.attributes.as_ref().ok_or_else(|| missing("attributes"))?;
        let thread = &self.threads[0];
        let runner = thread.runner(self.pid);
        let agent = agent(&mut self.agent)?;
        let answers: Answers = agent.finish(tracer, runner, 0, &main.batch)?;
        let outcome = main.writer.check(attributes, self.pid, &main.batch, &answers)?;
        report.objects_restored += outcome.restored;
        Descriptors::check(&main.fds, self.pid, &answers)?;
        let recorded = thread.attributes.as_ref().ok_or_else(|| missing("attributes"))?;
        let quiet = main.thread.check(recorded, thread.tid, &main.batch, &answers)?;
        let mut more = outcome.more_children;
        while more {
            let mut batch = Batch::new();
            let calls = attributes::reap_more(&mut batch);
            let answers = agent.run(tracer, runner, &batch)?;
            more = calls.iter().all(|call| matches!(answers.get(*call), Ok(1..)));
        }
        if !quiet || outcome.more_children {
            take_signals(agent, tracer, runner, 0)?;
        }
        Ok(())
    }

    /// Collects children of the request that died after the batch had looked.
    pub(crate) fn reap_late(&mut self, tracer: &mut Tracer, patience: Duration) -> Result<(), Quarantine> {
        if !self.standing.any_changed(&[Area::Attributes, Area::ThreadAttributes]) {
            return Ok(());
        }
        let deadline = Instant::now() + patience;
        let mut buffer = Vec::new();
        let mut pause = Duration::from_micros(20);
        loop {
            let mut unknown = false;
            for thread in &self.threads {
                let Some(children) = &thread.children else { continue };
                let now = children
                    .read(&mut buffer)
                    .or_quarantine(Reason::ThreadVanished, || format!("children of thread {}", thread.tid))?;
                unknown |=
                    now != thread.known_children.as_slice() && has_unknown(now, &thread.known_children);
            }
            if !unknown {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Quarantine::new(
                    Reason::StrangerAlive,
                    format!("a child of process {}", self.pid),
                ));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(5));
            let runner = self.threads[0].runner(self.pid);
            let agent = agent(&mut self.agent)?;
            let mut batch = Batch::new();
            attributes::reap_more(&mut batch);
            agent.run(tracer, runner, &batch)?;
            take_signals(agent, tracer, runner, 0)?;
        }
    }

    /// Takes the steps back to the recorded layout that were found first. Things may still be in the way of some.
    pub(crate) fn begin_layout(
        &mut self,
        tracer: &mut Tracer,
        inspection: &Inspection,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        if inspection.layout_differs() {
            report.mappings_restored += inspection.steps.len() as u64;
            self.take_steps(tracer, &inspection.steps, false)?;
        }
        Ok(())
    }

    /// Brings the layout back, if it differed and the census does not say that it is back already.
    pub(crate) fn restore_layout(
        &mut self,
        tracer: &mut Tracer,
        inspection: &Inspection,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Quarantine> {
        if !inspection.layout_differs() || !self.standing.advice_changed() {
            return Ok(());
        }
        for round in 1..LAYOUT_ROUNDS {
            let steps = self.check_agent(buffer)?;
            let settled = steps.is_empty();
            if self.take_steps(tracer, &steps, round + 1 == LAYOUT_ROUNDS)? && settled {
                return Ok(());
            }
        }
        Err(Quarantine::new(Reason::LayoutNotRestored, format!("process {}", self.pid)))
    }

    /// Takes some steps; true if the break is where it was. In the last round each must succeed.
    fn take_steps(&mut self, tracer: &mut Tracer, steps: &[Step], last: bool) -> Result<bool, Quarantine> {
        let wanted = self.attributes.as_ref().ok_or_else(|| missing("attributes"))?.brk;
        let runner = self.threads[0].runner(self.pid);
        let agent = agent(&mut self.agent)?;
        let mut steps = steps.iter().peekable();
        loop {
            let mut batch = Batch::new();
            // First, since what is below the break must not be mapped as something else; the steps may
            // remove what is in its way, so it is tried again in the next round.
            let brk = batch.call(libc::SYS_brk, [wanted, 0, 0, 0, 0, 0]);
            let mut calls = Vec::new();
            while let Some(step) = steps.next_if(|step| batch.has_room(step.scratch())) {
                calls.push((step.add_to(&mut batch), step));
            }
            let answers = agent.run(tracer, runner, &batch)?;
            let failed = calls.iter().find(|(call, _)| answers.get(*call).is_err());
            if let Some((call, step)) = failed
                && last
            {
                let errno = answers.get(*call).err().unwrap_or(Errno::UnknownErrno);
                return Err(Quarantine::because(Reason::LayoutNotRestored, format!("{step:x?}"), errno));
            }
            if steps.peek().is_none() {
                return Ok(answers.get(brk) == Ok(wanted));
            }
        }
    }

    /// Puts back lost descriptors and interest lists.
    pub(crate) fn restore_fds(
        &mut self,
        tracer: &mut Tracer,
        inspection: &Inspection,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        if !self.standing.changed(Area::Descriptors) {
            return Ok(());
        }
        let mut stopped = Stopped {
            tracer,
            agent: agent(&mut self.agent)?,
            runner: self.threads[0].runner(self.pid),
            pidfd: &self.pidfd,
            mem: &self.mem,
            pagemap: &self.pagemap,
        };
        let restored = self.fds.restore_table(&mut stopped, &inspection.table)?;
        if restored != 0 {
            self.standing
                .contradicted(Area::Descriptors, || format!("interest lists of process {}", self.pid))?;
        }
        report.fds_restored += restored;
        Ok(())
    }

    /// Finds what changed in memory.
    pub(crate) fn scan(&mut self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        let hints = Hints {
            everything: self.lazily_freed.1,
            afresh: self.standing.saw_lazy_frees(),
            mappings_kept: !self.standing.changed(Area::Layout),
        };
        let (mut stopped, image) = self.stopped(tracer)?;
        image.ok_or_else(|| missing("image"))?.scan(&mut stopped, hints)
    }

    /// Begins to put memory back; [`Process::finish_memory`] must follow.
    pub(crate) fn start_memory(&mut self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        let (mut stopped, image) = self.stopped(tracer)?;
        image.ok_or_else(|| missing("image"))?.start(&mut stopped)
    }

    /// Waits until memory is back.
    pub(crate) fn finish_memory(
        &mut self,
        tracer: &mut Tracer,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        let (mut stopped, image) = self.stopped(tracer)?;
        let memory = image.ok_or_else(|| missing("image"))?.finish(&mut stopped)?;
        report.pages_scanned += memory.scanned;
        report.pages_copied += memory.copied;
        report.pages_dropped += memory.dropped;
        report.pages_hot += memory.hot;
        report.calls_injected += agent(&mut self.agent)?.take_calls();
        Ok(())
    }

    /// The files are back: the working directory must be where it was, in the tree as it is now.
    pub(crate) fn return_home(
        &mut self,
        tracer: &mut Tracer,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        let pid = self.pid;
        self.place.accept(pid)?;
        self.backing.accept()?;
        let Some(directory) = self.place.wanted_directory(pid)? else { return Ok(()) };
        let mut batch = Batch::new();
        let mut path = directory.to_vec();
        path.push(0);
        let path = batch.bytes(&path);
        let changed = batch.add(libc::SYS_chdir, crate::inject::args![path]);
        // Memory is back already, and a thread that runs may be moved to another processor, which the kernel
        // tells it in its memory.
        let runner = self.threads[0].runner(pid);
        let processor = runner.processor(&self.mem)?;
        let answers = agent(&mut self.agent)?.run(tracer, runner, &batch)?;
        runner.set_processor(&self.mem, processor)?;
        answers.get(changed).or_quarantine(Reason::WorkingDirectory, || format!("process {pid}"))?;
        self.place.returned(pid)?;
        report.objects_restored += 1;
        Ok(())
    }

    /// Records the advice on memory, after everything that the checkpoint itself maps.
    pub(crate) fn record_advice(&mut self) -> Result<(), Quarantine> {
        let (advice, lazily_freed) = Advice::record(self.pid)?;
        self.advice = Some(advice);
        self.lazily_freed = (lazily_freed, false);
        Ok(())
    }

    /// Takes advice on memory back to what it was. The layout must have been restored.
    pub(crate) fn restore_advice(
        &mut self,
        tracer: &mut Tracer,
        report: &mut RewindReport,
    ) -> Result<(), Quarantine> {
        let pid = self.pid;
        let Some(wanted) = &self.advice else { return Ok(()) };
        self.lazily_freed.1 = self.standing.pending();
        if !self.standing.advice_changed() && !self.standing.lazily_freed() {
            return Ok(());
        }
        let (now, lazily_freed) = Advice::record(pid)?;
        if lazily_freed > self.lazily_freed.0 {
            self.standing.contradicted_of_lazy_frees(|| format!("MADV_FREE in process {pid}"))?;
            self.lazily_freed.1 = true;
        }
        let calls = wanted.difference(&now)?;
        if calls.is_empty() {
            return Ok(());
        }
        self.standing.contradicted(Area::Layout, || format!("advice on memory of process {pid}"))?;
        report.mappings_restored += calls.len() as u64;
        let runner = self.threads[0].runner(pid);
        let agent = agent(&mut self.agent)?;
        let mut calls = calls.into_iter().peekable();
        while calls.peek().is_some() {
            let mut batch = Batch::new();
            while batch.has_room(0)
                && let Some((start, end, advice)) = calls.next()
            {
                let advice = u64::from(advice.cast_unsigned());
                batch.call(libc::SYS_madvise, [start, end - start, advice, 0, 0, 0]);
            }
            agent.run(tracer, runner, &batch)?;
        }
        // Answers do not matter: what counts is what is so now.
        if *wanted != Advice::record(pid)?.0 {
            return Err(Quarantine::new(
                Reason::LayoutNotRestored,
                format!("advice on memory of process {pid}"),
            ));
        }
        Ok(())
    }

    /// Compares everything once more. Any difference is an error of ours, or an attack that got through.
    pub(crate) fn verify(&mut self, tracer: &mut Tracer, buffer: &mut Vec<u8>) -> Result<(), Quarantine> {
        let pid = self.pid;
        self.standing.forget();
        let steps = self.check_agent(buffer)?;
        if let Some(step) = steps.first() {
            return Err(Quarantine::new(
                Reason::VerificationFailed,
                format!("layout of process {pid}: {step:x?}"),
            ));
        }
        let mut again = RewindReport::default();
        let inspection = self.inspect(Vec::new(), &mut again, buffer)?;
        if !inspection.table.is_empty() || again.fds_restored != 0 || again.objects_restored != 0 {
            return Err(Quarantine::new(
                Reason::VerificationFailed,
                format!("objects of process {pid}: {again:?}"),
            ));
        }
        let (mut stopped, image) = self.stopped(tracer)?;
        image.ok_or_else(|| missing("image"))?.verify(&mut stopped)
    }

    /// Clears the agent's data and puts registers and masks back: the process is ready to go on.
    pub(crate) fn finish(&mut self) -> Result<(), Quarantine> {
        if let Some(agent) = &mut self.agent {
            agent.clear()?;
        }
        self.threads.iter().try_for_each(|thread| thread.state.write(thread.tid))
    }
}

impl Thread {
    fn record(pid: i32, tid: i32) -> Result<(Thread, Seen), RecordError> {
        let path = format!("/proc/{pid}/task/{tid}/comm");
        let comm = Held::open(&path).or_quarantine(Reason::Unreadable, || path)?;
        let children = Held::open(&format!("/proc/{pid}/task/{tid}/children")).ok();
        let mut known_children = Vec::new();
        if let Some(held) = &children {
            let mut buffer = Vec::new();
            known_children = held
                .read(&mut buffer)
                .or_quarantine(Reason::Unreadable, || format!("children of thread {tid}"))?
                .to_vec();
        }
        let (identity, seen) = Identity::record(pid, tid)?;
        if tid != pid {
            shares_tables(pid, tid)?;
        }
        let dispatch = ptrace::dispatch(tid).unwrap_or_default();
        if dispatch.mode != 0 {
            let detail = format!("thread {tid} redirects its system calls");
            return Err(Quarantine::new(Reason::ThreadAttributes, detail).into());
        }
        let state = ThreadState::read(tid)?.map_err(RecordError::Busy)?;
        let schedule = Schedule::record(tid)?;
        let thread =
            Thread { tid, comm, children, known_children, identity, schedule, state, attributes: None };
        Ok((thread, seen))
    }

    fn runner(&self, pid: i32) -> Runner<'_> {
        Runner { pid, tid: self.tid, state: &self.state }
    }

    fn name(&self) -> Result<Vec<u8>, Quarantine> {
        let mut buffer = Vec::new();
        let name = self
            .comm
            .read(&mut buffer)
            .or_quarantine(Reason::ThreadVanished, || format!("thread {}", self.tid))?;
        Ok(name.to_vec())
    }
}

fn missing(what: &str) -> Quarantine {
    Quarantine::new(Reason::Unreadable, format!("no {what} was recorded"))
}

fn agent(slot: &mut Option<Agent>) -> Result<&mut Agent, Quarantine> {
    slot.as_mut().ok_or_else(|| missing("agent"))
}

/// A thread that redirects its own system calls would redirect the agent's.
fn disable_dispatch(tid: i32) -> Result<(), Quarantine> {
    let failed = || format!("system call dispatch of thread {tid}");
    match ptrace::dispatch(tid) {
        Ok(dispatch) if dispatch.mode == 0 => Ok(()),
        Ok(_) => ptrace::set_dispatch(tid, &ptrace::Dispatch::default())
            .or_quarantine(Reason::ThreadAttributes, failed),
        // Before Linux 6.4 it could not be read; the engine needs 6.7.
        Err(errno) => Err(Quarantine::because(Reason::Unreadable, failed(), errno)),
    }
}

/// Takes all pending signals of a stopped thread away.
fn take_signals(
    agent: &mut Agent,
    tracer: &mut Tracer,
    runner: Runner<'_>,
    lane: usize,
) -> Result<(), Quarantine> {
    for _ in 0..SIGNAL_ROUNDS {
        let mut batch = Batch::new();
        let calls: Vec<Call> = (0..SIGNALS_AT_ONCE).map(|_| attributes::take_signal(&mut batch)).collect();
        agent.start(runner, lane, &batch)?;
        let answers = agent.finish(tracer, runner, lane, &batch)?;
        for call in calls {
            if attributes::no_signal(&answers, call)? {
                return Ok(());
            }
        }
    }
    Err(Quarantine::new(Reason::SignalsPending, format!("thread {}", runner.tid)))
}

/// Whether a list of children contains one that the recorded list does not.
fn has_unknown(now: &[u8], known: &[u8]) -> bool {
    let split = |list: &'_ [u8]| {
        list.split(u8::is_ascii_whitespace).filter(|w| !w.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    let known = split(known);
    split(now).iter().any(|child| !known.contains(child))
}

/// Refuses mappings whose content cannot be put back.
fn refuse_mappings(layout: &Layout) -> Result<(), Quarantine> {
    for mapping in &layout.mappings {
        let at = || format!("{:#x}-{:#x} {}", mapping.start, mapping.end, mapping.name);
        if mapping.name.starts_with("/[aio]") {
            return Err(Quarantine::new(Reason::AsyncIo, at()));
        }
        if mapping.name.starts_with("/anon_hugepage") {
            return Err(Quarantine::new(Reason::HugePages, at()));
        }
        if mapping.shared && mapping.writable() {
            return Err(Quarantine::new(Reason::SharedMapping, at()));
        }
    }
    Ok(())
}

/// The address of a `syscall` instruction in the vdso, and of a string there (the magic of its ELF header
/// ends in a zero byte).
fn syscall_instruction(layout: &Layout, mem: &File) -> Result<(u64, u64), Quarantine> {
    let vdso = layout
        .mappings
        .iter()
        .find(|m| m.name == "[vdso]")
        .ok_or_else(|| Quarantine::new(Reason::SpecialMappingChanged, "there is no vdso"))?;
    let len = usize::try_from(vdso.end - vdso.start).unwrap_or(0);
    let mut code = vec![0; len];
    mem.read_exact_at(&mut code, vdso.start).or_quarantine(Reason::Unreadable, || "the vdso".to_owned())?;
    let at = code
        .windows(2)
        .position(|bytes| bytes == [0x0f, 0x05])
        .ok_or_else(|| Quarantine::new(Reason::Kernel, "the vdso has no system call instruction"))?;
    Ok((vdso.start + at as u64, vdso.start))
}

/// Whether two processes share one address space; its memory could not be put back twice.
pub(crate) fn shares_memory(a: i32, b: i32) -> Result<bool, Quarantine> {
    process::same(a, b, Shared::Memory)
        .or_quarantine(Reason::Unreadable, || format!("comparing processes {a} and {b}"))
}

/// Threads of a process that are not attached.
pub(crate) fn unattached(pid: i32, tracer: &Tracer) -> Result<Vec<i32>, Quarantine> {
    let mut tids =
        proc::threads(pid).or_quarantine(Reason::ProcessVanished, || format!("threads of process {pid}"))?;
    tids.retain(|tid| !tracer.holds(*tid));
    Ok(tids)
}

impl Process {
    /// Makes the main thread fit for injected code, outside a rewind.
    pub(crate) fn prepare_main(&self, tracer: &mut Tracer) -> Result<(), Quarantine> {
        self.threads[0].runner(self.pid).prepare(tracer, &self.mem)
    }

    /// Threads of the process that are not attached. All that are attached must be stopped: then they live,
    /// and there are no others if there are as many threads as these.
    pub(crate) fn unattached(&self, tracer: &Tracer) -> Result<Vec<i32>, Quarantine> {
        let attached = tracer.threads_of(self.pid).count() as u64;
        match self.tasks.metadata() {
            // A directory has a link of its parent, one of itself, and here one of each thread.
            Ok(metadata) if metadata.nlink() == 2 + attached => Ok(Vec::new()),
            _ => unattached(self.pid, tracer),
        }
    }
}
