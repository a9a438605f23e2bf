//! What a receiver must do with every row beyond reading it, at the speed of one core.

use std::time::Instant;

use ds4_gguf::LayerSpan;
use ds4_model::{Kv, KvLayout, KvStaging};

use crate::made::NUMBER;

/// Bytes that are handled at once, as in a frame.
const PIECE: usize = 128 << 10;
/// Of a session so short that its memory is used again by the next one: what a fresh page costs is left out, so that no receiver can be faster.
const TOKENS: u64 = 2048;
const SESSIONS: usize = 24;

/// Bytes per second of rows whose sum and values are checked and which are put where they stay.
pub fn rate(layout: &KvLayout, layers: usize) -> f64 {
    session(layout, layers);
    let started = Instant::now();
    let bytes: usize = (0..SESSIONS).map(|_| session(layout, layers)).sum();
    bytes as f64 / started.elapsed().as_secs_f64()
}

/// Takes the rows of one session; returns their bytes.
fn session(layout: &KvLayout, layers: usize) -> usize {
    let span = LayerSpan {
        first: 0,
        last: layers - 1,
        head: false,
    };
    let mut base = Kv::new(layout, span);
    base.reserve(TOKENS);
    let mut staging = KvStaging::onto(&mut base, TOKENS);
    let piece = vec![NUMBER; PIECE];
    let (mut bytes, mut sums) = (0, 0);
    for layer in span.layers() {
        for kind in layout.kinds(layer) {
            let (rows, row) = (
                layout.missing_rows(layer, *kind, 0, TOKENS),
                layout.row_bytes(layer, *kind),
            );
            let most = (PIECE / row).max(1);
            for first in rows.clone().step_by(most) {
                let count = most.min((rows.end - first) as usize);
                let data = piece.get(..count * row).expect("a row is smaller than a piece");
                sums += u64::from(crc_fast::crc32_iscsi(data));
                staging.write(layer, *kind, first, data).expect("sound rows");
                bytes += data.len();
            }
        }
    }
    std::hint::black_box((sums, staging));
    bytes
}
