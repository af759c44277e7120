//! A stand-in for a container: a process whose root is a real overlay mount.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use fs_overlay::{Options, OverlayRoot, Sealed, seal};
use nix::unistd::Pid;

/// A process in a mount namespace of its own, rooted in an overlay over two layers.
pub struct Sandbox {
    process: Child,
    pub directory: tempfile::TempDir,
}

/// Whether the tests can run here; says why not.
pub fn possible(test: &str) -> bool {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("SKIP {test}: needs root to mount overlays");
        return false;
    }
    true
}

impl Sandbox {
    /// Starts one. `fill` puts entries into the lower and upper layers first.
    pub fn start(fill: impl FnOnce(&Layers)) -> Self {
        // Not /tmp, which may be a tmpfs: change times are to be those of a disk.
        let directory = tempfile::tempdir_in("/var/tmp").unwrap();
        let layers = Layers {
            bottom: directory.path().join("bottom"),
            top: directory.path().join("top"),
            upper: directory.path().join("upper"),
        };
        for layer in [&layers.bottom, &layers.top, &layers.upper] {
            fs::create_dir(layer).unwrap();
        }
        for name in ["work", "merged"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        fs::create_dir(layers.bottom.join("dev")).unwrap();
        fs::create_dir_all(layers.bottom.join("etc")).unwrap();
        fs::write(layers.bottom.join("etc/hosts"), b"").unwrap();
        fs::write(directory.path().join("hosts"), b"127.0.0.1 localhost\n").unwrap();
        fs::write(directory.path().join("console"), b"").unwrap();
        fill(&layers);
        let script = r#"
            set -e
            mount --make-rprivate /
            mount -t overlay overlay -o lowerdir=top:bottom,upperdir=upper,workdir=work merged
            mount -t tmpfs -o size=64k,mode=755 dev merged/dev
            mkdir merged/dev/shm merged/dev/mqueue merged/dev/pts
            touch merged/dev/console
            mknod -m 666 merged/dev/null c 1 3
            mount -t tmpfs -o size=64m shm merged/dev/shm
            mount -t devpts -o newinstance devpts merged/dev/pts
            mount --bind console merged/dev/console
            mount -t mqueue mqueue merged/dev/mqueue
            mount --bind hosts merged/etc/hosts
            cd merged
            exec perl -e '$| = 1; chroot "." or die "chroot: $!"; chdir "/"; print "ready\n"; sleep 1000;'
        "#;
        let mut process = Command::new("unshare")
            .args(["--mount", "--ipc", "sh", "-c", script])
            .current_dir(directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the sandbox did not start");
        Self { process, directory }
    }

    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.process.id()).unwrap())
    }

    /// A path as the container sees it.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.process.id())).join(path)
    }

    pub fn discover(&self) -> OverlayRoot {
        OverlayRoot::discover_in(self.pid(), self.directory.path()).unwrap()
    }

    #[allow(dead_code, reason = "not every test file needs it")]
    pub fn seal(&self) -> Sealed {
        self.seal_with(&Options::default())
    }

    pub fn seal_with(&self, options: &Options) -> Sealed {
        seal(self.discover(), options).unwrap().0
    }

    /// Runs a shell command in the sandbox's namespaces, its root being the host's.
    #[allow(dead_code, reason = "not every test file needs it")]
    pub fn outside(&self, script: &str) {
        let status = Command::new("nsenter")
            .args(["-t", &self.process.id().to_string(), "--mount", "--ipc", "sh", "-ec", script])
            .status()
            .unwrap();
        assert!(status.success(), "{script}");
    }

    pub fn state(&self) -> State {
        State::of(&self.at(""))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Errors mean that it is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Where the layers lie on the host.
pub struct Layers {
    pub bottom: PathBuf,
    pub top: PathBuf,
    pub upper: PathBuf,
}

/// Everything a container can see of its files that a rewind promises to put back.
#[derive(Debug, PartialEq, Eq)]
pub struct State(BTreeMap<PathBuf, Entry>);

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    mode: u32,
    uid: u32,
    gid: u32,
    size: Option<u64>,
    mtime: (i64, i64),
    links: Option<u64>,
    device: u64,
    contents: Option<Vec<u8>>,
    target: Option<PathBuf>,
    attributes: BTreeMap<OsString, Vec<u8>>,
    /// Names of the same file.
    same_as: Option<PathBuf>,
}

impl State {
    /// Walks a whole tree, mounts included, without any help from the crate under test.
    pub fn of(root: &Path) -> Self {
        let mut entries = BTreeMap::new();
        let mut inodes = BTreeMap::new();
        let mut stack = vec![PathBuf::new()];
        while let Some(path) = stack.pop() {
            let whole = root.join(&path);
            // The kernel's own, not files.
            if path.starts_with("dev/pts") {
                continue;
            }
            let metadata = fs::symlink_metadata(&whole).unwrap();
            if metadata.is_dir() {
                for entry in fs::read_dir(&whole).unwrap() {
                    stack.push(path.join(entry.unwrap().file_name()));
                }
            }
            let kind = metadata.file_type();
            let queue = path.starts_with("dev/mqueue");
            let contents =
                (kind.is_file() && !queue && metadata.size() < 1 << 24).then(|| fs::read(&whole).unwrap());
            let name = path.clone();
            entries.insert(
                path,
                Entry {
                    mode: metadata.mode(),
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                    size: (!kind.is_dir()).then(|| metadata.size()),
                    mtime: (metadata.mtime(), metadata.mtime_nsec()),
                    links: (!kind.is_dir()).then(|| metadata.nlink()),
                    device: if kind.is_char_device() || kind.is_block_device() { metadata.rdev() } else { 0 },
                    contents,
                    target: kind.is_symlink().then(|| fs::read_link(&whole).unwrap()),
                    attributes: attributes(&whole),
                    same_as: (metadata.nlink() > 1 && !kind.is_dir())
                        .then(|| inodes.entry((metadata.dev(), metadata.ino())).or_insert(name).clone()),
                },
            );
        }
        Self(entries)
    }

    /// Fails with the differences, if any.
    pub fn assert_same(&self, after: &Self, what: &str) {
        let mut differences = Vec::new();
        for (path, entry) in &self.0 {
            match after.0.get(path) {
                None => differences.push(format!("{path:?} is gone")),
                Some(now) if now != entry => {
                    differences.push(format!("{path:?}:\n  was {entry:?}\n  is  {now:?}"));
                }
                Some(_) => {}
            }
        }
        for path in after.0.keys().filter(|path| !self.0.contains_key(*path)) {
            differences.push(format!("{path:?} is left over"));
        }
        assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
    }

    pub fn is_same(&self, after: &Self) -> bool {
        self == after
    }
}

fn attributes(path: &Path) -> BTreeMap<OsString, Vec<u8>> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| {
            let name = OsString::from_vec(name.to_vec());
            let mut value = vec![0; 65536];
            let length = rustix::fs::lgetxattr(path, name.as_bytes(), &mut value[..]).unwrap();
            value.truncate(length);
            (name, value)
        })
        .collect()
}

/// Reads a file whole.
#[allow(dead_code, reason = "not every test file reads")]
pub fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    fs::File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
    bytes
}
