//! The emulator's `simdgroup_matrix` beside what the Metal Shading Language Specification says of it.

use std::sync::Arc;

use ds4_emu::metal::Emulated;
use ds4_kernels_metal::{Binding, Driver, Kernel, Launch, Memory, MetalError, Shape};

const TEXT: &str = "
#include <metal_stdlib>
using namespace metal;

struct Sizes { uint stride; };

kernel void product(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device float* out [[buffer(2)]], constant Sizes& c [[buffer(3)]],
                    uint lane [[thread_index_in_simdgroup]]) {
    simdgroup_half8x8 left, right;
    simdgroup_load(left, a, c.stride, ulong2{2, 1});
    simdgroup_load(right, b, c.stride, ulong2(0), true);
    simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8>(0.5f);
    simdgroup_multiply_accumulate(sum, left, right, sum);
    simdgroup_store(sum, out, c.stride);
}
kernel void apart(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device float* out [[buffer(2)]], constant Sizes& c [[buffer(3)]],
                  uint lane [[thread_index_in_simdgroup]]) {
    simdgroup_half8x8 left;
    simdgroup_load(left, a + lane, c.stride);
}
kernel void unsaid(device const half* a [[buffer(0)]], device const half* b [[buffer(1)]], device float* out [[buffer(2)]], constant Sizes& c [[buffer(3)]],
                   uint lane [[thread_index_in_simdgroup]]) {
    simdgroup_float8x8 sum;
    simdgroup_store(sum, out, c.stride);
}
";

static PRODUCT: Kernel = kernel("product");
static APART: Kernel = kernel("apart");
static UNSAID: Kernel = kernel("unsaid");

const fn kernel(name: &'static str) -> Kernel {
    Kernel {
        name,
        buffers: &[],
        constants: 4,
    }
}

const STRIDE: usize = 11;
/// Elements of each buffer: ten rows.
const LEN: usize = 10 * STRIDE;

/// Small integers, as halves and as numbers.
fn values(seed: usize) -> (Vec<u16>, Vec<f32>) {
    let numbers: Vec<f32> = (0..LEN)
        .map(|i| ((i * 7 + seed * i * i) % 13) as f32 - 6.0)
        .collect();
    let half = |x: &f32| match x.to_bits() {
        0 => 0,
        // The exponent's bias is 15, not 127, and 13 bits fewer are kept.
        bits => (bits >> 16 & 0x8000) as u16 | ((bits >> 13 & 0x3ffff) - (112 << 10)) as u16,
    };
    (numbers.iter().map(half).collect(), numbers)
}

fn upload<T>(emulator: &Emulated, values: &[T]) -> Memory {
    let memory = emulator.allocate("test", size_of_val(values)).unwrap();
    // SAFETY: as many bytes are there, and nothing runs.
    unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), memory.host.as_ptr().cast(), values.len()) };
    memory
}

/// What a kernel makes of both operands.
fn run(emulator: &Emulated, kernel: &'static Kernel, a: &[u16], b: &[u16]) -> Result<Vec<f32>, MetalError> {
    let memories = [
        upload(emulator, a),
        upload(emulator, b),
        upload(emulator, &[0.0f32; LEN]),
    ];
    let buffers = memories.each_ref().map(|memory| Binding {
        memory: memory.number,
        offset: 0,
    });
    emulator.launch(&Launch {
        kernel,
        number: 0,
        shape: Shape {
            grid: (1, 1),
            threads: 32,
            shared: 0,
        },
        buffers: &buffers,
        constants: &(STRIDE as u32).to_ne_bytes(),
    })?;
    emulator.wait()?;
    // SAFETY: as many numbers were written there, and nothing runs.
    let found = unsafe { std::slice::from_raw_parts(memories[2].host.as_ptr().cast::<f32>(), LEN) };
    Ok(found.to_vec())
}

#[test]
fn matrices_are_loaded_multiplied_and_stored_as_specified() {
    let folder = tempfile::tempdir().unwrap();
    let library = folder.path().join("libmatrices.so");
    ds4_emu::msl::compile(ds4_emu::folders().0, TEXT, &library).unwrap();
    let emulator = Arc::new(Emulated::load(&library).unwrap());
    let ((a, left), (b, right)) = (values(1), values(2));
    for order in 0..5 {
        emulator.order(order);
        let found = run(&emulator, &PRODUCT, &a, &b).unwrap();
        for (i, found) in found.iter().enumerate() {
            let (row, col) = (i / STRIDE, i % STRIDE);
            // An origin is a column and a row; the second factor is transposed.
            let product = |k| left[(row + 1) * STRIDE + 2 + k] * right[col * STRIDE + k];
            let expected = if row < 8 && col < 8 {
                0.5 + (0..8).map(product).sum::<f32>()
            } else {
                0.0
            };
            assert_eq!(*found, expected, "row {row}, column {col}");
        }
    }
    let unsaid = run(&emulator, &UNSAID, &a, &b).unwrap();
    assert!(unsaid[0].is_nan() && unsaid[7 * STRIDE + 7].is_nan());
    let refused = run(&emulator, &APART, &a, &b).unwrap_err();
    assert!(
        refused.to_string().contains("name different places of a matrix"),
        "{refused}"
    );
}
