//! Cache invalidations among controllers (contract 2.8).

use serde::{Deserialize, Serialize};

/// Tells other controllers that an entity changed. The invoker neither reads nor writes these: its action
/// cache is keyed by revision. The type is here for the stand-alone mode and for tests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheInvalidation {
    /// What changed.
    pub key: CacheKey,
    /// Who changed it, such as `controller0`.
    pub instance_id: String,
}

/// The key of a cached entity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheKey {
    /// The document's id.
    pub main_id: String,
    /// A second key of the same entity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secondary_id: Option<String>,
}
