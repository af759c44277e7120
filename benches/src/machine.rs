//! What the machine is, kept beside every run.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// Kernel, processors, memory, huge pages, swap, Docker and this source tree.
#[must_use]
pub fn describe() -> Value {
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let meminfo = read("/proc/meminfo");
    let memory = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.map_or("unknown", str::trim).to_owned()
    };
    json!({
        "kernel": read("/proc/sys/kernel/osrelease"),
        "boot_options": boot_options(&read("/proc/cmdline")),
        "cpu": model.map_or("unknown", |(_, model)| model),
        "cpus": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "virtual": cpuinfo.lines().any(|line| line.starts_with("flags") && line.contains(" hypervisor")),
        "memory": memory("MemTotal"),
        "swap": memory("SwapTotal"),
        "transparent_hugepage": read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "load_before": read("/proc/loadavg"),
        "docker": output("docker", &["version", "--format", "{{.Server.Version}} {{.Server.Os}}/{{.Server.Arch}}"]),
        "storage_driver": output("docker", &["info", "--format", "{{.Driver}}, cgroup v{{.CgroupVersion}}"]),
        "source": output("git", &["describe", "--always", "--dirty", "--abbrev=12"]),
    })
}

/// What of the kernel's command line changes how fast it is; the rest is nobody's business.
fn boot_options(command_line: &str) -> Vec<&str> {
    let names = ["mitigations", "transparent_hugepage", "isolcpus", "nohz_full", "idle", "psi", "preempt"];
    let told = |option: &&str| option.split_once('=').is_some_and(|(name, _)| names.contains(&name));
    command_line.split_whitespace().filter(told).collect()
}

/// A name for the machine that says what it is, not whose: `2cpu-linux-6.18.5`.
#[must_use]
pub fn name() -> String {
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let kernel = read("/proc/sys/kernel/osrelease");
    let plain: String = kernel.chars().take_while(|c| c.is_ascii_digit() || *c == '.').collect();
    format!("{cpus}cpu-linux-{}", plain.trim_end_matches('.'))
}

/// Today, `2026-11-21`.
#[must_use]
pub fn date() -> String {
    output("date", &["-u", "+%Y-%m-%d"])
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn output(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).stdin(Stdio::null()).output();
    output.map_or_else(
        |error| error.to_string(),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
