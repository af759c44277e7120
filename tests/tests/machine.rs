//! Machines that lack something: root's rights, a kernel with page-map scans. The program says what is missing
//! and how to get it, refuses what it cannot give, and gives the rest.

use rewind_tests::Lab;
use rewind_tests::invoker::binary;
use rewind_tests::message::{Action, Activation};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// How long a start that fails may take to say so.
const SOON: Duration = Duration::from_secs(60);
/// Runs a command as nobody, without any capability.
const AS_NOBODY: &[&str] = &[
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=-all",
    "--bounding-set=-all",
];

/// `old_kernel COMMAND...`, compiled, and where it is.
fn old_kernel() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder can be made");
    let program = folder.path().join("old_kernel");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/machine/old_kernel.c");
    let flags = ["-O2", "-Wall", "-Wextra", "-Werror", "-o"];
    let status = Command::new("gcc").args(flags).arg(&program).arg(source).status();
    assert!(status.expect("gcc is needed for the wrapper").success());
    (folder, program.display().to_string())
}

/// The program where everybody can read it.
fn public_binary() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o755)).expect("our own");
    std::fs::copy(binary(), folder.path().join("rewind")).expect("it can be copied");
    folder
}

/// Runs a command with these variables and no others.
fn run(words: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(environment.iter().copied()).stdin(Stdio::null());
    command.output().unwrap_or_else(|e| panic!("{}: {e}", words[0]))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `rewind check --json ARGS...` says, and whether it exits with success, started by `wrapper`.
fn check(wrapper: &[&str], program: &Path, isolation: &str) -> (Value, bool) {
    let program = program.display().to_string();
    let words = [wrapper, &[&program, "check", "--json", "--isolation", isolation]].concat();
    let output = run(&words, &[]);
    let report = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|e| panic!("{e}: {} {}", text(&output.stdout), text(&output.stderr)));
    (report, output.status.success())
}

/// The findings of an area and name.
fn finding<'a>(report: &'a Value, area: &str, name: &str) -> &'a Value {
    let findings = report["findings"].as_array().expect("a list");
    let found = findings.iter().find(|finding| finding["area"] == area && finding["name"] == name);
    found.unwrap_or_else(|| panic!("nothing about {area}, {name}: {report:#}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn without_page_map_scans_the_check_says_so_and_how_to_go_on() {
    let (_folder, wrapper) = old_kernel();
    let (report, success) = check(&[&wrapper], &binary(), "rewind");
    assert!(!success && report["starts"] == false, "{report:#}");
    let kernel = finding(&report, "engine", "kernel");
    assert_eq!(kernel["status"], "missing", "{kernel}");
    assert_eq!(kernel["found"], "6.1.0-37-amd64: the pagemap engine needs Linux 6.7");
    let tracking = finding(&report, "engine", "write_tracking");
    assert_eq!(tracking["status"], "missing", "{tracking}");
    let found = tracking["found"].as_str().expect("a text");
    assert!(found.starts_with("PAGEMAP_SCAN: ENOTTY") && found.ends_with("(Linux 6.7)"), "{found}");
    let isolation = finding(&report, "engine", "isolation");
    assert_eq!(isolation["status"], "missing", "{isolation}");
    assert!(isolation["remedy"].as_str().is_some_and(|text| text.contains("single-use")), "{isolation}");

    // The same machine is good enough for what needs no engine.
    for (mode, status) in [("single-use", "ok"), ("none", "warning")] {
        let (report, success) = check(&[&wrapper], &binary(), mode);
        assert!(success && report["starts"] == true, "{mode}: {report:#}");
        assert_eq!(finding(&report, "engine", "isolation")["status"], status, "{mode}");
        assert_eq!(finding(&report, "engine", "write_tracking")["status"], "warning", "{mode}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_page_map_scans_it_refuses_the_rewind_and_serves_the_other_ways() {
    let (_folder, wrapper) = old_kernel();
    let lab = Lab::new("oldkernel").await;
    // Said aloud or by default.
    for builder in [lab.invoker(), lab.invoker().isolation("rewind")] {
        let mut invoker = builder.through(&[&wrapper]).spawn();
        let status = invoker.exited(SOON).await.expect("it does not stay");
        assert!(!status.success());
        let output = invoker.output();
        for said in [
            "cannot start: containers cannot be rewound on this machine, which lacks: kernel, write_tracking",
            "`--isolation single-use`",
        ] {
            assert!(output.contains(said), "it does not say {said:?}:\n{output}");
        }
    }
    let revision = lab.store.put_action(&Action::new("guest/echo", "native:1", "global")).await;
    for isolation in ["single-use", "none"] {
        let invoker = lab.invoker().isolation(isolation).through(&[&wrapper]).start(&lab).await;
        let mut found = Value::Null;
        for n in 0..3 {
            let content = json!({"secret": format!("s{n}")});
            let base = Activation::of("guest/echo").revision(&revision);
            found = lab.controller.ask(base.content(content)).await.result()["found"].clone();
        }
        assert_eq!(found, if isolation == "none" { json!(["global"]) } else { json!([]) }, "{isolation}");
        assert!(invoker.stop().await.success());
    }
    lab.controller.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_the_check_says_what_is_missing_and_how_to_get_it() {
    let folder = public_binary();
    let program = folder.path().join("rewind");
    let (report, success) = check(AS_NOBODY, &program, "rewind");
    assert!(!success && report["starts"] == false, "{report:#}");
    for name in ["SYS_PTRACE", "SYS_ADMIN", "KILL", "DAC_OVERRIDE", "DAC_READ_SEARCH", "CHOWN", "FOWNER"] {
        let finding = finding(&report, "machine", &format!("CAP_{name}"));
        assert_eq!(finding["status"], "missing", "{finding}");
        assert_eq!(finding["remedy"], format!("run as root, or with --cap-add={name}"));
    }
    let isolation = finding(&report, "engine", "isolation");
    assert_eq!(isolation["status"], "missing", "{isolation}");
    // Less is needed without an engine, and still more than nobody has.
    let (report, success) = check(AS_NOBODY, &program, "single-use");
    assert!(!success, "{report:#}");
    assert_eq!(finding(&report, "machine", "CAP_KILL")["status"], "missing");
    assert_eq!(finding(&report, "engine", "isolation")["status"], "ok");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_it_does_not_start_and_says_what_is_missing() {
    let lab = Lab::new("nobody").await;
    let folder = public_binary();
    let program = folder.path().join("rewind").display().to_string();
    let state = folder.path().join("state").display().to_string();
    for (isolation, reason) in [
        ("rewind", "which lacks: cap_sys_ptrace, cap_sys_admin, cap_kill"),
        // It gets as far as the engine's socket, which is root's.
        ("single-use", "docker engine at unix://"),
    ] {
        let builder = lab.invoker().env("REWIND_STATE_DIR", &state);
        let environment: Vec<(&str, &str)> =
            builder.environment().iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let words = [AS_NOBODY, &[&program, "invoker", "--id", "0", "--isolation", isolation]].concat();
        let output = run(&words, &environment);
        assert!(!output.status.success(), "{isolation}");
        let said = text(&output.stderr) + &text(&output.stdout);
        assert!(said.contains("cannot start: ") && said.contains(reason), "{isolation}: {said}");
        assert!(said.contains("absent, needed to") && said.contains("CAP_KILL"), "{isolation}: {said}");
    }
    assert!(lab.controller.pings().is_empty(), "it told the controllers of itself");
    lab.controller.finish().await;
}

#[test]
fn without_root_the_installer_says_what_it_would_have_installed() {
    let folder = tempfile::tempdir().expect("a folder can be made");
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).expect("our own");
    // Every program of this machine but some.
    let path = folder.path().join("bin");
    std::fs::create_dir(&path).expect("our own");
    for directory in ["/usr/sbin", "/usr/bin", "/sbin", "/bin"] {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if !matches!(entry.file_name().to_str(), Some("go" | "jq" | "node" | "promtool")) {
                let _ = std::os::unix::fs::symlink(entry.path(), path.join(entry.file_name()));
            }
        }
    }
    // Nobody may not look into a private checkout.
    let scripts = folder.path().join("tests/env");
    std::fs::create_dir_all(&scripts).expect("our own");
    for script in ["install", "lib.sh"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("env").join(script);
        std::fs::copy(from, scripts.join(script)).expect("it can be copied");
    }
    let install = scripts.join("install").display().to_string();
    let (path, cache) = (path.display().to_string(), folder.path().join("cache").display().to_string());
    let words = [AS_NOBODY, &["/bin/bash", &install, "packages"]].concat();
    let output = run(&words, &[("PATH", &path), ("REWIND_CACHE", &cache)]);
    let said = text(&output.stderr);
    assert!(!output.status.success(), "{said}");
    assert!(
        said.contains("apt-get install golang-go jq nodejs prometheus") && said.contains("root"),
        "{said}"
    );
}
