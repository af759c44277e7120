//! The image layers below the upper, merged by overlay's rules.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use crate::FilesReason;
use crate::at::{self, Kind, Status};
use crate::work::Stop;

/// One directory as the layers together show it: the directories that merge, topmost first.
#[derive(Debug, Clone)]
pub(crate) struct LowerDirectory {
    parts: Vec<Arc<OwnedFd>>,
}

/// What the layers show under a name.
#[derive(Debug)]
pub(crate) enum LowerEntry {
    /// A directory, with the status of its topmost part.
    Directory(LowerDirectory, Status),
    /// Anything else, with the descriptor that names it.
    Other(OwnedFd, Status),
}

impl LowerDirectory {
    /// The root of all layers.
    pub(crate) fn root(layers: &[OwnedFd]) -> io::Result<Self> {
        let parts =
            layers.iter().map(|layer| at::reference(layer).map(Arc::new)).collect::<io::Result<_>>()?;
        Ok(Self { parts })
    }

    /// The part whose mode, owner and attributes the container sees.
    pub(crate) fn top(&self) -> Option<&OwnedFd> {
        self.parts.first().map(|part| &**part)
    }

    /// What the layers show under a name.
    pub(crate) fn entry(&self, name: &OsStr) -> Result<Option<LowerEntry>, Stop> {
        let mut parts: Vec<Arc<OwnedFd>> = Vec::new();
        let mut top = None;
        for part in &self.parts {
            let Some(status) = at::status_at(&**part, name)? else { continue };
            if status.is_whiteout() {
                break;
            }
            let object = at::name_at(&**part, name)?;
            if status.kind != Kind::Directory {
                if parts.is_empty() {
                    if at::overlay_attribute(&object, "metacopy")?.is_some() {
                        return Err(unfollowed("a layer holds a file without contents"));
                    }
                    return Ok(Some(LowerEntry::Other(object, status)));
                }
                break;
            }
            if at::overlay_attribute(&object, "redirect")?.is_some() {
                return Err(unfollowed("a layer holds a redirected directory"));
            }
            // Beneath an opaque directory nothing shows through.
            let opaque = is_opaque(&object)?;
            top.get_or_insert(status);
            parts.push(Arc::new(object));
            if opaque {
                break;
            }
        }
        Ok(top.map(|status| LowerEntry::Directory(Self { parts }, status)))
    }

    /// Everything the layers show in this directory.
    pub(crate) fn entries(&self) -> Result<BTreeMap<OsString, LowerEntry>, Stop> {
        let mut entries = BTreeMap::new();
        for part in &self.parts {
            for name in at::names(&**part)? {
                if !entries.contains_key(&name)
                    && let Some(entry) = self.entry(&name)?
                {
                    entries.insert(name, entry);
                }
            }
        }
        Ok(entries)
    }
}

/// Whether a directory of a layer hides those below it.
pub(crate) fn is_opaque(directory: impl AsFd) -> io::Result<bool> {
    Ok(at::overlay_attribute(directory, "opaque")?.is_some_and(|value| value == b"y"))
}

fn unfollowed(detail: &'static str) -> Stop {
    Stop::Reason(FilesReason::LowerLayer, detail)
}
