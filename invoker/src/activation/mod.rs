//! What happens to one activation, from the message to the record.
//!
//! ```text
//!  feed ─► admit ─► pool ─► run ─► ack ─► logs ─► last ack ─► rewind
//!            │ refused         (contract 2.6)         └─► record, journal
//!            └► answer at once
//! ```

mod ack;
pub mod admit;
mod answer;
pub mod execute;
mod note;
pub mod record;
pub mod user_logs;

use std::sync::Arc;

use openwhisk_compat::entity::ExecutableAction;
use openwhisk_compat::message::ActivationMessage;
use openwhisk_compat::protocol::Arguments;

pub use ack::{Acks, Asker, Sent};
pub use answer::{Answers, AtOnce};
pub use note::Note;

use crate::journal::Key;

/// An activation that may run: an answer is owed.
#[derive(Debug)]
pub struct Activation {
    /// The message; its content is in `arguments`.
    pub message: ActivationMessage,
    /// Its entry in the journal.
    pub key: Key,
    /// What runs.
    pub action: Arc<ExecutableAction>,
    /// With what.
    pub arguments: Arguments,
}

impl Activation {
    /// To whom it is answered.
    #[must_use]
    pub fn asker(&self) -> Asker<'_> {
        Asker::of(&self.message)
    }
}
