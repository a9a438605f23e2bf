//! Hyper-connections.

use ds4_kernels::ops::hyper::{self as reference, Mixing};
use ds4_kernels_metal::hyper;

use crate::support::{Random, assert_bits, bench};

#[cfg_attr(test, test)]
pub fn mixes_gathered_and_scattered_streams_have_the_bits_of_the_reference() {
    let bench = bench();
    let mut random = Random(1);
    for (tokens, n, width) in [(1, 4, 256), (3, 4, 67), (2, 2, 16)] {
        let numbers = (2 + n) * n;
        let (streams, raw) = (random.values(tokens * n * width), random.values(tokens * numbers));
        let (scale, base) = (random.values(3), random.values(numbers));
        let mixing = Mixing {
            scale: &scale,
            base: &base,
            streams: n,
            iterations: 20,
            eps: 1e-6,
            rms_eps: 1e-6,
        };
        let block = random.values(tokens * width);
        let (mut mixes, mut gathered, mut scattered) =
            (raw.clone(), vec![0.0; tokens * width], streams.clone());
        for token in 0..tokens {
            let (mix, of_token) = (
                &mut mixes[token * numbers..][..numbers],
                token * n * width..(token + 1) * n * width,
            );
            reference::mix(mix, &streams[of_token.clone()], &mixing);
            let part = token * width..(token + 1) * width;
            reference::gather(&mix[..n], &streams[of_token.clone()], &mut gathered[part.clone()]);
            reference::scatter(mix, &block[part], &mut scattered[of_token]);
        }
        let mut head = raw[..tokens * n].to_vec();
        for (row, streams) in head.chunks_exact_mut(n).zip(streams.chunks_exact(n * width)) {
            reference::head_weights(
                row,
                streams,
                &Mixing {
                    scale: &scale[..1],
                    base: &base[..n],
                    ..mixing
                },
            );
        }
        let (scale, base, block) = (bench.upload(&scale), bench.upload(&base), bench.upload(&block));
        let on_device = hyper::Mixing {
            scale: scale.all(),
            base: base.all(),
            streams: n,
            iterations: 20,
            eps: 1e-6,
            rms_eps: 1e-6,
        };
        bench.each_order(|device| {
            let (x, mix, out) = (
                bench.upload(&streams),
                bench.upload(&raw),
                bench.room(gathered.len()),
            );
            hyper::mix(device, mix.all(), x.all(), &on_device).unwrap();
            assert_bits("mix", &mixes, &device.download(mix.all()).unwrap());
            hyper::gather(device, mix.all(), numbers, x.all(), n, out.all()).unwrap();
            assert_bits("gather", &gathered, &device.download(out.all()).unwrap());
            hyper::scatter(device, mix.all(), block.all(), n, x.all()).unwrap();
            assert_bits("scatter", &scattered, &device.download(x.all()).unwrap());
            let (x, raw) = (bench.upload(&streams), bench.upload(&raw[..tokens * n]));
            let of_head = hyper::Mixing {
                scale: scale.all().range(0..1),
                base: base.all().range(0..n),
                ..on_device
            };
            hyper::head(device, raw.all(), x.all(), &of_head).unwrap();
            assert_bits("head", &head, &device.download(raw.all()).unwrap());
        });
    }
}
