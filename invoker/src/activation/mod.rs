//! What happens to one activation, from the message to the record.

mod ack;
mod note;
pub mod record;

pub use ack::{Acks, Asker, Sent};
pub use note::Note;
