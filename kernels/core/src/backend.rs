//! What a back end on a general-purpose processor supplies: the products that take the time, and the threads.

use std::sync::{Mutex, PoisonError};

use crate::mixture::{self, Choice, Experts};
use crate::ops::Ops;
use crate::{Activations, Form, Matrix, dot_f32, matmul};

/// The arithmetic under the graph. Every implementation gives the bits of [`Scalar`], whatever its vector width and thread count.
///
/// A device with memory of its own implements the layer above (a whole slice of the model) instead of this.
pub trait Backend: Send + Sync + 'static {
    /// Shown to users, for example `cpu-avx2x16`.
    fn name(&self) -> String;

    /// Calls `task(i)` once for every `i < tasks`, in any order and from any thread, and returns when all are done. A panic of a task is
    /// the caller's. Calls from within a task run on that thread.
    fn parallel(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    /// Threads that [`Backend::parallel`] uses.
    fn threads(&self) -> usize {
        1
    }

    /// The operations on rows.
    fn ops(&self) -> &'static Ops {
        &Ops::SCALAR
    }

    /// `values`, `[tokens][cols]`, in the form that a product takes: made once for all matrices that share an input.
    fn activations<'a>(&self, values: &'a [f32], cols: usize, form: Form) -> Activations<'a> {
        Activations::new(values, cols, form)
    }

    /// `y[token][row] = weights[row] . x[token]`.
    fn matmul(&self, weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]);

    /// A matrix of `groups` blocks on its diagonal, stacked in `weights`: block `g` takes row `token * groups + g` of `x`. `y` is
    /// `[tokens][rows of weights]`.
    fn matmul_groups(&self, weights: &Matrix<'_>, groups: usize, x: &Activations<'_>, y: &mut [f32]) {
        let (tokens, all, rank) = (x.tokens() / groups, weights.rows(), weights.rows() / groups);
        let mut out = vec![0.0; tokens * rank];
        for group in 0..groups {
            let rows: Vec<usize> = (0..tokens).map(|token| token * groups + group).collect();
            self.matmul(&weights.part(group * rank, rank), &x.gather(&rows), &mut out);
            for (y, out) in y.chunks_exact_mut(all).zip(out.chunks_exact(rank)) {
                y[group * rank..(group + 1) * rank].copy_from_slice(out);
            }
        }
    }

    /// The outputs of the chosen experts, `[choices][rows of down]`. Choices are `[tokens][used]`: `used` of them for each token of `x`.
    fn experts(&self, experts: &Experts<'_>, choices: &[Choice], x: &Activations<'_>, out: &mut [f32]) {
        mixture::experts(self, experts, choices, x, out);
    }

    /// Dot product in the fixed order of [`dot_f32`].
    fn dot(&self, a: &[f32], b: &[f32]) -> f32;

    /// `y[i] = factor * x[i] + y[i]`, fused.
    fn axpy(&self, factor: f32, x: &[f32], y: &mut [f32]);

    /// Calls `fill(i, row i)` for every row of `out`, `[rows][width]`, in any order and from any thread.
    fn each_row(&self, out: &mut [f32], width: usize, fill: &(dyn Fn(usize, &mut [f32]) + Sync));
}

/// Tasks per thread, so that a slow core does not hold up the others.
const PIECES: usize = 4;

/// Rows of one task when `rows` are shared out.
#[must_use]
pub fn rows_per_task<B: Backend + ?Sized>(backend: &B, rows: usize) -> usize {
    rows.div_ceil(backend.threads() * PIECES).max(1)
}

/// What is done to a row of each of two arrays: its number and both.
pub type FillTwo<'a, A, C> = dyn Fn(usize, &mut [A], &mut [C]) + Sync + 'a;

/// Calls `fill(i, row i of a, row i of b)` for every row of `a`, `[rows][widths.0]`, and `b`, `[rows][widths.1]`, on all threads.
///
/// # Panics
/// When the two have different numbers of rows.
pub fn each_row_of_two<B: Backend + ?Sized, A: Send, C: Send>(
    backend: &B,
    (a, b): (&mut [A], &mut [C]),
    widths: (usize, usize),
    fill: &FillTwo<'_, A, C>,
) {
    let rows = a.len() / widths.0;
    assert_eq!(rows, b.len() / widths.1, "rows of both");
    let step = rows_per_task(backend, rows);
    let run = |first: usize, a: &mut [A], b: &mut [C]| {
        let pairs = a.chunks_exact_mut(widths.0).zip(b.chunks_exact_mut(widths.1));
        (first..).zip(pairs).for_each(|(i, (a, b))| fill(i, a, b));
    };
    if step >= rows {
        return run(0, a, b);
    }
    let parts = a.chunks_mut(step * widths.0).zip(b.chunks_mut(step * widths.1));
    let parts: Vec<Mutex<(&mut [A], &mut [C])>> = parts.map(Mutex::new).collect();
    backend.parallel(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(PoisonError::into_inner);
        let (a, b) = &mut *part;
        run(i * step, a, b);
    });
}

/// Calls `fill(i, piece i)` for pieces of `out` of the given lengths, on all threads.
///
/// # Panics
/// When `out` is shorter than all pieces together.
pub fn each_piece<B: Backend + ?Sized, T: Send>(
    backend: &B,
    mut out: &mut [T],
    lengths: impl Iterator<Item = usize>,
    fill: &(dyn Fn(usize, &mut [T]) + Sync),
) {
    let mut pieces = Vec::new();
    for length in lengths {
        let (piece, rest) = out.split_at_mut(length);
        pieces.push(Mutex::new(piece));
        out = rest;
    }
    backend.parallel(pieces.len(), &|i| {
        fill(i, &mut pieces[i].lock().unwrap_or_else(PoisonError::into_inner));
    });
}

/// The reference: one thread, no vector instructions of its own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scalar;

impl Backend for Scalar {
    fn name(&self) -> String {
        "scalar".into()
    }

    fn matmul(&self, weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]) {
        matmul(weights, x, y);
    }

    fn dot(&self, a: &[f32], b: &[f32]) -> f32 {
        dot_f32(a, b)
    }

    fn axpy(&self, factor: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y = factor.mul_add(*x, *y);
        }
    }

    fn each_row(&self, out: &mut [f32], width: usize, fill: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        out.chunks_exact_mut(width)
            .enumerate()
            .for_each(|(i, row)| fill(i, row));
    }
}
