//! The document store (contract section 4): actions in, activation records out, and who is blocked.
//!
//! [`couch`] speaks HTTP and knows documents; the other modules know what the documents are.
//! [`Observer`] hears of every operation, so that whoever counts need not be known here.

pub mod attachment;
mod blacklist;
pub mod couch;
mod observe;
mod writer;

pub use blacklist::Blacklist;
pub use couch::{Couch, CouchError, CouchSettings, CouchSetupError, Database};
pub use observe::{Observer, Operation, Unobserved};
pub use writer::{ActivationStore, CouchWriter, StoreError, StoredActivation, WriterSettings};

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
