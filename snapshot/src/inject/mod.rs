//! System calls executed by the target itself.
//!
//! What only a process can do to itself (unmap, set signal actions, close descriptors) is done by an agent: a
//! page of code and a table of calls, mapped into the target at the checkpoint. A batch of 69 calls costs what
//! one costs (43-57 us measured), so callers collect calls and run them at once.
//!
//! ```text
//!   code   one page, r-x, shared with a memory file that is sealed against writing: not even
//!          /proc/self/mem can change it, only replace the mapping, which the layout check sees
//!   data   rw-, shared with this process: lanes of [calls ... | scratch ...]; cleared after use, or it
//!          would be a place where one request leaves something for the next
//! ```
//! The agent runs unfiltered by seccomp, so its bytes are compared before each stop's first use, its final
//! instruction pointer must be the exact one, and the current rseq critical section is cleared (a hostile one
//! would redirect it).
//!
//! A third mapping shows the process its own snapshot, read-only and sealed, so that pages can be copied back
//! where they are (see [`Work`]). What the request could have done to it, the layout check sees; its content
//! nobody can change.

mod batch;
mod work;

pub(crate) use batch::{Answers, Batch, Call, IntoArg, Scratch, args};
pub(crate) use work::Work;

use crate::freeze::Tracer;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::registers::ThreadState;
use crate::sys::memory::{self, Shared};
use crate::sys::ptrace::{self, Event, WaitError};
use crate::sys::{PAGE, agent, process};
use nix::errno::Errno;
use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

/// Bytes of one lane: calls first, scratch behind them.
pub(crate) const LANE: usize = 64 * 1024;
/// One lane for the main thread and some for other threads that run at the same time.
pub(crate) const LANES: usize = 8;
const DATA: usize = LANE * LANES;
/// How many stray signals a batch may drop on its way.
const STRAY_MAX: usize = 256;

/// The agent in one process.
#[derive(Debug)]
pub(crate) struct Agent {
    /// Where its code lies in the target.
    pub(crate) code: u64,
    /// Where its data lies in the target.
    pub(crate) data: u64,
    memory: Shared,
    file: OwnedFd,
    /// Where the snapshot is mapped in the target, and its length.
    source: Option<(u64, u64)>,
    /// Calls that the target was made to execute since they were last asked for.
    calls: u64,
}

/// A thread of the target that is stopped and may be used to run calls.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Runner<'a> {
    pub(crate) pid: i32,
    pub(crate) tid: i32,
    pub(crate) state: &'a ThreadState,
}

/// `struct rseq` of Linux 4.18, of which later ones are extensions within the same 32 bytes.
pub(crate) type Processor = [u8; 32];

impl Runner<'_> {
    /// Makes a stopped thread fit for injected code. Once per stop and thread.
    pub(crate) fn prepare(&self, tracer: &mut Tracer, mem: &File) -> Result<(), Quarantine> {
        let failed = |what: &'static str| move || format!("{what} of thread {}", self.tid);
        // The container's filter would kill or refuse (Docker's denies userfaultfd).
        tracer.suspend_seccomp(self.tid).or_quarantine(Reason::Kernel, failed("suspending seccomp"))?;
        ptrace::set_signal_mask(self.tid, ptrace::ALL_BUT_TRAP)
            .or_quarantine(Reason::InjectionFailed, failed("signal mask"))?;
        if self.state.rseq.pointer != 0 {
            // struct rseq { u32 cpu_id_start; u32 cpu_id; u64 rseq_cs; ... }
            const RSEQ_CS: u64 = 8;
            mem.write_all_at(&[0; 8], self.state.rseq.pointer + RSEQ_CS)
                .or_quarantine(Reason::ThreadAttributes, failed("clearing the rseq section"))?;
        }
        Ok(())
    }

    /// What the kernel tells the thread about the processor it runs on, if it registered for that.
    pub(crate) fn processor(&self, mem: &File) -> Result<Option<Processor>, Quarantine> {
        if self.state.rseq.pointer == 0 {
            return Ok(None);
        }
        let mut bytes = Processor::default();
        mem.read_exact_at(&mut bytes, self.state.rseq.pointer)
            .or_quarantine(Reason::ThreadAttributes, || format!("rseq of thread {}", self.tid))?;
        Ok(Some(bytes))
    }

    /// Puts back what [`Runner::processor`] gave, after the thread ran with its memory as it shall be.
    pub(crate) fn set_processor(&self, mem: &File, bytes: Option<Processor>) -> Result<(), Quarantine> {
        let Some(bytes) = bytes else { return Ok(()) };
        mem.write_all_at(&bytes, self.state.rseq.pointer)
            .or_quarantine(Reason::ThreadAttributes, || format!("rseq of thread {}", self.tid))
    }
}

impl Agent {
    /// Maps the agent into a process whose main thread is stopped and prepared.
    ///
    /// `entry` is the address of a `syscall` instruction in the target (the vdso has one), `name` that of any
    /// short C string.
    pub(crate) fn install(
        tracer: &mut Tracer,
        runner: Runner<'_>,
        pidfd: &OwnedFd,
        entry: u64,
        name: u64,
    ) -> Result<Agent, Quarantine> {
        const MFD_EXEC: u64 = 0x10;
        let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        let mut single = |number: i64, args: [u64; 6]| single_step(tracer, runner, entry, number, args);
        let call = |result: i64, what: &str| {
            u64::try_from(result).map_err(|_| {
                let errno = Errno::from_raw(i32::try_from(-result).unwrap_or(0));
                Quarantine::because(
                    Reason::InjectionFailed,
                    format!("{what} in process {}", runner.pid),
                    errno,
                )
            })
        };
        let shared = libc::MAP_SHARED as u64;
        let mut mapped = [0u64; 2];
        let mut files = Vec::with_capacity(2);
        for (which, len) in [PAGE, DATA as u64].into_iter().enumerate() {
            let exec = if which == 0 { MFD_EXEC } else { 0 };
            let fd = call(single(libc::SYS_memfd_create, [name, flags | exec, 0, 0, 0, 0])?, "memfd_create")?;
            let ours = process::pidfd_getfd(pidfd.as_fd(), i32::try_from(fd).unwrap_or(-1))
                .or_quarantine(Reason::InjectionFailed, || format!("taking descriptor {fd}"))?;
            prepare_file(&ours, which == 0, len)
                .or_quarantine(Reason::InjectionFailed, || "preparing the agent's memory".to_owned())?;
            let prot = if which == 0 {
                libc::PROT_READ | libc::PROT_EXEC
            } else {
                libc::PROT_READ | libc::PROT_WRITE
            };
            mapped[which] = call(
                single(libc::SYS_mmap, [0, len, u64::from(prot.cast_unsigned()), shared, fd, 0])?,
                "mmap",
            )?;
            call(single(libc::SYS_close, [fd, 0, 0, 0, 0, 0])?, "close")?;
            files.push(ours);
        }
        // A child must not inherit a window into this process.
        let dontfork = libc::MADV_DONTFORK as u64;
        call(single(libc::SYS_madvise, [mapped[0], PAGE, dontfork, 0, 0, 0])?, "madvise")?;
        call(single(libc::SYS_madvise, [mapped[1], DATA as u64, dontfork, 0, 0, 0])?, "madvise")?;
        let file = files.remove(1);
        let memory = Shared::map(file.as_fd(), DATA, true)
            .or_quarantine(Reason::InjectionFailed, || "mapping the agent's memory".to_owned())?;
        Ok(Agent { code: mapped[0], data: mapped[1], memory, file, source: None, calls: 0 })
    }

    /// Unmaps the agent again: the snapshot is given up and the process goes on.
    pub(crate) fn remove(
        &self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        entry: u64,
    ) -> Result<(), Quarantine> {
        for (start, len) in [(self.code, PAGE), (self.data, DATA as u64)].into_iter().chain(self.source) {
            let result = single_step(tracer, runner, entry, libc::SYS_munmap, [start, len, 0, 0, 0, 0])?;
            if result != 0 {
                let detail = format!("unmapping the agent of process {}: {result}", runner.pid);
                return Err(Quarantine::new(Reason::InjectionFailed, detail));
            }
        }
        Ok(())
    }

    /// Whether an address belongs to the agent.
    pub(crate) fn owns(&self, address: u64) -> bool {
        (self.code..self.code + PAGE).contains(&address)
            || (self.data..self.data + DATA as u64).contains(&address)
            || self.source.is_some_and(|(start, len)| (start..start + len).contains(&address))
    }

    /// Makes a memory file that belongs to the target and is open here and there: the number there and the
    /// descriptor here. [`Agent::show`] must follow.
    pub(crate) fn make_file(
        &mut self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        pidfd: &OwnedFd,
    ) -> Result<(u64, OwnedFd), Quarantine> {
        let mut batch = Batch::new();
        let name = batch.bytes(b"snapshot\0");
        let flags = u64::from(libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING);
        let made = batch.add(libc::SYS_memfd_create, args![name, flags]);
        let fd = self
            .run(tracer, runner, &batch)?
            .get(made)
            .or_quarantine(Reason::InjectionFailed, || format!("memfd_create in process {}", runner.pid))?;
        let ours = process::pidfd_getfd(pidfd.as_fd(), i32::try_from(fd).unwrap_or(-1))
            .or_quarantine(Reason::InjectionFailed, || format!("taking descriptor {fd}"))?;
        Ok((fd, ours))
    }

    /// Maps the snapshot's file read-only into the target, whole and at once, and closes it there. `None`: the
    /// target has no room for it (a limit on its address space or its mappings).
    pub(crate) fn show(
        &mut self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        fd: u64,
        len: u64,
    ) -> Result<Option<u64>, Quarantine> {
        let mut batch = Batch::new();
        let flags = u64::from((libc::MAP_SHARED | libc::MAP_POPULATE).cast_unsigned());
        let prot = u64::from(libc::PROT_READ.cast_unsigned());
        let mapped = (len != 0).then(|| batch.call(libc::SYS_mmap, [0, len, prot, flags, fd, 0]));
        let closed = batch.call(libc::SYS_close, [fd, 0, 0, 0, 0, 0]);
        let answers = self.run(tracer, runner, &batch)?;
        answers.get(closed).or_quarantine(Reason::InjectionFailed, || {
            format!("closing descriptor {fd} of process {}", runner.pid)
        })?;
        let Some(start) = mapped.and_then(|call| answers.get(call).ok()) else { return Ok(None) };
        self.source = Some((start, len));
        // A child has no use for it.
        let mut batch = Batch::new();
        let advised = batch.call(libc::SYS_madvise, [start, len, libc::MADV_DONTFORK as u64, 0, 0, 0]);
        self.run(tracer, runner, &batch)?
            .get(advised)
            .or_quarantine(Reason::InjectionFailed, || format!("advice on {start:#x}"))?;
        Ok(Some(start))
    }

    /// Compares the code in the target with what was put there.
    pub(crate) fn verify(&self, mem: &File) -> Result<(), Quarantine> {
        let code = agent::code();
        let mut page = [0u8; 4096];
        mem.read_exact_at(&mut page, self.code)
            .or_quarantine(Reason::AgentAltered, || format!("reading {:#x}", self.code))?;
        if page[..code.len()] != *code || page[code.len()..].iter().any(|b| *b != 0) {
            return Err(Quarantine::new(Reason::AgentAltered, format!("code at {:#x}", self.code)));
        }
        Ok(())
    }

    /// Where the calls and the scratch of a lane lie in the target.
    pub(crate) fn lane_address(&self, lane: usize) -> u64 {
        self.data + (lane * LANE) as u64
    }

    /// Writes a batch into a lane and lets the thread run it. [`Agent::finish`] must follow.
    pub(crate) fn start(&mut self, runner: Runner<'_>, lane: usize, batch: &Batch) -> Result<(), Quarantine> {
        let bytes = batch.encode(self.lane_address(lane));
        self.memory.write(lane * LANE, &bytes);
        self.launch(runner, lane, batch.len())
    }

    /// Waits for a batch that was started in a lane and reads its answers.
    pub(crate) fn finish(
        &mut self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        lane: usize,
        batch: &Batch,
    ) -> Result<Answers, Quarantine> {
        self.land(tracer, runner)?;
        let mut bytes = vec![0; batch.size()];
        self.memory.read(lane * LANE, &mut bytes);
        Ok(Answers::new(bytes))
    }

    /// Lets the thread do the next part of some work in the first lane. `false`: there is none left. Otherwise
    /// [`Agent::finish_work`] must follow.
    pub(crate) fn start_work(&mut self, runner: Runner<'_>, work: &mut Work) -> Result<bool, Quarantine> {
        let count = work.next_part();
        if count == 0 {
            return Ok(false);
        }
        self.memory.write(0, work.part());
        self.launch(runner, 0, count)?;
        Ok(true)
    }

    /// Waits for what [`Agent::start_work`] started.
    pub(crate) fn finish_work(
        &mut self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        work: &mut Work,
    ) -> Result<(), Quarantine> {
        self.land(tracer, runner)?;
        let memory = &self.memory;
        work.judge(|call| {
            let mut result = [0; 8];
            memory.read(call * work::CALL + work::RESULT, &mut result);
            i64::from_le_bytes(result)
        })
    }

    /// How many calls the target was made to execute since the last time this was asked.
    pub(crate) fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Lets a thread execute the calls that were put into a lane.
    fn launch(&mut self, runner: Runner<'_>, lane: usize, calls: usize) -> Result<(), Quarantine> {
        self.calls += calls as u64;
        let registers = ptrace::Registers {
            r15: self.lane_address(lane),
            r14: calls as u64,
            ..runner.state.for_injection(self.code)
        };
        ptrace::set_registers(runner.tid, &registers)
            .or_quarantine(Reason::InjectionFailed, || format!("registers of thread {}", runner.tid))?;
        ptrace::resume(runner.tid, 0)
            .or_quarantine(Reason::InjectionFailed, || format!("resuming thread {}", runner.tid))
    }

    /// Waits until a thread stands behind the agent's last instruction.
    fn land(&self, tracer: &mut Tracer, runner: Runner<'_>) -> Result<(), Quarantine> {
        let end = self.code + agent::code().len() as u64;
        tracer.begin_step();
        for _ in 0..STRAY_MAX {
            match event(tracer, runner)? {
                Event::Signal(libc::SIGTRAP) => {
                    let rip = ptrace::registers(runner.tid)
                        .or_quarantine(Reason::InjectionFailed, || {
                            format!("registers of thread {}", runner.tid)
                        })?
                        .rip;
                    if rip == end {
                        return Ok(());
                    }
                    // A SIGTRAP that somebody sent before the stop.
                    if !(self.code..end).contains(&rip) {
                        return Err(ended_at(runner, rip));
                    }
                }
                Event::Signal(signal) if is_fault(signal) => {
                    let rip = ptrace::registers(runner.tid).map_or(0, |r| r.rip);
                    return Err(Quarantine::new(
                        Reason::InjectionFailed,
                        format!("thread {} faulted with signal {signal} at {rip:#x}", runner.tid),
                    ));
                }
                // Signals that cannot be blocked (SIGSTOP) or were under way: residue.
                Event::Signal(_) => {}
                Event::Interrupted | Event::GroupStop => {}
                Event::Gone => {
                    return Err(Quarantine::new(Reason::Killed, format!("thread {} died", runner.tid)));
                }
            }
            ptrace::resume(runner.tid, 0)
                .or_quarantine(Reason::InjectionFailed, || format!("resuming thread {}", runner.tid))?;
        }
        Err(Quarantine::new(Reason::InjectionFailed, format!("thread {} is flooded by signals", runner.tid)))
    }

    /// Runs one batch on one thread.
    pub(crate) fn run(
        &mut self,
        tracer: &mut Tracer,
        runner: Runner<'_>,
        batch: &Batch,
    ) -> Result<Answers, Quarantine> {
        if batch.is_empty() {
            return Ok(Answers::new(Vec::new()));
        }
        self.start(runner, 0, batch)?;
        self.finish(tracer, runner, 0, batch)
    }

    /// Makes a thread of the target exit, and waits until it is gone.
    pub(crate) fn exit_thread(&mut self, tracer: &mut Tracer, runner: Runner<'_>) -> Result<(), Quarantine> {
        let mut batch = Batch::new();
        batch.call(libc::SYS_exit, [0; 6]);
        self.start(runner, 0, &batch)?;
        tracer.begin_step();
        loop {
            if event(tracer, runner)? == Event::Gone {
                return Ok(());
            }
            if tracer.expired() {
                return Err(Quarantine::new(
                    Reason::InjectionTimeout,
                    format!("thread {} does not exit", runner.tid),
                ));
            }
            match ptrace::resume(runner.tid, 0) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(errno) => {
                    return Err(Quarantine::because(
                        Reason::InjectionFailed,
                        format!("resuming thread {}", runner.tid),
                        errno,
                    ));
                }
            }
        }
    }

    /// Forgets what is in the data, whoever wrote it, so that no request finds anything there.
    pub(crate) fn clear(&mut self) -> Result<(), Quarantine> {
        // Only pages that were ever touched exist; ask the file which.
        let touched = memory::extents(self.file.as_fd(), DATA as u64)
            .or_quarantine(Reason::AgentAltered, || "asking for the agent's pages".to_owned())?;
        for (start, len) in touched {
            self.memory.clear(start, len);
        }
        Ok(())
    }
}

/// Fills and seals one of the agent's memory files.
fn prepare_file(file: &OwnedFd, is_code: bool, len: u64) -> std::io::Result<()> {
    memory::set_len(file.as_fd(), len)?;
    let fixed = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    if !is_code {
        // Without F_SEAL_SHRINK the target could truncate the file and kill this process by SIGBUS.
        return memory::seal(file.as_fd(), fixed);
    }
    let len = usize::try_from(len).map_err(std::io::Error::other)?;
    Shared::map(file.as_fd(), len, true)?.write(0, agent::code());
    memory::seal(file.as_fd(), fixed | libc::F_SEAL_WRITE)
}

fn is_fault(signal: i32) -> bool {
    matches!(signal, libc::SIGSEGV | libc::SIGBUS | libc::SIGILL | libc::SIGFPE | libc::SIGSYS)
}

fn ended_at(runner: Runner<'_>, rip: u64) -> Quarantine {
    Quarantine::new(
        Reason::InjectionFailed,
        format!("injected code of thread {} ended at {rip:#x}", runner.tid),
    )
}

fn event(tracer: &mut Tracer, runner: Runner<'_>) -> Result<Event, Quarantine> {
    tracer.next_event(runner.tid).map_err(|error| match error {
        WaitError::Timeout => Quarantine::new(
            Reason::InjectionTimeout,
            format!("thread {} of process {}", runner.tid, runner.pid),
        ),
        WaitError::Failed(errno) => {
            Quarantine::because(Reason::InjectionFailed, format!("waiting for thread {}", runner.tid), errno)
        }
    })
}

/// One system call by single-stepping over an instruction that the target has anyway.
fn single_step(
    tracer: &mut Tracer,
    runner: Runner<'_>,
    entry: u64,
    number: i64,
    [rdi, rsi, rdx, r10, r8, r9]: [u64; 6],
) -> Result<i64, Quarantine> {
    let failed = || format!("stepping thread {} of process {}", runner.tid, runner.pid);
    let registers = ptrace::Registers {
        rax: number.cast_unsigned(),
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        ..runner.state.for_injection(entry)
    };
    ptrace::set_registers(runner.tid, &registers).or_quarantine(Reason::InjectionFailed, failed)?;
    ptrace::step(runner.tid).or_quarantine(Reason::InjectionFailed, failed)?;
    tracer.begin_step();
    let event = event(tracer, runner)?;
    let after = ptrace::registers(runner.tid).or_quarantine(Reason::InjectionFailed, failed)?;
    if event != Event::Signal(libc::SIGTRAP) || after.rip != entry + 2 {
        return Err(ended_at(runner, after.rip));
    }
    Ok(after.rax.cast_signed())
}
