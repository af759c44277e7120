//! The files behind private mappings.
//!
//! A clean page of a private file mapping is the file's own page: whoever changes the file changes the
//! memory of everybody who maps it. The change shows in the file's times, which cannot be set back without
//! changing the change time itself.

use crate::proc::Mapping;
use crate::reason::{OrQuarantine, Quarantine, Reason};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

/// When a file was changed last: seconds and nanoseconds of ctime and mtime, and its size.
type Stamp = (i64, i64, i64, i64, i64);

/// The mapped files of a process.
#[derive(Debug)]
pub(crate) struct Backing {
    files: Vec<(OwnedFd, Stamp, String)>,
}

impl Backing {
    pub(crate) fn record(pid: i32, mappings: &[Mapping]) -> Result<Backing, Quarantine> {
        let mut seen = BTreeSet::new();
        let mut files = Vec::new();
        for mapping in mappings.iter().filter(|m| m.inode != 0) {
            if !seen.insert((mapping.device, mapping.inode)) {
                continue;
            }
            // The list joins neighbours; the link's name is that of the first of them.
            let Some(link) = link(pid, mapping)? else { continue };
            let file = open(link.as_str(), OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty())
                .or_quarantine(Reason::Unreadable, || link.clone())?;
            let stamp = stamp(&file)?;
            files.push((file, stamp, mapping.name.clone()));
        }
        Ok(Backing { files })
    }

    /// Refuses any changed file. Before the caller's files are put back.
    pub(crate) fn check(&self, pid: i32) -> Result<(), Quarantine> {
        for (file, was, name) in &self.files {
            if stamp(file)? != *was {
                let detail = format!("{name}, mapped by process {pid}, was changed");
                return Err(Quarantine::new(Reason::FileMappingReplaced, detail));
            }
        }
        Ok(())
    }

    /// Takes the files as they are now: the caller has put them back.
    pub(crate) fn accept(&mut self) -> Result<(), Quarantine> {
        for (file, was, _) in &mut self.files {
            *was = stamp(file)?;
        }
        Ok(())
    }
}

fn stamp(file: &OwnedFd) -> Result<Stamp, Quarantine> {
    let stat = fstat(file).or_quarantine(Reason::Unreadable, || "a mapped file".to_owned())?;
    Ok((stat.st_ctime, stat.st_ctime_nsec, stat.st_mtime, stat.st_mtime_nsec, stat.st_size))
}

/// The link to the file of a mapping, by the exact range that the kernel knows.
fn link(pid: i32, mapping: &Mapping) -> Result<Option<String>, Quarantine> {
    let directory = format!("/proc/{pid}/map_files");
    let head = format!("{:x}-", mapping.start);
    let entries = std::fs::read_dir(&directory).or_quarantine(Reason::Unreadable, || directory.clone())?;
    for entry in entries {
        let entry = entry.or_quarantine(Reason::Unreadable, || directory.clone())?;
        if entry.file_name().to_string_lossy().starts_with(&head) {
            return Ok(Some(format!("{directory}/{}", entry.file_name().to_string_lossy())));
        }
    }
    Err(Quarantine::new(Reason::Unreadable, format!("no link for the mapping at {:#x}", mapping.start)))
}
