//! Which kernels a device's products take.

use std::sync::Arc;

use ds4_emu::metal::Emulated;
use ds4_kernels::{Form, Format};
use ds4_kernels_metal::activation::quantize;
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::matmul::quantized;
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::router::{Choices, Groups};
use ds4_kernels_metal::{Device, MetalError};

use crate::support::{Random, bench, matrix, rows};

fn device(emulator: Emulated) -> (Arc<Emulated>, Device) {
    let emulator = Arc::new(emulator);
    (emulator.clone(), Device::on(emulator))
}

/// Launches by matrices and plain ones of products with so many tokens each.
fn launches(emulator: Emulated, tokens: &[usize]) -> (usize, usize) {
    let (emulator, device) = device(emulator);
    let bytes = rows(&mut Random(1), Format::Q8_0, 3, 32);
    let weights = Weights::upload(&device, &matrix(Format::Q8_0, 3, 32, &bytes)).unwrap();
    for count in tokens {
        let x = device.upload("test", &vec![0.5; count * 32]).unwrap();
        let (codes, scales) = (
            device.allocate("test", count * 32).unwrap(),
            device.allocate("test", *count).unwrap(),
        );
        let q = quantize(&device, Form::Q8, 32, x.all(), codes.all(), scales.all()).unwrap();
        let y = device.allocate("test", count * 3).unwrap();
        quantized(&device, weights.all(), q, y.all()).unwrap();
        device.wait().unwrap();
    }
    (emulator.launches("tiles_q8_0"), emulator.launches("mat"))
}

#[test]
fn many_tokens_go_through_matrices_where_the_device_has_them() {
    let _turn = bench();
    let tokens = [1, 2, 8, 9, 100];
    assert_eq!(launches(Emulated::open().unwrap(), &tokens), (2, 3));
    let older = Emulated::open().unwrap().without_matrices();
    assert_eq!(launches(older, &tokens), (0, 5));
}

#[test]
fn experts_go_through_matrices_where_each_has_several_choices() {
    let _turn = bench();
    let (_, device) = device(Emulated::open().unwrap());
    let (order, starts) = (
        device.allocate::<u32>("test", 16).unwrap(),
        device.allocate::<u32>("test", 5).unwrap(),
    );
    let groups = Groups {
        order: order.all(),
        starts: starts.all(),
    };
    let tiles =
        |device: &Device, choices| matches!(Together::of(device, groups, choices), Together::Tiles(_));
    assert_eq!([15, 16].map(|choices| tiles(&device, choices)), [false, true]);
    assert!(!tiles(&device.plain(), 16));
}

#[test]
fn an_older_device_refuses_matrices() {
    let _turn = bench();
    let (_, device) = device(Emulated::open().unwrap().without_matrices());
    let bytes = rows(&mut Random(2), Format::Q8_0, 2, 32);
    let weights = Weights::upload(&device, &matrix(Format::Q8_0, 2, 32, &bytes)).unwrap();
    let (ids, scales) = (
        device.upload("test", &[0u32; 2]).unwrap(),
        device.upload("test", &[1.0f32; 2]).unwrap(),
    );
    let x = device.upload("test", &[0.5; 32]).unwrap();
    let codes = device.allocate("test", 32).unwrap();
    let q = quantize(
        &device,
        Form::Q8,
        32,
        x.all(),
        codes.all(),
        scales.all().range(0..1),
    )
    .unwrap();
    let choices = Choices {
        experts: ids.all().range(0..1),
        weights: scales.all().range(0..1),
        used: 1,
    };
    let groups = Groups {
        order: ids.all().range(0..1),
        starts: ids.all(),
    };
    let out = device.allocate("test", 2).unwrap();
    let tiles = Together::Tiles(groups);
    let refused = experts::down(&device, weights.all(), 2, q, choices, tiles, out.all());
    assert!(
        matches!(&refused, Err(MetalError::Failed(why)) if why.contains("Apple7")),
        "{refused:?}"
    );
}
