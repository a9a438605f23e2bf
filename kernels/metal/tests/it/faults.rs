//! Faults that are planted in the kernels, and that the checks of this suite find.

use std::sync::Arc;

use ds4_emu::metal::{Emulated, with_fault};
use ds4_kernels::ops::norm::rms;
use ds4_kernels_metal::norm::{self, Rotated};
use ds4_kernels_metal::{Device, MetalError};

use crate::support::{Random, bench};

const EPS: f32 = 1e-6;
const ROWS: usize = 3;
const WIDTH: usize = 200;

/// A device whose kernels of `norm.metal` have the fault.
fn faulty(right: &str, wrong: &str) -> (Arc<Emulated>, Device) {
    let folder = tempfile::tempdir().unwrap();
    let library = with_fault("norm.metal", right, wrong, folder.path()).unwrap();
    let emulator = Arc::new(Emulated::load(&library).unwrap());
    (emulator.clone(), Device::on(emulator))
}

/// Orders of threads in which `rms_norm` does not have the reference's bits.
fn wrong_orders(emulator: &Emulated, device: &Device) -> usize {
    let mut random = Random(1);
    let (x, weight) = (random.values(ROWS * WIDTH), random.values(WIDTH));
    let mut expected = x.clone();
    expected
        .chunks_exact_mut(WIDTH)
        .for_each(|row| rms(row, Some(&weight), EPS));
    let wrong = |order: &u64| {
        emulator.order(*order);
        let (from, weight) = (
            device.upload("test", &x).unwrap(),
            device.upload("test", &weight).unwrap(),
        );
        let to = device.allocate("test", x.len()).unwrap();
        norm::rms(device, from.all(), weight.all(), EPS, to.all()).unwrap();
        let found: Vec<f32> = device.download(to.all()).unwrap();
        expected
            .iter()
            .zip(&found)
            .any(|(a, b)| a.to_bits() != b.to_bits())
    };
    (0..5).filter(wrong).count()
}

#[test]
fn without_a_fault_every_order_is_right() {
    let (emulator, device) = faulty("// Root-mean-square", "// A root-mean-square");
    assert_eq!(wrong_orders(&emulator, &device), 0);
}

#[test]
fn a_missing_barrier_is_found() {
    let (emulator, device) = faulty(
        "threads_meet();\n    for (uint i = thread_index; i < c.width",
        "\n    for (uint i = thread_index; i < c.width",
    );
    assert!(wrong_orders(&emulator, &device) > 0);
}

#[test]
fn a_wrong_stride_is_found() {
    let (emulator, device) = faulty(
        "x + ulong(group.x) * c.width",
        "x + ulong(group.x) * (c.width - 1)",
    );
    assert!(wrong_orders(&emulator, &device) > 0);
}

#[test]
fn swapped_arguments_are_found() {
    let (emulator, device) = faulty(
        "device const float* x [[buffer(0)]], device const float* weight [[buffer(1)]]",
        "device const float* weight [[buffer(0)]], device const float* x [[buffer(1)]]",
    );
    assert!(wrong_orders(&emulator, &device) > 0);
}

#[test]
fn a_swapped_output_is_found_by_the_launch_table() {
    let (emulator, _) = faulty(
        "device float* x [[buffer(0)]], device const float* rotations [[buffer(1)]], constant Rotate& c",
        "device const float* rotations [[buffer(0)]], device float* x [[buffer(1)]], constant Rotate& c",
    );
    let kernel = ds4_kernels_metal::TABLE
        .iter()
        .find(|kernel| kernel.name == "rotate_rows")
        .unwrap();
    let declared = emulator.parameters("rotate_rows").unwrap();
    assert_ne!(declared.0, kernel.buffers);
}

#[test]
fn a_write_out_of_bounds_is_found() {
    // 120 pairs in a group of 128 threads: what lies behind is within the emulator's guard.
    let (_, device) = faulty("if (pair >= c.pairs) return;", "");
    let (rows, turns) = (
        device.upload("test", &vec![1.0; 240]).unwrap(),
        device.upload("test", &vec![0.5; 240]).unwrap(),
    );
    let x = Rotated {
        rows: rows.all(),
        dim: 240,
        rotations: turns.all(),
        rotary: 240,
        per: 1,
    };
    norm::rotate(&device, x, false).unwrap();
    let found = device.wait().unwrap_err();
    assert!(
        found.is_sticky() && found.to_string().contains("out-of-bounds write"),
        "{found}"
    );
    // And the device stays failed: what was computed may be wrong.
    assert!(matches!(device.download(rows.all()), Err(MetalError::Failed(_))));
}

#[test]
fn an_output_that_is_not_written_is_found() {
    let (emulator, device) = faulty("i < c.width; i += threads.x", "i + 1 < c.width; i += threads.x");
    assert_eq!(wrong_orders(&emulator, &device), 5);
}

#[test]
fn a_pointer_into_another_address_space_does_not_compile() {
    let folder = tempfile::tempdir().unwrap();
    let refused = with_fault(
        "norm.metal",
        "device const float* row = x",
        "threadgroup const float* row = x",
        folder.path(),
    )
    .unwrap_err();
    assert!(refused.contains("address space"), "{refused}");
}

#[test]
fn what_the_host_writes_too_early_is_found() {
    let _turn = bench();
    let emulator = Arc::new(Emulated::open().unwrap());
    let device = Device::on(emulator);
    let (from, to) = (
        device.upload("test", &[1u32; 8]).unwrap(),
        device.allocate::<u32>("test", 8).unwrap(),
    );
    device.copy(from.all(), to.all()).unwrap();
    device.write(&[2u32; 8], from.all()).unwrap();
    assert_eq!(
        device.download(to.all()).unwrap(),
        [2; 8],
        "as a Mac that works later would have it"
    );
}
