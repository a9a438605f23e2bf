//! The mixture of experts.

use ds4_kernels::ops::experts::{Routing, probabilities};
use ds4_kernels::{Backend, Buffer, Choice, Experts};

use crate::graph::Graph;
use crate::layer::{Expert, FeedForward, Router};
use crate::matrix::Input;

impl<B: Backend> Graph<B> {
    /// The block's output `[tokens][n_embd]` for its normalised input.
    pub(crate) fn feed_forward(
        &self,
        layer: usize,
        weights: &FeedForward,
        tokens: &[u32],
        x: &[f32],
    ) -> Buffer<'_> {
        let (n_embd, used) = (self.config().n_embd, self.config().n_used);
        let input = self.input(x, n_embd);
        let choices = self.route(weights, tokens, &input);
        let parts = self.chosen(layer, &weights.routed, &choices, &input);
        let everyone = Choice {
            expert: 0,
            weight: 1.0,
        };
        let mut sum = self.chosen(layer, &weights.shared, &vec![everyone; tokens.len()], &input);
        self.backend().each_row(&mut sum, n_embd, &|token, sum| {
            let width = used * n_embd;
            (self.backend().ops().combine)(sum, &parts[token * width..(token + 1) * width]);
        });
        sum
    }

    /// `[choices][n_embd]`.
    fn chosen(&self, layer: usize, weights: &Expert, choices: &[Choice], input: &Input<'_, B>) -> Buffer<'_> {
        let (gate, up, down) = (&weights.gate, &weights.up, &weights.down);
        let experts = Experts {
            gate: gate.stack(self.weights()),
            up: up.stack(self.weights()),
            down: down.stack(self.weights()),
            count: gate.count(),
            clamp: self.config().clamp[layer],
            form: self.numerics().form(down.format()),
        };
        let mut out = self.buffers().take(choices.len() * self.config().n_embd);
        let x = input.for_weights(gate.format());
        self.backend().experts(&experts, choices, x, &mut out);
        out
    }

    /// `[tokens][n_used]`, experts of a token ascending.
    fn route(&self, weights: &FeedForward, tokens: &[u32], input: &Input<'_, B>) -> Vec<Choice> {
        let config = self.config();
        let (used, scale) = (config.n_used, config.expert_scale);
        let mut all = self.project(&weights.gate, input);
        self.backend()
            .each_row(&mut all, config.n_expert, &|_, logits| probabilities(logits));
        let route = |(token, p): (&u32, &[f32])| match &weights.router {
            Router::Scored(bias) => Routing::scored(p, bias.as_deref(), used, scale),
            Router::Hash(table) => {
                let at = *token as usize * used;
                Routing::chosen(table[at..at + used].to_vec(), p, scale)
            }
        };
        let choice = |(expert, weight)| Choice { expert, weight };
        tokens
            .iter()
            .zip(all.chunks_exact(config.n_expert))
            .flat_map(|token| route(token).slots)
            .map(choice)
            .collect()
    }
}
