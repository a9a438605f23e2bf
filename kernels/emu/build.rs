//! Compiles the kernels of `kernels/cuda` and `kernels/metal` for the CPU.

#[path = "src/compile.rs"]
mod compile;
#[path = "src/msl.rs"]
mod msl;
#[path = "../metal/src/source.rs"]
mod source;

use std::path::PathBuf;

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let folder = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    let (out, metal) = (folder.join("libcuda.so"), folder.join("libds4metal.so"));
    let kernels = here.join("../cuda/cu");
    for watched in [
        "include",
        "device",
        "src/compile.rs",
        "src/msl.rs",
        "../cuda/cu",
        "../metal/metal",
        "../metal/src/source.rs",
    ] {
        println!("cargo:rerun-if-changed={}", here.join(watched).display());
    }
    println!("cargo:rerun-if-env-changed=CXX");
    println!("cargo:rerun-if-env-changed=DS4_CLANG");
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
    if let Err(error) = msl::compile(&here, &source::source(), &metal) {
        panic!("{error}");
    }
    println!("cargo:rustc-env=DS4_EMU_LIBRARY={}", out.display());
    println!("cargo:rustc-env=DS4_EMU_METAL_LIBRARY={}", metal.display());
}
