//! Finds everything a container can write to, from its mounts.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::Pid;
use rustix::fs::{Mode, OFlags, ResolveFlags};

use crate::at::{self, Kind};
use crate::mounts::{self, Mount, MountinfoError};
use crate::swap::Site;
use crate::watch::Watch;

/// File systems that show kernel state, not files. What a function changes through them belongs to
/// processes, and the process part of the rewind answers for it.
const KERNEL_VIEWS: [&str; 3] = ["proc", "devpts", "fuse.lxcfs"];

/// File systems that must not be writable in a container: what is changed there cannot be undone
/// entry by entry.
const REFUSED: [&str; 9] =
    ["sysfs", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf", "hugetlbfs", "configfs"];

/// Everything a container can write to: its overlay root and the other writable mounts.
#[derive(Debug)]
pub struct OverlayRoot {
    /// The process, and the mount table as it was read.
    pub(crate) watch: Watch,
    /// The container's root, as the container sees it.
    pub(crate) root: OwnedFd,
    /// The upper directory, as the host sees it. Only ever read.
    pub(crate) upper: OwnedFd,
    /// The image layers, topmost first.
    pub(crate) layers: Vec<OwnedFd>,
    /// What it takes to mount such a root again, unless that cannot be done exactly.
    pub(crate) site: Option<Site>,
    /// Every other writable mount.
    pub(crate) mounts: Vec<WritableMount>,
}

/// A writable mount besides the root.
#[derive(Debug)]
pub(crate) struct WritableMount {
    /// Where the container sees it.
    pub(crate) at: PathBuf,
    /// What is mounted: a directory, or a single file or device.
    pub(crate) object: OwnedFd,
    /// Whether it is a file system of POSIX message queues.
    pub(crate) queues: bool,
}

/// A container whose files this crate cannot answer for.
#[derive(Debug, thiserror::Error)]
pub enum DiscoverError {
    /// The process is gone or hidden.
    #[error("reading the mounts of process {pid}")]
    Process {
        /// The container's first process.
        pid: Pid,
        /// Why.
        source: io::Error,
    },
    /// The kernel's answer is not understood.
    #[error("reading the mounts of process {pid}")]
    Mountinfo {
        /// The container's first process.
        pid: Pid,
        /// Why.
        source: MountinfoError,
    },
    /// The root is not a writable overlay.
    #[error("the root of process {pid} is {kind:?}, not an overlay with an upper directory")]
    NotOverlay {
        /// The container's first process.
        pid: Pid,
        /// The file system found.
        kind: OsString,
    },
    /// The mount uses a feature this crate does not follow.
    #[error("the mount at {at:?} uses {option:?}, which cannot be rewound")]
    Option {
        /// Where.
        at: PathBuf,
        /// The option or file system type.
        option: OsString,
    },
    /// A layer cannot be reached from here; an invoker in a container of its own must see Docker's
    /// storage directory at the same path.
    #[error("opening the layer {path:?}")]
    Layer {
        /// As the mount names it.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A writable mount cannot be reached, for instance because another covers it.
    #[error("reaching the mount at {at:?}")]
    Unreachable {
        /// Where.
        at: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl OverlayRoot {
    /// Reads the mounts of the container whose first process is `init`, and opens what is writable.
    ///
    /// `relative_to` is the directory that relative layers are relative to
    /// ([`Options::relative_to`](crate::Options::relative_to)).
    pub fn discover_in(init: Pid, relative_to: &Path) -> Result<Self, DiscoverError> {
        let process_error = |source: io::Error| DiscoverError::Process { pid: init, source };
        let watch = Watch::open(init).map_err(process_error)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(&watch.process, "root", flags, Mode::empty())
            .map_err(|error| process_error(error.into()))?;
        let table =
            mounts::parse(&watch.table).map_err(|source| DiscoverError::Mountinfo { pid: init, source })?;

        let root_mount = at::status(&root).map_err(process_error)?.mount;
        let top = table.iter().find(|mount| mount.id == root_mount).ok_or_else(|| {
            DiscoverError::NotOverlay { pid: init, kind: OsString::from("not in its mount table") }
        })?;
        let upper = match top.fs_option("upperdir") {
            Some(upper) if top.kind == "overlay" => Path::new(upper),
            _ => return Err(DiscoverError::NotOverlay { pid: init, kind: top.kind.clone() }),
        };
        refuse_features(top)?;
        let upper = open_layer(relative_to, upper)?;
        // One option with a list, or (mounted through fsconfig since Linux 6.5) one for each layer.
        let layers = top
            .fs_option_all("lowerdir")
            .flat_map(mounts::split_lower)
            .chain(top.fs_option_all("lowerdir+").map(PathBuf::from))
            .map(|path| open_layer(relative_to, &path))
            .collect::<Result<Vec<_>, _>>()?;
        let site = Site::of(top, &upper, &layers).map_err(process_error)?;

        let mut mounts = Vec::new();
        for mount in table.iter().filter(|mount| mount.id != root_mount && mount.writable()) {
            if KERNEL_VIEWS.iter().any(|kind| mount.kind == *kind) {
                continue;
            }
            if REFUSED.iter().any(|kind| mount.kind == *kind) || mount.has_option("idmapped") {
                let option = if mount.has_option("idmapped") {
                    OsString::from("idmapped")
                } else {
                    mount.kind.clone()
                };
                return Err(DiscoverError::Option { at: mount.at.clone(), option });
            }
            mounts.push(open_mount(&root, mount)?);
        }
        Ok(Self { watch, root, upper, layers, site, mounts })
    }

    /// [`discover_in`](Self::discover_in) with Docker's storage directory.
    pub fn discover(init: Pid) -> Result<Self, DiscoverError> {
        Self::discover_in(init, &crate::Options::default().relative_to)
    }
}

/// Refuses overlay features by which an entry of the upper is not what it seems.
fn refuse_features(top: &Mount) -> Result<(), DiscoverError> {
    let refused = |option: &OsStr| {
        let bytes = option.as_bytes();
        // With metacopy an upper file may have no contents of its own; with nfs_export and index
        // hard links are kept in the work directory; userxattr keeps the books under other names.
        bytes == b"metacopy=on"
            || bytes == b"index=on"
            || bytes == b"nfs_export=on"
            || bytes == b"userxattr"
            || bytes.starts_with(b"datadir+")
    };
    let found = top.fs_options.iter().find(|option| refused(option));
    let idmapped = top.options.iter().find(|option| *option == "idmapped");
    match found.or(idmapped) {
        Some(option) => Err(DiscoverError::Option { at: PathBuf::from("/"), option: option.clone() }),
        None => Ok(()),
    }
}

fn open_layer(relative_to: &Path, path: &Path) -> Result<OwnedFd, DiscoverError> {
    // Docker's short names for layers are links of its own, so these are followed.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(relative_to.join(path), flags, Mode::empty())
        .map_err(|error| DiscoverError::Layer { path: path.to_owned(), source: error.into() })
}

fn open_mount(root: &OwnedFd, mount: &Mount) -> Result<WritableMount, DiscoverError> {
    let unreachable = |source: io::Error| DiscoverError::Unreachable { at: mount.at.clone(), source };
    let below = mount.at.strip_prefix("/").unwrap_or(&mount.at);
    let object = rustix::fs::openat2(
        root,
        below,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|error| unreachable(error.into()))?;
    let status = at::status(object.as_fd()).map_err(unreachable)?;
    if status.mount != mount.id {
        return Err(unreachable(io::Error::other("another mount covers it")));
    }
    let queues = mount.kind == "mqueue" && status.kind == Kind::Directory;
    Ok(WritableMount { at: mount.at.clone(), object, queues })
}
