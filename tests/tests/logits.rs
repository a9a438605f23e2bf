//! `ds4 logits` writes the same bytes whatever the split, chunk size and thread count.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use ds4_tests::{run_ds4, synth, tokens, write_tokens};

struct Case {
    preset: &'static str,
    settings: &'static [&'static str],
    vocab: u32,
    splits: &'static [&'static str],
}

const CASES: [Case; 2] = [
    Case {
        preset: "micro",
        settings: &[],
        vocab: 280,
        splits: &["0:0,1:output", "0:1,2:output", "0:0,1:1,2:output"],
    },
    Case {
        preset: "tiny",
        settings: &["n_layer=5", "ratios=[4,128,4,0,128]", "n_hash=2"],
        vocab: 512,
        splits: &["0:0,1:2,3:output", "0:3,4:output", "0:0,1:1,2:2,3:3,4:output"],
    },
];

fn logits(model: &Path, tokens: &Path, out: &Path, extra: &[&str]) -> Result<Vec<u8>> {
    let mut arguments: Vec<String> = vec!["logits".into()];
    for (flag, path) in [("--model", model), ("--tokens", tokens), ("--out", out)] {
        arguments.extend([flag.to_owned(), path.display().to_string()]);
    }
    arguments.extend(extra.iter().map(|text| (*text).to_owned()));
    run_ds4(arguments)?;
    Ok(std::fs::read(out)?)
}

fn prepared(case: &Case, folder: &Path) -> Result<(PathBuf, PathBuf)> {
    let model = synth(folder, case.preset, 11, case.settings)?;
    let prompt = folder.join("tokens.json");
    write_tokens(&prompt, &tokens(300, case.vocab, 99))?;
    Ok((model, prompt))
}

fn splits_agree(numerics: &str) -> Result<()> {
    for case in &CASES {
        let folder = tempfile::tempdir()?;
        let (model, prompt) = prepared(case, folder.path())?;
        let out = folder.path().join("logits.f32");
        let expected = logits(&model, &prompt, &out, &["--numerics", numerics])?;
        ensure!(
            expected.len() == 300 * case.vocab as usize * 4,
            "{} bytes of logits",
            expected.len()
        );
        for chunk in ["1", "7", "64", "300"] {
            let found = logits(
                &model,
                &prompt,
                &out,
                &["--numerics", numerics, "--chunk", chunk, "--threads", "1"],
            )?;
            ensure!(
                found == expected,
                "{}: chunk {chunk} changed the {numerics} logits",
                case.preset
            );
        }
        for stages in case.splits {
            for chunk in ["5", "64"] {
                let found = logits(
                    &model,
                    &prompt,
                    &out,
                    &["--numerics", numerics, "--chunk", chunk, "--stages", stages],
                )?;
                ensure!(
                    found == expected,
                    "{}: {stages} at chunk {chunk} changed the {numerics} logits",
                    case.preset
                );
            }
        }
    }
    Ok(())
}

#[test]
fn canonical_logits_do_not_depend_on_the_split_or_the_chunk() -> Result<()> {
    splits_agree("canonical")
}

#[test]
fn reference_logits_do_not_depend_on_the_split_or_the_chunk() -> Result<()> {
    splits_agree("reference")
}

#[test]
fn another_seed_gives_other_logits() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (model, prompt) = prepared(&CASES[0], folder.path())?;
    let other = synth(folder.path(), "micro", 12, &[])?;
    let out = folder.path().join("logits.f32");
    ensure!(
        logits(&model, &prompt, &out, &[])? != logits(&other, &prompt, &out, &[])?,
        "two seeds, one result"
    );
    Ok(())
}
