//! Running a BPF program.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// The part of `union bpf_attr` that belongs to BPF_PROG_RUN.
#[repr(C)]
#[derive(Default)]
struct Run {
    program: u32,
    answer: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    processor: u32,
    batch_size: u32,
    pad: u32,
}

const BPF_PROG_RUN: libc::c_int = 10;

/// Runs a program of type SYSCALL with `context`; returns what it returned.
pub(crate) fn run(program: BorrowedFd<'_>, context: &[u8]) -> io::Result<u32> {
    let mut run = Run {
        program: program.as_raw_fd().cast_unsigned(),
        context_size_in: u32::try_from(context.len()).map_err(io::Error::other)?,
        context_in: context.as_ptr() as u64,
        ..Run::default()
    };
    // SAFETY: the structure lives during the call and says how long it is; the kernel reads the context, which
    // lives, too, and writes nothing but the answer.
    let done =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_RUN, &raw mut run, std::mem::size_of::<Run>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(run.answer) }
}
