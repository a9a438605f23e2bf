//! Storage formats, activation quantisation and the deterministic arithmetic of every back end.
//!
//! What is here is the scalar reference: short, obvious, and the oracle that the vectorised back ends are compared with.
//! No result depends on anything but the operands: blocks are added in ascending order, `f32` dots use fixed lanes.

mod activation;
mod backend;
mod buffers;
mod dequant;
mod dot;
mod format;
mod matmul;
mod matrix;
mod mixture;

pub mod block;
pub mod codec;
pub mod grid;
pub mod math;
pub mod ops;

pub use activation::{Activations, CodesMut, Form, OFFSET, Q8_BLOCK, Q8K_BLOCK, quantize};
pub use backend::{Backend, Scalar, each_piece, each_row_of_two, rows_per_task};
pub use buffers::{Buffer, Buffers};
pub use dequant::{E2M1_DOUBLED, dequantize_row, half_of_power, widen};
pub use dot::{LANES, dot_f32, sum_f32};
pub use format::Format;
pub use matmul::{matmul, matmul_rows, unpack_row};
pub use matrix::{Matrix, MatrixError};
pub use mixture::{Choice, Experts};
