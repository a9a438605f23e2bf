//! The operations on rows at every instruction level.
//!
//! Most are the definitions of `ds4-kernels` compiled again with wider instructions: their loops vectorise, and a compiler that may not
//! reorder `f32` sums keeps their bits. Attention's products and the indexer's scores have kernels of their own.

use ds4_kernels::ops::Ops;

use crate::Level;

/// The operations of `level`, or the definitions where the machine lacks it.
pub(crate) fn of(level: Level) -> &'static Ops {
    #[cfg(target_arch = "x86_64")]
    match level {
        Level::Amx | Level::Avx512 if level.available() => return &avx512::OPS,
        Level::Avx2 if level.available() => return &avx2::OPS,
        _ => {}
    }
    let _ = level;
    &Ops::SCALAR
}

/// A module with one function per operation, compiled for `$features`, and their table.
#[cfg(target_arch = "x86_64")]
macro_rules! compiled {
    ($level:ident, $features:literal, $($name:ident($($argument:ident: $type:ty),*) = $body:expr;)*) => {
        mod $level {
            use ds4_kernels::codec;
            use ds4_kernels::ops::attention::{self, Heads};
            use ds4_kernels::ops::compressor::{self, Slot};
            use ds4_kernels::ops::hyper::{self, Mixing};
            use ds4_kernels::ops::indexer::IndexQueries;
            use ds4_kernels::ops::rope::Rotation;
            use ds4_kernels::ops::{Ops, experts, norm};

            use crate::{attention as tiles, indexer};

            $(
                #[target_feature(enable = $features)]
                fn $name($($argument: $type),*) {
                    $body
                }
            )*

            /// Only for machines where the instructions were detected.
            pub(super) const OPS: Ops = Ops {
                // SAFETY: `of` hands the table out only where the instructions were detected.
                $($name: |$($argument),*| unsafe { $name($($argument),*) },)*
            };
        }
    };
}

#[cfg(target_arch = "x86_64")]
macro_rules! operations {
    ($level:ident, $features:literal, $lanes:ident, $values:literal, $index_scores:ident) => {
        compiled! {
            $level, $features,
            rms(x: &mut [f32], weight: Option<&[f32]>, eps: f32) = norm::rms(x, weight, eps);
            rotate(rotation: &Rotation, head: &mut [f32]) = rotation.apply(head);
            rotate_back(rotation: &Rotation, head: &mut [f32]) = rotation.apply_inverse(head);
            mix(row: &mut [f32], streams: &[f32], mixing: &Mixing<'_>) = hyper::mix(row, streams, mixing);
            gather(weights: &[f32], streams: &[f32], out: &mut [f32]) = hyper::gather(weights, streams, out);
            scatter(mix: &[f32], block: &[f32], streams: &mut [f32]) = hyper::scatter(mix, block, streams);
            swiglu(gate: &mut [f32], up: &[f32], clamp: f32, weight: f32) = experts::swiglu(gate, up, clamp, weight);
            combine(out: &mut [f32], parts: &[f32]) = ds4_kernels::ops::experts::combine(out, parts);
            pool(slots: &[Slot<'_>], out: &mut [f32]) = compressor::pool(slots, out);
            encode_kv(row: &[f32], tail: usize, out: &mut [u8]) = codec::encode_kv(row, tail, out);
            decode_kv(bytes: &[u8], tail: usize, out: &mut [f32]) = codec::decode_kv(bytes, tail, out);
            encode_indexer(row: &mut [f32], out: &mut [u8]) = codec::encode_indexer(row, out);
            softmax(scores: &mut [f32], sink: f32) = attention::softmax(scores, sink);
            scores(heads: &Heads<'_>, rows: &[f32], out: &mut [f32]) =
                // SAFETY: this function enables the instructions.
                unsafe { tiles::scores::<std::arch::x86_64::$lanes>(heads, rows, out) };
            blend(weights: &[f32], stride: usize, rows: &[f32], dim: usize, out: &mut [f32]) =
                // SAFETY: this function enables the instructions.
                unsafe { tiles::blend::<std::arch::x86_64::$lanes, $values>(weights, stride, rows, dim, out) };
            index_scores(queries: &IndexQueries<'_>, rows: &[u8], out: &mut [f32]) =
                indexer::$index_scores(queries, rows, out);
        }
    };
}

#[cfg(target_arch = "x86_64")]
operations!(avx2, "avx2,fma", __m256, 2, scores_avx2);
#[cfg(target_arch = "x86_64")]
operations!(
    avx512,
    "avx512bw,avx512vl,avx512vnni,avx512vbmi",
    __m512,
    4,
    scores_avx512
);
