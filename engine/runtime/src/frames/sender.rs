//! The sending end of a handoff.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use ds4_gguf::LayerSpan;
use ds4_model::{Kv, KvKind};
use ds4_proto::v1::{Beat, Commit, HandoffFrame, KvFrame, RowCount, handoff_frame};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::spare::Spare;
use super::{Encoded, digest, to_wire};

/// Most bytes of rows in one frame where more is agreed: every copy and check on its way then finds a frame in a core's own cache. Larger ones are
/// slower, smaller ones no faster (`cargo xtask bench handoff`). With what precedes them they fill two of HTTP/2's frames, and leave no rest.
const CACHED: usize = (128 << 10) - 128;

/// Sends the rows of some layers of a session that the receiver lacks, each as soon as it is computed. Where the prompt ends is known from the
/// start, and so are the rows of the window and of the states that will be left then: those before are never sent.
///
/// It keeps no rows: what could not be sent yet is read again from the session when it can.
#[derive(Debug)]
pub(crate) struct Sender {
    epoch: u64,
    span: LayerSpan,
    held: u64,
    /// The end of the prompt.
    goal: u64,
    frame_bytes: usize,
    spare: Spare,
    sent: BTreeMap<(usize, KvKind), u64>,
    /// The frontier that was sent of last, and how many kinds of its layers have nothing left there.
    through: (u64, usize),
    digest: Sha256,
    frames: u64,
    bytes: u64,
}

/// What a commit says of the work behind it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    pub(crate) compute: Duration,
    /// When the last chunk was computed.
    pub(crate) last_chunk: Instant,
    /// Bytes of rows that were sent from then on.
    pub(crate) tail_bytes: u64,
}

#[allow(clippy::cast_possible_truncation)] // half a million years
fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[allow(clippy::cast_possible_truncation)] // layer numbers; rows of one frame
impl Sender {
    /// For the layers of `span` and a receiver that has the rows of `held` tokens and wants those of `goal`.
    pub(crate) fn new(epoch: u64, span: LayerSpan, held: u64, goal: u64, frame_bytes: usize) -> Self {
        Self {
            epoch,
            span,
            held,
            goal,
            frame_bytes: frame_bytes.min(CACHED),
            spare: Spare::default(),
            sent: BTreeMap::new(),
            through: (0, 0),
            digest: Sha256::new(),
            frames: 0,
            bytes: 0,
        }
    }

    /// The next rows that can be sent. `None` when nothing is left for now.
    pub(crate) fn next(&mut self, kv: &Kv) -> Option<Encoded> {
        let (layer, kind, first) = self.waiting(kv)?;
        let row_bytes = kv.layout().row_bytes(layer, kind).max(1);
        let most = (self.frame_bytes / row_bytes).max(1) as u64;
        let end = kv.rows(layer, kind).end.min(first + most);
        let data = kv.read(layer, kind, first..end).ok()?;
        let mut frame = KvFrame {
            epoch: self.epoch,
            layer: layer as u32,
            kind: to_wire(kind).into(),
            first_row: first,
            rows: (end - first) as u32,
            ..KvFrame::default()
        };
        let encoded = Encoded::rows(&mut frame, data, &self.spare, self.frame_bytes);
        digest(&mut self.digest, &frame);
        (self.frames, self.bytes) = (self.frames + 1, self.bytes + data.len() as u64);
        self.sent.insert((layer, kind), end);
        Some(encoded)
    }

    /// What is sent for a chunk that brought no rows.
    pub(crate) fn beat(kv: &Kv) -> Encoded {
        Encoded::message(&HandoffFrame {
            frame: Some(handoff_frame::Frame::Beat(Beat {
                frontier: kv.frontier(),
            })),
        })
    }

    fn waiting(&mut self, kv: &Kv) -> Option<(usize, KvKind, u64)> {
        let layout = kv.layout();
        if self.through.0 != kv.frontier() {
            self.through = (kv.frontier(), 0);
        }
        let kinds = self
            .span
            .layers()
            .flat_map(|layer| layout.kinds(layer).iter().map(move |kind| (layer, *kind)));
        let next = |(layer, kind)| {
            let missing = layout.missing_rows(layer, kind, self.held, self.goal);
            let from = self.sent.get(&(layer, kind)).copied().unwrap_or(missing.start);
            let end = missing.end.min(kv.rows(layer, kind).end);
            (from < end).then_some((layer, kind, from))
        };
        let mut left = kinds.enumerate().skip(self.through.1);
        let (through, found) = left.find_map(|(i, kind)| Some((i, next(kind)?)))?;
        self.through.1 = through;
        Some(found)
    }

    /// Bytes of rows sent so far.
    pub(crate) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The shard is complete.
    pub(crate) fn commit(&self, kv: &Kv, work: &Work, span: String) -> Encoded {
        let kinds = self
            .span
            .layers()
            .flat_map(|layer| kv.layout().kinds(layer).iter().map(move |kind| (layer, *kind)));
        let count = |(layer, kind): (usize, KvKind)| {
            let rows = kv.rows(layer, kind);
            RowCount {
                layer: layer as u32,
                kind: to_wire(kind).into(),
                first: rows.start,
                end: rows.end,
            }
        };
        let commit = Commit {
            epoch: self.epoch,
            frontier: kv.frontier(),
            token_hash: kv.hash().value(),
            rows: kinds.map(count).collect(),
            frames: self.frames,
            bytes: self.bytes,
            digest: Bytes::copy_from_slice(&self.digest.clone().finalize()),
            compute_us: micros(work.compute),
            tail_bytes: work.tail_bytes,
            tail_us: micros(work.last_chunk.elapsed()),
            span,
        };
        Encoded::message(&HandoffFrame {
            frame: Some(handoff_frame::Frame::Commit(commit)),
        })
    }
}
