//! Rows that a pass computed and that the host lacks.

use std::ops::Range;

use ds4_model::{Kv, KvKind, NewRows, Part};

use crate::chunk::Chunk;

/// Rows of one kind.
pub(crate) struct Missing {
    /// The part of the pass.
    pub(crate) part: usize,
    pub(crate) layer: usize,
    /// The layer in the session, and the kind in the layer.
    pub(crate) index: usize,
    pub(crate) of_layer: usize,
    pub(crate) kind: KvKind,
    pub(crate) rows: Range<u64>,
    pub(crate) bytes: usize,
}

/// What the parts lack once their tokens are computed, part by part, by layer.
pub(crate) fn missing(parts: &[Part<'_>]) -> Vec<Missing> {
    let of_part = |(number, part): (usize, &Part<'_>)| of_part(number, part.kv, part.tokens.len());
    parts.iter().enumerate().flat_map(of_part).collect()
}

#[allow(clippy::cast_possible_truncation)] // rows of a pass
fn of_part(part: usize, kv: &Kv, tokens: usize) -> Vec<Missing> {
    let of_layer = |(index, layer): (usize, usize)| {
        let kinds = kv.layout().kinds(layer).iter().enumerate();
        kinds.map(move |(of_layer, kind)| {
            let rows = kv.missing(layer, *kind, tokens);
            let bytes = (rows.end - rows.start) as usize * kv.layout().row_bytes(layer, *kind);
            Missing {
                part,
                layer,
                index,
                of_layer,
                kind: *kind,
                rows,
                bytes,
            }
        })
    };
    kv.span().layers().enumerate().flat_map(of_layer).collect()
}

/// Gives the parts the rows that came, `bytes` in the order of `rows`, and the device's own rows back.
pub(crate) fn deliver(chunks: Vec<Chunk>, parts: &mut [Part<'_>], rows: &[Missing], mut bytes: &[u8]) {
    let mut new: Vec<Vec<NewRows<'_>>> = parts.iter().map(|_| Vec::new()).collect();
    for rows in rows {
        let (of_kind, rest) = bytes.split_at(rows.bytes);
        new[rows.part].push(NewRows {
            layer: rows.layer,
            kind: rows.kind,
            first: rows.rows.start,
            bytes: of_kind,
        });
        bytes = rest;
    }
    for ((part, chunk), new) in parts.iter_mut().zip(chunks).zip(new) {
        if let Err(error) = part.kv.extend(part.tokens, &new) {
            unreachable!("the rows asked for are those that came: {error}");
        }
        let mut session = chunk.session;
        session.frontier = part.kv.frontier();
        part.kv.on_device().put(*session);
    }
}
