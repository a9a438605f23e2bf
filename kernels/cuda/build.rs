//! Embeds the device code that `cargo xtask fatbin` builds and `DS4_FATBIN` names. Without it the crate builds all the same and says at run time what is
//! missing.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DS4_FATBIN");
    let mut image = Vec::new();
    if let Some(path) = std::env::var_os("DS4_FATBIN").map(PathBuf::from) {
        println!("cargo:rerun-if-changed={}", path.display());
        match std::fs::read(&path) {
            Ok(bytes) => image = bytes,
            Err(error) => panic!(
                "DS4_FATBIN: {}: {error}; `cargo xtask fatbin` makes it",
                path.display()
            ),
        }
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default()).join("ds4.fatbin");
    if let Err(error) = std::fs::write(&out, image) {
        panic!("{}: {error}", out.display());
    }
}
