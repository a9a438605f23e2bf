//! How fast the products are, next to what memory and the multipliers of this machine give.
//!
//! `cargo run --release -p ds4-kernels-cpu --example kernels -- [--threads N] [--level scalar|avx2|avx512|amx] [--only PREFIX] [--json]`
//!
//! Mat-vec: bytes of weights per second, as a share of the read bandwidth. Tiles: operations (two per multiply-add) per second, as a share
//! of the peak of the widest integer dot product of vectors (tiles have a higher one, see `Roofline`). With one thread, time is that thread's own (Linux), so that others on the machine disturb
//! less. Each figure is the best of several rounds; all rounds of all figures are interleaved.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::hint::black_box;
use std::time::Instant;

use ds4_kernels::{Activations, Backend, Form, Format, Matrix};
use ds4_kernels_cpu::{Cpu, Level};

/// Far beyond any cache: 96 MiB.
const MEMORY: usize = 96 << 20;
const ROUNDS: usize = 7;
/// A row of the medium model's hidden size.
const COLS: usize = 2048;
const FORMATS: [Format; 6] = [
    Format::Q8_0,
    Format::Q2K,
    Format::Q4K,
    Format::Iq2Xxs,
    Format::Mxfp4,
    Format::F16,
];

struct Figure {
    name: String,
    unit: &'static str,
    /// Amount of work per round, in units of 1e9.
    work: f64,
    run: Box<dyn Fn()>,
    best: f64,
}

impl Figure {
    fn new(name: impl Into<String>, unit: &'static str, work: f64, run: impl Fn() + 'static) -> Self {
        Self {
            name: name.into(),
            unit,
            work,
            run: Box::new(run),
            best: 0.0,
        }
    }

    fn round(&mut self, clock: Clock) {
        let start = clock.now();
        (self.run)();
        self.best = self.best.max(self.work / (clock.now() - start));
    }
}

/// Seconds of the machine, or those that this thread ran.
#[derive(Clone, Copy)]
enum Clock {
    Wall(Instant),
    #[cfg(target_os = "linux")]
    Thread,
}

impl Clock {
    fn of(threads: usize) -> Self {
        match threads {
            #[cfg(target_os = "linux")]
            1 => Self::Thread,
            _ => Self::Wall(Instant::now()),
        }
    }

    fn now(self) -> f64 {
        match self {
            Self::Wall(start) => start.elapsed().as_secs_f64(),
            #[cfg(target_os = "linux")]
            Self::Thread => {
                let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
                time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
            }
        }
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let value = |flag: &str| {
        let at = arguments.iter().position(|argument| argument == flag)?;
        arguments.get(at + 1)
    };
    let threads = value("--threads").map(|threads| threads.parse().unwrap());
    let level = value("--level").map(|name| {
        let level = Level::ALL.into_iter().find(|level| level.to_string() == *name);
        level.unwrap_or_else(|| panic!("--level: expected one of {:?}, found {name}", Level::ALL))
    });
    let cpu: &'static Cpu = Box::leak(Box::new(Cpu::new(threads, level).unwrap()));
    let mut figures = figures(cpu);
    if let Some(only) = value("--only") {
        figures.retain(|figure| figure.name.starts_with(only.as_str()) || !figure.name.contains(" x "));
    }
    let clock = Clock::of(cpu.threads());
    for _ in 0..ROUNDS {
        figures.iter_mut().for_each(|figure| figure.round(clock));
    }
    report(
        cpu,
        &figures,
        arguments.iter().any(|argument| argument == "--json"),
    );
}

fn figures(cpu: &'static Cpu) -> Vec<Figure> {
    let memory: &'static [u8] = noise(MEMORY).leak();
    let mut figures = vec![
        Figure::new("read bandwidth", "GB/s", MEMORY as f64 / 1e9, move || {
            read(cpu, memory)
        }),
        peak(cpu),
    ];
    for format in FORMATS {
        figures.push(product(cpu, format, memory, 1, MEMORY));
        for (tokens, bytes) in [
            (2, MEMORY),
            (3, MEMORY),
            (4, MEMORY),
            (8, MEMORY / 2),
            (64, MEMORY / 8),
            (512, MEMORY / 64),
        ] {
            figures.push(product(cpu, format, memory, tokens, bytes));
        }
    }
    figures
}

/// All of `memory` once, by all threads.
fn read(cpu: &Cpu, memory: &[u8]) {
    let parts: Vec<&[u8]> = memory.chunks(1 << 20).collect();
    cpu.parallel(parts.len(), &|i| {
        let words = parts[i]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_le_bytes(*word));
        black_box(words.fold(0, |sum: u64, word| sum ^ word));
    });
}

/// The widest integer dot product, from registers to registers.
fn peak(cpu: &'static Cpu) -> Figure {
    const TURNS: usize = 2_000_000;
    let operations = ds4_kernels_cpu::peak::OPERATIONS_PER_TURN * TURNS * cpu.threads();
    Figure::new("int8 peak", "GOP/s", operations as f64 / 1e9, move || {
        cpu.parallel(cpu.threads(), &|_| {
            black_box(ds4_kernels_cpu::peak::turns(black_box(TURNS)));
        });
    })
}

fn product(cpu: &'static Cpu, format: Format, memory: &'static [u8], tokens: usize, bytes: usize) -> Figure {
    let row = COLS / format.block_len() * format.block_bytes();
    let rows = bytes / row;
    let matrix = Matrix::new(format, rows, COLS, &memory[..rows * row]).unwrap();
    let input: &'static [f32] = (0..tokens * COLS)
        .map(|i| (i as f32 * 0.37).sin())
        .collect::<Vec<_>>()
        .leak();
    let x = Activations::new(input, COLS, Form::of(format));
    let y = std::sync::Mutex::new(vec![0.0; tokens * rows]);
    let run = move || cpu.matmul(&matrix, &x, &mut y.lock().unwrap());
    if tokens == 1 {
        return Figure::new(format!("{format} x 1"), "GB/s", (rows * row) as f64 / 1e9, run);
    }
    Figure::new(
        format!("{format} x {tokens}"),
        "GOP/s",
        (2 * rows * COLS * tokens) as f64 / 1e9,
        run,
    )
}

/// Bytes of which any two are a half of middling size, and any one a scale of `MXFP4` that is no subnormal: those cost some processors a trap.
fn noise(count: usize) -> Vec<u8> {
    let mut seed = 1_u64;
    let mut next = || {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        seed.to_le_bytes()[7] & 0x1f | 0x20
    };
    (0..count).map(|_| next()).collect()
}

fn report(cpu: &Cpu, figures: &[Figure], json: bool) {
    let best = |unit: &str| {
        figures
            .iter()
            .find(|figure| figure.unit == unit)
            .map_or(0.0, |figure| figure.best)
    };
    if json {
        let line = |figure: &Figure| {
            let share = figure.best / best(figure.unit);
            format!(
                r#"{{"name":"{}","unit":"{}","value":{:.2},"share":{share:.3}}}"#,
                figure.name, figure.unit, figure.best
            )
        };
        let lines: Vec<String> = figures.iter().map(line).collect();
        println!(
            r#"{{"backend":"{}","figures":[{}]}}"#,
            cpu.name(),
            lines.join(",")
        );
        return;
    }
    println!("{}", cpu.name());
    for figure in figures {
        let share = 100.0 * figure.best / best(figure.unit);
        println!(
            "{:16} {:8.1} {:6} {share:4.0} %",
            figure.name, figure.best, figure.unit
        );
    }
}
