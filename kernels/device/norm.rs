//! Norms and rotations.

use crate::error::{check, size};
use crate::{Device, DeviceError, Shape, Slice};

const THREADS: u32 = 128;

/// `y = x / rms(x) * weight` for every row of `weight.len()` values; `y` may be `x`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn rms(
    device: &Device,
    x: Slice<'_, f32>,
    weight: Slice<'_, f32>,
    eps: f32,
    y: Slice<'_, f32>,
) -> Result<(), DeviceError> {
    const NAME: &str = "rms norm";
    let rows = x.len() / weight.len();
    check(NAME, "x", rows * weight.len(), x.len())?;
    let y = y.exactly(NAME, "y", x.len())?;
    let width = size(NAME, "width", weight.len())?;
    device.rms_norm(
        Shape::blocks(rows, THREADS),
        x.into(),
        weight.into(),
        y.into(),
        width,
        eps,
    )
}

/// Rows of equal width whose tails are rotated: `per` rows share a rotation.
#[derive(Clone, Copy, Debug)]
pub struct Rotated<'a> {
    /// `[rows][dim]`.
    pub rows: Slice<'a, f32>,
    /// Values per row.
    pub dim: usize,
    /// Cosine and sine per pair, `[rows / per][rotary]`.
    pub rotations: Slice<'a, f32>,
    /// Values that turn, the last ones of a row.
    pub rotary: usize,
    /// Rows per rotation.
    pub per: usize,
}

impl Rotated<'_> {
    /// Number of rows, when everything fits.
    fn count(&self, name: &'static str) -> Result<usize, DeviceError> {
        let count = self.rows.len() / self.dim;
        check(name, "rows", count * self.dim, self.rows.len())?;
        check(
            name,
            "rotations",
            count / self.per * self.rotary,
            self.rotations.len(),
        )?;
        check(
            name,
            "rows that share rotations",
            count / self.per * self.per,
            count,
        )?;
        Ok(count)
    }
}

/// Divides every head by its root mean square and rotates it; the heads of a token share its rotation.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn heads(device: &Device, x: Rotated<'_>, eps: f32) -> Result<(), DeviceError> {
    const NAME: &str = "norm of heads";
    let count = x.count(NAME)?;
    device.norm_rotate_heads(
        Shape::threads(count * 32, THREADS),
        x.rows.into(),
        x.rotations.into(),
        size(NAME, "heads", count)?,
        size(NAME, "heads of a token", x.per)?,
        size(NAME, "values of a head", x.dim)?,
        size(NAME, "rotary values", x.rotary)?,
        eps,
    )
}

/// Rotates the rows' tails, or with `back` undoes it.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn rotate(device: &Device, x: Rotated<'_>, back: bool) -> Result<(), DeviceError> {
    const NAME: &str = "rotate";
    let pairs = x.count(NAME)? * x.rotary / 2;
    device.rotate_rows(
        Shape::threads(pairs, THREADS),
        x.rows.into(),
        x.rotations.into(),
        size(NAME, "pairs", pairs)?,
        size(NAME, "rows of a rotation", x.per)?,
        size(NAME, "values of a row", x.dim)?,
        size(NAME, "rotary values", x.rotary)?,
        if back { -1.0 } else { 1.0 },
    )
}
