//! A matrix times some tokens, as tasks of a few rows.

use std::sync::OnceLock;

use ds4_kernels::block::GROUP;
use ds4_kernels::{Activations, Backend, CodesMut, Form, Format, Matrix, Q8_BLOCK, Q8K_BLOCK};

use crate::Cpu;
use crate::beside::Beside;
use crate::kernels::Kernels;
use crate::operands::{Put, ROWS, Rows, Token, part};
use crate::shared::Shared;
use crate::tiled::{Tiled, Tiling};

/// Products below this many multiply-adds stay on the calling thread: handing out tasks takes longer (a microsecond or two).
const SMALL: usize = 1 << 15;
/// Tasks per thread, so that a slow core does not hold up the others.
const TASKS: usize = 8;
/// Bytes of weights a task takes at least, where there are enough: claiming one costs some hundred nanoseconds.
const TASK_BYTES: usize = 32 << 10;

/// Bytes of plain tokens that a task takes: with the rows as floats they leave room in a second cache of 2 MiB (Sapphire Rapids).
const PIECE_BYTES: usize = 1 << 20;
/// Plain tokens that a task takes at least, so that unpacking rows for them is little, and of what it takes a multiple: whole tiles of every level.
const LEAST: usize = 48;
const MULTIPLE: usize = 12;

/// Rows of a whole tile of plain tokens at every level: so few make a task where panels would leave threads without any.
const TILE_ROWS: usize = 4;

/// The tokens of a product, in the form that its kernel takes.
pub(crate) enum Tokens<'a> {
    Quantised {
        tokens: Vec<Token<'a>>,
        beside: Option<Beside>,
        /// Made when the first rows need it.
        tiled: OnceLock<Tiled>,
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
                Self::Quantised {
                    tokens,
                    beside,
                    tiled: OnceLock::new(),
                }
            }
        }
    }

    /// Multiplies `rows` with all tokens.
    pub(crate) fn times(&self, kernels: &Kernels, rows: &Rows<'_>, put: Put<'_>) {
        match self {
            Self::Quantised {
                tokens,
                beside,
                tiled,
            } => match (kernels.tiled, kernels.beside, beside) {
                (Some(tiling), ..) if Tiling::takes(rows.format(), tokens.len()) => {
                    (tiling.product)(rows, tiled.get_or_init(|| (tiling.prepare)(tokens)), put);
                }
                (_, Some(product), Some(beside)) if rows.format() == Format::Q8_0 => {
                    product(rows, beside, put)
                }
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
    let (pieces, y): (Vec<_>, _) = (pieces(cpu, groups, tokens, x), Shared::new(y));
    let panels = rows_per_task(weights, rows, cpu.threads());
    let starved = rows.div_ceil(panels) * pieces.len() < 2 * cpu.threads();
    let per_task = match x {
        _ if small => rows,
        Activations::F32 { .. } if starved => {
            rows.div_ceil(cpu.threads() * TASKS).next_multiple_of(TILE_ROWS)
        }
        _ => panels,
    };
    let tasks = rows.div_ceil(per_task);
    let task = |task: usize| {
        let piece = &pieces[task / tasks];
        let (start, first) = (piece.group * rows, task % tasks * per_task);
        let (first, end) = (start + first, start + rows.min(first + per_task));
        for first in (first..end).step_by(ROWS) {
            let panel = Rows::new(weights, first, end);
            piece.tokens.times(&cpu.kernels, &panel, &mut |token, values| {
                let at = (piece.first + token) * all + first;
                // SAFETY: a task has rows and tokens of its own.
                store(unsafe { y.slice(at, panel.count()) }, values);
            });
        }
    };
    if small {
        return (0..pieces.len() * tasks).for_each(task);
    }
    cpu.pool.run(pieces.len() * tasks, &task);
}

/// Some consecutive tokens of one group of rows.
struct Piece<'a> {
    group: usize,
    first: usize,
    tokens: Tokens<'a>,
}

/// The tokens of every group: plain ones as many at a time as a cache holds, others all together.
fn pieces<'a>(cpu: &Cpu, groups: usize, tokens: usize, x: &'a Activations<'_>) -> Vec<Piece<'a>> {
    let most = match x {
        Activations::F32 { cols, .. } => (PIECE_BYTES / (4 * cols).max(1))
            .max(LEAST)
            .next_multiple_of(MULTIPLE),
        Activations::Q8 { .. } => tokens,
    };
    let piece = |first: usize, group: usize| {
        let which = (first..tokens.min(first + most)).map(|token| token * groups + group);
        Piece {
            group,
            first,
            tokens: Tokens::of(&cpu.kernels, x, which),
        }
    };
    (0..tokens)
        .step_by(most)
        .flat_map(|first| (0..groups).map(move |group| piece(first, group)))
        .collect()
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
