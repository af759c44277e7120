//! What is asked of a backend: one container, described.

use crate::pool::ContainerId;
use std::sync::Arc;
use std::time::Duration;

/// One container to be created (contract 6.5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerSpec {
    /// The pool's number for it, which is also the counter in its name.
    pub id: ContainerId,
    /// Its name, as `openwhisk_compat::name` makes them.
    pub name: String,
    /// The image with registry, prefix and tag, as the engine is to be asked for it.
    pub image: String,
    /// Whether the image is pulled first.
    pub pull: PullPolicy,
    /// Memory limit in MB. CPU shares follow from it.
    pub memory_mb: u64,
}

/// Whether an image is pulled before a container is made of it (contract 6.5).
///
/// Whatever the policy, an image that is not on this machine at all is pulled, as `docker run` does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PullPolicy {
    /// Images of the manifest, of `blackboxes`, and with the local prefix.
    Never,
    /// A user's image with a tag other than `latest`: the image of an earlier pull will do.
    IfPossible,
    /// A user's image without a tag or with `latest`: the pull must succeed.
    Required,
}

impl PullPolicy {
    /// The policy for a user's image, given whether its tag is absent or `latest`.
    #[must_use]
    pub const fn for_user_image(is_latest: bool) -> Self {
        if is_latest { Self::Required } else { Self::IfPossible }
    }
}

/// Why there is no container. Each is an answer of contract 5.6.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// prov-1.
    #[error("cannot create container {name}")]
    Provision {
        /// The container's name.
        name: String,
        /// What the engine said.
        #[source]
        source: EngineError,
    },
    /// prov-2: the user's image could not be pulled.
    #[error("cannot pull image {image}")]
    ImagePull {
        /// The image as it was asked for.
        image: String,
        /// What the engine said.
        #[source]
        source: EngineError,
    },
    /// prov-3: what the image wants started is not in it (`docker run` ends with 127).
    #[error("executable file not found in image {image}")]
    CommandNotFound {
        /// The image as it was asked for.
        image: String,
        /// What the engine said.
        #[source]
        source: EngineError,
    },
}

/// What went wrong between us and the container engine.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The engine answered with an error.
    #[error("engine answered {status} to {what}: {message}")]
    Refused {
        /// The request, in words.
        what: &'static str,
        /// The HTTP status.
        status: u16,
        /// The engine's words.
        message: String,
    },
    /// The engine could not be reached, or its answer was cut off.
    #[error("{what} failed")]
    Unreachable {
        /// The request, in words.
        what: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The engine took longer than `docker.client.timeouts` allows.
    #[error("no answer to {what} within {} ms", limit.as_millis())]
    TimedOut {
        /// The request, in words.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The engine's answer lacks something, or the container is not as it should be.
    #[error("{0}")]
    Unusable(String),
    /// One failure that several callers share.
    #[error(transparent)]
    Shared(Arc<EngineError>),
    /// A program that stands in for the engine (runc) failed.
    #[error("{program} ended with {status}: {message}")]
    Program {
        /// Its path.
        program: String,
        /// How it ended.
        status: String,
        /// What it wrote to standard error, shortened.
        message: String,
    },
}
