//! Embedding rows, the choice of a token, and copies.

use ds4_kernels::{Format, dequantize_row};
use ds4_kernels_cuda::embedding::{argmax, embed};
use ds4_kernels_cuda::{Arena, Segments};

use crate::bench::matrix;
use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "embedding",
        kernels: &["embed"],
        run: embedding,
    },
    Case {
        name: "choice of the likeliest token",
        kernels: &["argmax"],
        run: likeliest,
    },
    Case {
        name: "copies of segments",
        kernels: &["copy_segments"],
        run: segments,
    },
];

fn embedding(bench: &mut Bench<'_>) -> Outcome {
    for format in [Format::F32, Format::F16, Format::Q8_0] {
        let (vocabulary, streams) = (bench.random.within(1, 9), bench.random.within(1, 8));
        let width = format.block_len() * bench.random.within(1, if bench.tokens > 64 { 2 } else { 70 });
        let bytes = bench.random.rows(format, vocabulary, width);
        let table = matrix(format, vocabulary, width, &bytes)?;
        #[allow(clippy::cast_possible_truncation)] // a few tokens
        let tokens: Vec<u32> = (0..bench.tokens)
            .map(|_| bench.random.below(vocabulary) as u32)
            .collect();
        let mut expected = Vec::with_capacity(tokens.len() * streams * width);
        for token in &tokens {
            let mut row = vec![0.0; width];
            dequantize_row(format, table.row(*token as usize), &mut row);
            (0..streams).for_each(|_| expected.extend_from_slice(&row));
        }
        let (table, ids, out) = (
            bench.weights(&table)?,
            bench.upload(&tokens)?,
            bench.room(expected.len())?,
        );
        embed(bench.device, &table, ids.all(), streams, out.all())?;
        bench.bits(format.name(), &expected, out.all())?;
    }
    Ok(())
}

/// The first of the largest; what is no number is never chosen, and where there is nothing to choose it is token 0.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // small integers
fn likeliest(bench: &mut Bench<'_>) -> Outcome {
    // Logits are made of few tokens.
    let (tokens, width) = (bench.tokens.min(256), bench.random.within(1, 1200));
    let random = &mut bench.random;
    // Few different values, so that there are ties.
    let value = |_| match random.below(40) {
        0 => f32::NAN,
        1 => f32::NEG_INFINITY,
        other => other as f32 * 0.5 - 10.0,
    };
    let logits: Vec<f32> = (0..tokens * width).map(value).collect();
    let best = |row: &[f32]| {
        let most = row
            .iter()
            .copied()
            .filter(|x| !x.is_nan())
            .fold(f32::NEG_INFINITY, f32::max);
        let first = row.iter().position(|x| *x == most && most > f32::NEG_INFINITY);
        first.unwrap_or(0) as u32
    };
    let expected: Vec<u32> = logits.chunks_exact(width).map(best).collect();
    let (x, out) = (bench.upload(&logits)?, bench.room(tokens)?);
    argmax(bench.device, x.all(), out.all())?;
    bench.equal("tokens", &expected, out.all())
}

fn segments(bench: &mut Bench<'_>) -> Outcome {
    let count = bench.tokens.min(64);
    let lengths: Vec<usize> = (0..count).map(|_| bench.random.below(400)).collect();
    let total: usize = lengths.iter().sum();
    #[allow(clippy::cast_possible_truncation)] // a byte of a random number
    let bytes: Vec<u8> = (0..=total).map(|_| bench.random.next() as u8).collect();
    let (from, to) = (bench.upload(&bytes)?, bench.upload(&vec![0u8; total + 1])?);
    // In the other order, one byte further on.
    let (mut expected, mut list, mut at, mut end) = (vec![0; total + 1], Segments::default(), 0, total + 1);
    for length in lengths {
        end -= length;
        list.push(
            from.all().range(at..at + length),
            to.all().range(end..end + length),
        );
        expected[end..end + length].copy_from_slice(&bytes[at..at + length]);
        at += length;
    }
    list.run(bench.device, &Arena::default())?;
    bench.equal("bytes", &expected, to.all())
}
