//! Compiles kernels and emulator into one shared library; used by the build script and, for kernels with planted faults, by tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags that make the host's arithmetic that of the device: IEEE, nothing fused but what says so.
const ARITHMETIC: [&str; 2] = ["-ffp-contract=off", "-fno-fast-math"];

/// Compiles `kernels` (a `.cu` file) with the emulator of `emulator` (this crate's folder) into the library `out`.
/// `sanitizers` goes to `-fsanitize=` when it is not empty.
pub fn compile(emulator: &Path, kernels: &Path, sanitizers: &str, out: &Path) -> Result<(), String> {
    let mut command = Command::new(compiler()?);
    command.args([
        "-std=c++17",
        "-O2",
        "-g1",
        "-fPIC",
        "-shared",
        "-pthread",
        "-Wall",
        "-Wextra",
        "-Werror",
    ]);
    command.args([
        "-Wno-unused-function",
        "-Wno-unknown-pragmas",
        "-fvisibility=hidden",
        "-Wl,-soname,libcuda.so",
    ]);
    command.args(ARITHMETIC);
    if cfg!(target_arch = "x86_64") {
        // FMA and F16C as instructions; the library may be carried to another machine of this level.
        command.arg("-march=x86-64-v3");
    }
    if !sanitizers.is_empty() {
        command.arg(format!("-fsanitize={sanitizers}"));
    }
    command.arg("-I").arg(emulator.join("include"));
    command.args(["-x", "c++"]).arg(kernels);
    command.args(sources(emulator)).arg("-o").arg(out);
    let output = command
        .output()
        .map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(format!(
            "{command:?}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ))
    }
}

/// The emulator's own sources.
pub fn sources(emulator: &Path) -> Vec<PathBuf> {
    ["fibre", "block", "memory", "driver"]
        .iter()
        .map(|name| emulator.join("device").join(format!("{name}.cpp")))
        .collect()
}

/// The C++ compiler: `CXX`, or `c++`.
fn compiler() -> Result<String, String> {
    let name = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    match Command::new(&name).arg("--version").output() {
        Ok(_) => Ok(name),
        Err(error) => Err(format!(
            "{name}: {error}; the emulator needs a C++17 compiler (Debian: g++), or set CXX"
        )),
    }
}
