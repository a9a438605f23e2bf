//! The back end: kernels of a level, and threads around them.

use ds4_kernels::ops::Ops;
use ds4_kernels::{Activations, Backend, Buffers, Choice, Experts, Form, Matrix};
use thiserror::Error;

use crate::kernels::Kernels;
use crate::pool::Pool;
use crate::shared::Shared;
use crate::{Level, mixture, ops, placement, product};

/// Pieces per thread of rows that are filled one by one, so that a slow core does not hold up the others.
const PIECES: usize = 8;

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
    pub(crate) kernels: Kernels,
    pub(crate) ops: &'static Ops,
    pub(crate) pool: Pool,
    /// Of what an expert computes inside.
    pub(crate) buffers: Buffers,
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
            kernels: Kernels::of(asked),
            ops: ops::of(asked),
            pool: Pool::new(threads.unwrap_or_else(placement::limit).max(1))?,
            buffers: Buffers::new(),
        })
    }

    /// The instructions in use.
    #[must_use]
    pub const fn level(&self) -> Level {
        self.level
    }
}

impl Backend for Cpu {
    fn name(&self) -> String {
        format!("cpu-{}x{}", self.level, self.threads())
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

    fn activations<'a>(&self, values: &'a [f32], cols: usize, form: Form) -> Activations<'a> {
        product::activations(self, values, cols, form)
    }

    fn matmul(&self, weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]) {
        product::matmul(self, weights, 1, x, y);
    }

    fn matmul_groups(&self, weights: &Matrix<'_>, groups: usize, x: &Activations<'_>, y: &mut [f32]) {
        product::matmul(self, weights, groups, x, y);
    }

    fn experts(&self, experts: &Experts<'_>, choices: &[Choice], x: &Activations<'_>, out: &mut [f32]) {
        mixture::experts(self, experts, choices, x, out);
    }

    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        (self.kernels.dot)(a, b)
    }

    fn axpy(&self, factor: f32, x: &[f32], y: &mut [f32]) {
        (self.kernels.axpy)(factor, x, y);
    }

    fn each_row(&self, out: &mut [f32], width: usize, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let rows = out.len() / width;
        let per_task = rows.div_ceil(self.threads() * PIECES).max(1);
        let out = Shared::new(out);
        self.pool.run(rows.div_ceil(per_task), &|piece| {
            for i in piece * per_task..((piece + 1) * per_task).min(rows) {
                // SAFETY: each row is visited by one task, once.
                fill(i, unsafe { out.slice(i * width, width) });
            }
        });
    }
}
