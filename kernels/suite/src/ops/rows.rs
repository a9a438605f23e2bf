//! Norms, rotations and the encoding of rows.

use ds4_kernels::codec::{encode_indexer, encode_kv, indexer_row_bytes, kv_row_bytes};
use ds4_kernels::ops::norm::rms;
use ds4_kernels::ops::rope::{Rope, Rotation};
use ds4_kernels_cuda::CudaError;
use ds4_kernels_cuda::codec::{self, Ring};
use ds4_kernels_cuda::norm::{self, Rotated};

use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "norms",
        kernels: &["rms_norm"],
        run: norms,
    },
    Case {
        name: "norms and rotations of heads",
        kernels: &["norm_rotate_heads", "rotate_rows"],
        run: heads,
    },
    Case {
        name: "encoding of KV rows",
        kernels: &["encode_kv"],
        run: kv_rows,
    },
    Case {
        name: "encoding of indexer rows",
        kernels: &["encode_indexer"],
        run: indexer_rows,
    },
];

const EPS: f32 = 1e-6;

fn norms(bench: &mut Bench<'_>) -> Outcome {
    let (rows, width) = (
        bench.tokens,
        bench.random.within(1, if bench.tokens > 64 { 40 } else { 1100 }),
    );
    let (x, weight) = (bench.random.values(rows * width), bench.random.values(width));
    let mut expected = x.clone();
    expected
        .chunks_exact_mut(width)
        .for_each(|row| rms(row, Some(&weight), EPS));
    let (x, y, weight) = (bench.upload(&x)?, bench.room(x.len())?, bench.upload(&weight)?);
    norm::rms(bench.device, x.all(), weight.all(), EPS, y.all())?;
    bench.bits("elsewhere", &expected, y.all())?;
    norm::rms(bench.device, x.all(), weight.all(), EPS, x.all())?;
    bench.bits("in place", &expected, x.all())
}

fn heads(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, many) = (bench.tokens, bench.tokens > 64);
    let heads = bench.random.within(1, if many { 2 } else { 9 });
    let rotary = 2 * bench.random.within(1, if many { 4 } else { 32 });
    let dim = rotary + bench.random.below(if many { 8 } else { 200 });
    let x = bench.random.values(tokens * heads * dim);
    let rope = Rope::new(10_000.0, rotary, None);
    let turns: Vec<Rotation> = (0..tokens as u64).map(|i| rope.at(1000 + 37 * i)).collect();
    let flat: Vec<f32> = turns.iter().flat_map(|turn| turn.pairs().to_vec()).collect();
    let rotations = bench.upload(&flat)?;
    let expected = |each: &dyn Fn(&Rotation, &mut [f32])| {
        let mut values = x.clone();
        let of_head = |(i, head): (usize, &mut [f32])| each(&turns[i / heads], head);
        values.chunks_exact_mut(dim).enumerate().for_each(of_head);
        values
    };
    type Launch<'a> = &'a dyn Fn(Rotated<'_>) -> Result<(), CudaError>;
    let check = |what: &str, expected: &[f32], launch: Launch<'_>| {
        let rows = bench.upload(&x)?;
        launch(Rotated {
            rows: rows.all(),
            dim,
            rotations: rotations.all(),
            rotary,
            per: heads,
        })?;
        bench.bits(what, expected, rows.all())
    };
    let normed = expected(&|turn, head| {
        rms(head, None, EPS);
        turn.apply(head);
    });
    check("normalised", &normed, &|x| norm::heads(bench.device, x, EPS))?;
    check("forward", &expected(&Rotation::apply), &|x| {
        norm::rotate(bench.device, x, false)
    })?;
    check("back", &expected(&Rotation::apply_inverse), &|x| {
        norm::rotate(bench.device, x, true)
    })
}

fn kv_rows(bench: &mut Bench<'_>) -> Outcome {
    let rows = bench.tokens;
    let rotary = 2 * bench.random.within(1, 32);
    let dim = 64 * bench.random.within(1, if rows > 64 { 1 } else { 7 }) + rotary;
    let (first, slots) = (bench.random.below(1000), rows + bench.random.below(300));
    let x = bench.random.wild(rows * dim);
    let bytes = kv_row_bytes(dim, rotary);
    let untouched = vec![0xff_u8; slots * bytes];
    let mut expected = untouched.clone();
    for (i, row) in x.chunks_exact(dim).enumerate() {
        let slot = (first + i) % slots;
        encode_kv(row, rotary, &mut expected[slot * bytes..][..bytes]);
    }
    let (x, out) = (bench.upload(&x)?, bench.upload(&untouched)?);
    let ring = Ring {
        bytes: out.all(),
        first: first as u64,
    };
    codec::encode_kv(bench.device, x.all(), dim, rotary, ring)?;
    bench.equal("bytes", &expected, out.all())
}

fn indexer_rows(bench: &mut Bench<'_>) -> Outcome {
    let (rows, dim) = (bench.tokens, 32 << bench.random.below(3));
    let (first, more) = (bench.random.below(20), bench.random.below(20));
    // The transform adds a row's values: no sum may leave the numbers, since the sign of what is none differs between processors.
    let x: Vec<f32> = bench
        .random
        .wild(rows * dim)
        .into_iter()
        .map(|x| x / 128.0)
        .collect();
    let bytes = indexer_row_bytes(dim);
    let untouched = vec![0xff_u8; (first + rows + more) * bytes];
    let mut expected = untouched.clone();
    let out = expected[first * bytes..].chunks_exact_mut(bytes);
    for (row, out) in x.chunks_exact(dim).zip(out) {
        encode_indexer(&mut row.to_vec(), out);
    }
    let (x, out) = (bench.upload(&x)?, bench.upload(&untouched)?);
    let to = Ring {
        bytes: out.all(),
        first: first as u64,
    };
    codec::encode_indexer(bench.device, x.all(), dim, to)?;
    bench.equal("bytes", &expected, out.all())
}
