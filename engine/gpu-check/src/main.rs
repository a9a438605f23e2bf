//! `ds4-gpu-check`: one program to carry to a machine with a GPU; it needs nothing beside the driver.

use std::fmt::Write;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Parser;
use ds4_gpu_check::correct::{self, Verdict};
use ds4_gpu_check::speed::{self, Measured, Sizes};
use ds4_gpu_check::{table, tokens};
use ds4_kernels_cuda::Device;

/// Runs every kernel and a whole model on a CUDA device beside their references, measures what the device and the kernels reach, and prints a
/// report in Markdown. Ends with 1 when a bit is wrong.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Which device.
    #[arg(long, default_value_t = 0, value_name = "N")]
    device: usize,
    /// Operands are drawn from this; equal seeds draw equal ones.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
    /// Few tokens and no measurements: for compute-sanitizer, under which everything is a hundred times as slow.
    #[arg(long)]
    quick: bool,
    /// Where the report goes besides standard output.
    #[arg(long, value_name = "FILE")]
    out: Option<std::path::PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let device = match Device::open(arguments.device) {
        Ok(device) => Arc::new(device),
        Err(error) => {
            eprintln!("ds4-gpu-check: {error}");
            return Ok(ExitCode::from(2));
        }
    };
    let (report, right) = report(&device, &arguments)?;
    #[allow(clippy::print_stdout)] // the report is what the program is for
    {
        print!("{report}");
    }
    if let Some(path) = &arguments.out {
        std::fs::write(path, &report).with_context(|| path.display().to_string())?;
    }
    Ok(if right {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn report(device: &Arc<Device>, arguments: &Arguments) -> Result<(String, bool)> {
    let emulated = device.facts().emulated();
    let counts: &[usize] = if arguments.quick || emulated {
        &[1, 7]
    } else {
        &[1, 7, 64, 4096]
    };
    let mut verdicts = correct::kernels(device, counts, arguments.seed);
    verdicts.extend(correct::whole_model(
        device,
        if arguments.quick || emulated { 9 } else { 300 },
    )?);
    let mut text = heading(device, arguments);
    let rows: Vec<_> = verdicts.iter().map(Verdict::row).collect();
    write!(
        text,
        "\n## Results\n\n{}",
        table(&["check", "kernels", "verdict"], &rows)
    )?;
    if !arguments.quick {
        text += &measured(device, emulated)?;
    }
    Ok((text, verdicts.iter().all(|verdict| verdict.wrong.is_none())))
}

fn heading(device: &Device, arguments: &Arguments) -> String {
    let now = jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC");
    format!(
        "# GPU check\n\n- device: {}\n- date: {now}\n- commit: {}\n- seed: {}\n",
        device.facts(),
        env!("DS4_COMMIT"),
        arguments.seed
    )
}

fn measured(device: &Arc<Device>, emulated: bool) -> Result<String> {
    let sizes = if emulated { Sizes::TRIAL } else { Sizes::DEVICE };
    let (copy, peak) = (speed::copy(device, sizes)?, speed::byte_products(device, sizes)?);
    let (decode, prefill) = (speed::decode(device, sizes)?, speed::prefill(device, sizes)?);
    // All layers of Flash, or one of each kind.
    let token = if emulated {
        tokens::decode(device, 4, 3)?
    } else {
        tokens::decode(device, 43, 200)?
    };
    if emulated {
        let count = 3 + decode.len() + prefill.len();
        return Ok(format!(
            "\n## Speed\n\nThe device is emulated: {count} measurements ran, their times mean nothing and are not shown.\n"
        ));
    }
    let share = |part: &Measured| {
        vec![
            format!("`{}`", part.kernel),
            part.what.clone(),
            format!("{:.3}", part.seconds * 1e3),
            format!("{:.0}", part.bandwidth() / 1e9),
            format!("{:.0} %", part.bandwidth() / copy.bandwidth() * 100.0),
        ]
    };
    let rate = |part: &Measured| {
        vec![
            format!("`{}`", part.kernel),
            part.what.clone(),
            format!("{:.3}", part.seconds * 1e3),
            format!("{:.2}", part.rate() / 1e12),
            format!("{:.0} %", part.rate() / peak.rate() * 100.0),
        ]
    };
    let decode: Vec<_> = decode.iter().map(share).collect();
    let prefill: Vec<_> = prefill.iter().map(rate).collect();
    Ok(format!(
        "\n## Decode\n\nBandwidth of a copy within the device, measured: {:.0} GB/s.\n\n{}\n## Prefill\n\nProducts of \
         bytes on tensor cores, measured: {:.1} T operations/s.\n\n{}",
        copy.bandwidth() / 1e9,
        table(&["kernel", "weights", "ms", "GB/s", "share of the copy"], &decode),
        peak.rate() / 1e12,
        table(
            &["kernel", "product", "ms", "T operations/s", "share of the peak"],
            &prefill
        )
    ) + &format!(
        "\n## Launches of a token\n\n{} layers of next to no weights, one session, the host's clock: {:.3} ms by launches one by one, \
         {:.3} ms by graphs, {:.2} of that.\n",
        token.layers,
        token.plain * 1e3,
        token.graphs * 1e3,
        token.graphs / token.plain,
    ))
}
