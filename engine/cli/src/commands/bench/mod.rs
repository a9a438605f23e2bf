//! `ds4 bench`: how fast this machine computes a model, without a server in the way.

mod report;
mod session;
mod work;

use std::time::Instant;

use anyhow::{Result, ensure};
use ds4_gguf::LayerSpan;
use ds4_kernels_cpu::Roofline;

use crate::args::BenchArguments;
use crate::load;
use report::{Report, Row, Test};
use session::Bench;
use work::Work;

/// Tokens computed before anything is timed: enough to wake the threads and to take the buffers.
const WARM_UP: usize = 64;

pub(crate) fn run(arguments: &BenchArguments) -> Result<()> {
    ensure!(arguments.chunk > 0, "--chunk: expected at least 1, found 0");
    ensure!(arguments.repeat > 0, "--repeat: expected at least 1, found 0");
    let started = Instant::now();
    let model = load::open(&arguments.compute.model)?;
    let full = LayerSpan::full(model.config.n_layer);
    let deepest = arguments
        .prompt
        .iter()
        .chain(&arguments.depth)
        .max()
        .copied()
        .unwrap_or(0);
    let head = load::draft_head(&arguments.compute.model, &arguments.draft)?;
    let slice = load::load(
        &model,
        full,
        deepest as u64,
        &arguments.compute,
        head.as_ref(),
        &|_| {},
    )?;
    let load = started.elapsed();
    let bench = Bench::new(&*slice, arguments.chunk);
    if !arguments.no_warmup {
        bench.prefill(WARM_UP)?;
        bench.decode(&bench.empty(), 1, 1)?;
    }
    let rows = measure(&bench, arguments)?;
    let work = Work::of(&model.gguf, &model.config)?;
    let report = Report {
        info: slice.info(),
        chunk: arguments.chunk,
        load,
        peak: peak_bytes(),
        roofline: arguments.roofline.then(|| Roofline::measure(threads(arguments))),
        matmuls: arguments
            .roofline
            .then(|| work.matmuls(threads(arguments)))
            .transpose()?,
        work,
        rows,
    };
    if arguments.json {
        println!("{}", report.json());
    } else {
        print!("{report}");
    }
    Ok(())
}

/// Prefills first, each from nothing; then decodes, deeper and deeper in one session. With a draft head once more one session, with guesses.
fn measure(bench: &Bench<'_>, arguments: &BenchArguments) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for _ in 0..arguments.repeat {
        for tokens in arguments.prompt.iter().copied().filter(|tokens| *tokens > 0) {
            let (_, chunks) = bench.prefill(tokens)?;
            rows.push(Row::prefill(chunks));
        }
        if arguments.generate == 0 {
            continue;
        }
        let mut depths = arguments.depth.clone();
        depths.sort_unstable();
        let mut kv = bench.empty();
        for depth in depths {
            let chunks = bench.extend(&mut kv, depth)?;
            if !chunks.is_empty() {
                rows.push(Row {
                    test: Test::Fill,
                    ..Row::prefill(chunks)
                });
            }
            for batch in arguments.batch.iter().copied().filter(|batch| *batch > 0) {
                let steps = bench.decode(&kv, batch, arguments.generate)?;
                rows.push(Row::decode(depth, batch, &steps));
            }
            if let Some(guessed) = bench.guess(&kv, arguments.generate)? {
                rows.push(Row::guessed(depth, guessed));
            }
        }
    }
    Ok(rows)
}

fn threads(arguments: &BenchArguments) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    arguments.compute.threads.unwrap_or_else(all)
}

/// The most memory that this process had resident, from `/proc/self/status`; `None` where there is no such file.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_is_at_least_what_was_taken() {
        let taken = std::hint::black_box(vec![1_u8; 64 << 20]);
        let peak = peak_bytes().expect("a status with VmHWM");
        assert!(peak >= taken.len() as u64, "{peak}");
    }
}
