//! Attention over compressed rows and the window.

use ds4_kernels::codec::{decode_kv, encode_kv, kv_row_bytes};
use ds4_kernels::ops::Ops;
use ds4_kernels::ops::attention::attend as reference;
use ds4_kernels_metal::attention::{Far, Keys, attend};

use crate::support::{Bench, Random, assert_bits, bench};

struct Case {
    heads: usize,
    dim: usize,
    rotary: usize,
    reach: usize,
    slots: usize,
    positions: &'static [u64],
    ratio: u64,
    picked: Option<usize>,
}

/// Encoded rows, and their values.
fn encoded(random: &mut Random, rows: usize, dim: usize, rotary: usize) -> (Vec<u8>, Vec<f32>) {
    let size = kv_row_bytes(dim, rotary);
    let (mut bytes, mut values) = (vec![0; rows * size], vec![0.0; rows * dim]);
    for (bytes, values) in bytes.chunks_exact_mut(size).zip(values.chunks_exact_mut(dim)) {
        encode_kv(&random.values(dim), rotary, bytes);
        decode_kv(bytes, rotary, values);
    }
    (bytes, values)
}

fn check(bench: &Bench, case: &Case) {
    let Case {
        heads,
        dim,
        rotary,
        reach,
        slots,
        positions,
        ratio,
        picked,
    } = *case;
    let mut random = Random(positions[0] + dim as u64);
    let last = positions.iter().max().unwrap() + 1;
    let (near, near_values) = encoded(&mut random, last as usize, dim, rotary);
    let (far, far_values) = encoded(&mut random, (last / ratio) as usize, dim, rotary);
    let queries = random.values(positions.len() * heads * dim);
    let sinks = random.values(heads);
    let seen: Vec<u32> = positions
        .iter()
        .map(|position| ((position + 1) / ratio) as u32)
        .collect();
    let k = picked.unwrap_or(1);
    let picks: Vec<u32> = seen
        .iter()
        .flat_map(|seen| (0..k as u32).map(move |i| i * (seen / k as u32)))
        .collect();
    let size = kv_row_bytes(dim, rotary);
    let mut ring = vec![0xff; slots * size];
    for position in last.saturating_sub(slots as u64)..last {
        let (slot, at) = (
            (position % slots as u64) as usize * size,
            position as usize * size,
        );
        ring[slot..slot + size].copy_from_slice(&near[at..at + size]);
    }
    let mut expected = queries.clone();
    for (token, position) in positions.iter().enumerate() {
        let of_row = |row: usize| &far_values[row * dim..(row + 1) * dim];
        let chosen: Vec<f32> = match picked {
            Some(k) => picks[token * k..(token + 1) * k]
                .iter()
                .flat_map(|row| of_row(*row as usize))
                .copied()
                .collect(),
            None => (0..seen[token] as usize).flat_map(of_row).copied().collect(),
        };
        let first = (position + 1).saturating_sub(reach as u64) as usize;
        let window = &near_values[first * dim..(*position as usize + 1) * dim];
        let heads = &mut expected[token * heads * dim..(token + 1) * heads * dim];
        let scale = 1.0 / (dim as f32).sqrt();
        reference(
            &Ops::SCALAR,
            heads,
            dim,
            scale,
            &sinks,
            &[&chosen, window],
            &mut Vec::new(),
        );
    }
    let at: Vec<u32> = positions.iter().map(|position| *position as u32).collect();
    let (ring, far, sinks) = (bench.upload(&ring), bench.upload(&far), bench.upload(&sinks));
    let (queries, at, seen, picks) = (
        bench.upload(&queries),
        bench.upload(&at),
        bench.upload(&seen),
        bench.upload(&picks),
    );
    let counts = bench.upload(&vec![k as u32; positions.len()]);
    let most = (last / ratio) as usize;
    let rows = match picked {
        Some(_) => Far::Picked {
            picks: picks.all(),
            counts: counts.all(),
        },
        None => Far::First {
            seen: seen.all(),
            most,
        },
    };
    let keys = Keys {
        window: ring.all(),
        reach,
        compressed: far.all(),
        far: rows,
        dim,
        rotary,
        sinks: sinks.all(),
    };
    bench.each_order(|device| {
        // Room for all tokens, and for one at a time.
        for together in [positions.len(), 1] {
            let (out, scratch) = (
                bench.room(expected.len()),
                bench.room(together * keys.scratch(positions.len())),
            );
            attend(device, queries.all(), at.all(), &keys, scratch.all(), out.all()).unwrap();
            assert_bits("attention", &expected, &device.download(out.all()).unwrap());
        }
    });
}

#[cfg_attr(test, test)]
pub fn attention_has_the_bits_of_the_reference() {
    let bench = bench();
    let plain = Case {
        heads: 2,
        dim: 96,
        rotary: 32,
        reach: 9,
        slots: 16,
        positions: &[0, 1, 7],
        ratio: 4,
        picked: None,
    };
    check(&bench, &plain);
    check(
        &bench,
        &Case {
            heads: 11,
            positions: &[20, 21, 40],
            slots: 64,
            ..plain
        },
    );
    check(
        &bench,
        &Case {
            positions: &[63, 64],
            picked: Some(5),
            slots: 11,
            ..plain
        },
    );
    check(
        &bench,
        &Case {
            heads: 3,
            dim: 512,
            rotary: 64,
            reach: 5,
            slots: 7,
            positions: &[70],
            ..plain
        },
    );
    check(
        &bench,
        &Case {
            positions: &[2],
            ratio: 128,
            ..plain
        },
    );
}
