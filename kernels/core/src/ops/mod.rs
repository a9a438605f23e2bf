//! The graph's operations on one token (or one group of rows), in the order that defines their bits.

pub mod attention;
pub mod compressor;
pub mod experts;
pub mod hyper;
pub mod indexer;
pub mod norm;
pub mod rope;
