//! The records of `bpf/census.h` and what may differ in them.
//!
//! They stay bytes: a record is compared range by range, and the structures here only say where the ranges are.
#![allow(dead_code, reason = "the fields are named for their place, which `offset_of` asks for")]

use super::areas::{Area, Areas};
use std::mem::{offset_of, size_of};

pub(super) const PROCESSES: usize = 16;
pub(super) const SLOTS: usize = 8;
pub(super) const THREADS: usize = 256;
pub(super) const FILES: usize = 512;
pub(super) const INTERESTS: usize = 256;
pub(super) const MAPPINGS: usize = 4096;
/// Processors in an affinity mask.
pub(super) const PROCESSORS: usize = 1024;

/// Kinds of open files, in the order of `bpf/census.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FileKind {
    Other,
    Plain,
    Device,
    Pipe,
    Socket,
    EventCounter,
    Epoll,
    Timer,
    SignalMask,
    Pidfd,
}
pub(super) const KINDS: usize = FileKind::Pidfd as usize + 1;

#[repr(C)]
pub(super) struct Call {
    pub(super) processes: u32,
    pub(super) processors: u32,
    pub(super) events: u64,
    pub(super) batches: u64,
    pub(super) flags: u64,
    pub(super) pidfds: [i32; PROCESSES],
    pub(super) sequences: [u64; PROCESSES],
    pub(super) operations: [u64; KINDS],
    pub(super) threads: u32,
    pub(super) files: u32,
    pub(super) interests: u32,
    pub(super) mappings: u32,
    pub(super) has_lazy_frees: u32,
    pub(super) pending: u32,
    pub(super) lazy_frees: u64,
}

#[repr(C)]
struct Layout {
    mm: u64,
    execs: u64,
    brk: u64,
    start_brk: u64,
    start_stack: u64,
    code: [u64; 2],
    data: [u64; 2],
    arguments: [u64; 2],
    environment: [u64; 2],
    total: u64,
    locked: u64,
    pinned: u64,
    data_pages: u64,
    exec_pages: u64,
    stack_pages: u64,
    default_flags: u64,
    count: u64,
}

#[repr(C)]
struct Attributes {
    actions: [[u64; 4]; 64],
    pending: u64,
    flags: u64,
    timers: [u64; 8],
    terminal: u64,
    umask: u32,
    membarrier: u32,
    subreaper: u32,
    pad: u32,
}

#[repr(C)]
struct Limits {
    resources: [u64; 32],
    flags: u64,
    oom_score: i32,
    oom_score_least: i32,
}

#[repr(C)]
struct Place {
    root_mount: u64,
    root: u64,
    directory_mount: u64,
    directory: u64,
    executable: u64,
    executable_inode: u64,
    mounts: u64,
    mounts_event: u64,
}

#[repr(C)]
struct Ipc {
    space: u64,
    in_use: [u32; 3],
    queues: u32,
}

#[repr(C)]
pub(super) struct Process {
    pub(super) failed: u32,
    pub(super) unproven: u32,
    pub(super) first_thread: u32,
    pub(super) threads: u32,
    pub(super) first_file: u32,
    pub(super) files: u32,
    pub(super) first_interest: u32,
    pub(super) interests: u32,
    tables: u64,
    sequence: u64,
    pub(super) pid: u32,
    listed: u32,
    pub(super) first_mapping: u32,
    pub(super) mappings: u32,
    layout: Layout,
    attributes: Attributes,
    limits: Limits,
    place: Place,
    ipc: Ipc,
}

#[repr(C)]
struct Running {
    switches: u64,
    state: u32,
    on_processor: u32,
    queued: u32,
    pad: u32,
}

#[repr(C)]
struct ThreadAttributes {
    pending: u64,
    stack: u64,
    stack_size: u64,
    stack_flags: u32,
    death_signal: u32,
    slack: u64,
    clear_tid: u64,
    robust: u64,
    rseq: u64,
    rseq_len: u32,
    rseq_signature: u32,
    dispatch: [u64; 4],
    flags: u64,
    ring: u64,
    personality: u32,
    memory_failure: u32,
    children: u32,
    tracees: u32,
    child: [u32; 4],
    credentials: u64,
    session_keyring: u64,
    session_serial: u32,
    session_keys: u32,
    session_key: [u32; 16],
    name: [u8; 16],
}

#[repr(C)]
struct Schedule {
    allowed: [u64; PROCESSORS / 64],
    deadline: [u64; 3],
    slice: u64,
    clamps: u64,
    deadline_flags: u32,
    policy: u32,
    nice: u32,
    priority: u32,
    reset_on_fork: u32,
    io_priority: u32,
}

#[repr(C)]
struct Identity {
    credentials: u64,
    real_credentials: u64,
    ids: [u32; 8],
    secure_bits: u32,
    groups: u32,
    capabilities: [u64; 5],
    users: u64,
    group: [u32; 32],
    namespaces: u64,
    namespace: [u32; 8],
    filter: u64,
    filter_mode: u32,
    filters: u32,
    task_flags: u64,
    parent: u32,
    process_group: u32,
    session: u32,
    own_tables: u32,
    features: u64,
    numa_group: u64,
}

#[repr(C)]
pub(super) struct Thread {
    tid: u32,
    unproven: u32,
    started: u64,
    activity: Running,
    attributes: ThreadAttributes,
    schedule: Schedule,
    identity: Identity,
}

#[repr(C)]
pub(super) struct OpenFile {
    fd: u32,
    close_on_exec: u32,
    file: u64,
    kind: u32,
    flags: u32,
    owner: u64,
    owner_pid: u64,
    owner_signal: u32,
    locks: u32,
    state: [u64; 6],
}

#[repr(C)]
pub(super) struct Mapping {
    start: u64,
    end: u64,
    flags: u64,
    offset: u64,
    inode: u64,
    operations: u64,
    data: u64,
}

#[repr(C)]
pub(super) struct Interest {
    epoll: u64,
    file: u64,
    data: u64,
    fd: u32,
    events: u32,
}

/// A range of a record that belongs to an area: offset, length.
type Range = (usize, usize, Area);

const LAYOUT: Range = (offset_of!(Process, layout), size_of::<Layout>(), Area::Layout);

const PROCESS_RANGES: [Range; 4] = [
    (offset_of!(Process, attributes), size_of::<Attributes>(), Area::Attributes),
    (offset_of!(Process, limits), size_of::<Limits>(), Area::Limits),
    (offset_of!(Process, place), size_of::<Place>(), Area::Place),
    (offset_of!(Process, ipc), size_of::<Ipc>(), Area::Ipc),
];

const THREAD_RANGES: [Range; 3] = [
    (offset_of!(Thread, attributes), size_of::<ThreadAttributes>(), Area::ThreadAttributes),
    (offset_of!(Thread, schedule), size_of::<Schedule>(), Area::Limits),
    (offset_of!(Thread, identity), size_of::<Identity>(), Area::Identity),
];

/// What a thread does at the moment of the census.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Times it has given a processor up, both kinds.
    pub(crate) switches: u64,
    /// The kernel's `__state`: 0 runs or wants to, 1 sleeps until a signal comes, 2 sleeps, 8 is traced and stopped.
    pub(crate) state: u32,
    /// It is executing at this moment.
    pub(crate) on_processor: bool,
    /// It is in a run queue.
    pub(crate) queued: bool,
}

/// What the census told of one process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reading {
    pub(super) process: Vec<u8>,
    pub(super) threads: Vec<u8>,
    pub(super) files: Vec<u8>,
    pub(super) interests: Vec<u8>,
    pub(super) mappings: Vec<u8>,
}

/// What may have changed between two readings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Of the process, and of any of its threads.
    pub(crate) areas: Areas,
    /// Of single threads: those that are not listed may have changed in everything.
    threads: Vec<(i32, Areas)>,
}

impl Changes {
    /// What must be assumed if nothing is known.
    pub(crate) fn unknown() -> Changes {
        Changes { areas: Areas::all(), threads: Vec::new() }
    }

    pub(crate) fn of_thread(&self, tid: i32) -> Areas {
        self.threads.iter().find(|(t, _)| *t == tid).map_or(Areas::all(), |(_, areas)| *areas)
    }
}

fn word(bytes: &[u8], offset: usize) -> u32 {
    bytes.get(offset..offset + 4).and_then(|b| b.try_into().ok()).map_or(0, u32::from_ne_bytes)
}

fn long(bytes: &[u8], offset: usize) -> u64 {
    bytes.get(offset..offset + 8).and_then(|b| b.try_into().ok()).map_or(0, u64::from_ne_bytes)
}

fn compare(was: &[u8], now: &[u8], ranges: &[Range]) -> Areas {
    let mut areas = Areas::none();
    for (offset, len, area) in ranges {
        let range = *offset..offset + len;
        match (was.get(range.clone()), now.get(range)) {
            (Some(a), Some(b)) if a == b => {}
            _ => areas.add(*area),
        }
    }
    areas
}

impl Reading {
    fn threads(&self) -> impl Iterator<Item = &[u8]> {
        self.threads.chunks_exact(size_of::<Thread>())
    }

    fn files(&self) -> impl Iterator<Item = &[u8]> {
        self.files.chunks_exact(size_of::<OpenFile>())
    }

    fn failed(&self) -> bool {
        self.process.len() != size_of::<Process>() || word(&self.process, offset_of!(Process, failed)) != 0
    }

    /// Areas of which something is never proven.
    fn unproven(&self) -> Areas {
        if self.failed() {
            return Areas::all();
        }
        Areas::of_bits(word(&self.process, offset_of!(Process, unproven)))
    }

    /// What the threads did, by id.
    pub(crate) fn activities(&self) -> impl Iterator<Item = (i32, Activity)> {
        const AT: usize = offset_of!(Thread, activity);
        self.threads().map(|thread| {
            let activity = Activity {
                switches: long(thread, AT + offset_of!(Running, switches)),
                state: word(thread, AT + offset_of!(Running, state)),
                on_processor: word(thread, AT + offset_of!(Running, on_processor)) != 0,
                queued: word(thread, AT + offset_of!(Running, queued)) != 0,
            };
            (word(thread, offset_of!(Thread, tid)).cast_signed(), activity)
        })
    }

    /// The kind of file that the census saw in a descriptor, and whether what it read is all its state.
    pub(crate) fn file(&self, fd: i32) -> Option<FileKind> {
        const ALL: [FileKind; KINDS] = [
            FileKind::Other,
            FileKind::Plain,
            FileKind::Device,
            FileKind::Pipe,
            FileKind::Socket,
            FileKind::EventCounter,
            FileKind::Epoll,
            FileKind::Timer,
            FileKind::SignalMask,
            FileKind::Pidfd,
        ];
        let file = self.files().find(|file| word(file, offset_of!(OpenFile, fd)).cast_signed() == fd)?;
        ALL.get(word(file, offset_of!(OpenFile, kind)) as usize).copied()
    }

    /// The count of changes of the address space, and the mappings that it stands for: `None` if they cannot be told.
    pub(crate) fn sequence(&self) -> u64 {
        if self.failed() { 0 } else { long(&self.process, offset_of!(Process, sequence)) }
    }

    fn listed(&self) -> bool {
        word(&self.process, offset_of!(Process, listed)) != 0
    }

    /// Whether the layout is certainly the same: nothing changed it since (if the count of changes can be trusted), or
    /// all mappings are as they were.
    pub(crate) fn same_layout(&self, now: &Reading, counted: bool) -> bool {
        if self.failed() || now.failed() || !compare(&self.process, &now.process, &[LAYOUT]).is_empty() {
            return false;
        }
        let same_sequence = self.sequence() != 0 && self.sequence() == now.sequence();
        counted && same_sequence || self.listed() && now.listed() && self.mappings == now.mappings
    }

    pub(super) fn state_of(&self, fd: i32) -> Option<(FileKind, u64)> {
        let file = self.files().find(|file| word(file, offset_of!(OpenFile, fd)).cast_signed() == fd)?;
        Some((self.file(fd)?, long(file, offset_of!(OpenFile, state))))
    }

    /// The flags of a thread, as far as they are compared.
    pub(super) fn flags_of(&self, tid: i32) -> Option<u64> {
        let thread = self.threads().find(|t| word(t, offset_of!(Thread, tid)).cast_signed() == tid)?;
        Some(long(thread, offset_of!(Thread, attributes) + offset_of!(ThreadAttributes, flags)))
    }

    pub(super) fn umask(&self) -> u32 {
        word(&self.process, offset_of!(Process, attributes) + offset_of!(Attributes, umask))
    }
}

/// What may have changed; `counted` says whether counts of changes of address spaces prove something. A thread that is new in `now` is not told of: it has to go.
pub(crate) fn changes(was: &Reading, now: &Reading, counted: bool) -> Changes {
    if was.failed() || now.failed() {
        return Changes::unknown();
    }
    let mut areas = compare(&was.process, &now.process, &PROCESS_RANGES);
    if !was.same_layout(now, counted) {
        areas.add(Area::Layout);
    }
    areas.join(was.unproven());
    areas.join(now.unproven());
    let key = offset_of!(Thread, activity);
    let mut threads = Vec::with_capacity(was.threads().count());
    for old in was.threads() {
        let tid = word(old, offset_of!(Thread, tid));
        // Number and time of its start: no later thread has both.
        let same = |new: &&[u8]| {
            word(new, offset_of!(Thread, tid)) == tid
                && new.get(offset_of!(Thread, started)..key) == old.get(offset_of!(Thread, started)..key)
        };
        let of_thread = match now.threads().find(same) {
            None => Areas::all(),
            Some(new) => {
                let mut of_thread = compare(old, new, &THREAD_RANGES);
                of_thread.join(Areas::of_bits(word(old, offset_of!(Thread, unproven))));
                of_thread.join(Areas::of_bits(word(new, offset_of!(Thread, unproven))));
                of_thread
            }
        };
        areas.join(of_thread);
        threads.push((tid.cast_signed(), of_thread));
    }
    if was.files != now.files || was.interests != now.interests {
        areas.add(Area::Descriptors);
    }
    Changes { areas, threads }
}

/// Whether what the census reads of a file of this kind is all that a rewind puts back. Of others it tells only
/// that the descriptor holds the same one.
pub(crate) fn provable(kind: FileKind) -> bool {
    !matches!(kind, FileKind::Other | FileKind::Socket)
}

/// Where the members of each structure are, under its name in the program.
#[cfg(test)]
pub(super) fn offsets() -> Vec<(&'static str, Vec<(&'static str, usize)>)> {
    macro_rules! offsets {
        ($type:ident as $name:literal: $($field:ident),*) => {
            ($name, vec![$( (stringify!($field), offset_of!($type, $field)) ),*])
        };
    }
    vec![
        offsets!(Call as "call": processes, processors, events, batches, flags, pidfds, sequences, operations, threads, files, interests, mappings, has_lazy_frees, pending, lazy_frees),
        offsets!(Layout as "layout": mm, execs, brk, start_brk, start_stack, code, data, arguments, environment, total, locked, pinned, data_pages, exec_pages, stack_pages, default_flags, count),
        offsets!(Attributes as "attributes": actions, pending, flags, timers, terminal, umask, membarrier, subreaper, pad),
        offsets!(Limits as "limits": resources, flags, oom_score, oom_score_least),
        offsets!(Place as "place": root_mount, root, directory_mount, directory, executable, executable_inode, mounts, mounts_event),
        offsets!(Ipc as "ipc": space, in_use, queues),
        offsets!(Process as "process": failed, unproven, first_thread, threads, first_file, files, first_interest, interests, tables, sequence, pid, listed, first_mapping, mappings, layout, attributes, limits, place, ipc),
        offsets!(Running as "activity": switches, state, on_processor, queued, pad),
        offsets!(ThreadAttributes as "thread_attributes": pending, stack, stack_size, stack_flags, death_signal, slack, clear_tid, robust, rseq, rseq_len, rseq_signature, dispatch, flags, ring, personality, memory_failure, children, tracees, child, credentials, session_keyring, session_serial, session_keys, session_key, name),
        offsets!(Schedule as "schedule": allowed, deadline, slice, clamps, deadline_flags, policy, nice, priority, reset_on_fork, io_priority),
        offsets!(Identity as "identity": credentials, real_credentials, ids, secure_bits, groups, capabilities, users, group, namespaces, namespace, filter, filter_mode, filters, task_flags, parent, process_group, session, own_tables, features, numa_group),
        offsets!(Thread as "thread": tid, unproven, started, activity, attributes, schedule, identity),
        offsets!(OpenFile as "open_file": fd, close_on_exec, file, kind, flags, owner, owner_pid, owner_signal, locks, state),
        offsets!(Mapping as "mapping": start, end, flags, offset, inode, operations, data),
        offsets!(Interest as "interest": epoll, file, data, fd, events),
    ]
}
