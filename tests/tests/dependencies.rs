//! Functions that use real libraries: connections that a client library keeps, a few hundred npm packages, Go's
//! goroutines and timers, numpy and Pillow. All are served in one container each, and none finds anything of
//! another request.

use rewind_tests::Lab;
use rewind_tests::invoker::Invoker;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Requests to each function.
const REQUESTS: usize = 12;
/// How long anything may take that is done within seconds.
const SOON: Duration = Duration::from_secs(60);

/// Sends the requests, one after another; their results. Each is a success, from one and the same container.
async fn serve(lab: &Lab, invoker: &Invoker, base: &Activation, arguments: Value) -> Vec<Value> {
    let mut results: Vec<Value> = Vec::new();
    for n in 0..REQUESTS {
        let mut content = arguments.clone();
        content["n"] = n.into();
        let id = rewind_tests::message::activation_id();
        let ack = lab.controller.ask(base.clone().with("activationId", id.into()).content(content)).await;
        assert_eq!(ack.status(), Some(0), "request {n}: {}\n{}", ack.value, invoker.tail());
        let result = ack.result().clone();
        if let Some(first) = results.first() {
            assert_eq!(
                result["host"],
                first["host"],
                "request {n} came to another container\n{}",
                invoker.tail()
            );
        }
        results.push(result);
    }
    results
}

/// Serves an action that says in `found` what it found of earlier requests: nothing.
async fn finds_nothing(name: &'static str, action: Action, wrong: fn(&Value) -> bool) {
    let lab = Lab::new(name).await;
    let invoker = lab.invoker().isolation("rewind").user_memory("512 m").start(&lab).await;
    let base = put(&lab, &action).await;
    for result in serve(&lab, &invoker, &base, json!({})).await {
        assert!(result["found"] == json!([]) && !wrong(&result), "{result}");
    }
    let quarantined = invoker.metric("rewind_quarantined_total", "").await;
    assert!(quarantined < 0.5, "{quarantined} containers were quarantined\n{}", invoker.tail());
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

async fn put(lab: &Lab, action: &Action) -> Activation {
    let revision = lab.store.put_action(action).await;
    Activation::of(action.id()).revision(&revision)
}

/// A server that keeps connections, and counts them.
#[derive(Default)]
struct Counts {
    opened: AtomicUsize,
    ended: AtomicUsize,
    requests: AtomicUsize,
}

fn keeping_server() -> (u16, Arc<Counts>) {
    // Containers reach it by their bridge's gateway.
    let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
    let port = listener.local_addr().expect("it is bound").port();
    let counts = Arc::new(Counts::default());
    let shared = counts.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counts = shared.clone();
            std::thread::spawn(move || {
                counts.opened.fetch_add(1, Ordering::Relaxed);
                let mut stream = BufReader::new(stream);
                let mut line = String::new();
                while stream.read_line(&mut line).is_ok_and(|length| length > 0) {
                    if line == "\r\n" {
                        counts.requests.fetch_add(1, Ordering::Relaxed);
                        let answer =
                            b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok";
                        if stream.get_mut().write_all(answer).is_err() {
                            break;
                        }
                    }
                    line.clear();
                }
                counts.ended.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    (port, counts)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_is_kept_is_gone_for_the_next_request_which_makes_its_own() {
    let actions = [
        ("keepnode", "nodejs:20", include_str!("../dependencies/keepalive.js")),
        ("keeploop", "python:3.11", include_str!("../dependencies/keepalive.py")),
        ("keeppython", "python-single:3.11", include_str!("../dependencies/keepalive.py")),
    ];
    for (name, kind, code) in actions {
        for isolation in ["none", "rewind"] {
            let lab = Lab::new(name).await;
            let invoker = lab.invoker().isolation(isolation).user_memory("256 m").start(&lab).await;
            let base = put(&lab, &Action::new("guest/keep", kind, code)).await;
            let (port, counts) = keeping_server();
            let results = serve(&lab, &invoker, &base, json!({"port": port})).await;
            let found = results.iter().filter(|result| result["found"] == true).count();
            assert!(
                results.iter().all(|result| result["answers"] == json!(["ok", "ok", "ok"])),
                "{results:?}"
            );
            assert_eq!(counts.requests.load(Ordering::Relaxed), 3 * REQUESTS, "{name} {isolation}");
            let opened = counts.opened.load(Ordering::Relaxed);
            if isolation == "none" {
                // It is kept indeed.
                assert_eq!((opened, found), (1, REQUESTS - 1), "{name}");
            } else {
                assert_eq!((opened, found), (REQUESTS, 0), "{name}");
                let quarantined = invoker.metric("rewind_quarantined_total", "").await;
                assert!(quarantined < 0.5, "{name}: {quarantined} quarantined\n{}", invoker.tail());
                // And the server was told, of the last one too.
                let deadline = Instant::now() + SOON;
                while counts.ended.load(Ordering::Relaxed) < REQUESTS {
                    assert!(
                        Instant::now() < deadline,
                        "{name}: {} ended",
                        counts.ended.load(Ordering::Relaxed)
                    );
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            assert!(invoker.stop().await.success());
            lab.controller.finish().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_few_hundred_npm_packages() {
    // Those of the tests' own store, without what is not code.
    let script = "import os, sys, zipfile\n\
        action, modules, target = sys.argv[1:]\n\
        with zipfile.ZipFile(target, 'w', zipfile.ZIP_DEFLATED) as file:\n    \
            file.write(action, 'index.js')\n    \
            for place, directories, names in os.walk(modules):\n        \
                directories[:] = [d for d in directories if d not in ('test', 'tests', 'docs', 'dist', 'prebuilds', 'deps')]\n        \
                for name in names:\n            \
                    if name.endswith(('.js', '.json', '.cjs')) and os.path.getsize(os.path.join(place, name)) < 700_000:\n                \
                        path = os.path.join(place, name)\n                \
                        file.write(path, os.path.join('node_modules', os.path.relpath(path, modules)))\n";
    let folder = tempfile::tempdir().expect("a folder can be made");
    let archive = folder.path().join("action.zip");
    let status = Command::new("python3")
        .args(["-c", script])
        .arg(beside("dependencies/modules.js"))
        .arg(npm_packages())
        .arg(&archive)
        .status();
    assert!(status.expect("python3 is needed to pack the action").success());
    let archive = std::fs::read(archive).expect("it was packed");
    println!("{} kB packed", archive.len() >> 10);
    let action = Action::new("guest/modules", "nodejs:20", "").binary(&archive).limit("timeout", 120_000);
    finds_nothing("npmpackages", action, |result| {
        let few = result["packages"].as_u64().is_none_or(|n| n < 200)
            || result["modules"].as_u64().is_none_or(|n| n < 500);
        few || result["merged"] != json!({"a": 1, "b": 2})
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn goroutines_and_timers() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let go = std::fs::read_to_string(cache().join("go")).expect("tests/env/install notes where Go is");
    let status = Command::new(go.trim())
        .args(["build", "-trimpath", "-o"])
        .arg(folder.path().join("exec"))
        .arg(".")
        .current_dir(beside("dependencies/goroutines"))
        .envs([("CGO_ENABLED", "0"), ("GOFLAGS", "-buildvcs=false")])
        .status();
    assert!(status.expect("go is needed for the action").success());
    std::fs::write(folder.path().join("exec.env"), "openwhisk/action-python-v3.11").expect("our own");
    let status = Command::new("python3")
        .args(["-m", "zipfile", "-c", "action.zip", "exec", "exec.env"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .status();
    assert!(status.expect("python3 is needed to pack the action").success());
    let archive = std::fs::read(folder.path().join("action.zip")).expect("it was packed");
    let action = Action::new("guest/goroutines", "python:3.11", "").binary(&archive);
    finds_nothing("goroutines", action, |result| {
        result["goroutines"] != 1 || result["ticks"] != 0 || result["sum"] != 19_900
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn numpy_and_pillow() {
    let lab = Lab::new("imageof").await;
    let build = Command::new(beside("images/build"))
        .arg("python-libraries")
        .env("DOCKER_HOST", &lab.services.docker)
        .stdin(Stdio::null())
        .status();
    assert!(build.expect("the image can be built").success());
    let code = include_str!("../dependencies/imaging.py");
    finds_nothing("imaging", Action::new("guest/imaging", "python-libraries:3.11", code), |result| {
        result["off"].as_f64().is_none_or(|off| off > 1e-6) || result["pixel"] != json!([0, 255, 0])
    })
    .await;
}

fn beside(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where `tests/env/install` keeps what it fetched.
fn cache() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("REWIND_CACHE").unwrap_or_else(|| {
        let home = || set("HOME").unwrap_or_else(|| "/root".into()).join(".cache");
        set("XDG_CACHE_HOME").unwrap_or_else(home).join("rewind")
    })
}

/// The packages of the store, whatever its version.
fn npm_packages() -> PathBuf {
    let entries = std::fs::read_dir(cache()).expect("tests/env/install made the cache");
    let store = entries.flatten().find(|entry| {
        let name = entry.file_name();
        name.to_str().is_some_and(|name| name.starts_with("pouchdb-server-") && !name.ends_with(".log"))
            && entry.path().join("node_modules").is_dir()
    });
    store.expect("tests/env/install brings the store").path().join("node_modules")
}
