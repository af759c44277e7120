//! What lies in the store: actions (contract 4.3) and activation records (contract 4.6).

mod action;
mod activation;
mod annotations;
mod attachment;
mod exec;
mod image;
mod limits;
mod names;
mod parameters;

pub use self::action::{ActionDocument, EntityError, ExecutableAction, ReadContext};
pub use self::activation::{ActivationRecord, ActivationResponse, StatusCode, StoredActivation};
pub use self::annotations::{ActivationFacts, Annotations, annotation};
pub use self::attachment::{AttachmentName, AttachmentRef, StoredCode};
pub use self::exec::{BLACKBOX, Code, Exec, SEQUENCE, StoredExec};
pub use self::image::{ImageName, ImageNameError};
pub use self::limits::{ActionLimits, StoredLimits};
pub use self::names::{FullyQualifiedName, NameError, is_entity_name};
pub use self::parameters::{Parameter, Parameters};

#[cfg(test)]
mod tests;
