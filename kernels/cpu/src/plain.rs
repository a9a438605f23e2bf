//! Rows as `f32`, for products with plain activations.

use std::cell::RefCell;

use ds4_kernels::{Format, dequantize_row};

use crate::operands::{Put, ROWS, Rows};

thread_local! {
    static VALUES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Lends the values of the rows (halves through `widen`), in memory that this thread keeps.
pub(crate) fn with_values<R>(
    rows: &Rows<'_>,
    widen: impl Fn(&[u8], &mut [f32]),
    use_them: impl FnOnce(&[&[f32]]) -> R,
) -> R {
    let (count, cols) = (rows.count(), rows.cols());
    VALUES.with_borrow_mut(|values| {
        values.resize(values.len().max(count * cols), 0.0);
        for (i, out) in values.chunks_exact_mut(cols).take(count).enumerate() {
            match rows.format() {
                Format::F16 => widen(rows.row(i), out),
                format => dequantize_row(format, rows.row(i), out),
            }
        }
        let mut each = [[].as_slice(); ROWS];
        each.iter_mut()
            .zip(values.chunks_exact(cols))
            .for_each(|(row, values)| *row = values);
        use_them(&each[..count])
    })
}

/// Every row with every token by `dot`, for levels without tiles of their own.
pub(crate) fn product(
    rows: &Rows<'_>,
    tokens: &[&[f32]],
    widen: impl Fn(&[u8], &mut [f32]),
    dot: impl Fn(&[f32], &[f32]) -> f32,
    put: Put<'_>,
) {
    with_values(rows, widen, |values| {
        for (i, x) in tokens.iter().enumerate() {
            let mut out = [0.0; ROWS];
            out.iter_mut()
                .zip(values)
                .for_each(|(out, row)| *out = dot(row, x));
            put(i, &out);
        }
    });
}
