//! Every kernel against its scalar reference, bit for bit, through the real host code: the MSL runs on the CPU, in several orders of threads. On a Mac
//! `DS4_METAL_TEST=device` takes the device instead.
#![allow(clippy::unwrap_used)]

mod attention;
mod check;
mod compressor;
mod embedding;
mod experts;
mod faults;
mod hyper;
mod indexer;
mod matmul;
mod memory;
mod operands;
mod rows;
mod simd;
mod support;
mod table;
mod tile_faults;
mod tiles;
mod way;
