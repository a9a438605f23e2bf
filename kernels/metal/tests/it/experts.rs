//! Routing, and the experts over their tokens.

use ds4_kernels::ops::experts::{Routing, probabilities, swiglu};
use ds4_kernels::{Activations, Backend, Choice, Experts, Form, Format, Scalar};
use ds4_kernels_metal::Device;
use ds4_kernels_metal::activation::{Quantized, quantize};
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::router::{By, Choices, Groups, group, route};

use crate::support::{Bench, Random, assert_bits, bench, matrix, rows};

#[cfg_attr(test, test)]
pub fn tokens_are_routed_as_the_reference_does() {
    let bench = bench();
    let mut random = Random(1);
    for (tokens, count, used) in [(1, 4, 2), (5, 40, 6), (3, 256, 8)] {
        // Coarse logits, so that probabilities tie.
        let logits: Vec<f32> = (0..tokens * count)
            .map(|_| (random.below(60) as f32 - 30.0) * 0.9)
            .collect();
        let bias: Vec<f32> = (0..count).map(|_| random.below(3) as f32 * 0.5).collect();
        let table: Vec<i32> = (0..7 * used)
            .map(|i| ((i * 5 + i / used) % count) as i32)
            .collect();
        let ids: Vec<u32> = (0..tokens).map(|_| random.below(7) as u32).collect();
        let mut p = logits.clone();
        probabilities(&mut p);
        let route_of = |token: usize, by: usize| {
            let p = &p[token * count..(token + 1) * count];
            match by {
                0 => Routing::scored(p, None, used, 1.5),
                1 => Routing::scored(p, Some(&bias), used, 1.5),
                _ => {
                    let row = &table[ids[token] as usize * used..][..used];
                    Routing::chosen(row.iter().map(|expert| *expert as usize).collect(), p, 1.5)
                }
            }
        };
        let (biases, tables, on_device) = (bench.upload(&bias), bench.upload(&table), bench.upload(&ids));
        for by in 0..3 {
            let slots: Vec<(usize, f32)> = (0..tokens).flat_map(|token| route_of(token, by).slots).collect();
            let (chosen, weights): (Vec<usize>, Vec<f32>) = slots.into_iter().unzip();
            bench.each_order(|device| {
                let (x, e, w) = (
                    bench.upload(&logits),
                    bench.room(tokens * used),
                    bench.room(tokens * used),
                );
                let by = match by {
                    0 => By::Score(None),
                    1 => By::Score(Some(biases.all())),
                    _ => By::Token {
                        table: tables.all(),
                        tokens: on_device.all(),
                    },
                };
                route(
                    device,
                    x.all(),
                    by,
                    1.5,
                    Choices {
                        experts: e.all(),
                        weights: w.all(),
                        used,
                    },
                )
                .unwrap();
                let found: Vec<usize> = device
                    .download(e.all())
                    .unwrap()
                    .into_iter()
                    .map(|e| e as usize)
                    .collect();
                assert_eq!(found, chosen);
                assert_bits("weights", &weights, &device.download(w.all()).unwrap());
            });
        }
    }
}

struct Case {
    gate: Format,
    down: Format,
    tokens: usize,
    count: usize,
    used: usize,
    /// Experts of choice `i`.
    expert: fn(usize) -> usize,
}

const CLAMP: f32 = 0.4;
const N_EMBD: usize = 256;
const N_FF: usize = 512;

fn quantized<'a>(
    device: &Device,
    format: Format,
    x: ds4_kernels_metal::Slice<'_, f32>,
    cols: usize,
    codes: &'a ds4_kernels_metal::Buffer<i8>,
    scales: &'a ds4_kernels_metal::Buffer<f32>,
) -> Quantized<'a> {
    let scales = scales.all().range(0..x.len() / format.block_len());
    quantize(device, Form::of(format), cols, x, codes.all(), scales).unwrap()
}

/// Choices one by one, and grouped.
fn ways(groups: Groups<'_>) -> [Together<'_>; 3] {
    [Together::One, Together::Many(groups), Together::Tiles(groups)]
}

fn check(bench: &Bench, case: &Case) {
    let mut random = Random(case.tokens as u64);
    let Case {
        tokens, count, used, ..
    } = *case;
    let n = tokens * used;
    let [gate_bytes, up_bytes] = [0, 1].map(|_| rows(&mut random, case.gate, count * N_FF, N_EMBD));
    let down_bytes = rows(&mut random, case.down, count * N_EMBD, N_FF);
    let x = random.values(tokens * N_EMBD);
    let choices: Vec<Choice> = (0..n)
        .map(|i| Choice {
            expert: (case.expert)(i),
            weight: random.uniform() + 1.0,
        })
        .collect();
    let gate = matrix(case.gate, count * N_FF, N_EMBD, &gate_bytes);
    let up = matrix(case.gate, count * N_FF, N_EMBD, &up_bytes);
    let down = matrix(case.down, count * N_EMBD, N_FF, &down_bytes);
    let all = Experts {
        gate,
        up,
        down,
        count,
        clamp: CLAMP,
        form: Form::of(case.down),
    };
    let mut parts = vec![0.0; n * N_EMBD];
    Scalar.experts(
        &all,
        &choices,
        &Activations::new(&x, N_EMBD, Form::of(case.gate)),
        &mut parts,
    );
    let shared = random.values(tokens * N_EMBD);
    let mut expected = shared.clone();
    for (i, sum) in expected.iter_mut().enumerate() {
        let (token, d) = (i / N_EMBD, i % N_EMBD);
        *sum += (0..used).fold(0.0, |sum, slot| sum + parts[(token * used + slot) * N_EMBD + d]);
    }
    let [gate, up, down] = [gate, up, down].map(|matrix| Weights::upload(bench.device, &matrix).unwrap());
    let ids: Vec<u32> = choices.iter().map(|choice| choice.expert as u32).collect();
    let weights: Vec<f32> = choices.iter().map(|choice| choice.weight).collect();
    let (x, ids, weights) = (bench.upload(&x), bench.upload(&ids), bench.upload(&weights));
    let chosen = Choices {
        experts: ids.all(),
        weights: weights.all(),
        used,
    };
    bench.each_order(|device| {
        let (order, starts) = (bench.room(n), bench.room(count + 1));
        let groups = Groups {
            order: order.all(),
            starts: starts.all(),
        };
        group(device, ids.all(), groups).unwrap();
        for together in ways(groups) {
            let (codes, scales) = (bench.room(tokens * N_EMBD), bench.room(tokens * N_EMBD / 32));
            let q = quantized(device, case.gate, x.all(), N_EMBD, &codes, &scales);
            let h = bench.room(n * N_FF);
            experts::gate_up(device, &gate, &up, N_FF, q, chosen, together, CLAMP, h.all()).unwrap();
            let (codes, scales) = (bench.room(n * N_FF), bench.room(n * N_FF / 32));
            let q = quantized(device, case.down, h.all(), N_FF, &codes, &scales);
            let out = bench.room(n * N_EMBD);
            experts::down(device, down.all(), N_EMBD, q, chosen, together, out.all()).unwrap();
            let what = format!("{together:?}");
            assert_bits(&what, &parts, &device.download(out.all()).unwrap());
            let sum = bench.upload(&shared);
            experts::combine(device, sum.all(), out.all(), used, N_EMBD).unwrap();
            assert_bits("sum", &expected, &device.download(sum.all()).unwrap());
        }
    });
}

#[cfg_attr(test, test)]
pub fn the_chosen_experts_have_the_bits_of_the_reference_with_empty_and_crowded_ones() {
    let bench = bench();
    let mixed = Case {
        gate: Format::Iq2Xxs,
        down: Format::Q2K,
        tokens: 5,
        count: 4,
        used: 2,
        expert: |i| (i * 2 + i / 2) % 3,
    };
    check(&bench, &mixed);
    check(&bench, &Case { tokens: 1, ..mixed });
    check(
        &bench,
        &Case {
            gate: Format::Q4K,
            down: Format::Q4K,
            tokens: 9,
            used: 1,
            expert: |_| 3,
            ..mixed
        },
    );
    check(
        &bench,
        &Case {
            gate: Format::Mxfp4,
            down: Format::Mxfp4,
            tokens: 2,
            ..mixed
        },
    );
}

#[cfg_attr(test, test)]
pub fn the_shared_expert_is_activated_as_the_reference_does() {
    let bench = bench();
    let mut random = Random(9);
    let (gate, up) = (random.values(700), random.values(700));
    let mut expected = gate.clone();
    swiglu(&mut expected, &up, CLAMP, 1.0);
    let up = bench.upload(&up);
    bench.each_order(|device| {
        let gate = bench.upload(&gate);
        experts::swiglu(device, gate.all(), up.all(), CLAMP).unwrap();
        assert_bits("swiglu", &expected, &device.download(gate.all()).unwrap());
    });
}
