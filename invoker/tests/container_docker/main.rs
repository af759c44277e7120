//! Containers through a real Docker Engine, with a runtime that misbehaves on demand (`hostile.c`).
//!
//! Needs root, Docker and a C compiler; skips loudly without.

mod engine;
mod logs;
mod memory;
mod support;
mod traced;
mod transport;
