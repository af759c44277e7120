//! How many processes of a container the kernel has killed for want of memory (contract 5.7).
//!
//! Upstream polls Docker's idea of it for up to 12 s after every broken connection. The control group knows at
//! once, and knows more: a child that is killed while the container lives on is in no state of Docker's.

use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Reads the counter `oom_kill` of one control group: `memory.oom_control` in version 1 (Linux >= 4.13),
/// `memory.events` in version 2.
#[derive(Debug)]
pub struct OomCounter {
    file: Option<File>,
}

impl OomCounter {
    /// The counter of the control group that `init` is in.
    ///
    /// # Errors
    /// When no memory control group of its own can be found for it, or its file cannot be opened.
    pub fn of(init: Pid) -> io::Result<Self> {
        let groups = std::fs::read_to_string(format!("/proc/{init}/cgroup"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let path = counter_path(&groups, &mounts).ok_or_else(|| {
            io::Error::new(
                io::ErrorKind::NotFound,
                format!("process {init} has no memory control group mounted here"),
            )
        })?;
        Ok(Self { file: Some(File::open(path)?) })
    }

    /// A counter that never has an answer.
    #[must_use]
    pub const fn absent() -> Self {
        Self { file: None }
    }

    /// Its value; `None` when the group is gone, which it soon is after the container's end.
    #[must_use]
    pub fn read(&self) -> Option<u64> {
        let mut text = [0_u8; 1024];
        let length = self.file.as_ref()?.read_at(&mut text, 0).ok()?;
        parse_oom_kill(&text[..length])
    }
}

fn parse_oom_kill(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
}

/// The file with the counter, from `/proc/<pid>/cgroup` and `/proc/self/mountinfo`.
fn counter_path(groups: &str, mounts: &str) -> Option<PathBuf> {
    // `4:memory:/docker/<id>` (version 1) or `0::/system.slice/docker-<id>.scope` (version 2). A host that mounts
    // both has the memory controller in version 1.
    let mut version_2 = None;
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, group) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|c| c == "memory") {
            return below_mount(mounts, group, |kind, options| {
                kind == "cgroup" && options.split(',').any(|o| o == "memory")
            })
            .map(|directory| directory.join("memory.oom_control"));
        }
        if controllers.is_empty() {
            version_2 = Some(group);
        }
    }
    below_mount(mounts, version_2?, |kind, _| kind == "cgroup2")
        .map(|directory| directory.join("memory.events"))
}

/// The directory of `group` below the mount that `wanted` picks by type and options.
fn below_mount(mounts: &str, group: &str, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        // `36 35 0:30 <root> <mount point> <options> [tags] - <type> <source> <super options>`
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let (kind, _, options) = (after.next()?, after.next()?, after.next()?);
        if !wanted(kind, options) {
            return None;
        }
        let mut before = before.split(' ').skip(3);
        let (root, point) = (before.next()?, before.next()?);
        let inside = if root == "/" { group } else { group.strip_prefix(root)? };
        // The root group counts for everybody.
        (group != "/").then(|| PathBuf::from(format!("{point}{inside}")))
    })
}

#[cfg(test)]
mod tests {
    use super::{counter_path, parse_oom_kill};
    use std::path::Path;

    const V1: &str = "33 24 0:29 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        34 33 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
        40 33 0:36 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n";

    #[test]
    fn version_1_comes_before_an_empty_version_2() {
        let groups = "5:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/docker/abc\n";
        let path = counter_path(groups, V1).expect("path");
        assert_eq!(path, Path::new("/sys/fs/cgroup/memory/docker/abc/memory.oom_control"));
    }

    #[test]
    fn version_2_alone() {
        let mounts = "30 24 0:27 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n";
        let path = counter_path("0::/system.slice/docker-abc.scope\n", mounts).expect("path");
        assert_eq!(path, Path::new("/sys/fs/cgroup/system.slice/docker-abc.scope/memory.events"));
    }

    #[test]
    fn a_mount_of_a_part_is_followed() {
        let mounts = "30 24 0:27 /docker /cg rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            counter_path("0::/docker/abc\n", mounts).expect("path"),
            Path::new("/cg/abc/memory.events")
        );
        assert_eq!(counter_path("0::/elsewhere/abc\n", mounts), None);
    }

    #[test]
    fn the_root_group_is_nobodys_own() {
        assert_eq!(counter_path("5:memory:/\n", V1), None);
    }

    #[test]
    fn both_versions_name_the_counter_alike() {
        assert_eq!(parse_oom_kill(b"oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(parse_oom_kill(b"low 0\nhigh 0\nmax 12\noom 4\noom_kill 2\noom_group_kill 0\n"), Some(2));
        assert_eq!(parse_oom_kill(b"oom_kill_disable 0\n"), None);
        assert_eq!(parse_oom_kill(b""), None);
    }
}
