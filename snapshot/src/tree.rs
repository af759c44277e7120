//! Which processes belong to a container.

use nix::unistd::Pid;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// A container, named by its first process.
#[derive(Debug, Clone)]
pub struct Target {
    init: Pid,
    cgroup: Cgroup,
}

/// Why a pid names no container that can be worked on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TargetError {
    /// A file under `/proc` could not be read.
    #[error("reading {path}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process is in no control group of its own, so its relatives cannot be told from others.
    #[error("process {pid} is in no control group of its own")]
    NoCgroup {
        /// The process.
        pid: Pid,
    },
    /// The control group is not mounted here.
    #[error("control group {path} of process {pid} is not mounted")]
    NotMounted {
        /// The process.
        pid: Pid,
        /// The group's path in its hierarchy.
        path: String,
    },
}

impl Target {
    /// The container whose process 1 is `init`, a pid as seen from here.
    ///
    /// # Errors
    /// When the process does not exist or has no control group of its own.
    pub fn from_init(init: Pid) -> Result<Target, TargetError> {
        Ok(Target { init, cgroup: Cgroup::of(init)? })
    }

    /// The first process of the container, as seen from here.
    #[must_use]
    pub fn init(&self) -> Pid {
        self.init
    }

    /// The directory of the container's control group.
    #[must_use]
    pub fn cgroup(&self) -> &Path {
        &self.cgroup.directory
    }

    pub(crate) fn members(&self) -> &Cgroup {
        &self.cgroup
    }
}

/// The control group that holds exactly the processes of one container.
#[derive(Debug, Clone)]
pub(crate) struct Cgroup {
    directory: PathBuf,
}

/// The hierarchies that list processes reliably, best first: `pids` and `freezer` are the ones Docker
/// always makes on version 1; an empty name is version 2.
const HIERARCHIES: [&str; 5] = ["pids", "freezer", "memory", "devices", ""];

impl Cgroup {
    fn of(pid: Pid) -> Result<Cgroup, TargetError> {
        let read = |path: String| {
            std::fs::read_to_string(&path).map_err(|source| TargetError::Unreadable { path, source })
        };
        let groups = read(format!("/proc/{pid}/cgroup"))?;
        let mounts = read("/proc/self/mountinfo".to_owned())?;
        let mut not_mounted = None;
        for controller in HIERARCHIES {
            let Some(path) = group_path(&groups, controller) else { continue };
            if path == "/" {
                continue;
            }
            match mount_point(&mounts, controller, path) {
                Some(directory) => return Ok(Cgroup { directory }),
                None => not_mounted = Some(path.to_owned()),
            }
        }
        Err(match not_mounted {
            Some(path) => TargetError::NotMounted { pid, path },
            None => TargetError::NoCgroup { pid },
        })
    }

    /// The processes in the group now, zombies included, in no particular order.
    ///
    /// The file is opened anew each time: version 1 caches the list of an open file.
    pub(crate) fn processes(&self) -> io::Result<Vec<Pid>> {
        let text = std::fs::read_to_string(self.directory.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).map(Pid::from_raw).collect())
    }

    /// A cheap count of the group's tasks, if this hierarchy counts them.
    pub(crate) fn counter(&self) -> Option<Counter> {
        let file = File::open(self.directory.join("pids.current")).ok()?;
        let counter = Counter { file };
        counter.tasks().map(|_| counter)
    }

    /// The number of control groups below this one. A container that makes some could hide processes there.
    pub(crate) fn children(&self) -> io::Result<u64> {
        use std::os::unix::fs::MetadataExt;
        // kernfs counts sub-directories in the link count: 2 + children.
        Ok(std::fs::metadata(&self.directory)?.nlink().saturating_sub(2))
    }
}

/// Counts the tasks of a control group and of those below it: threads, and zombies that nobody has collected.
#[derive(Debug)]
pub(crate) struct Counter {
    file: File,
}

impl Counter {
    /// How many there are now. The kernel charges a task before it can run and releases it when it is collected,
    /// so the count may be too high for a moment, never too low.
    pub(crate) fn tasks(&self) -> Option<usize> {
        let mut text = [0; 32];
        let len = self.file.read_at(&mut text, 0).ok()?;
        std::str::from_utf8(&text[..len]).ok()?.trim_end().parse().ok()
    }
}

/// The path of the group in the hierarchy of `controller`, from the text of `/proc/<pid>/cgroup`.
fn group_path<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let matches =
            if controller.is_empty() { id == "0" } else { controllers.split(',').any(|c| c == controller) };
        matches.then_some(path)
    })
}

/// The directory of group `path`, from the text of `/proc/self/mountinfo`.
fn mount_point(mounts: &str, controller: &str, path: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        // 36 35 98:0 /root /mount options [optional...] - type source super-options
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let kind = right.next()?;
        let super_options = right.nth(1)?;
        let matches = if controller.is_empty() {
            kind == "cgroup2"
        } else {
            kind == "cgroup" && super_options.split(',').any(|o| o == controller)
        };
        if !matches {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        let (root, mount) = (left.next()?, left.next()?);
        // In a container with its own view the mount shows a part of the hierarchy only.
        let rest = if root == "/" { path } else { path.strip_prefix(root)? };
        let directory = PathBuf::from(format!("{mount}{rest}"));
        directory.join("cgroup.procs").exists().then_some(directory)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "12:pids:/docker/abc\n5:cpu,cpuacct:/docker/abc\n1:name=systemd:/x\n0::/\n";

    #[test]
    fn the_group_is_found_by_controller_in_both_versions() {
        assert_eq!(group_path(V1, "pids"), Some("/docker/abc"));
        assert_eq!(group_path(V1, "cpuacct"), Some("/docker/abc"));
        assert_eq!(group_path(V1, "memory"), None);
        assert_eq!(group_path("0::/system.slice/docker-1.scope\n", ""), Some("/system.slice/docker-1.scope"));
        assert_eq!(group_path("nonsense", ""), None);
    }

    #[test]
    fn a_group_outside_the_mounted_part_is_not_found() {
        let mounts = "30 23 0:26 /docker/other /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n";
        assert_eq!(mount_point(mounts, "pids", "/docker/abc"), None);
    }

    #[test]
    fn our_own_process_lists_itself_when_it_has_a_group() {
        match Target::from_init(Pid::this()) {
            Ok(target) => {
                let all = target.members().processes().expect("the group is readable");
                assert!(all.contains(&Pid::this()));
            }
            Err(error) => assert!(matches!(error, TargetError::NoCgroup { .. }), "{error}"),
        }
    }

    #[test]
    fn tasks_are_counted_where_the_kernel_counts_them() {
        let file = tempfile::tempfile().expect("a file");
        file.write_all_at(b"17\n", 0).expect("written");
        assert_eq!(Counter { file }.tasks(), Some(17));
        let file = tempfile::tempfile().expect("a file");
        assert_eq!(Counter { file }.tasks(), None, "nothing that is a number");
    }

    #[test]
    fn a_dead_pid_is_no_target() {
        // Above the largest pid_max.
        let error = Target::from_init(Pid::from_raw(i32::MAX)).expect_err("no such process");
        assert!(matches!(error, TargetError::Unreadable { .. }));
    }
}
