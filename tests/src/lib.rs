//! Whole-system tests: real Kafka, a real store, real containers, the real `rewind` binary.
//!
//! In reading order:
//! - [`mod@env`]: the services of a test run, started by the scripts of `tests/env`;
//! - [`lab`]: one test's corner of them: its own topics, databases and container names;
//! - [`message`]: activations and action documents, as a controller makes them;
//! - [`controller`]: a controller's double that publishes activations and checks every answer strictly;
//! - [`store`]: what a test puts into the store and reads from it;
//! - [`invoker`]: the program under test, as a child process;
//! - [`docker`]: what a test sees and does behind the invoker's back;
//! - [`proxy`]: a store that fails now and then.
//!
//! Everything here panics with a message when the environment fails: these are tests.

pub mod controller;
pub mod docker;
pub mod env;
pub mod invoker;
pub mod lab;
pub mod message;
pub mod proxy;
pub mod store;

pub use lab::Lab;
