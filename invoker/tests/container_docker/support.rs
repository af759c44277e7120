//! A backend, an image and containers for one test; what it made is removed at its end.

use openwhisk_compat::response::ContainerReply;
use rewind_invoker::container::docker::{DockerBackend, DockerConfig};
use rewind_invoker::container::{
    ContainerBackend, ContainerSpec, Containers, Created, InUse, Initialised, PullPolicy, Request, RunEnd,
    Waiver, WardenOptions,
};
use rewind_invoker::pool::{ContainerId, Isolation};
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SOURCE: &str = include_str!("hostile.c");

/// Images made of `hostile.c`.
#[derive(Debug)]
pub(crate) struct Images {
    /// Listens and obeys.
    pub(crate) hostile: String,
    /// Exits at once.
    pub(crate) exits: String,
    /// Never listens.
    pub(crate) deaf: String,
    /// Starts a program that it does not have.
    pub(crate) no_command: String,
}

/// The images, or `None` (said aloud) where they cannot be made.
pub(crate) fn images(test: &str) -> Option<&'static Images> {
    static IMAGES: OnceLock<Result<Images, String>> = OnceLock::new();
    match IMAGES.get_or_init(make_images) {
        Ok(images) => Some(images),
        Err(why) => {
            eprintln!("SKIP {test}: {why}");
            None
        }
    }
}

fn make_images() -> Result<Images, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("not root".to_owned());
    }
    docker_try(&["version", "--format", "{{.Server.Version}}"])?;
    let mut hasher = DefaultHasher::new();
    SOURCE.hash(&mut hasher);
    let tag = format!("{:x}", hasher.finish());
    let image = |name: &str, command: &str| -> Result<String, String> {
        let image = format!("cont-{name}:{tag}");
        if docker_try(&["image", "inspect", &image]).is_err() {
            import(&image, command)?;
        }
        Ok(image)
    };
    Ok(Images {
        hostile: image("hostile", r#"CMD ["/hostile"]"#)?,
        exits: image("exits", r#"CMD ["/hostile","exit"]"#)?,
        deaf: image("deaf", r#"CMD ["/hostile","deaf"]"#)?,
        no_command: image("nocommand", r#"CMD ["/not-there"]"#)?,
    })
}

fn import(image: &str, command: &str) -> Result<(), String> {
    let directory = tempfile::tempdir().map_err(|e| e.to_string())?;
    let root = directory.path().join("root");
    std::fs::create_dir_all(root.join("tmp")).map_err(|e| e.to_string())?;
    let mut compiler = Command::new("cc")
        .args(["-x", "c", "-O1", "-static", "-pthread", "-o"])
        .arg(root.join("hostile"))
        .arg("-")
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|e| format!("no C compiler: {e}"))?;
    compiler.stdin.take().expect("piped").write_all(SOURCE.as_bytes()).map_err(|e| e.to_string())?;
    if !compiler.wait().map_err(|e| e.to_string())?.success() {
        return Err("hostile.c does not compile (is there a static C library?)".to_owned());
    }
    let archive = directory.path().join("root.tar");
    let tar = Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg(".").status();
    if !tar.map_err(|e| e.to_string())?.success() {
        return Err("tar failed".to_owned());
    }
    let archive = archive.to_str().ok_or("odd temporary directory")?;
    docker_try(&["import", "--change", command, archive, image]).map(drop)
}

/// The docker client; what it printed, or its complaint.
pub(crate) fn docker_try(arguments: &[&str]) -> Result<String, String> {
    let output =
        Command::new("docker").args(arguments).output().map_err(|e| format!("no docker client: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned()),
        false => Err(format!("docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The docker client, which must succeed.
pub(crate) fn docker(arguments: &[&str]) -> String {
    docker_try(arguments).unwrap_or_else(|complaint| panic!("{complaint}"))
}

/// One test's backend.
pub(crate) struct Fixture {
    pub(crate) containers: Containers,
    pub(crate) prefix: String,
    pub(crate) images: &'static Images,
    next: AtomicU64,
}

impl Fixture {
    /// `None` (said aloud) where the test cannot run.
    pub(crate) async fn new(test: &str) -> Option<Self> {
        Self::with(test, |_| {}).await
    }

    /// With a changed configuration.
    pub(crate) async fn with(test: &str, change: impl FnOnce(&mut DockerConfig)) -> Option<Self> {
        let images = images(test)?;
        let prefix = format!("cont-{}-{test}", std::process::id());
        let mut config = DockerConfig { name_prefix: prefix.clone(), ..DockerConfig::default() };
        // The one that the client asks, too.
        if let Ok(host) = std::env::var("DOCKER_HOST") {
            config.host = host;
        }
        change(&mut config);
        let backend = DockerBackend::connect(config).await.expect("connect to the engine");
        let containers = Containers::new(Arc::new(backend), WardenOptions::default());
        Some(Self { containers, prefix, images, next: AtomicU64::new(1) })
    }

    pub(crate) fn backend(&self) -> &Arc<dyn ContainerBackend> {
        self.containers.backend()
    }

    pub(crate) fn spec(&self, image: &str) -> ContainerSpec {
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        ContainerSpec {
            id: ContainerId(n),
            name: format!("{}_{n}_guest_test", self.prefix),
            image: image.to_owned(),
            pull: PullPolicy::Never,
            memory_mb: 128,
        }
    }

    pub(crate) async fn created(&self, image: &str) -> Created {
        self.containers.create(&self.spec(image)).await.expect("create a container")
    }

    pub(crate) async fn initialised(&self) -> Initialised {
        let end = self.created(&self.images.hostile).await.init(request(b"{\"value\":{}}")).await;
        end.container.unwrap_or_else(|_| panic!("/init answered {:?}", end.reply))
    }

    /// A container that serves any number of requests, unprotected.
    pub(crate) async fn in_use(&self, concurrency: u32) -> InUse {
        let waiver = Waiver::from_setting(Isolation::None).expect("waiver");
        self.initialised().await.unprotected(waiver).put_in_use(concurrency)
    }

    /// Removes all containers of this test.
    pub(crate) fn clean(&self) {
        let all = docker(&["ps", "-aq", "--filter", &format!("name={}", self.prefix)]);
        for id in all.lines() {
            let _ = docker_try(&["unpause", id]);
            let _ = docker_try(&["rm", "-f", id]);
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.clean();
    }
}

/// A request with generous limits.
pub(crate) fn request(body: &[u8]) -> Request<'_> {
    Request { body, timeout: Duration::from_secs(20), answer_bytes_max: 1 << 20, truncated_bytes: 1000 }
}

/// The body that makes the runtime do something.
pub(crate) fn order(what: &str) -> Vec<u8> {
    format!("{{\"value\":{{\"do\":\"{what}\"}}}}").into_bytes()
}

/// Sends an order, as the first request after an initialisation.
pub(crate) async fn run(container: &InUse, what: &str) -> RunEnd {
    container.lease().expect("lease").run(request(&order(what)), false).await
}

/// The body of a whole answer with this status.
pub(crate) fn body_of(reply: ContainerReply, wanted: u16) -> String {
    match reply {
        ContainerReply::Answer { status, body, truncated: None } if status == wanted => {
            String::from_utf8(body).expect("text")
        }
        other => panic!("expected a whole {wanted}, got {other:?}"),
    }
}
