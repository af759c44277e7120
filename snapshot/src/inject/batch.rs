//! A table of system calls for the agent.

use super::LANE;

/// Bytes of one call: number, six arguments, result.
const CALL: usize = 64;

/// An argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Arg {
    Value(u64),
    /// Filled with the scratch's address in the target when the batch is encoded.
    Scratch(usize),
}

/// Bytes of a batch that the target reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Scratch {
    offset: usize,
    len: usize,
}

/// A call of a batch, to ask for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call(usize);

/// System calls to be executed in order, with the memory they need.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    calls: Vec<(i64, [Arg; 6])>,
    scratch: Vec<u8>,
}

/// An argument as callers write it: a number or some scratch.
pub(crate) trait IntoArg {
    #[doc(hidden)]
    fn into_arg(self) -> ArgValue;
}

/// Opaque form of an argument.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ArgValue(Arg);

impl IntoArg for u64 {
    fn into_arg(self) -> ArgValue {
        ArgValue(Arg::Value(self))
    }
}

impl IntoArg for Scratch {
    fn into_arg(self) -> ArgValue {
        ArgValue(Arg::Scratch(self.offset))
    }
}

/// Builds the argument list of [`Batch::add`] from numbers (anything that widens to 64 bits) and scratch.
macro_rules! args {
    ($($arg:expr),* $(,)?) => {
        &[$( $crate::inject::IntoArg::into_arg($arg) ),*]
    };
}
pub(crate) use args;

impl Batch {
    pub(crate) fn new() -> Batch {
        Batch::default()
    }

    pub(crate) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Whether another call with so much scratch still fits a lane.
    pub(crate) fn has_room(&self, scratch: usize) -> bool {
        self.size() + CALL + scratch + 8 <= LANE
    }

    /// A call with plain numbers.
    pub(crate) fn call(&mut self, number: i64, args: [u64; 6]) -> Call {
        self.calls.push((number, args.map(Arg::Value)));
        Call(self.calls.len() - 1)
    }

    /// A call with numbers and scratch; missing arguments are 0.
    pub(crate) fn add(&mut self, number: i64, args: &[ArgValue]) -> Call {
        let mut all = [Arg::Value(0); 6];
        for (slot, arg) in all.iter_mut().zip(args) {
            *slot = arg.0;
        }
        self.calls.push((number, all));
        Call(self.calls.len() - 1)
    }

    /// Scratch with content.
    pub(crate) fn bytes(&mut self, content: &[u8]) -> Scratch {
        let offset = self.scratch.len();
        self.scratch.extend_from_slice(content);
        // Structures want their alignment.
        self.scratch.resize(self.scratch.len().next_multiple_of(8), 0);
        Scratch { offset, len: content.len() }
    }

    /// Scratch of zeros.
    pub(crate) fn space(&mut self, len: usize) -> Scratch {
        self.bytes(&vec![0; len])
    }

    /// The address that scratch will have when the batch runs in the lane at `lane`. For structures that
    /// contain pointers; valid only if no call is added afterwards.
    pub(crate) fn address(&self, lane: u64, scratch: Scratch) -> u64 {
        lane + (self.calls.len() * CALL + scratch.offset) as u64
    }

    /// Replaces the content of scratch.
    pub(crate) fn fill(&mut self, scratch: Scratch, content: &[u8]) {
        self.scratch[scratch.offset..scratch.offset + content.len()].copy_from_slice(content);
    }

    /// Bytes of a lane that the batch takes.
    pub(crate) fn size(&self) -> usize {
        self.calls.len() * CALL + self.scratch.len()
    }

    /// The bytes for a lane that lies at `lane` in the target.
    pub(super) fn encode(&self, lane: u64) -> Vec<u8> {
        let scratch = lane + (self.calls.len() * CALL) as u64;
        let mut bytes = Vec::with_capacity(self.size());
        for (number, args) in &self.calls {
            bytes.extend_from_slice(&number.to_le_bytes());
            for arg in args {
                let value = match arg {
                    Arg::Value(value) => *value,
                    Arg::Scratch(offset) => scratch + *offset as u64,
                };
                bytes.extend_from_slice(&value.to_le_bytes());
            }
            // A result no call returns: shows a call that was not reached.
            bytes.extend_from_slice(&i64::MIN.to_le_bytes());
        }
        bytes.extend_from_slice(&self.scratch);
        bytes
    }
}

/// What a batch left in its lane.
#[derive(Debug)]
pub(crate) struct Answers {
    bytes: Vec<u8>,
}

impl Answers {
    pub(super) fn new(bytes: Vec<u8>) -> Answers {
        Answers { bytes }
    }

    /// The raw result of a call: a value, or a negative errno.
    pub(crate) fn raw(&self, call: Call) -> i64 {
        let at = call.0 * CALL + 56;
        self.bytes.get(at..at + 8).and_then(|b| b.try_into().ok()).map_or(i64::MIN, i64::from_le_bytes)
    }

    /// The result of a call.
    pub(crate) fn get(&self, call: Call) -> Result<u64, nix::errno::Errno> {
        let raw = self.raw(call);
        u64::try_from(raw)
            .map_err(|_| nix::errno::Errno::from_raw(i32::try_from(raw.wrapping_neg()).unwrap_or(0)))
    }

    /// The bytes of some scratch of `batch`.
    pub(crate) fn read(&self, batch: &Batch, scratch: Scratch) -> &[u8] {
        let at = batch.calls.len() * CALL + scratch.offset;
        self.bytes.get(at..at + scratch.len).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scratch_addresses_count_the_calls_added_later() {
        let mut batch = Batch::new();
        let name = batch.bytes(b"abc");
        let value = batch.space(16);
        batch.add(1, args![name, 7u64]);
        batch.add(2, args![value]);
        let bytes = batch.encode(0x1000);
        let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        assert_eq!((word(0), word(8), word(16)), (1, 0x1000 + 128, 7));
        assert_eq!((word(64), word(72)), (2, 0x1000 + 128 + 8));
        assert_eq!(&bytes[128..131], b"abc");
        assert_eq!(bytes.len(), batch.size());
        assert_eq!(batch.address(0x1000, value), word(72));
    }

    #[test]
    fn a_call_that_was_not_reached_has_no_result() {
        let mut batch = Batch::new();
        let call = batch.call(39, [0; 6]);
        let answers = Answers::new(batch.encode(0));
        assert!(answers.get(call).is_err());
        assert!(Answers::new(Vec::new()).get(call).is_err());
    }

    #[test]
    fn room_is_counted_before_it_is_used() {
        let mut batch = Batch::new();
        while batch.has_room(100) {
            batch.space(100);
            batch.call(39, [0; 6]);
        }
        assert!(batch.size() <= LANE);
    }
}
