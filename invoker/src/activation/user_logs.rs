//! The file log store (contract 5.8): what actions put out goes into files besides the records, for a
//! collector of logs to pick up.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::record::now_ms;

/// A new file is begun when one has this many bytes (upstream's size).
const FILE_BYTES_MAX: u64 = 100 << 20;
/// Activations whose lines wait for the disk. Beyond that lines are dropped, and it is said.
const WAITING_MAX: usize = 256;

/// Writes the lines of activations, in a thread of its own.
#[derive(Debug)]
pub struct UserLogs {
    queue: SyncSender<Vec<u8>>,
}

impl UserLogs {
    /// Files will be made in `directory`, the first when there is something to write.
    ///
    /// # Errors
    /// The thread cannot be started.
    pub fn start(directory: PathBuf) -> io::Result<Self> {
        let (queue, inbox) = sync_channel(WAITING_MAX);
        std::thread::Builder::new()
            .name("user-logs".to_owned())
            .spawn(move || write_all(&directory, &inbox))?;
        Ok(Self { queue })
    }

    /// Takes the lines of one activation. Does not wait for the disk.
    pub fn write(&self, lines: Vec<u8>) {
        if self.queue.try_send(lines).is_err() {
            tracing::warn!("the file of user logs cannot keep up, lines of an activation are left out of it");
        }
    }
}

fn write_all(directory: &Path, inbox: &Receiver<Vec<u8>>) {
    let mut current: Option<(File, u64)> = None;
    while let Ok(lines) = inbox.recv() {
        let written = next_file(directory, &mut current).and_then(|(file, bytes)| {
            file.write_all(&lines)?;
            *bytes += lines.len() as u64;
            Ok(())
        });
        if let Err(error) = written {
            // The next activation tries again with a new file: the disk may have room by then.
            current = None;
            tracing::warn!(directory = %directory.display(), %error, "user logs are not written");
        }
    }
}

/// The file to write to: the current one, or a new one when that is full.
fn next_file<'a>(directory: &Path, current: &'a mut Option<(File, u64)>) -> io::Result<&'a mut (File, u64)> {
    if current.as_ref().is_some_and(|(_, bytes)| *bytes >= FILE_BYTES_MAX) {
        *current = None;
    }
    match current {
        Some(file) => Ok(file),
        none => {
            std::fs::create_dir_all(directory)?;
            let path = directory.join(format!("userlogs-{}.log", now_ms()));
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            // Upstream's mode: the collector is usually another user.
            file.set_permissions(Permissions::from_mode(0o666))?;
            let bytes = file.metadata()?.len();
            Ok(none.insert((file, bytes)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) -> Vec<(String, u32)> {
        let entries =
            std::fs::read_dir(directory).expect("a directory").map(|entry| entry.expect("an entry").path());
        entries
            .map(|path| {
                let mode = path.metadata().expect("a file").permissions().mode() & 0o777;
                (std::fs::read_to_string(path).expect("text"), mode)
            })
            .collect()
    }

    #[test]
    fn lines_are_appended_to_one_file() {
        let directory = tempfile::tempdir().expect("a directory");
        let (queue, inbox) = sync_channel(4);
        for lines in ["a\n", "b\nc\n"] {
            queue.send(lines.as_bytes().to_vec()).expect("room");
        }
        drop(queue);
        write_all(&directory.path().join("logs"), &inbox);
        assert_eq!(files(&directory.path().join("logs")), [("a\nb\nc\n".to_owned(), 0o666)]);
    }

    #[test]
    fn a_full_file_is_left() {
        let directory = tempfile::tempdir().expect("a directory");
        let full = File::create(directory.path().join("full")).expect("a file");
        let mut current = Some((full, FILE_BYTES_MAX));
        let (file, bytes) = next_file(directory.path(), &mut current).expect("a new file");
        assert_eq!(*bytes, 0);
        file.write_all(b"new").expect("written");
        let mut texts: Vec<String> = files(directory.path()).into_iter().map(|(text, _)| text).collect();
        texts.sort();
        assert_eq!(texts, ["", "new"]);
    }

    #[test]
    fn a_directory_that_cannot_be_made_loses_lines_and_nothing_else() {
        let directory = tempfile::tempdir().expect("a directory");
        let blocked = directory.path().join("file");
        std::fs::write(&blocked, "").expect("a file");
        let (queue, inbox) = sync_channel(4);
        queue.send(b"a\n".to_vec()).expect("room");
        drop(queue);
        write_all(&blocked.join("logs"), &inbox);
        assert_eq!(std::fs::read_to_string(&blocked).expect("untouched"), "");
    }
}
