//! The pipes that a container's output leaves through.

use super::super::sys;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::thread;
use std::time::{Duration, Instant};

/// How long the pipes may take to be read empty. The shim does nothing but read them, so more than a moment means
/// that the engine no longer takes what it gives.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);

/// A random line that separates the output of two requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::container) struct Barrier(String);

impl Barrier {
    /// Unguessable: a request that knew the next one could hide the output before it.
    pub(in crate::container) fn random() -> Self {
        Self(format!("rewind-barrier-{:032x}", rand::random::<u128>()))
    }

    /// What is looked for in the log. It needs no escapes in JSON.
    pub(super) fn token(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// A line end *before* the barrier: the copier cuts lines of 16 KB in two, and a request that left a line just so
/// long could have the barrier cut.
fn barrier_line(barrier: &Barrier) -> Vec<u8> {
    [b"\n", barrier.token(), b"\n"].concat()
}

/// No line end before: the token ends the line that the request left open, and the follower takes it off again.
fn mark_line(barrier: &Barrier) -> Vec<u8> {
    [barrier.token(), b"\n"].concat()
}

/// Where the first process of a container writes its output to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::container) struct LogChannel {
    init: Pid,
    pipes: [Pipe; 2],
}

/// One pipe, as it was when the container started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pipe {
    /// Descriptor of the first process: 1 or 2.
    fd: u8,
    device: u64,
    inode: u64,
    /// Capacity in bytes. A request can change it, and the next could see that.
    size: i32,
}

impl LogChannel {
    /// Notes the pipes of a container that has just been started.
    ///
    /// # Errors
    /// When standard output or error are no pipes, or cannot be looked at: then one request's output cannot be
    /// kept apart from the next one's, and the container must not serve two.
    pub(in crate::container) fn of(init: Pid) -> io::Result<Self> {
        Ok(Self { init, pipes: [Pipe::of(init, 1)?, Pipe::of(init, 2)?] })
    }

    /// Begins to clear both pipes: puts a barrier into each, if there is one. Whatever the container's processes
    /// wrote must be in them by now, and the descriptors must be those of the start.
    ///
    /// # Errors
    /// When the pipes are not those of the start, or take no line. The container is then not pristine.
    pub(in crate::container) fn begin(&self, barrier: Option<&Barrier>) -> io::Result<Clearing> {
        let line = barrier.map(barrier_line);
        let deadline = Instant::now() + DRAIN_DEADLINE;
        let mut open = Vec::with_capacity(self.pipes.len());
        for pipe in &self.pipes {
            let mut file = pipe.open(self.init)?;
            if let Some(line) = &line {
                write_whole(&mut file, line, deadline)?;
            }
            open.push((file, pipe.size));
        }
        Ok(Clearing(open))
    }

    /// [Begins](Self::begin) to clear both pipes and [ends](Clearing::end) it.
    ///
    /// # Errors
    /// Those of both.
    pub(in crate::container) fn clear(&self, barrier: Option<&Barrier>) -> io::Result<()> {
        self.begin(barrier)?.end()
    }

    /// Puts a mark into both pipes without waiting, so that a reader of the log knows when it has seen all that was
    /// written before. `false` when that is impossible now.
    pub(in crate::container) fn mark(&self, barrier: &Barrier) -> bool {
        let line = mark_line(barrier);
        self.pipes.iter().all(|pipe| {
            pipe.open(self.init).is_ok_and(|mut file| write_whole(&mut file, &line, Instant::now()).is_ok())
        })
    }
}

/// Pipes that are being read empty, and the sizes they are to have.
#[derive(Debug)]
pub(in crate::container) struct Clearing(Vec<(File, i32)>);

impl Clearing {
    /// Waits until both have been read empty: what is still in a pipe, a request could read by opening its own
    /// standard output.
    ///
    /// # Errors
    /// When they do not empty. The container is then not pristine.
    pub(in crate::container) fn end(self) -> io::Result<()> {
        let deadline = Instant::now() + DRAIN_DEADLINE;
        for (file, size) in &self.0 {
            poll_until(deadline, || match sys::pipe_fill(file)? {
                0 => Ok(Some(())),
                _ => Ok(None),
            })?;
            if pipe_size(file)? != *size {
                fcntl(file, FcntlArg::F_SETPIPE_SZ(*size))?;
            }
        }
        Ok(())
    }
}

impl Pipe {
    fn of(init: Pid, fd: u8) -> io::Result<Self> {
        let file = open_for_writing(init, fd)?;
        let status = fstat(&file)?;
        Ok(Self { fd, device: status.st_dev, inode: status.st_ino, size: pipe_size(&file)? })
    }

    /// A description of our own of the pipe. It is not kept: while it is open the shim would wait for its end.
    fn open(&self, init: Pid) -> io::Result<File> {
        let file = open_for_writing(init, self.fd)?;
        let status = fstat(&file)?;
        if (status.st_dev, status.st_ino) == (self.device, self.inode) {
            Ok(file)
        } else {
            Err(io::Error::other(format!(
                "descriptor {} of process {init} is another file than at the start",
                self.fd
            )))
        }
    }
}

fn open_for_writing(init: Pid, fd: u8) -> io::Result<File> {
    let file = OpenOptions::new()
        .write(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(format!("/proc/{init}/fd/{fd}"))?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file)
    } else {
        Err(io::Error::other(format!("descriptor {fd} of process {init} is not a pipe")))
    }
}

fn pipe_size(file: &File) -> io::Result<i32> {
    Ok(fcntl(file, FcntlArg::F_GETPIPE_SZ)?)
}

/// Writes a line that is short enough to go into a pipe whole or not at all.
fn write_whole(file: &mut File, line: &[u8], deadline: Instant) -> io::Result<()> {
    poll_until(deadline, || match file.write(line) {
        Ok(written) if written == line.len() => Ok(Some(())),
        Ok(written) => Err(io::Error::other(format!("only {written} bytes of a line went into a pipe"))),
        Err(error) if error.raw_os_error() == Some(Errno::EAGAIN as i32) => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(None),
        Err(error) => Err(error),
    })
}

/// Asks again and again, at least once.
fn poll_until(deadline: Instant, mut ask: impl FnMut() -> io::Result<Option<()>>) -> io::Result<()> {
    let mut pause = Duration::from_micros(50);
    loop {
        if ask()?.is_some() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(2));
    }
}

#[cfg(test)]
mod tests {
    use super::{Barrier, LogChannel};
    use nix::unistd::Pid;
    use std::io::Read;
    use std::process::{Child, Command, Stdio};
    use std::thread;

    fn started(script: &str) -> (Child, Pid) {
        let child = Command::new("sh")
            .args(["-c", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sh");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        (child, pid)
    }

    #[test]
    fn a_barrier_goes_through_both_pipes_after_what_was_there() {
        // The shell waits for its standard input to close. It redirects in a process of its own, so that its own
        // descriptors stay what they are.
        let (mut child, pid) = started("printf half; (echo other) >&2; read x");
        let channel = LogChannel::of(pid).expect("channel");
        let mut stderr = child.stderr.take().expect("stderr");
        let mut first = [0_u8; 6];
        stderr.read_exact(&mut first).expect("what the shell wrote");
        let mut stdout = child.stdout.take().expect("stdout");
        let readers =
            [thread::spawn(move || read_all(&mut stdout)), thread::spawn(move || read_all(&mut stderr))];
        let barrier = Barrier::random();
        channel.clear(Some(&barrier)).expect("cleared");
        drop(child.stdin.take());
        child.wait().expect("wait");
        let [out, err] = readers.map(|r| r.join().expect("reader"));
        let token = String::from_utf8(barrier.token().to_vec()).expect("text");
        assert_eq!(out, format!("half\n{token}\n"));
        assert_eq!(err, format!("\n{token}\n"));
    }

    fn read_all(from: &mut impl Read) -> String {
        let mut text = String::new();
        from.read_to_string(&mut text).expect("read");
        text
    }

    #[test]
    fn a_pipe_nobody_reads_is_not_clear() {
        let (mut child, pid) = started("read x");
        let channel = LogChannel::of(pid).expect("channel");
        let error = channel.clear(Some(&Barrier::random())).expect_err("full for ever");
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        drop(child.stdin.take());
        child.wait().expect("wait");
    }

    #[test]
    fn output_to_a_file_has_no_channel() {
        let mut child = Command::new("sleep").arg("1000").stdout(Stdio::null()).spawn().expect("sleep");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("pid"));
        assert!(LogChannel::of(pid).is_err());
        child.kill().expect("kill");
        child.wait().expect("wait");
    }

    #[test]
    fn barriers_differ() {
        assert_ne!(Barrier::random(), Barrier::random());
    }
}
