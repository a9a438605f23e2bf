//! One pass through the layers: tokens of one session or of several, beside each other.

use ds4_gguf::ModelConfig;
use ds4_kernels::ops::rope::Rope;
use ds4_kernels_cuda::hyper;
use ds4_kernels_cuda::{Arena, Buffer, CudaError, Device, Slice, norm};
use ds4_model::Part;

use crate::chunk::{Chunk, chunks, flat, narrow};
use crate::forward::mixing;
use crate::input::Input;
use crate::load::{Hyper, Layer};

/// What the operations of all layers share.
pub(crate) struct Pass<'a> {
    pub(crate) device: &'a Device,
    pub(crate) arena: &'a Arena,
    pub(crate) config: &'a ModelConfig,
    /// Token ids.
    pub(crate) ids: Slice<'a, u32>,
    /// Positions of the tokens in their sessions.
    pub(crate) positions: Slice<'a, u32>,
    /// Rotations of the tokens, `[tokens][n_rot]`, on layers without compression and with it.
    rotations: [Slice<'a, f32>; 2],
    /// For every ratio of the model.
    ratios: Vec<OfRatio<'a>>,
    /// For every token that it sees no compressed row.
    pub(crate) none: Slice<'a, u32>,
    /// The group of every group of heads, `[tokens][o_groups]`.
    pub(crate) head_groups: Slice<'a, u32>,
    pub(crate) chunks: Vec<Chunk>,
}

/// What layers of one ratio share.
struct OfRatio<'a> {
    ratio: u32,
    /// Compressed rows that each token sees.
    seen: Slice<'a, u32>,
    /// Rotations of the groups that each chunk completes, `[groups][n_rot]`.
    groups: Vec<Slice<'a, f32>>,
}

impl<'a> Pass<'a> {
    /// Copies all that layers need to the device, so that they launch kernels and do nothing else.
    pub(crate) fn new(
        device: &'a Device,
        arena: &'a Arena,
        config: &'a ModelConfig,
        ropes: &(Rope, Rope),
        parts: &mut [Part<'_>],
    ) -> Result<Self, CudaError> {
        let ids: Vec<u32> = parts.iter().flat_map(|part| part.tokens).copied().collect();
        let of_part = |part: &Part<'_>| (part.kv.frontier()..).take(part.tokens.len());
        let positions: Vec<u64> = parts.iter().flat_map(of_part).collect();
        let rotations = |rope: &Rope| arena.upload(device, &flat(positions.iter().map(|at| rope.at(*at))));
        let at: Vec<u32> = positions.iter().map(|at| narrow(*at)).collect();
        let head_groups: Vec<u32> = (0..ids.len())
            .flat_map(|_| 0..narrow(config.o_groups as u64))
            .collect();
        let chunks = chunks(device, config, parts)?;
        let mut ratios = config.ratios.clone();
        ratios.sort_unstable();
        ratios.dedup();
        let of_ratio = |ratio: u32| {
            OfRatio::new(
                device,
                arena,
                (&ropes.1, config.n_rot),
                ratio,
                &positions,
                &chunks,
            )
        };
        Ok(Self {
            device,
            arena,
            config,
            ids: arena.upload(device, &ids)?,
            positions: arena.upload(device, &at)?,
            rotations: [rotations(&ropes.0)?, rotations(&ropes.1)?],
            ratios: ratios
                .into_iter()
                .filter(|ratio| *ratio > 0)
                .map(of_ratio)
                .collect::<Result<_, _>>()?,
            none: arena.upload(device, &vec![0; ids.len()])?,
            head_groups: arena.upload(device, &head_groups)?,
            chunks,
        })
    }

    pub(crate) const fn tokens(&self) -> usize {
        self.ids.len()
    }

    pub(crate) fn take<T: ds4_kernels_cuda::Element>(&self, len: usize) -> Result<Slice<'a, T>, CudaError> {
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
    #[allow(clippy::unnecessary_wraps)] // another device makes them here
    pub(crate) fn rotations_of_groups(&self, chunk: usize, ratio: u32) -> Result<Slice<'a, f32>, CudaError> {
        let Some(of_ratio) = self.of_ratio(ratio) else {
            unreachable!("the model has layers of ratio {ratio}");
        };
        Ok(of_ratio.groups[chunk])
    }

    /// Compressed rows that each token sees on layers of `ratio`; all see none where there is no compression.
    pub(crate) fn seen(&self, ratio: u32) -> Option<Slice<'a, u32>> {
        self.of_ratio(ratio).map(|of_ratio| of_ratio.seen)
    }

    fn of_ratio(&self, ratio: u32) -> Option<&OfRatio<'a>> {
        self.ratios.iter().find(|of_ratio| of_ratio.ratio == ratio)
    }

    /// Replaces `streams` by what the layer makes of them.
    pub(crate) fn layer(
        &self,
        number: usize,
        index: usize,
        layer: &Layer,
        streams: Slice<'a, f32>,
    ) -> Result<(), CudaError> {
        let mark = self.arena.mark();
        let (mix, x) = self.open(&layer.hyper_attention, &layer.attention.norm, streams)?;
        let y = self.attention(number, index, &layer.attention, x)?;
        self.close(mix, y, streams)?;
        self.arena.release(mark);
        let (mix, x) = self.open(&layer.hyper_feed_forward, &layer.feed_forward.norm, streams)?;
        let y = self.feed_forward(number, &layer.feed_forward, x)?;
        self.close(mix, y, streams)?;
        self.arena.release(mark);
        Ok(())
    }

    /// One mix per token, and the block's normalised inputs `[tokens][n_embd]`.
    fn open(
        &self,
        connection: &Hyper,
        weight: &Buffer<f32>,
        streams: Slice<'a, f32>,
    ) -> Result<(Slice<'a, f32>, Slice<'a, f32>), CudaError> {
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
    ) -> Result<(), CudaError> {
        hyper::scatter(self.device, mix, block, self.config.hc.streams, streams)
    }
}

impl<'a> OfRatio<'a> {
    fn new(
        device: &Device,
        arena: &'a Arena,
        (rope, n_rot): (&Rope, usize),
        ratio: u32,
        positions: &[u64],
        chunks: &[Chunk],
    ) -> Result<Self, CudaError> {
        let tokens = u64::from(ratio);
        let seen: Vec<u32> = positions.iter().map(|at| narrow((at + 1) / tokens)).collect();
        let groups = |chunk: &Chunk| {
            let groups = chunk.groups(tokens);
            let rotations = flat(groups.clone().map(|group| rope.at(group * tokens)));
            // Room for one that is not there yet, so that addresses stay where they are from token to token.
            let room = arena.take(device, rotations.len().max(n_rot))?;
            let of_chunk = room.range(0..rotations.len());
            device.write(&rotations, of_chunk)?;
            Ok(of_chunk)
        };
        Ok(Self {
            ratio,
            seen: arena.upload(device, &seen)?,
            groups: chunks.iter().map(groups).collect::<Result<_, CudaError>>()?,
        })
    }
}
