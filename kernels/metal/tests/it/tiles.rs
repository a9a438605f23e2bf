//! Products by `simdgroup_matrix` beside the plain kernels: the same bits, whatever the shape.

use ds4_kernels::{Activations, Form, Format, matmul};
use ds4_kernels_metal::activation::{Quantized, quantize};
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::matmul::quantized;
use ds4_kernels_metal::matrix::Weights;
use ds4_kernels_metal::router::{Choices, Groups, group};
use ds4_kernels_metal::{Buffer, Device};

use crate::support::{Bench, Random, assert_bits, bench, matrix, rows};

const FORMATS: [Format; 5] = [
    Format::Q8_0,
    Format::Q2K,
    Format::Q4K,
    Format::Iq2Xxs,
    Format::Mxfp4,
];

/// Activations as codes, on the device.
struct Input {
    cols: usize,
    block: usize,
    codes: Buffer<i8>,
    scales: Buffer<f32>,
}

impl Input {
    fn new(bench: &Bench, format: Format, cols: usize, values: &[f32]) -> Self {
        let (form, block) = (Form::of(format), format.block_len());
        let (x, codes, scales) = (
            bench.upload(values),
            bench.room(values.len()),
            bench.room(values.len() / block),
        );
        quantize(bench.device, form, cols, x.all(), codes.all(), scales.all()).unwrap();
        Self {
            cols,
            block,
            codes,
            scales,
        }
    }

    const fn all(&self) -> Quantized<'_> {
        Quantized {
            cols: self.cols,
            block: self.block,
            codes: self.codes.all(),
            scales: self.scales.all(),
        }
    }
}

/// Columns: a few blocks, no more than one step of the plain kernels' loop.
fn columns(random: &mut Random, format: Format) -> usize {
    format.block_len() * (1 + random.below(1024 / format.block_len()))
}

fn product(bench: &Bench, random: &mut Random, format: Format, n: usize, tokens: usize) {
    let cols = columns(random, format);
    let bytes = rows(random, format, n, cols);
    let weights = Weights::upload(bench.device, &matrix(format, n, cols, &bytes)).unwrap();
    let x = Input::new(bench, format, cols, &random.values(tokens * cols));
    let y = |device: &Device| {
        let y = bench.room(tokens * n);
        quantized(device, weights.all(), x.all(), y.all()).unwrap();
        device.download(y.all()).unwrap()
    };
    let expected = y(bench.plain);
    let what = format!("{format} [{n}, {cols}] x {tokens}");
    bench.each_order(|device| assert_bits(&what, &expected, &y(device)));
}

#[cfg_attr(test, test)]
pub fn products_by_matrices_have_the_bits_of_the_plain_kernels() {
    let bench = bench();
    let mut random = Random(11);
    for format in FORMATS {
        for (tokens, rows) in [(1, 20), (9, 100), (33, 30), (70, 10)] {
            let n = 1 + random.below(rows);
            product(&bench, &mut random, format, n, tokens);
        }
    }
}

/// Weights and activations of the largest size and one sign: sums beyond what float has without a gap.
#[cfg_attr(test, test)]
pub fn the_largest_sums_have_the_bits_of_the_reference() {
    let bench = bench();
    for format in FORMATS {
        let (n, cols, tokens) = (3, 2 * format.block_len(), 9);
        let mut bytes = rows(&mut Random(12), format, n, cols);
        let scales: &[usize] = match format {
            Format::Q2K => &[80, 82],
            Format::Q4K => &[0, 2],
            _ => &[0],
        };
        for block in bytes.chunks_exact_mut(format.block_bytes()) {
            // Codes, steps and minimums of one block are all ones: their largest; a byte of Q8_0 is that at -128.
            block.fill(if format == Format::Q8_0 { 0x80 } else { 0xff });
            if format == Format::Mxfp4 {
                block[0] = 120;
                continue;
            }
            scales
                .iter()
                .for_each(|at| block[*at..at + 2].copy_from_slice(&0x2c01u16.to_le_bytes()));
        }
        // All alike, so that every code is the largest.
        let values = vec![0.7; tokens * cols];
        let weights = matrix(format, n, cols, &bytes);
        let mut expected = vec![0.0; tokens * n];
        matmul(
            &weights,
            &Activations::new(&values, cols, Form::of(format)),
            &mut expected,
        );
        let weights = Weights::upload(bench.device, &weights).unwrap();
        let x = Input::new(&bench, format, cols, &values);
        bench.each_way(|device| {
            let y = bench.room(tokens * n);
            quantized(device, weights.all(), x.all(), y.all()).unwrap();
            assert_bits(&format.to_string(), &expected, &device.download(y.all()).unwrap());
        });
    }
}

/// The expert of each choice.
type Spread = fn(usize) -> u32;

/// Both products of the experts for tokens with `used` choices each.
struct Routed {
    gate: Weights,
    up: Weights,
    down: Weights,
    n_ff: usize,
    n_embd: usize,
    x: Input,
    experts: Buffer<u32>,
    weights: Buffer<f32>,
    order: Buffer<u32>,
    starts: Buffer<u32>,
}

const EXPERTS: usize = 4;
const USED: usize = 2;
const CLAMP: f32 = 0.4;

impl Routed {
    fn new(bench: &Bench, random: &mut Random, format: Format, tokens: usize, spread: Spread) -> Self {
        // Rows of the last product that are no multiple of a tile.
        const ROWS: usize = 37;
        let (n_ff, n_embd) = (
            format.block_len() * (1 + random.below(2)),
            columns(random, format),
        );
        let mut stacked = |n: usize, cols: usize| {
            let bytes = rows(random, format, EXPERTS * n, cols);
            Weights::upload(bench.device, &matrix(format, EXPERTS * n, cols, &bytes)).unwrap()
        };
        let [gate, up] = [0, 1].map(|_| stacked(n_ff, n_embd));
        let down = stacked(ROWS, n_ff);
        let ids: Vec<u32> = (0..tokens * USED).map(spread).collect();
        let weights: Vec<f32> = ids.iter().map(|_| random.uniform() + 1.0).collect();
        let this = Self {
            gate,
            up,
            down,
            n_ff,
            n_embd: ROWS,
            x: Input::new(bench, format, n_embd, &random.values(tokens * n_embd)),
            experts: bench.upload(&ids),
            weights: bench.upload(&weights),
            order: bench.room(ids.len()),
            starts: bench.room(EXPERTS + 1),
        };
        group(bench.device, this.experts.all(), this.groups()).unwrap();
        this
    }

    const fn groups(&self) -> Groups<'_> {
        Groups {
            order: self.order.all(),
            starts: self.starts.all(),
        }
    }

    /// What gate and up give, and what down makes of it.
    fn run(&self, bench: &Bench, format: Format, device: &Device, way: Together<'_>) -> [Vec<f32>; 2] {
        let count = self.experts.len();
        let choices = Choices {
            experts: self.experts.all(),
            weights: self.weights.all(),
            used: USED,
        };
        let (h, out) = (bench.room(count * self.n_ff), bench.room(count * self.n_embd));
        let (gate, up) = (&self.gate, &self.up);
        experts::gate_up(
            device,
            gate,
            up,
            self.n_ff,
            self.x.all(),
            choices,
            way,
            CLAMP,
            h.all(),
        )
        .unwrap();
        let h = device.download(h.all()).unwrap();
        let x = Input::new(bench, format, self.n_ff, &h);
        experts::down(
            device,
            self.down.all(),
            self.n_embd,
            x.all(),
            choices,
            way,
            out.all(),
        )
        .unwrap();
        [h, device.download(out.all()).unwrap()]
    }
}

#[cfg_attr(test, test)]
pub fn experts_by_matrices_have_the_bits_of_the_plain_kernels() {
    let bench = bench();
    let mut random = Random(13);
    // One empty and one of a single choice; all on one; one token.
    let spreads: [(usize, Spread); 3] = [
        (23, |i| if i == 7 { 0 } else { 1 + 2 * u32::from(i % 5 == 4) }),
        (19, |_| 2),
        (1, |i| i as u32),
    ];
    for format in FORMATS {
        for (tokens, spread) in spreads {
            let routed = Routed::new(&bench, &mut random, format, tokens, spread);
            let plain = routed.run(&bench, format, bench.plain, Together::Many(routed.groups()));
            bench.each_order(|device| {
                let found = routed.run(&bench, format, device, Together::Tiles(routed.groups()));
                for (what, (expected, found)) in ["gate and up", "down"].iter().zip(plain.iter().zip(&found))
                {
                    assert_bits(&format!("{what} {format}, {tokens} tokens"), expected, found);
                }
            });
        }
    }
}
