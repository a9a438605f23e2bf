//! What `Dockerfile.cuda` names that its build cannot tell; `cargo xtask containers` builds it, with another base.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// The toolkit that the build copies is of the version that `cargo xtask fatbin` pins and that the docs' table is of.
#[test]
fn the_toolkit_is_the_one_that_the_device_code_was_checked_with() {
    let read = |path: &str| {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        std::fs::read_to_string(root.join(path)).unwrap()
    };
    let (file, pinned) = (read("Dockerfile.cuda"), read("xtask/src/fatbin.rs"));
    assert!(file.contains("CUDA_BASE=nvidia/cuda:13.0.2-devel"), "{file}");
    assert!(file.contains("/usr/local/cuda-13.0 "), "{file}");
    // The compiler of CUDA 13.0 Update 2.
    assert!(
        pinned.contains("nvidia-cuda-nvcc==13.0.88"),
        "another compiler is pinned"
    );
}
