//! The action images answer as the stock runtimes do: what was sent to the genuine ones is sent to ours, and
//! status, headers, body and log lines are compared (contract 5.10).
//!
//! Left out of the comparison, because they name files, lines and processes of the implementation: frames of
//! stack traces, process ids, names of temporary directories, the hash of a body that differs in those.

use rewind_tests::docker::Docker;
use rewind_tests::env::Services;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::Path;
use std::time::{Duration, Instant};

const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// Differences that are known and accepted, each with its reason.
const ACCEPTED: &[(&str, &str)] =
    &[("nodejs/require", "the stock image brings npm packages (openwhisk, uuid); ours brings none")];

#[derive(Debug, Deserialize)]
struct Case {
    case: String,
    memory: String,
    env: BTreeMap<String, String>,
    steps: Vec<Step>,
    state: State,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "PascalCase")]
struct State {
    status: String,
    #[serde(rename = "OOMKilled")]
    oom_killed: bool,
    exit_code: i64,
}

/// One request and what came of it.
#[derive(Debug, Deserialize)]
struct Step {
    title: String,
    head: String,
    body: String,
    status: Option<u16>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    answer: Option<String>,
    /// Why there was no answer: `closed` or `timeout`.
    none: Option<String>,
    after_ms: Option<u64>,
    log: Vec<(String, String)>,
    /// The recording of the log was cut.
    #[serde(default)]
    log_cut: bool,
}

#[derive(Debug, Default)]
struct Answer {
    status: Option<u16>,
    headers: BTreeMap<String, String>,
    body: String,
}

#[test]
fn the_node_image_answers_as_the_stock_one() {
    replay_all("nodejs", "rewind-test/action-nodejs");
}

#[test]
fn the_actionloop_image_answers_as_the_stock_one() {
    replay_all("python", "rewind-test/action-actionloop-python");
}

fn replay_all(language: &str, image: &str) {
    let docker = Docker::at(&Services::get().docker);
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/runtimes").join(language);
    let mut cases: Vec<Case> = std::fs::read_dir(&folder)
        .expect("the fixtures are there")
        .map(|entry| std::fs::read(entry.expect("a readable directory").path()).expect("a readable file"))
        .map(|text| serde_json::from_slice(&text).expect("a fixture can be read"))
        .collect();
    cases.sort_by(|a, b| a.case.cmp(&b.case));
    assert!(cases.len() > 30, "only {} cases", cases.len());
    let mut differences = Vec::new();
    for case in &cases {
        let name = format!("rwruntime-{}-{}", std::process::id(), case.case.replace('/', "-"));
        let found = replay(&docker, &name, image, case);
        docker.remove_all(&name);
        if let Some((_, why)) = ACCEPTED.iter().find(|(name, _)| *name == case.case) {
            println!("accepted {}: {why}", case.case);
            continue;
        }
        println!("{} {}", if found.is_empty() { "same     " } else { "DIFFERENT" }, case.case);
        differences.extend(found.into_iter().map(|text| format!("{}: {text}", case.case)));
    }
    assert!(differences.is_empty(), "{} differences\n{}", differences.len(), differences.join("\n"));
}

fn replay(docker: &Docker, name: &str, image: &str, case: &Case) -> Vec<String> {
    let env: Vec<String> = case.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut args = vec!["run", "-d", "--name", name, "--memory", &case.memory, "--memory-swap", &case.memory];
    args.extend([
        "--cap-drop",
        "NET_RAW",
        "--cap-drop",
        "NET_ADMIN",
        "--ulimit",
        "nofile=1024:1024",
        "--pids-limit",
        "1024",
    ]);
    args.extend(["--log-driver", "json-file", "-e", "__OW_API_HOST=http://172.17.0.1:10001"]);
    for setting in &env {
        args.extend(["-e", setting]);
    }
    args.push(image);
    let id = docker.run(&args);
    let inspected = docker.inspect(&id);
    let address =
        inspected["NetworkSettings"]["IPAddress"].as_str().expect("a running container has an address");
    let address: SocketAddr = format!("{address}:8080").parse().expect("an address");
    let log_path = inspected["LogPath"].as_str().expect("the json-file driver has a path").to_owned();
    wait_for_port(address);

    let mut differences = Vec::new();
    let mut read = 0;
    for (number, step) in case.steps.iter().enumerate() {
        // What the recorder waited for cannot be seen from here: that an action ends its process 0.1 s after
        // its answer, or that a run nobody listens to any more is over.
        match step.title.as_str() {
            "after death" => std::thread::sleep(Duration::from_millis(500)),
            "later" => std::thread::sleep(Duration::from_millis(1200)),
            _ => {}
        }
        let answer = exchange(address, step);
        let log = new_log_lines(&log_path, &mut read, &step.log);
        let wrong = compare(step, &answer, &log);
        differences
            .extend(wrong.into_iter().map(|text| format!("request {} {}: {text}", number + 1, step.title)));
    }
    let state: State =
        serde_json::from_value(docker.inspect(&id)["State"].take()).expect("a container has a state");
    if state != case.state {
        differences.push(format!("state {state:?}, recorded {:?}", case.state));
    }
    differences
}

fn wait_for_port(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while TcpStream::connect_timeout(&address, Duration::from_secs(1)).is_err() {
        assert!(Instant::now() < deadline, "{address} does not listen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends what was sent; waits for an answer as long as the recorder did, but at most a second for one that
/// never came.
fn exchange(address: SocketAddr, step: &Step) -> Answer {
    let chunked = step.head.contains("chunked");
    let head = step.head.replace('\n', "\r\n");
    let body =
        if chunked { step.body.trim_end().replace('\n', "\r\n") + "\r\n\r\n" } else { step.body.clone() };
    let patience = match (&step.none, step.after_ms) {
        (Some(none), Some(after)) if none == "timeout" => Duration::from_millis(after.min(1000)),
        _ => Duration::from_secs(30),
    };
    let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else { return Answer::default() };
    stream.set_read_timeout(Some(patience)).expect("a timeout can be set");
    if stream.write_all(format!("{head}\r\n\r\n{body}").as_bytes()).is_err() {
        return Answer::default();
    }
    let mut bytes = Vec::new();
    let mut chunk = [0; 65536];
    loop {
        match stream.read(&mut chunk) {
            Ok(n) if n > 0 => bytes.extend_from_slice(&chunk[..n]),
            _ => break,
        }
        if complete(&bytes) {
            break;
        }
    }
    let _ = stream.shutdown(Shutdown::Both);
    parse(&bytes)
}

/// Whether the announced body is there; some recorded clients did not ask for the connection's end.
fn complete(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, _)) = text.split_once("\r\n\r\n") else { return false };
    let length =
        head.lines().find_map(|l| l.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned));
    length.and_then(|l| l.parse::<usize>().ok()).is_some_and(|length| bytes.len() >= head.len() + 4 + length)
}

fn parse(bytes: &[u8]) -> Answer {
    let text = String::from_utf8_lossy(bytes);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return Answer::default() };
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let headers = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
        .collect();
    Answer { status, headers, body: body.to_owned() }
}

/// The log lines since the last call, once they are what was recorded, or after a moment.
fn new_log_lines(path: &str, read: &mut usize, recorded: &[(String, String)]) -> Vec<(String, String)> {
    let wanted = normal_log(recorded);
    // That nothing comes is only seen by waiting.
    let quiet = Duration::from_millis(if wanted.is_empty() { 100 } else { 0 });
    let start = Instant::now();
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        let lines: Vec<(String, String)> = text
            .lines()
            .skip(*read)
            .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
            .map(|v| {
                (
                    v["stream"].as_str().unwrap_or_default().to_owned(),
                    v["log"].as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        let waited = start.elapsed();
        if (normal_log(&lines) == wanted && waited >= quiet) || waited > Duration::from_secs(2) {
            *read += lines.len();
            return lines;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn compare(step: &Step, answer: &Answer, log: &[(String, String)]) -> Vec<String> {
    let mut wrong = Vec::new();
    if answer.status != step.status {
        wrong.push(format!("status {:?}, recorded {:?} ({})", answer.status, step.status, answer.body));
    }
    if let Some(recorded) = &step.answer {
        let (ours, theirs) = (normal(&answer.body), normal(recorded));
        if ours != theirs {
            wrong.push(format!("body {ours:?}, recorded {theirs:?}"));
        }
        let identical = answer.body == *recorded;
        for (name, value) in &step.headers {
            let depends_on_the_body = matches!(name.as_str(), "content-length" | "etag");
            match answer.headers.get(name) {
                Some(found) if found == value || (depends_on_the_body && !identical) => {}
                found => wrong.push(format!("header {name} {found:?}, recorded {value:?}")),
            }
        }
    }
    if !step.log_cut {
        let (ours, theirs) = (normal_log(log), normal_log(&step.log));
        if ours != theirs {
            wrong.push(format!("log {ours:?}, recorded {theirs:?}"));
        }
    }
    wrong
}

/// A body without what depends on the implementation.
fn normal(body: &str) -> String {
    let mut out = String::new();
    let mut rest = body;
    // Frames of a JavaScript stack inside a JSON string: "\n    at ..." up to the end of the string.
    while let Some(at) = rest.find("\\n    at ") {
        out.push_str(&rest[..at]);
        rest = &rest[at + 2..];
        let end = rest.find("\\n").into_iter().chain(rest.find('"')).min().unwrap_or(rest.len());
        rest = &rest[end..];
    }
    out.push_str(rest);
    let out = replace_after(&out, "/nodejsAction/", |c| c.is_ascii_alphanumeric(), "DIR");
    replace_after(&out.replace("\"pid\": ", "\"pid\":"), "\"pid\":", |c| c.is_ascii_digit(), "N")
}

/// Replaces the run of characters behind each `marker`.
fn replace_after(text: &str, marker: &str, of: fn(char) -> bool, with: &str) -> String {
    let mut parts = text.split(marker);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        out.push_str(marker);
        out.push_str(with);
        out.push_str(part.trim_start_matches(of));
    }
    out
}

/// The lines of a log without frames of stack traces and times, sorted: the order between the two streams is
/// arbitrary, and so is where the copier of the engine cuts.
fn normal_log(lines: &[(String, String)]) -> Vec<String> {
    let frame = |text: &str| {
        text.starts_with("  ")
            || text.starts_with("Traceback")
            || text.starts_with("<anonymous_script>")
            || text.starts_with("\u{2002}")
            || text == "\n"
            || text.starts_with("node:")
            || text.starts_with('<')
            || text.contains("Mark-Compact")
            || text.contains("Scavenge")
            || text.starts_with(char::is_numeric) && text.contains(": 0x")
            || text.starts_with("Node.js v")
    };
    let mut all: Vec<String> = lines
        .iter()
        .filter(|(_, text)| !frame(text))
        .map(|(stream, text)| {
            // Go's logger begins with the date and the time.
            let dated = text.len() > 20 && text.as_bytes()[4] == b'/' && text.as_bytes()[10] == b' ';
            let text = if dated { &text[20..] } else { text };
            let text = text.replace(SENTINEL, "SENTINEL");
            format!("{stream}: {}", text.trim_end())
        })
        .collect();
    all.sort();
    all
}
