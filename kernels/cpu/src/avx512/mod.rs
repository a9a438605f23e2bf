//! AVX-512 with VNNI and VBMI (Ice Lake, Zen 4 and later): bytes are multiplied four at a time into 32-bit sums.
//!
//! Every function here is reached through [`KERNELS`], which is handed out only where the features were detected.

mod chunk;
mod fold;
mod panel;
mod plain;
mod quantize;
mod tile;
mod vector;

use crate::kernels::Kernels;
use crate::operands::{Put, Rows, Token};
use crate::panel::with_panel;

/// Only for machines where the features of this module were detected.
pub(crate) const KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where all the features were detected.
    product: |rows, tokens, put| unsafe { product(rows, tokens, put) },
    // SAFETY: as above.
    plain: |rows, tokens, put| unsafe { plain::product(rows, tokens, put) },
    // SAFETY: as above.
    quantize: |values, block, out| unsafe { quantize::quantize(values, block, out) },
    ..crate::avx2::KERNELS
};

#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if tokens.len() <= vector::MOST {
        return vector::product(rows, tokens, put);
    }
    with_panel(|panel| {
        panel::unpack(rows, panel);
        for (i, tokens) in tokens.chunks(tile::TOKENS).enumerate() {
            let ahead = if i == 0 {
                tile::Ahead::of(rows)
            } else {
                tile::Ahead::nothing()
            };
            for (j, values) in tile::product(panel, tokens, ahead)[..tokens.len()]
                .iter()
                .enumerate()
            {
                put(i * tile::TOKENS + j, values);
            }
        }
    });
}
