//! Activations as signed bytes.

use ds4_kernels::{Form, Q8_BLOCK, Q8K_BLOCK};

use crate::{Device, MetalError, Shape, Slice};

/// Threads of a block: one SIMD group per block of values.
const THREADS: u32 = 128;

/// 8-bit activations on the device, `[tokens][cols]`.
#[derive(Clone, Copy, Debug)]
pub struct Quantized<'a> {
    /// Values per token.
    pub cols: usize,
    /// Values per scale.
    pub block: usize,
    /// `[tokens][cols]`.
    pub codes: Slice<'a, i8>,
    /// `[tokens][cols / block]`.
    pub scales: Slice<'a, f32>,
}

/// Quantises `x`, `[tokens][cols]`, in blocks of 32 ([`Form::Q8`]) or 256 ([`Form::Q8K`]); `codes` and `scales` take the result.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
///
/// # Panics
/// For [`Form::F32`], which is no quantised form.
pub fn quantize<'a>(
    device: &Device,
    form: Form,
    cols: usize,
    x: Slice<'_, f32>,
    codes: Slice<'a, i8>,
    scales: Slice<'a, f32>,
) -> Result<Quantized<'a>, MetalError> {
    let block = match form {
        Form::Q8 => Q8_BLOCK,
        Form::Q8K => Q8K_BLOCK,
        Form::F32 => panic!("activations stay as they are in this form"),
    };
    let blocks = x.len() / block;
    let x = x.exactly("quantize", "x", blocks * block)?;
    let codes = codes.exactly("quantize", "codes", x.len())?;
    let scales = scales.exactly("quantize", "scales", blocks)?;
    let shape = Shape::threads(blocks * 32, THREADS);
    let count = u32::try_from(blocks).unwrap_or(u32::MAX);
    match form {
        Form::Q8 => device.quantize_q8(shape, x.into(), codes.into(), scales.into(), count)?,
        _ => device.quantize_q8_k(shape, x.into(), codes.into(), scales.into(), count)?,
    }
    Ok(Quantized {
        cols,
        block,
        codes,
        scales,
    })
}
