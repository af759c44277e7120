//! A container backend whose every command is counted and timed, under the names the `docker` client had.

use std::sync::Arc;

use async_trait::async_trait;

use super::Metrics;
use super::upstream::{DockerCommand, Step};
use crate::container::{ContainerBackend, ContainerSpec, CreateError, EngineError, Handle, Leftover};

/// Counts what another backend does; changes nothing.
#[derive(Debug)]
pub struct Metered {
    inner: Arc<dyn ContainerBackend>,
    metrics: Arc<Metrics>,
}

impl Metered {
    /// Counts for `inner`.
    pub fn new(inner: Arc<dyn ContainerBackend>, metrics: Arc<Metrics>) -> Self {
        Self { inner, metrics }
    }

    async fn count<T, E>(
        &self,
        command: DockerCommand,
        work: impl Future<Output = Result<T, E>> + Send,
    ) -> Result<T, E> {
        let span = self.metrics.start(Step::Docker(command));
        let outcome = work.await;
        span.ended(outcome.is_ok());
        outcome
    }
}

#[async_trait]
impl ContainerBackend for Metered {
    fn describe(&self) -> String {
        self.inner.describe()
    }

    /// Not counted: it comes each second.
    async fn ping(&self) -> Result<(), EngineError> {
        self.inner.ping().await
    }

    /// Counted by its parts, which the report tells apart: a wait for a place among the parallel starts is no
    /// work of the engine's.
    async fn create(&self, spec: &ContainerSpec) -> Result<Arc<Handle>, CreateError> {
        let began = std::time::Instant::now();
        let outcome = self.inner.create(spec).await;
        let docker = |command, took, ok| self.metrics.step(Step::Docker(command), took, ok);
        match &outcome {
            Ok(handle) => {
                if !handle.start.pull.is_zero() {
                    docker(DockerCommand::Pull, handle.start.pull, true);
                }
                docker(DockerCommand::Run, handle.start.run, true);
            }
            Err(CreateError::ImagePull { .. }) => docker(DockerCommand::Pull, began.elapsed(), false),
            Err(_) => docker(DockerCommand::Run, began.elapsed(), false),
        }
        outcome
    }

    async fn suspend(&self, container: &Handle) -> Result<(), EngineError> {
        self.count(DockerCommand::Pause, self.inner.suspend(container)).await
    }

    async fn resume(&self, container: &Handle) -> Result<(), EngineError> {
        self.count(DockerCommand::Unpause, self.inner.resume(container)).await
    }

    async fn destroy(&self, container: &Handle) -> Result<(), EngineError> {
        self.count(DockerCommand::Rm, self.inner.destroy(container)).await
    }

    async fn says_oom_killed(&self, container: &Handle) -> Result<bool, EngineError> {
        self.count(DockerCommand::Inspect, self.inner.says_oom_killed(container)).await
    }

    async fn leftovers(&self) -> Result<Vec<Leftover>, EngineError> {
        self.count(DockerCommand::Ps, self.inner.leftovers()).await
    }

    async fn remove_leftover(&self, leftover: &Leftover) -> Result<(), EngineError> {
        self.count(DockerCommand::Rm, self.inner.remove_leftover(leftover)).await
    }
}
