//! What `/proc` tells of a process, read through files that stay open.
//!
//! An open file of `/proc/<pid>` belongs to that very process (or thread): once it is gone the file answers
//! `ESRCH` for ever, even if the number is given to another. So a held file is an identity check as well.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A file of `/proc` that is read again and again from its beginning.
#[derive(Debug)]
pub(crate) struct Held {
    file: File,
}

impl Held {
    pub(crate) fn open(path: &str) -> io::Result<Held> {
        let file = File::open(path)
            .map_err(|source| io::Error::new(source.kind(), format!("opening {path}: {source}")))?;
        Ok(Held { file })
    }

    /// The whole content now, in `buffer`.
    pub(crate) fn read<'b>(&self, buffer: &'b mut Vec<u8>) -> io::Result<&'b [u8]> {
        if buffer.len() < 8192 {
            buffer.resize(8192, 0);
        }
        let mut len = 0;
        loop {
            if len == buffer.len() {
                buffer.resize(len * 2, 0);
            }
            match self.file.read_at(&mut buffer[len..], len as u64) {
                Ok(0) => return Ok(&buffer[..len]),
                Ok(got) => len += got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As much of the content now as one read into `buffer` gives.
    pub(crate) fn read_into<'b>(&self, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
        let len = self.file.read_at(buffer, 0)?;
        Ok(&buffer[..len])
    }

    /// The whole content now.
    pub(crate) fn text(&self) -> io::Result<String> {
        let mut buffer = Vec::new();
        let len = self.read(&mut buffer)?.len();
        buffer.truncate(len);
        String::from_utf8(buffer).map_err(io::Error::other)
    }
}

/// The numeric names in a directory of `/proc`, sorted.
pub(crate) fn numbers(path: &str) -> io::Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path)? {
        if let Some(number) = entry?.file_name().to_str().and_then(|name| name.parse().ok()) {
            found.push(number);
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// The threads of a process.
pub(crate) fn threads(pid: i32) -> io::Result<Vec<i32>> {
    numbers(&format!("/proc/{pid}/task"))
}

/// The value of a `Key:` line in a status-like text.
pub(crate) fn field<'a>(text: &'a [u8], key: &str) -> Option<&'a str> {
    lines(text).find_map(|(k, v)| (k == key).then_some(v))
}

/// The `Key: value` lines of a status-like text.
pub(crate) fn lines(text: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    text.split(|b| *b == b'\n').filter_map(|line| {
        let (key, value) = std::str::from_utf8(line).ok()?.split_once(':')?;
        Some((key, value.trim()))
    })
}

/// One mapping of an address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mapping {
    pub(crate) start: u64,
    pub(crate) end: u64,
    /// `PROT_*` bits.
    pub(crate) prot: i32,
    pub(crate) shared: bool,
    pub(crate) offset: u64,
    /// Major and minor number, as printed.
    pub(crate) device: (u32, u32),
    /// 0: anonymous (or of the kernel).
    pub(crate) inode: u64,
    /// Path, `[heap]`, `[anon:name]`, or nothing.
    pub(crate) name: String,
}

impl Mapping {
    /// Provided by the kernel and not touchable: vdso, vvar, vsyscall, uprobes.
    pub(crate) fn is_special(&self) -> bool {
        self.inode == 0
            && self.name.starts_with('[')
            && !self.name.starts_with("[anon")
            && !matches!(self.name.as_str(), "[heap]" | "[stack]")
    }

    /// Private and not of a file.
    pub(crate) fn is_anonymous(&self) -> bool {
        self.inode == 0 && !self.shared && !self.is_special()
    }

    pub(crate) fn writable(&self) -> bool {
        self.prot & libc::PROT_WRITE != 0
    }

    /// The name given by `PR_SET_VMA_ANON_NAME`.
    pub(crate) fn anonymous_name(&self) -> Option<&str> {
        self.name.strip_prefix("[anon:")?.strip_suffix(']')
    }

    /// The offset that the page at `address` has in the mapped file; 0 for anonymous memory, whose offsets
    /// mean nothing.
    fn file_offset(&self, address: u64) -> u64 {
        if self.inode == 0 { 0 } else { self.offset.wrapping_add(address.wrapping_sub(self.start)) }
    }

    /// Whether both map the same thing at `address` (protection and name aside).
    pub(crate) fn same_object(&self, other: &Mapping, address: u64) -> bool {
        self.shared == other.shared
            && self.device == other.device
            && self.inode == other.inode
            && self.is_special() == other.is_special()
            && (!self.is_special() || self.name == other.name)
            && self.file_offset(address) == other.file_offset(address)
    }

    /// Whether `next` continues this mapping: the kernel splits and merges mappings as it likes.
    fn continued_by(&self, next: &Mapping) -> bool {
        self.end == next.start
            && self.prot == next.prot
            && self.name == next.name
            && !self.is_special()
            && self.same_object(next, next.start)
    }
}

/// The mappings in the text of `/proc/<pid>/maps`, neighbours of one kind joined.
pub(crate) fn mappings(text: &[u8]) -> Result<Vec<Mapping>, String> {
    let mut all: Vec<Mapping> = Vec::with_capacity(text.len() / 80 + 1);
    for line in text.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let mapping = mapping(line).ok_or_else(|| String::from_utf8_lossy(line).into_owned())?;
        // [vsyscall] lies in the kernel's half.
        if mapping.start >= 1 << 63 {
            continue;
        }
        match all.last_mut() {
            Some(last) if last.continued_by(&mapping) => last.end = mapping.end,
            _ => all.push(mapping),
        }
    }
    Ok(all)
}

fn hex(bytes: &[u8]) -> Option<u64> {
    if bytes.is_empty() || bytes.len() > 16 {
        return None;
    }
    bytes.iter().try_fold(0u64, |value, b| Some(value << 4 | u64::from(char::from(*b).to_digit(16)?)))
}

fn mapping(line: &[u8]) -> Option<Mapping> {
    // 7f00-7f10 r-xp 00000000 08:01 1234   /usr/lib/libc.so.6
    let mut fields = line.splitn(6, |b| *b == b' ');
    let range = fields.next()?;
    let dash = range.iter().position(|b| *b == b'-')?;
    let perms = fields.next()?;
    let offset = hex(fields.next()?)?;
    let device = fields.next()?;
    let colon = device.iter().position(|b| *b == b':')?;
    let inode = std::str::from_utf8(fields.next()?).ok()?.parse().ok()?;
    let name = fields.next().unwrap_or_default();
    let name = String::from_utf8_lossy(name).trim_start().to_owned();
    let bit = |at: usize, letter: u8, bit: i32| if perms.get(at) == Some(&letter) { bit } else { 0 };
    Some(Mapping {
        start: hex(&range[..dash])?,
        end: hex(&range[dash + 1..])?,
        prot: bit(0, b'r', libc::PROT_READ) | bit(1, b'w', libc::PROT_WRITE) | bit(2, b'x', libc::PROT_EXEC),
        shared: *perms.get(3)? == b's',
        offset,
        device: (
            u32::try_from(hex(&device[..colon])?).ok()?,
            u32::try_from(hex(&device[colon + 1..])?).ok()?,
        ),
        inode,
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn neighbours_of_one_kind_are_one_mapping_and_others_are_not() {
        let text = b"1000-2000 rw-p 00000000 00:00 0 \n\
                     2000-3000 rw-p 00000000 00:00 0 \n\
                     3000-4000 r--p 00000000 00:00 0 \n\
                     5000-6000 r-xp 00001000 08:01 7    /lib/x y\n\
                     6000-7000 r-xp 00002000 08:01 7    /lib/x y\n\
                     7000-8000 r-xp 00005000 08:01 7    /lib/x y\n\
                     ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]\n";
        let all = mappings(text).expect("well formed");
        let ranges: Vec<_> = all.iter().map(|m| (m.start, m.end)).collect();
        assert_eq!(ranges, [(0x1000, 0x3000), (0x3000, 0x4000), (0x5000, 0x7000), (0x7000, 0x8000)]);
        assert_eq!(all[2].name, "/lib/x y");
        assert!(all[0].is_anonymous() && !all[2].is_anonymous());
    }

    #[test]
    fn kernel_mappings_are_special_and_named_anonymous_ones_are_not() {
        let text = b"1000-2000 r-xp 00000000 00:00 0    [vdso]\n\
                     2000-3000 rw-p 00000000 00:00 0    [heap]\n\
                     3000-4000 rw-p 00000000 00:00 0    [anon: Go: heap]\n";
        let all = mappings(text).expect("well formed");
        assert!(all[0].is_special());
        assert!(all[1].is_anonymous());
        assert_eq!(all[2].anonymous_name(), Some(" Go: heap"));
    }

    #[test]
    fn our_own_maps_are_understood() {
        let text = std::fs::read("/proc/self/maps").expect("readable");
        let all = mappings(&text).expect("well formed");
        assert!(all.iter().any(|m| m.name == "[stack]"));
        assert!(all.windows(2).all(|w| w[0].end <= w[1].start));
    }

    #[test]
    fn a_held_file_of_a_dead_process_tells_so() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().expect("a child");
        let held = Held::open(&format!("/proc/{}/status", child.id())).expect("open");
        // By number: the name is still the parent's until `execve` is complete.
        let status = held.text().expect("readable");
        assert_eq!(field(status.as_bytes(), "Pid"), Some(child.id().to_string().as_str()));
        child.kill().expect("killed");
        child.wait().expect("reaped");
        assert!(held.text().is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = mappings(&text);
            let _ = lines(&text).count();
        }
    }
}
