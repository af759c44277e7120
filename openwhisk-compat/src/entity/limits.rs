//! Limits of an action (contract 4.3).

use serde::{Deserialize, Serialize};

/// Limits of an action, complete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ActionLimits {
    /// Time for `/init` and again for `/run`, in milliseconds.
    #[serde(rename = "timeout")]
    pub timeout_ms: u32,
    /// Memory of the container in MB.
    #[serde(rename = "memory")]
    pub memory_mb: u32,
    /// Log limit in MB; 0 means no logs are collected.
    #[serde(rename = "logs")]
    pub logs_mb: u32,
    /// How many activations may run in one container at once.
    #[serde(default = "one")]
    pub concurrency: u32,
    /// How many containers; only the scheduler reads it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
}

fn one() -> u32 {
    1
}

impl ActionLimits {
    /// The standards of an unconfigured system (contract 1.3).
    pub const STANDARD: Self =
        Self { timeout_ms: 60_000, memory_mb: 256, logs_mb: 10, concurrency: 1, instances: None };
}

/// Limits as a document has them: any may be missing and then takes the standard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StoredLimits {
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u32>,
    /// MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<u32>,
    /// MB.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub logs: Option<u32>,
    /// Activations at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Containers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instances: Option<u32>,
}

impl StoredLimits {
    /// Fills what is missing from `standard`.
    pub fn resolve(&self, standard: &ActionLimits) -> ActionLimits {
        ActionLimits {
            timeout_ms: self.timeout.unwrap_or(standard.timeout_ms),
            memory_mb: self.memory.unwrap_or(standard.memory_mb),
            logs_mb: self.logs.unwrap_or(standard.logs_mb),
            concurrency: self.concurrency.unwrap_or(standard.concurrency),
            instances: self.instances.or(standard.instances),
        }
    }
}
