//! The output of an action as log lines of its activation (contract 5.8).
//!
//! [`LogCollector`] is fed the bytes of Docker's json-file log as they appear, and told when waiting has
//! lasted too long. It reads no file and no clock.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::entity::ActivationRecord;
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

/// What the file log store writes for one activation: a JSON object per line of output, then the record, each
/// with the names of what it belongs to. `action` is `ns/[pkg/]name`, `namespace_id` the invoking namespace's
/// uuid.
pub fn file_lines(lines: &[LogLine], record: &ActivationRecord, action: &str, namespace_id: &str) -> Vec<u8> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct FileLine<'a> {
        log: String,
        stream: &'a str,
        time: &'a str,
        activation_id: &'a str,
        action: &'a str,
        namespace: &'a str,
        namespace_id: &'a str,
    }
    let mut bytes = Vec::new();
    for LogLine { time, stream, text } in lines {
        let line = FileLine {
            log: format!("{text}\n"),
            stream,
            time,
            activation_id: record.activation_id.as_str(),
            action,
            namespace: &record.namespace,
            namespace_id,
        };
        append(&mut bytes, &line);
    }
    if let Ok(mut record) = serde_json::to_value(record.without_logs()) {
        record["namespaceId"] = Value::from(namespace_id);
        append(&mut bytes, &record);
    }
    bytes
}

fn append(bytes: &mut Vec<u8>, line: &impl Serialize) {
    let before = bytes.len();
    match serde_json::to_writer(&mut *bytes, line) {
        Ok(()) => bytes.push(b'\n'),
        Err(_) => bytes.truncate(before),
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
struct RawLine<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    #[serde(borrow)]
    stream: Cow<'a, str>,
    #[serde(borrow)]
    time: Cow<'a, str>,
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
        let mut lines: Vec<LogLine> = self.lines.into_iter().flatten().collect();
        let mut outcome = |text: String| {
            lines.push(LogLine { time: rfc3339(now), stream: "stderr".to_owned(), text });
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

    fn line(&mut self, RawLine { log, stream, time }: RawLine<'_>) {
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
                self.lines.push(Some(log_line(&time, &stream, &text[..at])));
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
        self.lines.push(Some(log_line(&time, &stream, text)));
    }
}

fn log_line(time: &str, stream: &str, text: &str) -> LogLine {
    LogLine { time: time.to_owned(), stream: stream.to_owned(), text: text.to_owned() }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TIME: &str = "2024-03-27T09:20:00.210123456Z";
    const LIMIT: ByteSize = ByteSize::from_mb(10);

    fn raw(stream: &str, log: &str) -> String {
        format!("{}\n", json!({ "log": log, "stream": stream, "time": TIME }))
    }

    fn sentinel(stream: &str) -> String {
        raw(stream, &format!("{SENTINEL}\n"))
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(1_711_531_200, 5)
    }

    fn collect(limit: ByteSize, mode: LogMode, file: &str) -> CollectedLogs {
        let mut collector = LogCollector::new(limit, mode);
        collector.feed(file.as_bytes());
        collector.finish(now(), false)
    }

    fn texts(logs: &CollectedLogs) -> Vec<&str> {
        logs.lines.iter().map(|line| line.text.as_str()).collect()
    }

    const TRUNCATED: &str = "Logs were truncated because the total bytes size exceeds the limit of ";

    #[test]
    fn lines_have_the_stored_form() {
        let file = raw("stdout", "hello\n") + &sentinel("stdout") + &sentinel("stderr");
        let logs = collect(LIMIT, LogMode::Wait, &file);
        assert_eq!(logs.formatted(), ["2024-03-27T09:20:00.210123456Z stdout: hello"]);
        assert_eq!((logs.failure, logs.consumed), (None, file.len() as u64));
        let short = LogLine {
            time: "2026-11-21T11:01:06.53843376Z".to_owned(),
            stream: "stderr".to_owned(),
            text: "  File".to_owned(),
        };
        assert_eq!(short.formatted(), "2026-11-21T11:01:06.53843376Z  stderr:   File");
    }

    #[test]
    fn line_ends_go_and_everything_else_stays() {
        for (log, text) in [
            ("a\n", "a"),
            ("a\r\n", "a"),
            ("\n", ""),
            ("  a \t\n", "  a \t"),
            ("a", "a"),
            ("ä\u{2028}\n", "ä\u{2028}"),
        ] {
            let logs = collect(LIMIT, LogMode::NoWait, &raw("stdout", log));
            assert_eq!(texts(&logs), [text], "{log:?}");
        }
    }

    #[test]
    fn sentinels_end_the_log_in_any_order() {
        for streams in [["stdout", "stderr"], ["stderr", "stdout"], ["stdout", "stdout"]] {
            let own = raw("stdout", "one\n")
                + &sentinel(streams[0])
                + &raw("stderr", "two\n")
                + &sentinel(streams[1]);
            let next = raw("stdout", "of the next activation\n");
            let mut collector = LogCollector::new(LIMIT, LogMode::Wait);
            assert_eq!(collector.feed((own.clone() + &next).as_bytes()), Progress::Done);
            let logs = collector.finish(now(), false);
            assert_eq!(texts(&logs), ["one", "two"]);
            assert_eq!((logs.failure, logs.consumed), (None, own.len() as u64));
        }
    }

    #[test]
    fn the_offset_carries_over() {
        let first = raw("stdout", "first\n") + &sentinel("stdout") + &sentinel("stderr");
        let second = raw("stdout", "second\n") + &sentinel("stderr") + &sentinel("stdout");
        let file = first + &second;
        let logs = collect(LIMIT, LogMode::Wait, &file);
        let rest = &file[usize::try_from(logs.consumed).expect("an offset")..];
        assert_eq!(texts(&collect(LIMIT, LogMode::Wait, rest)), ["second"]);
    }

    #[test]
    fn text_glued_to_a_sentinel_is_kept() {
        let file = raw("stdout", &format!("no newline{SENTINEL}\n")) + &sentinel("stderr");
        let logs = collect(LIMIT, LogMode::Wait, &file);
        assert_eq!(texts(&logs), ["no newline"]);
        assert_eq!(logs.failure, None);
        let file = raw("stdout", &format!("mine{SENTINEL}not mine\n")) + &sentinel("stderr");
        assert_eq!(texts(&collect(LIMIT, LogMode::Wait, &file)), ["mine"]);
    }

    #[test]
    fn a_sentinel_that_the_engine_cut_is_found() {
        for at in 1..SENTINEL.len() {
            let (head, tail) = SENTINEL.split_at(at);
            let file = raw("stdout", &format!("ünfinished{head}"))
                + &raw("stderr", "between\n")
                + &raw("stdout", &format!("{tail}\n"))
                + &sentinel("stderr");
            let logs = collect(LIMIT, LogMode::Wait, &file);
            assert_eq!((texts(&logs), logs.failure), (vec!["ünfinished", "between"], None), "cut at {at}");
            let file = raw("stderr", head) + &raw("stderr", &format!("{tail}\n")) + &sentinel("stdout");
            let logs = collect(LIMIT, LogMode::Wait, &file);
            assert_eq!((texts(&logs), logs.failure), (vec![], None), "cut at {at}, nothing before");
        }
        // A cut line that is no sentinel stays in its pieces, as upstream stores it.
        let file =
            raw("stdout", "XXX_THE") + &raw("stdout", "_REST\n") + &sentinel("stdout") + &sentinel("stderr");
        assert_eq!(texts(&collect(LIMIT, LogMode::Wait, &file)), ["XXX_THE", "_REST"]);
    }

    #[test]
    fn without_waiting_what_is_there_is_enough() {
        for file in [String::new(), raw("stdout", "a\n"), raw("stdout", "a\n") + &sentinel("stdout")] {
            let logs = collect(LIMIT, LogMode::NoWait, &file);
            assert_eq!((logs.failure, logs.consumed), (None, file.len() as u64), "{file}");
        }
        // Two sentinels end it all the same: what follows is the next activation's.
        let own = sentinel("stdout") + &sentinel("stderr");
        assert_eq!(
            collect(LIMIT, LogMode::NoWait, &(own.clone() + &raw("stdout", "x\n"))).consumed,
            own.len() as u64
        );
    }

    #[test]
    fn missing_sentinels_and_time_outs_fail() {
        const FAILURE: &str = "There was an issue while collecting your logs. Data might be missing.";
        for sentinels in [String::new(), sentinel("stdout")] {
            let file = raw("stdout", "line\n") + &sentinels;
            let mut collector = LogCollector::new(LIMIT, LogMode::Wait);
            assert_eq!(collector.feed(file.as_bytes()), Progress::More);
            collector.time_out();
            assert_eq!(collector.feed(raw("stdout", "late\n").as_bytes()), Progress::Done);
            let logs = collector.finish(now(), false);
            assert_eq!(texts(&logs), ["line", FAILURE]);
            assert_eq!(logs.failure, Some(LogFailure::Incomplete));
            assert_eq!(logs.formatted()[1], format!("2024-03-27T09:20:00.000000005Z stderr: {FAILURE}"));
        }
        // A time-out after the end changes nothing.
        let mut collector = LogCollector::new(LIMIT, LogMode::Wait);
        collector.feed((sentinel("stdout") + &sentinel("stderr")).as_bytes());
        collector.time_out();
        assert_eq!(collector.finish(now(), false).failure, None);
    }

    #[test]
    fn a_developer_error_is_noted_last() {
        let note = "The action did not initialize or run as expected. Log data might be missing.";
        let mut collector = LogCollector::new(LIMIT, LogMode::NoWait);
        collector.feed(raw("stdout", "about to die\n").as_bytes());
        let logs = collector.finish(now(), true);
        assert_eq!((texts(&logs), logs.failure), (vec!["about to die", note], None));
        let mut collector = LogCollector::new(ByteSize::from_bytes(10), LogMode::NoWait);
        collector.feed(raw("stdout", "too long\n").as_bytes());
        assert_eq!(texts(&collector.finish(now(), true)).last(), Some(&note));
    }

    #[test]
    fn the_budget_counts_raw_lines() {
        let line = raw("stdout", "12345\n");
        let bytes = line.len() as u64;
        let file = line.repeat(4);
        for (limit, kept, truncated) in [
            (bytes * 4, 4, false),
            (bytes * 4 - 1, 3, true),
            (bytes * 3, 3, true),
            (bytes + 1, 1, true),
            (bytes, 1, true),
        ] {
            let logs = collect(ByteSize::from_bytes(limit), LogMode::NoWait, &file);
            assert_eq!(logs.failure, truncated.then_some(LogFailure::Budget), "limit {limit}");
            let mut expected = vec!["12345".to_owned(); kept];
            if truncated {
                expected.push(format!("{TRUNCATED}{limit} bytes."));
            }
            assert_eq!(texts(&logs), expected, "limit {limit}");
        }
        // Sentinels count as well.
        let file = line + &sentinel("stdout") + &sentinel("stderr");
        let logs = collect(ByteSize::from_bytes(file.len() as u64 - 1), LogMode::Wait, &file);
        assert_eq!(logs.failure, Some(LogFailure::Budget));
    }

    #[test]
    fn one_line_beyond_the_budget_is_an_issue() {
        let file = raw("stdout", &"x".repeat(2000));
        for fed in [file.as_str(), file.trim_end_matches('\n')] {
            let logs = collect(ByteSize::from_bytes(1000), LogMode::NoWait, fed);
            assert_eq!(logs.failure, Some(LogFailure::Incomplete));
            assert_eq!(logs.lines.len(), 1);
        }
    }

    #[test]
    fn memory_is_bounded_by_the_budget() {
        let mut collector = LogCollector::new(ByteSize::from_bytes(1000), LogMode::Wait);
        for _ in 0..100 {
            collector.feed(&[b'x'; 100]);
            assert!(collector.partial.len() <= 1000);
        }
        assert_eq!(collector.feed(b""), Progress::Done);
    }

    #[test]
    fn an_unreadable_or_unfinished_line_fails() {
        for file in [
            "garbage\n",
            "{\"log\":1}\n",
            "\n",
            "{\"log\":\"a",
            "{\"log\":\"\\ud800\",\"stream\":\"stdout\",\"time\":\"t\"}\n",
        ] {
            let logs = collect(LIMIT, LogMode::NoWait, file);
            assert_eq!(logs.failure, Some(LogFailure::Incomplete), "{file:?}");
        }
    }

    #[test]
    fn the_file_store_names_what_lines_belong_to() {
        let record: ActivationRecord = serde_json::from_value(json!({
            "namespace":"guest","name":"hello","subject":"guest","activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
            "start":1,"end":2,"response":{"statusCode":0},"logs":["kept elsewhere"],"version":"0.0.1",
            "publish":false,"annotations":[],"duration":1
        }))
        .expect("a record");
        let logs = collect(LIMIT, LogMode::NoWait, &raw("stdout", "hello\n"));
        let bytes = file_lines(&logs.lines, &record, "guest/pkg/hello", "uuid");
        let lines: Vec<Value> = std::str::from_utf8(&bytes)
            .expect("UTF-8")
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        let mut expected = serde_json::to_value(record.without_logs()).expect("serialises");
        expected["namespaceId"] = json!("uuid");
        assert_eq!(
            lines,
            [
                json!({"log":"hello\n","stream":"stdout","time":TIME,"activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
                    "action":"guest/pkg/hello","namespace":"guest","namespaceId":"uuid"}),
                expected,
            ]
        );
    }

    #[test]
    fn deadlines_follow_the_limit() {
        let total = |mb| LogDeadlines::for_limit(mb).total.as_secs();
        assert_eq!((total(0), total(1), total(5), total(6), total(10)), (10, 10, 10, 12, 20));
        assert_eq!(LogDeadlines::for_limit(10).idle, Duration::from_secs(2));
    }

    #[test]
    fn dates() {
        let text = |seconds: u64, nanos: u32| rfc3339(SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos));
        assert_eq!(text(0, 0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_399, 1), "2000-02-28T23:59:59.000000001Z");
        assert_eq!(text(951_782_400, 0), "2000-02-29T00:00:00.000000000Z");
        assert_eq!(text(951_868_800, 0), "2000-03-01T00:00:00.000000000Z");
        assert_eq!(text(1_795_258_866, 554_801_680), "2026-11-21T11:01:06.554801680Z");
        assert_eq!(text(4_107_542_400, 0), "2100-03-01T00:00:00.000000000Z");
    }

    #[test]
    fn chunks_split_at_every_byte_give_the_same() {
        let file = raw("stdout", "eins\n")
            + &raw("stderr", "zwei ü\n")
            + &raw("stdout", &format!("drei{SENTINEL}\n"))
            + &sentinel("stderr")
            + &raw("stdout", "next\n");
        let whole = collect(LIMIT, LogMode::Wait, &file);
        assert_eq!(texts(&whole), ["eins", "zwei ü", "drei"]);
        for at in 0..=file.len() {
            let mut collector = LogCollector::new(LIMIT, LogMode::Wait);
            let (head, tail) = file.as_bytes().split_at(at);
            collector.feed(head);
            collector.feed(tail);
            assert_eq!(collector.finish(now(), false), whole, "split at {at}");
        }
        let mut collector = LogCollector::new(LIMIT, LogMode::Wait);
        for byte in file.as_bytes() {
            collector.feed(std::slice::from_ref(byte));
        }
        assert_eq!(collector.finish(now(), false), whole);
    }

    proptest! {
        #[test]
        fn no_bytes_panic_and_nothing_exceeds_the_budget(
            pieces in proptest::collection::vec(
                prop_oneof![
                    "\\PC{0,12}\n?".prop_map(|text| raw("stdout", &text)),
                    "[X_THEND]{0,40}".prop_map(|text| raw("stderr", &text)),
                    (0..=SENTINEL.len()).prop_map(|at| raw("stdout", &SENTINEL[..at])),
                    (0..=SENTINEL.len()).prop_map(|at| raw("stdout", &SENTINEL[at..])),
                    "\\PC{0,20}\n?",
                ],
                0..12,
            ),
            limit in 0u64..2000,
            chunk in 1usize..50,
            wait: bool,
        ) {
            let mode = if wait { LogMode::Wait } else { LogMode::NoWait };
            let file = pieces.concat();
            let whole = collect(ByteSize::from_bytes(limit), mode, &file);
            prop_assert!(whole.consumed <= limit);
            let mut collector = LogCollector::new(ByteSize::from_bytes(limit), mode);
            for bytes in file.as_bytes().chunks(chunk) {
                collector.feed(bytes);
            }
            prop_assert_eq!(collector.finish(now(), false), whole);
        }
    }
}
