//! The program's logits of the micro model against transformers': `cargo xtask oracle --golden` writes `oracle/golden`, and compares much more.

use anyhow::{Result, ensure};
use ds4_tests::{run_ds4, synth, tokens, write_tokens};

const VOCABULARY: usize = 280;
const TOKENS: usize = 300;
/// The golden file keeps every so many positions.
const STEP: usize = 10;
/// The preset's own seed.
const SEED: u64 = 0x5eed_0d54;

fn floats(bytes: &[u8]) -> Vec<f64> {
    let four = bytes.chunks_exact(4);
    four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into())
        .collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|value| value * value).sum::<f64>().sqrt()
}

#[test]
fn reference_numerics_of_the_written_model_are_those_of_transformers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (prompt, out) = (
        folder.path().join("tokens.json"),
        folder.path().join("logits.f32"),
    );
    let model = synth(folder.path(), "micro", SEED, &[])?;
    write_tokens(&prompt, &tokens(TOKENS, 280, 1234))?;
    let paths = [&model, &prompt, &out].map(|path| path.display().to_string());
    let [model, prompt, to] = paths.each_ref().map(String::as_str);
    run_ds4([
        "logits",
        "--numerics",
        "reference",
        "--model",
        model,
        "--tokens",
        prompt,
        "--out",
        to,
    ])?;
    let (theirs, ours) = (
        floats(include_bytes!("../oracle/golden/micro.reference.f32")),
        floats(&std::fs::read(&out)?),
    );
    ensure!(ours.len() == TOKENS * VOCABULARY, "{} logits", ours.len());
    ensure!(
        theirs.len() == TOKENS / STEP * VOCABULARY,
        "{} golden logits",
        theirs.len()
    );
    let positions = ours.chunks_exact(VOCABULARY).step_by(STEP);
    for (position, (theirs, ours)) in theirs.chunks_exact(VOCABULARY).zip(positions).enumerate() {
        let difference = norm(theirs.iter().zip(ours).map(|(theirs, ours)| theirs - ours));
        let relative = difference / norm(theirs.iter().copied());
        ensure!(
            relative <= 1e-4,
            "position {}: relative L2 {relative}",
            position * STEP
        );
    }
    Ok(())
}
