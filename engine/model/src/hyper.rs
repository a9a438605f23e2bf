//! The residual streams around a block.

use ds4_gguf::Weights;
use ds4_kernels::Backend;
use ds4_kernels::ops::hyper::Mix;
use ds4_kernels::ops::norm::rms;

use crate::graph::Graph;
use crate::layer::Hyper;
use crate::matrix::multiply;

impl<B: Backend> Graph<B> {
    /// What a connection's matrix gives for each token: `[tokens][rows]`.
    pub(crate) fn hyper_raw(&self, weights: &Weights, hyper: &Hyper, streams: &[f32]) -> Vec<f32> {
        let width = hyper.matrix.cols();
        let mut flat = streams.to_vec();
        let eps = self.config().rms_eps;
        self.backend()
            .each_row(&mut flat, width, &|_, token| rms(token, None, eps));
        let matrix = hyper.matrix.part(weights, 0, hyper.matrix.rows());
        multiply(self.backend(), self.numerics(), &matrix, &flat)
    }

    /// One mix per token, and the block's inputs `[tokens][n_embd]`.
    pub(crate) fn open(&self, weights: &Weights, hyper: &Hyper, streams: &[f32]) -> (Vec<Mix>, Vec<f32>) {
        let config = self.config();
        let raw = self.hyper_raw(weights, hyper, streams);
        let mix = |raw: &[f32]| {
            let (count, iterations, eps) = (config.hc.streams, config.hc.sinkhorn_iterations, config.hc.eps);
            Mix::new(raw, &hyper.scale, &hyper.base, count, iterations, eps)
        };
        let mixes: Vec<Mix> = raw.chunks_exact(config.hc_mix()).map(mix).collect();
        let mut inputs = vec![0.0; mixes.len() * config.n_embd];
        let width = config.hidden_width();
        self.backend()
            .each_row(&mut inputs, config.n_embd, &|token, input| {
                mixes[token].gather(&streams[token * width..(token + 1) * width], input);
            });
        (mixes, inputs)
    }

    /// Writes a block's outputs back into the streams.
    pub(crate) fn close(&self, mixes: &[Mix], block: &[f32], streams: &mut [f32]) {
        let (width, n_embd) = (self.config().hidden_width(), self.config().n_embd);
        self.backend().each_row(streams, width, &|token, streams| {
            mixes[token].scatter(&block[token * n_embd..(token + 1) * n_embd], streams);
        });
    }
}
