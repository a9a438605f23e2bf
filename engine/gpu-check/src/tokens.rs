//! What a decoded token costs beside its arithmetic: a model with the layers of Flash whose weights are next to nothing, by graphs and by launches one
//! by one.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use ds4_gguf::LayerSpan;
use ds4_kernels_cuda::Device;
use ds4_model::{Kv, ModelSlice};
use ds4_synth::{Dims, Preset};

use crate::correct::Written;

/// Medians in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Token {
    /// Layers of the model.
    pub layers: usize,
    /// A token by graphs.
    pub graphs: f64,
    /// A token by launches one by one.
    pub plain: f64,
}

/// The layers of Flash, or few of them.
fn dims(layers: usize) -> Dims {
    let mut ratios = Dims::flash().ratios;
    ratios.truncate(layers);
    Dims {
        n_layer: layers,
        ratios,
        ..Dims::preset(Preset::Micro)
    }
}

/// Decodes `count` tokens both ways in turn, on the host's clock. The first quarter is not counted: graphs are made, of 200 tokens also those for rows that
/// the indexer chooses.
///
/// # Errors
/// When the model cannot be written or loaded, when the device fails, and when the two ways differ in a bit.
pub fn decode(device: &Arc<Device>, layers: usize, count: usize) -> Result<Token> {
    let model = Written::of(&dims(layers))?;
    let full = LayerSpan::full(layers);
    let slices = model.both_ways(device, full)?;
    let mut ways = slices
        .each_ref()
        .map(|slice| (slice, Kv::new(&slice.info().layout, full), Vec::new()));
    for number in 0..count {
        #[allow(clippy::cast_possible_truncation)] // ids of a small vocabulary
        let id = 3 + (number * 37 % 250) as u32;
        let [a, b] = &mut ways;
        let streams = [a, b].map(|(slice, kv, seconds)| -> Result<_> {
            let mut hidden = slice.embed(&[id])?;
            let begun = Instant::now();
            slice.forward(&[id], &mut hidden, kv)?;
            if number >= count / 4 {
                seconds.push(begun.elapsed().as_secs_f64());
            }
            Ok(hidden)
        });
        let [a, b] = streams;
        ensure!(
            a?.as_slice() == b?.as_slice(),
            "token {number}: graphs and launches one by one give other streams"
        );
    }
    let [graphs, plain] = ways.map(|(_, _, mut seconds)| {
        seconds.sort_unstable_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    });
    Ok(Token {
        layers,
        graphs,
        plain,
    })
}
