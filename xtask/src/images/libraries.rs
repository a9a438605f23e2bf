//! The shared libraries that a program needs, as the dynamic linker finds them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;

/// A library: where it lies here, and the path in the image at which the program looks for it.
#[derive(Debug, PartialEq, Eq)]
pub struct Library {
    /// On this machine.
    pub source: PathBuf,
    /// In the image, without a leading slash.
    pub path: String,
}

/// Everything that `program` is linked with, the dynamic linker included.
///
/// # Errors
/// When `ldd` is missing or a library cannot be found.
pub fn closure(program: &Path) -> Result<Vec<Library>> {
    parse(&process::output(Command::new("ldd").arg(program))?)
}

/// Reads what `ldd` prints: `name => /path (address)`, `/path (address)` for the linker, and the kernel's own.
fn parse(text: &str) -> Result<Vec<Library>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        let line = line.trim();
        if line.ends_with("not found") {
            bail!("a shared library is missing: {line}");
        }
        let found = line.rsplit_once(" => ").map_or(line, |(_, path)| path);
        let path = found.split(" (").next().unwrap_or_default();
        if let Some(relative) = path.strip_prefix('/') {
            libraries.push(Library {
                source: PathBuf::from(path),
                path: relative.to_owned(),
            });
        }
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f12)\n\
                          \t/lib64/ld-linux-x86-64.so.2 (0x00007f34)\n";

    #[test]
    fn libraries_and_the_linker_are_kept_and_the_kernels_own_is_not() -> Result<()> {
        let paths: Vec<_> = parse(SAMPLE)?.into_iter().map(|library| library.path).collect();
        assert_eq!(
            paths,
            ["lib/x86_64-linux-gnu/libc.so.6", "lib64/ld-linux-x86-64.so.2"]
        );
        Ok(())
    }

    #[test]
    fn a_missing_library_is_an_error_with_its_name() {
        let error = parse("\tlibodd.so => not found\n")
            .err()
            .map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("libodd.so")));
    }
}
