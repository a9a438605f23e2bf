//! The device's implementation of what the engine sees of a loaded run of layers.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_gguf::{Gguf, LayerSpan, Weights as Mapped};
use ds4_kernels::ops::rope::Rope;
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::{Arena, CudaError, Device, Graphs, Staging, Way};
use ds4_model::{KvLayout, ModelError, Numerics, Part, SliceInfo, ropes, stop};

use crate::check;
use crate::forward::BRIEF;
use crate::load::{Head, Layer};
use crate::loader::Loader;
use crate::outgoing::Outgoing;
use crate::pass::Pass;
use crate::room;
use crate::tensors::failed;

/// A loaded run of layers on a CUDA device. Calls take turns: the device computes one pass at a time.
#[derive(Debug)]
pub struct CudaSlice {
    pub(crate) info: SliceInfo,
    pub(crate) device: Arc<Device>,
    layers: Vec<Layer>,
    pub(crate) embedding: Option<Weights>,
    pub(crate) head: Option<Head>,
    ropes: (Rope, Rope),
    scratch: Mutex<Arena>,
    /// Where rows arrive on the host; of one pass at a time.
    staging: Mutex<Staging>,
    /// A graph's launches for each layer; none when they are submitted one by one.
    graphs: Option<Mutex<Graphs>>,
    way: Way,
}

/// How a token is decoded. The bits are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decode {
    /// By one graph for each layer.
    Graphs,
    /// By launches one by one.
    Launches,
}

impl CudaSlice {
    /// Copies the layers of `span` to `device`. `progress(done, total)` in bytes that are there.
    ///
    /// # Errors
    /// When the file is not usable, when the numerics are not the served ones, when the driver refuses graphs that are asked for, or when the device has no
    /// room: then before anything is copied, with the bytes that it takes.
    pub fn load(
        gguf: &Gguf,
        span: LayerSpan,
        numerics: Numerics,
        device: Arc<Device>,
        decode: Decode,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let config = check::config(gguf, span, numerics)?;
        let mapped = Mapped::map_unread(gguf, &config, span)?;
        let layers = span.layers().count();
        room::check(&device, mapped.bytes(), layers, decode).map_err(|error| failed(&device, error))?;
        let total = mapped.bytes();
        progress(0, total);
        let mut landed = |bytes: u64| progress(bytes.min(total), total);
        let loader = Loader::new(&device, &mapped, &config, &mut landed)?;
        let layers = span
            .layers()
            .map(|layer| Layer::load(&loader, layer))
            .collect::<Result<_, _>>()?;
        let embedding = (span.first == 0)
            .then(|| loader.matrix("token_embd.weight"))
            .transpose()?;
        let head = span.head.then(|| Head::load(&loader)).transpose()?;
        let way = loader.finish()?;
        progress(total, total);
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
            graphs: (decode == Decode::Graphs).then(Mutex::default),
            way,
            device,
        })
    }

    /// How the weights reached the device.
    #[must_use]
    pub const fn way(&self) -> &Way {
        &self.way
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `work` with the scratch memory to itself, which starts empty. A turn that panicked left nothing in it that matters.
    pub(crate) fn turn<T>(&self, work: impl FnOnce(&Arena) -> Result<T, CudaError>) -> Result<T, ModelError> {
        let scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let empty = ds4_kernels_cuda::Mark::default();
        scratch.release(empty);
        let result = work(&scratch).map_err(|error| failed(&self.device, error));
        scratch.release(empty);
        result
    }

    pub(crate) fn pass(&self, parts: &mut [Part<'_>], streams: &mut [f32]) -> Result<(), ModelError> {
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
