//! Pulling images: concurrent pulls of one image are one pull.

use super::super::spec::EngineError;
use super::credentials;
use super::engine::engine_error;
use bollard::Docker;
use bollard::query_parameters::CreateImageOptions;
use futures::TryStreamExt;
use futures::future::{BoxFuture, FutureExt, Shared};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const WHAT: &str = "pull";

type Pull = Shared<BoxFuture<'static, Result<(), Arc<EngineError>>>>;

/// The pulls under way, by image.
#[derive(Debug, Clone)]
pub(super) struct Pulls {
    docker: Docker,
    limit: Duration,
    under_way: Arc<Mutex<HashMap<String, Pull>>>,
}

impl Pulls {
    pub(super) fn new(docker: Docker, limit: Duration) -> Self {
        Self { docker, limit, under_way: Arc::default() }
    }

    /// Pulls `image`, or joins the pull of it that is under way.
    pub(super) async fn pull(&self, image: &str) -> Result<(), EngineError> {
        self.joined(image).await.map_err(EngineError::Shared)
    }

    fn joined(&self, image: &str) -> Pull {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pull) = under_way.get(image) {
            return pull.clone();
        }
        let (pulls, name) = (self.clone(), image.to_owned());
        // A task of its own: it goes on for the others when the first to ask gives up.
        let task = tokio::spawn(async move {
            let result = pull(&pulls.docker, &name, pulls.limit).await;
            pulls.under_way.lock().unwrap_or_else(PoisonError::into_inner).remove(&name);
            result.map_err(Arc::new)
        });
        let pull = task
            .map(|ended| {
                ended.unwrap_or_else(|error| {
                    Err(Arc::new(EngineError::Unusable(format!("pull ended: {error}"))))
                })
            })
            .boxed()
            .shared();
        under_way.insert(image.to_owned(), pull.clone());
        pull
    }
}

async fn pull(docker: &Docker, image: &str, limit: Duration) -> Result<(), EngineError> {
    let (name, tag) = split_reference(image);
    let options = CreateImageOptions {
        from_image: Some(name.to_owned()),
        // Without a tag the engine would pull all of them.
        tag: Some(tag.unwrap_or("latest").to_owned()),
        ..CreateImageOptions::default()
    };
    let progress = docker.create_image(Some(options), None, credentials::for_image(image));
    let pulled = progress.try_for_each(|_| async { Ok(()) });
    match tokio::time::timeout(limit, pulled).await {
        Ok(result) => result.map_err(|error| engine_error(WHAT, error)),
        Err(_) => Err(EngineError::TimedOut { what: WHAT, limit }),
    }
}

/// `registry:5000/a/b:tag` into `registry:5000/a/b` and `tag`; a digest counts as a tag, as the engine has it.
fn split_reference(image: &str) -> (&str, Option<&str>) {
    if let Some((name, digest)) = image.split_once('@') {
        return (name, Some(digest));
    }
    match image.rsplit_once(':') {
        // What follows a registry's port is a path.
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (image, None),
    }
}

#[cfg(test)]
mod tests {
    use super::split_reference;

    #[test]
    fn references_are_split_at_their_tag() {
        for (image, name, tag) in [
            ("a", "a", None),
            ("a:1", "a", Some("1")),
            ("r.example:5000/a/b", "r.example:5000/a/b", None),
            ("r.example:5000/a/b:2", "r.example:5000/a/b", Some("2")),
            ("a@sha256:00ff", "a", Some("sha256:00ff")),
            ("a:1@sha256:00ff", "a:1", Some("sha256:00ff")),
        ] {
            assert_eq!(split_reference(image), (name, tag), "{image}");
        }
    }
}
