//! Files of a container: seal them once, put them back after each request.
//!
//! A container's root is an overlay: read-only image layers below, one writable *upper* directory
//! above. Everything a request can change in the files lies in the upper or in one of the few
//! other writable mounts (`/dev`, `/dev/shm`, `/dev/mqueue`, the bind-mounted `/etc/hosts`,
//! `/etc/hostname` and `/etc/resolv.conf`, volumes).
//!
//! ```text
//!   discover            seal (frozen, once)                rewind (frozen, after each request)
//!   mountinfo ------->  manifest of every writable  ---->  examine: statuses against the manifest
//!   layers, mounts      mount + copy of contents           undo:    through the container's own view
//!                                                          verify:  all that was touched, again
//! ```
//!
//! Four rules carry the design:
//!
//! * **The kernel's change time tells.** No user can set `ctime`, so an entry whose inode number
//!   and `ctime` are those of the manifest did not change, whatever `utimes` made of the other
//!   times. Two exceptions are compared by content: an entry that was recorded within the same
//!   clock tick it changed in (git calls it racily clean), and regular files on file systems that
//!   do not update `ctime` on writes through a shared mapping (tmpfs).
//! * **Never touch the upper behind a live mount.** Overlayfs does not notice; deleted files stay
//!   reachable and changed ones go on serving the change. The upper is only read; every change is
//!   undone through the container's own view of its root, or that root is swapped whole for a fresh
//!   overlay (`swap.rs`), if nothing the processes hold ties them to it (`ties.rs`).
//! * **The content is hostile.** Nothing in the container runs while this crate works, so there
//!   are no races, but names may be any bytes and links may point anywhere. Paths are walked one
//!   name at a time by descriptor, and no link is followed.
//! * **Fail closed.** What cannot be put back, or differs afterwards, is a [`FilesQuarantine`].
//!
//! What is *not* put back, because the kernel offers no way: `ctime` itself, the birth time and
//! inode number of entries that had to be created again, the allocated size of a directory that
//! had grown, and free-space figures; after a swap the device and mount numbers of the root. A function that plants a message for itself in those is not
//! stopped by this crate.

#![forbid(unsafe_code)]

mod at;
mod contents;
mod examine;
mod held;
mod layer;
mod lower;
mod manifest;
mod mounts;
mod options;
mod reaper;
mod report;
mod root;
mod seal;
mod swap;
mod ties;
mod undo;
mod watch;
mod weigh;
mod work;

pub use mounts::MountinfoError;
pub use options::Options;
pub use report::{Change, ChangeKind, Changes, FilesQuarantine, FilesReason, FilesReport, SealReport, shown};
pub use root::{DiscoverError, OverlayRoot};
pub use seal::{SealError, Sealed, seal};
