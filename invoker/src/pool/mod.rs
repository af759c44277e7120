//! Which container takes which job: a pure state machine (contract 6.1 to 6.4).
//!
//! [`Event`]s go in, [`Command`]s come out. There is no IO, no clock, no task and no randomness in here, so
//! that millions of events can be simulated and everything the pool promises be checked after each.

mod command;
mod config;
mod event;

pub use command::{AbortCause, Command, Found, Start};
pub use config::{Isolation, PoolConfig, Reactive, StemCells, StemCheck};
pub use event::{ContainerId, Event, Job, JobEnd, JobId, Millis};
