//! Memory: what is adopted, what is refused, and what a device that works later finds.

use std::sync::Arc;

use ds4_kernels::{Activations, Form, Format, Matrix, matmul};
use ds4_kernels_metal::activation::quantize;
use ds4_kernels_metal::matmul::quantized;
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::{Arena, Device, MetalError};

use crate::support::{Random, assert_bits, bench, matrix, rows};

#[test]
fn weights_are_read_where_they_lie() {
    let bench = bench();
    let mut random = Random(5);
    let bytes = rows(&mut random, Format::Q8_0, 8, 64);
    let values = random.values(64);
    let weights = matrix(Format::Q8_0, 8, 64, &bytes);
    let mut expected = vec![0.0; 8];
    matmul(&weights, &Activations::new(&values, 64, Form::Q8), &mut expected);
    let before = bench.device.memory().0;
    let owner = Arc::new(bytes.clone());
    let adopted = Weights::shared(bench.device, &owner, |bytes| {
        Matrix::new(Format::Q8_0, 8, 64, bytes)
    });
    let adopted = adopted.unwrap().unwrap();
    drop(owner);
    if bench.emulator.is_some() {
        assert_eq!(bench.device.memory().0, before, "nothing is copied");
    }
    let (x, codes, scales, y) = (
        bench.upload(&values),
        bench.room(64),
        bench.room(2),
        bench.room(8),
    );
    let q = quantize(bench.device, Form::Q8, 64, x.all(), codes.all(), scales.all()).unwrap();
    quantized(bench.device, adopted.all(), q, y.all()).unwrap();
    assert_bits("y", &expected, &bench.device.download(y.all()).unwrap());
}

#[test]
fn scratch_is_given_back_while_launches_wait_and_what_was_written_is_not() {
    let bench = bench();
    let mut arena = Arena::default();
    for round in 0..3 {
        let mut sums = Vec::new();
        for part in 0..4u32 {
            let mark = arena.mark();
            let values = vec![part * 10 + round; 100];
            let from = arena.upload(bench.device, &values).unwrap();
            let scratch = arena.take(bench.device, 100).unwrap();
            bench.device.copy(from, scratch).unwrap();
            let out = bench.room::<u32>(100);
            bench.device.copy(scratch, out.all()).unwrap();
            sums.push((values, out));
            arena.release(mark);
        }
        for (values, out) in &sums {
            assert_eq!(bench.device.download(out.all()).unwrap(), *values);
        }
        arena.reset(bench.device).unwrap();
    }
}

#[test]
fn a_buffer_that_is_dropped_stays_for_what_was_launched() {
    let bench = bench();
    let out = bench.room::<u32>(4);
    {
        let from = bench.upload(&[1u32, 2, 3, 4]);
        bench.device.copy(from.all(), out.all()).unwrap();
    }
    let _other = bench.upload(&[9u32; 4]);
    assert_eq!(bench.device.download(out.all()).unwrap(), [1, 2, 3, 4]);
}

#[test]
fn memory_that_is_not_there_is_refused_with_both_numbers() {
    let bench = bench();
    let Some(emulator) = &bench.emulator else { return };
    emulator.limit(1 << 20);
    let refused = bench.device.allocate::<u8>("a test", 2 << 20).unwrap_err();
    emulator.limit(8 << 30);
    assert!(
        matches!(refused, MetalError::Memory { asked: 2_097_152, .. }),
        "{refused}"
    );
}

#[test]
#[cfg(not(target_os = "macos"))]
fn elsewhere_than_on_a_mac_what_is_missing_is_said() {
    let refused = Device::open().unwrap_err().to_string();
    assert!(
        refused.starts_with("Metal: expected macOS on Apple silicon, found linux on"),
        "{refused}"
    );
}
