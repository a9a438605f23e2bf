//! One pass through the layers: tokens of one session or of several, beside each other.

use ds4_gguf::ModelConfig;
use ds4_kernels::ops::rope::Rope;
use ds4_kernels_metal::hyper;
use ds4_kernels_metal::{Arena, Buffer, Device, MetalError, Slice, norm};
use ds4_model::Part;

use crate::chunk::{Chunk, chunks, flat, narrow};
use crate::forward::mixing;
use crate::input::Input;
use crate::load::{Hyper, Layer};
use crate::missing::{deliver, missing};

/// What the operations of all layers share.
pub(crate) struct Pass<'a> {
    pub(crate) device: &'a Device,
    pub(crate) arena: &'a Arena,
    pub(crate) config: &'a ModelConfig,
    pub(crate) ropes: &'a (Rope, Rope),
    /// Token ids.
    pub(crate) ids: Slice<'a, u32>,
    /// Positions of the tokens in their sessions.
    pub(crate) positions: Slice<'a, u32>,
    /// Rotations of the tokens, `[tokens][n_rot]`, on layers without compression and with it.
    rotations: [Slice<'a, f32>; 2],
    /// Compressed rows that each token sees, for every ratio of the model.
    seen: Vec<(u32, Slice<'a, u32>)>,
    pub(crate) chunks: Vec<Chunk>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(
        device: &'a Device,
        arena: &'a Arena,
        config: &'a ModelConfig,
        ropes: &'a (Rope, Rope),
        parts: &mut [Part<'_>],
    ) -> Result<Self, MetalError> {
        let ids: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let of_part = |part: &Part<'_>| (part.kv.frontier()..).take(part.tokens.len());
        let positions: Vec<u64> = parts.iter().flat_map(of_part).collect();
        let rotations = |rope: &Rope| arena.upload(device, &flat(positions.iter().map(|at| rope.at(*at))));
        let mut ratios = config.ratios.clone();
        ratios.sort_unstable();
        ratios.dedup();
        let seen = |ratio: u32| {
            let of_token = |at: &u64| narrow((at + 1) / u64::from(ratio));
            let seen: Vec<u32> = positions.iter().map(of_token).collect();
            Ok((ratio, arena.upload(device, &seen)?))
        };
        let at: Vec<u32> = positions.iter().map(|at| narrow(*at)).collect();
        Ok(Self {
            device,
            arena,
            config,
            ropes,
            ids: arena.upload(device, &ids)?,
            positions: arena.upload(device, &at)?,
            rotations: [rotations(&ropes.0)?, rotations(&ropes.1)?],
            seen: ratios
                .into_iter()
                .filter(|ratio| *ratio > 0)
                .map(seen)
                .collect::<Result<_, MetalError>>()?,
            chunks: chunks(device, config, parts)?,
        })
    }

    pub(crate) const fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn take<T: ds4_kernels_metal::Element>(&self, len: usize) -> Result<Slice<'a, T>, MetalError> {
        self.arena.take(self.device, len)
    }

    pub(crate) fn input(&self, values: Slice<'a, f32>, cols: usize) -> Input<'a> {
        Input::new(self.device, self.arena, values, cols)
    }

    /// The tokens' rotations on layers with or without compression.
    pub(crate) const fn rotations(&self, compressed: bool) -> Slice<'a, f32> {
        self.rotations[compressed as usize]
    }

    /// Rotations of the groups of `ratio` tokens that a chunk completes.
    pub(crate) fn rotations_of_groups(&self, chunk: usize, ratio: u32) -> Result<Slice<'a, f32>, MetalError> {
        let ratio = u64::from(ratio);
        let groups = self.chunks[chunk].groups(ratio);
        self.arena.upload(
            self.device,
            &flat(groups.map(|group| self.ropes.1.at(group * ratio))),
        )
    }

    /// Compressed rows that each token sees on layers of `ratio`; all see none where there is no compression.
    pub(crate) fn seen(&self, ratio: u32) -> Option<Slice<'a, u32>> {
        self.seen
            .iter()
            .find(|(of, _)| *of == ratio)
            .map(|(_, seen)| *seen)
    }

    /// Replaces `streams` by what the layer makes of them.
    pub(crate) fn layer(
        &self,
        number: usize,
        index: usize,
        layer: &Layer,
        streams: Slice<'a, f32>,
    ) -> Result<(), MetalError> {
        let mark = self.arena.mark();
        let (mix, x) = self.open(&layer.hyper_attention, &layer.attention.norm, streams)?;
        let y = self.attention(number, index, &layer.attention, x)?;
        self.close(mix, y, streams)?;
        self.arena.release(mark);
        let (mix, x) = self.open(&layer.hyper_feed_forward, &layer.feed_forward.norm, streams)?;
        let y = self.feed_forward(number, &layer.feed_forward, x)?;
        self.close(mix, y, streams)?;
        self.arena.release(mark);
        // The device starts on the layer while the host encodes the next one.
        self.device.submit()
    }

    /// One mix per token, and the block's normalised inputs `[tokens][n_embd]`.
    fn open(
        &self,
        connection: &Hyper,
        weight: &Buffer<f32>,
        streams: Slice<'a, f32>,
    ) -> Result<(Slice<'a, f32>, Slice<'a, f32>), MetalError> {
        let (device, config, n) = (self.device, self.config, self.config.hc.streams);
        let mix = self
            .input(streams, config.hidden_width())
            .times(&connection.matrix)?;
        hyper::mix(device, mix, streams, &mixing(config, connection))?;
        let x = self.take(streams.len() / n)?;
        hyper::gather(device, mix, config.hc_mix(), streams, n, x)?;
        norm::rms(device, x, weight.all(), config.rms_eps, x)?;
        Ok((mix, x))
    }

    fn close(
        &self,
        mix: Slice<'_, f32>,
        block: Slice<'_, f32>,
        streams: Slice<'_, f32>,
    ) -> Result<(), MetalError> {
        hyper::scatter(self.device, mix, block, self.config.hc.streams, streams)
    }

    /// Gives every part's KV the rows that came to be, and the device's rows back.
    pub(crate) fn finish(self, parts: &mut [Part<'_>]) -> Result<(), MetalError> {
        let (wanted, mut bytes) = (missing(parts), Vec::new());
        for rows in &wanted {
            let of_kind = &self.chunks[rows.part].session.layers[rows.index][rows.of_layer];
            for slots in of_kind.segments(rows.rows.clone()) {
                bytes.extend(self.device.download(of_kind.all().range(slots))?);
            }
        }
        deliver(self.chunks, parts, &wanted, &bytes);
        Ok(())
    }
}
