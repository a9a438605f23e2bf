//! Threads around the inner products.

use std::ops::Range;

use ds4_kernels::block::Block;
use ds4_kernels::ops::Ops;
use ds4_kernels::{Activations, Backend, Format, Matrix, dequantize_row};
use thiserror::Error;

use crate::Level;
use crate::level::{Column, Inner};
use crate::ops;
use crate::placement;
use crate::pool::Pool;
use crate::shared::Shared;

/// Products below this many multiply-adds stay on the calling thread: waking another takes longer (a few microseconds).
const SMALL: usize = 1 << 16;
/// Pieces of a product per thread, so that a slow core does not hold up the others.
const PIECES: usize = 4;
/// The same for rows that are filled one by one.
const ROW_PIECES: usize = 8;

/// Why the back end cannot start.
#[derive(Debug, Error)]
pub enum CpuError {
    /// The machine lacks the instructions asked for.
    #[error("instructions: expected {asked}, found a machine with {found}")]
    Level {
        /// What was asked.
        asked: Level,
        /// The best there is.
        found: Level,
    },
    /// The threads could not be started.
    #[error("threads: {0}")]
    Threads(#[from] std::io::Error),
}

/// The back end of general-purpose processors.
pub struct Cpu {
    level: Level,
    inner: Inner,
    ops: &'static Ops,
    pool: Pool,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name())
    }
}

impl Cpu {
    /// Starts `threads` threads (default: what the cores and the cgroup's CPU limit allow) at `level` (default: the best).
    ///
    /// # Errors
    /// When the machine lacks the instructions or the threads do not start.
    pub fn new(threads: Option<usize>, level: Option<Level>) -> Result<Self, CpuError> {
        let asked = level.unwrap_or_else(Level::detect);
        if !asked.available() {
            return Err(CpuError::Level {
                asked,
                found: Level::detect(),
            });
        }
        Ok(Self {
            level: asked,
            inner: Inner::of(asked),
            ops: ops::of(asked),
            pool: Pool::new(threads.unwrap_or_else(placement::limit).max(1))?,
        })
    }

    /// Rows `rows` of the product, `[tokens][rows]`.
    fn part(&self, weights: &Matrix<'_>, x: &Activations<'_>, rows: Range<usize>) -> Vec<f32> {
        let mut part = vec![0.0; x.tokens() * rows.len()];
        let (first, width) = (rows.start, rows.len());
        for row in rows {
            self.row(weights, x, row, |token, value| {
                part[token * width + row - first] = value
            });
        }
        part
    }

    fn row(&self, weights: &Matrix<'_>, x: &Activations<'_>, row: usize, mut put: impl FnMut(usize, f32)) {
        match x {
            Activations::F32 { cols, values } => {
                let mut weight = vec![0.0; *cols];
                dequantize_row(weights.format(), weights.row(row), &mut weight);
                for (token, x) in values.chunks_exact(*cols).enumerate() {
                    put(token, (self.inner.dot)(&weight, x));
                }
            }
            Activations::Q8 {
                cols,
                block,
                codes,
                scales,
                ..
            } if weights.format() == Format::Q8_0 => {
                let tokens = codes.chunks_exact(*cols).zip(scales.chunks_exact(cols / block));
                for (token, (codes, scales)) in tokens.enumerate() {
                    put(token, (self.inner.q8_0)(weights.row(row), codes, scales));
                }
            }
            Activations::Q8 {
                cols,
                block: length,
                codes,
                scales,
                ..
            } => {
                let mut sums = vec![0.0; x.tokens()];
                let size = weights.format().block_bytes();
                for (at, bytes) in weights.row(row).chunks_exact(size).enumerate() {
                    let (cols, length) = (*cols, *length);
                    let column = Column {
                        at,
                        length,
                        codes,
                        cols,
                        scales,
                    };
                    (self.inner.block)(&Block::unpack(weights.format(), bytes), &column, &mut sums);
                }
                sums.into_iter()
                    .enumerate()
                    .for_each(|(token, sum)| put(token, sum));
            }
        }
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu-{}x{}", self.level, self.pool.threads())
    }

    fn matmul(&self, weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]) {
        assert_eq!(
            weights.cols(),
            x.cols(),
            "columns of the weights and of the activations"
        );
        if let Activations::Q8 { block, .. } = x {
            let format = weights.format();
            assert_eq!(
                *block,
                format.block_len(),
                "activation block for {format} weights"
            );
        }
        let (rows, tokens) = (weights.rows(), x.tokens());
        assert_eq!(y.len(), tokens * rows, "y is [tokens][rows]");
        let threads = self.pool.threads();
        if threads == 1 || rows * weights.cols() * tokens < SMALL {
            return y.copy_from_slice(&self.part(weights, x, 0..rows));
        }
        let step = rows.div_ceil(threads * PIECES);
        let y = Shared::new(y);
        self.pool.run(rows.div_ceil(step), &|piece| {
            let start = piece * step;
            let width = step.min(rows - start);
            let part = self.part(weights, x, start..start + width);
            for (token, part) in part.chunks_exact(width).enumerate() {
                // SAFETY: a piece has rows of its own.
                unsafe { y.slice(token * rows + start, width) }.copy_from_slice(part);
            }
        });
    }

    fn parallel(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, task);
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn ops(&self) -> &'static Ops {
        self.ops
    }

    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        (self.inner.dot)(a, b)
    }

    fn axpy(&self, factor: f32, x: &[f32], y: &mut [f32]) {
        (self.inner.axpy)(factor, x, y);
    }

    fn each_row(&self, out: &mut [f32], width: usize, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let rows = out.len() / width;
        let per_task = rows.div_ceil(self.pool.threads() * ROW_PIECES).max(1);
        let out = Shared::new(out);
        self.pool.run(rows.div_ceil(per_task), &|piece| {
            for i in piece * per_task..((piece + 1) * per_task).min(rows) {
                // SAFETY: each row is visited by one task, once.
                fill(i, unsafe { out.slice(i * width, width) });
            }
        });
    }
}
