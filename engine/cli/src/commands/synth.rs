//! `ds4 synth`.

use anyhow::{Context, Result};
use ds4_synth::Dims;

use crate::args::SynthArguments;
use crate::{load, sizes};

pub(crate) fn run(arguments: &SynthArguments) -> Result<()> {
    let mut dims = Dims {
        experts: arguments.experts,
        mtp: arguments.mtp,
        ..Dims::preset(arguments.preset)
    };
    if let Some(seed) = arguments.seed {
        dims.seed = seed;
    }
    for setting in &arguments.set {
        let (key, value) = setting
            .split_once('=')
            .with_context(|| format!("--set: expected KEY=VALUE, found {setting:?}"))?;
        dims.set(key, value)?;
    }
    let bar = load::bar("writing");
    let length = ds4_synth::write(&arguments.out, &dims, &mut |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    println!(
        "{}: {} layers, {}",
        arguments.out.display(),
        dims.n_layer,
        sizes::human(length)
    );
    Ok(())
}
