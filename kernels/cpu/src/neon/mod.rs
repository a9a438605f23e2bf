//! NEON with the dot-product extension (Graviton 2, Apple M1, Grace and later), and with the one that multiplies matrices of bytes (i8mm:
//! Graviton 3, Apple M2, Grace and later).
//!
//! Every function here is reached through [`KERNELS`] and [`I8MM_KERNELS`], which are handed out only where the features were detected.

mod beside;
mod bytes;
mod multiply;
mod part;
mod plain;
mod quantize;
mod tile;
mod tokens;
mod vector;
mod weights;

use self::multiply::{Dotprod, I8mm};
use crate::kernels::Kernels;
use crate::operands::{Put, Rows, Token};

// Of every 64-bit target of ours; so only what is beyond it is named where it is used.
const _: () = assert!(cfg!(target_feature = "neon"), "a target without NEON");

/// Only for machines where the dot-product extension was detected.
pub(crate) const KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where the features were detected.
    product: |rows, tokens, put| unsafe { product(rows, tokens, put) },
    // SAFETY: as above.
    beside: Some(|rows, tokens, put| unsafe { beside::product(rows, tokens, put) }),
    tiled: None,
    // SAFETY: NEON is there, as asserted; so it is below.
    plain: |rows, tokens, put| unsafe { plain::product(rows, tokens, put) },
    // SAFETY: as above.
    dot: |a, b| unsafe { plain::dot(a, b) },
    // SAFETY: as above.
    axpy: |factor, x, y| unsafe { plain::axpy(factor, x, y) },
    // SAFETY: as above.
    quantize: |values, block, out| unsafe { quantize::quantize(values, block, out) },
};

/// Only for machines where both extensions were detected.
pub(crate) const I8MM_KERNELS: Kernels = Kernels {
    // SAFETY: `Kernels::of` gives these functions out only where the features were detected.
    product: |rows, tokens, put| unsafe { product_i8mm(rows, tokens, put) },
    // SAFETY: as above.
    beside: Some(|rows, tokens, put| unsafe { beside::product_i8mm(rows, tokens, put) }),
    ..KERNELS
};

#[target_feature(enable = "dotprod")]
fn product(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if tokens.len() <= vector::MOST {
        return vector::product(rows, tokens, put);
    }
    // SAFETY: this function enables the instructions.
    tile::with_work(|work| unsafe { tile::product::<Dotprod, 2>(work, rows, tokens, put) });
}

#[target_feature(enable = "dotprod,i8mm")]
fn product_i8mm(rows: &Rows<'_>, tokens: &[Token<'_>], put: Put<'_>) {
    if tokens.len() <= vector::MOST {
        return vector::product(rows, tokens, put);
    }
    // SAFETY: this function enables the instructions.
    tile::with_work(|work| unsafe { tile::product::<I8mm, 4>(work, rows, tokens, put) });
}
