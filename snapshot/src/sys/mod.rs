//! The platform: every system call that needs `unsafe`, and nothing else.
//!
//! What is above this module speaks of threads, pages and descriptors, not of ioctls and raw pointers.
#![allow(unsafe_code, reason = "the only place of this crate that talks to the kernel by raw pointers")]

pub(crate) mod agent;
pub(crate) mod alarm;
#[cfg(feature = "bpf")]
pub(crate) mod bpf;
pub(crate) mod file;
pub(crate) mod memory;
pub(crate) mod namespace;
pub(crate) mod process;
pub(crate) mod ptrace;
pub(crate) mod socket;
pub(crate) mod wake;

/// The page size of x86-64.
pub(crate) const PAGE: u64 = 4096;
