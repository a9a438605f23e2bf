//! The device code that `cargo xtask fatbin` built, against the launch table and its bounds. That command runs this test.
#![allow(clippy::unwrap_used)]

use std::fmt::Write;
use std::path::{Path, PathBuf};

use ds4_kernels_cuda::TABLE;
use ds4_kernels_cuda::fatbin::{Image, Kernel, read};

/// Compute capabilities of the images, and of the PTX for later ones.
const ARCHITECTURES: [u32; 6] = [80, 89, 90, 100, 120, 121];
const PTX: u32 = 80;
/// A warp's share of the register file at half of an SM's warps: 65,536 registers for 32 warps of 32 threads.
const MOST_REGISTERS: u32 = 64;
/// The one decode kernel that the compiler gives local memory, its architecture and the bytes: around the division of SwiGLU, once per row, not in
/// the loop.
const AROUND_DIVISION: (&str, u32, u32) = ("gate_up_iq2_xxs_one", 89, 24);
/// What runs for every token that is decoded; none of it may keep registers in memory.
const DECODE: [&str; 24] = [
    "append_state",
    "attend",
    "combine_experts",
    "embed",
    "encode_indexer",
    "encode_kv",
    "gather_streams",
    "head_mix",
    "hyper_mix",
    "index_queries",
    "index_scores",
    "matvec_",
    "_one",
    "norm_rotate_heads",
    "pick_rows",
    "pool_groups",
    "quantize_q8",
    "quantize_q8_k",
    "rms_norm",
    "rotate_rows",
    "route",
    "scatter_streams",
    "swiglu",
    "argmax",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn images() -> Vec<Image> {
    let path = root().join(".cache/cuda/ds4.fatbin");
    let bytes = std::fs::read(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; run `cargo xtask fatbin`", path.display()));
    read(&bytes).unwrap()
}

fn decodes(name: &str) -> bool {
    DECODE.iter().any(|part| {
        name == *part
            || (part.ends_with('_') && name.starts_with(part))
            || (part.starts_with('_') && name.ends_with(part))
    })
}

#[test]
#[ignore = "needs cargo xtask fatbin, which runs it"]
fn every_architecture_has_the_kernels_that_the_host_launches() {
    let images = images();
    let built: Vec<u32> = images
        .iter()
        .filter(|image| !image.ptx)
        .map(|image| image.architecture)
        .collect();
    assert_eq!(built, ARCHITECTURES);
    assert!(
        images.iter().any(|image| image.ptx && image.architecture == PTX),
        "PTX for later architectures"
    );
    for image in images.iter().filter(|image| !image.ptx) {
        let names: Vec<&str> = image.kernels.keys().map(String::as_str).collect();
        let mut launched: Vec<&str> = TABLE.iter().map(|kernel| kernel.name).collect();
        launched.sort_unstable();
        assert_eq!(names, launched, "kernels for {}", image.architecture);
        for signature in TABLE {
            let found = &image.kernels[signature.name].parameters;
            assert_eq!(
                found, signature.arguments,
                "parameters of {} for {}",
                signature.name, image.architecture
            );
        }
    }
}

#[test]
#[ignore = "needs cargo xtask fatbin, which runs it"]
fn decode_kernels_keep_everything_in_registers() {
    for image in images().iter().filter(|image| !image.ptx) {
        for (name, kernel) in image.kernels.iter().filter(|(name, _)| decodes(name)) {
            let of = format!("{name} for {}", image.architecture);
            let (excepted, architecture, bytes) = AROUND_DIVISION;
            let most = if name == excepted && image.architecture == architecture {
                bytes
            } else {
                0
            };
            assert!(
                kernel.stack <= most,
                "local memory of {of}: expected at most {most} bytes, found {}",
                kernel.stack
            );
            let most = if *name == "attend" { 96 } else { MOST_REGISTERS };
            assert!(
                kernel.registers <= most,
                "registers of {of}: expected at most {most}, found {}",
                kernel.registers
            );
            assert!(
                kernel.shared <= 48 * 1024,
                "shared memory of {of}: {}",
                kernel.shared
            );
        }
    }
}

/// The table of the docs: one line per kernel, `registers/stack` per architecture.
fn table(images: &[Image]) -> String {
    let images: Vec<&Image> = images.iter().filter(|image| !image.ptx).collect();
    let mut out = String::from(
        "# Registers and memory of every kernel\n\nWritten by `cargo xtask fatbin` (nvcc 13.0) and held by `kernels/cuda/tests/fatbin.rs`. Per architecture: registers of a \
         thread, and after a slash bytes of local memory where there are any. Shared memory is that of a block, dynamic memory apart.\n\n| kernel |",
    );
    images
        .iter()
        .for_each(|image| write!(out, " sm_{} |", image.architecture).unwrap());
    out += " shared |\n|---|";
    (0..=images.len()).for_each(|_| out += "---|");
    out += "\n";
    for name in images[0].kernels.keys() {
        write!(out, "| `{name}` |").unwrap();
        for image in &images {
            let Kernel { registers, stack, .. } = image.kernels[name];
            let memory = if stack == 0 {
                String::new()
            } else {
                format!("/{stack}")
            };
            write!(out, " {registers}{memory} |").unwrap();
        }
        writeln!(out, " {} |", images[0].kernels[name].shared).unwrap();
    }
    out
}

#[test]
#[ignore = "needs cargo xtask fatbin, which runs it"]
fn the_table_in_the_docs_is_that_of_the_device_code() {
    let (path, expected) = (root().join("docs/gpu/kernels.md"), table(&images()));
    if std::env::var_os("DS4_WRITE_DOCS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &expected).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} is not that of the device code; run `cargo xtask fatbin --write`",
        path.display()
    );
}
