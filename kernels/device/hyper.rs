//! Hyper-connections.

use crate::error::{check, size};
use crate::{Device, DeviceError, Shape, Slice};

const THREADS: u32 = 256;
/// `MOST_STREAMS` of `cu/hyper.cu` and `metal/hyper.metal`.
const MOST_STREAMS: usize = 8;

/// What turns the numbers of a connection's matrix into a mix.
#[derive(Clone, Copy, Debug)]
pub struct Mixing<'a> {
    /// Factors of the three parts; the first alone for the head.
    pub scale: Slice<'a, f32>,
    /// Added to each number.
    pub base: Slice<'a, f32>,
    /// Number of streams.
    pub streams: usize,
    /// Rounds of rows and columns.
    pub iterations: usize,
    /// Added to every weight and sum.
    pub eps: f32,
    /// For the root mean square of the streams.
    pub rms_eps: f32,
}

/// Turns `raw`, `[tokens][(2 + streams) * streams]`, into mixes, in place. `streams` is `[tokens][streams][width]`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn mix(
    device: &Device,
    raw: Slice<'_, f32>,
    streams: Slice<'_, f32>,
    mixing: &Mixing<'_>,
) -> Result<(), DeviceError> {
    const NAME: &str = "mix of streams";
    let n = mixing.streams;
    let numbers = (2 + n) * n;
    let (tokens, width) = shape(NAME, raw, numbers, streams, n)?;
    let scale = mixing.scale.exactly(NAME, "scale", 3)?;
    let base = mixing.base.exactly(NAME, "base", numbers)?;
    device.hyper_mix(
        Shape::blocks(tokens, 32),
        raw.into(),
        streams.into(),
        scale.into(),
        base.into(),
        size(NAME, "streams", n)?,
        width,
        size(NAME, "iterations", mixing.iterations)?,
        mixing.eps,
        mixing.rms_eps,
    )
}

/// Turns `raw`, `[tokens][streams]`, into the head's weights, in place.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn head(
    device: &Device,
    raw: Slice<'_, f32>,
    streams: Slice<'_, f32>,
    mixing: &Mixing<'_>,
) -> Result<(), DeviceError> {
    const NAME: &str = "head's mix of streams";
    let n = mixing.streams;
    let (tokens, width) = shape(NAME, raw, n, streams, n)?;
    let scale = mixing.scale.exactly(NAME, "scale", 1)?;
    let base = mixing.base.exactly(NAME, "base", n)?;
    device.head_mix(
        Shape::blocks(tokens, 32),
        raw.into(),
        streams.into(),
        scale.into(),
        base.into(),
        size(NAME, "streams", n)?,
        width,
        mixing.eps,
        mixing.rms_eps,
    )
}

/// `out`, `[tokens][width]`: the streams weighted by the first numbers of each mix; a mix has `stride` numbers.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn gather(
    device: &Device,
    mix: Slice<'_, f32>,
    stride: usize,
    streams: Slice<'_, f32>,
    n: usize,
    out: Slice<'_, f32>,
) -> Result<(), DeviceError> {
    const NAME: &str = "gather streams";
    check(NAME, "streams", out.len() * n, streams.len())?;
    let (width, count) = widths(NAME, mix, stride, out)?;
    device.gather_streams(
        Shape::threads(out.len(), THREADS),
        mix.into(),
        streams.into(),
        out.into(),
        count,
        size(NAME, "streams", n)?,
        width,
        size(NAME, "numbers of a mix", stride)?,
    )
}

/// Writes a block's output, `[tokens][width]`, back into the streams.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn scatter(
    device: &Device,
    mix: Slice<'_, f32>,
    block: Slice<'_, f32>,
    n: usize,
    streams: Slice<'_, f32>,
) -> Result<(), DeviceError> {
    const NAME: &str = "scatter streams";
    check(NAME, "streams", block.len() * n, streams.len())?;
    let (width, count) = widths(NAME, mix, (2 + n) * n, block)?;
    let shape = Shape::threads(block.len(), THREADS);
    device.scatter_streams(
        shape,
        mix.into(),
        block.into(),
        streams.into(),
        count,
        size(NAME, "streams", n)?,
        width,
    )
}

/// Tokens, and the width of a stream.
fn shape(
    name: &'static str,
    raw: Slice<'_, f32>,
    numbers: usize,
    streams: Slice<'_, f32>,
    n: usize,
) -> Result<(usize, u32), DeviceError> {
    if n > MOST_STREAMS {
        return Err(DeviceError::Shape {
            operation: name,
            field: "streams",
            expected: MOST_STREAMS,
            found: n,
        });
    }
    let tokens = raw.len() / numbers;
    check(name, "raw", tokens * numbers, raw.len())?;
    let width = streams.len() / (tokens * n).max(1);
    check(name, "streams", tokens * n * width, streams.len())?;
    Ok((tokens, size(name, "width", width)?))
}

/// Width of a stream, and values in all.
fn widths(
    name: &'static str,
    mix: Slice<'_, f32>,
    stride: usize,
    values: Slice<'_, f32>,
) -> Result<(u32, u32), DeviceError> {
    let tokens = mix.len() / stride;
    check(name, "mix", tokens * stride, mix.len())?;
    let width = values.len() / tokens.max(1);
    check(name, "values", tokens * width, values.len())?;
    Ok((size(name, "width", width)?, size(name, "values", values.len())?))
}
