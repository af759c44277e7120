//! The program in the kernel: loading, trying it on ourselves, asking it.

use super::Answer;
use super::record::{
    self, Call, FileKind, INTERESTS, Interest, KINDS, MAPPINGS, Mapping, OpenFile, PROCESSES, PROCESSORS,
    Process, Reading, SLOTS, THREADS, Thread,
};
use crate::sys::memory::Shared;
use crate::sys::{bpf, process};
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::types::DataSec;
use libbpf_rs::{Map, MapCore, ObjectBuilder, PrintLevel};
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::SigSet;
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timerfd::{ClockId, TimerFd, TimerFlags};
use std::fmt;
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, PoisonError};

const OBJECT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/census.bpf.o"));

/// Readings of ourselves before the program counts as unusable: other threads of ours may be starting or ending.
const TRIES: usize = 20;

/// The loaded program and its maps.
#[derive(Debug)]
pub(crate) struct Program {
    census: OwnedFd,
    calls: Mutex<Shared>,
    processes: Shared,
    threads: Shared,
    files: Shared,
    interests: Shared,
    mappings: Shared,
    operations: [u64; KINDS],
    processors: u32,
    /// See `events` and `batches` in `bpf/census.h`; 0 if the way does not work here.
    distances: (u64, u64),
    /// Bits of a thread's flags that are compared.
    flags: u64,
    /// Slots that nobody uses.
    free: Mutex<Vec<usize>>,
    freed: Condvar,
}

/// The slot of one call, free again when dropped.
struct Slot<'p>(&'p Program, usize);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.1);
        self.0.freed.notify_one();
    }
}

/// The last complaints of the loader.
static COMPLAINTS: Mutex<String> = Mutex::new(String::new());

fn complain(_: PrintLevel, text: String) {
    let mut complaints = COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner);
    complaints.push_str(&text);
    tracing::debug!(text = text.trim_end(), "loading the census");
}

impl Program {
    /// Loads the program and tries it on this process; says why if that does not work here.
    pub(crate) fn load() -> Result<Program, String> {
        let previous = libbpf_rs::set_print(Some((PrintLevel::Warn, complain)));
        let done = Program::try_load();
        libbpf_rs::set_print(previous);
        done
    }

    fn try_load() -> Result<Program, String> {
        let object = ObjectBuilder::default()
            .open_memory(OBJECT)
            .and_then(libbpf_rs::OpenObject::load)
            .map_err(|error| format!("{error}{}", first_complaint()))?;
        let fd = |name: &str| {
            let program = object.progs().find(|program| program.name() == name);
            program.ok_or_else(|| format!("there is no program {name}")).and_then(|program| {
                program.as_fd().try_clone_to_owned().map_err(|error| format!("keeping {name}: {error}"))
            })
        };
        let map = |name: &str, record: usize, count: usize| {
            let map = object.maps().find(|map| map.name() == name);
            map.ok_or_else(|| format!("there is no map {name}"))
                .and_then(|map| shared(&map, record, count * SLOTS))
        };
        let mut program = Program {
            census: fd("census")?,
            calls: Mutex::new(map("calls", size_of::<Call>(), 1)?),
            processes: map("processes", size_of::<Process>(), PROCESSES)?,
            threads: map("threads", size_of::<Thread>(), THREADS)?,
            files: map("files", size_of::<OpenFile>(), record::FILES)?,
            interests: map("interests", size_of::<Interest>(), INTERESTS)?,
            mappings: map("mappings", size_of::<Mapping>(), MAPPINGS)?,
            operations: [0; KINDS],
            processors: processors()?,
            distances: (0, 0),
            flags: u64::MAX,
            free: Mutex::new((0..SLOTS).collect()),
            freed: Condvar::new(),
        };
        program.learn(fd("operations")?.as_fd()).map_err(|error| format!("trying it: {error}"))?;
        Ok(program)
    }

    /// Asks for processes that are named by pid descriptors. None of them may run meanwhile. Mappings are listed
    /// where the address space changed since its count was the one in `sequences` (0: always).
    pub(crate) fn take(&self, pidfds: &[BorrowedFd<'_>], sequences: &[u64]) -> io::Result<Answer> {
        if pidfds.len() > PROCESSES {
            return Err(io::Error::other(format!("{} processes: room for {PROCESSES}", pidfds.len())));
        }
        let slot = self.slot();
        let mut all = [-1; PROCESSES];
        for (to, from) in all.iter_mut().zip(pidfds) {
            *to = from.as_raw_fd();
        }
        self.ask(&slot, &all, pidfds.len(), sequences)?;
        bpf::run(self.census.as_fd(), &argument(&slot)).and_then(succeeded)?;
        let mut call = vec![0; size_of::<Call>()];
        self.calls().read(slot.1 * call.len(), &mut call);
        let readings = (0..pidfds.len()).map(|index| self.reading(&slot, index)).collect();
        let lazy_frees = (word(&call, offset_of!(Call, has_lazy_frees)) != 0)
            .then(|| long(&call, offset_of!(Call, lazy_frees)));
        let pending = word(&call, offset_of!(Call, pending)) != 0;
        Ok(Answer { readings, lazy_frees, pending })
    }

    fn calls(&self) -> std::sync::MutexGuard<'_, Shared> {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self) -> Slot<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(index) => return Slot(self, index),
                // A call takes some 10 us, so does this wait.
                None => free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    /// Writes the question.
    fn ask(
        &self,
        slot: &Slot<'_>,
        fds: &[i32; PROCESSES],
        count: usize,
        sequences: &[u64],
    ) -> io::Result<()> {
        let mut call = vec![0u8; size_of::<Call>()];
        let mut put = |at: usize, bytes: &[u8]| call[at..at + bytes.len()].copy_from_slice(bytes);
        put(offset_of!(Call, processes), &u32::try_from(count).map_err(io::Error::other)?.to_ne_bytes());
        put(offset_of!(Call, processors), &self.processors.to_ne_bytes());
        put(offset_of!(Call, events), &self.distances.0.to_ne_bytes());
        put(offset_of!(Call, batches), &self.distances.1.to_ne_bytes());
        put(offset_of!(Call, flags), &self.flags.to_ne_bytes());
        for (index, fd) in fds.iter().enumerate() {
            put(offset_of!(Call, pidfds) + 4 * index, &fd.to_ne_bytes());
        }
        for (index, sequence) in sequences.iter().enumerate().take(PROCESSES) {
            put(offset_of!(Call, sequences) + 8 * index, &sequence.to_ne_bytes());
        }
        for (index, address) in self.operations.iter().enumerate() {
            put(offset_of!(Call, operations) + 8 * index, &address.to_ne_bytes());
        }
        self.calls().write(slot.1 * call.len(), &call);
        Ok(())
    }

    fn reading(&self, slot: &Slot<'_>, index: usize) -> Reading {
        let copy = |map: &Shared, record: usize, room: usize, first: u32, count: u32| {
            // The program stays within its room; a record that says otherwise is none.
            let (first, count) = (first as usize, count as usize);
            let fits = first.checked_add(count).is_some_and(|end| end <= room);
            let mut bytes = vec![0; if fits { count * record } else { 0 }];
            if fits {
                map.read((slot.1 * room + first) * record, &mut bytes);
            }
            bytes
        };
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        let process = copy(&self.processes, size_of::<Process>(), PROCESSES, index, 1);
        let at = |offset| word(&process, offset);
        let (first, count) = (at(offset_of!(Process, first_thread)), at(offset_of!(Process, threads)));
        let threads = copy(&self.threads, size_of::<Thread>(), THREADS, first, count);
        let (first, count) = (at(offset_of!(Process, first_file)), at(offset_of!(Process, files)));
        let files = copy(&self.files, size_of::<OpenFile>(), record::FILES, first, count);
        let (first, count) = (at(offset_of!(Process, first_interest)), at(offset_of!(Process, interests)));
        let interests = copy(&self.interests, size_of::<Interest>(), INTERESTS, first, count);
        let (first, count) = (at(offset_of!(Process, first_mapping)), at(offset_of!(Process, mappings)));
        let mappings = copy(&self.mappings, size_of::<Mapping>(), MAPPINGS, first, count);
        Reading { process, threads, files, interests, mappings }
    }

    /// Shows the program one file of each kind, and then looks whether it tells of this process what is so.
    fn learn(&mut self, operations: BorrowedFd<'_>) -> Result<(), String> {
        let text = |error: io::Error| error.to_string();
        let errno = |errno: nix::errno::Errno| errno.to_string();
        let pidfd = process::pidfd_open(nix::unistd::getpid().as_raw()).map_err(errno)?;
        let counter = EventFd::from_value_and_flags(12_345, EfdFlags::EFD_CLOEXEC).map_err(errno)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(errno)?;
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).map_err(errno)?;
        let mask = SignalFd::with_flags(&SigSet::empty(), SfdFlags::SFD_CLOEXEC).map_err(errno)?;
        let shown = [
            (FileKind::EventCounter, counter.as_fd().as_raw_fd()),
            (FileKind::Epoll, epoll.0.as_raw_fd()),
            (FileKind::Timer, timer.as_fd().as_raw_fd()),
            (FileKind::SignalMask, mask.as_fd().as_raw_fd()),
            (FileKind::Pidfd, pidfd.as_raw_fd()),
        ];
        let mut fds = [-1; PROCESSES];
        for (kind, fd) in shown {
            fds[kind as usize] = fd;
        }
        {
            let slot = self.slot();
            self.ask(&slot, &fds, 0, &[]).map_err(text)?;
            bpf::run(operations, &argument(&slot)).and_then(succeeded).map_err(text)?;
            let mut learned = [0; 8 * KINDS];
            let at = slot.1 * size_of::<Call>() + offset_of!(Call, operations);
            self.calls().read(at, &mut learned);
            drop(slot);
            for (address, bytes) in self.operations.iter_mut().zip(learned.chunks_exact(8)) {
                *address = bytes.try_into().map_or(0, u64::from_ne_bytes);
            }
        }
        self.flags = self.learn_flags(pidfd.as_fd())?;
        let mut complaint = String::new();
        for _ in 0..TRIES {
            match self.tell_of_ourselves(pidfd.as_fd(), &shown) {
                Ok(()) => {
                    self.distances = distances().unwrap_or_default();
                    if !(0..TRIES).any(|_| self.counts_lazy_frees(pidfd.as_fd())) {
                        self.distances = (0, 0);
                    }
                    return Ok(());
                }
                Err(text) => complaint = text,
            }
        }
        Err(complaint)
    }

    /// The bit that forbids a thread to read the time stamp counter has another place in each kernel, among bits that
    /// come and go. So set it and see.
    fn learn_flags(&self, pidfd: BorrowedFd<'_>) -> Result<u64, String> {
        let tid = nix::unistd::gettid().as_raw();
        let read = || {
            let answer = self.take(&[pidfd], &[]).map_err(|error| error.to_string())?;
            let flags = answer.readings.first().and_then(|reading| reading.flags_of(tid));
            flags.ok_or_else(|| format!("no flags of thread {tid}"))
        };
        let mut found = String::new();
        for _ in 0..TRIES {
            let before = read()?;
            // Nothing between these two lines may ask for the time.
            let forbidden = process::forbid_time_stamps(true);
            let within = read();
            process::forbid_time_stamps(false).map_err(|errno| errno.to_string())?;
            let after = read()?;
            match forbidden {
                // A kernel that cannot has no such bit.
                Err(_) => return Ok(0),
                Ok(()) if before == after && (before ^ within.clone()?).is_power_of_two() => {
                    return Ok(before ^ within?);
                }
                Ok(()) => found = format!("flags of a thread go from {before:x} to {within:x?} to {after:x}"),
            }
        }
        Err(found)
    }

    /// Whether a reading of this process is right, and sees that its mappings change.
    fn tell_of_ourselves(&self, pidfd: BorrowedFd<'_>, shown: &[(FileKind, i32)]) -> Result<(), String> {
        let read = || {
            let answer = self.take(&[pidfd], &[]).map_err(|error| error.to_string())?;
            answer.readings.into_iter().next().ok_or_else(|| "no answer".to_owned())
        };
        let first = read()?;
        let again = read()?;
        for (kind, fd) in shown {
            let found = first.state_of(*fd);
            if found.is_none_or(|(found, _)| found != *kind) {
                return Err(format!("descriptor {fd} is {kind:?} and looks like {found:?}"));
            }
            if *kind == FileKind::EventCounter && found.is_none_or(|(_, count)| count != 12_345) {
                return Err(format!("an event counter at 12345 looks like {found:?}"));
            }
        }
        let tid = nix::unistd::gettid().as_raw();
        if !first.activities().any(|(t, activity)| t == tid && activity.state == 0) {
            return Err(format!("thread {tid}, which runs, is not seen to"));
        }
        let status = std::fs::read("/proc/self/status").unwrap_or_default();
        let umask = crate::proc::field(&status, "Umask").and_then(|mask| u32::from_str_radix(mask, 8).ok());
        if umask != Some(first.umask()) {
            return Err(format!("the umask is {umask:?} and looks like {:o}", first.umask()));
        }
        let page = crate::sys::memory::memfd(c"rewind-census").map_err(|error| error.to_string())?;
        crate::sys::memory::set_len(page.as_fd(), crate::sys::PAGE).map_err(|error| error.to_string())?;
        drop(Shared::map(page.as_fd(), 4096, false).map_err(|error| error.to_string())?);
        let after = read()?;
        if after.sequence() != 0 && after.sequence() == again.sequence() {
            return Err("a mapping that came and went is not seen".to_owned());
        }
        Ok(())
    }

    /// Whether the count of MADV_FREE is that of `/proc/vmstat`, and rises, and a page of ours is seen waiting.
    fn counts_lazy_frees(&self, pidfd: BorrowedFd<'_>) -> bool {
        let look = || self.take(&[pidfd], &[]).ok();
        let count = || look().and_then(|answer| answer.lazy_frees);
        let Some(first) = count() else { return false };
        crate::sys::memory::free_lazily(512, || ());
        let (before, told, after) = (count(), super::lazy_frees_of_proc(), count());
        let mut pending = false;
        crate::sys::memory::free_lazily(1, || pending = look().is_some_and(|answer| answer.pending));
        pending
            && matches!((before, told, after), (Some(a), Some(b), Some(c)) if first < a && a <= b && b <= c)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = if self.distances.0 == 0 { "read from /proc/vmstat" } else { "included" };
        write!(f, "BPF program loaded, count of MADV_FREE {counts}")
    }
}

fn argument(slot: &Slot<'_>) -> [u8; 8] {
    (slot.1 as u64).to_le_bytes()
}

fn succeeded(answer: u32) -> io::Result<()> {
    if answer == 0 { Ok(()) } else { Err(io::Error::other("the census program failed")) }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn shared(map: &Map<'_>, record: usize, count: usize) -> Result<Shared, String> {
    if map.value_size() as usize != record || map.max_entries() as usize != count {
        return Err(format!(
            "map {:?} has {} records of {} bytes",
            map.name(),
            map.max_entries(),
            map.value_size()
        ));
    }
    let writable = map.name() == "calls";
    Shared::map(map.as_fd(), record * count, writable)
        .map_err(|error| format!("map {:?}: {error}", map.name()))
}

/// The first line of the loader's complaints that says something.
fn first_complaint() -> String {
    let complaints = std::mem::take(&mut *COMPLAINTS.lock().unwrap_or_else(PoisonError::into_inner));
    complaints
        .lines()
        .find(|line| line.contains("libbpf:"))
        .map_or(String::new(), |line| format!(" ({line})"))
}

/// Processors that there can be.
fn processors() -> Result<u32, String> {
    let path = "/sys/devices/system/cpu/possible";
    let text = std::fs::read_to_string(path).map_err(|error| format!("{path}: {error}"))?;
    let last = text.trim().rsplit([',', '-']).next().and_then(|last| last.parse::<u32>().ok());
    match last {
        Some(last) if (last as usize) < PROCESSORS => Ok(last + 1),
        _ => Err(format!("{} processors: room for {PROCESSORS}", text.trim())),
    }
}

/// How far the event counters and the batches of a processor lie from its run queue.
fn distances() -> Option<(u64, u64)> {
    let kernel = Btf::from_vmlinux().ok()?;
    let section: DataSec<'_> = kernel.type_by_name(".data..percpu")?;
    let offset = |name: &str| {
        section.iter().find_map(|variable| {
            let found = kernel.type_by_id::<libbpf_rs::btf::BtfType<'_>>(variable.ty)?;
            (found.name()? == name).then_some(u64::from(variable.offset))
        })
    };
    let queue = offset("runqueues")?;
    Some((offset("vm_event_states")?.wrapping_sub(queue), offset("cpu_fbatches")?.wrapping_sub(queue)))
}

#[cfg(test)]
mod tests {
    use super::super::Area;
    use super::super::record::Changes;
    use super::*;
    use libbpf_rs::btf::types::{MemberAttr, Struct};

    /// Offsets of the members of a structure in the compiled program.
    fn members(btf: &Btf<'_>, name: &str) -> Vec<(String, usize)> {
        let found: Struct<'_> = btf.type_by_name(name).unwrap_or_else(|| panic!("no structure {name}"));
        let offset = |attr: &MemberAttr| match attr {
            MemberAttr::Normal { offset } | MemberAttr::BitField { offset, .. } => *offset as usize / 8,
        };
        let name =
            |name: Option<&std::ffi::OsStr>| name.map_or(String::new(), |n| n.to_string_lossy().into_owned());
        found.iter().map(|member| (name(member.name), offset(&member.attr))).collect()
    }

    #[test]
    fn both_sides_lay_their_records_out_alike() {
        let btf = Btf::from_raw("census", OBJECT).expect("an object").expect("with types");
        for (name, ours) in record::offsets() {
            let theirs = members(&btf, name);
            let ours: Vec<(String, usize)> = ours.iter().map(|(n, at)| ((*n).to_owned(), *at)).collect();
            assert_eq!(ours, theirs, "{name}");
        }
    }

    #[test]
    fn many_may_ask_at_the_same_time() {
        let program = match super::super::shared() {
            Ok(program) => program,
            Err(why) => {
                eprintln!("SKIP many_may_ask_at_the_same_time: {why}");
                return;
            }
        };
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            // Not what other tests write to.
            .stdin(std::process::Stdio::null())
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null())
            .spawn()
            .expect("a child");
        let pid = i32::try_from(child.id()).expect("a pid");
        let asleep = || {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("readable");
            stat.contains("(sleep) S")
                && std::fs::read_to_string(format!("/proc/{pid}/wchan"))
                    .is_ok_and(|w| w.contains("nanosleep"))
        };
        while !asleep() {
            std::thread::yield_now();
        }
        let pidfd = process::pidfd_open(pid).expect("a handle");
        let first = program.take(&[pidfd.as_fd()], &[]).expect("answered").readings;
        std::thread::scope(|scope| {
            for _ in 0..2 * SLOTS {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let now =
                            program.take(&[pidfd.as_fd(), pidfd.as_fd()], &[]).expect("answered").readings;
                        assert_eq!(
                            [&first[0], &first[0]].map(|r| &r.threads),
                            [&now[0].threads, &now[1].threads]
                        );
                        let changes = record::changes(&first[0], &now[1], true);
                        let Changes { mut areas, .. } = changes.clone();
                        // Mounts of this machine come and go.
                        areas.remove(Area::Place);
                        assert!(areas.is_empty(), "{changes:?}");
                    }
                });
            }
        });
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let dead = program.take(&[pidfd.as_fd()], &[]).expect("answered").readings;
        assert_eq!(record::changes(&first[0], &dead[0], true), record::Changes::unknown());
    }
}
