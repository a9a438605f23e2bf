//! Compiles kernels and emulator into one shared library; used by the build script and, for kernels with planted faults, by tests.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Flags that make the host's arithmetic that of the device: IEEE, nothing fused but what says so.
const ARITHMETIC: [&str; 2] = ["-ffp-contract=off", "-fno-fast-math"];

/// How to compile.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// This crate's folder.
    pub emulator: &'a Path,
    /// The compiler's flag for optimisation.
    pub level: &'a str,
    /// Goes to `-fsanitize=` when it is not empty.
    pub sanitizers: &'a str,
}

impl Options<'_> {
    /// Compiles `kernels` (a `.cu` file) with the emulator, its sources or its [`objects`](Self::objects), into the library `out`.
    pub fn library(&self, kernels: &Path, emulator: &[PathBuf], out: &Path) -> Result<(), String> {
        let mut command = self.compiler()?;
        // Needs the C library alone, as the real one does: a container that it is mounted into may have no C++.
        command.args(["-shared", "-static-libstdc++", "-static-libgcc"]);
        command.args(["-Wl,-soname,libcuda.so", "-x", "c++"]);
        command.arg(kernels);
        if emulator
            .iter()
            .all(|file| file.extension().is_some_and(|e| e == "o"))
        {
            command.args(["-x", "none"]);
        }
        succeed(command.args(emulator).arg("-o").arg(out))
    }

    /// Compiles the emulator alone, into `folder`.
    #[allow(dead_code)] // the build script has no use for it
    pub fn objects(&self, folder: &Path) -> Result<Vec<PathBuf>, String> {
        let object = |source: PathBuf| {
            let out = folder
                .join(source.file_stem().unwrap_or_default())
                .with_extension("o");
            let mut command = self.compiler()?;
            succeed(command.arg("-c").arg(source).arg("-o").arg(&out))?;
            Ok(out)
        };
        self.sources().into_iter().map(object).collect()
    }

    /// The emulator's own sources.
    pub fn sources(&self) -> Vec<PathBuf> {
        ["fibre", "block", "memory", "stream", "graph", "driver"]
            .iter()
            .map(|name| self.emulator.join("device").join(format!("{name}.cpp")))
            .collect()
    }

    fn compiler(&self) -> Result<Command, String> {
        let mut command = Command::new(compiler()?);
        command.args(["-std=c++17", self.level, "-g1", "-fPIC", "-pthread"]);
        command.args(["-Wall", "-Wextra", "-Werror"]);
        command.args([
            "-Wno-unused-function",
            "-Wno-unknown-pragmas",
            "-fvisibility=hidden",
        ]);
        command.args(ARITHMETIC);
        if cfg!(target_arch = "x86_64") {
            // FMA and F16C as instructions; the library may be carried to another machine of this level.
            command.arg("-march=x86-64-v3");
        }
        if !self.sanitizers.is_empty() {
            command.arg(format!("-fsanitize={}", self.sanitizers));
        }
        command.arg("-I").arg(self.emulator.join("include"));
        Ok(command)
    }
}

fn succeed(command: &mut Command) -> Result<(), String> {
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
