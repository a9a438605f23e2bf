//! Embeds the device code that `cargo xtask fatbin` builds. Without it the crate builds all the same and says at run time what is missing.

use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let default = here.join("../../.cache/cuda/ds4.fatbin");
    let chosen = std::env::var_os("DS4_FATBIN").map(PathBuf::from);
    println!("cargo:rerun-if-env-changed=DS4_FATBIN");
    println!("cargo:rerun-if-changed={}", default.display());
    if let Some(path) = &chosen {
        println!("cargo:rerun-if-changed={}", path.display());
        assert!(
            path.is_file(),
            "DS4_FATBIN: expected a file, found none at {}",
            path.display()
        );
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("ds4.fatbin");
    if let Err(error) = copy(chosen.as_deref().unwrap_or(&default), &out) {
        panic!("{}: {error}", out.display());
    }
}

fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let image = if from.is_file() {
        std::fs::read(from)?
    } else {
        Vec::new()
    };
    std::fs::write(to, image)
}
