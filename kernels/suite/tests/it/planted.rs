//! Faults planted into the kernels' source: each is built into a driver of its own, with which a process of its own runs the cases.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use ds4_emu::compile::Options;
use ds4_kernels_suite::cases;
use tempfile::TempDir;

use crate::support::run;
use ds4_emu::turn;

/// What the process with a planted driver does.
#[test]
#[ignore = "the tests below run it, each with a driver of its own"]
fn all_cases() {
    let turn = turn();
    for order in [0, 5] {
        for case in cases() {
            run(&turn, case, 7, 3, order).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

/// The emulator, compiled once; not optimised, which compiles four times as fast.
fn options(emulator: &Path) -> Options<'_> {
    Options {
        emulator,
        level: "-O0",
        sanitizers: "",
    }
}

fn objects() -> &'static [PathBuf] {
    static OBJECTS: OnceLock<(TempDir, Vec<PathBuf>)> = OnceLock::new();
    let compiled = || {
        let folder = tempfile::tempdir().unwrap();
        let objects = options(ds4_emu::folders().0).objects(folder.path()).unwrap();
        (folder, objects)
    };
    &OBJECTS.get_or_init(compiled).1
}

/// Whether all cases pass, and what was said, with `from` in `file` replaced by `to`.
fn with_fault(file: &str, from: &str, to: &str) -> (bool, String) {
    let (emulator, sources) = ds4_emu::folders();
    let folder = tempfile::tempdir().unwrap();
    for source in std::fs::read_dir(sources).unwrap().map(Result::unwrap) {
        let mut text = std::fs::read_to_string(source.path()).unwrap();
        if source.file_name() == file {
            assert_eq!(text.matches(from).count(), 1, "{from:?} in {file}");
            text = text.replace(from, to);
        }
        std::fs::write(folder.path().join(source.file_name()), text).unwrap();
    }
    let library = folder.path().join("libcuda.so");
    let built = options(emulator).library(&folder.path().join("ds4.cu"), objects(), &library);
    built.unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "planted::all_cases", "--ignored", "--nocapture"])
        .env(ds4_emu::LIBRARY_VARIABLE, &library)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("running 1 test"), "{said}");
    (output.status.success(), said.into_owned())
}

#[track_caller]
fn caught(file: &str, from: &str, to: &str, by: &str) {
    let (passed, said) = with_fault(file, from, to);
    assert!(
        !passed && said.contains(by),
        "expected a failure with {by:?}, found:\n{said}"
    );
}

#[test]
fn the_source_as_it_is_passes() {
    let (passed, said) = with_fault(
        "ds4.cu",
        "#include \"norm.cu\"",
        "#include \"norm.cu\"  // as it is",
    );
    assert!(passed, "{said}");
}

#[test]
fn a_missing_barrier_is_caught() {
    let after = "    for (unsigned i = threadIdx.x; i < width; i += blockDim.x) out[i]";
    caught(
        "norm.cu",
        &format!("    __syncthreads();\n{after}"),
        after,
        "norms: 7 tokens",
    );
}

#[test]
fn a_barrier_that_not_all_threads_reach_is_caught() {
    let (barrier, leave) = ("    __syncthreads();\n", "    if (row >= visible) return;\n");
    caught(
        "indexer.cu",
        &format!("{barrier}{leave}"),
        &format!("{leave}{barrier}"),
        "waits in __syncthreads for ever",
    );
}

#[test]
fn a_wrong_stride_is_caught() {
    caught(
        "hyper.cu",
        "mix[size_t(token) * stride + j]",
        "mix[size_t(token) * (stride - 1) + j]",
        "gathered streams",
    );
}

#[test]
fn a_swapped_argument_is_caught() {
    caught(
        "experts.cu",
        "TOKENS>({gate_heads, gate_body}, {up_heads, up_body},",
        "TOKENS>({up_heads, up_body}, {gate_heads, gate_body},",
        "gate and up Q8_0",
    );
}

#[test]
fn an_out_of_bounds_write_is_caught() {
    caught(
        "experts.cu",
        "if (i < count) gate[i] = swiglu_of",
        "if (i <= count) gate[i] = swiglu_of",
        "swiglu: out-of-bounds write",
    );
}

#[test]
fn an_unwritten_output_is_caught() {
    caught(
        "embedding.cu",
        "for (unsigned stream = 0; stream < streams",
        "for (unsigned stream = 1; stream < streams",
        "found NaN",
    );
}

#[test]
fn a_warp_operation_without_all_its_lanes_is_caught() {
    caught(
        "base.cuh",
        "x += __shfl_down_sync(ALL, x, half);",
        "x += __shfl_down_sync(0x0000ffffu, x, half);",
        "which is not in mask 0000ffff",
    );
}

#[test]
fn another_order_of_additions_is_caught() {
    caught(
        "base.cuh",
        "for (int half = LANES / 2; half > 0; half /= 2) x += __shfl_down_sync",
        "for (int half = 1; half < LANES; half *= 2) x += __shfl_down_sync",
        "product of F32 weights",
    );
}
