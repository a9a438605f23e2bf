//! What is refused before anything runs.

use ds4_kernels::{Form, Format, Matrix};
use ds4_kernels_cuda::Buffer;
use ds4_kernels_cuda::activation::quantize;
use ds4_kernels_cuda::matmul::quantized;
use ds4_kernels_cuda::matrix::Weights;

use ds4_emu::turn;

#[test]
fn operands_that_do_not_fit_are_refused_by_name() {
    let turn = turn();
    let device = &*turn.device;
    let bytes = vec![0; 4 * 64 / Format::Q8_0.block_len() * Format::Q8_0.block_bytes()];
    let matrix = Matrix::new(Format::Q8_0, 4, 64, &bytes).unwrap();
    let weights = Weights::upload(device, &matrix).unwrap();
    let x = device.upload("test", &[0.5; 64]).unwrap();
    let (codes, scales): (Buffer<i8>, Buffer<f32>) = (
        device.allocate("test", 64).unwrap(),
        device.allocate("test", 2).unwrap(),
    );
    let y = device.allocate("test", 5).unwrap();
    let q = quantize(device, Form::Q8, 64, x.all(), codes.all(), scales.all()).unwrap();
    let error = quantized(device, weights.all(), q, y.all()).unwrap_err();
    assert_eq!(error.to_string(), "matmul: y: expected 4, found 5");
}
