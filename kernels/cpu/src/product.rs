//! A matrix times some tokens, as tasks of a few rows.

use ds4_kernels::block::GROUP;
use ds4_kernels::{Activations, Backend, CodesMut, Form, Format, Matrix, Q8_BLOCK, Q8K_BLOCK};

use crate::Cpu;
use crate::beside::Beside;
use crate::kernels::Kernels;
use crate::operands::{Put, ROWS, Rows, Token, part};
use crate::shared::Shared;

/// Products below this many multiply-adds stay on the calling thread: handing out tasks takes longer (a microsecond or two).
const SMALL: usize = 1 << 15;
/// Tasks per thread, so that a slow core does not hold up the others.
const TASKS: usize = 8;
/// Bytes of weights a task takes at least, where there are enough: claiming one costs some hundred nanoseconds.
const TASK_BYTES: usize = 32 << 10;

/// The tokens of a product, in the form that its kernel takes.
pub(crate) enum Tokens<'a> {
    Quantised {
        tokens: Vec<Token<'a>>,
        beside: Option<Beside>,
    },
    Plain(Vec<&'a [f32]>),
}

impl<'a> Tokens<'a> {
    /// The tokens of `x` that `which` names, in that order.
    pub(crate) fn of(kernels: &Kernels, x: &'a Activations<'_>, which: impl Iterator<Item = usize>) -> Self {
        match x {
            Activations::F32 { cols, values } => Self::Plain(which.map(|i| part(values, *cols, i)).collect()),
            Activations::Q8 { block, .. } => {
                let tokens: Vec<_> = which.map(|i| Token::of(x, i)).collect();
                let beside = kernels.beside.and_then(|_| Beside::of(&tokens, *block));
                Self::Quantised { tokens, beside }
            }
        }
    }

    /// Multiplies `rows` with all tokens.
    pub(crate) fn times(&self, kernels: &Kernels, rows: &Rows<'_>, put: Put<'_>) {
        match self {
            Self::Quantised { tokens, beside } => match (kernels.beside, beside) {
                (Some(product), Some(beside)) if rows.format() == Format::Q8_0 => product(rows, beside, put),
                _ => (kernels.product)(rows, tokens, put),
            },
            Self::Plain(tokens) => (kernels.plain)(rows, tokens, put),
        }
    }
}

/// Fails unless `weights` can be multiplied with `x`.
pub(crate) fn check(weights: &Matrix<'_>, x: &Activations<'_>) {
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
}

/// Rows per task: whole panels, few enough that every thread gets several, enough that a task is worth claiming.
pub(crate) fn rows_per_task(weights: &Matrix<'_>, rows: usize, threads: usize) -> usize {
    let fair = rows.div_ceil(threads * TASKS);
    let worth = TASK_BYTES.div_ceil(weights.row_bytes().max(1));
    fair.max(worth.min(rows.div_ceil(threads))).next_multiple_of(ROWS)
}

/// As many values as `out` has room for: a whole panel, nearly always, which then takes one instruction or a few.
pub(crate) fn store(out: &mut [f32], values: &[f32; ROWS]) {
    match out.as_mut_array::<ROWS>() {
        Some(out) => *out = *values,
        None => out.copy_from_slice(&values[..out.len()]),
    }
}

/// `y[token][row]`, threads over rows. The rows are `groups` equal parts, and part `g` takes row `token * groups + g` of `x`.
pub(crate) fn matmul(cpu: &Cpu, weights: &Matrix<'_>, groups: usize, x: &Activations<'_>, y: &mut [f32]) {
    check(weights, x);
    let (rows, all, tokens) = (weights.rows() / groups, weights.rows(), x.tokens() / groups);
    assert_eq!(rows * groups, all, "rows in {groups} groups");
    assert_eq!(tokens * groups, x.tokens(), "tokens in {groups} groups");
    assert_eq!(y.len(), tokens * all, "y is [tokens][rows]");
    if all == 0 || tokens == 0 {
        return;
    }
    let small = all * weights.cols() * tokens < SMALL;
    let per_task = if small {
        rows
    } else {
        rows_per_task(weights, rows, cpu.threads())
    };
    let of_group = |group| {
        Tokens::of(
            &cpu.kernels,
            x,
            (0..tokens).map(move |token| token * groups + group),
        )
    };
    let (x, y): (Vec<_>, _) = ((0..groups).map(of_group).collect(), Shared::new(y));
    let tasks = rows.div_ceil(per_task);
    let task = |task: usize| {
        let (group, first) = (task / tasks, task % tasks * per_task);
        let (first, end) = (group * rows + first, group * rows + rows.min(first + per_task));
        for first in (first..end).step_by(ROWS) {
            let panel = Rows::new(weights, first, end);
            x[group].times(&cpu.kernels, &panel, &mut |token, values| {
                // SAFETY: a task has rows of its own.
                store(unsafe { y.slice(token * all + first, panel.count()) }, values);
            });
        }
    };
    if small {
        return (0..groups * tasks).for_each(task);
    }
    cpu.pool.run(groups * tasks, &task);
}

/// The activations in `form`, threads over tokens.
pub(crate) fn activations<'a>(cpu: &Cpu, values: &'a [f32], cols: usize, form: Form) -> Activations<'a> {
    let block = match form {
        Form::F32 => return Activations::f32(values, cols),
        Form::Q8 => Q8_BLOCK,
        Form::Q8K => Q8K_BLOCK,
    };
    Activations::from_rows(values, cols, block, |values, out| {
        let CodesMut {
            codes,
            scales,
            sums,
            offsets,
        } = out;
        let out = (
            Shared::new(codes),
            Shared::new(scales),
            Shared::new(sums),
            Shared::new(offsets),
        );
        let quantize = |i: usize| {
            // SAFETY: a task has a token of its own, and so a part of its own of each output.
            let row = unsafe {
                CodesMut {
                    codes: out.0.slice(i * cols, cols),
                    scales: out.1.slice(i * (cols / block), cols / block),
                    sums: out.2.slice(i * (cols / GROUP), cols / GROUP),
                    offsets: out.3.slice(i * (cols / Q8_BLOCK), cols / Q8_BLOCK),
                }
            };
            (cpu.kernels.quantize)(part(values, cols, i), block, row);
        };
        let tokens = values.len() / cols;
        if values.len() < SMALL {
            return (0..tokens).for_each(quantize);
        }
        cpu.pool.run(tokens, &quantize);
    })
}
