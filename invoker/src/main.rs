//! The program `rewind`.
fn main() {}
