//! Routing tokens to experts.

use ds4_kernels::ops::experts::{Routing, probabilities};
use ds4_kernels_cuda::router::{By, Choices, route};

use crate::{Bench, Case, Outcome};

pub(crate) const CASES: &[Case] = &[Case {
    name: "routing",
    kernels: &["route"],
    run: routing,
}];

const SCALE: f32 = 1.5;
/// Token ids of the table.
const VOCABULARY: usize = 7;

/// Whatever decides: scores, scores with a bias, or the token's id.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_precision_loss
)] // small integers
fn routing(bench: &mut Bench<'_>) -> Outcome {
    let tokens = bench.tokens;
    let count = bench.random.within(2, if tokens > 64 { 40 } else { 300 });
    let used = bench.random.within(1, count.min(8));
    let random = &mut bench.random;
    // Coarse logits, so that probabilities tie.
    let logits: Vec<f32> = (0..tokens * count)
        .map(|_| (random.below(60) as f32 - 30.0) * 0.9)
        .collect();
    let bias: Vec<f32> = (0..count).map(|_| random.below(3) as f32 * 0.5).collect();
    let table: Vec<i32> = (0..VOCABULARY * used)
        .map(|i| ((i + i / used * 5) % count) as i32)
        .collect();
    let ids: Vec<u32> = (0..tokens).map(|_| random.below(VOCABULARY) as u32).collect();
    let mut p = logits.clone();
    probabilities(&mut p);
    let of_token = |token: usize, by: usize| {
        let p = &p[token * count..][..count];
        match by {
            0 => Routing::scored(p, None, used, SCALE),
            1 => Routing::scored(p, Some(&bias), used, SCALE),
            _ => {
                let row = &table[ids[token] as usize * used..][..used];
                Routing::chosen(row.iter().map(|expert| *expert as usize).collect(), p, SCALE)
            }
        }
    };
    let (biases, tables, on_device) = (bench.upload(&bias)?, bench.upload(&table)?, bench.upload(&ids)?);
    let ways = [
        By::Score(None),
        By::Score(Some(biases.all())),
        By::Token {
            table: tables.all(),
            tokens: on_device.all(),
        },
    ];
    for (way, by) in ways.into_iter().enumerate() {
        let slots = (0..tokens).flat_map(|token| of_token(token, way).slots);
        let (chosen, weights): (Vec<u32>, Vec<f32>) =
            slots.map(|(expert, weight)| (expert as u32, weight)).unzip();
        let x = bench.upload(&logits)?;
        let (e, w) = (bench.room(tokens * used)?, bench.room(tokens * used)?);
        let choices = Choices {
            experts: e.all(),
            weights: w.all(),
            used,
        };
        route(bench.device, x.all(), by, SCALE, choices)?;
        bench.equal("experts", &chosen, e.all())?;
        bench.bits("weights of experts", &weights, w.all())?;
    }
    Ok(())
}
