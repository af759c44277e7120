//! Reads the engine's json-file log of one container, across activations.

use super::super::liveness::Liveness;
use super::channel::{Barrier, LogChannel};
use super::watch::{LogWatch, LogWatches};
use openwhisk_compat::logs::{CollectedLogs, LogCollector, LogDeadlines, LogMode, Progress};
use openwhisk_compat::size::ByteSize;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// Pauses between two looks at a log that has nothing new and cannot be watched. Upstream looks every 5 ms.
const POLL_FIRST: Duration = Duration::from_millis(1);
const POLL_MAX: Duration = Duration::from_millis(5);

/// Most time that [`LogMode::NoWait`] takes, however much there is to read.
const NO_WAIT_TOTAL: Duration = Duration::from_secs(2);

/// How long nothing must come while marks are awaited. Without them what is in the file has to do.
const MARK_DEADLINE: Duration = Duration::from_millis(250);

/// How long nothing must come for what is there to be all, when there is nobody to mark the end.
const UNMARKED_IDLE: Duration = Duration::from_millis(50);

/// How much of the file is read at once, at least.
const CHUNK: usize = 16 * 1024;

/// Nothing came for this long: perhaps the engine writes into another file by now.
const ROTATION_CHECK: Duration = Duration::from_millis(5);

/// What to collect for one activation (contract 5.8).
#[derive(Debug, Clone, Copy)]
pub struct LogRequest {
    /// The action's log limit; not 0.
    pub limit: ByteSize,
    /// Whether the runtime marks the end.
    pub mode: LogMode,
    /// How long to wait for it.
    pub deadlines: LogDeadlines,
    /// Whether the activation's response is a developer error.
    pub developer_error: bool,
}

/// One container's log, and how far it has been read.
#[derive(Debug)]
pub(in crate::container) struct LogFollower {
    path: PathBuf,
    file: Option<File>,
    /// Where the output of the next activation begins, at a line's beginning.
    offset: u64,
    /// Bytes read from `offset` on that have not been looked at.
    ahead: Ahead,
    /// Tells when there is more; `None`: nobody does.
    watch: Option<LogWatch>,
    /// Set after a rewind: what comes before it is dropped.
    barrier: Option<Expected>,
}

/// What was read and not yet used, in front of room for the next read. (A vector that grew and shrank for each
/// read would have its room filled with zeros each time.)
#[derive(Debug, Default)]
struct Ahead {
    bytes: Vec<u8>,
    filled: usize,
}

impl Ahead {
    fn unused(&self) -> &[u8] {
        &self.bytes[..self.filled]
    }

    /// At least [`CHUNK`] bytes.
    fn room(&mut self) -> &mut [u8] {
        if self.bytes.len() - self.filled < CHUNK {
            self.bytes.resize(self.filled + CHUNK, 0);
        }
        &mut self.bytes[self.filled..]
    }

    fn use_up(&mut self, count: usize) {
        self.bytes.copy_within(count..self.filled, 0);
        self.filled -= count;
        if self.filled == 0 && self.bytes.len() > 8 * CHUNK {
            // A long line went through. They are rare.
            self.bytes = Vec::new();
        }
    }

    fn clear(&mut self) {
        self.filled = 0;
    }
}

/// A token that is to come on both streams.
#[derive(Debug)]
struct Expected {
    barrier: Barrier,
    /// Whether it was seen on standard output and on standard error.
    seen: [bool; 2],
}

impl Expected {
    const fn new(barrier: Barrier) -> Self {
        Self { barrier, seen: [false; 2] }
    }
}

impl LogFollower {
    pub(in crate::container) fn new(path: PathBuf, watches: Option<Arc<LogWatches>>) -> Self {
        let watch = watches.map(|all| LogWatch::new(all, &path));
        Self { path, file: None, offset: 0, ahead: Ahead::default(), watch, barrier: None }
    }

    /// From now on, drops everything up to and including `barrier`, on each stream.
    pub(in crate::container) fn expect_barrier(&mut self, barrier: Barrier) {
        // An older barrier that has not come by yet comes by before this one, and is dropped with the rest.
        self.barrier = Some(Expected::new(barrier));
    }

    /// Collects the output of one activation. It takes at most `request.deadlines.total`.
    pub(in crate::container) async fn collect(
        &mut self,
        request: &LogRequest,
        channel: Option<&LogChannel>,
        liveness: &Liveness,
    ) -> CollectedLogs {
        let mut collector = LogCollector::new(request.limit, request.mode);
        if let Some(watch) = &self.watch {
            watch.begin();
        }
        let result = match request.mode {
            LogMode::Wait => self.wait_for_end(&mut collector, request, liveness).await,
            LogMode::NoWait => self.take_what_is_there(&mut collector, request, channel, liveness).await,
        };
        if let Some(watch) = &self.watch {
            watch.end();
        }
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "cannot read a container's log");
            collector.time_out();
        }
        collector.finish(SystemTime::now(), request.developer_error)
    }

    async fn wait_for_end(
        &mut self,
        collector: &mut LogCollector,
        request: &LogRequest,
        liveness: &Liveness,
    ) -> io::Result<()> {
        let end = Instant::now() + request.deadlines.total;
        let mut idle_end = Instant::now() + request.deadlines.idle;
        let mut pauses = Pauses::new();
        // After the container's death the engine still writes what is in the pipes; one more idle time is enough
        // for that, as for everything else.
        let mut was_alive = true;
        loop {
            if self.advance(collector, request, None)? == Progress::Done {
                return Ok(());
            }
            let more = self.read_more(&pauses)?;
            let now = Instant::now();
            if more {
                (idle_end, pauses) = (now + request.deadlines.idle, Pauses::new());
                if now < end {
                    continue;
                }
            }
            if now >= end || now >= idle_end {
                collector.time_out();
                return Ok(());
            }
            if was_alive && !liveness.is_alive() {
                was_alive = false;
                idle_end = idle_end.min(now + MARK_DEADLINE);
            }
            pauses.pause(self.watch.as_ref()).await;
        }
    }

    /// Marks both streams and reads up to the marks: what the action wrote before it answered is before them. When
    /// the container is gone, or the marks do not come, what is in the file is all there is.
    async fn take_what_is_there(
        &mut self,
        collector: &mut LogCollector,
        request: &LogRequest,
        channel: Option<&LogChannel>,
        liveness: &Liveness,
    ) -> io::Result<()> {
        let barrier = Barrier::random();
        let marked = channel.is_some_and(|channel| liveness.is_alive() && channel.mark(&barrier));
        let mut mark = Expected::new(barrier);
        let end = Instant::now() + NO_WAIT_TOTAL.min(request.deadlines.total);
        // Without marks: until nothing has come for a moment. A dead container's last words pass through shim and
        // engine too.
        let patience = if marked { MARK_DEADLINE } else { UNMARKED_IDLE };
        let mut idle_end = Instant::now() + patience;
        let mut pauses = Pauses::new();
        loop {
            if self.advance(collector, request, Some(&mut mark))? == Progress::Done || mark.seen == [true; 2]
            {
                return Ok(());
            }
            let more = self.read_more(&pauses)?;
            let now = Instant::now();
            if more {
                idle_end = now + patience;
                if now < end {
                    continue;
                }
                self.advance(collector, request, Some(&mut mark))?;
                return Ok(());
            }
            if now >= idle_end.min(end) {
                return Ok(());
            }
            pauses.pause(self.watch.as_ref()).await;
        }
    }

    /// Hands whole lines to the collector until it has enough or there are no more.
    fn advance(
        &mut self,
        collector: &mut LogCollector,
        request: &LogRequest,
        mut mark: Option<&mut Expected>,
    ) -> io::Result<Progress> {
        let mut start = 0;
        let mut progress = Progress::More;
        while progress == Progress::More
            && let Some(length) = self.ahead.unused()[start..].iter().position(|b| *b == b'\n')
        {
            let line = &self.ahead.unused()[start..=start + length];
            start += line.len();
            match classify(line, &mut self.barrier, mark.as_deref_mut()) {
                Line::Output => progress = collector.feed(line),
                Line::Foreign => {}
                Line::Rest(rest) => progress = collector.feed(&rest),
            }
            if mark.as_ref().is_some_and(|mark| mark.seen == [true; 2]) {
                break;
            }
        }
        self.ahead.use_up(start);
        self.offset += start as u64;
        if progress == Progress::More && self.ahead.filled as u64 > request.limit.bytes() {
            // A line longer than may be collected: the collector says what that means.
            progress = collector.feed(self.ahead.unused());
        }
        Ok(progress)
    }

    /// Reads the next piece of the file, if there is one.
    fn read_more(&mut self, pauses: &Pauses) -> io::Result<bool> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&self.path)?),
        };
        let from = self.offset + self.ahead.filled as u64;
        let read = file.read_at(self.ahead.room(), from)?;
        self.ahead.filled += read;
        match read {
            0 if pauses.since.elapsed() >= ROTATION_CHECK => self.follow_rotation(),
            0 => Ok(false),
            _ => Ok(true),
        }
    }

    /// At the end of the file: when the engine has begun a new one (`max-size`), goes on there.
    fn follow_rotation(&mut self) -> io::Result<bool> {
        let (Some(file), Ok(now)) = (&self.file, std::fs::metadata(&self.path)) else { return Ok(false) };
        let open = file.metadata()?;
        if (open.dev(), open.ino()) == (now.dev(), now.ino()) {
            return Ok(false);
        }
        // The old file has been read to its end, and a line is never split over two.
        self.file = Some(File::open(&self.path)?);
        self.offset = 0;
        self.ahead.clear();
        if let Some(watch) = &self.watch {
            watch.replaced();
        }
        Ok(true)
    }
}

/// The pauses since something came.
struct Pauses {
    since: Instant,
    /// If there is nobody to wake us.
    next: Duration,
}

impl Pauses {
    fn new() -> Self {
        Self { since: Instant::now(), next: POLL_FIRST }
    }

    async fn pause(&mut self, watch: Option<&LogWatch>) {
        if let Some(watch) = watch
            && watch.grown().await
        {
            return;
        }
        tokio::time::sleep(self.next).await;
        self.next = (self.next * 2).min(POLL_MAX);
    }
}

enum Line {
    /// Of this activation.
    Output,
    /// Of an earlier one, or ours.
    Foreign,
    /// Of this activation, with our mark taken off.
    Rest(Vec<u8>),
}

fn classify(line: &[u8], barrier: &mut Option<Expected>, mark: Option<&mut Expected>) -> Line {
    if let Some(expected) = barrier {
        let stream = stream_of(line);
        if find(line, expected.barrier.token()).is_some() {
            expected.seen[stream] = true;
            if expected.seen == [true; 2] {
                *barrier = None;
            }
            return Line::Foreign;
        }
        if !expected.seen[stream] {
            return Line::Foreign;
        }
    }
    if let Some(mark) = mark {
        let token = mark.barrier.token();
        if let Some(at) = find(line, token) {
            let rest = [&line[..at], &line[at + token.len()..]].concat();
            mark.seen[stream_of(line)] = true;
            return if rest.starts_with(br#"{"log":"\n""#) { Line::Foreign } else { Line::Rest(rest) };
        }
    }
    Line::Output
}

/// 0 for standard output, 1 for standard error. What is looked for cannot be in the text, where a quotation mark
/// has a backslash before it.
fn stream_of(line: &[u8]) -> usize {
    const STDERR: &[u8] = br#","stream":"stderr","#;
    usize::from(find(line, STDERR).is_some())
}

fn find(text: &[u8], what: &[u8]) -> Option<usize> {
    text.windows(what.len()).position(|window| window == what)
}

/// Where the engine keeps the log of a container: the path it names, or, when that is not readable from here,
/// below the working directory, as upstream's deployments mount it.
pub(in crate::container) fn log_path(named: Option<&Path>, engine_id: &str) -> PathBuf {
    let mounted = || PathBuf::from(format!("containers/{engine_id}/{engine_id}-json.log"));
    match named {
        Some(path) if File::open(path).is_ok() => path.to_owned(),
        _ => mounted(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;
    use openwhisk_compat::logs::LogFailure;
    use std::io::Write;

    const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

    fn line(stream: &str, text: &str) -> String {
        let text = serde_json::to_string(text).expect("text");
        format!("{{\"log\":{text},\"stream\":\"{stream}\",\"time\":\"2026-01-02T03:04:05.000000006Z\"}}\n")
    }

    fn sentinels() -> String {
        let text = format!("{SENTINEL}\n");
        line("stdout", &text) + &line("stderr", &text)
    }

    fn token(barrier: &Barrier) -> String {
        String::from_utf8(barrier.token().to_vec()).expect("text")
    }

    struct Log {
        file: File,
        path: PathBuf,
        follower: LogFollower,
        liveness: Liveness,
        _directory: tempfile::TempDir,
    }

    impl Log {
        fn new() -> Self {
            let directory = tempfile::tempdir().expect("directory");
            let path = directory.path().join("a-json.log");
            let file = File::create(&path).expect("log");
            let watches = LogWatches::start().expect("inotify");
            let follower = LogFollower::new(path.clone(), Some(watches));
            let liveness = Liveness::of(Pid::this()).expect("our own pidfd");
            Self { file, path, follower, liveness, _directory: directory }
        }

        fn write(&mut self, text: &str) {
            self.file.write_all(text.as_bytes()).expect("write");
        }

        async fn collect(&mut self, mode: LogMode) -> (Vec<String>, Option<LogFailure>) {
            let idle = Duration::from_millis(50);
            let request = LogRequest {
                limit: ByteSize::from_mb(1),
                mode,
                deadlines: LogDeadlines { idle, total: Duration::from_secs(10) },
                developer_error: false,
            };
            let logs = self.follower.collect(&request, None, &self.liveness).await;
            let texts = logs.lines.into_iter().map(|line| format!("{}: {}", line.stream, line.text));
            (texts.filter(|text| !text.contains("There was an issue")).collect(), logs.failure)
        }
    }

    #[tokio::test]
    async fn an_activation_begins_where_the_last_one_ended() {
        let mut log = Log::new();
        log.write(&(line("stdout", "a\n") + &sentinels() + &line("stderr", "b\n") + &sentinels()));
        assert_eq!(log.collect(LogMode::Wait).await, (vec!["stdout: a".to_owned()], None));
        assert_eq!(log.collect(LogMode::Wait).await, (vec!["stderr: b".to_owned()], None));
        // A line that is only half there is not lost, nor taken twice.
        let whole = line("stdout", "c\n") + &sentinels();
        let (first, rest) = whole.split_at(20);
        log.write(first);
        assert_eq!(log.collect(LogMode::NoWait).await, (vec![], None));
        log.write(rest);
        assert_eq!(log.collect(LogMode::Wait).await, (vec!["stdout: c".to_owned()], None));
    }

    #[tokio::test]
    async fn what_comes_before_a_streams_barrier_is_dropped_on_that_stream() {
        let mut log = Log::new();
        let barrier = Barrier::random();
        log.follower.expect_barrier(barrier.clone());
        let barred = format!("{}\n", token(&barrier));
        log.write(&line("stdout", "old half\n"));
        log.write(&line("stdout", &barred));
        // Standard output is new by now, standard error is not.
        log.write(&line("stdout", "new\n"));
        log.write(&line("stderr", "old\n"));
        // Text that looks like a stream's name is text.
        log.write(&line("stdout", "\",\"stream\":\"stderr\",\n"));
        log.write(&line("stderr", &barred));
        log.write(&line("stderr", "new too\n"));
        log.write(&sentinels());
        let (lines, failure) = log.collect(LogMode::Wait).await;
        assert_eq!(lines, ["stdout: new", "stdout: \",\"stream\":\"stderr\",", "stderr: new too"]);
        assert_eq!(failure, None);
    }

    #[tokio::test]
    async fn a_barrier_that_does_not_come_hides_everything() {
        let mut log = Log::new();
        log.follower.expect_barrier(Barrier::random());
        log.write(&(line("stdout", "somebody's\n") + &sentinels()));
        assert_eq!(log.collect(LogMode::Wait).await, (vec![], Some(LogFailure::Incomplete)));
    }

    #[test]
    fn a_mark_is_taken_off_the_line_it_ends() {
        let barrier = Barrier::random();
        let mut mark = Expected::new(barrier.clone());
        let marked = line("stderr", &format!("half a line{}\n", token(&barrier)));
        let Line::Rest(rest) = classify(marked.as_bytes(), &mut None, Some(&mut mark)) else {
            panic!("no rest")
        };
        assert_eq!(String::from_utf8(rest).expect("text"), line("stderr", "half a line\n"));
        assert_eq!(mark.seen, [false, true]);
        let alone = line("stdout", &format!("{}\n", token(&barrier)));
        assert!(matches!(classify(alone.as_bytes(), &mut None, Some(&mut mark)), Line::Foreign));
        assert_eq!(mark.seen, [true, true]);
    }

    #[tokio::test]
    async fn a_new_file_is_begun_at_its_beginning() {
        let mut log = Log::new();
        log.write(&(line("stdout", "a\n") + &sentinels()));
        assert_eq!(log.collect(LogMode::Wait).await.0, ["stdout: a"]);
        log.write(&line("stdout", "b\n"));
        std::fs::rename(&log.path, log.path.with_extension("1")).expect("rename");
        log.file = File::create(&log.path).expect("log");
        log.write(&(line("stdout", "c\n") + &sentinels()));
        assert_eq!(
            log.collect(LogMode::Wait).await,
            (vec!["stdout: b".to_owned(), "stdout: c".to_owned()], None)
        );
    }

    #[tokio::test]
    async fn a_log_that_is_not_readable_is_looked_for_where_deployments_mount_it() {
        let mut log = Log::new();
        log.write("");
        assert_eq!(log_path(Some(&log.path), "abc"), log.path);
        let mounted = Path::new("containers/abc/abc-json.log");
        assert_eq!(log_path(Some(Path::new("/nowhere/x.log")), "abc"), mounted);
        assert_eq!(log_path(None, "abc"), mounted);
    }
}
