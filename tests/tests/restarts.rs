//! Kafka, the store and dockerd go away and come back; the invoker is killed at random moments. Nothing is lost
//! without an answer, nothing runs twice, and service resumes without help.
//!
//! Every activation counts itself outside its container, so a second run would be seen.

use rand::Rng as _;
use rewind_tests::Lab;
use rewind_tests::env::Services;
use rewind_tests::message::{Action, Activation, activation_id};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How long an answer may take around an outage.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often the invoker is killed outright.
const KILLS: usize = 6;

/// Counts the runs of each activation: the action sends its id here over TCP.
struct Tally {
    port: u16,
    runs: Arc<Mutex<BTreeMap<String, usize>>>,
}

impl Tally {
    fn start() -> Self {
        // Containers reach it by their bridge's gateway.
        let listener = TcpListener::bind("0.0.0.0:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        let runs = Arc::new(Mutex::new(BTreeMap::new()));
        let shared = runs.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = shared.clone();
                std::thread::spawn(move || {
                    let mut stream = BufReader::new(stream);
                    let mut line = String::new();
                    if stream.read_line(&mut line).is_ok() && line.ends_with('\n') {
                        *shared
                            .lock()
                            .expect("no holder panics")
                            .entry(line.trim().to_owned())
                            .or_default() += 1;
                        let _ = stream.get_mut().write_all(b"ok\n");
                    }
                });
            }
        });
        Self { port, runs }
    }

    /// Counts itself, then sleeps `s` seconds.
    fn action(&self) -> Action {
        let code = format!(
            "import os, socket, time\n\
             def gateway():\n    \
                 for line in open('/proc/net/route').read().splitlines()[1:]:\n        \
                     fields = line.split()\n        \
                     if fields[1] == '00000000': return socket.inet_ntoa(bytes.fromhex(fields[2])[::-1])\n\
             def main(a):\n    \
                 s = socket.create_connection((gateway(), {}), 5)\n    \
                 s.sendall((os.environ['__OW_ACTIVATION_ID'] + '\\n').encode())\n    \
                 s.recv(3); s.close()\n    \
                 time.sleep(a.get('s', 0))\n    \
                 return {{'n': a['n']}}\n",
            self.port
        );
        Action::new("guest/tally", "python-single:3.11", &code).limit("memory", 128)
    }

    fn twice(&self) -> Vec<String> {
        let runs = self.runs.lock().expect("no holder panics");
        runs.iter().filter(|(_, n)| **n > 1).map(|(id, n)| format!("{id} ran {n} times")).collect()
    }

    fn ran(&self, id: &str) -> bool {
        self.runs.lock().expect("no holder panics").contains_key(id)
    }
}

/// Publishes `count` activations, one each `gap`; their ids.
async fn stream(lab: &Lab, base: &Activation, count: usize, gap: Duration, sleep: f64) -> Vec<String> {
    let mut ids = Vec::new();
    for n in 0..count {
        let id = activation_id();
        let blocking = n % 2 == 0;
        let content = json!({"n": n, "s": sleep});
        let activation = base
            .clone()
            .with("activationId", id.clone().into())
            .with("blocking", blocking.into())
            .content(content);
        lab.controller.publish(&activation).await;
        ids.push(id);
        tokio::time::sleep(gap).await;
    }
    ids
}

/// Every id has an answer, none ran twice, and a new activation is answered with success.
async fn settle(lab: &Lab, tally: &Tally, base: &Activation, ids: &[String], what: &str) {
    let missing = lab.controller.unanswered(ids, PATIENCE).await;
    assert!(
        missing.is_empty(),
        "{what}: {} of {} were never answered: {missing:?}",
        missing.len(),
        ids.len()
    );
    assert_eq!(tally.twice(), Vec::<String>::new(), "{what}");
    let after = base.clone().with("activationId", activation_id().into()).content(json!({"n": 1}));
    let ack = lab.controller.ask(after).await;
    assert_eq!((ack.status(), ack.result()), (Some(0), &json!({"n": 1})), "{what}: {}", ack.value);
    assert!(tally.ran(ack.id()), "{what}: the action did not count itself");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_survives_restarts_of_kafka_and_of_the_store() {
    let services = Services::own("restarts", &[]);
    let lab = Lab::within(&services, "restart", &["0"]).await;
    let tally = Tally::start();
    let action = tally.action();
    lab.store.put_action(&action).await;
    let base = Activation::of(action.id());
    let mut invoker = lab.invoker().start(&lab).await;

    for (service, kill) in [("kafka", false), ("kafka", true), ("couchdb", true)] {
        let what = format!("{service} {}", if kill { "killed" } else { "restarted" });
        println!("{what}");
        let mut ids = stream(&lab, &base, 10, Duration::from_millis(30), 0.0).await;
        let restart = tokio::task::spawn_blocking({
            let services = services.clone();
            move || services.restart(service, kill)
        });
        // What is published to a broker that is away waits for it.
        ids.extend(stream(&lab, &base, 10, Duration::from_millis(30), 0.0).await);
        restart.await.expect("the service comes back");
        if service == "couchdb" {
            // It kept its data in memory.
            lab.store.prepare().await;
            lab.store.put_action(&action).await;
        }
        ids.extend(stream(&lab, &base, 10, Duration::from_millis(30), 0.0).await);
        settle(&lab, &tally, &base, &ids, &what).await;
        assert!(invoker.alive(), "{what}: the invoker ended");
    }
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn service_survives_a_restart_of_dockerd() {
    let services = Services::own("dockerd", &["docker-own"]);
    let lab = Lab::within(&services, "dockerd", &["0"]).await;
    let tally = Tally::start();
    let action = tally.action();
    let revision = lab.store.put_action(&action).await;
    let base = Activation::of(action.id()).revision(&revision);
    let mut invoker = lab.invoker().start(&lab).await;
    for kill in [false, true] {
        let what = if kill { "dockerd killed" } else { "dockerd restarted" };
        println!("{what}");
        let mut ids = stream(&lab, &base, 10, Duration::from_millis(30), 0.0).await;
        let restart = tokio::task::spawn_blocking({
            let services = services.clone();
            move || services.restart("docker-own", kill)
        });
        ids.extend(stream(&lab, &base, 10, Duration::from_millis(100), 0.0).await);
        restart.await.expect("dockerd comes back");
        ids.extend(stream(&lab, &base, 5, Duration::from_millis(30), 0.0).await);
        let missing = lab.controller.unanswered(&ids, PATIENCE).await;
        assert!(missing.is_empty(), "{what}: never answered: {missing:?}");
        assert_eq!(tally.twice(), Vec::<String>::new(), "{what}");
        // Service resumes by itself; what was asked while nothing could be started may be refused.
        let mut last = Value::Null;
        for _ in 0..30 {
            let after = base.clone().with("activationId", activation_id().into()).content(json!({"n": 1}));
            last = lab.controller.ask(after).await.value;
            if last["response"]["response"]["statusCode"] == 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        assert_eq!(last["response"]["response"]["statusCode"], 0, "{what}: {last}");
        assert!(invoker.alive(), "{what}: the invoker ended");
    }
    assert!(invoker.stop().await.success());
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_random_moments_it_answers_everything_and_runs_nothing_twice() {
    let lab = Lab::new("kill9").await;
    let tally = Tally::start();
    let action = tally.action();
    let revision = lab.store.put_action(&action).await;
    let base = Activation::of(action.id()).revision(&revision);
    let builder = lab.invoker();
    let mut invoker = builder.start(&lab).await;
    let mut ids = Vec::new();
    for round in 0..KILLS {
        let publish = stream(&lab, &base, 20, Duration::from_millis(25), 0.05);
        let kill = tokio::time::sleep(Duration::from_millis(rand::rng().random_range(0..700)));
        tokio::pin!(publish, kill);
        let mut killed = false;
        let mut published = None;
        while published.is_none() || !killed {
            tokio::select! {
                new = &mut publish, if published.is_none() => published = Some(new),
                () = &mut kill, if !killed => { invoker.kill(); killed = true; }
            }
        }
        ids.extend(published.expect("the loop ends with it"));
        invoker = builder.start(&lab).await;
        let first_ping = invoker.first_ping.unwrap_or_default();
        println!("round {round}: first ping {first_ping:?} after the start");
    }
    settle(&lab, &tally, &base, &ids, "killed outright").await;
    // What was cut off is answered as a whisk error, recorded, and named as such.
    let mut cut_off = 0;
    for id in &ids {
        let record = lab.store.activation("guest", id, Duration::from_secs(20)).await;
        let record = record.unwrap_or_else(|| panic!("activation {id} has no record"));
        cut_off += usize::from(record["response"]["statusCode"] == 3);
    }
    assert!(invoker.stop().await.success());
    let again = lab.controller.finish_after_kills(KILLS).await;
    println!(
        "{} activations, {cut_off} cut off and answered as whisk errors, {again} acked again",
        ids.len()
    );
}
