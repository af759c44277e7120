//! The document store (contract section 4): actions in, activation records out, and who is blocked.
//!
//! [`couch`] speaks HTTP and knows documents; the other modules know what the documents are.
//! [`Observer`] hears of every operation, so that whoever counts need not be known here.

mod actions;
mod blacklist;
pub mod couch;
pub mod memory;
mod observe;
mod writer;

pub use actions::{ActionSettings, ActionStore, CouchActions, FetchError};
pub use blacklist::Blacklist;
pub use couch::{Couch, CouchError, CouchSettings, CouchSetupError, Database};
pub use observe::{Observer, Operation, Unobserved};
pub use writer::{ActivationStore, CouchWriter, StoreError, WriterSettings};

/// An error with its sources, on one line. Outer messages never repeat their source, so nothing is lost and
/// nothing is said twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests;
