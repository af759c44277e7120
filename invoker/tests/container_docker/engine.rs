//! Contract 6.5: what is made, what cannot be, and what is left over.

use crate::support::{Fixture, docker, docker_try};
use rewind_invoker::container::docker::{ArgumentError, DockerBackend, DockerConfig, DockerError};
use rewind_invoker::container::{ContainerSpec, CreateError, PullPolicy};
use std::collections::BTreeSet;

/// A registry where nobody listens.
const NOWHERE: &str = "127.0.0.1:1/cont-nothing";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_container_is_the_one_docker_run_makes() {
    let change = |c: &mut DockerConfig| {
        c.env = vec!["__OW_API_HOST=https://api.example.org".to_owned(), "K=V".to_owned()];
        c.dns_servers = vec!["10.9.8.7".to_owned()];
        c.dns_search = vec!["example.org".to_owned()];
        c.dns_options = vec!["ndots:2".to_owned()];
        c.user_cpus = Some(2.0);
        c.extra_args = [("security-opt".to_owned(), vec!["no-new-privileges".to_owned()])].into();
    };
    let Some(fixture) = Fixture::with("same", change).await else { return };
    let created = fixture.created(&fixture.images.hostile).await;
    let by_client = docker(&[
        "run",
        "-d",
        "--cpu-shares",
        "128",
        "--memory",
        "128m",
        "--memory-swap",
        "128m",
        "--network",
        "bridge",
        "-e",
        "__OW_API_HOST=https://api.example.org",
        "-e",
        "K=V",
        "--dns",
        "10.9.8.7",
        "--dns-search",
        "example.org",
        "--dns-option",
        "ndots:2",
        "--name",
        &format!("{}_99_a_b", fixture.prefix),
        "--cpus",
        "0.25",
        "--cap-drop",
        "NET_RAW",
        "--cap-drop",
        "NET_ADMIN",
        "--ulimit",
        "nofile=1024:1024",
        "--pids-limit",
        "1024",
        "--log-driver",
        "json-file",
        "--security-opt",
        "no-new-privileges",
        &fixture.images.hostile,
    ]);
    let of = |id: &str, what: &str| docker(&["inspect", "--format", &format!("{{{{json .{what}}}}}"), id]);
    // What differs by nature, or by the client's habit of sending empty lists where we send nothing.
    let plain = |id: &str| {
        let json: serde_json::Value = serde_json::from_str(&of(id, "HostConfig")).expect("JSON");
        let members = json.as_object().expect("object").clone();
        members
            .into_iter()
            .filter(|(_, value)| !(value.is_null() || value.as_array().is_some_and(Vec::is_empty)))
            .filter(|(_, value)| !value.as_object().is_some_and(serde_json::Map::is_empty))
            .filter(|(key, _)| key != "ConsoleSize")
            .map(|(key, value)| match key.as_str() {
                // The client spells capabilities in full and sorts them, and says "no" where nothing means it.
                "CapDrop" => {
                    let names = value.as_array().into_iter().flatten().filter_map(serde_json::Value::as_str);
                    let short = names.map(|name| name.trim_start_matches("CAP_")).collect::<BTreeSet<_>>();
                    (key, serde_json::json!(short))
                }
                "RestartPolicy" => (
                    key,
                    serde_json::Value::from(value["Name"].as_str().is_none_or(|n| n == "no" || n.is_empty())),
                ),
                _ => (key, value),
            })
            .collect::<std::collections::BTreeMap<_, _>>()
    };
    let ours = &created.handle().engine_id;
    assert_eq!(plain(ours), plain(&by_client));
    for what in
        ["Config.Env", "Config.Cmd", "Config.User", "Config.Tty", "Config.OpenStdin", "Config.WorkingDir"]
    {
        let set = |text: String| {
            text.trim_matches(['[', ']']).split(',').map(str::to_owned).collect::<BTreeSet<_>>()
        };
        assert_eq!(set(of(ours, what)), set(of(&by_client, what)), "{what}");
    }
    let handle = created.handle();
    assert_eq!(handle.address.ip().to_string(), of(ours, "NetworkSettings.IPAddress").trim_matches('"'));
    assert_eq!(handle.init.to_string(), of(ours, "State.Pid"));
    assert!(handle.liveness.is_alive());
    assert!(handle.log_file.as_ref().expect("log").exists());
    assert_eq!(handle.oom.read(), Some(0));
    assert!(handle.start.total() >= handle.start.run);
}

async fn failure(fixture: &Fixture, image: &str, pull: PullPolicy) -> CreateError {
    let spec = ContainerSpec { pull, ..fixture.spec(image) };
    let error = fixture.containers.create(&spec).await.map(drop).expect_err("cannot be made");
    assert!(docker_try(&["inspect", &spec.name]).is_err(), "{} is left", spec.name);
    error
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_made_leaves_nothing() {
    let Some(fixture) = Fixture::new("failures").await else { return };
    let images = fixture.images;
    let error = failure(&fixture, &images.no_command, PullPolicy::Never).await;
    assert!(
        matches!(&error, CreateError::CommandNotFound { image, .. } if *image == images.no_command),
        "{error:?}"
    );

    let tagged = format!("{NOWHERE}:1.0");
    let error = failure(&fixture, &tagged, PullPolicy::Never).await;
    assert!(matches!(error, CreateError::Provision { .. }), "{error:?}");
    let error = failure(&fixture, &tagged, PullPolicy::IfPossible).await;
    assert!(matches!(&error, CreateError::ImagePull { image, .. } if *image == tagged), "{error:?}");
    let error = failure(&fixture, NOWHERE, PullPolicy::Required).await;
    assert!(matches!(&error, CreateError::ImagePull { image, .. } if image == NOWHERE), "{error:?}");

    // A command that is not found is not the pull's fault, even when that failed.
    let local = format!("{NOWHERE}:local");
    docker(&["tag", &images.no_command, &local]);
    let error = failure(&fixture, &local, PullPolicy::IfPossible).await;
    docker(&["rmi", &local]);
    assert!(matches!(error, CreateError::CommandNotFound { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_pull_is_forgiven_when_the_image_is_there() {
    let Some(fixture) = Fixture::new("forgiven").await else { return };
    let local = format!("{NOWHERE}:forgiven");
    docker(&["tag", &fixture.images.hostile, &local]);
    let spec = ContainerSpec { pull: PullPolicy::IfPossible, ..fixture.spec(&local) };
    let created = fixture.containers.create(&spec).await;
    docker(&["rmi", "-f", &local]);
    created.expect("the image of an earlier pull");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_is_left_over_is_taken_again() {
    let Some(fixture) = Fixture::new("again").await else { return };
    let spec = fixture.spec(&fixture.images.hostile);
    docker(&["create", "--name", &spec.name, &spec.image]);
    let created = fixture.containers.create(&spec).await.expect("created");
    assert!(created.handle().liveness.is_alive());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sweep_takes_what_is_ours_and_nothing_else() {
    let Some(fixture) = Fixture::new("sweep").await else { return };
    let (prefix, image) = (&fixture.prefix, fixture.images.hostile.as_str());
    let start = |name: String| {
        docker(&["run", "-d", "--name", &name, image]);
        name
    };
    let running = start(format!("{prefix}_1_prewarm_x"));
    let paused = start(format!("{prefix}_22_guest_x"));
    docker(&["pause", &paused]);
    let created = format!("{prefix}_3_guest_x");
    docker(&["create", "--name", &created, image]);
    let frozen = fixture.created(image).await;
    fixture.backend().suspend(frozen.handle()).await.expect("suspended");
    let others = [
        start(format!("x{prefix}_1_prewarm_x")),
        start(format!("{prefix}1_1_prewarm_x")),
        start(format!("{prefix}_x_guest_x")),
    ];
    let report = fixture.backend().sweep().await.expect("sweep");
    assert_eq!(report.removed.len(), 4, "{report:?}");
    assert!(report.failed.is_empty(), "{report:?}");
    for gone in [&running, &paused, &created, &frozen.handle().name] {
        assert!(docker_try(&["inspect", gone]).is_err(), "{gone} is left");
    }
    for other in &others {
        assert_eq!(docker(&["inspect", "--format", "{{.State.Running}}", other]), "true", "{other}");
    }
    assert_eq!(fixture.backend().sweep().await.expect("nothing left").removed.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once() {
    let Some(fixture) = Fixture::with("many", |c| c.parallel_runs = 2).await else { return };
    let all = futures::future::join_all((0..6).map(|_| fixture.created(&fixture.images.hostile))).await;
    let addresses: BTreeSet<_> = all.iter().map(|one| one.handle().address).collect();
    assert_eq!(addresses.len(), 6);
    let ends =
        futures::future::join_all(all.iter().map(|one| async { one.reference().destroy().await })).await;
    assert!(ends.iter().all(Result::is_ok), "{ends:?}");
    for one in &all {
        assert!(!one.handle().liveness.is_alive());
    }
}

#[tokio::test]
async fn mistakes_are_named_at_start() {
    let extra = DockerConfig {
        extra_args: [("frobnicate".to_owned(), vec!["1".to_owned()])].into(),
        ..Default::default()
    };
    match DockerBackend::connect(extra).await {
        Err(DockerError::Argument(ArgumentError::Unknown(flag))) => assert_eq!(flag, "frobnicate"),
        other => panic!("expected an unknown flag, got {other:?}"),
    }
    for host in ["unix:///nowhere/docker.sock", "ssh://somewhere"] {
        let config = DockerConfig { host: host.to_owned(), ..Default::default() };
        let error = DockerBackend::connect(config).await.map(drop).expect_err("nobody there");
        assert!(error.to_string().contains(host), "{error}");
    }
}
