//! What the device can do at most, measured, and what the kernels reach of it.

use std::time::Duration;

use ds4_kernels::{Form, Format, Matrix};
use ds4_kernels_cuda::activation::quantize;
use ds4_kernels_cuda::experts::{self, Together};
use ds4_kernels_cuda::matmul::{floats, quantized};
use ds4_kernels_cuda::matrix::Weights;
use ds4_kernels_cuda::router::{Choices, Groups, group};
use ds4_kernels_cuda::{Buffer, CudaError, Device, peak};
use ds4_kernels_suite::Random;

/// Sizes of what is measured.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Weights that a decode kernel goes through: more than any cache holds.
    pub weights: usize,
    /// Rows and columns of a prefill product are divided by this.
    pub shrink: usize,
    /// Tokens of a prefill product.
    pub tokens: usize,
    /// Times that each is measured; the median counts.
    pub rounds: usize,
}

impl Sizes {
    /// For a real device.
    pub const DEVICE: Self = Self {
        weights: 1 << 30,
        shrink: 1,
        tokens: 4096,
        rounds: 9,
    };
    /// For the emulator, where only the way is tried.
    pub const TRIAL: Self = Self {
        weights: 1 << 12,
        shrink: 64,
        tokens: 9,
        rounds: 1,
    };
}

/// One measurement.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The kernel.
    pub kernel: String,
    /// What it computed.
    pub what: String,
    /// Bytes of weights read.
    pub bytes: f64,
    /// Multiplications and additions.
    pub operations: f64,
    /// The median of its times.
    pub seconds: f64,
}

impl Measured {
    /// Bytes per second.
    #[must_use]
    pub fn bandwidth(&self) -> f64 {
        self.bytes / self.seconds
    }

    /// Operations per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.operations / self.seconds
    }
}

fn median(
    device: &Device,
    rounds: usize,
    work: &dyn Fn() -> Result<(), CudaError>,
) -> Result<f64, CudaError> {
    device.time(work)?; // caches, clocks, and code that is loaded late
    let times = (0..rounds)
        .map(|_| device.time(work))
        .collect::<Result<Vec<Duration>, _>>();
    let mut times = times?;
    times.sort_unstable();
    Ok(times[times.len() / 2].as_secs_f64())
}

/// The device's own bandwidth: a copy within its memory, each byte read and written.
///
/// # Errors
/// When the device has no room or fails.
#[allow(clippy::cast_precision_loss)] // bytes
pub fn copy(device: &Device, sizes: Sizes) -> Result<Measured, CudaError> {
    let (from, to): (Buffer<u8>, Buffer<u8>) = (
        device.allocate("copy", sizes.weights)?,
        device.allocate("copy", sizes.weights)?,
    );
    let seconds = median(device, sizes.rounds, &|| device.copy(from.all(), to.all()))?;
    Ok(Measured {
        kernel: "copy within the device".into(),
        what: format!("{} bytes read and written", sizes.weights),
        bytes: 2.0 * sizes.weights as f64,
        operations: 0.0,
        seconds,
    })
}

/// The device's own rate of products of bytes, on tensor cores with operands that stay in registers.
///
/// # Errors
/// When the device has no room or fails.
#[allow(clippy::cast_precision_loss)] // operations
pub fn byte_products(device: &Device, sizes: Sizes) -> Result<Measured, CudaError> {
    let (blocks, rounds) = match sizes.shrink {
        1 => (8 * device.facts().multiprocessors as usize, 4096),
        _ => (1, 2),
    };
    let operands = device.upload("operands", &[0x0102_0304_u32; 6])?;
    let out: Buffer<i32> = device.allocate("sums", blocks * 256)?;
    let operations = std::cell::Cell::new(0);
    let run = || {
        let done = peak::bytes(device, operands.all(), out.all(), rounds)?;
        operations.set(done);
        Ok(())
    };
    let seconds = median(device, sizes.rounds, &run)?;
    Ok(Measured {
        kernel: "peak_bytes".into(),
        what: "products in registers".into(),
        bytes: 0.0,
        operations: operations.get() as f64,
        seconds,
    })
}

/// What a decoded token multiplies with, in the shapes of Flash: name, format, rows, columns.
const DECODE: [(&str, Format, usize, usize); 6] = [
    ("queries, second step", Format::Q8_0, 32_768, 1024),
    ("attention output", Format::Q8_0, 4096, 8192),
    ("shared expert", Format::Q8_0, 2048, 4096),
    ("head", Format::Q8_0, 129_280, 4096),
    ("hyper-connections", Format::F16, 24, 16_384),
    ("compressor", Format::F16, 1024, 4096),
];

/// Products with one token, over so many different matrices that each comes from memory.
///
/// # Errors
/// When the device has no room or fails.
#[allow(clippy::cast_precision_loss)] // bytes
pub fn decode(device: &Device, sizes: Sizes) -> Result<Vec<Measured>, CudaError> {
    let mut measured = Vec::new();
    for (what, format, rows, cols) in DECODE {
        let rows = (rows / sizes.shrink).max(1);
        let bytes = rows * cols / format.block_len() * format.block_bytes();
        let matrices = (0..(sizes.weights / bytes).clamp(1, 4096))
            .map(|_| weights(device, format, rows, cols))
            .collect::<Result<Vec<_>, _>>()?;
        let x = Operand::new(device, format, 1, cols)?;
        let y: Buffer<f32> = device.allocate("product", rows)?;
        let q = match Form::of(format) {
            Form::F32 => None,
            form => Some(x.quantized(device, form)?),
        };
        let all = || {
            matrices.iter().try_for_each(|weights| match q {
                None => floats(device, weights.all(), x.values.all(), y.all()),
                Some(q) => quantized(device, weights.all(), q, y.all()),
            })
        };
        measured.push(Measured {
            kernel: format!("matvec_{}", format.name().to_lowercase()),
            what: format!("{what} [{rows}, {cols}]"),
            bytes: (bytes * matrices.len()) as f64,
            operations: (2 * rows * cols * matrices.len()) as f64,
            seconds: median(device, sizes.rounds, &all)?,
        });
    }
    measured.extend(decode_experts(device, sizes)?);
    Ok(measured)
}

/// Experts of a layer and of a token.
const EXPERTS: (usize, usize) = (256, 6);

/// The routed experts of one token, other ones in every launch.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // bytes, experts
fn decode_experts(device: &Device, sizes: Sizes) -> Result<Vec<Measured>, CudaError> {
    let (ff, embd) = ((2048 / sizes.shrink).max(256), (4096 / sizes.shrink).max(256));
    let (count, used) = if sizes.shrink == 1 {
        EXPERTS
    } else {
        (EXPERTS.1, EXPERTS.1)
    };
    let [gate, up] = [
        weights(device, Format::Iq2Xxs, count * ff, embd)?,
        weights(device, Format::Iq2Xxs, count * ff, embd)?,
    ];
    let down = weights(device, Format::Q2K, count * embd, ff)?;
    let ids: Vec<u32> = (0..count as u32).collect();
    let (ids, shares) = (
        device.upload("experts", &ids)?,
        device.upload("shares of experts", &vec![1.0_f32; count])?,
    );
    let tokens: Vec<usize> = (0..count / used).collect();
    let choices = |token: usize| Choices {
        experts: ids.all().range(token * used..(token + 1) * used),
        weights: shares.all().range(token * used..(token + 1) * used),
        used,
    };
    let (x, h) = (
        Operand::new(device, Format::Iq2Xxs, 1, embd)?,
        Operand::new(device, Format::Q2K, used, ff)?,
    );
    let (middle, out): (Buffer<f32>, Buffer<f32>) = (
        device.allocate("activated", used * ff)?,
        device.allocate("outputs of experts", used * embd)?,
    );
    let x = x.quantized(device, Form::of(Format::Iq2Xxs))?;
    let h = h.quantized(device, Form::of(Format::Q2K))?;
    let of_gate = || {
        tokens.iter().try_for_each(|token| {
            experts::gate_up(
                device,
                &gate,
                &up,
                ff,
                x,
                choices(*token),
                Together::One,
                10.0,
                middle.all(),
            )
        })
    };
    let of_down = || {
        tokens.iter().try_for_each(|token| {
            experts::down(
                device,
                down.all(),
                embd,
                h,
                choices(*token),
                Together::One,
                out.all(),
            )
        })
    };
    let row = |kernel: &str, weights: &[&Weights], seconds: f64| Measured {
        kernel: kernel.to_owned(),
        what: format!("{used} of {count} experts, {} tokens one by one", tokens.len()),
        bytes: weights.iter().map(|w| w.bytes()).sum::<usize>() as f64 * (tokens.len() * used) as f64
            / count as f64,
        operations: weights.iter().map(|w| 2 * w.rows() * w.cols()).sum::<usize>() as f64,
        seconds,
    };
    Ok(vec![
        row(
            "gate_up_iq2_xxs_one",
            &[&gate, &up],
            median(device, sizes.rounds, &of_gate)?,
        ),
        row("down_q2_k_one", &[&down], median(device, sizes.rounds, &of_down)?),
    ])
}

/// Products with a chunk of a prompt: dense ones, and the routed experts with their tokens.
///
/// # Errors
/// When the device has no room or fails.
#[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // operations, experts
pub fn prefill(device: &Device, sizes: Sizes) -> Result<Vec<Measured>, CudaError> {
    let (rows, cols, tokens) = (4096 / sizes.shrink, 8192 / sizes.shrink, sizes.tokens);
    let dense = weights(device, Format::Q8_0, rows, cols)?;
    let x = Operand::new(device, Format::Q8_0, tokens, cols)?;
    let q = x.quantized(device, Form::of(Format::Q8_0))?;
    let y: Buffer<f32> = device.allocate("product", tokens * rows)?;
    let seconds = median(device, sizes.rounds, &|| {
        quantized(device, dense.all(), q, y.all())
    })?;
    let dense = Measured {
        kernel: "tiles_q8_0".into(),
        what: format!("[{rows}, {cols}] x {tokens}"),
        bytes: dense.bytes() as f64,
        operations: 2.0 * (rows * cols * tokens) as f64,
        seconds,
    };
    let (ff, embd, count, used) = (rows / 2, rows, 16, EXPERTS.1);
    let down = weights(device, Format::Q2K, count * embd, ff.max(256))?;
    let ff = down.cols();
    let ids: Vec<u32> = (0..tokens * used).map(|i| (i * 7 % count) as u32).collect();
    let (ids, shares) = (
        device.upload("experts", &ids)?,
        device.upload("shares of experts", &vec![1.0_f32; tokens * used])?,
    );
    let (order, starts): (Buffer<u32>, Buffer<u32>) = (
        device.allocate("order of choices", tokens * used)?,
        device.allocate("starts of experts", count + 1)?,
    );
    let groups = Groups {
        order: order.all(),
        starts: starts.all(),
    };
    group(device, ids.all(), groups)?;
    let choices = Choices {
        experts: ids.all(),
        weights: shares.all(),
        used,
    };
    let x = Operand::new(device, Format::Q2K, tokens * used, ff)?;
    let q = x.quantized(device, Form::of(Format::Q2K))?;
    let out: Buffer<f32> = device.allocate("outputs of experts", tokens * used * embd)?;
    let run = || {
        experts::down(
            device,
            down.all(),
            embd,
            q,
            choices,
            Together::Tiles(groups),
            out.all(),
        )
    };
    let grouped = Measured {
        kernel: "down_q2_k_tiles".into(),
        what: format!("{count} experts of [{embd}, {ff}], {} choices", tokens * used),
        bytes: down.bytes() as f64,
        operations: 2.0 * (embd * ff * tokens * used) as f64,
        seconds: median(device, sizes.rounds, &run)?,
    };
    Ok(vec![dense, grouped])
}

/// A matrix of random blocks, one drawn row repeated: what the device reads is as large, and making it is quick.
fn weights(device: &Device, format: Format, rows: usize, cols: usize) -> Result<Weights, CudaError> {
    let bytes = Random(rows as u64).rows(format, 1, cols).repeat(rows);
    let matrix = Matrix::new(format, rows, cols, &bytes).map_err(|_| CudaError::Format {
        operation: "measured product",
        format,
    })?;
    Weights::upload(device, &matrix)
}

/// Activations on the device.
struct Operand {
    cols: usize,
    values: Buffer<f32>,
    codes: Buffer<i8>,
    scales: Buffer<f32>,
}

impl Operand {
    fn new(device: &Device, format: Format, tokens: usize, cols: usize) -> Result<Self, CudaError> {
        let values = Random(7).values(tokens * cols);
        Ok(Self {
            cols,
            values: device.upload("activations", &values)?,
            codes: device.allocate("activations", values.len())?,
            scales: device.allocate("activations", values.len() / format.block_len())?,
        })
    }

    fn quantized(
        &self,
        device: &Device,
        form: Form,
    ) -> Result<ds4_kernels_cuda::activation::Quantized<'_>, CudaError> {
        quantize(
            device,
            form,
            self.cols,
            self.values.all(),
            self.codes.all(),
            self.scales.all(),
        )
    }
}
