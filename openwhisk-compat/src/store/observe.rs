//! What a store tells about its work, without knowing who counts it.

use std::time::Duration;

/// An operation, as contract 8.2 names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// One activation record, from its arrival at the writer until it is written.
    SaveDocument,
    /// One bulk write.
    SaveDocumentBulk,
    /// One document read.
    GetDocument,
    /// One view read.
    QueryView,
    /// One attachment read.
    GetDocumentAttachment,
}

/// Receives what a store does. Every method does nothing unless given; all are cheap and never block.
pub trait Observer: Send + Sync + 'static {
    /// An operation ended.
    fn ended(&self, operation: Operation, took: Duration, ok: bool) {
        let _ = (operation, took, ok);
    }
    /// An action was asked for; `hit` when the cache had it or was just reading it.
    fn cache(&self, hit: bool) {
        let _ = hit;
    }
    /// Documents of one bulk write.
    fn batch(&self, documents: usize) {
        let _ = documents;
    }
    /// Records waiting to be written or being written.
    fn waiting(&self, records: usize) {
        let _ = records;
    }
    /// A record was given up.
    fn lost(&self) {}
}

/// Nobody counts.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unobserved;

impl Observer for Unobserved {}
