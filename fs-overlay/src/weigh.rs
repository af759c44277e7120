//! What undoing would cost, as far as it matters: whether it is more than a swap costs.

use crate::at::{self, Kind, Status};
use crate::examine::{Delta, Tree, What};
use crate::lower::{LowerDirectory, LowerEntry};
use crate::manifest::{Body, Node};
use crate::undo::open_entry;
use crate::work::{Stop, Work};

/// Bytes that cost as much to compare and write back as one entry costs to put back.
const BYTES_PER_ENTRY: u64 = 64 * 1024;

/// The weight of some differences, in entries to put back; at least `enough` as soon as it is that much.
pub(crate) fn weigh(tree: &Tree, deltas: &[Delta], enough: u64, work: &mut Work<'_>) -> Result<u64, Stop> {
    let mut scale = Scale { enough, weight: 0, work };
    for Delta { path, what } in deltas {
        if scale.full() {
            break;
        }
        match what {
            What::Accessed => {}
            What::Missing => scale.node(tree.node.at(path)),
            What::Altered(status) => scale.add(1 + bytes(status)),
            What::Replaced(status) => {
                scale.node(tree.node.at(path));
                if status.kind == Kind::Directory
                    && let Some(found) = open_entry(&tree.scan, path)?
                {
                    scale.directory(&found, path.len())?;
                }
            }
            What::Added(status) => {
                let (name, parent) = path.split_last().ok_or(Stop::Enough)?;
                let lower = match tree.lower_directory(parent)? {
                    Some(directory) => directory.entry(name)?,
                    None => None,
                };
                match &lower {
                    // All of it has to be copied from the image again.
                    Some(LowerEntry::Directory(below, _)) if status.kind != Kind::Directory => {
                        scale.lower(below, path.len())?;
                    }
                    Some(LowerEntry::Other(_, lower)) => scale.add(1 + bytes(lower) + bytes(status)),
                    Some(LowerEntry::Directory(..)) | None => scale.add(1),
                }
                if status.kind == Kind::Directory
                    && let Some(found) = open_entry(&tree.scan, path)?
                {
                    if let Some(LowerEntry::Directory(below, _)) = &lower
                        && crate::lower::is_opaque(&found)?
                    {
                        scale.lower(below, path.len())?;
                    }
                    scale.directory(&found, path.len())?;
                }
            }
        }
    }
    Ok(scale.weight)
}

struct Scale<'w, 'o> {
    enough: u64,
    weight: u64,
    work: &'w mut Work<'o>,
}

fn bytes(status: &Status) -> u64 {
    if status.kind == Kind::Regular { status.size / BYTES_PER_ENTRY } else { 0 }
}

impl Scale<'_, '_> {
    fn add(&mut self, weight: u64) {
        self.weight = self.weight.saturating_add(weight);
    }

    fn full(&self) -> bool {
        self.weight >= self.enough
    }

    /// An entry of the manifest that has to be created again, with all below it.
    fn node(&mut self, node: Option<&Node>) {
        let Some(node) = node else { return };
        self.add(1 + bytes(&node.status));
        if let Body::Directory { children, .. } = &node.body {
            for child in children.values() {
                if self.full() {
                    return;
                }
                self.node(Some(child));
            }
        }
    }

    /// Everything in a directory of the upper.
    fn directory(&mut self, directory: &std::os::fd::OwnedFd, depth: usize) -> Result<(), Stop> {
        if depth > self.work.options.depth_max {
            // A swap does not care how deep it is.
            self.weight = self.enough;
            return Ok(());
        }
        let Some(names) = at::names_within(directory, self.enough)? else {
            self.weight = self.enough;
            return Ok(());
        };
        for name in names {
            if self.full() {
                return Ok(());
            }
            self.work.examined()?;
            let Some(status) = at::status_at(directory, &name)? else { continue };
            self.add(1 + bytes(&status));
            if status.kind == Kind::Directory {
                self.directory(&at::directory_at(directory, &name)?, depth + 1)?;
            }
        }
        Ok(())
    }

    /// Everything the layers hold in a directory.
    fn lower(&mut self, directory: &LowerDirectory, depth: usize) -> Result<(), Stop> {
        self.work.descend(depth)?;
        for entry in directory.entries()?.into_values() {
            if self.full() {
                return Ok(());
            }
            self.work.examined()?;
            match entry {
                LowerEntry::Directory(below, _) => {
                    self.add(1);
                    self.lower(&below, depth + 1)?;
                }
                LowerEntry::Other(_, status) => self.add(1 + bytes(&status)),
            }
        }
        Ok(())
    }
}
