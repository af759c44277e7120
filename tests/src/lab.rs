//! One test's corner of the services: its own topics, databases and container names.

use crate::controller::{ACK_BYTES, Controller};
use crate::docker::Docker;
use crate::env::Services;
use crate::invoker::Builder;
use crate::store::Store;
use rand::Rng as _;
use serde_json::{Value, json};

/// The images the tests run, by the kind that is mapped to them.
pub const KINDS: &[(&str, &str)] = &[
    ("nodejs:20", "rewind-test/action-nodejs"),
    ("python:3.11", "rewind-test/action-actionloop-python"),
    ("python-single:3.11", "rewind-test/action-python"),
    ("native:1", "rewind-test/action-native"),
    ("scripted:1", "rewind-test/action-scripted"),
    ("python-libraries:3.11", "rewind-test/action-python-libraries"),
];

/// A controller, a store and a Docker Engine for one test. What the test made in Docker is removed with it.
#[derive(Debug)]
pub struct Lab {
    /// The services the lab is a corner of.
    pub services: Services,
    /// Short and unlike any other test's: letters and digits.
    pub name: String,
    /// The controller's double.
    pub controller: Controller,
    /// The databases.
    pub store: Store,
    /// The engine the invoker uses.
    pub docker: Docker,
}

impl Lab {
    /// A corner of the services that everybody uses.
    pub async fn new(name: &str) -> Self {
        Self::within(Services::get(), name, &["0"]).await
    }

    /// A corner of these services, with these controllers.
    pub async fn within(services: &Services, name: &str, controllers: &[&str]) -> Self {
        Self::limited(services, name, controllers, ACK_BYTES).await
    }

    /// The same, where the broker takes no ack of more than `ack_bytes`.
    pub async fn limited(services: &Services, name: &str, controllers: &[&str], ack_bytes: usize) -> Self {
        let name = format!("{name}{:06x}", rand::rng().random::<u32>() >> 8);
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit()), "{name}");
        let controller = Controller::start(&services.kafka, &name, controllers, ack_bytes).await;
        let store = Store::create(services, &format!("{name}-")).await;
        Self { services: services.clone(), docker: Docker::at(&services.docker), name, controller, store }
    }

    /// An invoker for this lab, to be changed and started.
    pub fn invoker(&self) -> Builder {
        Builder::new(self)
    }

    /// What the names of this lab's containers begin with, for invoker 0.
    pub fn container_prefix(&self) -> String {
        format!("wsk{}0_", self.name)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.docker.remove_all(&format!("wsk{}", self.name));
    }
}

/// A runtimes manifest with the images of the tests (contract 1.6), `stem_cells` being its member of the
/// same name for every kind it lists.
pub fn manifest(stem_cells: &[(&str, Value)]) -> Value {
    let mut families = serde_json::Map::new();
    for (kind, image) in KINDS {
        let family = kind.split(':').next().expect("a kind has a family");
        let (prefix, name) = image.split_once('/').expect("an image has a prefix");
        let mut runtime = json!({
            "kind": kind,
            "default": true,
            "image": {"prefix": prefix, "name": name, "tag": "latest"},
            "deprecated": false,
            "attached": {"attachmentName": "codefile", "attachmentType": "text/plain"},
        });
        if let Some((_, cells)) = stem_cells.iter().find(|(of, _)| of == kind) {
            runtime["stemCells"] = cells.clone();
        }
        families.insert(family.to_owned(), json!([runtime]));
    }
    json!({"runtimes": families, "blackboxes": [{"prefix": "rewind-test", "name": "action-scripted", "tag": "latest"}]})
}
