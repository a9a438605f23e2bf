//! The chosen experts: what fits together, and what is computed around their products.

use crate::activation::Quantized;
use crate::error::{check, size};
use crate::matrix::{Rows, Weights};
use crate::router::Choices;
use crate::{Device, DeviceError, Shape, Slice};

/// `out`, when the operands of the first products fit together.
pub(crate) fn gate_up_fits<'a>(
    name: &'static str,
    gate: &Weights,
    up: &Weights,
    n_ff: usize,
    x: Quantized<'_>,
    choices: Choices<'_>,
    out: Slice<'a, f32>,
) -> Result<Slice<'a, f32>, DeviceError> {
    check(name, "columns of x", gate.cols(), x.cols)?;
    check(name, "values per scale of x", gate.format().block_len(), x.block)?;
    check(name, "rows of up", gate.rows(), up.rows())?;
    let tokens = choices.experts.len() / choices.used;
    check(name, "tokens of x", tokens, x.codes.len() / x.cols)?;
    if up.format() != gate.format() {
        return Err(DeviceError::Format {
            operation: "up with another format than gate",
            format: up.format(),
        });
    }
    out.exactly(name, "out", choices.experts.len() * n_ff)
}

/// `out`, when the operands of the last product fit together.
pub(crate) fn down_fits<'a>(
    name: &'static str,
    weights: Rows<'_>,
    n_embd: usize,
    x: Quantized<'_>,
    choices: Choices<'_>,
    out: Slice<'a, f32>,
) -> Result<Slice<'a, f32>, DeviceError> {
    check(name, "columns of x", weights.cols, x.cols)?;
    check(name, "values per scale of x", weights.format.block_len(), x.block)?;
    check(
        name,
        "choices of x",
        choices.experts.len(),
        x.codes.len() / x.cols,
    )?;
    out.exactly(name, "out", choices.experts.len() * n_embd)
}

/// The shared expert's activation, in place of `gate`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn swiglu(
    device: &Device,
    gate: Slice<'_, f32>,
    up: Slice<'_, f32>,
    clamp: f32,
) -> Result<(), DeviceError> {
    const NAME: &str = "swiglu";
    let up = up.exactly(NAME, "up", gate.len())?;
    device.swiglu(
        Shape::threads(gate.len(), 256),
        gate.into(),
        up.into(),
        size(NAME, "values", gate.len())?,
        clamp,
    )
}

/// Adds the routed experts' outputs, `[tokens][used][width]`, to the shared one's, `[tokens][width]`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn combine(
    device: &Device,
    shared: Slice<'_, f32>,
    parts: Slice<'_, f32>,
    used: usize,
    width: usize,
) -> Result<(), DeviceError> {
    const NAME: &str = "combine experts";
    let parts = parts.exactly(NAME, "parts", shared.len() * used)?;
    device.combine_experts(
        Shape::threads(shared.len(), 256),
        shared.into(),
        parts.into(),
        size(NAME, "values", shared.len())?,
        size(NAME, "experts of a token", used)?,
        size(NAME, "width", width)?,
    )
}
