//! The mounts of a container, as its own `/proc/<pid>/mountinfo` lists them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// One line of mountinfo (proc(5)). Only what the classification needs is kept apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mount {
    /// Mount id, as `statx` gives it for anything on this mount.
    pub(crate) id: u64,
    /// Mount id of the mount it lies on.
    pub(crate) parent: u64,
    /// Device numbers of the file system, as `major:minor`.
    device: OsString,
    /// Path of the mounted directory or file inside its file system.
    pub(crate) root: PathBuf,
    /// Where it is mounted, as the process sees it.
    pub(crate) at: PathBuf,
    /// Options of this mount (`rw`, `nosuid`, `idmapped`).
    pub(crate) options: Vec<OsString>,
    /// Whether what is mounted below it is mounted elsewhere too.
    pub(crate) shared: bool,
    /// File system type.
    pub(crate) kind: OsString,
    /// What is mounted, in the file system's own terms.
    source: OsString,
    /// Options of the file system, `key` or `key=value`, escapes already undone.
    pub(crate) fs_options: Vec<OsString>,
}

impl Mount {
    /// Whether the container can write here, as far as mount and file system allow.
    pub(crate) fn writable(&self) -> bool {
        let ro = OsStr::new("ro");
        !self.options.iter().any(|option| option == ro) && !self.fs_options.iter().any(|option| option == ro)
    }

    pub(crate) fn has_option(&self, wanted: &str) -> bool {
        self.options.iter().any(|option| option == wanted)
    }

    pub(crate) fn fs_option(&self, key: &str) -> Option<&OsStr> {
        self.fs_option_all(key).next()
    }

    pub(crate) fn fs_option_all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a OsStr> {
        let key = [key.as_bytes(), b"="].concat();
        self.fs_options
            .iter()
            .filter_map(move |option| option.as_bytes().strip_prefix(&key[..]).map(OsStr::from_bytes))
    }
}

/// A line of mountinfo that is not as proc(5) says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed mountinfo line {line:?}")]
pub struct MountinfoError {
    line: String,
}

/// Parses a whole mountinfo file. Paths may hold any bytes.
pub(crate) fn parse(text: &[u8]) -> Result<Vec<Mount>, MountinfoError> {
    text.split(|byte| *byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            parse_line(line)
                .ok_or_else(|| MountinfoError { line: String::from_utf8_lossy(line).into_owned() })
        })
        .collect()
}

/// `36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue`
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let id = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let parent = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let device = unescape(fields.next()?);
    let root = unescape(fields.next()?);
    let at = unescape(fields.next()?);
    let options = split_options(fields.next()?);
    // The optional fields end with a lone hyphen.
    let mut shared = false;
    loop {
        match fields.next()? {
            b"-" => break,
            field => shared |= field.starts_with(b"shared:"),
        }
    }
    let kind = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let fs_options = split_options(fields.next()?);
    let (root, at) = (root.into(), at.into());
    Some(Mount { id, parent, device, root, at, options, shared, kind, source, fs_options })
}

/// Undoes the octal escapes of `seq_escape` (`\040` for a space).
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        if *first == b'\\'
            && let Some(digits) = tail.get(..3)
            && digits.iter().all(|digit| (b'0'..=b'7').contains(digit))
        {
            let value = digits.iter().fold(0_u32, |sum, digit| sum * 8 + u32::from(digit - b'0'));
            if let Ok(byte) = u8::try_from(value) {
                bytes.push(byte);
                rest = &tail[3..];
                continue;
            }
        }
        bytes.push(*first);
        rest = tail;
    }
    OsString::from_vec(bytes)
}

/// Splits at commas. A comma inside a value is escaped as `\,` by overlay, or as `\054`.
fn split_options(field: &[u8]) -> Vec<OsString> {
    let mut options = Vec::new();
    let mut current = Vec::new();
    let mut bytes = field.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' if bytes.peek() == Some(&b',') => {
                current.push(b',');
                bytes.next();
            }
            b',' => options.push(unescape(&std::mem::take(&mut current))),
            _ => current.push(byte),
        }
    }
    options.push(unescape(&current));
    options
}

/// Splits overlay's `lowerdir`, which is a list with colons; `\:` is a colon inside a path.
pub(crate) fn split_lower(value: &OsStr) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut current = Vec::new();
    let mut bytes = value.as_bytes().iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => current.extend(bytes.next()),
            b':' => paths.push(PathBuf::from(OsString::from_vec(std::mem::take(&mut current)))),
            _ => current.push(byte),
        }
    }
    paths.push(PathBuf::from(OsString::from_vec(current)));
    // `::` before data-only layers yields an empty name.
    paths.retain(|path| path != Path::new(""));
    paths
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_docker_root_is_understood() {
        let text = b"72 48 0:39 / / rw,relatime master:2 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/d/diff,workdir=/d/work\n\
                     85 72 254:0 /c/hosts /etc/hosts rw,relatime - ext4 /dev/vda rw,discard\n\
                     76 72 0:45 / /sys ro,nosuid - sysfs sysfs ro\n";
        let mounts = parse(text).unwrap();
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].fs_option("upperdir"), Some(OsStr::new("/d/diff")));
        assert_eq!(
            split_lower(mounts[0].fs_option("lowerdir").unwrap()),
            [PathBuf::from("/l/A"), PathBuf::from("/l/B")]
        );
        assert!(mounts[1].writable());
        assert_eq!(mounts[1].root, Path::new("/c/hosts"));
        assert!(!mounts[2].writable());
    }

    #[test]
    fn escapes_are_undone() {
        let text = br"1 0 0:1 /a\040b /c\012d rw shared:1 master:2 - overlay over\040lay rw,upperdir=/x\054y,lowerdir=/p\\:q:/r";
        let mounts = parse(text).unwrap();
        assert_eq!(mounts[0].root, Path::new("/a b"));
        assert_eq!(mounts[0].at, Path::new("/c\nd"));
        assert_eq!(mounts[0].fs_option("upperdir"), Some(OsStr::new("/x,y")));
    }

    #[test]
    fn a_lower_list_with_escaped_colons_is_split_right() {
        assert_eq!(split_lower(OsStr::new(r"/p\:q:/r")), [PathBuf::from("/p:q"), PathBuf::from("/r")]);
    }

    #[test]
    fn malformed_lines_are_refused() {
        for line in ["x 0 0:1 / / rw - tmpfs t rw", "1 0 0:1 / / rw tmpfs t rw", "1 0 0:1 / /"] {
            assert!(parse(line.as_bytes()).is_err(), "{line}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Whatever comes, no panic, and no more mounts than lines.
            if let Ok(mounts) = parse(&text) {
                prop_assert!(mounts.len() <= text.split(|byte| *byte == b'\n').count());
            }
        }

        #[test]
        fn unescape_undoes_seq_escape(name in proptest::collection::vec(any::<u8>(), 0..60)) {
            let mut escaped = Vec::new();
            for byte in &name {
                if b" \t\n\\".contains(byte) {
                    escaped.extend(format!("\\{byte:03o}").bytes());
                } else {
                    escaped.push(*byte);
                }
            }
            prop_assert_eq!(unescape(&escaped).into_vec(), name);
        }
    }
}
