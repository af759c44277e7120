//! A fresh overlay in the place of a container's root, when a request changed too much to undo it
//! entry by entry.
//!
//! ```text
//!   before                        after
//!   upper    (what /init and      upper    (empty)                     <base>/rewind/<number>/upper
//!             the request wrote)  sealed   (a copy of what /init wrote) <base>/rewind/sealed
//!   layers   (the image)          layers   (the image)
//! ```
//!
//! The cost does not depend on what the request did: one copy of the sealed upper, at the first swap
//! of a container, and a mount. What the container's processes keep of the old root is only what they
//! have open or mapped; [`ties`](crate::ties) says whether that is harmless. Their working directories
//! stay on the old root unless they are exactly the root: the caller has to send them back.
//!
//! `<base>` is the directory that holds the container's own upper (`/var/lib/docker/overlay2/<id>`):
//! so the fresh uppers count against the container's storage quota, and go away with the container.
//! The live upper itself is never made a lower layer, which would be undefined; and repeated swaps pile
//! up nothing: each replaces the one before, whose upper is removed in the background.

use std::ffi::{OsStr, OsString};
use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use nix::mount::{MntFlags, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{chroot, fchdir, pivot_root};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use crate::at;
use crate::manifest::{Body, Node};
use crate::mounts::Mount;
use crate::undo::correct_status;
use crate::work::Stop;

/// Why a swap is not done; the container is as it was.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) why: &'static str,
    /// The system call's error, when there was one.
    pub(crate) error: Option<io::Error>,
    /// Whether it will be the same at every rewind.
    pub(crate) forever: bool,
}

impl Refusal {
    pub(crate) fn because(why: &'static str) -> Self {
        Self { why, error: None, forever: false }
    }

    pub(crate) fn failed(why: &'static str) -> impl Fn(io::Error) -> Self {
        move |error| Self { why, error: Some(error), forever: false }
    }

    pub(crate) fn forever(self) -> Self {
        Self { forever: true, ..self }
    }
}

/// Longest string `fsconfig` takes, without its end.
const STRING_MAX: usize = 255;

/// Options of an overlay that a fresh one is given too. With any other there is no swap.
const OPTIONS: [&str; 6] = ["index", "metacopy", "nfs_export", "redirect_dir", "uuid", "xino"];

/// The option by which nothing is ever synced for an overlay. What lies in a container's upper is not
/// there to survive a crash; and unmounting an overlay without it syncs the whole file system below.
const VOLATILE: &str = "volatile";

/// Where and how a container's root is mounted, and what is needed to do so again.
#[derive(Debug)]
pub(crate) struct Site {
    /// Holds the sealed copy and the fresh uppers.
    base: PathBuf,
    /// The image layers, topmost first.
    layers: Vec<PathBuf>,
    options: Vec<OsString>,
    attributes: MountAttrFlags,
    /// The copy of the upper as it was sealed, once it has been made.
    sealed: Option<PathBuf>,
    /// Swaps begun.
    number: u64,
    /// What the root lies on now, if it is ours.
    current: Option<PathBuf>,
}

/// A fresh overlay that is mounted nowhere yet.
#[derive(Debug)]
pub(crate) struct Fresh {
    pub(crate) mount: OwnedFd,
    pub(crate) upper: OwnedFd,
    directory: PathBuf,
}

impl Site {
    /// The site of a root mount, unless it is mounted in a way that cannot be repeated exactly.
    pub(crate) fn of(top: &Mount, upper: &OwnedFd, layers: &[OwnedFd]) -> io::Result<Option<Self>> {
        let mut attributes = MountAttrFlags::empty();
        for option in &top.options {
            attributes |= match option.as_bytes() {
                b"rw" | b"relatime" => MountAttrFlags::empty(),
                b"nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
                b"nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
                b"noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
                b"noatime" => MountAttrFlags::MOUNT_ATTR_NOATIME,
                b"nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
                _ => return Ok(None),
            };
        }
        if top.shared {
            return Ok(None);
        }
        let mut options = Vec::new();
        for option in &top.fs_options {
            let key = option.as_bytes().split(|byte| *byte == b'=').next().unwrap_or_default();
            match key {
                b"rw" | b"volatile" | b"lowerdir" | b"lowerdir+" | b"upperdir" | b"workdir" => {}
                key if OPTIONS.iter().any(|known| known.as_bytes() == key) => options.push(option.clone()),
                _ => return Ok(None),
            }
        }
        let paths: Vec<PathBuf> = layers.iter().map(path_of).collect::<io::Result<_>>()?;
        let Some(parent) = path_of(upper)?.parent().map(Path::to_owned) else { return Ok(None) };
        let base = parent.join("rewind");
        let longest = base.join(u64::MAX.to_string()).join("upper");
        let plain = |path: &PathBuf| {
            // What overlay would take for a separator or an escape.
            let bytes = path.as_os_str().as_bytes();
            bytes.len() <= STRING_MAX && !bytes.iter().any(|byte| b":,\\".contains(byte))
        };
        if !paths.iter().chain([&longest]).all(plain) {
            return Ok(None);
        }
        let layers = paths;
        Ok(Some(Self { base, layers, options, attributes, sealed: None, number: 0, current: None }))
    }

    /// Where the sealed copy is to be written, if it has not been yet: an empty directory.
    pub(crate) fn begin_sealed(&mut self) -> io::Result<Option<PathBuf>> {
        if self.sealed.is_some() {
            return Ok(None);
        }
        let sealed = self.base.join("sealed");
        // From an attempt that failed, or from a container that had been swapped by an earlier invoker.
        remove(&sealed)?;
        make(&self.base)?;
        make(&sealed)?;
        Ok(Some(sealed))
    }

    /// The sealed copy has been written.
    pub(crate) fn sealed(&mut self, sealed: PathBuf) {
        self.sealed = Some(sealed);
    }

    /// Makes a fresh overlay whose root looks like a node.
    pub(crate) fn fresh(&mut self, root: &Node) -> Result<Fresh, Refusal> {
        let Some(sealed) = &self.sealed else { return Err(Refusal::because("no sealed copy")) };
        self.number += 1;
        let directory = self.base.join(self.number.to_string());
        let upper = directory.join("upper");
        let work = directory.join("work");
        let made = (|| {
            remove(&directory)?;
            make(&directory)?;
            make(&upper)?;
            make(&work)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            Ok(rustix::fs::open(&upper, flags, Mode::empty())?)
        })();
        let opened = made.map_err(Refusal::failed("making a fresh upper"))?;
        correct_status(&opened, root).map_err(|stop| match stop {
            Stop::Io(error) => Refusal::failed("making a fresh upper")(error),
            Stop::Reason(..) | Stop::Enough => Refusal::because("making a fresh upper"),
        })?;
        let mount = (|| -> rustix::io::Result<OwnedFd> {
            let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
            fsconfig_set_string(&overlay, "source", "overlay")?;
            for layer in [sealed].into_iter().chain(&self.layers) {
                fsconfig_set_string(&overlay, "lowerdir+", layer)?;
            }
            fsconfig_set_string(&overlay, "upperdir", &upper)?;
            fsconfig_set_string(&overlay, "workdir", &work)?;
            fsconfig_set_flag(&overlay, VOLATILE)?;
            for option in &self.options {
                match option.as_bytes().iter().position(|byte| *byte == b'=') {
                    None => fsconfig_set_flag(&overlay, option)?,
                    Some(at) => {
                        let (key, value) = option.as_bytes().split_at(at);
                        fsconfig_set_string(&overlay, key, &value[1..])?;
                    }
                }
            }
            fsconfig_create(&overlay)?;
            fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes)
        })();
        let mount = mount.map_err(|error| Refusal::failed("mounting a fresh overlay")(error.into()))?;
        Ok(Fresh { mount, upper: opened, directory })
    }

    /// The root lies on a fresh overlay now. Gives what the one before lay on, if it was ours.
    pub(crate) fn moved_to(&mut self, directory: PathBuf) -> Option<PathBuf> {
        self.current.replace(directory)
    }

    /// The sealed copy, opened as the topmost layer.
    pub(crate) fn open_sealed(&self) -> io::Result<OwnedFd> {
        let Some(sealed) = &self.sealed else { return Err(io::ErrorKind::NotFound.into()) };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::open(sealed, flags, Mode::empty())?)
    }
}

/// Whether everything in a manifest would be the same in a copy of it.
pub(crate) fn copies_exactly(node: &Node) -> Result<(), Refusal> {
    let directory = matches!(node.body, Body::Directory { .. });
    if node.status.links > 1 && !directory && !node.status.is_whiteout() {
        return Err(Refusal::because("a sealed file has several names"));
    }
    if node.status.flags != 0 {
        return Err(Refusal::because("a sealed file has inode flags"));
    }
    match &node.body {
        Body::Special if matches!(node.status.kind, at::Kind::Socket | at::Kind::Fifo) => {
            Err(Refusal::because("a socket or a fifo is sealed"))
        }
        Body::Queue => Err(Refusal::because("a message queue is sealed")),
        Body::Directory { children, .. } => children.values().try_for_each(copies_exactly),
        Body::Regular(_) | Body::Symlink(_) | Body::Special | Body::Whiteout => Ok(()),
    }
}

impl Fresh {
    /// Where it lies on disk.
    pub(crate) fn directory(self) -> PathBuf {
        self.directory
    }

    /// Puts this overlay in the place of a root, and the mounts below onto it.
    ///
    /// Everything that shares the old root as its root (or has exactly it as working directory) moves.
    /// A refusal leaves all as it was, an error a container that cannot be used any more.
    pub(crate) fn install(
        &self,
        process: &OwnedFd,
        root: &OwnedFd,
        below: &[PathBuf],
    ) -> Result<Result<(), Refusal>, io::Error> {
        // Mount points exist before anything is moved.
        let targets: io::Result<Vec<_>> =
            below.iter().map(|path| Ok((mounted_at(root, path)?, mount_point(&self.mount, path)?))).collect();
        let targets = match targets {
            Ok(targets) => targets,
            Err(error) => return Ok(Err(Refusal::failed("finding the mount points")(error))),
        };
        // A thread of its own: it joins the container's mount namespace, which a thread that shares its
        // root and directory with others cannot, and never comes back.
        let joined = thread::scope(|scope| scope.spawn(|| self.install_here(process, root, &targets)).join());
        joined.unwrap_or_else(|_| Err(io::Error::other("the installing thread panicked")))
    }

    fn install_here(
        &self,
        process: &OwnedFd,
        root: &OwnedFd,
        targets: &[(OwnedFd, OwnedFd)],
    ) -> Result<Result<(), Refusal>, io::Error> {
        let empty = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        let both = empty | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        let entered = (|| -> io::Result<()> {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            let mounts = rustix::fs::openat(process, "ns/mnt", flags, Mode::empty())?;
            unshare(CloneFlags::CLONE_FS)?;
            setns(&mounts, CloneFlags::CLONE_NEWNS)?;
            fchdir(root)?;
            chroot(".")?;
            move_mount(&self.mount, "", rustix::fs::CWD, ".", empty)?;
            Ok(())
        })();
        if let Err(error) = entered {
            return Ok(Err(Refusal::failed("mounting the fresh overlay in the container")(error)));
        }
        let pivoted = (|| -> nix::Result<()> {
            fchdir(&self.mount)?;
            // The old root now lies over the new one (pivot_root(2), the form with two dots).
            pivot_root(".", ".")
        })();
        if let Err(error) = pivoted {
            // It still covers the old root, which nobody in the container notices; take it away again.
            fchdir(&self.mount)?;
            umount2(".", MntFlags::MNT_DETACH)?;
            return Ok(Err(Refusal::failed("changing the root")(error.into())));
        }
        for (mounted, point) in targets {
            move_mount(mounted, "", point, "", both)?;
        }
        fchdir(root)?;
        umount2(".", MntFlags::MNT_DETACH)?;
        Ok(Ok(()))
    }
}

/// What is mounted at a path below a root.
fn mounted_at(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(root, relative(path), flags, Mode::empty(), resolve)?)
}

/// The place for a mount in a fresh overlay.
fn mount_point(root: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    Ok(rustix::fs::openat2(root, relative(path), flags, Mode::empty(), resolve)?)
}

fn relative(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

/// Where a directory lies, from here.
fn path_of(directory: impl AsFd) -> io::Result<PathBuf> {
    let path = rustix::fs::readlink(at::handle(directory), Vec::new())?;
    Ok(PathBuf::from(OsString::from_vec(path.into_bytes())))
}

fn make(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        result => result,
    }
}

/// Removes a directory and everything below it, following no link.
pub(crate) fn remove(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The mounts that lie directly on a root, in the order of the table.
pub(crate) fn directly_below(table: &[Mount], root: u64) -> Vec<PathBuf> {
    table.iter().filter(|mount| mount.parent == root).map(|mount| mount.at.clone()).collect()
}

/// Whether a table is another but for its root: every other mount the same, on the same.
pub(crate) fn same_but_root(before: &[Mount], old_root: u64, after: &[Mount], new_root: u64) -> bool {
    let others = |table: &[Mount], root: u64| -> Vec<Mount> {
        let mut others: Vec<Mount> = table.iter().filter(|mount| mount.id != root).cloned().collect();
        for mount in &mut others {
            mount.parent = if mount.parent == root { 0 } else { mount.parent };
        }
        others.sort_by_key(|mount| mount.id);
        others
    };
    let root = |mount: &&Mount| {
        mount.id == new_root && mount.kind == OsStr::new("overlay") && mount.at == Path::new("/")
    };
    after.iter().filter(root).count() == 1 && others(before, old_root) == others(after, new_root)
}
