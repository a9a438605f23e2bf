//! The device's implementation of what the engine sees of a loaded run of layers.

use std::sync::{Arc, Mutex, PoisonError};

use ds4_gguf::{Gguf, LayerSpan, Weights as Mapped};
use ds4_kernels::ops::rope::Rope;
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::{Arena, Device, MetalError};
use ds4_model::{KvLayout, ModelError, Numerics, Part, SliceInfo, ropes, stop};

use crate::check;
use crate::forward::BRIEF;
use crate::load::{Head, Layer};
use crate::loader::Loader;
use crate::pass::Pass;
use crate::tensors::failed;

/// A loaded run of layers on a Metal device. Calls take turns: the device computes one pass at a time.
#[derive(Debug)]
pub struct MetalSlice {
    pub(crate) info: SliceInfo,
    pub(crate) device: Arc<Device>,
    layers: Vec<Layer>,
    pub(crate) embedding: Option<Weights>,
    pub(crate) head: Option<Head>,
    ropes: (Rope, Rope),
    scratch: Mutex<Arena>,
}

impl MetalSlice {
    /// Maps the layers of `span` for `device`. `progress(done, total)` in bytes while the file is read.
    ///
    /// # Errors
    /// When the file is not usable, when the numerics are not the served ones, or when the device has no room: then before anything is read, with
    /// the bytes that it takes.
    pub fn load(
        gguf: &Gguf,
        span: LayerSpan,
        numerics: Numerics,
        device: Arc<Device>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, ModelError> {
        let config = check::config(gguf, span, numerics)?;
        let mapped = Arc::new(Mapped::map_unread(gguf, &config, span)?);
        let need = check::Need {
            weights: mapped.bytes(),
            loading: 0,
            graphs: 0,
        };
        need.check(device.memory())
            .map_err(|error| failed(&device, error))?;
        mapped.touch(progress);
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
        let info = SliceInfo {
            span,
            numerics,
            fingerprint: gguf.fingerprint()?,
            backend: "metal".into(),
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
            device,
        })
    }

    /// The device.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs `work` with the scratch memory to itself, which starts empty. A turn that panicked left nothing in it that matters.
    pub(crate) fn turn<T>(
        &self,
        work: impl FnOnce(&Arena) -> Result<T, MetalError>,
    ) -> Result<T, ModelError> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let mut result = scratch.reset(&self.device).and_then(|()| work(&scratch));
        // What failed half-way may have left launches that use the scratch.
        if let (Err(error), true) = (self.device.wait(), result.is_ok()) {
            result = Err(error);
        }
        result.map_err(|error| failed(&self.device, error))
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
            let pass = Pass::new(device, arena, &self.info.config, &self.ropes, parts)?;
            let on_device = arena.upload(device, streams)?;
            for (index, number) in span.layers().enumerate() {
                if stop::requested() {
                    return Ok(false);
                }
                pass.layer(
                    number,
                    index,
                    &self.layers[number - self.info.span.first],
                    on_device,
                )?;
                // Or all layers were submitted before anybody could leave.
                if pass.tokens() > BRIEF {
                    device.settle()?;
                }
            }
            // The streams are read before the KV is extended: nothing is changed when a kernel failed.
            let mut computed = vec![0.0; streams.len()];
            device.read(on_device, &mut computed)?;
            pass.finish(parts)?;
            streams.copy_from_slice(&computed);
            Ok(true)
        })?;
        if done { Ok(()) } else { Err(ModelError::Stopped) }
    }
}
