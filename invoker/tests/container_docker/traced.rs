//! A container that its warden stays attached to, in the hands of Docker.

use crate::support::{Fixture, body_of, docker, docker_try, order, request, run};
use openwhisk_compat::response::ContainerReply;
use rewind_invoker::container::{InUse, Pristine, QuarantineReason, RewindRefused};
use std::time::Duration;

/// A fixture with a container that has a checkpoint; `None` (said aloud) where that is impossible.
async fn checkpointed(test: &str) -> Option<(Fixture, Pristine)> {
    let fixture = Fixture::new(test).await?;
    if let Some(missing) = snapshot::probe().missing().next() {
        eprintln!("SKIP {test}: {missing:?}");
        return None;
    }
    match fixture.initialised().await.checkpoint().await {
        Ok((pristine, _report)) => Some((fixture, pristine)),
        Err(refused) => panic!("no checkpoint: {refused:?}"),
    }
}

async fn answers(in_use: &InUse) {
    let end = in_use.lease().expect("lease").run(request(&order("ok")), true).await;
    assert_eq!(body_of(end.reply, 200), r#"{"ok":true}"#);
}

async fn rewound(in_use: InUse) -> Pristine {
    match in_use.rewind().await {
        Ok((pristine, _report)) => pristine,
        Err(RewindRefused::InFlight(_)) => panic!("requests in flight"),
        Err(RewindRefused::Quarantined(container)) => panic!("quarantined: {}", container.verdict()),
    }
}

fn tracer_of(pid: nix::unistd::Pid) -> i32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"));
    line.and_then(|tracer| tracer.trim().parse().ok()).unwrap_or(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_paused_entered_and_put_back() {
    let Some((_fixture, mut pristine)) = checkpointed("obeys").await else { return };
    for _ in 0..2 {
        let in_use = pristine.put_in_use(1);
        let id = in_use.handle().name.clone();
        assert_ne!(tracer_of(in_use.handle().init), 0, "attached while it runs");
        docker(&["pause", &id]);
        docker(&["unpause", &id]);
        answers(&in_use).await;
        // The runtime's other program: ends with 3.
        let entered = docker_try(&["exec", &id, "/hostile", "exit"]).expect_err("ends with 3");
        assert!(!entered.contains("OCI"), "{entered}");
        docker(&["exec", "-d", &id, "/hostile", "deaf"]);
        docker(&["exec", "-d", &id, "/hostile", "deaf"]);
        pristine = rewound(in_use).await;
        let suspended = pristine.suspend().await.unwrap_or_else(|(_, error)| panic!("{error}"));
        pristine = suspended.resume().await.unwrap_or_else(|(_, error)| panic!("{error}"));
        let in_use = pristine.put_in_use(1);
        let top = docker(&["top", &id]);
        assert_eq!(top.lines().count(), 2, "a title and one process:\n{top}");
        answers(&in_use).await;
        pristine = rewound(in_use).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_stopped_killed_and_removed() {
    for (name, commands) in [("stop", &["stop", "-t", "1"][..]), ("kill", &["kill"]), ("rm", &["rm", "-f"])] {
        let Some((_fixture, pristine)) = checkpointed(name).await else { return };
        let in_use = rewound(pristine.put_in_use(1)).await.put_in_use(1);
        let id = in_use.handle().name.clone();
        let arguments: Vec<&str> = commands.iter().copied().chain([id.as_str()]).collect();
        // Returns when the engine has collected the first process, for which its tracer must have.
        docker(&arguments);
        in_use.handle().liveness.died().await;
        let Err(RewindRefused::Quarantined(container)) = in_use.rewind().await else {
            panic!("{name}: a dead container was rewound");
        };
        assert_eq!(
            container.verdict().reason,
            QuarantineReason::Memory(snapshot::Reason::ProcessVanished),
            "{name}"
        );
        container.reference().destroy().await.expect("destroyed");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_one_is_destroyed() {
    let Some((fixture, pristine)) = checkpointed("frozen").await else { return };
    let suspended = pristine.suspend().await.unwrap_or_else(|(_, error)| panic!("{error}"));
    let handle = std::sync::Arc::clone(suspended.handle());
    // The warden goes first here: it cannot let go of threads that do not move.
    let discarded = suspended.discard();
    fixture.backend().destroy(&handle).await.expect("destroyed");
    handle.liveness.died().await;
    drop(discarded);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_control_stop_from_outside_is_seen() {
    let Some((_fixture, pristine)) = checkpointed("jobcontrol").await else { return };
    let in_use = pristine.put_in_use(1);
    let id = in_use.handle().name.clone();
    docker(&["kill", "-s", "STOP", &id]);
    docker(&["kill", "-s", "CONT", &id]);
    answers(&in_use).await;
    let in_use = rewound(in_use).await.put_in_use(1);
    docker(&["kill", "-s", "STOP", &id]);
    // It stands still for the tracer for a moment before, which looks the same but does not last.
    let stat = format!("/proc/{}/stat", in_use.handle().init);
    let mut still = 0;
    while still < 5 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let stat = std::fs::read_to_string(&stat).expect("it lives");
        still = if stat.contains(") t") { still + 1 } else { 0 };
    }
    let Err(RewindRefused::Quarantined(container)) = in_use.rewind().await else {
        panic!("a stopped container was rewound");
    };
    let reason = QuarantineReason::Memory(snapshot::Reason::StoppedByJobControl);
    assert_eq!(container.verdict().reason, reason);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kernel_kills_it_for_want_of_memory() {
    let Some((_fixture, pristine)) = checkpointed("oomtraced").await else { return };
    let in_use = pristine.put_in_use(1);
    let end = run(&in_use, "oom").await;
    assert_eq!(end.reply, ContainerReply::OutOfMemory);
    drop(end.answered);
    in_use.handle().liveness.died().await;
    assert!(in_use.rewind().await.is_err());
}
