//! The compressor's state and its pooled rows.

use ds4_kernels::ops::compressor::{Slot, pool};
use ds4_kernels_metal::compressor::{self, State};

use crate::support::{Bench, Random, assert_bits, bench};

struct Case {
    ratio: usize,
    overlap: bool,
    out_width: usize,
    /// Lengths of the chunks in which the tokens come.
    chunks: &'static [usize],
    slots: usize,
}

/// Rows of all groups, from all tokens at once.
fn expected(case: &Case, values: &[f32], gates: &[f32], bias: &[f32]) -> Vec<f32> {
    let width = case.out_width * if case.overlap { 2 } else { 1 };
    let tokens = values.len() / width;
    let biased: Vec<f32> = (0..values.len())
        .map(|i| gates[i] + bias[i % (case.ratio * width)])
        .collect();
    let mut rows = vec![0.0; tokens / case.ratio * case.out_width];
    for (group, out) in rows.chunks_exact_mut(case.out_width).enumerate() {
        let start = group * case.ratio;
        let first = if case.overlap {
            start.saturating_sub(case.ratio)
        } else {
            start
        };
        let slot = |position: usize| {
            let half = if case.overlap && position >= start {
                case.out_width
            } else {
                0
            };
            let at = position * width + half..position * width + half + case.out_width;
            Slot {
                values: &values[at.clone()],
                gates: &biased[at],
            }
        };
        let slots: Vec<Slot<'_>> = (first..start + case.ratio).map(slot).collect();
        pool(&slots, out);
    }
    rows
}

fn check(bench: &Bench, case: &Case) {
    let mut random = Random(case.ratio as u64);
    let width = case.out_width * if case.overlap { 2 } else { 1 };
    let tokens: usize = case.chunks.iter().sum();
    let (values, gates) = (random.values(tokens * width), random.values(tokens * width));
    let bias = random.values(case.ratio * width);
    let expected = expected(case, &values, &gates, &bias);
    let on_device = bench.upload(&bias);
    bench.each_order(|device| {
        let ring = bench.room(case.slots * 2 * width);
        let state = State {
            rows: ring.all(),
            width,
            ratio: case.ratio,
        };
        let (mut from, mut found) = (0, Vec::new());
        for chunk in case.chunks {
            let to = from + chunk;
            let (v, g) = (
                bench.upload(&values[from * width..to * width]),
                bench.upload(&gates[from * width..to * width]),
            );
            compressor::append(device, v.all(), g.all(), on_device.all(), from as u64, state).unwrap();
            let groups = from / case.ratio..to / case.ratio;
            let rows = bench.room(groups.len() * case.out_width);
            compressor::pool(device, state, groups.start as u64, case.out_width, rows.all()).unwrap();
            found.extend(device.download(rows.all()).unwrap());
            from = to;
        }
        assert_bits("pooled rows", &expected, &found);
    });
}

#[cfg_attr(test, test)]
pub fn groups_are_pooled_as_the_reference_does_whatever_the_chunks() {
    let bench = bench();
    check(
        &bench,
        &Case {
            ratio: 4,
            overlap: true,
            out_width: 33,
            chunks: &[1, 2, 6, 1, 8, 3],
            slots: 16,
        },
    );
    check(
        &bench,
        &Case {
            ratio: 8,
            overlap: false,
            out_width: 40,
            chunks: &[20, 3, 1, 16],
            slots: 32,
        },
    );
}
