//! One session in one file: tokens and the rows of all layers, in the encoding in which they are kept and sent.
//!
//! `DS4SESS1`, the length of the header, the header, the rows as the header lists them, SHA-256 of all that. The file knows nothing of stages:
//! what was made by one split loads under any other.

use std::io::{self, Read, Write};

use ds4_gguf::LayerSpan;
use ds4_model::{CompleteKv, KvError, KvLayout, KvStaging, TokenHash};
use ds4_proto::v1::{RowCount, SessionHeader};
use prost::Message;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::frames::{from_wire, to_wire};

const MAGIC: &[u8; 8] = b"DS4SESS1";
/// Tokens of a million and the row counts of some hundred layers.
const MOST_HEADER: u32 = 8 << 20;
/// Rows are read in pieces of about this many bytes.
const PIECE: usize = 1 << 20;
const CHECKSUM: u64 = 32;

/// Why a file is not a session of this model.
#[derive(Debug, Error)]
pub enum SessionFileError {
    /// The system refuses.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Something is not what it must be.
    #[error("{field}: expected {expected}, found {found}")]
    Field {
        /// What.
        field: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Rows that the model cannot have made.
    #[error(transparent)]
    Kv(#[from] KvError),
}

fn differs(field: &'static str, expected: impl ToString, found: impl ToString) -> SessionFileError {
    SessionFileError::Field {
        field,
        expected: expected.to_string(),
        found: found.to_string(),
    }
}

/// Whose sessions these are.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) fingerprint: String,
    pub(crate) layout: KvLayout,
}

/// Writes a session.
pub(crate) fn write(out: impl Write, owner: &Owner, tokens: &[u32], kv: &CompleteKv) -> io::Result<()> {
    let mut out = Hashed::new(out);
    let header = header(owner, tokens, kv);
    let bytes = header.encode_to_vec();
    out.write_all(MAGIC)?;
    out.write_all(
        &u32::try_from(bytes.len())
            .map_err(io::Error::other)?
            .to_le_bytes(),
    )?;
    out.write_all(&bytes)?;
    for (layer, kind) in kinds(&owner.layout) {
        let rows = kv
            .kv()
            .read(layer, kind, kv.kv().rows(layer, kind))
            .map_err(io::Error::other)?;
        out.write_all(rows)?;
    }
    let Hashed { mut inner, digest } = out;
    inner.write_all(&digest.finalize())?;
    inner.flush()
}

fn kinds(layout: &KvLayout) -> impl Iterator<Item = (usize, ds4_model::KvKind)> + '_ {
    (0..layout.n_layer()).flat_map(|layer| layout.kinds(layer).iter().map(move |kind| (layer, *kind)))
}

#[allow(clippy::cast_possible_truncation)] // layer numbers
fn header(owner: &Owner, tokens: &[u32], kv: &CompleteKv) -> SessionHeader {
    let count = |(layer, kind)| {
        let rows = kv.kv().rows(layer, kind);
        RowCount {
            layer: layer as u32,
            kind: to_wire(kind).into(),
            first: rows.start,
            end: rows.end,
        }
    };
    SessionHeader {
        fingerprint: owner.fingerprint.clone(),
        kv_layout: owner.layout.id(),
        tokens: tokens.to_vec(),
        token_hash: kv.kv().hash().value(),
        rows: kinds(&owner.layout).map(count).collect(),
    }
}

/// Reads what a file holds, without its rows. Nothing is allocated for what the file is too short for.
pub(crate) fn read_header(
    input: &mut impl Read,
    length: u64,
    owner: &Owner,
) -> Result<SessionHeader, SessionFileError> {
    let mut start = [0; 12];
    input.read_exact(&mut start)?;
    if start[..8] != MAGIC[..] {
        return Err(differs("magic", "DS4SESS1", String::from_utf8_lossy(&start[..8])));
    }
    let size = u32::from_le_bytes([start[8], start[9], start[10], start[11]]);
    if size > MOST_HEADER || u64::from(size) + 12 + CHECKSUM > length {
        return Err(differs(
            "header bytes",
            format!("at most {MOST_HEADER}, and fewer than the file's {length}"),
            size,
        ));
    }
    let mut bytes = vec![0; size as usize];
    input.read_exact(&mut bytes)?;
    let header = SessionHeader::decode(&bytes[..]).map_err(|error| differs("header", "a message", error))?;
    check(&header, u64::from(size) + 12, length, owner)?;
    Ok(header)
}

fn check(header: &SessionHeader, start: u64, length: u64, owner: &Owner) -> Result<(), SessionFileError> {
    let hash = TokenHash::of(&header.tokens).value();
    let fields = [
        ("fingerprint", &owner.fingerprint, &header.fingerprint),
        ("kv layout", &owner.layout.id(), &header.kv_layout),
        ("token hash", &hash.to_string(), &header.token_hash.to_string()),
    ];
    if let Some((field, expected, found)) = fields.into_iter().find(|(_, expected, found)| expected != found)
    {
        return Err(differs(field, expected, found));
    }
    let frontier = header.tokens.len() as u64;
    let mut expected = start + CHECKSUM;
    let mut counts = header.rows.iter();
    for (layer, kind) in kinds(&owner.layout) {
        let rows = owner.layout.expected_rows(layer, kind, frontier);
        let found = counts
            .next()
            .ok_or_else(|| differs("row counts", format!("{kind} rows of layer {layer}"), "none"))?;
        let same = found.layer as usize == layer && found.kind == to_wire(kind) as i32;
        if !same || (found.end - found.first.min(found.end), found.end) != (rows.end - rows.start, rows.end) {
            let wanted = format!("{rows:?} of {kind} in layer {layer}");
            return Err(differs(
                "row counts",
                wanted,
                format!("{}..{}", found.first, found.end),
            ));
        }
        expected += (rows.end - rows.start) * owner.layout.row_bytes(layer, kind) as u64;
    }
    if expected != length {
        return Err(differs("file bytes", expected, length));
    }
    Ok(())
}

/// Reads a session. It is believed only when all of it is there and the checksum fits.
pub(crate) fn read(
    input: impl Read,
    length: u64,
    owner: &Owner,
) -> Result<(Vec<u32>, CompleteKv), SessionFileError> {
    let mut input = Hashed::new(input);
    let header = read_header(&mut input, length, owner)?;
    let frontier = header.tokens.len() as u64;
    let span = LayerSpan {
        head: false,
        ..LayerSpan::full(owner.layout.n_layer())
    };
    let mut staging = KvStaging::new(&owner.layout, span, frontier.max(1));
    for count in &header.rows {
        let kind =
            from_wire(count.kind).map_err(|(field, expected, found)| differs(field, expected, found))?;
        read_rows(&mut input, &mut staging, owner, count, kind)?;
    }
    let Hashed { mut inner, digest } = input;
    let mut checksum = [0; CHECKSUM as usize];
    inner.read_exact(&mut checksum)?;
    let found = digest.finalize();
    if found[..] != checksum[..] {
        return Err(differs("checksum", hex(&checksum), hex(&found)));
    }
    let kv = staging.commit(frontier, TokenHash::of(&header.tokens))?;
    Ok((header.tokens, CompleteKv::assemble(&owner.layout, vec![kv])?))
}

fn read_rows(
    input: &mut impl Read,
    staging: &mut KvStaging,
    owner: &Owner,
    count: &RowCount,
    kind: ds4_model::KvKind,
) -> Result<(), SessionFileError> {
    let layer = count.layer as usize;
    let row = owner.layout.row_bytes(layer, kind).max(1);
    let most = (PIECE / row).max(1) as u64;
    let mut first = count.first;
    while first < count.end {
        let rows = most.min(count.end - first);
        #[allow(clippy::cast_possible_truncation)] // about a piece
        let mut bytes = vec![0; rows as usize * row];
        input.read_exact(&mut bytes)?;
        staging.write(layer, kind, first, &bytes)?;
        first += rows;
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Hashes what passes through.
struct Hashed<T> {
    inner: T,
    digest: Sha256,
}

impl<T> Hashed<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            digest: Sha256::new(),
        }
    }
}

impl<T: Write> Write for Hashed<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.digest.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashed<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.digest.update(&bytes[..read]);
        Ok(read)
    }
}
