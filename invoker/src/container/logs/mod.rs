//! The output of a container: following the engine's log of it, and keeping two requests' output apart.
//!
//! ```text
//!   container's stdout --pipe--> shim --fifo--> engine's copier --line by line--> <id>-json.log --> collector
//!        ^                                          |
//!        |                            holds what has no line end yet
//!    channel: writes a barrier line
//! ```
//!
//! The copier is the trouble (residue row 30): bytes without a line end that one request wrote come out in front of
//! the next request's first line, and a rewind does not reach them. So after every rewind the [`LogChannel`] writes
//! a *barrier*, a line with a random token, into both pipes; whatever the log has before the barrier of a stream
//! belongs to earlier requests, and the [`LogFollower`] drops it.

mod channel;
mod follow;
mod watch;

pub(super) use channel::{Barrier, LogChannel};
pub use follow::LogRequest;
pub(super) use follow::{LogFollower, log_path};
pub(super) use watch::LogWatches;
