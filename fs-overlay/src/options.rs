//! Limits and choices of a seal and of the rewinds that follow it.

use std::path::PathBuf;
use std::time::Duration;

/// Limits and choices of a seal and of the rewinds that follow it.
///
/// Everything a hostile function can make large is bounded here. What exceeds a bound of the seal
/// refuses the checkpoint; what exceeds a bound of a rewind quarantines the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Directory where the sealed contents are kept, as nameless files (`O_TMPFILE`), so that they
    /// vanish with the invoker. It must not be inside a container's layers.
    pub store: PathBuf,
    /// Most entries of the upper and the other writable mounts together that a seal accepts.
    ///
    /// Every rewind examines each of them once (about 1 us an entry), so 100,000 would already
    /// cost 0.1 s a request.
    pub sealed_entries_max: u64,
    /// Most bytes of file contents a seal copies.
    pub sealed_bytes_max: u64,
    /// Most changed entries a rewind undoes.
    ///
    /// Undoing costs 10 to 130 us an entry (measured on ext4), a new container 200 to 300 ms: at
    /// some thousands of entries a new container is the cheaper answer.
    pub undone_entries_max: u64,
    /// From how many changed entries on the root is swapped for a fresh overlay rather than put back
    /// entry by entry, where that can be done. 64 KiB of contents count as one more entry.
    ///
    /// Measured on ext4: a swap costs what undoing 20 to 40 entries costs.
    pub swap_from: u64,
    /// From how many sealed entries of the root on it is swapped at the first rewind whatever changed, where
    /// that can be done: what was sealed then is a layer, of which a rewind looks only at what a request
    /// has touched.
    ///
    /// Looking at an entry costs 0.3 to 0.7 us each time, copying it into the layer about 0.1 ms once: so
    /// this pays after some two hundred requests.
    pub swap_sealed_from: u64,
    /// Most bytes a rewind reads or writes to put contents back.
    pub undone_bytes_max: u64,
    /// Deepest directory that is sealed or examined, counted from the root of its mount.
    ///
    /// One descriptor is held for each level.
    pub depth_max: usize,
    /// Most paths named in a report. The counts are always complete.
    pub report_paths_max: usize,
    /// Paths in the container where what is mounted belongs to others too, such as a volume that several
    /// containers write to. What lies on such mounts is neither sealed nor put back; every other mount
    /// the container can write to is.
    pub shared: Vec<PathBuf>,
    /// Longest time a rewind may take.
    pub deadline: Duration,
    /// Put access times back too.
    ///
    /// A function that reads a sealed file moves its access time (at most once a day under
    /// `relatime`, and again after each rewind), so this costs one `utimensat` for each sealed
    /// file that a request read. Without it the access times tell which files were read before.
    pub access_times: bool,
    /// Directory that relative `upperdir` and `lowerdir` options are relative to.
    ///
    /// Docker mounts with paths relative to its storage directory when the list of layers does
    /// not fit into one page.
    pub relative_to: PathBuf,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            store: PathBuf::from("/var/tmp"),
            sealed_entries_max: 100_000,
            sealed_bytes_max: 1 << 30,
            undone_entries_max: 4_096,
            swap_from: 32,
            swap_sealed_from: 512,
            undone_bytes_max: 256 << 20,
            depth_max: 128,
            report_paths_max: 64,
            shared: Vec::new(),
            deadline: Duration::from_secs(5),
            access_times: true,
            relative_to: PathBuf::from("/var/lib/docker/overlay2"),
        }
    }
}
