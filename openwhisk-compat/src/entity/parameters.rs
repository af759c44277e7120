//! Parameters bound to an action (contract 4.3, 4.4).

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

/// One parameter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub key: String,
    /// Its value; encrypted, if `encryption` names an algorithm.
    #[serde(default)]
    pub value: Value,
    /// Goes to the environment at `/init` rather than to the arguments.
    #[serde(default, deserialize_with = "flag", skip_serializing_if = "std::ops::Not::not")]
    pub init: bool,
    /// `aes-128` or `aes-256`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encryption: Option<String>,
}

/// `null` counts as false.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    Option::<bool>::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// The parameters of an action, in the document's order. The controller merges them into a message's
/// content; the invoker needs them only to tell one action from another.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Parameters(Vec<Parameter>);

impl Parameters {
    /// The parameters, in order.
    pub fn iter(&self) -> impl Iterator<Item = &Parameter> {
        self.0.iter()
    }

    /// The parameter called `key`; the last of that name, as upstream reads them into a map.
    pub fn get(&self, key: &str) -> Option<&Parameter> {
        self.0.iter().rev().find(|parameter| parameter.key == key)
    }
}

impl FromIterator<Parameter> for Parameters {
    fn from_iter<I: IntoIterator<Item = Parameter>>(parameters: I) -> Self {
        Self(parameters.into_iter().collect())
    }
}

impl PartialEq for Parameters {
    /// As maps: order is no part of the value.
    fn eq(&self, other: &Self) -> bool {
        self.0.len() == other.0.len()
            && (self.0 == other.0 || self.0.iter().all(|mine| other.get(&mine.key) == self.get(&mine.key)))
    }
}

impl Eq for Parameters {}
