//! Compiles the census program (`bpf/census.bpf.c`) with clang.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo:rerun-if-changed=bpf");
    if env::var_os("CARGO_FEATURE_BPF").is_none() {
        return;
    }
    println!("cargo:rerun-if-env-changed=CLANG");
    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".to_owned());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());
    // The loader's headers lie beside its library.
    let headers = env::var("DEP_BPF_INCLUDE").unwrap_or_default();
    let done = Command::new(&clang)
        // The third instruction set (Linux 5.1) has comparisons of 32 bits, which keep the program small.
        .args([
            "-target",
            "bpf",
            "-mcpu=v3",
            "-O2",
            "-g",
            "-Wall",
            "-Wextra",
            "-Wno-unused-parameter",
            "-Werror",
        ])
        .arg("-I")
        .arg(headers)
        .args(["-c", "bpf/census.bpf.c", "-o"])
        .arg(out.join("census.bpf.o"))
        .status();
    let help = "install the Debian package clang, or name another one in CLANG, or build without the census: \
                --no-default-features (rewinds then take several times as long)";
    match done {
        Ok(status) if status.success() => {}
        Ok(status) => panic!("{clang} could not compile bpf/census.bpf.c ({status}): {help}"),
        Err(error) => panic!("{clang}, which compiles the census program, does not run ({error}): {help}"),
    }
}
