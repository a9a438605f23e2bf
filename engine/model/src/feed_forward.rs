//! The mixture of experts.

use ds4_kernels::Backend;
use ds4_kernels::ops::experts::{Routing, probabilities, swiglu};

use crate::graph::Graph;
use crate::layer::{Expert, FeedForward, Router};
use crate::matrix::multiply;

/// Tokens whose expert outputs are held at once: bounds memory at `tokens * n_used * n_embd` values. Tokens do not see each other, so any
/// number gives the same bits.
const BATCH: usize = 512;

impl<B: Backend> Graph<B> {
    /// The block's output `[tokens][n_embd]` for its normalised input.
    pub(crate) fn feed_forward(
        &self,
        layer: usize,
        weights: &FeedForward,
        tokens: &[u32],
        x: &[f32],
    ) -> Vec<f32> {
        let n_embd = self.config().n_embd;
        let batches = tokens.chunks(BATCH).zip(x.chunks(BATCH * n_embd));
        batches
            .flat_map(|(tokens, x)| self.experts(layer, weights, tokens, x))
            .collect()
    }

    fn experts(&self, layer: usize, weights: &FeedForward, tokens: &[u32], x: &[f32]) -> Vec<f32> {
        let (n_embd, clamp) = (self.config().n_embd, self.config().clamp[layer]);
        let routings = self.route(weights, tokens, x);
        let used = self.config().n_used;
        let mut parts = vec![0.0; tokens.len() * used * n_embd];
        for expert in 0..self.config().n_expert {
            let chosen: Vec<(usize, usize, f32)> = slots_of(&routings, expert).collect();
            if chosen.is_empty() {
                continue;
            }
            let inputs: Vec<f32> = chosen
                .iter()
                .flat_map(|(token, ..)| &x[token * n_embd..(token + 1) * n_embd])
                .copied()
                .collect();
            let share: Vec<f32> = chosen.iter().map(|(.., weight)| *weight).collect();
            let out = self.expert(&weights.routed, expert, &inputs, &share, clamp);
            for ((token, slot, _), row) in chosen.iter().zip(out.chunks_exact(n_embd)) {
                let at = (token * used + slot) * n_embd;
                parts[at..at + n_embd].copy_from_slice(row);
            }
        }
        let mut sum = self.expert(&weights.shared, 0, x, &vec![1.0; tokens.len()], clamp);
        for (sum, parts) in sum
            .chunks_exact_mut(n_embd)
            .zip(parts.chunks_exact(used * n_embd))
        {
            combine(sum, parts);
        }
        sum
    }

    fn route(&self, weights: &FeedForward, tokens: &[u32], x: &[f32]) -> Vec<Routing> {
        let config = self.config();
        let (used, scale) = (config.n_used, config.expert_scale);
        let mut all = self.project(&weights.gate, x);
        probabilities(&mut all);
        let route = |(token, p): (&u32, &[f32])| match &weights.router {
            Router::Scored(bias) => Routing::scored(p, bias.as_deref(), used, scale),
            Router::Hash(table) => {
                let at = *token as usize * used;
                Routing::chosen(table[at..at + used].to_vec(), p, scale)
            }
        };
        tokens
            .iter()
            .zip(all.chunks_exact(config.n_expert))
            .map(route)
            .collect()
    }

    /// One expert over its tokens; the weight enters before the last product.
    fn expert(&self, weights: &Expert, number: usize, x: &[f32], share: &[f32], clamp: f32) -> Vec<f32> {
        let run = |weight: &crate::matrix::Weight, x: &[f32]| {
            multiply(
                self.backend(),
                self.numerics(),
                &weight.expert(self.weights(), number),
                x,
            )
        };
        let (mut gate, up) = (run(&weights.gate, x), run(&weights.up, x));
        let n_ff = self.config().n_ff;
        for ((gate, up), weight) in gate.chunks_exact_mut(n_ff).zip(up.chunks_exact(n_ff)).zip(share) {
            swiglu(gate, up, clamp, *weight);
        }
        run(&weights.down, &gate)
    }
}

/// `(token, slot, weight)` of every token that chose `expert`.
fn slots_of(routings: &[Routing], expert: usize) -> impl Iterator<Item = (usize, usize, f32)> + '_ {
    routings.iter().enumerate().flat_map(move |(token, routing)| {
        let slots = routing.slots.iter().enumerate();
        slots
            .filter(move |(_, (chosen, _))| *chosen == expert)
            .map(move |(slot, (_, weight))| (token, slot, *weight))
    })
}

/// The routed experts ascending, then the shared one.
fn combine(shared: &mut [f32], parts: &[f32]) {
    let width = shared.len();
    for (i, shared) in shared.iter_mut().enumerate() {
        let routed = parts.iter().skip(i).step_by(width).fold(0.0, |sum, x| sum + x);
        *shared += routed;
    }
}
