//! What an operator deploys: rules, board, unit and image, each tried for real.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rewind_tests::env::repository;
use rewind_tests::invoker::binary;
use rewind_tests::lab::Lab;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};

fn deploy(path: &str) -> PathBuf {
    repository().join("deploy").join(path)
}

/// Whether a program is there; says aloud when it is not.
fn have(program: &str, package: &str, test: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|directory| directory.join(program).is_file()));
    if !found {
        eprintln!("SKIP {test}: {program} is not installed (apt-get install {package})");
    }
    found
}

fn succeeds(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}\n{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

#[test]
fn promtool_finds_no_fault_with_the_rules() {
    if !have("promtool", "prometheus", "promtool_finds_no_fault_with_the_rules") {
        return;
    }
    succeeds(Command::new("promtool").args(["check", "rules"]).arg(deploy("prometheus/rewind-rules.yml")));
    succeeds(Command::new("promtool").args(["test", "rules"]).arg(deploy("prometheus/unit-tests.yml")));
}

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    const TEST: &str = "systemd_finds_no_fault_with_the_unit";
    if !have("systemd-analyze", "systemd", TEST) {
        return;
    }
    // systemd wants the program to exist where the unit says it is.
    let directory = tempfile::tempdir().unwrap();
    let unit = std::fs::read_to_string(deploy("systemd/rewind-invoker.service")).unwrap();
    let path = directory.path().join("rewind-invoker.service");
    std::fs::write(&path, unit.replace("/usr/local/bin/rewind", "/bin/true")).unwrap();
    let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("rewind-invoker.service:"), "{said}");
}

/// The capabilities of unit and image recipe are those the program says it uses, and SETPCAP, by which it gives
/// up the rest.
#[test]
fn unit_and_image_grant_what_is_needed_and_no_more() {
    let needs = std::fs::read_to_string(repository().join("invoker/src/privileges.rs")).unwrap();
    let mut wanted: Vec<&str> = needs
        .split("pub const NEEDS")
        .nth(1)
        .and_then(|text| text.split("];").next())
        .expect("the table is there")
        .split("Capability::CAP_")
        .skip(1)
        .filter_map(|text| text.split(|c: char| !c.is_ascii_uppercase() && c != '_').next())
        .chain(["SETPCAP"])
        .collect();
    wanted.sort_unstable();

    let unit = std::fs::read_to_string(deploy("systemd/rewind-invoker.service")).unwrap();
    let line = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).unwrap();
    let mut granted: Vec<&str> = line.split(' ').filter_map(|name| name.strip_prefix("CAP_")).collect();
    granted.sort_unstable();
    assert_eq!(granted, wanted, "the unit");

    let arguments = std::fs::read_to_string(deploy("container/run-arguments")).unwrap();
    let mut granted: Vec<&str> =
        arguments.lines().filter_map(|line| line.strip_prefix("--cap-add=")).collect();
    granted.sort_unstable();
    assert_eq!(granted, wanted, "the container");
}

/// Removes a container when dropped.
struct Removed<'a>(&'a Lab, String);

impl Removed<'_> {
    fn docker(lab: &Lab) -> Command {
        let mut docker = Command::new("docker");
        docker.env("DOCKER_HOST", &lab.services.docker);
        docker
    }

    fn say(&self, arguments: &[&str]) -> String {
        let output = Self::docker(self.0).args(arguments).arg(&self.1).output().unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned() + &String::from_utf8_lossy(&output.stderr)
    }
}

impl Drop for Removed<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.say(&["logs", "--tail", "60"]));
        }
        self.say(&["rm", "--force"]);
    }
}

/// Whether a capability is in this process's bounding set: a machine may lack one, and cannot grant it then.
fn may_be_granted(name: &str) -> bool {
    // Numbers of linux/capability.h.
    let number = match name {
        "SYS_CHROOT" => 18,
        "SYS_PTRACE" => 19,
        "SYS_ADMIN" => 21,
        "SYS_NICE" => 23,
        "SYS_RESOURCE" => 24,
        "MKNOD" => 27,
        "SETFCAP" => 31,
        _ => return true,
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let bounding = status.lines().find_map(|line| line.strip_prefix("CapBnd:")).unwrap();
    u64::from_str_radix(bounding.trim(), 16).unwrap() >> number & 1 == 1
}

/// The image in the place of upstream's: the same arguments and environment, what `run-arguments` says, and an
/// activation answered and rewound; SIGTERM ends it with status 0.
#[tokio::test(flavor = "multi_thread")]
async fn the_image_takes_the_place_of_upstreams() {
    const TEST: &str = "the_image_takes_the_place_of_upstreams";
    const BASE: &str = "rewind-test/invoker-base:latest";
    const IMAGE: &str = "rewind-test/invoker:latest";
    if !have("mmdebstrap", "mmdebstrap", TEST) || !have("docker", "docker.io", TEST) {
        return;
    }
    let lab = Lab::new("image").await;
    let docker = || Removed::docker(&lab);
    if !docker().args(["image", "inspect", BASE]).output().unwrap().status.success() {
        let mut base = Command::new(deploy("container/base"));
        succeeds(base.arg(BASE).env("DOCKER_HOST", &lab.services.docker));
    }
    let mut build = Command::new(deploy("container/build"));
    succeeds(
        build
            .arg(IMAGE)
            .env("BASE", BASE)
            .env("REWIND_BINARY", binary())
            .env("DOCKER_HOST", &lab.services.docker),
    );

    let root = docker().args(["info", "--format", "{{.DockerRootDir}}"]).output().unwrap();
    let root = String::from_utf8(root.stdout).unwrap().trim().to_owned();
    let socket = lab.services.docker.strip_prefix("unix://").expect("the engine has a socket").to_owned();
    let name = format!("{}-invoker", lab.name);
    let mut run = docker();
    run.args(["run", "--detach", "--name", &name]);
    for argument in std::fs::read_to_string(deploy("container/run-arguments")).unwrap().lines() {
        if argument.starts_with("--volume=/var/lib/docker:") {
            run.arg(format!("--volume={root}:{root}"));
        } else if argument.starts_with("--volume=/var/run/docker.sock:") {
            run.arg(format!("--volume={socket}:/var/run/docker.sock"));
        } else if argument.starts_with("--volume=/var/lib/rewind:") {
            run.arg(format!("--volume={}:/var/lib/rewind", lab.services.run.join(&name).display()));
        } else if argument.strip_prefix("--cap-add=").is_some_and(|name| !may_be_granted(name)) {
            eprintln!("NOTE {TEST}: this machine has no {argument}, the container goes without");
        } else if argument.starts_with("--") {
            run.arg(argument);
        }
    }
    for (variable, value) in lab.invoker().environment() {
        // The rest is the image's own affair.
        if !matches!(variable.as_str(), "REWIND_DOCKER_HOST" | "DOCKER_HOST" | "REWIND_STATE_DIR") {
            run.arg("--env").arg(format!("{variable}={value}"));
        }
    }
    let line = format!("exec /init.sh --id 0 --uniqueName {}", lab.name);
    succeeds(run.args([IMAGE, "/bin/sh", "-c", &line]));
    let container = Removed(&lab, name);
    lab.controller.ping(|ping| ping["isEnabled"] == true).await;

    let code = "def main(args):\n    open('/tmp/left', 'w').write('x')\n    print('hello')\n    return {'ok': True}\n";
    lab.store.put_action(&Action::new("guest/image", "python-single:3.11", code)).await;
    for _ in 0..3 {
        let ack = lab.controller.ask(Activation::of("guest/image")).await;
        assert_eq!(ack.status(), Some(0), "{ack:?}");
    }
    container.say(&["stop", "--time", "60"]);
    assert_eq!(container.say(&["inspect", "--format", "{{.State.ExitCode}}"]), "0");
    let log = container.say(&["logs"]);
    assert!(!log.contains("cannot be proven pristine"), "{log}");
}

/// A Prometheus that was asked.
struct Prometheus {
    url: String,
    client: reqwest::Client,
}

impl Prometheus {
    async fn query(&self, query: &str) -> Vec<Value> {
        let url = reqwest::Url::parse_with_params(&format!("{}/api/v1/query", self.url), [("query", query)]);
        let answer = self.client.get(url.unwrap()).send().await.unwrap();
        let answer: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        answer["data"]["result"].as_array().expect("an instant query has a list").clone()
    }

    /// Waits until a query has a result that is a number.
    async fn until(&self, query: &str) -> Vec<Value> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let result = self.query(query).await;
            if result.iter().any(|one| one["value"][1] != "NaN") {
                return result;
            }
            assert!(Instant::now() < deadline, "no number within 60 s: {query}: {result:?}");
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
    }
}

/// Every `expr` of the board, with Grafana's variables filled in.
fn board_queries() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(deploy("grafana/rewind-invoker.json")).unwrap();
    let board: Value = serde_json::from_str(&text).unwrap();
    let mut queries = Vec::new();
    for panel in board["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let query = target["expr"].as_str().unwrap();
            let query = query.replace("$__rate_interval", "1m").replace("$instance", ".*");
            assert!(!query.contains('$'), "{query}");
            queries.push((panel["title"].as_str().unwrap().to_owned(), query));
        }
    }
    assert!(queries.len() > 30);
    queries
}

/// Panels that are empty as long as nothing bad has happened.
const EMPTY_IN_GOOD_TIMES: &[&str] = &["Quarantined, by reason"];

/// The names of contract 8.3, with the labels that upstream's boards group by.
const UPSTREAM: &[(&str, &[&str])] = &[
    ("gauge_containerPool_activeCount_counter", &[]),
    ("gauge_containerPool_prewarmCount_counter", &[]),
    ("counter_containerPool_prewarmColdstart_counter_total", &["kind", "memory"]),
    ("counter_invoker_containerStart_counter_total", &["containerState", "namespace", "action", "initiator"]),
    ("counter_invoker_activation_start_total", &[]),
    ("histogram_invoker_activationRun_finish_seconds_bucket", &["le"]),
    ("histogram_invoker_activationInit_finish_seconds_count", &[]),
    ("histogram_kafka_topic_start_seconds_sum", &["topic"]),
    ("gauge_kafka_topic_counter", &["topic"]),
    ("counter_invoker_docker_start_total", &["cmd"]),
    ("counter_http_get_counter_total", &["statusCode"]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_query_has_an_answer_from_a_real_prometheus() {
    const TEST: &str = "every_query_has_an_answer_from_a_real_prometheus";
    if !have("prometheus", "prometheus", TEST) {
        return;
    }
    let lab = Lab::new("deploy").await;
    let stems = json!([{
        "initialCount": 1, "memory": "256 MB",
        "reactive": {"minCount": 1, "maxCount": 2, "ttl": "1 second", "threshold": 1, "increment": 1}
    }]);
    let invoker = lab
        .invoker()
        .manifest(&rewind_tests::lab::manifest(&[("python-single:3.11", stems)]))
        .env("CONFIG_whisk_kafka_consumerLagCheckInterval", "1 s")
        .env("CONFIG_whisk_containerPool_prewarmExpirationCheckInitDelay", "1 s")
        .env("CONFIG_whisk_containerPool_prewarmExpirationCheckInterval", "1 s")
        .env("CONFIG_whisk_containerPool_prewarmExpirationCheckIntervalVariance", "0 s")
        .env("CONFIG_whisk_containerProxy_timeouts_pauseGrace", "200 ms")
        .start(&lab)
        .await;
    let exported = lab.services.start("prometheus");
    let prometheus = Prometheus { url: exported["PROMETHEUS_URL"].clone(), client: reqwest::Client::new() };
    let targets = json!([{"targets": [format!("127.0.0.1:{}", invoker.port())]}]);
    std::fs::write(lab.services.run.join("prometheus/targets.json"), targets.to_string()).unwrap();
    prometheus.until("up == 1").await;

    let code = "def main(args):\n    open('/tmp/left', 'w').write('x')\n    return {'ok': True}\n";
    for kind in ["python-single:3.11", "native:1"] {
        let name = format!("guest/{}", kind.split(':').next().unwrap());
        let code = if kind == "native:1" { "hello" } else { code };
        lab.store.put_action(&Action::new(&name, kind, code)).await;
    }
    // Cold starts at another memory than the stem cell's, then warm ones with a rewind between.
    lab.store.put_action(&Action::new("guest/small", "python-single:3.11", code).limit("memory", 128)).await;
    let until = Instant::now() + Duration::from_secs(15);
    let mut round = 0;
    while Instant::now() < until || round < 5 {
        for name in ["guest/python-single", "guest/small"] {
            let ack = lab.controller.ask(Activation::of(name)).await;
            assert_eq!(ack.status(), Some(0), "{ack:?}");
        }
        round += 1;
        // Scrapes come once a second; a few of them between the first event and the last.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    for (name, labels) in UPSTREAM {
        let series = match *name {
            // Moved only by the pool's periodic look at stem cells.
            "counter_containerPool_prewarmColdstart_counter_total"
                if prometheus.query(name).await.is_empty() =>
            {
                continue;
            }
            name => prometheus.until(name).await,
        };
        for label in *labels {
            assert!(series.iter().all(|one| one["metric"][label].is_string()), "{name} without {label}");
        }
    }

    for (panel, query) in board_queries() {
        if EMPTY_IN_GOOD_TIMES.contains(&panel.as_str()) {
            prometheus.query(&query).await;
        } else {
            prometheus.until(&query).await;
        }
    }

    let rules: Value = serde_json::from_str(
        &prometheus
            .client
            .get(format!("{}/api/v1/rules", prometheus.url))
            .send()
            .await
            .unwrap()
            .text()
            .await
            .unwrap(),
    )
    .unwrap();
    let mut count = 0;
    for group in rules["data"]["groups"].as_array().unwrap() {
        for rule in group["rules"].as_array().unwrap() {
            count += 1;
            assert_eq!(rule["health"], "ok", "{rule}");
            if rule["type"] == "recording" {
                prometheus.until(rule["name"].as_str().unwrap()).await;
            } else {
                assert_ne!(rule["state"], "firing", "in good times: {rule}");
                // An alert that looks at a name nobody exports would be silent for ever.
                for name in names(rule["query"].as_str().unwrap()) {
                    prometheus.until(&name).await;
                }
            }
        }
    }
    assert!(count > 15, "the rules are loaded: {rules}");
    assert!(invoker.stop().await.success());
}

/// Names of metrics in a query: words with an underscore or a colon that are no function, label or keyword.
fn names(query: &str) -> Vec<String> {
    let mut names: Vec<String> = query
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| {
            ["rewind", "invoker:", "gauge_", "counter_", "histogram_"]
                .iter()
                .any(|start| word.starts_with(start))
                || *word == "up"
        })
        .map(str::to_owned)
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}
