//! What this kernel and these permissions allow.

use crate::sys::{memory, process};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd};

/// One thing the engine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Short name, stable.
    pub name: &'static str,
    /// What was found; `Err` says what is missing and how to get it.
    pub state: Result<String, String>,
    /// Whether the `pagemap` engine cannot work without it.
    pub required: bool,
}

/// The answer of [`probe`], asked once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Everything looked at, in reading order.
    pub features: Vec<Feature>,
}

impl KernelFeatures {
    /// Whether the `pagemap` engine can work here.
    #[must_use]
    pub fn pagemap(&self) -> bool {
        self.missing().next().is_none()
    }

    /// What the `pagemap` engine needs and does not have.
    pub fn missing(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|f| f.required && f.state.is_err())
    }
}

impl fmt::Display for KernelFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for feature in &self.features {
            match &feature.state {
                Ok(found) => writeln!(f, "{:<24} ok       {found}", feature.name)?,
                Err(missing) if feature.required => writeln!(f, "{:<24} MISSING  {missing}", feature.name)?,
                Err(missing) => writeln!(f, "{:<24} absent   {missing}", feature.name)?,
            }
        }
        Ok(())
    }
}

/// The oldest kernel with asynchronous write protection and page-map scans.
const KERNEL_MIN: (u32, u32) = (6, 7);

const CAP_SYS_PTRACE: u32 = 19;
const CAP_SYS_ADMIN: u32 = 21;
const CAP_SYS_RESOURCE: u32 = 24;
const CAP_KILL: u32 = 5;

/// Looks at this machine: what the kernel has, and what this process may do.
#[must_use]
pub fn probe() -> KernelFeatures {
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    let mut features = Vec::new();
    let mut add = |name, required, state| features.push(Feature { name, state, required });
    add("kernel", true, kernel());
    add(
        "write_tracking",
        true,
        memory::probe_tracking().map(|()| "userfaultfd WP_ASYNC, PAGEMAP_SCAN".to_owned()),
    );
    add("pidfd_getfd", true, pidfd_getfd());
    add("kcmp", true, kcmp());
    add("cap_sys_ptrace", true, capability(&status, CAP_SYS_PTRACE, "CAP_SYS_PTRACE"));
    add("cap_sys_admin", true, capability(&status, CAP_SYS_ADMIN, "CAP_SYS_ADMIN"));
    // Without it a request that lowers a hard limit costs the container instead of being undone.
    add("cap_sys_resource", false, capability(&status, CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE"));
    add("cap_kill", true, capability(&status, CAP_KILL, "CAP_KILL"));
    add("yama", true, yama());
    add("unfiltered", true, unfiltered(&status));
    add("executable_memfd", true, executable_memfd());
    add("cgroup", true, cgroup());
    add("proc_children", false, exists("/proc/thread-self/children", "CONFIG_PROC_CHILDREN"));
    add("proc_timers", false, exists("/proc/self/timers", "CONFIG_CHECKPOINT_RESTORE"));
    // Without it every rewind looks at everything.
    add("census", false, census());
    KernelFeatures { features }
}

fn census() -> Result<String, String> {
    match crate::census::shared() {
        Ok(program) => Ok(program.to_string()),
        Err(why) => {
            Err(format!("{why}: rewinds look at everything through /proc and cost several times as much"))
        }
    }
}

fn kernel() -> Result<String, String> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    match version(release) {
        Some(found) if found >= KERNEL_MIN => Ok(release.to_owned()),
        _ => Err(format!("{release}: the pagemap engine needs Linux {}.{}", KERNEL_MIN.0, KERNEL_MIN.1)),
    }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn pidfd_getfd() -> Result<String, String> {
    let pid = nix::unistd::getpid().as_raw();
    let pipe = nix::unistd::pipe().map_err(|e| format!("pipe: {e}"))?;
    process::pidfd_open(pid)
        .and_then(|pidfd| process::pidfd_getfd(pidfd.as_fd(), pipe.0.as_raw_fd()))
        .map(|_| "ok".to_owned())
        .map_err(|e| format!("pidfd_getfd: {e} (Linux 5.6; not filtered by seccomp)"))
}

fn kcmp() -> Result<String, String> {
    let pid = nix::unistd::getpid().as_raw();
    process::same(pid, pid, process::Shared::Files)
        .map(|_| "ok".to_owned())
        .map_err(|e| format!("kcmp: {e} (CONFIG_KCMP)"))
}

fn capability(status: &[u8], bit: u32, name: &str) -> Result<String, String> {
    let effective = crate::proc::field(status, "CapEff").and_then(|caps| u64::from_str_radix(caps, 16).ok());
    match effective {
        Some(caps) if caps >> bit & 1 == 1 => Ok("held".to_owned()),
        _ => Err(format!("{name} is missing: add it to the invoker's container or unit")),
    }
}

fn yama() -> Result<String, String> {
    // Absent: Yama is not built in, which allows what the capabilities allow.
    match std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope") {
        Ok(scope) if scope.trim() == "3" => {
            Err("kernel.yama.ptrace_scope is 3: nobody may trace, and only a reboot changes it".to_owned())
        }
        Ok(scope) => Ok(format!("ptrace_scope {}", scope.trim())),
        Err(_) => Ok("not present".to_owned()),
    }
}

/// The kernel lets only a tracer without a seccomp filter suspend that of its tracee.
fn unfiltered(status: &[u8]) -> Result<String, String> {
    match crate::proc::field(status, "Seccomp") {
        Some("0") | None => Ok("no seccomp filter on this process".to_owned()),
        Some(mode) => Err(format!("seccomp mode {mode} on this process: run it with seccomp=unconfined")),
    }
}

/// The agent is code in a memory file.
fn executable_memfd() -> Result<String, String> {
    match std::fs::read_to_string("/proc/sys/vm/memfd_noexec") {
        Ok(mode) if mode.trim() == "2" => {
            Err("vm.memfd_noexec is 2: executable memory files are forbidden; set it to 0 or 1".to_owned())
        }
        _ => Ok("allowed".to_owned()),
    }
}

fn cgroup() -> Result<String, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let has = |kind: &str| mounts.lines().any(|line| line.contains(&format!(" - {kind} ")));
    match (has("cgroup2"), has("cgroup")) {
        (true, true) => Ok("versions 1 and 2".to_owned()),
        (true, false) => Ok("version 2".to_owned()),
        (false, true) => Ok("version 1".to_owned()),
        (false, false) => Err("no control group hierarchy is mounted: mount the host's".to_owned()),
    }
}

fn exists(path: &str, option: &str) -> Result<String, String> {
    match std::fs::metadata(path) {
        Ok(_) => Ok("present".to_owned()),
        Err(_) => Err(format!("{path} is absent ({option})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("6.7-rc1"), Some((6, 7)));
        assert!(version("6.18").expect("a version") > KERNEL_MIN);
        assert_eq!(version("nonsense"), None);
    }

    #[test]
    fn a_missing_requirement_forbids_the_engine_and_says_how_to_get_it() {
        let missing = Feature { name: "x", state: Err("get it there".to_owned()), required: true };
        let optional = Feature { required: false, ..missing.clone() };
        assert!(KernelFeatures { features: vec![optional] }.pagemap());
        let features = KernelFeatures { features: vec![missing] };
        assert!(!features.pagemap());
        assert!(features.to_string().contains("MISSING  get it there"));
    }

    #[test]
    fn capabilities_are_read_by_bit() {
        let status = b"CapEff:\t0000000000080000\n";
        assert!(capability(status, CAP_SYS_PTRACE, "CAP_SYS_PTRACE").is_ok());
        assert!(capability(status, CAP_SYS_ADMIN, "CAP_SYS_ADMIN").is_err());
        assert!(capability(b"", CAP_SYS_ADMIN, "CAP_SYS_ADMIN").is_err());
    }
}
