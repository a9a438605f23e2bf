//! From token ids to residual streams, and from logits to a token.

use ds4_kernels::Format;

use crate::error::{check, size};
use crate::matrix::Weights;
use crate::{Device, MetalError, Shape, Slice};

const THREADS: u32 = 256;

/// The rows of `tokens` in `table`, each copied to `streams` streams: `out` is `[tokens][streams][cols]`. Ids must be below the table's rows.
///
/// # Errors
/// When lengths or the format do not fit, or the launch fails.
pub fn embed(
    device: &Device,
    table: &Weights,
    tokens: Slice<'_, u32>,
    streams: usize,
    out: Slice<'_, f32>,
) -> Result<(), MetalError> {
    const NAME: &str = "embed";
    let bytes = match table.format() {
        Format::F32 => 4,
        Format::F16 => 2,
        Format::Q8_0 => 1,
        format => {
            return Err(MetalError::Format {
                operation: NAME,
                format,
            });
        }
    };
    let count = tokens.len() * table.cols();
    let out = out.exactly(NAME, "out", count * streams)?;
    let rows = table.all();
    device.embed(
        Shape::threads(count, THREADS),
        rows.bytes.into(),
        tokens.into(),
        out.into(),
        size(NAME, "values", count)?,
        size(NAME, "columns", table.cols())?,
        size(NAME, "streams", streams)?,
        bytes,
    )
}

/// The first of the largest of each row of `logits`, `[rows][width]`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn argmax(device: &Device, logits: Slice<'_, f32>, out: Slice<'_, u32>) -> Result<(), MetalError> {
    const NAME: &str = "argmax";
    let width = logits.len() / out.len().max(1);
    check(NAME, "logits", out.len() * width, logits.len())?;
    device.argmax(
        Shape::blocks(out.len(), THREADS),
        logits.into(),
        out.into(),
        size(NAME, "width", width)?,
    )
}
