//! AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): bytes are multiplied four at a time into 32-bit sums.
//!
//! Every function here is reached through [`KERNELS`], which is handed out only where the features were detected.

mod ahead;
mod beside;
pub(crate) mod chunk;
mod floats;
pub(crate) mod fold;
mod pairs;
mod panel;
mod plain;
mod planes;
mod quantize;
mod stepped;
mod tile;
mod vector;

use self::ahead::Ahead;
use crate::kernels::Kernels;
use crate::operands::{Put, ROWS, Rows, Token};
use crate::panel::with_panel;

/// Values of each row that are unpacked at a time for a single tile, which then finds all 16 KiB of them in the nearest cache. For more tiles
/// whole rows are: they come from the second cache as a stream, and to begin a tile costs more than that.
const SLICE: usize = 512;

/// Only for machines where the features of this module were detected.
pub(crate) const KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where all the features were detected.
    product: |rows, tokens, put| unsafe { product(rows, tokens, put) },
    // SAFETY: as above.
    beside: Some(|rows, tokens, put| unsafe { beside::product(rows, tokens, put) }),
    // SAFETY: as above.
    plain: |rows, tokens, put| unsafe { plain::product(rows, tokens, put) },
    // SAFETY: as above.
    quantize: |values, block, out| unsafe { quantize::quantize(values, block, out) },
    ..crate::avx2::KERNELS
};

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if tokens.len() <= vector::most(rows.format()) {
        return vector::product(rows, tokens, put);
    }
    if tokens.len() <= tile::TOKENS {
        return of_one_tile(rows, tokens, put);
    }
    with_panel(|panel| {
        let mut ahead = Ahead::of(rows);
        panel::unpack(rows, 0..rows.blocks(), panel, &mut ahead);
        for (i, some) in tokens.chunks(tile::TOKENS).enumerate() {
            let mut sums = [[0.0; ROWS]; tile::TOKENS];
            tile::add(panel, some, &mut ahead, &mut sums[..some.len()]);
            ahead = Ahead::nothing();
            // At once: what is stored is on its way to memory while the next tile is computed.
            let put = |(t, values): (usize, &[f32; ROWS])| put(i * tile::TOKENS + t, values);
            sums[..some.len()].iter().enumerate().for_each(put);
        }
    });
}

/// Up to [`tile::TOKENS`] tokens.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn of_one_tile(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    let (blocks, slice) = (rows.blocks(), SLICE / rows.format().block_len());
    let mut sums = [[0.0; ROWS]; tile::TOKENS];
    let sums = &mut sums[..tokens.len()];
    with_panel(|panel| {
        let mut ahead = Ahead::of(rows);
        for first in (0..blocks).step_by(slice) {
            panel::unpack(rows, first..blocks.min(first + slice), panel, &mut ahead);
            tile::add(panel, tokens, &mut ahead, sums);
        }
    });
    sums.iter().enumerate().for_each(|(i, values)| put(i, values));
}
