//! Compiles the kernels of `kernels/cuda` for the CPU.

#[path = "src/compile.rs"]
mod compile;

use std::path::PathBuf;

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("libcuda.so");
    let kernels = here.join("../cuda/cu");
    for watched in ["include", "device", "src/compile.rs", "../cuda/cu"] {
        println!("cargo:rerun-if-changed={}", here.join(watched).display());
    }
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rerun-if-env-changed=DS4_EMU_SANITIZE");
    let sanitizers = std::env::var("DS4_EMU_SANITIZE").unwrap_or_default();
    let options = compile::Options {
        emulator: &here,
        level: "-O2",
        sanitizers: &sanitizers,
    };
    if let Err(error) = options.library(&kernels.join("ds4.cu"), &options.sources(), &out) {
        panic!("{error}");
    }
    println!("cargo:rustc-env=DS4_EMU_LIBRARY={}", out.display());
}
