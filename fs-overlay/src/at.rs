//! System calls on entries, always relative to a descriptor and never through a link.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags, Statx, StatxAttributes, StatxFlags, StatxTimestamp,
};
use rustix::io::Errno;

/// A time of a file: seconds and nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Time {
    pub(crate) seconds: i64,
    pub(crate) nanoseconds: u32,
}

impl From<StatxTimestamp> for Time {
    fn from(time: StatxTimestamp) -> Self {
        Self { seconds: time.tv_sec, nanoseconds: time.tv_nsec }
    }
}

/// The clock that stamps files, which moves once a tick.
pub(crate) fn coarse_now() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or(0) }
}

/// The type of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Directory,
    Regular,
    Symlink,
    Fifo,
    Socket,
    CharacterDevice,
    BlockDevice,
}

impl Kind {
    pub(crate) fn file_type(self) -> FileType {
        match self {
            Self::Directory => FileType::Directory,
            Self::Regular => FileType::RegularFile,
            Self::Symlink => FileType::Symlink,
            Self::Fifo => FileType::Fifo,
            Self::Socket => FileType::Socket,
            Self::CharacterDevice => FileType::CharacterDevice,
            Self::BlockDevice => FileType::BlockDevice,
        }
    }
}

/// What tells one inode of a file system from all others, also from a later one that was given the
/// same number, which happens at once on ext4.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    pub(crate) inode: u64,
    /// Time of birth; zero where the file system does not keep it.
    pub(crate) born: Time,
}

/// What `statx` says of one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) kind: Kind,
    /// Permission bits with setuid, setgid and sticky.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// Device the entry stands for: major, minor.
    pub(crate) device: (u32, u32),
    /// Device the entry lies on: major, minor.
    pub(crate) on: (u32, u32),
    pub(crate) identity: Identity,
    pub(crate) accessed: Time,
    pub(crate) modified: Time,
    pub(crate) changed: Time,
    /// Inode flags (immutable and the like), as far as `statx` shows them.
    pub(crate) flags: u64,
    /// Mount the entry was reached through.
    pub(crate) mount: u64,
}

impl Status {
    fn from_statx(raw: &Statx) -> io::Result<Self> {
        let mode = u32::from(raw.stx_mode);
        let kind = match FileType::from_raw_mode(mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::Regular,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::CharacterDevice => Kind::CharacterDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Unknown => return Err(io::Error::other("unknown type of file")),
        };
        let watched = StatxAttributes::COMPRESSED
            | StatxAttributes::IMMUTABLE
            | StatxAttributes::APPEND
            | StatxAttributes::NODUMP
            | StatxAttributes::ENCRYPTED
            | StatxAttributes::VERITY
            | StatxAttributes::DAX;
        Ok(Self {
            kind,
            mode: mode & 0o7777,
            uid: raw.stx_uid,
            gid: raw.stx_gid,
            size: raw.stx_size,
            links: raw.stx_nlink,
            device: (raw.stx_rdev_major, raw.stx_rdev_minor),
            on: (raw.stx_dev_major, raw.stx_dev_minor),
            identity: Identity { inode: raw.stx_ino, born: raw.stx_btime.into() },
            accessed: raw.stx_atime.into(),
            modified: raw.stx_mtime.into(),
            changed: raw.stx_ctime.into(),
            flags: (raw.stx_attributes & watched).bits(),
            mount: raw.stx_mnt_id,
        })
    }

    /// A whiteout is overlay's mark for "deleted here": a character device 0:0. A container cannot
    /// make one itself, overlay refuses.
    pub(crate) fn is_whiteout(&self) -> bool {
        self.kind == Kind::CharacterDevice && self.device == (0, 0)
    }
}

fn statx(at: BorrowedFd<'_>, name: &OsStr, flags: AtFlags) -> rustix::io::Result<Statx> {
    rustix::fs::statx(
        at,
        name,
        flags | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT,
        StatxFlags::BASIC_STATS | StatxFlags::BTIME | StatxFlags::MNT_ID,
    )
}

/// The status of an entry of a directory; nothing when there is no such entry.
pub(crate) fn status_at(directory: impl AsFd, name: &OsStr) -> io::Result<Option<Status>> {
    match statx(directory.as_fd(), name, AtFlags::empty()) {
        Ok(raw) => Status::from_statx(&raw).map(Some),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The status of what a descriptor refers to.
pub(crate) fn status(object: impl AsFd) -> io::Result<Status> {
    let raw = statx(object.as_fd(), OsStr::new(""), AtFlags::EMPTY_PATH)?;
    Status::from_statx(&raw)
}

/// A descriptor that only names an entry (`O_PATH`): it opens nothing, not even a fifo or device.
/// It does not cross into a mount that covers the entry.
pub(crate) fn name_at(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        directory,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        // With O_PATH and O_NOFOLLOW a final link is named, not refused.
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )?)
}

/// [`name_at`], or nothing when another mount covers the entry.
pub(crate) fn name_on_same_mount(directory: impl AsFd, name: &OsStr) -> io::Result<Option<OwnedFd>> {
    match name_at(directory, name) {
        Err(error) if error.raw_os_error() == Some(Errno::XDEV.raw_os_error()) => Ok(None),
        result => result.map(Some),
    }
}

/// A directory below another, for use as the base of further calls.
pub(crate) fn directory_at(directory: impl AsFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat2(
        directory,
        name,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS,
    )?)
}

/// The path that leads to what a descriptor names, for the calls that take no descriptor made with
/// `O_PATH`. It leads to the very entry, also when that is a symbolic link.
pub(crate) fn handle(object: impl AsFd) -> String {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())
}

/// Opens what a descriptor names. Only for regular files and directories: the caller has looked.
pub(crate) fn reopen(object: impl AsFd, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOATIME | OFlags::NONBLOCK;
    Ok(rustix::fs::open(handle(object), flags, Mode::empty())?.into())
}

/// The names in a directory, without `.` and `..`. Does not move the directory's access time.
pub(crate) fn names(directory: impl AsFd) -> io::Result<Vec<OsString>> {
    Ok(names_within(directory, u64::MAX)?.unwrap_or_default())
}

/// [`names`], or nothing when there are more than `names_max`.
pub(crate) fn names_within(directory: impl AsFd, names_max: u64) -> io::Result<Option<Vec<OsString>>> {
    let file = reopen(directory, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 16 * 1024];
    let mut entries = RawDir::new(&file, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            if names.len() as u64 >= names_max {
                return Ok(None);
            }
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(Some(names))
}

/// Where a symbolic link points.
pub(crate) fn link_target(directory: impl AsFd, name: &OsStr) -> io::Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(directory, name, Vec::new())?.into_bytes())
}

/// Prefix of the attributes by which overlay keeps its books in the upper. The container cannot
/// see or set them.
const OVERLAY_PREFIX: &[u8] = b"trusted.overlay.";

/// All extended attributes (ACLs and capabilities among them) except overlay's own, sorted by name.
pub(crate) fn attributes(object: impl AsFd) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let path = handle(object);
    let mut attributes = Vec::new();
    for name in attribute_names(&path)? {
        if name.as_bytes().starts_with(OVERLAY_PREFIX) {
            continue;
        }
        if let Some(value) = attribute(&path, &name)? {
            attributes.push((name, value));
        }
    }
    attributes.sort();
    Ok(attributes)
}

/// One of overlay's own attributes of an entry in a layer.
pub(crate) fn overlay_attribute(object: impl AsFd, key: &str) -> io::Result<Option<Vec<u8>>> {
    let mut name = OsString::from_vec(OVERLAY_PREFIX.to_vec());
    name.push(key);
    attribute(&handle(object), &name)
}

fn attribute_names(path: &str) -> io::Result<Vec<OsString>> {
    /// Most bytes the kernel lists (XATTR_LIST_MAX).
    const LIST_MAX: usize = 64 * 1024;
    let split = |list: &[u8]| {
        list.split(|byte| *byte == 0)
            .filter(|name| !name.is_empty())
            .map(|name| OsString::from_vec(name.to_vec()))
            .collect()
    };
    let mut buffer = [0_u8; 1024];
    match rustix::fs::listxattr(path, &mut buffer[..]) {
        Ok(length) => Ok(split(&buffer[..length])),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; LIST_MAX];
            let length = rustix::fs::listxattr(path, &mut large[..])?;
            Ok(split(&large[..length]))
        }
        Err(Errno::NOTSUP) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
    }
}

fn attribute(path: &str, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    /// Largest value the kernel takes (XATTR_SIZE_MAX).
    const SIZE_MAX: usize = 64 * 1024;
    let mut buffer = [0_u8; 1024];
    match rustix::fs::getxattr(path, name, &mut buffer[..]) {
        Ok(length) => Ok(Some(buffer[..length].to_vec())),
        Err(Errno::RANGE) => {
            let mut large = vec![0_u8; SIZE_MAX];
            let length = rustix::fs::getxattr(path, name, &mut large[..])?;
            large.truncate(length);
            Ok(Some(large))
        }
        Err(Errno::NODATA | Errno::NOTSUP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Another descriptor for the same entry.
pub(crate) fn reference(object: impl AsFd) -> io::Result<OwnedFd> {
    object.as_fd().try_clone_to_owned()
}
