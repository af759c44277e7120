//! Open files.
//!
//! A duplicate of every open file description is kept from the checkpoint on (taken by `pidfd_getfd`). It
//! tells whether a descriptor of the target is still the same description (kcmp), reads and sets what belongs
//! to the description without the target's help (flags, offset, queues, counters), and is what a lost
//! descriptor is put back from. Kept duplicates of connected sockets would suppress their FIN, so there must
//! be none at the checkpoint.

use crate::census::{Area, FileKind, Standing};
use crate::engine::Stopped;
use crate::inject::{Answers, Batch, Call, args};
use crate::proc::{self, Held};
use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::file::{self, Owner, TimerSetting};
use crate::sys::process;
use crate::sys::socket::{self, TcpState};
use nix::errno::Errno;
use nix::sys::stat::{SFlag, fstat};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

/// Drains of one queue before it counts as one that somebody keeps filling.
const DRAINS_MAX: usize = 4096;

/// Status flags that are restored: what F_SETFL can set.
const SETTABLE: i32 = libc::O_APPEND | libc::O_NONBLOCK | libc::O_ASYNC | libc::O_DIRECT | libc::O_NOATIME;

/// Socket options that must stay what they were: level, name, whether it is set back.
const SOCKET_OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_LINGER),
    (libc::SOL_SOCKET, libc::SO_KEEPALIVE),
    (libc::SOL_SOCKET, libc::SO_REUSEADDR),
    (libc::SOL_SOCKET, libc::SO_REUSEPORT),
    (libc::SOL_SOCKET, libc::SO_RCVTIMEO),
    (libc::SOL_SOCKET, libc::SO_SNDTIMEO),
    (libc::SOL_SOCKET, libc::SO_RCVLOWAT),
    (libc::SOL_SOCKET, libc::SO_BROADCAST),
    (libc::SOL_SOCKET, libc::SO_OOBINLINE),
    (libc::SOL_SOCKET, libc::SO_PRIORITY),
    (libc::SOL_SOCKET, libc::SO_PASSCRED),
];

/// Options whose change cannot be undone by setting a number: sizes are doubled, filters are programs.
const FIXED_OPTIONS: &[(i32, i32)] = &[
    (libc::SOL_SOCKET, libc::SO_RCVBUF),
    (libc::SOL_SOCKET, libc::SO_SNDBUF),
    (libc::SOL_SOCKET, libc::SO_ERROR),
    (libc::SOL_SOCKET, libc::SO_GET_FILTER),
];

/// Options of TCP sockets.
const TCP_OPTIONS: &[(i32, i32)] = &[
    (libc::IPPROTO_TCP, libc::TCP_NODELAY),
    (libc::IPPROTO_TCP, libc::TCP_DEFER_ACCEPT),
    (libc::IPPROTO_TCP, libc::TCP_KEEPIDLE),
    (libc::IPPROTO_TCP, libc::TCP_KEEPINTVL),
    (libc::IPPROTO_TCP, libc::TCP_KEEPCNT),
    (libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT),
];

/// One entry of an epoll interest list.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Interest {
    fd: i32,
    inode: u64,
    events: u32,
    data: u64,
}

#[derive(Debug)]
enum Kind {
    /// Regular files and directories: an offset, locks.
    File {
        offset: i64,
    },
    /// Devices without state of ours.
    Device,
    Pipe {
        size: i32,
        /// What lies in it, if it can be read through this description. Node's signal lock is a byte that
        /// lies in a pipe of libuv for ever.
        content: Option<Vec<u8>>,
    },
    EventCounter {
        count: u64,
        info: Held,
    },
    Epoll {
        interests: Vec<Interest>,
        info: Held,
    },
    Timer {
        setting: TimerSetting,
    },
    SignalMask {
        mask: u64,
        info: Held,
    },
    /// inotify: watches, as the kernel prints them.
    Watches {
        text: String,
        info: Held,
    },
    Pidfd,
    Socket(Socket),
}

#[derive(Debug)]
struct Socket {
    tcp: Option<(TcpState, u32)>,
    accepting: bool,
    names: (Vec<u8>, Vec<u8>),
    options: Vec<(i32, i32, Option<Vec<u8>>)>,
    fixed: Vec<(i32, i32, Option<Vec<u8>>)>,
    readiness: i16,
}

/// A recorded descriptor.
#[derive(Debug)]
struct Descriptor {
    fd: i32,
    ours: OwnedFd,
    close_on_exec: bool,
    flags: i32,
    owner: Owner,
    kind: Kind,
}

/// The recorded descriptors of a process.
#[derive(Debug)]
pub(crate) struct Descriptors {
    all: Vec<Descriptor>,
}

/// What differs in the descriptor table.
#[derive(Debug, Default)]
pub(crate) struct TableDifference {
    /// Ranges of descriptors to close, both ends included.
    close: Vec<(u32, u32)>,
    pub(crate) closed: u64,
    /// Descriptors to put back, as indices.
    lost: Vec<usize>,
}

/// Why a descriptor cannot be recorded now.
#[derive(Debug)]
pub(crate) enum RecordError {
    /// Never.
    Refused(Quarantine),
    /// Something is under way in it.
    Busy(String),
}

impl From<Quarantine> for RecordError {
    fn from(quarantine: Quarantine) -> Self {
        RecordError::Refused(quarantine)
    }
}

impl Descriptors {
    /// Duplicates and reads every descriptor of a stopped process.
    pub(crate) fn record(pid: i32, pidfd: &OwnedFd) -> Result<Descriptors, RecordError> {
        let path = format!("/proc/{pid}/fd");
        let numbers = proc::numbers(&path).or_quarantine(Reason::Unreadable, || path)?;
        let all =
            numbers.into_iter().map(|fd| Descriptor::record(pid, pidfd, fd)).collect::<Result<_, _>>()?;
        Ok(Descriptors { all })
    }

    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Compares the table with the record: which descriptors are new, which are gone or others.
    pub(crate) fn difference(&self, pid: i32) -> Result<TableDifference, Quarantine> {
        let path = format!("/proc/{pid}/fd");
        let now = proc::numbers(&path).or_quarantine(Reason::Unreadable, || path)?;
        let mut difference = TableDifference::default();
        let mut expected = self.all.iter().enumerate().peekable();
        for fd in now {
            while let Some((index, _)) = expected.next_if(|(_, d)| d.fd < fd) {
                difference.lost.push(index);
            }
            match expected.next_if(|(_, d)| d.fd == fd) {
                None => {
                    refuse_dangerous(pid, fd)?;
                    difference.close(fd);
                }
                Some((index, descriptor)) => {
                    let same = process::same_file(descriptor.ours.as_fd(), pid, fd)
                        .or_quarantine(Reason::Unreadable, || {
                            format!("comparing descriptor {fd} of process {pid}")
                        })?;
                    if !same {
                        refuse_dangerous(pid, fd)?;
                        difference.lost.push(index);
                    }
                }
            }
        }
        difference.lost.extend(expected.map(|(index, _)| index));
        Ok(difference)
    }

    /// Puts back what belongs to the open file descriptions; returns how many differed. If the census saw no change
    /// of the table it told of these, too, as far as it can.
    pub(crate) fn restore_descriptions(&self, pid: i32, standing: &Standing) -> Result<u64, Quarantine> {
        let mut restored = 0;
        for descriptor in &self.all {
            let told = standing.tells_of(descriptor.fd, descriptor.kind.in_census());
            if told && !standing.changed(Area::Descriptors) {
                continue;
            }
            if descriptor.restore(pid)? {
                if told {
                    standing.contradicted(Area::Descriptors, || {
                        format!("descriptor {} of process {pid}", descriptor.fd)
                    })?;
                }
                tracing::trace!(pid, fd = descriptor.fd, kind = ?descriptor.kind, "description put back");
                restored += 1;
            }
        }
        Ok(restored)
    }

    /// Adds the calls that close what is new and set the close-on-exec flags; returns those that must succeed.
    pub(crate) fn write(
        &self,
        difference: &TableDifference,
        batch: &mut Batch,
    ) -> Result<Vec<Call>, Quarantine> {
        let mut required = Vec::new();
        for (first, last) in &difference.close {
            if !batch.has_room(4096) {
                return Err(Quarantine::new(Reason::FdNotRestored, "too many scattered descriptors"));
            }
            required
                .push(batch.call(libc::SYS_close_range, [u64::from(*first), u64::from(*last), 0, 0, 0, 0]));
        }
        for (index, descriptor) in self.all.iter().enumerate() {
            if !batch.has_room(4096) {
                return Err(Quarantine::new(Reason::FdNotRestored, "too many descriptors"));
            }
            if !difference.lost.contains(&index) {
                let args = [
                    number(descriptor.fd),
                    libc::F_SETFD as u64,
                    u64::from(descriptor.close_on_exec),
                    0,
                    0,
                    0,
                ];
                required.push(batch.call(libc::SYS_fcntl, args));
            }
        }
        // POSIX locks belong to the process; whole-file locks of a description are dropped from outside.
        let lockable = self.all.iter().enumerate().filter(|(_, d)| d.is_lockable());
        // Losing a descriptor has already lost its locks.
        for (_, descriptor) in lockable.filter(|(index, _)| !difference.lost.contains(index)) {
            if batch.has_room(4096) {
                let whole = batch.bytes(&unlock_all());
                required.push(
                    batch.add(libc::SYS_fcntl, args![number(descriptor.fd), libc::F_SETLK as u64, whole]),
                );
            }
        }
        Ok(required)
    }

    /// Puts back lost descriptors, then the interest lists. After the new ones have been closed.
    pub(crate) fn restore_table(
        &self,
        process: &mut Stopped<'_>,
        difference: &TableDifference,
    ) -> Result<u64, Quarantine> {
        if !difference.lost.is_empty() {
            self.put_back(process, &difference.lost)?;
        }
        let mut restored = difference.lost.len() as u64;
        for descriptor in &self.all {
            if let Kind::Epoll { interests, info } = &descriptor.kind {
                restored += restore_interests(process, descriptor.fd, interests, info)?;
            }
        }
        Ok(restored)
    }

    /// Sends lost descriptors into the target over a socket made for it.
    fn put_back(&self, process: &mut Stopped<'_>, lost: &[usize]) -> Result<(), Quarantine> {
        let pid = process.runner.pid;
        let failed = || format!("putting back descriptors of process {pid}");
        let mut batch = Batch::new();
        let pair = batch.space(8);
        let kind = (libc::SOCK_DGRAM | libc::SOCK_CLOEXEC).cast_unsigned();
        let made = batch.add(libc::SYS_socketpair, args![libc::AF_UNIX as u64, u64::from(kind), 0u64, pair]);
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        answers.get(made).or_quarantine(Reason::FdNotRestored, failed)?;
        let ends = answers.read(&batch, pair);
        let end =
            |at: usize| ends.get(at..at + 4).and_then(|b| b.try_into().ok()).map_or(-1, i32::from_ne_bytes);
        let (theirs, sent) = (end(0), end(4));
        let ours =
            process::pidfd_getfd(process.pidfd.as_fd(), sent).or_quarantine(Reason::FdNotRestored, failed)?;
        // The receiving end must not sit on a number that is wanted.
        let above = self.all.last().map_or(0, |d| d.fd + 1);
        let mut batch = Batch::new();
        let moved = batch
            .call(libc::SYS_fcntl, [number(theirs), libc::F_DUPFD_CLOEXEC as u64, number(above), 0, 0, 0]);
        let closed = [theirs, sent].map(|fd| batch.call(libc::SYS_close, [number(fd), 0, 0, 0, 0, 0]));
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        for call in closed {
            answers.get(call).or_quarantine(Reason::FdNotRestored, failed)?;
        }
        let receiver = answers.get(moved).or_quarantine(Reason::FdNotRestored, failed)?;
        for index in lost {
            self.put_one_back(process, &self.all[*index], receiver, ours.as_fd())?;
        }
        let mut batch = Batch::new();
        let closed = batch.call(libc::SYS_close, [receiver, 0, 0, 0, 0, 0]);
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        answers.get(closed).or_quarantine(Reason::FdNotRestored, failed)?;
        Ok(())
    }

    /// One at a time: several received at once could land on each other's numbers.
    fn put_one_back(
        &self,
        process: &mut Stopped<'_>,
        descriptor: &Descriptor,
        receiver: u64,
        sender: BorrowedFd<'_>,
    ) -> Result<(), Quarantine> {
        let pid = process.runner.pid;
        let failed = || format!("putting back descriptor {} of process {pid}", descriptor.fd);
        socket::send_fds(sender, &[descriptor.ours.as_fd()]).or_quarantine(Reason::FdNotRestored, failed)?;
        // struct msghdr { name, namelen, iov, iovlen, control, controllen, flags }
        let mut batch = Batch::new();
        let byte = batch.space(8);
        let iov = batch.space(16);
        let control = batch.space(64);
        let header = batch.space(56);
        let flags = (libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT).cast_unsigned();
        let received = batch.add(libc::SYS_recvmsg, args![receiver, header, u64::from(flags)]);
        let lane = process.agent.lane_address(0);
        let words = |list: &[u64]| list.iter().flat_map(|w| w.to_ne_bytes()).collect::<Vec<u8>>();
        batch.fill(iov, &words(&[batch.address(lane, byte), 1]));
        batch.fill(header, &words(&[0, 0, batch.address(lane, iov), 1, batch.address(lane, control), 64, 0]));
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        answers.get(received).or_quarantine(Reason::FdNotRestored, failed)?;
        // struct cmsghdr { len, level, type }, then the descriptor.
        let got = answers.read(&batch, control);
        let got = got.get(16..20).and_then(|b| b.try_into().ok()).map_or(-1, i32::from_ne_bytes);
        let mut batch = Batch::new();
        let mut required = Vec::new();
        if got == descriptor.fd {
            let args = [number(got), libc::F_SETFD as u64, u64::from(descriptor.close_on_exec), 0, 0, 0];
            required.push(batch.call(libc::SYS_fcntl, args));
        } else {
            let flags = if descriptor.close_on_exec { libc::O_CLOEXEC as u64 } else { 0 };
            required.push(batch.call(libc::SYS_dup3, [number(got), number(descriptor.fd), flags, 0, 0, 0]));
            required.push(batch.call(libc::SYS_close, [number(got), 0, 0, 0, 0, 0]));
        }
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        for call in required {
            answers.get(call).or_quarantine(Reason::FdNotRestored, failed)?;
        }
        Ok(())
    }

    /// Judges the calls of [`Descriptors::write`].
    pub(crate) fn check(calls: &[Call], pid: i32, answers: &Answers) -> Result<(), Quarantine> {
        for call in calls {
            answers
                .get(*call)
                .or_quarantine(Reason::FdNotRestored, || format!("descriptors of process {pid}"))?;
        }
        Ok(())
    }
}

impl TableDifference {
    fn close(&mut self, fd: i32) {
        let fd = fd.cast_unsigned();
        self.closed += 1;
        match self.close.last_mut() {
            Some((_, last)) if *last + 1 == fd => *last = fd,
            _ => self.close.push((fd, fd)),
        }
    }

    /// Whether descriptors have to be put back.
    pub(crate) fn is_empty(&self) -> bool {
        self.close.is_empty() && self.lost.is_empty()
    }
}

fn number(fd: i32) -> u64 {
    u64::from(fd.cast_unsigned())
}

/// `struct flock` for 'unlock everything'.
fn unlock_all() -> [u8; 32] {
    let mut flock = [0u8; 32];
    flock[..2].copy_from_slice(&libc::F_UNLCK.to_ne_bytes()[..2]);
    flock
}

fn link(pid: i32, fd: i32) -> Result<String, Quarantine> {
    let path = format!("/proc/{pid}/fd/{fd}");
    let link = std::fs::read_link(&path).or_quarantine(Reason::Unreadable, || path)?;
    Ok(link.to_string_lossy().into_owned())
}

/// Descriptors whose mere existence says that something happened that closing does not undo.
fn refuse_dangerous(pid: i32, fd: i32) -> Result<(), Quarantine> {
    const DANGEROUS: &[&str] =
        &["[io_uring]", "[userfaultfd]", "[perf_event]", "[fanotify]", "[kvm", "[secretmem]"];
    let name = link(pid, fd)?;
    let Some(kind) = name.strip_prefix("anon_inode:") else { return Ok(()) };
    let bpf = kind.starts_with("bpf");
    if bpf || DANGEROUS.iter().any(|d| kind.starts_with(d)) {
        return Err(Quarantine::new(
            Reason::FdUnsupported,
            format!("descriptor {fd} of process {pid}: {kind}"),
        ));
    }
    Ok(())
}

impl Descriptor {
    fn record(pid: i32, pidfd: &OwnedFd, fd: i32) -> Result<Descriptor, RecordError> {
        let who = || format!("descriptor {fd} of process {pid}");
        let ours = process::pidfd_getfd(pidfd.as_fd(), fd).or_quarantine(Reason::Unreadable, who)?;
        let name = link(pid, fd)?;
        let path = format!("/proc/{pid}/fdinfo/{fd}");
        let info = std::fs::read_to_string(&path).or_quarantine(Reason::Unreadable, || path)?;
        if info.lines().any(|line| line.starts_with("lock:")) {
            return Err(
                Quarantine::new(Reason::FileLock, format!("{} ({name}) at the checkpoint", who())).into()
            );
        }
        let octal =
            proc::field(info.as_bytes(), "flags").and_then(|f| i32::from_str_radix(f, 8).ok()).unwrap_or(0);
        let flags = file::flags(ours.as_fd()).or_quarantine(Reason::Unreadable, who)?;
        let owner = if octal & libc::O_PATH == 0 {
            file::owner(ours.as_fd()).or_quarantine(Reason::Unreadable, who)?
        } else {
            Owner::default()
        };
        if !owner.is_nobody() {
            return Err(Quarantine::new(Reason::FileOwner, format!("{} at the checkpoint", who())).into());
        }
        let kind = Kind::record(ours.as_fd(), &name, &info, &who)?;
        Ok(Descriptor { fd, close_on_exec: octal & libc::O_CLOEXEC != 0, flags, owner, kind, ours })
    }

    fn is_lockable(&self) -> bool {
        matches!(self.kind, Kind::File { .. }) && self.flags & libc::O_PATH == 0
    }

    /// Puts the description back; true if it differed.
    fn restore(&self, pid: i32) -> Result<bool, Quarantine> {
        let ours = self.ours.as_fd();
        let who = || format!("descriptor {} of process {pid}", self.fd);
        let mut differed = false;
        let flags = file::flags(ours).or_quarantine(Reason::FdNotRestored, who)?;
        if (flags ^ self.flags) & SETTABLE != 0 {
            file::set_flags(ours, self.flags).or_quarantine(Reason::FdNotRestored, who)?;
            differed = true;
        }
        if self.flags & libc::O_PATH == 0
            && file::owner(ours).or_quarantine(Reason::FdNotRestored, who)? != self.owner
        {
            file::clear_owner(ours).or_quarantine(Reason::FileOwner, who)?;
            differed = true;
        }
        Ok(differed | self.kind.restore(ours, &who)?)
    }
}

impl Kind {
    fn record(
        ours: BorrowedFd<'_>,
        name: &str,
        info: &str,
        who: &dyn Fn() -> String,
    ) -> Result<Kind, RecordError> {
        let unsupported = |what: &str| {
            RecordError::Refused(Quarantine::new(Reason::FdUnsupported, format!("{}: {what}", who())))
        };
        let held = || {
            let path = format!("/proc/self/fdinfo/{}", ours.as_raw_fd());
            Held::open(&path).or_quarantine(Reason::Unreadable, || path)
        };
        if let Some(kind) = name.strip_prefix("anon_inode:") {
            return Ok(match kind {
                "[eventpoll]" => Kind::Epoll { interests: interests(info), info: held()? },
                "[eventfd]" => Kind::EventCounter { count: eventfd_count(info.as_bytes())?, info: held()? },
                "[timerfd]" => {
                    Kind::Timer { setting: file::timer(ours).or_quarantine(Reason::Unreadable, who)? }
                }
                "[signalfd]" => Kind::SignalMask { mask: signal_mask(info.as_bytes())?, info: held()? },
                "inotify" => Kind::Watches { text: watches(info), info: held()? },
                "[pidfd]" => Kind::Pidfd,
                other => return Err(unsupported(other)),
            });
        }
        let status = fstat(ours).or_quarantine(Reason::Unreadable, who)?;
        let mode = SFlag::from_bits_truncate(status.st_mode & SFlag::S_IFMT.bits());
        if mode == SFlag::S_IFREG || mode == SFlag::S_IFDIR {
            if name.starts_with("/memfd:") {
                return Err(unsupported("a memory file, whose content is not recorded"));
            }
            if mode == SFlag::S_IFREG && status.st_nlink == 0 && !read_only(ours) {
                return Err(unsupported("a deleted file open for writing, whose content is not recorded"));
            }
            // O_PATH descriptors have no offset.
            return Ok(Kind::File { offset: file::offset(ours).unwrap_or(0) });
        }
        if mode == SFlag::S_IFCHR {
            return Ok(Kind::Device);
        }
        if mode == SFlag::S_IFIFO {
            let size = file::pipe_size(ours).or_quarantine(Reason::Unreadable, who)?;
            let mut content = None;
            if !write_only(ours) {
                if file::readable(ours).or_quarantine(Reason::Unreadable, who)? > file::PEEK_MAX {
                    return Err(RecordError::Busy(format!("{} holds unread data", who())));
                }
                content = Some(file::peek_pipe(ours).or_quarantine(Reason::Unreadable, who)?);
            }
            return Ok(Kind::Pipe { size, content });
        }
        if mode == SFlag::S_IFSOCK {
            return Socket::record(ours, who).map(Kind::Socket);
        }
        Err(unsupported(name))
    }

    /// What the census must have taken it for to tell of it.
    fn in_census(&self) -> FileKind {
        match self {
            Kind::File { .. } => FileKind::Plain,
            Kind::Device => FileKind::Device,
            Kind::Pipe { .. } => FileKind::Pipe,
            Kind::EventCounter { .. } => FileKind::EventCounter,
            Kind::Epoll { .. } => FileKind::Epoll,
            Kind::Timer { .. } => FileKind::Timer,
            Kind::SignalMask { .. } => FileKind::SignalMask,
            Kind::Watches { .. } => FileKind::Other,
            Kind::Pidfd => FileKind::Pidfd,
            Kind::Socket(_) => FileKind::Socket,
        }
    }

    fn restore(&self, ours: BorrowedFd<'_>, who: &dyn Fn() -> String) -> Result<bool, Quarantine> {
        match self {
            Kind::Device | Kind::Pidfd | Kind::Epoll { .. } => Ok(false),
            Kind::File { offset } => {
                let path_only =
                    file::flags(ours).or_quarantine(Reason::FdNotRestored, who)? & libc::O_PATH != 0;
                if path_only {
                    return Ok(false);
                }
                file::unlock(ours).or_quarantine(Reason::FileLock, who)?;
                if file::offset(ours).unwrap_or(*offset) == *offset {
                    return Ok(false);
                }
                file::seek(ours, *offset).or_quarantine(Reason::FdNotRestored, who)?;
                Ok(true)
            }
            Kind::Pipe { size, content } => {
                let mut differed = false;
                if let Some(content) = content {
                    differed = refill(ours, content, who)?;
                }
                if file::pipe_size(ours).or_quarantine(Reason::FdNotRestored, who)? != *size {
                    file::set_pipe_size(ours, *size).or_quarantine(Reason::FdNotRestored, who)?;
                    differed = true;
                }
                Ok(differed)
            }
            Kind::EventCounter { count, info } => restore_counter(ours, *count, info, who),
            Kind::Timer { setting } => {
                let now = file::timer(ours).or_quarantine(Reason::Timers, who)?;
                // Setting it also forgets expiries, which are not visible otherwise.
                file::set_timer(ours, *setting).or_quarantine(Reason::Timers, who)?;
                Ok(now.interval != setting.interval || (now.value == 0) != (setting.value == 0))
            }
            Kind::SignalMask { mask, info } => {
                let mut buffer = Vec::new();
                let text = info.read(&mut buffer).or_quarantine(Reason::Unreadable, who)?;
                if signal_mask(text)? == *mask {
                    return Ok(false);
                }
                file::set_signalfd_mask(ours, *mask).or_quarantine(Reason::FdNotRestored, who)?;
                Ok(true)
            }
            Kind::Watches { text, info } => {
                let differed = drain(ours, who)?;
                if watches(&info.text().or_quarantine(Reason::Unreadable, who)?) != *text {
                    return Err(Quarantine::new(Reason::WatchChanged, who()));
                }
                Ok(differed)
            }
            Kind::Socket(socket) => socket.restore(ours, who),
        }
    }
}

fn read_only(fd: BorrowedFd<'_>) -> bool {
    file::flags(fd).is_ok_and(|f| f & libc::O_ACCMODE == libc::O_RDONLY)
}

fn write_only(fd: BorrowedFd<'_>) -> bool {
    file::flags(fd).is_ok_and(|f| f & libc::O_ACCMODE == libc::O_WRONLY)
}

/// Reads until nothing is left; true if there was something.
fn drain(fd: BorrowedFd<'_>, who: &dyn Fn() -> String) -> Result<bool, Quarantine> {
    let mut buffer = [0u8; 64 * 1024];
    for drains in 0..DRAINS_MAX {
        // A pipe without writers is 'ready' for its end of file, so ask for the bytes.
        if file::readable(fd).or_quarantine(Reason::PipeNotDrained, who)? == 0 {
            return Ok(drains > 0);
        }
        match nix::unistd::read(fd, &mut buffer) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(Quarantine::because(Reason::PipeNotDrained, who(), errno)),
        }
    }
    Err(Quarantine::new(Reason::PipeNotDrained, who()))
}

/// Makes a pipe hold exactly `content`; true if it did not.
fn refill(fd: BorrowedFd<'_>, content: &[u8], who: &dyn Fn() -> String) -> Result<bool, Quarantine> {
    if content.is_empty() {
        return drain(fd, who);
    }
    let readable = file::readable(fd).or_quarantine(Reason::PipeNotDrained, who)?;
    if readable == content.len() && file::peek_pipe(fd).or_quarantine(Reason::PipeNotDrained, who)? == content
    {
        return Ok(false);
    }
    drain(fd, who)?;
    file::fill_pipe(fd, content).or_quarantine(Reason::PipeNotDrained, who)?;
    Ok(true)
}

fn eventfd_count(info: &[u8]) -> Result<u64, Quarantine> {
    proc::field(info, "eventfd-count")
        .and_then(|count| u64::from_str_radix(count, 16).ok())
        .ok_or_else(|| Quarantine::new(Reason::Unreadable, "an event counter without a count"))
}

fn restore_counter(
    ours: BorrowedFd<'_>,
    count: u64,
    info: &Held,
    who: &dyn Fn() -> String,
) -> Result<bool, Quarantine> {
    // The usual case, a counter at zero as it was, costs one poll.
    if count == 0 && !file::ready_to_read(ours).or_quarantine(Reason::FdNotRestored, who)? {
        return Ok(false);
    }
    let mut buffer = Vec::new();
    let mut read = || {
        let text = info.read(&mut buffer).or_quarantine(Reason::Unreadable, who)?;
        eventfd_count(text)
    };
    if read()? == count {
        return Ok(false);
    }
    // A semaphore counter gives one at a time.
    for _ in 0..DRAINS_MAX {
        if !file::ready_to_read(ours).or_quarantine(Reason::FdNotRestored, who)? {
            break;
        }
        nix::unistd::read(ours, &mut [0u8; 8]).or_quarantine(Reason::FdNotRestored, who)?;
    }
    if count > 0 {
        nix::unistd::write(ours, &count.to_ne_bytes()).or_quarantine(Reason::FdNotRestored, who)?;
    }
    if read()? != count {
        return Err(Quarantine::new(Reason::FdNotRestored, who()));
    }
    Ok(true)
}

fn signal_mask(info: &[u8]) -> Result<u64, Quarantine> {
    proc::field(info, "sigmask")
        .and_then(|mask| u64::from_str_radix(mask, 16).ok())
        .ok_or_else(|| Quarantine::new(Reason::Unreadable, "a signal descriptor without a mask"))
}

fn watches(info: &str) -> String {
    let mut lines: Vec<&str> = info.lines().filter(|line| line.starts_with("inotify ")).collect();
    lines.sort_unstable();
    lines.join("\n")
}

/// The interest list in an epoll's fdinfo, sorted.
fn interests(info: &str) -> Vec<Interest> {
    // tfd:        8 events: 8000201d data: 7f6983eca3480001  pos:0 ino:243f0 sdev:f
    let mut all: Vec<Interest> = info
        .lines()
        .filter_map(|line| {
            let rest = line.strip_prefix("tfd:")?;
            let after = |key: &str| rest.split_once(key)?.1.split_whitespace().next();
            Some(Interest {
                fd: rest.split_whitespace().next()?.parse().ok()?,
                events: u32::from_str_radix(after("events:")?, 16).ok()?,
                data: u64::from_str_radix(after("data:")?, 16).ok()?,
                inode: u64::from_str_radix(after("ino:")?, 16).ok()?,
            })
        })
        .collect();
    all.sort_unstable();
    all
}

/// The interest list of the process's epoll `fd` back to `wanted`.
fn restore_interests(
    process: &mut Stopped<'_>,
    fd: i32,
    wanted: &[Interest],
    info: &Held,
) -> Result<u64, Quarantine> {
    let pid = process.runner.pid;
    let who = || format!("epoll {fd} of process {pid}");
    let mut buffer = Vec::new();
    let mut read = || {
        let text = info.read(&mut buffer).or_quarantine(Reason::Unreadable, who)?;
        Ok::<_, Quarantine>(interests(&String::from_utf8_lossy(text)))
    };
    let now = read()?;
    if now == wanted {
        return Ok(0);
    }
    let mut steps = Vec::new();
    for old in now.iter().filter(|i| !wanted.iter().any(|w| w.fd == i.fd && w.inode == i.inode)) {
        steps.push((libc::EPOLL_CTL_DEL, *old));
    }
    for want in wanted {
        match now.iter().find(|i| i.fd == want.fd && i.inode == want.inode) {
            None => steps.push((libc::EPOLL_CTL_ADD, *want)),
            Some(found) if found != want => steps.push((libc::EPOLL_CTL_MOD, *want)),
            Some(_) => {}
        }
    }
    for chunk in steps.chunks(256) {
        let mut batch = Batch::new();
        let mut required = Vec::new();
        for (op, interest) in chunk {
            // struct epoll_event is packed.
            let mut event = [0u8; 12];
            event[..4].copy_from_slice(&interest.events.to_ne_bytes());
            event[4..].copy_from_slice(&interest.data.to_ne_bytes());
            let event = batch.bytes(&event);
            let args = args![number(fd), u64::from(op.cast_unsigned()), number(interest.fd), event];
            required.push(batch.add(libc::SYS_epoll_ctl, args));
        }
        let answers = process.agent.run(process.tracer, process.runner, &batch)?;
        for call in required {
            answers.get(call).or_quarantine(Reason::EpollNotRestored, who)?;
        }
    }
    if read()? != wanted {
        return Err(Quarantine::new(Reason::EpollNotRestored, who()));
    }
    Ok(steps.len() as u64)
}

impl Socket {
    fn record(ours: BorrowedFd<'_>, who: &dyn Fn() -> String) -> Result<Socket, RecordError> {
        let int =
            |name| socket::int_option(ours, libc::SOL_SOCKET, name).or_quarantine(Reason::Unreadable, who);
        let (domain, protocol) = (int(libc::SO_DOMAIN)?, int(libc::SO_PROTOCOL)?);
        let inet = domain == libc::AF_INET || domain == libc::AF_INET6;
        if !inet && domain != libc::AF_UNIX {
            let detail = format!("{}: a socket of family {domain}", who());
            return Err(Quarantine::new(Reason::FdUnsupported, detail).into());
        }
        let mut tcp = None;
        if inet && protocol == libc::IPPROTO_TCP {
            let (state, waiting, bound) = socket::tcp_info(ours).or_quarantine(Reason::Unreadable, who)?;
            match state {
                TcpState::CLOSED => {}
                TcpState::LISTENING if waiting == 0 => {}
                TcpState::LISTENING => {
                    return Err(RecordError::Busy(format!("{} has connections waiting", who())));
                }
                TcpState(state) => {
                    return Err(RecordError::Busy(format!("{} is a TCP connection in state {state}", who())));
                }
            }
            tcp = Some((state, bound));
        }
        let accepting = int(libc::SO_ACCEPTCONN)? != 0;
        if !accepting && tcp.is_none() && file::readable(ours).unwrap_or(0) > 0 {
            return Err(RecordError::Busy(format!("{} holds unread data", who())));
        }
        let read = |names: &[(i32, i32)]| {
            names
                .iter()
                .map(|(level, name)| (*level, *name, socket::option(ours, *level, *name).ok()))
                .collect::<Vec<_>>()
        };
        let mut options = read(SOCKET_OPTIONS);
        if tcp.is_some() {
            options.extend(read(TCP_OPTIONS));
        }
        Ok(Socket {
            tcp,
            accepting,
            names: socket::names(ours),
            options,
            fixed: read(FIXED_OPTIONS),
            readiness: socket::readiness(ours).or_quarantine(Reason::Unreadable, who)?,
        })
    }

    fn restore(&self, ours: BorrowedFd<'_>, who: &dyn Fn() -> String) -> Result<bool, Quarantine> {
        let mut differed = false;
        let changed = |what: &str| Quarantine::new(Reason::SocketChanged, format!("{} of {}", what, who()));
        for drains in 0.. {
            if !file::ready_to_read(ours).or_quarantine(Reason::Unreadable, who)? {
                break;
            }
            let more = if self.accepting { socket::drop_waiting(ours) } else { socket::drop_received(ours) };
            if !more.or_quarantine(Reason::PipeNotDrained, who)? {
                break;
            }
            differed = true;
            if drains == DRAINS_MAX {
                return Err(Quarantine::new(Reason::PipeNotDrained, who()));
            }
        }
        if let Some((state, bound)) = self.tcp {
            let now = socket::tcp_info(ours).or_quarantine(Reason::Unreadable, who)?;
            if now.0 != state || (self.accepting && now.1 != 0) || (self.accepting && now.2 != bound) {
                return Err(changed("state"));
            }
        }
        if socket::names(ours) != self.names {
            return Err(changed("address"));
        }
        for (level, name, want) in &self.options {
            if socket::option(ours, *level, *name).ok() != *want {
                let Some(want) = want else { return Err(changed("options")) };
                socket::set_option(ours, *level, *name, want).or_quarantine(Reason::SocketChanged, who)?;
                if socket::option(ours, *level, *name).ok().as_ref() != Some(want) {
                    return Err(changed("options"));
                }
                differed = true;
            }
        }
        for (level, name, want) in &self.fixed {
            if socket::option(ours, *level, *name).ok() != *want {
                return Err(changed("options"));
            }
        }
        if socket::readiness(ours).or_quarantine(Reason::Unreadable, who)? != self.readiness {
            return Err(changed("readiness"));
        }
        Ok(differed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interest_lists_are_read_whatever_their_order() {
        let a = "tfd:        8 events: 8000201d data: 7f6983eca3480001  pos:0 ino:243f0 sdev:f\n";
        let b = "tfd:        3 events:       19 data:           a18330  pos:0 ino:40f sdev:10\n";
        let all = interests(&format!("pos:\t0\nflags:\t02\n{a}{b}"));
        assert_eq!(all, interests(&format!("{b}{a}")));
        assert_eq!(all[0], Interest { fd: 3, inode: 0x40f, events: 0x19, data: 0xa18330 });
        assert_eq!(interests("tfd: x events: y"), []);
    }

    #[test]
    fn neighbouring_new_descriptors_are_closed_by_one_call() {
        let mut difference = TableDifference::default();
        for fd in [5, 6, 7, 9] {
            difference.close(fd);
        }
        assert_eq!(difference.close, [(5, 7), (9, 9)]);
        assert_eq!(difference.closed, 4);
    }

    #[test]
    fn a_semaphore_counter_is_brought_back_too() {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        for flags in [EfdFlags::empty(), EfdFlags::EFD_SEMAPHORE] {
            let counter = EventFd::from_value_and_flags(3, flags).expect("a counter");
            let info =
                Held::open(&format!("/proc/self/fdinfo/{}", counter.as_fd().as_raw_fd())).expect("fdinfo");
            let who = || "test".to_owned();
            assert!(!restore_counter(counter.as_fd(), 3, &info, &who).expect("unchanged"));
            counter.write(4).expect("written");
            assert!(restore_counter(counter.as_fd(), 3, &info, &who).expect("restored"));
            assert_eq!(eventfd_count(info.text().expect("fdinfo").as_bytes()).expect("a count"), 3);
        }
    }
}
