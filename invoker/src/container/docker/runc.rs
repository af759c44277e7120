//! Suspending with `runc` instead of through the engine (`docker.container-factory.use-runc`): 8 ms instead of 42.

use super::super::spec::EngineError;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::process::Command;

/// Where the program may be. Upstream knows the first only.
const PROGRAMS: [&str; 3] = ["/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc"];

/// Where Docker's containers may have their state. Upstream's deployments mount the first onto the second.
const ROOTS: [&str; 3] = ["/run/docker/runtime-runc/moby", "/run/runc", "/var/run/docker/runtime-runc/moby"];

/// How much of what the program says is kept.
const MESSAGE_BYTES_MAX: usize = 512;

/// A `runc` that was found to answer.
#[derive(Debug, Clone)]
pub(super) struct Runc {
    program: PathBuf,
    version: String,
}

impl Runc {
    /// Looks for the program and asks it for its version.
    pub(super) async fn find(limit: Duration) -> Result<Self, EngineError> {
        let program = PROGRAMS
            .iter()
            .map(Path::new)
            .find(|path| path.exists())
            .ok_or_else(|| EngineError::Unusable(format!("no runc at {}", PROGRAMS.join(", "))))?;
        let version = output(Command::new(program).arg("--version"), program, limit).await?;
        let version = version.lines().next().unwrap_or_default().to_owned();
        Ok(Self { program: program.to_owned(), version })
    }

    pub(super) fn version(&self) -> &str {
        &self.version
    }

    pub(super) async fn pause(&self, engine_id: &str, limit: Duration) -> Result<(), EngineError> {
        self.run("pause", engine_id, limit).await
    }

    pub(super) async fn resume(&self, engine_id: &str, limit: Duration) -> Result<(), EngineError> {
        self.run("resume", engine_id, limit).await
    }

    async fn run(&self, verb: &str, engine_id: &str, limit: Duration) -> Result<(), EngineError> {
        let root = ROOTS
            .iter()
            .find(|root| Path::new(root).join(engine_id).exists())
            .ok_or_else(|| EngineError::Unusable(format!("runc knows no container {engine_id}")))?;
        let mut command = Command::new(&self.program);
        command.args(["--root", root, verb, engine_id]);
        output(&mut command, &self.program, limit).await.map(drop)
    }
}

async fn output(command: &mut Command, program: &Path, limit: Duration) -> Result<String, EngineError> {
    const WHAT: &str = "runc";
    let failed = |source: std::io::Error| EngineError::Unreachable { what: WHAT, source: source.into() };
    let child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn();
    let done = match tokio::time::timeout(limit, child.map_err(failed)?.wait_with_output()).await {
        Ok(done) => done.map_err(failed)?,
        Err(_) => return Err(EngineError::TimedOut { what: WHAT, limit }),
    };
    if done.status.success() {
        return Ok(String::from_utf8_lossy(&done.stdout).into_owned());
    }
    let said = &done.stderr[..done.stderr.len().min(MESSAGE_BYTES_MAX)];
    Err(EngineError::Program {
        program: program.display().to_string(),
        status: done.status.to_string(),
        message: String::from_utf8_lossy(said).trim().to_owned(),
    })
}
