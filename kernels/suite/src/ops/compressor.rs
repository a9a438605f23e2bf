//! The compressor's state and its pooled rows.

use ds4_kernels::ops::compressor::{Slot, pool};
use ds4_kernels_cuda::compressor::{self, State};

use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[Case {
    name: "pooling of groups",
    kernels: &["append_state", "pool_groups"],
    run: |bench| {
        groups(bench, true)?;
        groups(bench, false)
    },
}];

/// Rows of all groups, from all tokens at once.
fn expected(
    ratio: usize,
    out_width: usize,
    width: usize,
    values: &[f32],
    gates: &[f32],
    bias: &[f32],
) -> Vec<f32> {
    let biased: Vec<f32> = (0..values.len())
        .map(|i| gates[i] + bias[i % (ratio * width)])
        .collect();
    let overlap = width == 2 * out_width;
    let mut rows = vec![0.0; values.len() / width / ratio * out_width];
    for (group, out) in rows.chunks_exact_mut(out_width).enumerate() {
        let start = group * ratio;
        let first = if overlap {
            start.saturating_sub(ratio)
        } else {
            start
        };
        let slot = |position: usize| {
            let half = if overlap && position >= start {
                out_width
            } else {
                0
            };
            let at = position * width + half..position * width + half + out_width;
            Slot {
                values: &values[at.clone()],
                gates: &biased[at],
            }
        };
        pool(&(first..start + ratio).map(slot).collect::<Vec<_>>(), out);
    }
    rows
}

/// Tokens come in chunks of any length; rows are pooled as their group completes.
fn groups(bench: &mut Bench<'_>, overlap: bool) -> Outcome {
    let (tokens, many) = (bench.tokens, bench.tokens > 64);
    let ratio = [4, 8][bench.random.below(2)];
    let out_width = bench.random.within(1, if many { 3 } else { 90 });
    let width = out_width * if overlap { 2 } else { 1 };
    let values = bench.random.values(tokens * width);
    let (gates, bias) = (
        bench.random.values(values.len()),
        bench.random.values(ratio * width),
    );
    let expected = expected(ratio, out_width, width, &values, &gates, &bias);
    // A ring of whole groups: the open one, the one before, and room for a chunk.
    let longest = bench.random.within(1, tokens.min(1000));
    let slots = (2 * ratio + longest).next_multiple_of(ratio);
    let (ring, bias) = (bench.room(slots * 2 * width)?, bench.upload(&bias)?);
    let state = State {
        rows: ring.all(),
        width,
        ratio,
    };
    let (mut from, mut found) = (0, Vec::new());
    while from < tokens {
        let to = tokens.min(from + bench.random.within(1, longest));
        let of_chunk = |all: &[f32]| bench.upload(&all[from * width..to * width]);
        let (v, g) = (of_chunk(&values)?, of_chunk(&gates)?);
        compressor::append(bench.device, v.all(), g.all(), bias.all(), from as u64, state)?;
        let groups = from / ratio..to / ratio;
        let rows = bench.room(groups.len() * out_width)?;
        compressor::pool(bench.device, state, groups.start as u64, out_width, rows.all())?;
        found.extend(bench.device.download(rows.all())?);
        from = to;
    }
    crate::bench::compare("pooled rows", &expected, &found, |a, b| {
        a.to_bits() == b.to_bits()
    })?;
    // With one token there may be no group yet: its state row is all there is.
    let last = (tokens - 1) % slots * 2 * width;
    let row = ring.all().range(last..last + width);
    bench.bits("state of the last token", &values[values.len() - width..], row)
}
