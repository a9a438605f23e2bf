//! The compressor's state and the rows that it pools.

use crate::codec::slot;
use crate::error::{check, size};
use crate::{Device, DeviceError, Shape, Slice};

const THREADS: u32 = 128;

/// A ring of state rows: values, then gates with their bias, `[slots][2][width]`; that of position `p` lies in slot `p % slots`.
#[derive(Clone, Copy, Debug)]
pub struct State<'a> {
    /// The rows.
    pub rows: Slice<'a, f32>,
    /// Values of a token.
    pub width: usize,
    /// Tokens of a group.
    pub ratio: usize,
}

impl State<'_> {
    fn slots(&self, name: &'static str) -> Result<usize, DeviceError> {
        let slots = self.rows.len() / (2 * self.width);
        check(name, "state", slots * 2 * self.width, self.rows.len())?;
        // Positions are taken modulo the slots and modulo the ratio by the kernels, so a ring of whole groups keeps both in step.
        check(
            name,
            "slots in whole groups",
            slots / self.ratio * self.ratio,
            slots,
        )?;
        Ok(slots)
    }
}

/// Appends the state of tokens from position `first` on; `bias` is `[ratio][width]`.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn append(
    device: &Device,
    values: Slice<'_, f32>,
    gates: Slice<'_, f32>,
    bias: Slice<'_, f32>,
    first: u64,
    state: State<'_>,
) -> Result<(), DeviceError> {
    const NAME: &str = "append to the compressor's state";
    let slots = state.slots(NAME)?;
    let gates = gates.exactly(NAME, "gates", values.len())?;
    let bias = bias.exactly(NAME, "bias", state.ratio * state.width)?;
    let tokens = values.len() / state.width;
    check(NAME, "values", tokens * state.width, values.len())?;
    if tokens > slots {
        return Err(DeviceError::Shape {
            operation: NAME,
            field: "tokens",
            expected: slots,
            found: tokens,
        });
    }
    device.append_state(
        Shape::threads(values.len(), THREADS),
        values.into(),
        gates.into(),
        bias.into(),
        state.rows.into(),
        size(NAME, "values", values.len())?,
        size(NAME, "width", state.width)?,
        slot(first, slots),
        size(NAME, "ratio", state.ratio)?,
        size(NAME, "slots", slots)?,
    )
}

/// Pools the groups from `first` on into `out`, `[groups][out_width]`; with a state of twice the width groups overlap.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn pool(
    device: &Device,
    state: State<'_>,
    first: u64,
    out_width: usize,
    out: Slice<'_, f32>,
) -> Result<(), DeviceError> {
    const NAME: &str = "pool groups";
    let slots = state.slots(NAME)?;
    let groups = out.len() / out_width;
    check(NAME, "out", groups * out_width, out.len())?;
    device.pool_groups(
        Shape::threads(out.len(), THREADS),
        state.rows.into(),
        out.into(),
        size(NAME, "values", out.len())?,
        size(NAME, "width", state.width)?,
        size(NAME, "width of a row", out_width)?,
        first_group(first, slots / state.ratio),
        size(NAME, "ratio", state.ratio)?,
        size(NAME, "slots", slots)?,
    )
}

/// A group with the same slots as `group`. Only the very first group has none before it, so the others keep clear of 0.
#[allow(clippy::cast_possible_truncation)] // below twice the groups of the ring
const fn first_group(group: u64, groups: usize) -> u32 {
    if group == 0 {
        0
    } else {
        (group % groups as u64) as u32 + groups as u32
    }
}
