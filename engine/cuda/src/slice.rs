//! The device's implementation of what the engine sees of a loaded run of layers.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_gguf::{Gguf, LayerSpan, ModelConfig, Weights as Mapped};
use ds4_kernels::ops::rope::Rope;
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::{Arena, CudaError, Device, Graphs, Staging, embedding, hyper, norm};
use ds4_model::{Hidden, KvLayout, ModelError, ModelSlice, Numerics, Part, SliceInfo, ropes, stop};

use crate::input::Input;
use crate::load::{Head, Layer, Loader, failed};
use crate::outgoing::Outgoing;
use crate::pass::{Pass, mixing};

/// Tokens that go through all layers together: bounds the scratch memory. Any number gives the same bits.
const PASS: usize = 512;

/// A pass of fewer tokens is over before it could be told to end.
const BRIEF: usize = 64;

/// A loaded run of layers on a CUDA device. Calls take turns: the device computes one pass at a time.
#[derive(Debug)]
pub struct CudaSlice {
    info: SliceInfo,
    device: Arc<Device>,
    layers: Vec<Layer>,
    embedding: Option<Weights>,
    head: Option<Head>,
    ropes: (Rope, Rope),
    scratch: Mutex<Arena>,
    /// Where rows arrive on the host; of one pass at a time.
    staging: Mutex<Staging>,
    /// A graph's launches for each layer; none when they are submitted one by one.
    graphs: Option<Mutex<Graphs>>,
}

impl CudaSlice {
    /// Copies the layers of `span` to `device`. `progress(done, total)` in bytes while the file is read.
    ///
    /// # Errors
    /// When the file is not usable, when the numerics are not the served ones, or when the device has no room: then before anything is
    /// copied, with the bytes that it takes.
    pub fn load(
        gguf: &Gguf,
        span: LayerSpan,
        numerics: Numerics,
        device: Arc<Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        if numerics != Numerics::Canonical {
            return Err(ModelError::Value {
                name: "numerics".into(),
                expected: format!(
                    "{} on a CUDA device (--backend cpu has the others)",
                    Numerics::Canonical
                ),
                found: numerics.to_string(),
            });
        }
        let config = ModelConfig::from_gguf(gguf)?;
        if span.last >= config.n_layer || span.first > span.last {
            let owned = LayerSpan::full(config.n_layer);
            return Err(ModelError::Span {
                asked: span.to_string(),
                owned,
            });
        }
        let mapped = Mapped::map(gguf, &config, span, progress)?;
        check_room(&device, mapped.bytes()).map_err(|error| failed(&device, error))?;
        let loader = Loader {
            device: &device,
            mapped: &mapped,
            config: &config,
        };
        let layers = span
            .layers()
            .map(|layer| Layer::load(&loader, layer))
            .collect::<Result<_, _>>()?;
        let embedding = (span.first == 0)
            .then(|| loader.matrix("token_embd.weight"))
            .transpose()?;
        let head = span.head.then(|| Head::load(&loader)).transpose()?;
        let (major, minor) = device.facts().capability;
        let info = SliceInfo {
            span,
            numerics,
            fingerprint: gguf.fingerprint()?,
            backend: format!("cuda-sm{major}{minor}"),
            layout: KvLayout::new(&config, numerics),
            weight_bytes: mapped.bytes(),
            config: config.clone(),
        };
        Ok(Self {
            info,
            layers,
            embedding,
            head,
            ropes: ropes(&config),
            scratch: Mutex::default(),
            staging: Mutex::default(),
            graphs: Some(Mutex::default()),
            device,
        })
    }

    /// Whether a token is decoded by one graph for each layer, as it is at first, or by launches one by one. The bits are the same.
    #[must_use]
    pub fn by_graphs(mut self, on: bool) -> Self {
        self.graphs = on.then(Mutex::default);
        self
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `work` with the scratch memory to itself, which starts empty. A turn that panicked left nothing in it that matters.
    fn turn<T>(&self, work: impl FnOnce(&Arena) -> Result<T, CudaError>) -> Result<T, ModelError> {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = ds4_kernels_cuda::Mark::default();
        scratch.release(empty);
        let result = work(&scratch).map_err(|error| failed(&self.device, error));
        scratch.release(empty);
        result
    }

    fn pass(&self, parts: &mut [Part<'_>], streams: &mut [f32]) -> Result<(), ModelError> {
        let Some(span) = parts.first().map(|part| part.kv.span()) else {
            return Ok(());
        };
        if streams.is_empty() {
            return Ok(());
        }
        let done = self.turn(|arena| {
            let device = &*self.device;
            let mut staging = self.staging.lock().unwrap_or_else(PoisonError::into_inner);
            // Of more than one token a layer has other shapes from pass to pass, and launches that take longer than to submit them.
            let decodes = parts.iter().all(|part| part.tokens.len() == 1);
            let graphs = self.graphs.as_ref().filter(|_| decodes);
            let mut graphs = graphs.map(|graphs| graphs.lock().unwrap_or_else(PoisonError::into_inner));
            let pass = Pass::new(device, arena, &self.info.config, &self.ropes, parts)?;
            let on_device = arena.upload(device, streams)?;
            let mut rows = Outgoing::new(&pass, parts, &mut staging)?;
            let (layers, long) = (span.layers().count(), pass.tokens() > BRIEF);
            for (index, number) in span.layers().enumerate() {
                if stop::requested() {
                    return Ok(false);
                }
                let weights = &self.layers[number - self.info.span.first];
                let layer = || pass.layer(number, index, weights, on_device);
                match &mut graphs {
                    Some(graphs) => device.replay(graphs, number, layer)?,
                    None => layer()?,
                }
                if long {
                    rows.send(&pass, &(index..index + 1))?;
                    // Or all layers were submitted before anybody could leave.
                    device.settle()?;
                }
            }
            if !long {
                // Few rows: one copy of them costs less than one for each layer.
                rows.send(&pass, &(0..layers))?;
            }
            // The streams are read before the KV is extended: nothing is changed when a kernel failed.
            let mut computed = vec![0.0; streams.len()];
            device.read(on_device, &mut computed)?;
            rows.deliver(pass, parts)?;
            streams.copy_from_slice(&computed);
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(ModelError::Stopped) }
    }
}

/// Weights, and a tenth of them for sessions and scratch, which takes a block at least, must fit what is free.
fn check_room(device: &Device, weights: u64) -> Result<(), CudaError> {
    let (free, total) = device.memory()?;
    let asked = weights + (weights / 10).max(Arena::BLOCK as u64);
    if asked <= free {
        return Ok(());
    }
    Err(CudaError::Memory {
        what: "a model's weights with room for sessions and scratch",
        asked,
        free,
        total,
    })
}

impl ModelSlice for CudaSlice {
    fn info(&self) -> &SliceInfo {
        &self.info
    }

    fn embed(&self, tokens: &[u32]) -> Result<Hidden, ModelError> {
        self.info.check_tokens(tokens)?;
        let embedding = self
            .embedding
            .as_ref()
            .ok_or_else(|| self.info.lacks("0 (the embedding)"))?;
        let (width, streams) = (self.info.config.hidden_width(), self.info.config.hc.streams);
        let values = self.turn(|arena| {
            let device = &*self.device;
            let (ids, out) = (
                arena.upload(device, tokens)?,
                arena.take(device, tokens.len() * width)?,
            );
            embedding::embed(device, embedding, ids, streams, out)?;
            device.download(out)
        })?;
        Hidden::from_vec(width, values).ok_or_else(|| self.info.lacks("hidden states of width 0"))
    }

    fn forward_batch(&self, parts: &mut [Part<'_>], hidden: &mut Hidden) -> Result<(), ModelError> {
        self.info.check_parts(parts)?;
        let tokens = parts.iter().map(|part| part.tokens.len()).sum();
        self.info.check_hidden(hidden, tokens)?;
        for part in &*parts {
            self.check_positions(part)?;
        }
        let (width, mut streams) = (hidden.width(), hidden.as_mut_slice());
        if tokens <= PASS {
            return self.pass(parts, streams);
        }
        for part in parts {
            for tokens in part.tokens.chunks(PASS) {
                let (chunk, rest) = streams.split_at_mut(tokens.len() * width);
                self.pass(&mut [Part { tokens, kv: part.kv }], chunk)?;
                streams = rest;
            }
        }
        Ok(())
    }

    fn logits_batch(&self, hidden: &Hidden, tokens: &[usize]) -> Result<Vec<f32>, ModelError> {
        let head = self
            .head
            .as_ref()
            .ok_or_else(|| self.info.lacks("output (the head)"))?;
        let needed = tokens.iter().map(|token| token + 1).max().unwrap_or(0);
        if needed > hidden.tokens() || hidden.width() != self.info.config.hidden_width() {
            self.info.check_hidden(hidden, needed)?;
        }
        let streams: Vec<f32> = tokens
            .iter()
            .flat_map(|token| hidden.token(*token))
            .copied()
            .collect();
        self.turn(|arena| self.head(arena, head, &streams, tokens.len()))
    }
}

impl CudaSlice {
    fn head(
        &self,
        arena: &Arena,
        head: &Head,
        streams: &[f32],
        tokens: usize,
    ) -> Result<Vec<f32>, CudaError> {
        let (device, config) = (&*self.device, &self.info.config);
        let streams = arena.upload(device, streams)?;
        let mix = Input::new(device, arena, streams, config.hidden_width()).times(&head.hyper.matrix)?;
        let n = config.hc.streams;
        hyper::head(device, mix, streams, &mixing(config, &head.hyper))?;
        let x = arena.take(device, tokens * config.n_embd)?;
        hyper::gather(device, mix, n, streams, n, x)?;
        norm::rms(device, x, head.norm.all(), config.rms_eps, x)?;
        device.download(Input::new(device, arena, x, config.n_embd).times(&head.output)?)
    }

    /// Kernels count positions with 32 bits.
    fn check_positions(&self, part: &Part<'_>) -> Result<(), ModelError> {
        let end = part.kv.frontier() + part.tokens.len() as u64;
        if u32::try_from(end).is_ok() {
            return Ok(());
        }
        Err(ModelError::Value {
            name: "position".into(),
            expected: format!("below {} on a CUDA device", u32::MAX),
            found: end.to_string(),
        })
    }
}
