//! Contract 5.7: a container that ran out of memory says so at once.

use crate::support::{Fixture, body_of, run};
use openwhisk_compat::response::ContainerReply::{NoResponse, OutOfMemory};
use rewind_invoker::container::Waiver;
use rewind_invoker::pool::Isolation;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_container_itself() {
    let Some(fixture) = Fixture::new("oom").await else { return };
    let in_use = fixture.in_use(1).await;
    assert_eq!(run(&in_use, "oom").await.reply, OutOfMemory);
    in_use.reference().died().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_of_it_and_only_that_request() {
    let Some(fixture) = Fixture::new("oomchild").await else { return };
    let waiver = Waiver::from_setting(Isolation::None).expect("waiver");
    let in_use = fixture.in_use(1).await;
    assert_eq!(run(&in_use, "oomchild").await.reply, OutOfMemory);
    assert!(in_use.handle().liveness.is_alive(), "the kernel killed more than the child");
    // The container lives, and an ordinary broken connection is not blamed on memory.
    let in_use = in_use.reuse_unprotected(waiver).expect("idle").put_in_use(1);
    assert_eq!(run(&in_use, "reset").await.reply, NoResponse);
    let in_use = in_use.reuse_unprotected(waiver).expect("idle").put_in_use(1);
    assert_eq!(body_of(run(&in_use, "ok").await.reply, 200), r#"{"ok":true}"#);
}
