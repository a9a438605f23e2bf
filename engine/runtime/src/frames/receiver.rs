//! The receiving end of a handoff.

use bytes::Buf;
use crc_fast::CrcAlgorithm;
use ds4_model::{Kv, KvStaging, TokenHash};
use ds4_proto::v1::{Commit, KvFrame};
use sha2::{Digest, Sha256};

use super::{Difference, differs, digest, from_wire};
use crate::net::Pieces;
use crate::planted::{self, Bug};

/// Why a received frame is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    Frame(Difference),
    Kv(ds4_model::KvError),
}

impl From<Difference> for Refusal {
    fn from(difference: Difference) -> Self {
        Self::Frame(difference)
    }
}

/// Receives a shard. Nothing of it is visible before [`Receiver::commit`].
#[derive(Debug)]
pub(crate) struct Receiver {
    epoch: u64,
    staging: KvStaging,
    digest: Sha256,
    pub(crate) frames: u64,
    pub(crate) bytes: u64,
    pub(crate) rows: u64,
}

impl Receiver {
    pub(crate) fn new(epoch: u64, staging: KvStaging) -> Self {
        Self {
            epoch,
            staging,
            digest: Sha256::new(),
            frames: 0,
            bytes: 0,
            rows: 0,
        }
    }

    /// Takes a frame whose rows are `data`.
    pub(crate) fn rows(&mut self, frame: &KvFrame, data: &Pieces) -> Result<(), Refusal> {
        self.fence(frame.epoch)?;
        let found = checksum(data);
        if found != frame.crc32c {
            return Err(differs(
                "KV crc32c",
                format!("{:08x}", frame.crc32c),
                format!("{found:08x}"),
            )
            .into());
        }
        let kind = from_wire(frame.kind)?;
        let rows = self
            .staging
            .write_pieces(frame.layer as usize, kind, frame.first_row, data.iter())
            .map_err(Refusal::Kv)?;
        if rows != u64::from(frame.rows) {
            return Err(differs("rows of a KV frame", frame.rows, rows).into());
        }
        digest(&mut self.digest, frame);
        (self.frames, self.bytes, self.rows) = (
            self.frames + 1,
            self.bytes + data.remaining() as u64,
            self.rows + rows,
        );
        Ok(())
    }

    /// Checks what the sender says against what came and against the prompt; then extends `base`, which has the rows that were not sent.
    pub(crate) fn commit(
        self,
        commit: &Commit,
        base: &mut Kv,
        frontier: u64,
        hash: TokenHash,
    ) -> Result<(), Refusal> {
        self.fence(commit.epoch)?;
        let hash = if planted::is(Bug::HashUnchecked) {
            TokenHash::from_value(commit.token_hash)
        } else {
            hash
        };
        let fields = [
            ("frontier", frontier.to_string(), commit.frontier.to_string()),
            (
                "token hash",
                hash.to_string(),
                TokenHash::from_value(commit.token_hash).to_string(),
            ),
            ("frames", self.frames.to_string(), commit.frames.to_string()),
            ("bytes", self.bytes.to_string(), commit.bytes.to_string()),
            ("digest", hex(&self.digest.finalize()), hex(&commit.digest)),
        ];
        if let Some(difference) = fields.into_iter().find(|(_, expected, found)| expected != found) {
            return Err(difference.into());
        }
        for count in &commit.rows {
            let (layer, kind) = (count.layer as usize, from_wire(count.kind)?);
            let rows = base.layout().expected_rows(layer, kind, frontier);
            if rows != (count.first..count.end) && !(rows.is_empty() && count.first == count.end) {
                let found = format!("{}..{}", count.first, count.end);
                return Err(differs("row counts", format!("{rows:?} in layer {layer}"), found).into());
            }
        }
        self.staging
            .commit_onto(base, frontier, hash)
            .map_err(Refusal::Kv)?;
        planted::committed(self.epoch);
        Ok(())
    }

    /// A planted defect: extends `base` by what has come, if that is all, with nothing to check it against.
    pub(crate) fn publish(self, base: &mut Kv, frontier: u64, hash: TokenHash) -> bool {
        self.staging.commit_onto(base, frontier, hash).is_ok()
    }

    fn fence(&self, epoch: u64) -> Result<(), Difference> {
        if epoch == self.epoch || planted::is(Bug::StaleEpoch) {
            Ok(())
        } else {
            Err(differs("epoch", self.epoch, epoch))
        }
    }
}

fn checksum(data: &Pieces) -> u32 {
    let mut sum = crc_fast::Digest::new(CrcAlgorithm::Crc32Iscsi);
    data.iter().for_each(|piece| sum.update(piece));
    #[allow(clippy::cast_possible_truncation)] // 32 bits of it
    let sum = sum.finalize() as u32;
    sum
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
