//! Which container takes which job: a pure state machine (contract 6.1 to 6.4).
//!
//! [`Event`]s go in, [`Command`]s come out of [`Pool::handle`]. There is no IO, no clock, no task and no
//! randomness in here, so that millions of events can be simulated and everything the pool promises be
//! checked after each.
//!
//! # What it promises
//!
//! - Containers that count never hold more than [`PoolConfig::budget_mb`]. A container counts from the command
//!   that creates it until its destruction starts, as upstream.
//! - Jobs leave the run buffer in the order of their arrival. Nothing overtakes the job at the head, even if
//!   it would fit. A job that comes back takes its old place in that order.
//! - Every job is answered once: by its [`JobEnd`], or by [`Command::Abort`]. A job comes back at most
//!   [`PoolConfig::returns_max`] times because a container refused it, and at most once because the container
//!   it waited for did not become free or pristine (soon enough).
//! - A container is given a job only while it is pristine, or while it is in use by the same action in the same
//!   namespace and the action's concurrency allows another, or as a stem cell, or new.
//! - Every permit comes back to the feed: one per answered job, held back while jobs are buffered.
//!
//! # Where a job goes
//!
//! The first of these that there is, for the job at the head of the run buffer:
//!
//! 1. Among the containers of the same action and namespace: one that is idle; one in use with room for another
//!    request; one that is being **rewound** and for which fewer jobs wait than it may take; one that is full, with
//!    requests that were **answered** a moment ago and for whose end no other job waits; a suspended one; one
//!    being suspended, with room among those who wait; one being initialised with room for another, from a stem cell or new.
//! 2. A stem cell of exactly the same kind and memory, the one that expires first.
//! 3. A new container, if memory allows.
//! 4. A new container in the place of idle ones, least recently used first, if those suffice.
//!
//! Else it stays where it is. Waiting for a rewind comes before a new container because a rewind takes some two
//! milliseconds and a cold start hundreds; a container being rewound takes no more waiting jobs than it can run
//! at once, so the next job gets another container. The job that waits has left the run buffer and blocks nobody.
//!
//! The same holds for a container whose request was answered: a caller who has the answer may send the next
//! request before the output of the last is collected, and where memory is just enough for the actions in use,
//! each such request would cost another action its idle container. If the request does not end soon all the
//! same, the job goes back to the run buffer at the next tick.

mod command;
mod config;
mod event;
mod machine;
mod stems;

#[cfg(test)]
mod behaviours;
#[cfg(test)]
mod simulation;

pub use command::{AbortCause, Command, Found, Start};
pub use config::{Isolation, PoolConfig, Reactive, StemCells, StemCheck};
pub use event::{ContainerId, Event, Job, JobEnd, JobId, Millis};
pub use machine::{Counters, Gauge, Gauges, Pool, StemLevel};
