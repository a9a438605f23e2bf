//! What one token costs at least, from the model's shapes: the yardstick of the roofline.

use anyhow::Result;
use ds4_gguf::{Gguf, LayerSpan, ModelConfig, TensorInfo, tensors};
use ds4_kernels_cpu::matmuls::{self, Format, Speed};

/// Tokens of a chunk whose products are measured.
const CHUNK: usize = 512;

/// Weights and operations of one token in all layers and the head.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Work {
    /// Bytes of weights that every token touches.
    pub(crate) dense_bytes: f64,
    /// Bytes of all routed experts.
    pub(crate) expert_bytes: f64,
    /// Share of the routed experts that one token touches.
    pub(crate) used: f64,
    /// 8-bit operations of a token before the head (quantised matrices); a multiply and an add are two.
    pub(crate) int8: f64,
    /// `f32` operations of the matrices that are kept unquantised.
    pub(crate) f32: f64,
    /// 8-bit operations of the head, which prefill computes for its last token alone.
    pub(crate) head_int8: f64,
    /// The 8-bit operations before the head by format of the weights, of the routed experts and of all else.
    products: Vec<(Format, bool, f64)>,
}

impl Work {
    /// Counts over the tensors of the file.
    pub(crate) fn of(gguf: &Gguf, config: &ModelConfig) -> Result<Self> {
        #[allow(clippy::cast_precision_loss)] // counts of experts
        let used = config.n_used as f64 / config.n_expert as f64;
        let mut work = Self {
            used,
            ..Self::default()
        };
        for tensor in tensors::check(gguf, config, LayerSpan::full(config.n_layer))? {
            work.add(tensor);
        }
        Ok(work)
    }

    #[allow(clippy::cast_precision_loss)] // sizes of a file
    fn add(&mut self, tensor: &TensorInfo) {
        let rows = tensor.dims.get(1).copied().unwrap_or(1).max(1) as f64;
        let operations = 2.0 * tensor.dims.iter().map(|dim| *dim as f64).product::<f64>();
        let quantised = tensor.format.block_len() > 1;
        let name = tensor.name.as_str();
        if name == "token_embd.weight" || name.ends_with("tid2eid.weight") {
            // One row of a table, looked up.
            self.dense_bytes += tensor.bytes as f64 / rows;
        } else if name.ends_with("_exps.weight") {
            self.expert_bytes += tensor.bytes as f64;
            self.int8 += operations * self.used;
            self.count(tensor.format, true, operations * self.used);
        } else {
            self.dense_bytes += tensor.bytes as f64;
            match (quantised, name == "output.weight") {
                (true, true) => self.head_int8 += operations,
                (true, false) => {
                    self.int8 += operations;
                    self.count(tensor.format, false, operations);
                }
                (false, _) => self.f32 += operations,
            }
        }
    }

    fn count(&mut self, format: Format, routed: bool, operations: f64) {
        match self
            .products
            .iter_mut()
            .find(|product| (product.0, product.1) == (format, routed))
        {
            Some(product) => product.2 += operations,
            None => self.products.push((format, routed, operations)),
        }
    }

    /// What the products of a chunk reach, each format in its share; measured here, an expert with the tokens that fall on it were routing
    /// uniform.
    pub(crate) fn matmuls(&self, threads: usize) -> Result<Speed> {
        // What the operations take, and in units of what they would take at the peak.
        let (mut seconds, mut times) = (0.0, 0.0);
        for (format, routed, operations) in &self.products {
            #[allow(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                clippy::cast_precision_loss
            )]
            // a share of a few hundred
            let tokens = if *routed {
                (CHUNK as f64 * self.used).round().max(1.0) as usize
            } else {
                CHUNK
            };
            let speed = matmuls::measure(*format, tokens, threads)?;
            seconds += operations / speed.operations_per_second;
            times += operations / speed.share;
        }
        Ok(Speed {
            operations_per_second: self.int8 / seconds,
            share: self.int8 / times,
        })
    }

    /// Bytes of weights that one step of `batch` sessions touches: each matrix once, and the experts that at least one of
    /// the sessions is expected to be routed to, were routing uniform.
    pub(crate) fn bytes(&self, batch: usize) -> f64 {
        #[allow(clippy::cast_precision_loss)] // a batch of sessions
        let touched = 1.0 - (1.0 - self.used).powf(batch as f64);
        self.dense_bytes + self.expert_bytes * touched
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_touches_dense_weights_once_and_experts_by_chance() {
        let work = Work {
            dense_bytes: 100.0,
            expert_bytes: 1000.0,
            used: 0.125,
            ..Work::default()
        };
        assert_eq!(work.bytes(1), 225.0);
        assert!(work.bytes(8) > work.bytes(4) && work.bytes(1000) <= 1100.0);
    }
}
