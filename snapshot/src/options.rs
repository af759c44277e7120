//! The knobs of a checkpoint.

use crate::fault::Faults;
use std::time::Duration;

/// How a container is checkpointed and rewound.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long a container may take to become quiet before its checkpoint. Default 5 s
    /// (a Go proxy's scavenger and Node's idle work need some 3 s).
    pub settle: Duration,
    /// How long all threads must have been idle before the container counts as settled. Default 20 ms
    /// (guessed: longer than a scheduler's time slice, short against a cold start).
    pub quiet: Duration,
    /// The bound of each single step (stopping, killing strangers, one injected batch). Default 2 s.
    pub step_deadline: Duration,
    /// Put advice on memory (`MADV_DONTFORK` and the like) back, or refuse where that is impossible (huge
    /// pages), and take back `MADV_FREE`, which lets the kernel take pages of the snapshot away later. It costs a
    /// walk of the page tables in each rewind (0.3 to 1 ms for 30 MB). Default on.
    pub advice: bool,
    /// Ask the kernel by a BPF program what a request changed, where that works, and look only at that. Off: every
    /// rewind looks at everything. Default on.
    pub census: bool,
    /// Compare everything, byte for byte and map for map, after each rewind. For tests: O(size). Default off.
    pub paranoid: bool,
    /// The same after every so many rewinds of a snapshot, as a sample; 0 is never. Default 0.
    pub paranoid_every: u32,
    /// A page that changed in so many rewinds in a row stays writable ('hot') and is copied back in place.
    /// 0 turns hot pages off. Default 2 (measured: hot pages halve the cost of a request).
    pub hot_after: u8,
    /// A hot page that did not change for so many rewinds becomes cold again. Default 32
    /// (guessed; without demotion hot sets were measured to grow to thousands of pages).
    pub cold_after: u8,
    /// Test hook: fault points that trip.
    pub faults: Faults,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            settle: Duration::from_secs(5),
            quiet: Duration::from_millis(20),
            step_deadline: Duration::from_secs(2),
            advice: true,
            census: true,
            paranoid: false,
            paranoid_every: 0,
            hot_after: 2,
            cold_after: 32,
            faults: Faults::default(),
        }
    }
}
