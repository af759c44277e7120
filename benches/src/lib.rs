//! A/B benches of the invoker and of the rewind, with raw runs kept.
