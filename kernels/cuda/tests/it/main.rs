//! Every kernel against its scalar reference, bit for bit, through the real host code: on the emulated driver in several orders of threads, or on a
//! device with `DS4_CUDA_TEST=device`.
#![allow(clippy::unwrap_used)]

mod attention;
mod compressor;
mod embedding;
mod experts;
mod hyper;
mod indexer;
mod matmul;
mod rows;
mod support;
mod table;
