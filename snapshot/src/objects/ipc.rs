//! POSIX message queues of the container's IPC namespace. (System V objects are counted by the batch of
//! [`attributes`](super::attributes), since those calls answer for the namespace of the caller.)

use crate::reason::{OrQuarantine, Quarantine, Reason};
use crate::sys::namespace;
use nix::dir::Dir;
use nix::fcntl::OFlag;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::fs::File;
use std::os::fd::OwnedFd;

/// The queues of one IPC namespace, as a directory of our own.
#[derive(Debug)]
pub(crate) struct MessageQueues {
    /// Absent if this kernel has no message queues or we may not look: then nobody in the container, which has
    /// fewer rights, was shown to have none; see [`MessageQueues::record`].
    directory: OwnedFd,
}

impl MessageQueues {
    /// Looks at the namespace of process `pid`. Refused if there are queues already: their content is not
    /// recorded. `None` if the kernel has no message queues at all.
    pub(crate) fn record(pid: i32) -> Result<Option<MessageQueues>, Quarantine> {
        let path = format!("/proc/{pid}/ns/ipc");
        let ipc = File::open(&path).or_quarantine(Reason::Unreadable, || path.clone())?;
        let directory = match namespace::message_queues(&ipc) {
            Ok(directory) => directory,
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => {
                return Err(Quarantine::because(
                    Reason::Unreadable,
                    format!("message queues of {path}"),
                    error,
                ));
            }
        };
        let queues = MessageQueues { directory };
        match queues.names()?.as_slice() {
            [] => Ok(Some(queues)),
            names => Err(Quarantine::new(
                Reason::MessageQueue,
                format!("{} queues at the checkpoint", names.len()),
            )),
        }
    }

    /// Removes every queue; returns how many there were.
    pub(crate) fn restore(&self) -> Result<u64, Quarantine> {
        let names = self.names()?;
        for name in &names {
            unlinkat(&self.directory, name.as_c_str(), UnlinkatFlags::NoRemoveDir)
                .or_quarantine(Reason::MessageQueue, || "removing a queue".to_owned())?;
        }
        Ok(names.len() as u64)
    }

    fn names(&self) -> Result<Vec<std::ffi::CString>, Quarantine> {
        let failed = || "listing message queues".to_owned();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let mut dir = Dir::openat(&self.directory, ".", flags, Mode::empty())
            .or_quarantine(Reason::Unreadable, failed)?;
        let mut names = Vec::new();
        for entry in dir.iter() {
            let entry = entry.or_quarantine(Reason::Unreadable, failed)?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                names.push(entry.file_name().to_owned());
            }
        }
        Ok(names)
    }
}
