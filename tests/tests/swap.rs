//! A container's root is swapped for a fresh overlay while its processes live, again and again, and Docker
//! goes on with it as before. Needs root, Docker and the action images.

#![allow(missing_docs, unreachable_pub, reason = "a test")]

use fs_overlay::{ChangeKind, FilesReport, OverlayRoot, Sealed};
use rewind_tests::docker::Docker;
use snapshot::{Snapshot, Target};
use std::collections::BTreeSet;
use std::error::Error;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const IMAGE: &str = "rewind-test/action-python";

/// What a request does: more than is put back one by one, in the image's files too.
const REQUEST: &str = "cd /tmp; i=0; while [ $i -lt 300 ]; do echo secret > $i; i=$((i+1)); done; \
    echo secret > /etc/passwd; rm -rf /usr/share/doc /etc/ssl; rm /tmp/kept/file; mkdir -p /a/b/c; cd /a/b/c";

struct Container {
    docker: Docker,
    name: String,
    init: i32,
}

impl Container {
    fn sh(&self, script: &str) -> String {
        self.docker.run(&["exec", &self.name, "sh", "-c", script])
    }

    /// Every entry of the root, and some contents.
    fn look(&self) -> BTreeSet<String> {
        let list = self
            .sh("find / -xdev -printf '%p %M %U %G %T@ %l\\n'; cat /tmp/kept/file /etc/passwd /etc/hosts");
        list.lines().map(str::to_owned).collect()
    }

    fn assert_pristine(&self, pristine: &BTreeSet<String>, round: i32) {
        let now = self.look();
        let differences: Vec<_> = now.symmetric_difference(pristine).take(10).collect();
        assert!(differences.is_empty(), "round {round}: {differences:#?}");
    }

    fn of_init(&self, what: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/{what}", self.init))
    }

    fn mounts(&self) -> Vec<String> {
        let table = std::fs::read_to_string(self.of_init("mountinfo")).unwrap();
        table.lines().map(str::to_owned).collect()
    }

    /// How many layers the root has, the upper not counted.
    fn layers(&self) -> usize {
        let mounts = self.mounts();
        let root = mounts.iter().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
        let one_by_one = root.matches("lowerdir+=").count();
        let list = root
            .split("lowerdir=")
            .nth(1)
            .map_or(0, |list| list.split(',').next().unwrap_or_default().split(':').count());
        one_by_one + list
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What is gone already needs no removal.
        let _ = self.docker.try_run(&["rm", "-f", &self.name]);
    }
}

fn rewind(snapshot: &mut Snapshot, sealed: &mut Sealed) -> FilesReport {
    let mut report = None;
    let mut files = || -> Result<(), Box<dyn Error + Send + Sync>> {
        report = Some(sealed.rewind()?);
        Ok(())
    };
    snapshot.rewind(&mut files).unwrap_or_else(|error| panic!("{error}: {:?}", error.source()));
    report.unwrap()
}

#[test]
fn a_root_is_swapped_again_and_again_under_living_processes() {
    let test = "a_root_is_swapped_again_and_again_under_living_processes";
    let docker =
        Docker::at(&std::env::var("DOCKER_HOST").unwrap_or("unix:///var/run/docker.sock".to_owned()));
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP {test}: needs root");
        return;
    }
    if let Err(why) = docker.try_run(&["image", "inspect", IMAGE]) {
        eprintln!("SKIP {test}: needs the action images: {why}");
        return;
    }
    let name = format!("swap-{}", std::process::id());
    docker.run(&["run", "-d", "--name", &name, IMAGE]);
    let facts = docker.inspect(&name);
    let init = facts["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let upper = PathBuf::from(facts["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap());
    let site = upper.parent().unwrap().to_owned();
    let container = Container { docker, name, init };
    container.sh("mkdir /tmp/kept; echo kept > /tmp/kept/file; chown 1:1 /tmp/kept/file");

    let pid = nix::unistd::Pid::from_raw(init);
    let mut sealed = None;
    let mut files = || -> Result<(), Box<dyn Error + Send + Sync>> {
        let root = OverlayRoot::discover(pid)?;
        sealed = Some(fs_overlay::seal(root, &fs_overlay::Options::default())?.0);
        Ok(())
    };
    let options = snapshot::Options { settle: Duration::from_secs(30), ..snapshot::Options::default() };
    let target = Target::from_init(pid).unwrap();
    let (mut snapshot, _) = snapshot::checkpoint(&target, &options, &mut files).unwrap();
    let mut sealed = sealed.unwrap();

    let directory = std::fs::read_link(container.of_init("cwd")).unwrap();
    let (pristine, mounts, layers) = (container.look(), container.mounts().len(), container.layers());
    let of_host =
        std::fs::read_to_string("/proc/self/mountinfo").unwrap().matches(&*site.to_string_lossy()).count();
    for round in 0..6 {
        container.sh(REQUEST);
        assert!(container.sh("ls /tmp") != "kept");
        let report = rewind(&mut snapshot, &mut sealed);
        assert!(report.swapped, "round {round}: {:?}", report.unswapped);
        container.assert_pristine(&pristine, round);

        // The process stands where it stood, in the tree that is now the container's.
        assert_eq!(std::fs::read_link(container.of_init("cwd")).unwrap(), directory);
        let device = |what| std::fs::metadata(container.of_init(what)).unwrap().dev();
        assert_eq!(device("cwd/."), device("root/."), "round {round}");

        // Nothing piles up.
        assert_eq!(container.mounts().len(), mounts, "round {round}: {:?}", container.mounts());
        assert_eq!(container.layers(), layers + 1, "round {round}");
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(table.matches(&*site.to_string_lossy()).count(), of_host, "round {round}");

        // What changes little is undone as before, what does not change costs nothing.
        container.sh("echo secret > /etc/passwd");
        let report = rewind(&mut snapshot, &mut sealed);
        assert!(!report.swapped && !report.changes.is_empty(), "{report:?}");
        container.assert_pristine(&pristine, round);
        let report = rewind(&mut snapshot, &mut sealed);
        // Looking moved access times.
        let changed = report.changes.total() - report.changes.count(ChangeKind::AccessTime);
        assert_eq!(changed, 0, "{:?}", report.changes);
    }

    // Docker's own commands, once nobody traces the processes any more.
    snapshot.forget().unwrap();
    let docker = &container.docker;
    docker.run(&["logs", &container.name]);
    let directory = tempfile::tempdir().unwrap();
    let copy = directory.path().join("hosts");
    docker.run(&["cp", &format!("{}:/etc/hostname", container.name), &copy.to_string_lossy()]);
    assert!(copy.is_file());
    docker.run(&["restart", "-t", "0", &container.name]);
    docker.run(&["rm", "-f", &container.name]);
    assert!(!site.exists(), "Docker left {}", site.display());
}

#[test]
fn what_was_swapped_out_goes_away() {
    let test = "what_was_swapped_out_goes_away";
    let docker =
        Docker::at(&std::env::var("DOCKER_HOST").unwrap_or("unix:///var/run/docker.sock".to_owned()));
    if !nix::unistd::geteuid().is_root() || docker.try_run(&["image", "inspect", IMAGE]).is_err() {
        eprintln!("SKIP {test}: needs root and the action images");
        return;
    }
    let name = format!("swap-away-{}", std::process::id());
    docker.run(&["run", "-d", "--name", &name, "--entrypoint", "sleep", IMAGE, "1000"]);
    let facts = docker.inspect(&name);
    let init = facts["State"]["Pid"].as_i64().and_then(|pid| i32::try_from(pid).ok()).unwrap();
    let upper = PathBuf::from(facts["GraphDriver"]["Data"]["UpperDir"].as_str().unwrap());
    let container = Container { docker, name, init };
    // Its one process sleeps: nothing needs to be frozen.
    let root = OverlayRoot::discover(nix::unistd::Pid::from_raw(init)).unwrap();
    let mut sealed = fs_overlay::seal(root, &fs_overlay::Options::default()).unwrap().0;
    for _ in 0..5 {
        container.sh(REQUEST);
        assert!(sealed.rewind().unwrap().swapped);
    }
    let site = upper.parent().unwrap().join("rewind");
    let left = |site: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(site)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while left(&site) != ["5", "sealed"] {
        assert!(Instant::now() < deadline, "{:?} is left", left(&site));
        std::thread::sleep(Duration::from_millis(20));
    }
}
