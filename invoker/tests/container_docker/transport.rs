//! Contract 5.1, 5.4, 5.5: every way in which an answer can go wrong.

use crate::support::{Fixture, body_of, docker, order, request, run};
use openwhisk_compat::response::ContainerReply::{self, Answer, NoResponse, ShuttingDown, TimedOut};
use rewind_invoker::container::{Initialised, Waiver};
use rewind_invoker::container::{LeaseRefused, QuarantineReason, Request, RewindRefused, SingleUse};
use rewind_invoker::pool::Isolation;
use std::time::Duration;

fn waiver() -> Waiver {
    Waiver::from_setting(Isolation::None).expect("waiver")
}

/// One request to a fresh lease of an idle container.
async fn one(
    container: Initialised,
    what: &str,
    change: impl FnOnce(&mut Request<'_>),
) -> (ContainerReply, bool) {
    let in_use = container.unprotected(waiver()).put_in_use(1);
    let body = order(what);
    let mut request = request(&body);
    change(&mut request);
    let end = in_use.lease().expect("lease").run(request, false).await;
    end.answered.end().await;
    let alive = in_use.handle().liveness.is_alive();
    (end.reply, alive)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_taken_only_when_they_are_whole() {
    let Some(fixture) = Fixture::new("answers").await else { return };
    let mut idle = fixture.initialised().await.unprotected(waiver());
    for (what, wanted) in [
        ("ok", Ok((200, r#"{"ok":true}"#))),
        ("chunked", Err(NoResponse)),
        ("nolength", Err(NoResponse)),
        ("short", Err(NoResponse)),
        ("garbage", Err(NoResponse)),
        ("twolengths", Err(NoResponse)),
        ("longhead", Err(NoResponse)),
        ("reset", Err(NoResponse)),
        ("unavailable", Err(ShuttingDown)),
        ("interim", Ok((200, r#"{"interim":true}"#))),
        ("keepopen", Ok((200, r#"{"keepopen":true}"#))),
        ("teapot", Ok((418, r#"{"error":"teapot"}"#))),
    ] {
        let in_use = idle.put_in_use(1);
        let end = run(&in_use, what).await;
        match wanted {
            Ok((status, body)) => assert_eq!(body_of(end.reply, status), body, "{what}"),
            Err(reply) => assert_eq!(end.reply, reply, "{what}"),
        }
        end.answered.end().await;
        idle = in_use.reuse_unprotected(waiver()).expect("idle again");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_answer_is_cut_where_the_contract_says() {
    let Some(fixture) = Fixture::new("long").await else { return };
    let (reply, _) = one(fixture.initialised().await, "huge", |_| {}).await;
    assert_eq!(reply, Answer { status: 200, body: vec![b'h'; 1000], truncated: Some(4 << 20) });
    // Exactly the limit is not too long.
    let (reply, _) = one(fixture.initialised().await, "huge", |r| r.answer_bytes_max = 4 << 20).await;
    assert_eq!(reply, Answer { status: 200, body: vec![b'h'; 4 << 20], truncated: None });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_runtime_that_does_not_finish_in_time_is_not_waited_for() {
    let Some(fixture) = Fixture::new("late").await else { return };
    for what in ["hang", "drip"] {
        let short = |r: &mut Request<'_>| r.timeout = Duration::from_millis(300);
        let (reply, alive) = one(fixture.initialised().await, what, short).await;
        assert_eq!((reply, alive), (TimedOut, true), "{what}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_container_is_never_asked() {
    let Some(fixture) = Fixture::new("dead").await else { return };
    let container = fixture.initialised().await;
    let reference = container.reference();
    let (reply, _) = one(container, "exit", |_| {}).await;
    assert_eq!(reply, NoResponse);
    reference.died().await;

    let dead = fixture.in_use(1).await;
    let address = dead.handle().address;
    docker(&["kill", &dead.handle().engine_id]);
    dead.reference().died().await;
    // The engine gives the address to one of the next containers; that one must not hear of it.
    // It gives the lowest free address; others may be at it too.
    let mut heirs = vec![fixture.created(&fixture.images.hostile).await];
    while heirs.len() < 16 && heirs.last().is_some_and(|heir| heir.handle().address != address) {
        heirs.push(fixture.created(&fixture.images.hostile).await);
    }
    let heir = heirs.pop().expect("one was made");
    if heir.handle().address != address {
        eprintln!("SKIP a_dead_container_is_never_asked: the engine did not give {address} away again");
        return;
    }
    let end = heir.init(request(b"{}")).await;
    assert_eq!(body_of(end.reply, 200), r#"{"ok":true}"#, "the heir listens");
    let end = dead.lease().expect("lease").run(request(&order("ok")), true).await;
    assert_eq!(end.reply, ShuttingDown, "the job goes back to the pool");
    // Without a rest before it, it is the action's failure.
    drop(end);
    let dead = fixture.in_use(1).await;
    docker(&["kill", &dead.handle().engine_id]);
    dead.reference().died().await;
    assert_eq!(run(&dead, "ok").await.reply, NoResponse);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_waits_for_the_runtime_to_listen() {
    let change =
        |c: &mut rewind_invoker::container::docker::DockerConfig| c.env.push("DELAY_MS=700".to_owned());
    let Some(fixture) = Fixture::with("slowstart", change).await else { return };
    let end = fixture.created(&fixture.images.hostile).await.init(request(b"{}")).await;
    assert_eq!(body_of(end.reply, 200), r#"{"ok":true}"#);
    assert!(end.container.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn init_of_a_container_that_never_listens_or_is_gone() {
    let Some(fixture) = Fixture::new("deaf").await else { return };
    let short = Request { timeout: Duration::from_millis(400), ..request(b"{}") };
    let end = fixture.created(&fixture.images.deaf).await.init(short).await;
    assert_eq!((end.reply, end.container.is_err()), (TimedOut, true));

    // Its time-out is generous, but there is nothing to wait for.
    let end = fixture.created(&fixture.images.exits).await.init(request(b"{}")).await;
    assert_eq!((end.reply, end.container.is_err()), (NoResponse, true));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_before_the_request_was_read_counts() {
    let change = |c: &mut rewind_invoker::container::docker::DockerConfig| c.env.push("EARLY=1".to_owned());
    let Some(fixture) = Fixture::with("early", change).await else { return };
    let created = fixture.created(&fixture.images.hostile).await;
    let large = vec![b' '; 16 << 20];
    let end = created.init(request(&large)).await;
    assert_eq!(body_of(end.reply, 403), r#"{"error":"early"}"#);
    assert!(end.container.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_are_counted() {
    let Some(fixture) = Fixture::new("leases").await else { return };
    let in_use = fixture.in_use(2).await;
    let (first, second) = (in_use.lease().expect("first"), in_use.lease().expect("second"));
    assert_eq!(in_use.lease().map(drop), Err(LeaseRefused::Full(2)));
    let (body_1, body_2) = (order("slow"), order("ok"));
    let (slow, quick) = tokio::join!(first.run(request(&body_1), false), second.run(request(&body_2), false));
    assert_eq!(body_of(slow.reply, 200), r#"{"slow":true}"#);
    assert_eq!(body_of(quick.reply, 200), r#"{"ok":true}"#);
    // One ends, another joins the one that is left.
    drop(quick.answered);
    let third = in_use.lease().expect("third");
    drop(slow.answered);
    let Err(RewindRefused::InFlight(in_use)) = in_use.reuse_unprotected(waiver()) else {
        panic!("in flight")
    };
    drop(third);
    assert_eq!(in_use.in_flight(), 0);
    assert_eq!(in_use.lease().map(drop), Err(LeaseRefused::Spent));
    assert!(in_use.reuse_unprotected(waiver()).is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_single_use_container_has_no_way_back() {
    let Some(fixture) = Fixture::new("single").await else { return };
    let in_use = fixture.initialised().await.never_used(SingleUse).put_in_use(5);
    let lease = in_use.lease().expect("lease");
    assert_eq!(in_use.lease().map(drop), Err(LeaseRefused::Full(1)), "whatever the concurrency");
    let end = lease.run(request(&order("ok")), false).await;
    assert_eq!(body_of(end.reply, 200), r#"{"ok":true}"#);
    end.answered.end().await;
    let engine_id = in_use.handle().engine_id.clone();
    let Err(RewindRefused::Quarantined(used)) = in_use.rewind().await else { panic!("it cannot be rewound") };
    assert_eq!(used.verdict().reason, QuarantineReason::NoSnapshot);
    used.destroy().await.expect("destroyed");
    assert!(crate::support::docker_try(&["inspect", &engine_id]).is_err());

    let in_use = fixture.initialised().await.never_used(SingleUse).put_in_use(1);
    drop(in_use.lease().expect("lease"));
    assert!(in_use.reuse_unprotected(waiver()).is_err(), "no waiver helps a container made without it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn suspended_and_resumed_by_either_means() {
    for use_runc in [true, false] {
        let name = if use_runc { "runc" } else { "pause" };
        let Some(fixture) = Fixture::with(name, |c| c.use_runc = use_runc).await else { return };
        let idle = fixture.initialised().await.unprotected(waiver());
        let suspended = idle.suspend().await.unwrap_or_else(|(_, error)| panic!("{name}: {error}"));
        let idle = suspended.resume().await.unwrap_or_else(|(_, error)| panic!("{name}: {error}"));
        let in_use = idle.put_in_use(1);
        let end = in_use.lease().expect("lease").run(request(&order("ok")), true).await;
        assert_eq!(body_of(end.reply, 200), r#"{"ok":true}"#, "{name}");
        drop(end.answered);

        // Twice is as good as once, and a suspended container can be destroyed.
        let handle = in_use.handle();
        fixture.backend().suspend(handle).await.expect("suspended");
        if !use_runc {
            fixture.backend().suspend(handle).await.expect("suspended again");
        }
        fixture.backend().destroy(handle).await.expect("destroyed");
        fixture.backend().destroy(handle).await.expect("destroyed again");
        assert!(!handle.liveness.is_alive());
    }
}
