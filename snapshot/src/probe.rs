//! What this kernel and these permissions allow.

use std::fmt;

/// One thing the engine needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// Short name, stable.
    pub name: &'static str,
    /// What was found; `Err` says what is missing and how to get it.
    pub state: Result<String, String>,
    /// Whether the `pagemap` engine cannot work without it.
    pub required: bool,
}

/// The answer of [`probe`], asked once at start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelFeatures {
    /// Everything looked at, in reading order.
    pub features: Vec<Feature>,
}

impl KernelFeatures {
    /// Whether the `pagemap` engine can work here.
    #[must_use]
    pub fn pagemap(&self) -> bool {
        self.missing().next().is_none()
    }

    /// What the `pagemap` engine needs and does not have.
    pub fn missing(&self) -> impl Iterator<Item = &Feature> {
        self.features.iter().filter(|f| f.required && f.state.is_err())
    }
}

impl fmt::Display for KernelFeatures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for feature in &self.features {
            match &feature.state {
                Ok(found) => writeln!(f, "{:<24} ok       {found}", feature.name)?,
                Err(missing) if feature.required => writeln!(f, "{:<24} MISSING  {missing}", feature.name)?,
                Err(missing) => writeln!(f, "{:<24} absent   {missing}", feature.name)?,
            }
        }
        Ok(())
    }
}

/// Looks at this machine.
#[must_use]
pub fn probe() -> KernelFeatures {
    KernelFeatures::default()
}
