//! Names of invokers and controllers, and the ping (contract 2.1, 2.4, 2.5).

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::size::ByteSize;

/// The controller an activation came from; acknowledgements go to `<prefix>completed<asString>`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ControllerId {
    /// The part that names the topic.
    #[serde(rename = "asString")]
    pub as_string: String,
    /// Always `controller`; older controllers leave it out.
    #[serde(rename = "instanceType", default = "controller")]
    instance_type: String,
}

impl ControllerId {
    /// The controller called `name`.
    pub fn new(name: impl Into<String>) -> Self {
        Self { as_string: name.into(), instance_type: controller() }
    }
}

impl fmt::Display for ControllerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.as_string)
    }
}

fn controller() -> String {
    "controller".to_owned()
}

fn invoker() -> String {
    "invoker".to_owned()
}

/// This invoker, as it names itself in pings and acknowledgements.
///
/// `instanceType`, `tags` and `dedicatedNamespaces` are always written: leave one out and a 2.0.0 controller
/// rejects every ping and completion. Readers tolerate their absence, as 1.0.0 leaves them out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct InvokerInstanceId {
    /// The number in the topic's name.
    pub instance: u32,
    /// Memory offered; the controller counts its slots by it.
    pub user_memory: ByteSize,
    /// Memory in use; only the scheduler reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_memory: Option<ByteSize>,
    /// Always `invoker`; 1.0.0 knows no other and leaves it out.
    #[serde(default = "invoker")]
    pub instance_type: String,
    /// Tags of this invoker's resources (`invoker.resource.tags`).
    #[serde(default)]
    pub tags: Vec<String>,
    /// Namespaces this invoker is kept for (`invoker.dedicated.namespaces`).
    #[serde(default)]
    pub dedicated_namespaces: Vec<String>,
    /// `--uniqueName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unique_name: Option<String>,
    /// `--displayedName`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displayed_name: Option<String>,
}

impl InvokerInstanceId {
    /// The invoker with this number and memory, and no names.
    pub fn new(instance: u32, user_memory: ByteSize) -> Self {
        Self {
            instance,
            user_memory,
            busy_memory: None,
            instance_type: invoker(),
            tags: Vec::new(),
            dedicated_namespaces: Vec::new(),
            unique_name: None,
            displayed_name: None,
        }
    }

    /// `invoker<N>`: the source of user events, and the topic without its prefix.
    pub fn source(&self) -> String {
        format!("invoker{}", self.instance)
    }
}

impl fmt::Display for InvokerInstanceId {
    /// `invoker<N>[/unique][/displayed]`, as in the answers of the HTTP server (contract 7.3).
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "invoker{}", self.instance)?;
        for name in [&self.unique_name, &self.displayed_name].into_iter().flatten() {
            write!(f, "/{name}")?;
        }
        Ok(())
    }
}

/// A sign of life, once a second on `<prefix>health` (contract 2.5, 7.1).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PingMessage {
    /// Who is alive.
    pub name: InvokerInstanceId,
    /// False takes the invoker out of service at once. Absent in 1.0.0, where it means true.
    #[serde(default = "enabled")]
    pub is_enabled: bool,
}

fn enabled() -> bool {
    true
}
