//! The code that runs inside the target.
//!
//! Position-independent, without a stack, without writes outside its arguments. It walks an array of calls and
//! ends in a breakpoint, whose address the engine demands exactly.

use std::arch::global_asm;

// r15: the first call, r14: how many. A call is eight quadwords: number, six arguments, result.
// Negative numbers are work on memory instead of a system call:
//   -1  copies rdx bytes from rsi to rdi
//   -2  zeroes rdx bytes from rdi on (from no source that could be altered)
//   -3  compares: rsi is a list of rdx pairs of an address and the quadword that must be there; the result is
//       how many are not
global_asm!(
    ".pushsection .rodata.rewind_agent, \"a\", @progbits",
    ".globl rewind_agent_start",
    ".hidden rewind_agent_start",
    "rewind_agent_start:",
    "2:",
    "test r14, r14",
    "jz 9f",
    "mov rax, [r15]",
    "mov rdi, [r15 + 8]",
    "mov rsi, [r15 + 16]",
    "mov rdx, [r15 + 24]",
    "mov r10, [r15 + 32]",
    "mov r8, [r15 + 40]",
    "mov r9, [r15 + 48]",
    "test rax, rax",
    "js 3f",
    "syscall",
    "jmp 4f",
    "3:",
    "mov rcx, rdx",
    "cmp eax, -2",
    "mov eax, 0",
    "jb 6f",
    "je 5f",
    "rep movsb",
    "jmp 4f",
    "5:",
    "rep stosb",
    "jmp 4f",
    "6:",
    "jrcxz 4f",
    "mov rdi, [rsi]",
    "mov rdx, [rsi + 8]",
    "cmp [rdi], rdx",
    "setne dl",
    "movzx edx, dl",
    "add eax, edx",
    "add rsi, 16",
    "dec ecx",
    "jmp 6b",
    "4:",
    "mov [r15 + 56], rax",
    "add r15, 64",
    "dec r14",
    "jmp 2b",
    "9:",
    "int3",
    ".globl rewind_agent_end",
    ".hidden rewind_agent_end",
    "rewind_agent_end:",
    ".popsection",
);

/// Call number: copy.
pub(crate) const COPY: i64 = -1;
/// Call number: zero.
pub(crate) const ZERO: i64 = -2;
/// Call number: compare.
pub(crate) const COMPARE: i64 = -3;

unsafe extern "C" {
    static rewind_agent_start: u8;
    static rewind_agent_end: u8;
}

/// The agent's machine code. Its last byte is the breakpoint, so a finished run stands at the end.
pub(crate) fn code() -> &'static [u8] {
    let start = &raw const rewind_agent_start;
    let end = &raw const rewind_agent_end;
    // SAFETY: both symbols are in one section of this program, in this order, with only the bytes assembled
    // above between them; the section is read-only and lives as long as the program.
    let len = unsafe { end.offset_from(start) };
    // SAFETY: as above; the length cannot be negative.
    unsafe { std::slice::from_raw_parts(start, usize::try_from(len).unwrap_or(0)) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_code_ends_in_a_breakpoint_and_is_small() {
        let code = super::code();
        assert_eq!(code.last(), Some(&0xcc));
        assert!(code.len() < 128, "{} bytes", code.len());
    }
}
