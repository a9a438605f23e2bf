//! The residual streams around a block.

use ds4_kernels::ops::hyper::{Mixing, head_weights};
use ds4_kernels::{Backend, Buffer, each_row_of_two};

use crate::graph::Graph;
use crate::layer::Hyper;

impl<B: Backend> Graph<B> {
    /// What a connection's matrix gives for each token: `[tokens][rows]`.
    pub(crate) fn hyper_raw(&self, hyper: &Hyper, streams: &[f32]) -> Buffer<'_> {
        self.project(&hyper.matrix, &self.input(streams, hyper.matrix.cols()))
    }

    /// How those numbers become a mix.
    pub(crate) fn mixing<'a>(&self, hyper: &'a Hyper) -> Mixing<'a> {
        let config = self.config();
        Mixing {
            scale: &hyper.scale,
            base: &hyper.base,
            streams: config.hc.streams,
            iterations: config.hc.sinkhorn_iterations,
            eps: config.hc.eps,
            rms_eps: config.rms_eps,
        }
    }

    /// One mix per token, and the block's normalised inputs `[tokens][n_embd]`.
    pub(crate) fn open(&self, hyper: &Hyper, norm: &[f32], streams: &[f32]) -> (Buffer<'_>, Buffer<'_>) {
        let (ops, config) = (self.backend().ops(), self.config());
        let (width, count) = (config.hidden_width(), config.hc.streams);
        let mixing = self.mixing(hyper);
        let mut mixes = self.hyper_raw(hyper, streams);
        let mut inputs = self.buffers().take(streams.len() / count);
        let widths = (config.hc_mix(), config.n_embd);
        each_row_of_two(
            self.backend(),
            (&mut mixes, &mut inputs),
            widths,
            &|token, mix, input| {
                let streams = &streams[token * width..(token + 1) * width];
                (ops.mix)(mix, streams, &mixing);
                (ops.gather)(&mix[..count], streams, input);
                (ops.rms)(input, Some(norm), config.rms_eps);
            },
        );
        (mixes, inputs)
    }

    /// The last streams of some tokens, mixed into one and normalised: what the output matrix takes, `[tokens][n_embd]`.
    pub(crate) fn mixed(&self, hyper: &Hyper, norm: &[f32], streams: &[f32]) -> Vec<f32> {
        let (config, ops) = (self.config(), self.backend().ops());
        let (mixing, width) = (self.mixing(hyper), config.hidden_width());
        let mut mixes = self.hyper_raw(hyper, streams);
        let mut x = vec![0.0; streams.len() / config.hc.streams];
        let rows = streams
            .chunks_exact(width)
            .zip(mixes.chunks_exact_mut(config.hc.streams));
        for ((streams, mix), x) in rows.zip(x.chunks_exact_mut(config.n_embd)) {
            head_weights(mix, streams, &mixing);
            (ops.gather)(mix, streams, x);
            (ops.rms)(x, Some(norm), config.rms_eps);
        }
        x
    }

    /// Writes a block's outputs back into the streams.
    pub(crate) fn close(&self, mixes: &[f32], block: &[f32], streams: &mut [f32]) {
        let (width, n_embd, mix) = (
            self.config().hidden_width(),
            self.config().n_embd,
            self.config().hc_mix(),
        );
        let scatter = self.backend().ops().scatter;
        self.backend().each_row(streams, width, &|token, streams| {
            scatter(
                &mixes[token * mix..(token + 1) * mix],
                &block[token * n_embd..(token + 1) * n_embd],
                streams,
            );
        });
    }
}
