//! Memory of this process shared with a target, page-map scans and asynchronous write protection.

use super::PAGE;
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// A mapping of a memory file, shared with whoever else maps it.
#[derive(Debug)]
pub(crate) struct Shared {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; access goes through `&mut self` or is
// read-only.
unsafe impl Send for Shared {}
// SAFETY: `&self` only copies bytes out of the mapping.
unsafe impl Sync for Shared {}

impl Shared {
    /// Maps the first `len` bytes of `file`, which must not shrink afterwards (seal it, or a later access
    /// dies of SIGBUS).
    pub(crate) fn map(file: BorrowedFd<'_>, len: usize, writable: bool) -> io::Result<Shared> {
        let prot = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
        let start =
            unsafe { libc::mmap(std::ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(start.cast())
            .map(|start| Shared { start, len })
            .ok_or_else(|| io::Error::other("mapped at 0"))
    }

    fn check(&self, offset: usize, len: usize) {
        assert!(
            offset.checked_add(len).is_some_and(|end| end <= self.len),
            "{offset}+{len} is outside the mapping"
        );
    }

    /// Copies bytes out.
    pub(crate) fn read(&self, offset: usize, into: &mut [u8]) {
        self.check(offset, into.len());
        // SAFETY: the range was checked. Another process may write at the same time, which is why the bytes
        // are copied by the C function through raw pointers and no reference to them is ever made.
        unsafe { std::ptr::copy_nonoverlapping(self.address(offset), into.as_mut_ptr(), into.len()) };
    }

    /// Copies bytes in. The mapping must be writable.
    pub(crate) fn write(&mut self, offset: usize, bytes: &[u8]) {
        self.check(offset, bytes.len());
        // SAFETY: as in `read`.
        unsafe {
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.address(offset).cast_mut(), bytes.len())
        };
    }

    /// Fills a range from a file (such as `/proc/<pid>/mem`) without a buffer between.
    pub(crate) fn fill(
        &mut self,
        offset: usize,
        len: usize,
        from: BorrowedFd<'_>,
        at: u64,
    ) -> io::Result<()> {
        self.check(offset, len);
        let mut done = 0;
        while done < len {
            let position = i64::try_from(at + done as u64).map_err(io::Error::other)?;
            // SAFETY: the range was checked and the mapping is writable.
            let target = unsafe { self.start.as_ptr().add(offset + done) };
            // SAFETY: the kernel writes at most the bytes that are left of the range.
            let got = unsafe { libc::pread(from.as_raw_fd(), target.cast(), len - done, position) };
            match Errno::result(got) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(got) => done += usize::try_from(got).unwrap_or(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Writes a range to a file (such as `/proc/<pid>/mem`) without a buffer between.
    pub(crate) fn drain(&self, offset: usize, len: usize, to: BorrowedFd<'_>, at: u64) -> io::Result<()> {
        self.check(offset, len);
        let mut done = 0;
        while done < len {
            let position = i64::try_from(at + done as u64).map_err(io::Error::other)?;
            let source = self.address(offset + done);
            // SAFETY: the kernel reads at most the bytes that are left of the range.
            let got = unsafe { libc::pwrite(to.as_raw_fd(), source.cast(), len - done, position) };
            match Errno::result(got) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(got) => done += usize::try_from(got).unwrap_or(0),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Zeroes a range. The mapping must be writable.
    pub(crate) fn clear(&mut self, offset: usize, len: usize) {
        self.check(offset, len);
        // SAFETY: the range was checked.
        unsafe { std::ptr::write_bytes(self.address(offset).cast_mut(), 0, len) };
    }

    /// The address of `offset` in this process, for calls that take an address to read from.
    pub(crate) fn address(&self, offset: usize) -> *const u8 {
        self.check(offset, 0);
        // SAFETY: the offset was checked to be inside the mapping or at its end.
        unsafe { self.start.as_ptr().add(offset) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by `map` and nothing refers to it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Maps `pages` fresh pages, writes to each and tells the kernel that it may take them (MADV_FREE). For a look at
/// its counters, which `meanwhile` may take before the pages are gone.
#[cfg(feature = "bpf")]
pub(crate) fn free_lazily(pages: usize, meanwhile: impl FnOnce()) {
    let len = pages * 4096;
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return;
    }
    // SAFETY: the range was just mapped, and nobody else knows it.
    unsafe { libc::madvise(start, len, libc::MADV_NOHUGEPAGE) };
    // SAFETY: as above, writable.
    unsafe { std::ptr::write_bytes(start.cast::<u8>(), 1, len) };
    // SAFETY: as above.
    unsafe { libc::madvise(start, len, libc::MADV_FREE) };
    meanwhile();
    // SAFETY: nothing refers to the range.
    unsafe { libc::munmap(start, len) };
}

/// A fresh memory file.
pub(crate) fn memfd(name: &std::ffi::CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    Errno::result(fd)?;
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sets the length of a memory file.
pub(crate) fn set_len(file: BorrowedFd<'_>, len: u64) -> io::Result<()> {
    let len = i64::try_from(len).map_err(io::Error::other)?;
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::ftruncate(file.as_raw_fd(), len) })?;
    Ok(())
}

/// Whether any swap is in use on this machine. If that cannot be told: yes.
pub(crate) fn has_swap() -> bool {
    let mut info = std::mem::MaybeUninit::<libc::sysinfo>::uninit();
    // SAFETY: `info` has the kernel's layout.
    if unsafe { libc::sysinfo(info.as_mut_ptr()) } != 0 {
        return true;
    }
    // SAFETY: filled by the successful call.
    unsafe { info.assume_init() }.totalswap != 0
}

/// Whether `count` grows with each single page that this process populates. Counters that are only summed up
/// now and then stand still for dozens of pages.
pub(crate) fn counts_every_page(count: impl Fn() -> Option<u64>) -> bool {
    const PAGES: usize = 16;
    let Ok(memory) = anonymous(PAGES * 4096) else { return false };
    let mut last = count();
    for page in 0..PAGES {
        // SAFETY: the page is inside the mapping.
        let address = unsafe { memory.start.as_ptr().add(page * 4096) };
        // SAFETY: the mapping is writable and private to this function.
        unsafe { address.write_volatile(1) };
        let now = count();
        if now.is_none() || now <= last {
            return false;
        }
        last = now;
    }
    true
}

/// Fresh anonymous memory.
fn anonymous(len: usize) -> io::Result<Shared> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a fresh mapping at an address of the kernel's choice disturbs nothing.
    let start =
        unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(start.cast())
        .map(|start| Shared { start, len })
        .ok_or_else(|| io::Error::other("mapped at 0"))
}

/// Adds seals to a memory file.
pub(crate) fn seal(file: BorrowedFd<'_>, seals: libc::c_int) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    Errno::result(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) })?;
    Ok(())
}

/// The parts of a memory file that have pages, as offset and length.
pub(crate) fn extents(file: BorrowedFd<'_>, len: u64) -> io::Result<Vec<(usize, usize)>> {
    let seek = |from: i64, whence| {
        // SAFETY: no pointers are passed.
        Errno::result(unsafe { libc::lseek(file.as_raw_fd(), from, whence) })
    };
    let number = |offset: i64| usize::try_from(offset).map_err(io::Error::other);
    let end = i64::try_from(len).map_err(io::Error::other)?;
    let mut found = Vec::new();
    let mut at = 0;
    while at < end {
        let start = match seek(at, libc::SEEK_DATA) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(errno) => return Err(errno.into()),
        };
        at = seek(start, libc::SEEK_HOLE)?.min(end);
        found.push((number(start)?, number(at - start)?));
    }
    Ok(found)
}

/// Categories of a page in a scan (`PAGE_IS_*` of linux/fs.h).
pub(crate) mod page {
    /// In a range registered for asynchronous write protection.
    pub(crate) const WP_ALLOWED: u64 = 1 << 0;
    /// Not write-protected: written since, or never protected.
    pub(crate) const WRITTEN: u64 = 1 << 1;
    /// Of a file, not anonymous.
    pub(crate) const FILE: u64 = 1 << 2;
    /// In memory.
    pub(crate) const PRESENT: u64 = 1 << 3;
    /// Swapped out.
    pub(crate) const SWAPPED: u64 = 1 << 4;
    /// The shared page of zeros.
    pub(crate) const ZERO: u64 = 1 << 5;
}

/// A run of pages with the same categories.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Region {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) categories: u64,
}

/// Which pages a scan reports, and what of them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Scan {
    /// Categories whose meaning is turned round before the masks apply.
    pub(crate) inverted: u64,
    /// All of these must hold.
    pub(crate) all: u64,
    /// One of these must hold.
    pub(crate) any: u64,
    /// These are reported.
    pub(crate) report: u64,
}

#[repr(C)]
struct PmScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `_IOWR('f', 16, struct pm_scan_arg)`.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;

/// How a scan ended badly.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ScanError {
    #[error("more than {0} regions")]
    Overrun(usize),
    #[error(transparent)]
    Failed(#[from] Errno),
}

/// Appends the matching regions of `[start, end)` to `out`, whose length may grow to `limit`.
///
/// One call per range, with room for `limit` regions: the kernel's `walk_end` is stale above some 512
/// regions, and a loop that goes on from there reports regions twice (measured: it zapped live pages).
/// The answer is complete exactly if the returned count is below the room.
pub(crate) fn scan(
    pagemap: BorrowedFd<'_>,
    start: u64,
    end: u64,
    what: Scan,
    out: &mut Vec<Region>,
    limit: usize,
) -> Result<(), ScanError> {
    if start >= end {
        return Ok(());
    }
    let room = limit.saturating_sub(out.len());
    if room == 0 {
        return Err(ScanError::Overrun(limit));
    }
    out.reserve_exact(room);
    let arg = PmScanArg {
        size: size_of::<PmScanArg>() as u64,
        flags: 0,
        start,
        end,
        walk_end: 0,
        vec: out.spare_capacity_mut().as_mut_ptr() as u64,
        vec_len: room as u64,
        max_pages: 0,
        category_inverted: what.inverted,
        category_mask: what.all,
        category_anyof_mask: what.any,
        return_mask: what.report,
    };
    // SAFETY: `arg` has the kernel's layout; `vec` has room for `vec_len` regions, which were reserved above.
    let got = Errno::result(unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw const arg) })?;
    let got = usize::try_from(got).unwrap_or(0);
    if got >= room {
        return Err(ScanError::Overrun(limit));
    }
    // SAFETY: the kernel initialised `got` regions, fewer than were reserved.
    unsafe { out.set_len(out.len() + got) };
    Ok(())
}

#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdioWriteprotect {
    start: u64,
    len: u64,
    mode: u64,
}

const UFFD_API: u64 = 0xaa;
/// `_IOWR(0xaa, 0x3f, struct uffdio_api)`.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
/// `_IOWR(0xaa, 0x00, struct uffdio_register)`.
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
/// `_IOWR(0xaa, 0x06, struct uffdio_writeprotect)`.
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const UFFD_FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const UFFD_FEATURE_WP_ASYNC: u64 = 1 << 15;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;
/// Kernel writes are tracked all the same, and no privilege is needed (kernel-facts B4).
pub(crate) const UFFD_USER_MODE_ONLY: i32 = 1;

/// The write protection of one address space, resolved by the kernel itself at the first write.
#[derive(Debug)]
pub(crate) struct WriteProtect {
    uffd: OwnedFd,
}

impl WriteProtect {
    /// Takes over a userfaultfd made inside the address space.
    pub(crate) fn start(uffd: OwnedFd) -> Result<WriteProtect, Errno> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
            ioctls: 0,
        };
        // SAFETY: `api` has the kernel's layout and lives through the call.
        Errno::result(unsafe { libc::ioctl(uffd.as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(WriteProtect { uffd })
    }

    /// Makes a range protectable. `EINVAL` for ranges that cannot be (VM_DROPPABLE, special mappings).
    pub(crate) fn register(&self, start: u64, end: u64) -> Result<(), Errno> {
        debug_assert!(start.is_multiple_of(PAGE) && end.is_multiple_of(PAGE));
        let mut arg = UffdioRegister { start, len: end - start, mode: UFFDIO_REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: `arg` has the kernel's layout and lives through the call.
        Errno::result(unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_REGISTER, &raw mut arg) }).map(drop)
    }

    /// Protects a registered range. Call it for populated pages: markers for gigabytes of nothing cost real
    /// page tables (kernel-facts B3).
    pub(crate) fn protect(&self, start: u64, end: u64) -> Result<(), Errno> {
        loop {
            let mut arg = UffdioWriteprotect { start, len: end - start, mode: UFFDIO_WRITEPROTECT_MODE_WP };
            // SAFETY: `arg` has the kernel's layout and lives through the call.
            let done = unsafe { libc::ioctl(self.uffd.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut arg) };
            match Errno::result(done) {
                // The address space is being changed by a racing fork or mremap that has already been stopped.
                Err(Errno::EAGAIN) => std::thread::yield_now(),
                other => return other.map(drop),
            }
        }
    }
}

/// Whether this kernel has asynchronous write protection and page-map scans; the error says what not.
pub(crate) fn probe_tracking() -> Result<(), String> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | UFFD_USER_MODE_ONLY) };
    let fd = Errno::result(fd).map_err(|e| format!("userfaultfd: {e} (CONFIG_USERFAULTFD)"))?;
    // SAFETY: a fresh descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).unwrap_or(-1)) };
    WriteProtect::start(fd)
        .map_err(|e| format!("userfaultfd has no asynchronous write protection: {e} (Linux 6.7)"))?;
    let pagemap =
        std::fs::File::open("/proc/self/pagemap").map_err(|e| format!("/proc/self/pagemap: {e}"))?;
    let mut regions = Vec::new();
    let what = Scan { any: page::PRESENT, report: page::PRESENT, ..Scan::default() };
    use std::os::fd::AsFd;
    match scan(pagemap.as_fd(), PAGE, 2 * PAGE, what, &mut regions, 8) {
        Ok(()) => Ok(()),
        Err(e) => Err(format!("PAGEMAP_SCAN: {e} (Linux 6.7)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn structures_have_the_sizes_in_their_ioctl_numbers() {
        let size = |number: libc::c_ulong| usize::try_from((number >> 16) & 0x3fff).expect("small");
        assert_eq!(size(PAGEMAP_SCAN), size_of::<PmScanArg>());
        assert_eq!(size(UFFDIO_API), size_of::<UffdioApi>());
        assert_eq!(size(UFFDIO_REGISTER), size_of::<UffdioRegister>());
        assert_eq!(size(UFFDIO_WRITEPROTECT), size_of::<UffdioWriteprotect>());
    }

    #[test]
    fn a_shared_mapping_is_seen_by_both_sides_and_keeps_its_bounds() {
        let file = memfd(c"test").expect("a memory file");
        set_len(file.as_fd(), PAGE).expect("a length");
        let mut one = Shared::map(file.as_fd(), 4096, true).expect("a mapping");
        let two = Shared::map(file.as_fd(), 4096, false).expect("a mapping");
        one.write(4090, b"abcdef");
        let mut got = [0; 6];
        two.read(4090, &mut got);
        assert_eq!(&got, b"abcdef");
        let outside = std::panic::catch_unwind(|| two.read(4091, &mut [0; 6]));
        assert!(outside.is_err());
    }

    #[test]
    fn a_scan_without_room_is_an_overrun_not_a_short_answer() {
        let pagemap = std::fs::File::open("/proc/self/pagemap").expect("pagemap");
        let what = Scan { any: page::PRESENT, report: page::PRESENT, ..Scan::default() };
        let mut out = Vec::new();
        match scan(pagemap.as_fd(), PAGE, 0x7fff_ffff_f000, what, &mut out, 1) {
            Err(ScanError::Overrun(1)) => {}
            Err(ScanError::Failed(Errno::ENOTTY | Errno::EINVAL)) => eprintln!("SKIP scan: no PAGEMAP_SCAN"),
            other => panic!("{other:?}"),
        }
    }
}
