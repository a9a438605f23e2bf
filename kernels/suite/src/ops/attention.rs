//! Attention over compressed rows and the window.

use ds4_kernels::codec::{decode_kv, encode_kv, kv_row_bytes};
use ds4_kernels::ops::Ops;
use ds4_kernels::ops::attention::attend as reference;
use ds4_kernels_cuda::attention::{Far, Keys, attend};

use crate::{Bench, Case, Outcome, Random};

pub(crate) const CASES: &[Case] = &[Case {
    name: "attention",
    kernels: &["attend"],
    run: |bench| {
        if bench.tokens <= 64 {
            attention(bench, None)?;
        }
        let k = bench.random.within(1, 3);
        attention(bench, Some(k))
    },
}];

/// Encoded rows, and their values.
struct Rows {
    bytes: Vec<u8>,
    values: Vec<f32>,
}

impl Rows {
    fn draw(random: &mut Random, rows: usize, dim: usize, rotary: usize) -> Self {
        let size = kv_row_bytes(dim, rotary);
        let (mut bytes, mut values) = (vec![0; rows * size], vec![0.0; rows * dim]);
        for (bytes, values) in bytes.chunks_exact_mut(size).zip(values.chunks_exact_mut(dim)) {
            encode_kv(&random.values(dim), rotary, bytes);
            decode_kv(bytes, rotary, values);
        }
        Self { bytes, values }
    }
}

/// All compressed rows of a token's past, or `picked` of them: on different places for different tokens.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // some thousand positions
fn attention(bench: &mut Bench<'_>, picked: Option<usize>) -> Outcome {
    let (tokens, many) = (bench.tokens, bench.tokens > 64);
    let heads = bench.random.within(1, if many { 1 } else { 11 });
    let rotary = 2 * bench.random.within(1, if many { 4 } else { 32 });
    let dim = 64 * bench.random.within(1, if many { 1 } else { 7 }) + rotary;
    let reach = bench.random.within(1, if many { 3 } else { 12 });
    let ratio = [4, 128][bench.random.below(2)];
    let k = picked.unwrap_or(1);
    // The first token has as many compressed rows as are picked; otherwise it may be the very first one.
    let start = picked.unwrap_or(0) * ratio + bench.random.below(if many { 10 } else { 200 });
    let (end, slots) = (start + tokens, reach + tokens + bench.random.below(9));
    let near = Rows::draw(&mut bench.random, end, dim, rotary);
    let far = Rows::draw(&mut bench.random, end / ratio, dim, rotary);
    let (queries, sinks) = (
        bench.random.values(tokens * heads * dim),
        bench.random.values(heads),
    );
    let positions: Vec<u32> = (start..end).map(|position| position as u32).collect();
    let seen: Vec<u32> = positions
        .iter()
        .map(|position| (position + 1) / ratio as u32)
        .collect();
    let of_token = |seen: &u32| {
        let step = seen / k as u32;
        (0..k as u32).map(move |i| i * step)
    };
    let picks: Vec<u32> = seen.iter().flat_map(of_token).collect();
    let mut expected = queries.clone();
    for (token, heads_of_token) in expected.chunks_exact_mut(heads * dim).enumerate() {
        let row = |row: usize| &far.values[row * dim..][..dim];
        let chosen: Vec<f32> = match picked {
            Some(k) => picks[token * k..][..k]
                .iter()
                .flat_map(|at| row(*at as usize))
                .copied()
                .collect(),
            None => far.values[..seen[token] as usize * dim].to_vec(),
        };
        let position = start + token;
        let window = &near.values[(position + 1).saturating_sub(reach) * dim..(position + 1) * dim];
        let scale = 1.0 / (dim as f32).sqrt();
        let rows = [chosen.as_slice(), window];
        reference(
            &Ops::SCALAR,
            heads_of_token,
            dim,
            scale,
            &sinks,
            &rows,
            &mut Vec::new(),
        );
    }
    let window = bench.upload(&ring(&near.bytes, kv_row_bytes(dim, rotary), slots, end))?;
    let (compressed, sinks) = (bench.upload(&far.bytes)?, bench.upload(&sinks)?);
    let (queries, positions) = (bench.upload(&queries)?, bench.upload(&positions)?);
    let (seen, picks, counts) = (
        bench.upload(&seen)?,
        bench.upload(&picks)?,
        bench.upload(&vec![k as u32; tokens])?,
    );
    let rows = match picked {
        Some(_) => Far::Picked {
            picks: picks.all(),
            counts: counts.all(),
        },
        None => Far::First {
            seen: seen.all(),
            most: end / ratio,
        },
    };
    let keys = Keys {
        window: window.all(),
        reach,
        compressed: compressed.all(),
        far: rows,
        dim,
        rotary,
        sinks: sinks.all(),
    };
    let out = bench.room(expected.len())?;
    attend(bench.device, queries.all(), positions.all(), &keys, out.all())?;
    bench.bits("attention", &expected, out.all())
}

/// The last `slots` rows before `end` in their slots; nothing of use in the others.
fn ring(rows: &[u8], size: usize, slots: usize, end: usize) -> Vec<u8> {
    let mut ring = vec![0xff; slots * size];
    for position in end.saturating_sub(slots)..end {
        let row = &rows[position * size..][..size];
        ring[position % slots * size..][..size].copy_from_slice(row);
    }
    ring
}
