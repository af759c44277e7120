//! Credentials for registries, from where `docker login` keeps them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bollard::auth::DockerCredentials;
use serde::Deserialize;
use std::collections::HashMap;
use std::path::PathBuf;

/// Docker Hub under its historical name.
const HUB: &str = "https://index.docker.io/v1/";

#[derive(Deserialize, Default)]
struct ConfigFile {
    #[serde(default)]
    auths: HashMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    /// Base 64 of `user:password`.
    auth: Option<String>,
    identitytoken: Option<String>,
}

/// The credentials for the registry of `image`, if `$DOCKER_CONFIG/config.json` or `~/.docker/config.json` has any.
/// It is read at every pull, so that a new login counts at once. Credential helpers are not asked.
pub(super) fn for_image(image: &str) -> Option<DockerCredentials> {
    let path = config_path()?;
    let bytes = std::fs::read(&path).ok()?;
    match serde_json::from_slice(&bytes) {
        Ok(file) => from_file(&file, registry_of(image)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "cannot read the Docker client's configuration");
            None
        }
    }
}

fn config_path() -> Option<PathBuf> {
    let directory = match std::env::var_os("DOCKER_CONFIG") {
        Some(directory) => PathBuf::from(directory),
        None => PathBuf::from(std::env::var_os("HOME")?).join(".docker"),
    };
    Some(directory.join("config.json"))
}

/// The registry's host: the first part if it looks like one, as the client decides it.
fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => HUB,
    }
}

fn from_file(file: &ConfigFile, registry: &str) -> Option<DockerCredentials> {
    let bare = |key: &str| {
        key.trim_start_matches("https://").trim_start_matches("http://").split('/').next().map(str::to_owned)
    };
    let entry = file.auths.get(registry).or_else(|| {
        file.auths
            .iter()
            .find(|(key, _)| registry != HUB && bare(key).as_deref() == Some(registry))
            .map(|(_, e)| e)
    })?;
    let serveraddress = Some(registry.to_owned());
    if let Some(token) = entry.identitytoken.clone().filter(|token| !token.is_empty()) {
        return Some(DockerCredentials { identitytoken: Some(token), serveraddress, ..Default::default() });
    }
    let decoded = STANDARD.decode(entry.auth.as_deref()?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (username, password) = text.split_once(':')?;
    Some(DockerCredentials {
        username: Some(username.to_owned()),
        // Old clients padded it with zeroes.
        password: Some(password.trim_end_matches('\0').to_owned()),
        serveraddress,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::{ConfigFile, HUB, from_file, registry_of};

    #[test]
    fn the_registry_is_the_first_part_if_it_is_a_host() {
        for (image, registry) in [
            ("busybox", HUB),
            ("openwhisk/nodejs", HUB),
            ("localhost/a", "localhost"),
            ("r.example/a/b:1", "r.example"),
            ("host:5000/a", "host:5000"),
        ] {
            assert_eq!(registry_of(image), registry, "{image}");
        }
    }

    #[test]
    fn logins_are_found_under_either_spelling() {
        let file: ConfigFile = serde_json::from_str(
            r#"{"auths":{"https://r.example/v2/":{"auth":"dTpwOng="},"t.example":{"identitytoken":"t"},"x":{}}}"#,
        )
        .expect("config");
        let found = from_file(&file, "r.example").expect("login");
        assert_eq!((found.username.as_deref(), found.password.as_deref()), (Some("u"), Some("p:x")));
        assert_eq!(from_file(&file, "t.example").expect("token").identitytoken.as_deref(), Some("t"));
        assert!(from_file(&file, "x").is_none());
        assert!(from_file(&file, HUB).is_none());
    }
}
