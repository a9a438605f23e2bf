//! The graph's operations on one token (or one group of rows), in the order that defines their bits.
//!
//! The definitions are loops that vectorise. A back end compiles them for its instructions, or replaces them, and hands them out as [`Ops`].

pub mod attention;
pub mod compressor;
pub mod experts;
pub mod hyper;
pub mod indexer;
pub mod norm;
pub mod rope;

use attention::Heads;
use compressor::Slot;
use hyper::Mixing;
use indexer::IndexQueries;
use rope::Rotation;

/// The operations at one instruction level; every level gives the bits of [`Ops::SCALAR`].
#[derive(Clone, Copy, Debug)]
pub struct Ops {
    /// [`norm::rms`]
    pub rms: fn(&mut [f32], Option<&[f32]>, f32),
    /// [`rope::Rotation::apply`]
    pub rotate: fn(&Rotation, &mut [f32]),
    /// [`rope::Rotation::apply_inverse`]
    pub rotate_back: fn(&Rotation, &mut [f32]),
    /// [`hyper::mix`]
    pub mix: fn(&mut [f32], &[f32], &Mixing<'_>),
    /// [`hyper::gather`]
    pub gather: fn(&[f32], &[f32], &mut [f32]),
    /// [`hyper::scatter`]
    pub scatter: fn(&[f32], &[f32], &mut [f32]),
    /// [`experts::swiglu`]
    pub swiglu: fn(&mut [f32], &[f32], f32, f32),
    /// [`experts::combine`]
    pub combine: fn(&mut [f32], &[f32]),
    /// [`compressor::pool`]
    pub pool: fn(&[Slot<'_>], &mut [f32]),
    /// [`crate::codec::encode_kv`]
    pub encode_kv: fn(&[f32], usize, &mut [u8]),
    /// [`crate::codec::decode_kv`]
    pub decode_kv: fn(&[u8], usize, &mut [f32]),
    /// [`crate::codec::encode_indexer`]
    pub encode_indexer: fn(&mut [f32], &mut [u8]),
    /// [`attention::scores`]
    pub scores: fn(&Heads<'_>, &[f32], &mut [f32]),
    /// [`attention::softmax`]
    pub softmax: fn(&mut [f32], f32),
    /// [`attention::blend`]
    pub blend: fn(&[f32], usize, &[f32], usize, &mut [f32]),
    /// [`indexer::scores`]
    pub index_scores: fn(&IndexQueries<'_>, &[u8], &mut [f32]),
}

impl Ops {
    /// The definitions as they stand.
    pub const SCALAR: Self = Self {
        rms: norm::rms,
        rotate: Rotation::apply,
        rotate_back: Rotation::apply_inverse,
        mix: hyper::mix,
        gather: hyper::gather,
        scatter: hyper::scatter,
        swiglu: experts::swiglu,
        combine: experts::combine,
        pool: compressor::pool,
        encode_kv: crate::codec::encode_kv,
        decode_kv: crate::codec::decode_kv,
        encode_indexer: crate::codec::encode_indexer,
        scores: attention::scores,
        softmax: attention::softmax,
        blend: attention::blend,
        index_scores: indexer::scores,
    };
}
