//! From a message to a job (contract 3.5): who may invoke, what is to be run, within which limits.

use std::sync::Arc;

use openwhisk_compat::crypt::ParameterKeys;
use openwhisk_compat::entity::{ActivationResponse, ExecutableAction};
use openwhisk_compat::limits::{self, LimitBounds};
use openwhisk_compat::message::ActivationMessage;
use openwhisk_compat::protocol::Arguments;
use openwhisk_compat::response::Fallback;
use openwhisk_compat::store::{ActionStore, Blacklist, FetchError};

use super::answer::AtOnce;
use super::record::{Subject, fallback, now_ms};
use super::{Activation, Asker};
use crate::feed::Handed;

/// Decides which messages become jobs.
pub struct Admission {
    /// Namespaces that may not invoke.
    pub blacklist: Blacklist,
    /// Where actions are.
    pub actions: Arc<dyn ActionStore>,
    /// Limits of users who have none of their own.
    pub bounds: LimitBounds,
    /// For `lockedArgs`.
    pub keys: ParameterKeys,
}

/// Why a message does not become a job, and how that is answered.
#[derive(Debug)]
pub struct Refusal {
    /// The response.
    pub response: ActivationResponse,
    /// The acknowledgement.
    pub how: AtOnce,
}

impl Refusal {
    fn of(fallback: &Fallback) -> Self {
        Self { response: fallback.response(), how: AtOnce::Combined }
    }
}

impl Admission {
    /// The activation, ready for the pool, or what to answer instead.
    ///
    /// # Errors
    /// The message and why it is refused.
    pub async fn admit(&self, handed: Handed) -> Result<Activation, Box<(Handed, Refusal)>> {
        match self.decide(&handed.message).await {
            Ok(action) => self.arguments(handed, action),
            Err(refusal) => Err(Box::new((handed, refusal))),
        }
    }

    async fn decide(&self, message: &ActivationMessage) -> Result<Arc<ExecutableAction>, Refusal> {
        if self.blacklist.blocks(&message.user.namespace.name) {
            let response = Fallback::Blacklisted.response();
            return Err(Refusal { response, how: AtOnce::CombinedByReference });
        }
        if let Some(reason) = &message.unusable_content {
            return Err(Refusal::of(&Fallback::UnusableArguments(reason.clone())));
        }
        let action = self.fetch(message).await.map_err(|error| {
            tracing::warn!(
                tid = message.transid.id(),
                activation = message.activation_id.as_str(),
                "{error}"
            );
            Refusal::of(&match error {
                FetchError::NotFound { .. } => Fallback::NotFound,
                FetchError::WrongType { .. } | FetchError::Unreadable { .. } => Fallback::Incompatible,
                FetchError::NotExecutable { .. }
                | FetchError::RevisionMismatch { .. }
                | FetchError::Unavailable { .. } => Fallback::NotFetched,
            })
        })?;
        limits::check(&action.limits, &message.user.limits, &self.bounds)
            .map_err(|error| Refusal::of(&Fallback::LimitExceeded(error.to_string())))?;
        Ok(action)
    }

    /// The action at the message's revision; if the store has another one by now, the newest.
    async fn fetch(&self, message: &ActivationMessage) -> Result<Arc<ExecutableAction>, FetchError> {
        let revision = message.revision.as_deref();
        match self.actions.action(&message.action, revision).await {
            Err(error @ FetchError::RevisionMismatch { .. }) => {
                tracing::debug!(tid = message.transid.id(), "{error}, the newest is taken");
                self.actions.action(&message.action, None).await
            }
            outcome => outcome,
        }
    }

    /// Takes the arguments out of the message, decrypted and parted by where they go.
    fn arguments(
        &self,
        mut handed: Handed,
        action: Arc<ExecutableAction>,
    ) -> Result<Activation, Box<(Handed, Refusal)>> {
        let mut content = handed.message.content.take();
        if let (Some(content), false) = (&mut content, handed.message.locked_args.is_empty())
            && let Err(error) = self.keys.unlock(content, &handed.message.locked_args)
        {
            tracing::error!(
                tid = handed.message.transid.id(),
                activation = handed.message.activation_id.as_str(),
                "{}",
                crate::errors::chain(&error)
            );
            return Err(Box::new((handed, Refusal::of(&Fallback::Unexpected))));
        }
        let arguments = Arguments::partition(content, &handed.message.init_args);
        Ok(Activation { message: handed.message, key: handed.key, action, arguments })
    }
}

impl Refusal {
    /// Gives the answer.
    pub fn answer(self, handed: &Handed, answers: &super::Answers) {
        let record = fallback(&Subject::of(&handed.message), self.response, now_ms());
        answers.at_once(handed.key, &Asker::of(&handed.message), record, self.how);
    }
}
