//! Requests to the Docker Engine: bounded in time, tried again where that is harmless.

use super::super::spec::EngineError;
use bollard::errors::Error as ApiError;
use bollard::{API_DEFAULT_VERSION, Docker};
use std::future::Future;
use std::time::Duration;
use tokio::time::{Instant, sleep, timeout_at};

/// The time-outs of `docker.client.timeouts` (contract 1.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DockerTimeouts {
    /// Making and starting a container, a pull of a missing image included.
    pub run: Duration,
    /// Removing one.
    pub rm: Duration,
    /// Pulling an image.
    pub pull: Duration,
    /// Listing containers.
    pub ps: Duration,
    /// Inspecting one.
    pub inspect: Duration,
    /// Suspending one.
    pub pause: Duration,
    /// Resuming one.
    pub unpause: Duration,
    /// Asking for the version, at start.
    pub version: Duration,
    /// Suspending one with `runc` (`runc.timeouts.pause`).
    pub runc_pause: Duration,
    /// Resuming one with `runc` (`runc.timeouts.resume`).
    pub runc_resume: Duration,
}

impl Default for DockerTimeouts {
    fn default() -> Self {
        Self {
            run: Duration::from_secs(60),
            rm: Duration::from_secs(60),
            pull: Duration::from_secs(600),
            ps: Duration::from_secs(60),
            inspect: Duration::from_secs(60),
            pause: Duration::from_secs(10),
            unpause: Duration::from_secs(10),
            version: Duration::from_secs(10),
            runc_pause: Duration::from_secs(10),
            runc_resume: Duration::from_secs(10),
        }
    }
}

/// Where the engine is, from the first of `REWIND_DOCKER_HOST` and `DOCKER_HOST` that is set.
pub const DEFAULT_HOST: &str = "unix:///var/run/docker.sock";

/// bollard's own limit per request, in seconds; ours are shorter, except for pulls, which it does not count
/// (it stops counting at the head of the answer).
const CLIENT_TIMEOUT_S: u64 = 600;

/// Pauses between attempts at an engine that does not answer, as one that is being restarted.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Connects, and agrees on a version of the API that both sides know.
pub(super) async fn connect(host: &str, limit: Duration) -> Result<(Docker, String), EngineError> {
    const WHAT: &str = "version";
    let docker = if let Some(path) = host.strip_prefix("unix://") {
        Docker::connect_with_unix(path, CLIENT_TIMEOUT_S, API_DEFAULT_VERSION)
    } else if host.starts_with("tcp://") || host.starts_with("http://") {
        Docker::connect_with_http(host, CLIENT_TIMEOUT_S, API_DEFAULT_VERSION)
    } else {
        return Err(EngineError::Unusable(format!("the Docker host is neither unix:// nor tcp://: {host}")));
    };
    let docker = docker.map_err(|error| engine_error(WHAT, error))?;
    let deadline = Instant::now() + limit;
    let docker = bounded(WHAT, deadline, limit, docker.negotiate_version()).await?;
    let version = bounded(WHAT, deadline, limit, docker.version()).await?;
    let line = format!(
        "Docker {} (API {}, {} {})",
        version.version.as_deref().unwrap_or("?"),
        docker.client_version(),
        version.os.as_deref().unwrap_or("?"),
        version.arch.as_deref().unwrap_or("?"),
    );
    Ok((docker, line))
}

/// One request that must not be repeated.
pub(super) async fn once<T>(
    what: &'static str,
    limit: Duration,
    request: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, EngineError> {
    bounded(what, Instant::now() + limit, limit, request).await
}

/// One request that may be repeated: while the engine is out of reach it is, until the time is up.
pub(super) async fn persistently<T, F>(
    what: &'static str,
    limit: Duration,
    mut request: impl FnMut() -> F,
) -> Result<T, EngineError>
where
    F: Future<Output = Result<T, ApiError>>,
{
    let deadline = Instant::now() + limit;
    let mut pause = RETRY_FIRST;
    loop {
        match bounded(what, deadline, limit, request()).await {
            Err(EngineError::Unreachable { source, .. }) if Instant::now() + pause < deadline => {
                tracing::debug!(what, error = %source, "the engine is out of reach; trying again");
                sleep(pause).await;
                pause = (pause * 2).min(RETRY_MAX);
            }
            done => return done,
        }
    }
}

async fn bounded<T>(
    what: &'static str,
    deadline: Instant,
    limit: Duration,
    request: impl Future<Output = Result<T, ApiError>>,
) -> Result<T, EngineError> {
    match timeout_at(deadline, request).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(error)) => Err(engine_error(what, error)),
        Err(_) => Err(EngineError::TimedOut { what, limit }),
    }
}

pub(super) fn engine_error(what: &'static str, error: ApiError) -> EngineError {
    match error {
        ApiError::DockerResponseServerError { status_code, message } => {
            EngineError::Refused { what, status: status_code, message }
        }
        // An error in the middle of a stream of progress messages: a pull that failed.
        ApiError::DockerStreamError { error } => EngineError::Refused { what, status: 200, message: error },
        ApiError::JsonDataError { .. } | ApiError::JsonSerdeError { .. } => {
            EngineError::Unusable(format!("unreadable answer to {what}: {error}"))
        }
        other => EngineError::Unreachable { what, source: other.into() },
    }
}

impl EngineError {
    /// Whether the engine answered with this status.
    pub(super) fn is_status(&self, wanted: u16) -> bool {
        matches!(self, Self::Refused { status, .. } if *status == wanted)
    }
}
