//! Contract 5.8: output through the engine's log, one request's apart from the next one's (residue row 30).

use crate::support::{Fixture, body_of, run};
use openwhisk_compat::logs::{CollectedLogs, LogDeadlines, LogFailure, LogMode};
use openwhisk_compat::size::ByteSize;
use rewind_invoker::container::{InUse, LogRequest, Pristine, RewindRefused, Waiver};
use rewind_invoker::pool::Isolation;
use std::time::Duration;

fn wanted(mode: LogMode) -> LogRequest {
    LogRequest {
        limit: ByteSize::from_mb(1),
        mode,
        deadlines: LogDeadlines { idle: Duration::from_secs(5), total: Duration::from_secs(20) },
        developer_error: false,
    }
}

/// `stream: text` per line.
fn lines(logs: &CollectedLogs) -> Vec<String> {
    logs.lines.iter().map(|line| format!("{}: {}", line.stream, line.text)).collect()
}

async fn logs_of(container: &InUse, what: &str, request: &LogRequest) -> CollectedLogs {
    let mut end = run(container, what).await;
    let logs = end.answered.collect_logs(request).await;
    body_of(end.reply, 200);
    end.answered.end().await;
    logs
}

fn waiver() -> Waiver {
    Waiver::from_setting(Isolation::None).expect("waiver")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_has_its_own_lines() {
    let Some(fixture) = Fixture::new("lines").await else { return };
    let mut in_use = fixture.in_use(1).await;
    for _ in 0..3 {
        let logs = logs_of(&in_use, "lines", &wanted(LogMode::Wait)).await;
        let mut found = lines(&logs);
        found.sort();
        assert_eq!(found, ["stderr: err 1", "stdout: out 1", "stdout: out 2"]);
        assert_eq!(logs.failure, None);
        in_use = in_use.reuse_unprotected(waiver()).expect("idle").put_in_use(1);
        // A last line without an end is kept, though it shares its line with the sentinel.
        let logs = logs_of(&in_use, "nonewline", &wanted(LogMode::Wait)).await;
        assert_eq!((lines(&logs), logs.failure), (vec!["stdout: the end is missing".to_owned()], None));
        in_use = in_use.reuse_unprotected(waiver()).expect("idle").put_in_use(1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_ends_at_the_limit() {
    let Some(fixture) = Fixture::new("flood").await else { return };
    let in_use = fixture.in_use(1).await;
    let logs = logs_of(&in_use, "flood", &wanted(LogMode::Wait)).await;
    assert_eq!(logs.failure, Some(LogFailure::Budget));
    assert!(logs.consumed <= 1 << 20, "{}", logs.consumed);
    let last = lines(&logs).pop().expect("outcome");
    assert!(last.starts_with("stderr: Logs were truncated because"), "{last}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_sentinel_is_not_waited_for_for_ever() {
    let Some(fixture) = Fixture::new("nosentinel").await else { return };
    let short = LogRequest {
        deadlines: LogDeadlines { idle: Duration::from_millis(300), total: Duration::from_secs(20) },
        ..wanted(LogMode::Wait)
    };
    let in_use = fixture.in_use(1).await;
    let logs = logs_of(&in_use, "onesentinel", &short).await;
    assert_eq!(logs.failure, Some(LogFailure::Incomplete));
    assert_eq!(lines(&logs)[0], "stdout: only");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_sentinels_all_that_was_written_before_the_answer_is_taken() {
    let Some(fixture) = Fixture::new("nowait").await else { return };
    let mut in_use = fixture.in_use(1).await;
    for _ in 0..5 {
        let logs = logs_of(&in_use, "nosentinel", &wanted(LogMode::NoWait)).await;
        assert_eq!(lines(&logs), ["stdout: first", "stdout: last without end"]);
        assert_eq!(logs.failure, None);
        in_use = in_use.reuse_unprotected(waiver()).expect("idle").put_in_use(1);
    }
    // A dead container's last words are all there is.
    let mut end = run(&in_use, "exit").await;
    let logs = end.answered.collect_logs(&wanted(LogMode::NoWait)).await;
    assert_eq!((lines(&logs), logs.failure), (vec![], None));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_or_a_missing_log_fails_the_collection_only() {
    let Some(fixture) = Fixture::with("nolog", |c| {
        c.extra_args = [("log-driver".to_owned(), vec!["none".to_owned()])].into();
    })
    .await
    else {
        return;
    };
    let in_use = fixture.in_use(1).await;
    let logs = logs_of(&in_use, "lines", &wanted(LogMode::Wait)).await;
    assert_eq!(logs.failure, Some(LogFailure::Incomplete));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_log_is_followed() {
    let Some(fixture) = Fixture::with("rotate", |c| {
        let options = ["max-size=2k", "max-file=3"].map(str::to_owned).to_vec();
        c.extra_args = [("log-opt".to_owned(), options)].into();
    })
    .await
    else {
        return;
    };
    let mut in_use = fixture.in_use(1).await;
    for round in 0..12 {
        let logs = logs_of(&in_use, "lines", &wanted(LogMode::Wait)).await;
        assert_eq!((logs.lines.len(), logs.failure), (3, None), "round {round}: {:?}", lines(&logs));
        in_use = in_use.reuse_unprotected(waiver()).expect("idle").put_in_use(1);
    }
}

/// Puts the container back; what an engine says that cannot is shown.
async fn rewound(in_use: InUse) -> Pristine {
    match in_use.rewind().await {
        Ok((pristine, _report)) => pristine,
        Err(RewindRefused::InFlight(_)) => panic!("requests in flight"),
        Err(RewindRefused::Quarantined(container)) => panic!("quarantined: {}", container.verdict()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_of_one_request_is_in_the_next_ones_log() {
    let Some(fixture) = Fixture::new("apart").await else { return };
    if let Some(missing) = snapshot::probe().missing().next() {
        eprintln!("SKIP apart: {missing:?}");
        return;
    }
    let (mut pristine, _) = match fixture.initialised().await.checkpoint().await {
        Ok(taken) => taken,
        Err(refused) => panic!("no checkpoint: {refused:?}"),
    };
    for _ in 0..2 {
        for plant in ["partialafter", "lateline", "longpartial", "nonewline", "nosentinel"] {
            let mode = if plant == "nosentinel" { LogMode::NoWait } else { LogMode::Wait };
            let in_use = pristine.put_in_use(1);
            let logs = logs_of(&in_use, plant, &wanted(mode)).await;
            assert_eq!(logs.failure, None, "{plant}");
            pristine = rewound(in_use).await;

            let in_use = pristine.put_in_use(1);
            let logs = logs_of(&in_use, "lines", &wanted(LogMode::Wait)).await;
            let mut found = lines(&logs);
            found.sort();
            assert_eq!(found, ["stderr: err 1", "stdout: out 1", "stdout: out 2"], "after {plant}");
            assert_eq!(logs.failure, None, "after {plant}");
            pristine = rewound(in_use).await;
        }
    }
}
