//! One pass through the layers: tokens of one session or of several, beside each other.

use std::ops::Range;

use ds4_gguf::ModelConfig;
use ds4_kernels::ops::rope::{Rope, Rotation};
use ds4_kernels_metal::hyper::{self, Mixing};
use ds4_kernels_metal::{Arena, Buffer, Device, MetalError, Slice, norm};
use ds4_model::{Kv, KvKind, NewRows, Part};

use crate::input::Input;
use crate::load::{Hyper, Layer};
use crate::session::{Session, copy};

/// Tokens of one session in the pass.
pub(crate) struct Chunk {
    /// Where they lie in the pass.
    pub(crate) range: Range<usize>,
    /// Position of the first.
    pub(crate) start: u64,
    /// Taken out of the KV until the pass has succeeded: what a failed pass has touched is made anew from the host's rows.
    pub(crate) session: Box<Session>,
}

impl Chunk {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.range.len() as u64
    }

    /// Groups of `ratio` tokens that the chunk completes.
    pub(crate) fn groups(&self, ratio: u64) -> Range<u64> {
        self.start / ratio..self.end() / ratio
    }
}

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
        let mut next = 0;
        let mut chunk = |part: &mut Part<'_>| {
            let start = next;
            next += part.tokens.len();
            let session = Session::of(device, config, part.kv, part.tokens.len())?;
            Ok(Chunk {
                range: start..next,
                start: part.kv.frontier(),
                session,
            })
        };
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
            chunks: parts
                .iter_mut()
                .map(&mut chunk)
                .collect::<Result<_, MetalError>>()?,
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
        let mut found = Vec::with_capacity(parts.len());
        for (part, chunk) in parts.iter().zip(&self.chunks) {
            let wanted = wanted(part.kv, part.tokens.len());
            let read = |rows: Wanted| Ok((rows.bytes(self.device, &chunk.session)?, rows));
            found.push(
                wanted
                    .into_iter()
                    .map(read)
                    .collect::<Result<Vec<_>, MetalError>>()?,
            );
        }
        for ((part, chunk), found) in parts.iter_mut().zip(self.chunks).zip(found) {
            let new: Vec<NewRows<'_>> = found
                .iter()
                .map(|(bytes, rows)| NewRows {
                    layer: rows.layer,
                    kind: rows.kind,
                    first: rows.rows.start,
                    bytes,
                })
                .collect();
            if let Err(error) = part.kv.extend(part.tokens, &new) {
                unreachable!("the rows asked for are those that came: {error}");
            }
            let mut session = chunk.session;
            session.frontier = part.kv.frontier();
            part.kv.on_device().put(*session);
        }
        Ok(())
    }
}

/// Rows of one kind that the host lacks.
struct Wanted {
    layer: usize,
    /// The layer in the session, and the kind in the layer.
    index: usize,
    of_layer: usize,
    kind: KvKind,
    rows: Range<u64>,
}

impl Wanted {
    fn bytes(&self, device: &Device, session: &Session) -> Result<Vec<u8>, MetalError> {
        let of_kind = &session.layers[self.index][self.of_layer];
        let mut bytes = Vec::new();
        for slots in of_kind.segments(self.rows.clone()) {
            bytes.extend(device.download(of_kind.all().range(slots))?);
        }
        Ok(bytes)
    }
}

fn wanted(kv: &Kv, tokens: usize) -> Vec<Wanted> {
    let of_layer = |(index, layer): (usize, usize)| {
        let kinds = kv.layout().kinds(layer).iter().enumerate();
        kinds.map(move |(of_layer, kind)| {
            let rows = kv.missing(layer, *kind, tokens);
            Wanted {
                layer,
                index,
                of_layer,
                kind: *kind,
                rows,
            }
        })
    };
    kv.span().layers().enumerate().flat_map(of_layer).collect()
}

/// How a connection's numbers become a mix.
pub(crate) fn mixing<'a>(config: &ModelConfig, connection: &'a Hyper) -> Mixing<'a> {
    Mixing {
        scale: connection.scale.all(),
        base: connection.base.all(),
        streams: config.hc.streams,
        iterations: config.hc.sinkhorn_iterations,
        eps: config.hc.eps,
        rms_eps: config.rms_eps,
    }
}

/// A ring of a session while a chunk is computed: the session's own for a single token, which overwrites nothing that it sees; otherwise one with
/// room for the chunk, that starts with the rows `live` and hands its last ones back.
pub(crate) struct Widened<'s> {
    pub(crate) bytes: Slice<'s, u8>,
    own: bool,
}

impl<'s> Widened<'s> {
    pub(crate) fn new(
        pass: &Pass<'s>,
        own: Slice<'s, u8>,
        row: usize,
        live: Range<u64>,
        slots: usize,
        tokens: usize,
    ) -> Result<Self, MetalError> {
        if tokens == 1 {
            return Ok(Self {
                bytes: own,
                own: true,
            });
        }
        let bytes = pass.take(slots * row)?;
        copy(pass.device, live, row, own, bytes)?;
        Ok(Self { bytes, own: false })
    }

    pub(crate) fn hand_back(
        &self,
        pass: &Pass<'_>,
        own: Slice<'_, u8>,
        row: usize,
        last: Range<u64>,
    ) -> Result<(), MetalError> {
        if self.own {
            Ok(())
        } else {
            copy(pass.device, last, row, self.bytes, own)
        }
    }
}

fn flat(rotations: impl Iterator<Item = Rotation>) -> Vec<f32> {
    rotations.flat_map(|rotation| rotation.pairs().to_vec()).collect()
}

/// Positions are checked against 32 bits before a pass.
#[allow(clippy::cast_possible_truncation)]
const fn narrow(position: u64) -> u32 {
    position as u32
}
