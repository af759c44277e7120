//! A/B benches of the invoker and of the rewind, with raw runs kept.
//!
//! Figures of different days or machines are not comparable; ratios within one run are. So everything that is to
//! be compared is measured in turn, round by round, in one run, and every run keeps its raw data and what the
//! machine was: `benches/runs/<date>-<machine>/`.
//!
//! - [`load`]: activations through Kafka, and how long each took;
//! - [`store`]: a store that costs nothing, so that what is measured is the invoker;
//! - [`process`]: processor time and memory, of one process or by program;
//! - [`machine`]: what the machine is;
//! - [`runs`]: where raw data goes, and medians of it.

pub mod load;
pub mod machine;
pub mod process;
pub mod runs;
pub mod store;
