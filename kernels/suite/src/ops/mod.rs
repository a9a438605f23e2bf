//! The cases, one file per family of kernels as in `kernels/cuda/cu`.

use crate::Case;

mod attention;
mod compressor;
mod embedding;
mod experts;
mod hyper;
mod indexer;
mod matmul;
mod router;
mod rows;

pub(crate) const ALL: &[&[Case]] = &[
    matmul::CASES,
    experts::CASES,
    router::CASES,
    embedding::CASES,
    rows::CASES,
    attention::CASES,
    indexer::CASES,
    compressor::CASES,
    hyper::CASES,
];
