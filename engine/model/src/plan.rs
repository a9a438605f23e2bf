//! What layers weigh, and which of them go to which machine.
//!
//! Every stage holds its own layers. The last machine decodes after the handoff, so it holds the whole model and the KV of all layers, and
//! computes its share of prefill too.

use ds4_gguf::tensors::check;
use ds4_gguf::{Gguf, GgufError, LayerSpan, ModelConfig};
use thiserror::Error;

use crate::{KvLayout, Numerics};

/// Share of a machine's memory that a proposal leaves free: hidden states of the chunks in flight, staging and the process itself.
const HEADROOM: u64 = 16;

/// Bytes of one model, by part.
#[derive(Clone, Debug, PartialEq)]
pub struct Sizes {
    /// The token embedding: first stage only.
    pub embedding: u64,
    /// Weights of each layer.
    pub layers: Vec<u64>,
    /// The output head: last stage only.
    pub head: u64,
    /// Row kinds and sizes of the KV.
    pub layout: KvLayout,
}

impl Sizes {
    /// Measures the tensors of a file, all of them checked.
    ///
    /// # Errors
    /// Names the first tensor that is missing or not what the config implies.
    pub fn of(gguf: &Gguf, config: &ModelConfig, numerics: Numerics) -> Result<Self, GgufError> {
        let mut sizes = Self {
            embedding: 0,
            layers: vec![0; config.n_layer],
            head: 0,
            layout: KvLayout::new(config, numerics),
        };
        for tensor in check(gguf, config, LayerSpan::full(config.n_layer))? {
            *sizes.part(&tensor.name) += tensor.bytes;
        }
        Ok(sizes)
    }

    /// The part that a tensor belongs to, by its name.
    fn part(&mut self, name: &str) -> &mut u64 {
        let layer = name
            .strip_prefix("blk.")
            .and_then(|rest| rest.split('.').next())
            .and_then(|number| number.parse::<usize>().ok());
        match layer.and_then(|layer| self.layers.get_mut(layer)) {
            Some(layer) => layer,
            None if name.starts_with("token_embd.") => &mut self.embedding,
            None => &mut self.head,
        }
    }

    /// Bytes of weights that a span maps.
    #[must_use]
    pub fn weights(&self, span: LayerSpan) -> u64 {
        let embedding = if span.first == 0 { self.embedding } else { 0 };
        let head = if span.head { self.head } else { 0 };
        embedding + self.layers[span.layers()].iter().sum::<u64>() + head
    }

    /// Weights of a span and the KV of its layers at `context` tokens.
    #[must_use]
    pub fn resident(&self, span: LayerSpan, context: u64) -> u64 {
        self.weights(span) + self.layout.bytes(span.layers(), context)
    }

    fn full(&self) -> LayerSpan {
        LayerSpan::full(self.layers.len())
    }
}

/// One machine's part of a proposal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Layers that it computes during prefill.
    pub span: LayerSpan,
    /// Bytes that it has.
    pub memory: u64,
    /// Bytes that weights and KV take; on the last machine those of the whole model.
    pub needed: u64,
}

/// Why no split was found.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PlanError {
    /// No machine, or more machines than layers.
    #[error("machines: expected 1 to {layers} (the model's layers), found {found}")]
    Machines {
        /// Layers of the model.
        layers: usize,
        /// Machines given.
        found: usize,
    },
    /// The machine that decodes is too small for the model.
    #[error(
        "machine {at} (the last one decodes and holds every layer): expected at least {expected} bytes, found {found}{hint}"
    )]
    Output {
        /// Number of the machine, from 1.
        at: usize,
        /// Bytes that it must have.
        expected: u64,
        /// Bytes that it has.
        found: u64,
        /// What would help, or nothing.
        hint: String,
    },
    /// The other machines do not hold the layers that they would have to compute.
    #[error(
        "machines 1 to {machines}: expected room for one layer each, found {found} bytes on the smallest and {expected} needed"
    )]
    Stages {
        /// Machines before the last.
        machines: usize,
        /// Bytes that the smallest layer takes.
        expected: u64,
        /// Bytes of the smallest machine.
        found: u64,
    },
}

/// Proposes layers for machines in pipeline order, the last of which decodes: within every machine's memory, the largest share of weights
/// as small as possible, since the slowest stage sets the pace of prefill.
///
/// # Errors
/// When a machine is too small or there are more machines than layers.
pub fn split(sizes: &Sizes, memory: &[u64], context: u64) -> Result<Vec<Share>, PlanError> {
    let layers = sizes.layers.len();
    let Some((last, stages)) = memory.split_last().filter(|_| memory.len() <= layers) else {
        return Err(PlanError::Machines {
            layers,
            found: memory.len(),
        });
    };
    let whole = sizes.resident(sizes.full(), context);
    if whole > usable(*last) {
        return Err(too_small_to_decode(memory, whole));
    }
    let fits = |machine: usize, span: LayerSpan| sizes.resident(span, context) <= usable(stages[machine]);
    let spans = balance(sizes, memory.len(), fits).ok_or_else(|| no_room(sizes, stages, context))?;
    let share = |(span, memory): (LayerSpan, &u64)| Share {
        span,
        memory: *memory,
        needed: if span.head {
            whole
        } else {
            sizes.resident(span, context)
        },
    };
    Ok(spans.into_iter().zip(memory).map(share).collect())
}

const fn usable(memory: u64) -> u64 {
    memory - memory / HEADROOM
}

/// Memory of which `bytes` can be used.
const fn with_headroom(bytes: u64) -> u64 {
    bytes + bytes.div_ceil(HEADROOM - 1)
}

fn too_small_to_decode(memory: &[u64], whole: u64) -> PlanError {
    let other = memory.iter().position(|bytes| usable(*bytes) >= whole);
    PlanError::Output {
        at: memory.len(),
        expected: with_headroom(whole),
        found: memory.last().copied().unwrap_or(0),
        hint: other.map_or_else(String::new, |i| {
            format!("; machine {} is large enough: name it last", i + 1)
        }),
    }
}

fn no_room(sizes: &Sizes, stages: &[u64], context: u64) -> PlanError {
    let one = |layer| LayerSpan {
        first: layer,
        last: layer,
        head: false,
    };
    let needed = (0..sizes.layers.len()).map(|layer| sizes.resident(one(layer), context));
    PlanError::Stages {
        machines: stages.len(),
        expected: with_headroom(needed.min().unwrap_or(0)),
        found: stages.iter().copied().min().unwrap_or(0),
    }
}

/// The largest share so far, and where the last machine's layers start.
#[derive(Clone, Copy)]
struct Best {
    largest: u64,
    first: usize,
}

/// Contiguous spans, one per machine, with the smallest largest share. `fits` is asked for all machines but the last, which takes the head.
fn balance(
    sizes: &Sizes,
    machines: usize,
    fits: impl Fn(usize, LayerSpan) -> bool,
) -> Option<Vec<LayerSpan>> {
    let layers = sizes.layers.len();
    // best[machine][end]: the machines up to this one compute layers 0..end.
    let mut best: Vec<Vec<Option<Best>>> = Vec::with_capacity(machines);
    for machine in 0..machines {
        let head = machine + 1 == machines;
        let choose = |end: usize| {
            let starts = if machine == 0 { 0..1 } else { machine..end };
            let option = |first: usize| {
                let span = LayerSpan {
                    first,
                    last: end.checked_sub(1)?,
                    head,
                };
                let before = match machine.checked_sub(1) {
                    Some(previous) => best[previous][first]?.largest,
                    None => 0,
                };
                // The embedding is read, not computed: it takes memory but no time.
                let work =
                    sizes.layers[span.layers()].iter().sum::<u64>() + if head { sizes.head } else { 0 };
                let largest = before.max(work);
                (head || fits(machine, span)).then_some(Best { largest, first })
            };
            starts.filter_map(option).min_by_key(|best| best.largest)
        };
        let row = (0..=layers).map(choose).collect();
        best.push(row);
    }
    let mut spans = Vec::with_capacity(machines);
    let mut end = layers;
    for (machine, row) in best.iter().enumerate().rev() {
        let first = row[end]?.first;
        spans.push(LayerSpan {
            first,
            last: end - 1,
            head: machine + 1 == machines,
        });
        end = first;
    }
    spans.reverse();
    Some(spans)
}
