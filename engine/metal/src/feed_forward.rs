//! The mixture of experts.

use ds4_kernels::Form;
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::router::{By, Choices, route};
use ds4_kernels_metal::{MetalError, Slice};

use crate::attention::FEW;
use crate::input::Input;
use crate::load::{FeedForward, Router};
use crate::pass::Pass;

impl<'a> Pass<'a> {
    /// The block's output `[tokens][n_embd]` for its normalised input.
    pub(crate) fn feed_forward(
        &self,
        number: usize,
        weights: &FeedForward,
        x: Slice<'a, f32>,
    ) -> Result<Slice<'a, f32>, MetalError> {
        let config = self.config;
        let x = self.input(x, config.n_embd);
        let choices = self.route(weights, &x)?;
        let parts = self.routed(number, weights, &x, choices)?;
        let sum = self.shared(number, weights, &x)?;
        experts::combine(self.device, sum, parts, config.n_used, config.n_embd)?;
        Ok(sum)
    }

    fn route(&self, weights: &FeedForward, x: &Input<'a>) -> Result<Choices<'a>, MetalError> {
        let (used, count) = (self.config.n_used, self.tokens() * self.config.n_used);
        let logits = x.times(&weights.gate)?;
        let choices = Choices {
            experts: self.take(count)?,
            weights: self.take(count)?,
            used,
        };
        let by = match &weights.router {
            Router::Token(table) => By::Token {
                table: table.all(),
                tokens: self.ids,
            },
            Router::Score(bias) => By::Score(bias.as_ref().map(|bias| bias.all())),
        };
        route(self.device, logits, by, self.config.expert_scale, choices)?;
        Ok(choices)
    }

    /// The chosen experts' outputs, `[tokens][n_used][n_embd]`.
    fn routed(
        &self,
        number: usize,
        weights: &FeedForward,
        x: &Input<'a>,
        choices: Choices<'a>,
    ) -> Result<Slice<'a, f32>, MetalError> {
        let (config, device, count) = (self.config, self.device, choices.experts.len());
        let (gate, up, down) = (&weights.routed.gate, &weights.routed.up, &weights.routed.down);
        let together = if count <= FEW {
            Together::One
        } else {
            let groups = self.grouped(choices.experts, config.n_expert)?;
            Together::of(device, groups, count)
        };
        let activated = self.take(count * config.n_ff)?;
        let form = x.quantized(Form::of(gate.format()))?;
        let clamp = config.clamp[number];
        experts::gate_up(
            device,
            gate,
            up,
            config.n_ff,
            form,
            choices,
            together,
            clamp,
            activated,
        )?;
        let form = self
            .input(activated, config.n_ff)
            .quantized(Form::of(down.format()))?;
        let parts = self.take(count * config.n_embd)?;
        experts::down(device, down.all(), config.n_embd, form, choices, together, parts)?;
        Ok(parts)
    }

    /// The expert of every token.
    fn shared(
        &self,
        number: usize,
        weights: &FeedForward,
        x: &Input<'a>,
    ) -> Result<Slice<'a, f32>, MetalError> {
        let (gate, up) = (x.times(&weights.shared.gate)?, x.times(&weights.shared.up)?);
        experts::swiglu(self.device, gate, up, self.config.clamp[number])?;
        self.input(gate, self.config.n_ff).times(&weights.shared.down)
    }
}
