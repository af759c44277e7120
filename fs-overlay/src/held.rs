//! Files that a process holds although they have no name any more.
//!
//! Two uses. At the seal, regular files that are open but deleted are sealed like those with a
//! name: a request could leave something in them. After an undo that had to create entries again,
//! a process that holds the lost original would from then on see another file than the one at the
//! path: then the container cannot be kept.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::at::{self, Identity, Kind, Status};

/// What the kernel appends to the path of an entry without a name.
const DELETED: &[u8] = b" (deleted)";

/// Deleted entries held by the processes of a container.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// By descriptor, working directory or the like: device and inode, with one descriptor for it.
    pub(crate) open: BTreeMap<((u32, u32), Identity), (OwnedFd, Status)>,
    /// By mapping: the lines' inode number and path.
    pub(crate) mapped: BTreeMap<Vec<u8>, u64>,
    /// Paths of files that have a name and are mapped for writing.
    pub(crate) writable: BTreeSet<PathBuf>,
}

impl Held {
    /// Looks through all processes that share the mounts of one process.
    ///
    /// A process that ends meanwhile is skipped; the container is frozen, so it was none of it.
    pub(crate) fn look(process: &OwnedFd) -> io::Result<Self> {
        let mut held = Self::default();
        sharing_mounts(process, |other| held.look_at(&other))?;
        Ok(held)
    }

    fn look_at(&mut self, process: &OwnedFd) -> io::Result<()> {
        let root = at::link_target(process, OsStr::new("root"))?;
        for name in ["cwd", "root", "exe"] {
            self.look_at_link(process, OsStr::new(name));
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptors = rustix::fs::openat(process, "fd", flags, Mode::empty())?;
        for name in at::names(&descriptors)? {
            self.look_at_link(&descriptors, &name);
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let maps = rustix::fs::openat(process, "maps", flags, Mode::empty())?;
        let mut text = Vec::new();
        std::fs::File::from(maps).read_to_end(&mut text)?;
        for mapping in text.split(|byte| *byte == b'\n').filter_map(mapped_file) {
            if is_deleted(mapping.path) {
                self.mapped.insert(mapping.path.to_vec(), mapping.inode);
            } else if mapping.shared && mapping.writable {
                self.writable.insert(inside(&root, &mapping.plain_path()));
            }
        }
        Ok(())
    }

    /// Notes where a link of /proc leads, if that has no name any more.
    fn look_at_link(&mut self, directory: &OwnedFd, name: &OsStr) {
        // A link that cannot be read or followed leads to no file.
        let Ok(target) = at::link_target(directory, name) else { return };
        if !is_deleted(&target) {
            return;
        }
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let Ok(object) = rustix::fs::openat(directory, name, flags, Mode::empty()) else { return };
        if let Ok(status) = at::status(&object) {
            self.open.insert((status.on, status.identity), (object, status));
        }
    }

    /// Whether everything held here was held there.
    pub(crate) fn within(&self, earlier: &Self) -> bool {
        self.open.keys().all(|key| earlier.open.contains_key(key))
            && self.mapped.iter().all(|(path, inode)| earlier.mapped.get(path) == Some(inode))
    }

    /// Regular files held by descriptor.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&OwnedFd, &Status)> {
        self.open
            .values()
            .filter(|(_, status)| status.kind == Kind::Regular)
            .map(|(object, status)| (object, status))
    }
}

/// Whether the kernel's path of an open or mapped entry says that it has no name any more.
pub(crate) fn is_deleted(path: &[u8]) -> bool {
    path.ends_with(DELETED)
}

/// A path that the kernel shows here, as the process sees it whose root the kernel shows as `root`.
///
/// For a container these are the same, since its mount namespace ends at its root. They differ for a
/// process that was merely sent to another root, except for what lies on a mount that is mounted nowhere.
pub(crate) fn inside(root: &[u8], path: &Path) -> PathBuf {
    let root = Path::new(OsStr::from_bytes(root));
    match path.strip_prefix(root) {
        Ok(below) => Path::new("/").join(below),
        Err(_) => path.to_owned(),
    }
}

/// Gives every process that shares the mounts of one process (itself included) to a function.
///
/// A process that ends meanwhile is skipped; the container is frozen, so it was none of it.
pub(crate) fn sharing_mounts<E: From<io::Error>>(
    process: &OwnedFd,
    mut give: impl FnMut(OwnedFd) -> Result<(), E>,
) -> Result<(), E> {
    let mounts = at::link_target(process, OsStr::new("ns/mnt"))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let all = rustix::fs::open("/proc", flags, Mode::empty()).map_err(io::Error::from)?;
    for name in at::names(&all)? {
        if !name.as_bytes().first().is_some_and(u8::is_ascii_digit) {
            continue;
        }
        let mut namespace = name.clone();
        namespace.push("/ns/mnt");
        if at::link_target(&all, &namespace).is_ok_and(|theirs| theirs == mounts)
            && let Ok(other) = rustix::fs::openat(&all, &name, flags, Mode::empty())
        {
            give(other)?;
        }
    }
    Ok(())
}

/// A line of maps that shows a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping<'a> {
    pub(crate) writable: bool,
    pub(crate) shared: bool,
    pub(crate) inode: u64,
    /// As the kernel writes it, which is with line feeds escaped.
    pub(crate) path: &'a [u8],
}

/// Reads a line of maps, unless it shows memory that never had a name in a file tree.
pub(crate) fn mapped_file(line: &[u8]) -> Option<Mapping<'_>> {
    // address perms offset dev inode path; the path begins at a fixed column and may hold spaces.
    let mut rest = line;
    let mut fields = [&b""[..]; 5];
    for field in &mut fields {
        let start = rest.iter().position(|byte| *byte != b' ')?;
        rest = &rest[start..];
        let end = rest.iter().position(|byte| *byte == b' ')?;
        (*field, rest) = rest.split_at(end);
    }
    let [_, permissions, _, _, inode] = fields;
    let inode = std::str::from_utf8(inode).ok()?.parse().ok()?;
    let start = rest.iter().position(|byte| *byte != b' ')?;
    let path = &rest[start..];
    let nameless = [&b"/memfd:"[..], b"/dev/zero", b"/SYSV", b"/[aio]"];
    if path.first() != Some(&b'/') || nameless.iter().any(|prefix| path.starts_with(prefix)) {
        return None;
    }
    let writable = permissions.contains(&b'w');
    let shared = permissions.contains(&b's');
    Some(Mapping { writable, shared, inode, path })
}

impl Mapping<'_> {
    /// The path as it is. The kernel writes a line feed as `\012` here, and nothing else in another way.
    pub(crate) fn plain_path(&self) -> PathBuf {
        let mut plain = Vec::with_capacity(self.path.len());
        let mut rest = self.path;
        while let Some((first, tail)) = rest.split_first() {
            if let Some(after) = rest.strip_prefix(b"\\012") {
                plain.push(b'\n');
                rest = after;
            } else {
                plain.push(*first);
                rest = tail;
            }
        }
        PathBuf::from(OsString::from_vec(plain))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn own_process() -> io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open("/proc/self", flags, Mode::empty())?)
    }

    #[test]
    fn a_mapped_line_gives_inode_and_path() {
        let line = b"7f00-7f10 r-xp 00000000 00:27 1234                       /a b/lib.so (deleted)";
        let path = &b"/a b/lib.so (deleted)"[..];
        let mapping = Mapping { writable: false, shared: false, inode: 1234, path };
        assert_eq!(mapped_file(line), Some(mapping));
        let written = b"7f00-7f10 rw-s 00000000 00:27 7                          /two\\012lines";
        let mapping = mapped_file(written).unwrap();
        assert!(mapping.writable && mapping.shared);
        assert_eq!(mapping.plain_path(), PathBuf::from("/two\nlines"));
        assert_eq!(mapped_file(b"7f00-7f10 rw-p 00000000 00:00 0                          [heap]"), None);
        let shared = b"7f00-7f10 rw-s 00000000 00:01 5                          /dev/zero (deleted)";
        assert_eq!(mapped_file(shared), None);
        assert_eq!(mapped_file(b"7f00 (deleted)"), None);
    }

    #[test]
    fn a_deleted_file_that_is_open_is_found() {
        let mut file = tempfile::tempfile_in(std::env::temp_dir()).unwrap();
        file.write_all(b"x").unwrap();
        // tempfile may use O_TMPFILE, whose path also ends in the mark.
        let identity = at::status(&file).unwrap().identity;
        let held = Held::look(&own_process().unwrap()).unwrap();
        assert!(held.files().any(|(_, status)| status.identity == identity));
        assert!(!held.within(&Held::default()));
        assert!(held.within(&held));
    }
}
