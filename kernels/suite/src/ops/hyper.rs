//! Hyper-connections.

use ds4_kernels::ops::hyper::{self as reference, Mixing};
use ds4_kernels_cuda::hyper;

use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "mixes of streams",
        kernels: &["hyper_mix", "gather_streams", "scatter_streams"],
        run: streams,
    },
    Case {
        name: "the head's mix of streams",
        kernels: &["head_mix"],
        run: head,
    },
];

const EPS: f32 = 1e-6;

struct Shape {
    n: usize,
    width: usize,
    iterations: usize,
}

fn shape(bench: &mut Bench<'_>) -> Shape {
    let many = bench.tokens > 64;
    Shape {
        n: bench.random.within(1, if many { 4 } else { 8 }),
        width: bench.random.within(1, if many { 9 } else { 300 }),
        iterations: bench.random.within(1, if many { 3 } else { 20 }),
    }
}

fn streams(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, Shape { n, width, iterations }) = (bench.tokens, shape(bench));
    let numbers = (2 + n) * n;
    let (streams, raw) = (
        bench.random.values(tokens * n * width),
        bench.random.values(tokens * numbers),
    );
    let (scale, base, block) = (
        bench.random.values(3),
        bench.random.values(numbers),
        bench.random.values(tokens * width),
    );
    let mixing = Mixing {
        scale: &scale,
        base: &base,
        streams: n,
        iterations,
        eps: EPS,
        rms_eps: EPS,
    };
    let (mut mixes, mut gathered, mut scattered) = (raw.clone(), vec![0.0; tokens * width], streams.clone());
    for token in 0..tokens {
        let mix = &mut mixes[token * numbers..][..numbers];
        let (of_token, part) = (
            token * n * width..(token + 1) * n * width,
            token * width..(token + 1) * width,
        );
        reference::mix(mix, &streams[of_token.clone()], &mixing);
        reference::gather(&mix[..n], &streams[of_token.clone()], &mut gathered[part.clone()]);
        reference::scatter(mix, &block[part], &mut scattered[of_token]);
    }
    let (scale, base, block) = (bench.upload(&scale)?, bench.upload(&base)?, bench.upload(&block)?);
    let on_device = hyper::Mixing {
        scale: scale.all(),
        base: base.all(),
        streams: n,
        iterations,
        eps: EPS,
        rms_eps: EPS,
    };
    let (x, mix, out) = (
        bench.upload(&streams)?,
        bench.upload(&raw)?,
        bench.room(gathered.len())?,
    );
    hyper::mix(bench.device, mix.all(), x.all(), &on_device)?;
    bench.bits("mix", &mixes, mix.all())?;
    hyper::gather(bench.device, mix.all(), numbers, x.all(), n, out.all())?;
    bench.bits("gathered streams", &gathered, out.all())?;
    hyper::scatter(bench.device, mix.all(), block.all(), n, x.all())?;
    bench.bits("scattered streams", &scattered, x.all())
}

fn head(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, Shape { n, width, iterations }) = (bench.tokens, shape(bench));
    let (streams, raw) = (
        bench.random.values(tokens * n * width),
        bench.random.values(tokens * n),
    );
    let (scale, base) = (bench.random.values(1), bench.random.values(n));
    let mixing = Mixing {
        scale: &scale,
        base: &base,
        streams: n,
        iterations,
        eps: EPS,
        rms_eps: EPS,
    };
    let mut expected = raw.clone();
    for (row, streams) in expected.chunks_exact_mut(n).zip(streams.chunks_exact(n * width)) {
        reference::head_weights(row, streams, &mixing);
    }
    let (scale, base) = (bench.upload(&scale)?, bench.upload(&base)?);
    let on_device = hyper::Mixing {
        scale: scale.all(),
        base: base.all(),
        streams: n,
        iterations,
        eps: EPS,
        rms_eps: EPS,
    };
    let (x, raw) = (bench.upload(&streams)?, bench.upload(&raw)?);
    hyper::head(bench.device, raw.all(), x.all(), &on_device)?;
    bench.bits("head", &expected, raw.all())
}
