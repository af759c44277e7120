//! What the census tells apart.

use std::fmt;

/// A set of areas of a process's state.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Areas(u32);

/// One area. The numbers are those of `bpf/census.h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Area {
    /// Mappings, their protection, their advice, the break.
    Layout = 1,
    /// The table of open files, and of each what the census reads (see [`super::record::provable`]).
    Descriptors = 2,
    /// Signals, timers, mask of modes and other attributes of a process.
    Attributes = 4,
    /// Attributes of a thread, its children.
    ThreadAttributes = 8,
    /// Resource limits, scheduling, OOM score.
    Limits = 16,
    /// Credentials, namespaces, seccomp, parentage.
    Identity = 32,
    /// Executable, root, mounts, working directory.
    Place = 64,
    /// Objects of the IPC namespace.
    Ipc = 128,
}

impl Areas {
    const NAMES: [(Area, &'static str); 8] = [
        (Area::Layout, "layout"),
        (Area::Descriptors, "descriptors"),
        (Area::Attributes, "attributes"),
        (Area::ThreadAttributes, "thread attributes"),
        (Area::Limits, "limits"),
        (Area::Identity, "identity"),
        (Area::Place, "place"),
        (Area::Ipc, "ipc"),
    ];

    pub(crate) const fn none() -> Areas {
        Areas(0)
    }

    /// What must be assumed if nothing is known.
    pub(crate) const fn all() -> Areas {
        Areas(255)
    }

    /// The areas of a number of `bpf/census.h`.
    pub(crate) const fn of_bits(bits: u32) -> Areas {
        Areas(bits & 255)
    }

    pub(crate) fn add(&mut self, area: Area) {
        self.0 |= area as u32;
    }

    #[cfg(all(test, feature = "bpf"))]
    pub(crate) fn remove(&mut self, area: Area) {
        self.0 &= !(area as u32);
    }

    pub(crate) fn join(&mut self, other: Areas) {
        self.0 |= other.0;
    }

    pub(crate) fn has(self, area: Area) -> bool {
        self.0 & area as u32 != 0
    }

    pub(crate) fn has_any(self, areas: &[Area]) -> bool {
        areas.iter().any(|area| self.has(*area))
    }

    /// Their names.
    pub(crate) fn names(self) -> impl Iterator<Item = &'static str> {
        Areas::NAMES.iter().filter(move |(area, _)| self.has(*area)).map(|(_, name)| *name)
    }

    pub(crate) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Debug for Areas {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}
