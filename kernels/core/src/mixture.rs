//! The experts of a layer over their tokens.

use crate::ops::experts::swiglu;
use crate::{Activations, Backend, Form, Matrix};

/// The routed or the shared experts of one layer; matrices of one kind are stacked, expert after expert.
#[derive(Clone, Copy, Debug)]
pub struct Experts<'a> {
    /// `[count * n_ff][n_embd]`.
    pub gate: Matrix<'a>,
    /// `[count * n_ff][n_embd]`.
    pub up: Matrix<'a>,
    /// `[count * n_embd][n_ff]`.
    pub down: Matrix<'a>,
    /// Number of experts.
    pub count: usize,
    /// Bound of the gate from above and of up on both sides.
    pub clamp: f32,
    /// Form in which the activated values enter `down`.
    pub form: Form,
}

/// One expert of one token.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Choice {
    /// Which one.
    pub expert: usize,
    /// Its share; enters before the last product.
    pub weight: f32,
}

impl<'a> Experts<'a> {
    /// Gate, up and down of expert `i`.
    #[must_use]
    pub fn one(&self, i: usize) -> [Matrix<'a>; 3] {
        [self.gate, self.up, self.down].map(|all| {
            let rows = all.rows() / self.count;
            all.part(i * rows, rows)
        })
    }

    /// Which choices fall on expert `i`, ascending.
    fn chosen(choices: &[Choice], i: usize) -> Vec<usize> {
        let of_expert = |at: &usize| choices[*at].expert == i;
        (0..choices.len()).filter(of_expert).collect()
    }
}

/// The reference of [`Backend::experts`]: expert after expert, its tokens together.
pub(crate) fn experts<B: Backend + ?Sized>(
    backend: &B,
    experts: &Experts<'_>,
    choices: &[Choice],
    x: &Activations<'_>,
    out: &mut [f32],
) {
    let (tokens, n_embd) = (x.tokens(), experts.down.rows() / experts.count);
    assert_eq!(
        out.len(),
        choices.len() * n_embd,
        "out is [choices][rows of down]"
    );
    assert!(
        tokens > 0 && choices.len().is_multiple_of(tokens),
        "choices are [tokens][used]"
    );
    let used = choices.len() / tokens;
    for expert in 0..experts.count {
        let chosen = Experts::chosen(choices, expert);
        if chosen.is_empty() {
            continue;
        }
        let inputs: Vec<usize> = chosen.iter().map(|at| at / used).collect();
        let weights: Vec<f32> = chosen.iter().map(|at| choices[*at].weight).collect();
        let outputs = one(backend, experts, expert, &weights, &x.gather(&inputs));
        for (at, row) in chosen.iter().zip(outputs.chunks_exact(n_embd)) {
            out[at * n_embd..(at + 1) * n_embd].copy_from_slice(row);
        }
    }
}

/// One expert over its tokens.
fn one<B: Backend + ?Sized>(
    backend: &B,
    experts: &Experts<'_>,
    number: usize,
    weights: &[f32],
    x: &Activations<'_>,
) -> Vec<f32> {
    let [gate, up, down] = experts.one(number);
    let product = |matrix: &Matrix<'_>, x: &Activations<'_>| {
        let mut y = vec![0.0; x.tokens() * matrix.rows()];
        backend.matmul(matrix, x, &mut y);
        y
    };
    let (mut gated, raised) = (product(&gate, x), product(&up, x));
    let rows = gated
        .chunks_exact_mut(gate.rows())
        .zip(raised.chunks_exact(up.rows()));
    for ((gated, raised), weight) in rows.zip(weights) {
        swiglu(gated, raised, experts.clamp, *weight);
    }
    product(&down, &backend.activations(&gated, down.cols(), experts.form))
}
