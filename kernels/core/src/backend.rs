//! What a back end on a general-purpose processor supplies: the products that take the time, and the threads.

use crate::mixture::{self, Choice, Experts};
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

    /// `values`, `[tokens][cols]`, in the form that a product takes: made once for all matrices that share an input.
    fn activations<'a>(&self, values: &'a [f32], cols: usize, form: Form) -> Activations<'a> {
        Activations::new(values, cols, form)
    }

    /// `y[token][row] = weights[row] . x[token]`.
    fn matmul(&self, weights: &Matrix<'_>, x: &Activations<'_>, y: &mut [f32]);

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
