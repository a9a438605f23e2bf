//! Norms, rotations and the encoding of rows.

use ds4_kernels::codec::{encode_indexer, encode_kv, indexer_row_bytes, kv_row_bytes};
use ds4_kernels::ops::norm::rms;
use ds4_kernels::ops::rope::{Rope, Rotation};
use ds4_kernels_metal::codec::{self, Ring};
use ds4_kernels_metal::norm::{self, Rotated};

use crate::support::{Random, assert_bits, bench};

const EPS: f32 = 1e-6;

/// Rotations of some positions, and the same as the kernels take them.
pub fn rotations(positions: &[u64], rotary: usize) -> (Vec<Rotation>, Vec<f32>) {
    let rope = Rope::new(10_000.0, rotary, None);
    let all: Vec<Rotation> = positions.iter().map(|position| rope.at(*position)).collect();
    let flat = all
        .iter()
        .flat_map(|rotation| rotation.pairs().to_vec())
        .collect();
    (all, flat)
}

#[cfg_attr(test, test)]
pub fn norms_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(1);
    for (rows, width) in [(1, 1), (2, 33), (3, 256), (1, 1027)] {
        let (x, weight) = (random.values(rows * width), random.values(width));
        let mut expected = x.clone();
        expected
            .chunks_exact_mut(width)
            .for_each(|row| rms(row, Some(&weight), EPS));
        let weight = bench.upload(&weight);
        bench.each_order(|device| {
            let y = bench.upload(&x);
            norm::rms(device, y.all(), weight.all(), EPS, y.all()).unwrap();
            assert_bits("in place", &expected, &device.download(y.all()).unwrap());
            let (from, to) = (bench.upload(&x), bench.room(x.len()));
            norm::rms(device, from.all(), weight.all(), EPS, to.all()).unwrap();
            assert_bits("elsewhere", &expected, &device.download(to.all()).unwrap());
        });
    }
}

#[cfg_attr(test, test)]
pub fn heads_are_normalised_and_rotated_as_the_reference_does() {
    let bench = bench();
    let mut random = Random(2);
    for (tokens, heads, dim, rotary) in [(1, 1, 96, 32), (3, 5, 128, 64), (2, 3, 70, 6)] {
        let x = random.values(tokens * heads * dim);
        let positions: Vec<u64> = (0..tokens as u64).map(|i| 1000 + 37 * i).collect();
        let (all, flat) = rotations(&positions, rotary);
        let turn = |each: &dyn Fn(&Rotation, &mut [f32])| {
            let mut values = x.clone();
            for (i, head) in values.chunks_exact_mut(dim).enumerate() {
                each(&all[i / heads], head);
            }
            values
        };
        let normed = turn(&|rotation, head| {
            rms(head, None, EPS);
            rotation.apply(head);
        });
        let (forward, back) = (turn(&Rotation::apply), turn(&Rotation::apply_inverse));
        let turns = bench.upload(&flat);
        bench.each_order(|device| {
            let run = |kernel: &dyn Fn(Rotated<'_>)| {
                let values = bench.upload(&x);
                kernel(Rotated {
                    rows: values.all(),
                    dim,
                    rotations: turns.all(),
                    rotary,
                    per: heads,
                });
                device.download(values.all()).unwrap()
            };
            assert_bits("norm", &normed, &run(&|x| norm::heads(device, x, EPS).unwrap()));
            assert_bits(
                "forward",
                &forward,
                &run(&|x| norm::rotate(device, x, false).unwrap()),
            );
            assert_bits("back", &back, &run(&|x| norm::rotate(device, x, true).unwrap()));
        });
    }
}

/// Values of all sizes: zeros, subnormals, ties and what is beyond the formats.
fn wild(random: &mut Random, count: usize) -> Vec<f32> {
    let value = |random: &mut Random| match random.below(12) {
        0 => 0.0,
        1 => -0.0,
        2 => 1e-41,
        3 => 3.4e38 * random.uniform(),
        4 => (random.below(64) as f32 - 32.0) * 0.25,
        5 => random.uniform() * 1e-6,
        _ => random.uniform() * 4.0,
    };
    (0..count).map(|_| value(random)).collect()
}

#[cfg_attr(test, test)]
pub fn kv_rows_have_the_canonical_bytes_in_their_slots() {
    let bench = bench();
    let mut random = Random(3);
    for (rows, dim, rotary, first, slots) in [(1, 96, 32, 0, 1), (5, 128, 64, 7, 9), (3, 512, 64, 100, 300)] {
        let x = wild(&mut random, rows * dim);
        let bytes = kv_row_bytes(dim, rotary);
        let mut expected = vec![0xff; slots * bytes];
        for (i, row) in x.chunks_exact(dim).enumerate() {
            let slot = (first + i) % slots;
            encode_kv(row, rotary, &mut expected[slot * bytes..(slot + 1) * bytes]);
        }
        let x = bench.upload(&x);
        bench.each_order(|device| {
            let out = bench.upload(&vec![0xffu8; slots * bytes]);
            let ring = Ring {
                bytes: out.all(),
                first: first as u64,
            };
            codec::encode_kv(device, x.all(), dim, rotary, ring).unwrap();
            assert_eq!(device.download(out.all()).unwrap(), expected);
        });
    }
}

#[cfg_attr(test, test)]
pub fn indexer_rows_have_the_canonical_bytes() {
    let bench = bench();
    let mut random = Random(4);
    for (rows, dim, first) in [(1, 32, 0), (5, 128, 2), (9, 64, 1)] {
        let x = wild(&mut random, rows * dim);
        let bytes = indexer_row_bytes(dim);
        let mut expected = vec![0xff; (first + rows) * bytes];
        for (row, out) in x
            .chunks_exact(dim)
            .zip(expected[first * bytes..].chunks_exact_mut(bytes))
        {
            encode_indexer(&mut row.to_vec(), out);
        }
        let x = bench.upload(&x);
        bench.each_order(|device| {
            let out = bench.upload(&vec![0xffu8; expected.len()]);
            let to = Ring {
                bytes: out.all(),
                first: first as u64,
            };
            codec::encode_indexer(device, x.all(), dim, to).unwrap();
            assert_eq!(device.download(out.all()).unwrap(), expected);
        });
    }
}

/// The device has no f64: every step of the mean and the root is made of integers, and its limits are met here.
#[cfg_attr(test, test)]
pub fn norms_of_numbers_of_all_sizes_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(7);
    let width = 67;
    let mut x = Vec::new();
    for exponent in (-149..128).step_by(3) {
        let scale = 2f64.powi(exponent);
        x.extend((0..width).map(|_| (f64::from(random.uniform()) * scale) as f32));
    }
    // One large number among small ones, all zeros, an infinity, and what is no number.
    let mut special = vec![1e-30; 4 * width];
    special[5] = 3e20;
    special[width..2 * width].fill(0.0);
    special[2 * width] = f32::INFINITY;
    special[3 * width] = f32::NAN;
    x.extend(special);
    let weight = random.values(width);
    for eps in [0.0, 1e-40, EPS, 3.7] {
        let mut expected = x.clone();
        expected
            .chunks_exact_mut(width)
            .for_each(|row| rms(row, Some(&weight), eps));
        let (weight, y) = (bench.upload(&weight), bench.upload(&x));
        norm::rms(bench.device, y.all(), weight.all(), eps, y.all()).unwrap();
        let found = bench.device.download(y.all()).unwrap();
        for (row, (expected, found)) in expected
            .chunks_exact(width)
            .zip(found.chunks_exact(width))
            .enumerate()
        {
            let equal = |(a, b): (&f32, &f32)| a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
            assert!(
                expected.iter().zip(found).all(equal),
                "row {row}, eps {eps}: {expected:?} {found:?}"
            );
        }
    }
}
