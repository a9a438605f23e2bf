//! The experts over their tokens.

use ds4_kernels::ops::experts::swiglu;
use ds4_kernels::{Activations, Form, Format, Matrix, matmul};
use ds4_kernels_cuda::activation::quantize;
use ds4_kernels_cuda::experts::{self, Together};
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::router::{Choices, Groups, group};
use ds4_kernels_cuda::{Buffer, CudaError, Slice};

use crate::bench::matrix;
use crate::{Bench, Case, Failure, Outcome};

pub(crate) const CASES: &[Case] = &[
    Case {
        name: "Q8_0 experts",
        kernels: &[
            "gate_up_q8_0_one",
            "gate_up_q8_0_many",
            "gate_up_q8_0_tiles",
            "down_q8_0_one",
            "down_q8_0_many",
            "down_q8_0_tiles",
            "group_choices",
        ],
        run: |bench| of_format(bench, Format::Q8_0),
    },
    Case {
        name: "Q2_K experts",
        kernels: &[
            "gate_up_q2_k_one",
            "gate_up_q2_k_many",
            "gate_up_q2_k_tiles",
            "down_q2_k_one",
            "down_q2_k_many",
            "down_q2_k_tiles",
        ],
        run: |bench| of_format(bench, Format::Q2K),
    },
    Case {
        name: "Q4_K experts",
        kernels: &[
            "gate_up_q4_k_one",
            "gate_up_q4_k_many",
            "gate_up_q4_k_tiles",
            "down_q4_k_one",
            "down_q4_k_many",
            "down_q4_k_tiles",
        ],
        run: |bench| of_format(bench, Format::Q4K),
    },
    Case {
        name: "IQ2_XXS experts",
        kernels: &[
            "gate_up_iq2_xxs_one",
            "gate_up_iq2_xxs_many",
            "gate_up_iq2_xxs_tiles",
            "down_iq2_xxs_one",
            "down_iq2_xxs_many",
            "down_iq2_xxs_tiles",
        ],
        run: |bench| of_format(bench, Format::Iq2Xxs),
    },
    Case {
        name: "MXFP4 experts",
        kernels: &[
            "gate_up_mxfp4_one",
            "gate_up_mxfp4_many",
            "gate_up_mxfp4_tiles",
            "down_mxfp4_one",
            "down_mxfp4_many",
            "down_mxfp4_tiles",
        ],
        run: |bench| of_format(bench, Format::Mxfp4),
    },
    Case {
        name: "activation of the shared expert",
        kernels: &["swiglu"],
        run: activation,
    },
    Case {
        name: "sum of the experts",
        kernels: &["combine_experts"],
        run: combine,
    },
];

/// Binds values of both kinds of SwiGLU's clamps.
const CLAMP: f32 = 0.4;

/// How choices fall on experts.
#[derive(Clone, Copy, Debug)]
enum Spread {
    /// On all but one of them, in no order.
    OneEmpty,
    /// All on one.
    OneCrowded,
}

fn of_format(bench: &mut Bench<'_>, format: Format) -> Outcome {
    spread(bench, format, Spread::OneEmpty)?;
    spread(bench, format, Spread::OneCrowded)
}

/// The chosen experts of some tokens, on host and device.
struct Chosen {
    used: usize,
    count: usize,
    experts: Vec<u32>,
    weights: Vec<f32>,
    on_device: (Buffer<u32>, Buffer<f32>),
    order: Buffer<u32>,
    starts: Buffer<u32>,
}

impl Chosen {
    fn draw(bench: &mut Bench<'_>, spread: Spread) -> Result<Self, Failure> {
        let most = if bench.tokens > 64 { 1 } else { 3 };
        let (used, count) = (bench.random.within(1, most), bench.random.within(3, 6));
        let n = bench.tokens * used;
        let (special, random) = (bench.random.below(count), &mut bench.random);
        let expert = |_| match spread {
            Spread::OneCrowded => special,
            Spread::OneEmpty => (special + random.within(1, count - 1)) % count,
        };
        #[allow(clippy::cast_possible_truncation)] // a few experts
        let experts: Vec<u32> = (0..n).map(expert).map(|expert| expert as u32).collect();
        let weights: Vec<f32> = (0..n).map(|_| bench.random.uniform() + 1.0).collect();
        Ok(Self {
            used,
            count,
            on_device: (bench.upload(&experts)?, bench.upload(&weights)?),
            experts,
            weights,
            order: bench.room(n)?,
            starts: bench.room(count + 1)?,
        })
    }

    const fn choices(&self) -> Choices<'_> {
        Choices {
            experts: self.on_device.0.all(),
            weights: self.on_device.1.all(),
            used: self.used,
        }
    }

    const fn groups(&self) -> Groups<'_> {
        Groups {
            order: self.order.all(),
            starts: self.starts.all(),
        }
    }

    /// Choices by expert, ascending within one, and where an expert's begin.
    #[allow(clippy::cast_possible_truncation)] // a few thousand choices
    fn sorted(&self) -> (Vec<u32>, Vec<u32>) {
        let mut order: Vec<u32> = (0..self.experts.len() as u32).collect();
        order.sort_by_key(|choice| self.experts[*choice as usize]);
        let before = |expert: usize| self.experts.iter().filter(|of| (**of as usize) < expert).count() as u32;
        (order, (0..=self.count).map(before).collect())
    }

    /// Grouped by expert, and one by one where the engine would: more would take long to emulate.
    fn ways(&self) -> impl Iterator<Item = Together<'_>> {
        let one = (self.experts.len() <= 64).then_some(Together::One);
        let grouped = [Together::Many(self.groups()), Together::Tiles(self.groups())];
        grouped.into_iter().chain(one)
    }
}

fn spread(bench: &mut Bench<'_>, format: Format, spread: Spread) -> Outcome {
    let chosen = Chosen::draw(bench, spread)?;
    group(bench.device, chosen.choices().experts, chosen.groups())?;
    let (order, starts) = chosen.sorted();
    bench.equal("order of choices", &order, chosen.order.all())?;
    bench.equal("starts of experts", &starts, chosen.starts.all())?;
    gate_up(bench, format, &chosen)?;
    down(bench, format, &chosen)
}

/// Rows of one expert's matrix, and columns.
fn shape(bench: &mut Bench<'_>, format: Format) -> (usize, usize) {
    if bench.tokens > 64 {
        return (bench.random.within(1, 2), format.block_len());
    }
    let blocks = bench.random.within(1, 1536 / format.block_len());
    (bench.random.within(1, 21), blocks * format.block_len())
}

/// A row of products with an expert's matrix.
fn times(weights: &Matrix<'_>, expert: u32, rows: usize, x: &[f32], form: Form) -> Vec<f32> {
    let mut y = vec![0.0; rows];
    let part = weights.part(expert as usize * rows, rows);
    matmul(&part, &Activations::new(x, x.len(), form), &mut y);
    y
}

/// Activations on the device.
struct Codes {
    codes: Buffer<i8>,
    scales: Buffer<f32>,
    values: Buffer<f32>,
}

impl Codes {
    fn of(bench: &Bench<'_>, format: Format, values: &[f32]) -> Result<Self, CudaError> {
        Ok(Self {
            codes: bench.room(values.len())?,
            scales: bench.room(values.len() / format.block_len())?,
            values: bench.upload(values)?,
        })
    }

    fn quantized(
        &self,
        bench: &Bench<'_>,
        format: Format,
        cols: usize,
    ) -> Result<ds4_kernels_cuda::activation::Quantized<'_>, CudaError> {
        let (x, codes, scales) = (self.values.all(), self.codes.all(), self.scales.all());
        quantize(bench.device, Form::of(format), cols, x, codes, scales)
    }
}

fn gate_up(bench: &mut Bench<'_>, format: Format, chosen: &Chosen) -> Outcome {
    let (rows, cols) = shape(bench, format);
    let [gate_bytes, up_bytes] = [0, 1].map(|_| bench.random.rows(format, chosen.count * rows, cols));
    let of = |bytes| matrix(format, chosen.count * rows, cols, bytes);
    let (gate, up, form) = (of(&gate_bytes)?, of(&up_bytes)?, Form::of(format));
    let values = bench.random.values(bench.tokens * cols);
    let mut expected = Vec::with_capacity(chosen.experts.len() * rows);
    for (choice, expert) in chosen.experts.iter().enumerate() {
        let x = &values[choice / chosen.used * cols..][..cols];
        let mut part = times(&gate, *expert, rows, x, form);
        swiglu(
            &mut part,
            &times(&up, *expert, rows, x, form),
            CLAMP,
            chosen.weights[choice],
        );
        expected.extend(part);
    }
    let [gate, up]: [Weights; 2] = [bench.weights(&gate)?, bench.weights(&up)?];
    let codes = Codes::of(bench, format, &values)?;
    for way in chosen.ways() {
        let (x, out) = (codes.quantized(bench, format, cols)?, bench.room(expected.len())?);
        let choices = chosen.choices();
        experts::gate_up(bench.device, &gate, &up, rows, x, choices, way, CLAMP, out.all())?;
        bench.bits(
            &what("gate and up", format, rows, cols, way),
            &expected,
            out.all(),
        )?;
    }
    Ok(())
}

fn down(bench: &mut Bench<'_>, format: Format, chosen: &Chosen) -> Outcome {
    let (rows, cols) = shape(bench, format);
    let bytes = bench.random.rows(format, chosen.count * rows, cols);
    let weights = matrix(format, chosen.count * rows, cols, &bytes)?;
    let values = bench.random.values(chosen.experts.len() * cols);
    let of_choice = |(choice, expert): (usize, &u32)| {
        let x = &values[choice * cols..][..cols];
        times(&weights, *expert, rows, x, Form::of(format))
    };
    let expected: Vec<f32> = chosen.experts.iter().enumerate().flat_map(of_choice).collect();
    let on_device = bench.weights(&weights)?;
    let codes = Codes::of(bench, format, &values)?;
    for way in chosen.ways() {
        let (x, out) = (codes.quantized(bench, format, cols)?, bench.room(expected.len())?);
        let choices = chosen.choices();
        experts::down(bench.device, on_device.all(), rows, x, choices, way, out.all())?;
        bench.bits(&what("down", format, rows, cols, way), &expected, out.all())?;
    }
    Ok(())
}

fn what(operation: &str, format: Format, rows: usize, cols: usize, way: Together<'_>) -> String {
    let way = match way {
        Together::One => "one by one",
        Together::Many(_) => "by expert",
        Together::Tiles(_) => "by expert in tiles",
    };
    format!("{operation} {format} [{rows}, {cols}] {way}")
}

fn activation(bench: &mut Bench<'_>) -> Outcome {
    let count = bench.tokens * bench.random.within(1, 300);
    let (gate, up) = (bench.random.values(count), bench.random.values(count));
    let mut expected = gate.clone();
    swiglu(&mut expected, &up, CLAMP, 1.0);
    let (gate, up) = (bench.upload(&gate)?, bench.upload(&up)?);
    experts::swiglu(bench.device, gate.all(), up.all(), CLAMP)?;
    bench.bits("swiglu", &expected, gate.all())
}

fn combine(bench: &mut Bench<'_>) -> Outcome {
    let (tokens, used, width) = (
        bench.tokens,
        bench.random.within(1, 8),
        bench.random.within(1, 70),
    );
    let (shared, parts) = (
        bench.random.values(tokens * width),
        bench.random.values(tokens * used * width),
    );
    let of_value = |(i, shared): (usize, &f32)| {
        let (token, d) = (i / width, i % width);
        shared + (0..used).fold(0.0, |sum, slot| sum + parts[(token * used + slot) * width + d])
    };
    let expected: Vec<f32> = shared.iter().enumerate().map(of_value).collect();
    let (sum, parts): (Buffer<f32>, Buffer<f32>) = (bench.upload(&shared)?, bench.upload(&parts)?);
    let sum: Slice<'_, f32> = sum.all();
    experts::combine(bench.device, sum, parts.all(), used, width)?;
    bench.bits("sum", &expected, sum)
}
