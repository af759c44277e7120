//! The twin of `pagemap` for systems that do not have it: same names, nothing can be made.

use super::{Heat, MemoryEngine, MemoryImage, Stopped};
use crate::proc::Mapping;
use crate::reason::Quarantine;

/// An engine that does not exist here.
#[derive(Debug)]
pub(crate) enum Pagemap {}

impl Pagemap {
    /// Never: this system has no page-map scans.
    pub(crate) fn new() -> Option<Pagemap> {
        None
    }
}

impl MemoryEngine for Pagemap {
    fn checkpoint(
        &self,
        _: &mut Stopped<'_>,
        _: &[Mapping],
        _: Heat,
    ) -> Result<Box<dyn MemoryImage>, Quarantine> {
        match *self {}
    }
}
