//! The output of an action as log lines of its activation (contract 5.8).
//!
//! [`LogCollector`] is fed the bytes of Docker's json-file log as they appear, and told when waiting has
//! lasted too long. It reads no file and no clock.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

use crate::protocol::SENTINEL;
use crate::size::ByteSize;

const LOG_FAILURE: &str = "There was an issue while collecting your logs. Data might be missing.";
const DEVELOPER_ERROR: &str = "The action did not initialize or run as expected. Log data might be missing.";

/// How many sentinels end the output of one activation: one per stream.
const SENTINELS: u32 = 2;

/// One line of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// When, as the engine wrote it (RFC 3339, up to nanoseconds).
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// The text, without its line end.
    pub text: String,
}

impl LogLine {
    /// The stored form: time padded to 30 characters, blank, stream, `: `, text.
    pub fn formatted(&self) -> String {
        format!("{:<30} {}: {}", self.time, self.stream, self.text)
    }
}

/// Whether the end of the output is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogMode {
    /// The runtime writes sentinels and the activation is no developer error: wait for two of them.
    Wait,
    /// Take what is there.
    NoWait,
}

/// How long to wait for lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogDeadlines {
    /// Between two lines.
    pub idle: Duration,
    /// In all.
    pub total: Duration,
}

impl LogDeadlines {
    /// For an action with this log limit in MB: 2 s idle, 2 s per MB and at least 10 s in all.
    pub fn for_limit(logs_mb: u32) -> Self {
        let idle = Duration::from_secs(2);
        Self { idle, total: idle * logs_mb.max(5) }
    }
}

/// Whether to go on feeding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// The end has not been seen.
    More,
    /// Nothing more is taken: call [`LogCollector::finish`].
    Done,
}

/// Why collection failed; either way the container must go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFailure {
    /// More bytes than the limit.
    Budget,
    /// A sentinel is missing, waiting took too long, or a line cannot be read.
    Incomplete,
}

/// The log of one activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectedLogs {
    /// Lines, outcome lines included.
    pub lines: Vec<LogLine>,
    /// Set when collection failed.
    pub failure: Option<LogFailure>,
    /// Bytes of the file that were taken: the next activation's log begins that much further on.
    pub consumed: u64,
}

impl CollectedLogs {
    /// The lines as they are stored.
    pub fn formatted(&self) -> Vec<String> {
        self.lines.iter().map(LogLine::formatted).collect()
    }
}

/// Collects the log of one activation.
#[derive(Debug)]
pub struct LogCollector {
    mode: LogMode,
    /// Bytes of raw lines, line ends included, that may be taken.
    limit: u64,
    /// Bytes of raw lines taken so far; at most `limit` while there is no failure.
    consumed: u64,
    /// The beginning of a raw line whose end has not come. At most `limit` bytes.
    partial: Vec<u8>,
    sentinels: u32,
    /// `None` where a line turned out to be the beginning of a sentinel.
    lines: Vec<Option<LogLine>>,
    /// Per stream, the last line if it did not end in a line end: the engine cuts long lines, perhaps in the
    /// middle of a sentinel.
    cut: [Option<Cut>; 2],
    failure: Option<LogFailure>,
}

/// A line that was cut.
#[derive(Debug)]
struct Cut {
    /// Where it is in `lines`.
    line: usize,
    /// Its last characters, fewer than a sentinel has.
    tail: String,
}

/// A line as the engine writes it.
#[derive(Deserialize)]
struct RawLine {
    log: String,
    stream: String,
    time: String,
}

impl LogCollector {
    /// A collector for an action whose log limit is `limit`. With a limit of 0 there is nothing to collect;
    /// do not create one.
    pub fn new(limit: ByteSize, mode: LogMode) -> Self {
        Self {
            mode,
            limit: limit.bytes(),
            consumed: 0,
            partial: Vec::new(),
            sentinels: 0,
            lines: Vec::new(),
            cut: [None, None],
            failure: None,
        }
    }

    /// Takes the next bytes of the file. Bytes after the end of the activation's output are not taken and
    /// not counted as consumed.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Progress {
        while !self.is_done() {
            let Some(end) = bytes.iter().position(|b| *b == b'\n') else {
                self.keep_partial(bytes);
                break;
            };
            let (line, rest) = bytes.split_at(end);
            bytes = &rest[1..];
            if self.partial.is_empty() {
                self.raw_line(line);
            } else {
                let mut whole = std::mem::take(&mut self.partial);
                whole.extend_from_slice(line);
                self.raw_line(&whole);
            }
        }
        if self.is_done() { Progress::Done } else { Progress::More }
    }

    /// Waiting took too long, idle or in all. What is there is kept.
    pub fn time_out(&mut self) {
        if !self.is_done() {
            self.failure = Some(LogFailure::Incomplete);
        }
    }

    /// Ends collection. `now` is the time of outcome lines; `developer_error` says whether the activation's
    /// response is one.
    pub fn finish(mut self, now: SystemTime, developer_error: bool) -> CollectedLogs {
        let ended = self.sentinels >= SENTINELS;
        let incomplete = (self.mode == LogMode::Wait && !ended) || !self.partial.is_empty();
        if incomplete && self.failure.is_none() {
            self.failure = Some(LogFailure::Incomplete);
        }
        let time = rfc3339(now);
        let mut lines: Vec<LogLine> = self.lines.into_iter().flatten().collect();
        let mut outcome = |text: String| {
            lines.push(LogLine { time: time.clone(), stream: "stderr".to_owned(), text });
        };
        match self.failure {
            Some(LogFailure::Budget) => outcome(format!(
                "Logs were truncated because the total bytes size exceeds the limit of {} bytes.",
                self.limit
            )),
            Some(LogFailure::Incomplete) => outcome(LOG_FAILURE.to_owned()),
            None => {}
        }
        if developer_error {
            outcome(DEVELOPER_ERROR.to_owned());
        }
        CollectedLogs { lines, failure: self.failure, consumed: self.consumed }
    }

    /// Bytes of the file taken so far.
    pub fn consumed(&self) -> u64 {
        self.consumed
    }

    fn is_done(&self) -> bool {
        self.failure.is_some() || self.sentinels >= SENTINELS
    }

    /// Keeps the beginning of a line, unless the line is too long to be taken whatever follows. One that by
    /// itself exceeds the limit cannot be told from a broken file, as upstream has it.
    fn keep_partial(&mut self, bytes: &[u8]) {
        if self.partial.len().saturating_add(bytes.len()) as u64 > self.limit {
            self.failure = Some(LogFailure::Incomplete);
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(bytes);
        }
    }

    fn raw_line(&mut self, raw: &[u8]) {
        if raw.len() as u64 > self.limit {
            self.failure = Some(LogFailure::Incomplete);
            return;
        }
        let consumed = self.consumed + raw.len() as u64 + 1;
        if consumed > self.limit {
            self.failure = Some(LogFailure::Budget);
            return;
        }
        self.consumed = consumed;
        match serde_json::from_slice(raw) {
            Ok(line) => self.line(line),
            Err(_) => self.failure = Some(LogFailure::Incomplete),
        }
    }

    fn line(&mut self, RawLine { log, stream, time }: RawLine) {
        let slot = usize::from(stream == "stderr");
        let ended = log.ends_with('\n');
        let before = self.cut[slot].take();
        if let Some(cut) = before
            && let Some(kept) = sentinel_across(&cut.tail, &log)
        {
            // The line before ends in the first part of a sentinel, this one begins with the rest.
            self.sentinels += 1;
            let drop = cut.tail.len() - kept;
            if let Some(line) = &mut self.lines[cut.line] {
                line.text.truncate(line.text.len() - drop);
                if line.text.is_empty() {
                    self.lines[cut.line] = None;
                }
            }
            return;
        }
        let text = strip_line_end(&log);
        if let Some(at) = text.find(SENTINEL) {
            self.sentinels += 1;
            // Output without a final line end stands before the sentinel on the same line; it is the
            // activation's. What stands after it is not.
            if at > 0 {
                self.lines.push(Some(LogLine { time, stream, text: text[..at].to_owned() }));
            }
            return;
        }
        if !ended {
            let mut start = text.len().saturating_sub(SENTINEL.len() - 1);
            while !text.is_char_boundary(start) {
                start += 1;
            }
            self.cut[slot] = Some(Cut { line: self.lines.len(), tail: text[start..].to_owned() });
        }
        self.lines.push(Some(LogLine { time, stream, text: text.to_owned() }));
    }
}

/// Where in `tail` a sentinel begins that ends in `next`.
fn sentinel_across(tail: &str, next: &str) -> Option<usize> {
    (0..tail.len())
        .filter(|at| tail.is_char_boundary(*at))
        .find(|at| SENTINEL.strip_prefix(&tail[*at..]).is_some_and(|rest| next.starts_with(rest)))
}

fn strip_line_end(text: &str) -> &str {
    let text = text.strip_suffix('\n').unwrap_or(text);
    text.strip_suffix('\r').unwrap_or(text)
}

/// `time` in UTC with nanoseconds, as the engine writes times. Before 1970 counts as 1970.
fn rfc3339(time: SystemTime) -> String {
    const SECONDS_PER_DAY: u64 = 86_400;
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let (days, second) = (since.as_secs() / SECONDS_PER_DAY, since.as_secs() % SECONDS_PER_DAY);
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    let nanos = since.subsec_nanos();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nanos:09}Z")
}

/// Year, month and day of a number of days since 1970-01-01, in the Gregorian calendar.
fn civil(days: u64) -> (u64, u64, u64) {
    // Eras of 400 years, counted from 0000-03-01 so that the leap day is the last of its year.
    const DAYS_TO_1970: u64 = 719_468;
    const DAYS_PER_ERA: u64 = 146_097;
    let days = days + DAYS_TO_1970;
    let (era, day_of_era) = (days / DAYS_PER_ERA, days % DAYS_PER_ERA);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    (year, month, day)
}
