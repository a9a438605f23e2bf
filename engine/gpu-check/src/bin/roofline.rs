//! `cargo xtask roofline`: writes `docs/gpu/roofline.md`, or with `--check` says whether it is what the code gives.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const PATH: &str = "docs/gpu/roofline.md";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let check = match arguments.as_slice() {
        [] => false,
        [flag] if flag == "--check" => true,
        other => bail!("expected nothing or --check, found {other:?}"),
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(PATH);
    let text = ds4_gpu_check::roofline::document()?;
    if !check {
        std::fs::write(&path, text).with_context(|| PATH.to_owned())?;
        eprintln!("wrote {PATH}");
        return Ok(());
    }
    let found = std::fs::read_to_string(&path).with_context(|| PATH.to_owned())?;
    let mut lines = text.lines().zip(found.lines()).enumerate();
    if let Some((line, (expected, found))) = lines.find(|(_, (a, b))| a != b) {
        bail!(
            "{PATH}:{}: expected {expected:?}, found {found:?}: run `cargo xtask roofline`",
            line + 1
        );
    }
    ensure!(
        found.len() == text.len(),
        "{PATH}: expected {} bytes, found {}: run `cargo xtask roofline`",
        text.len(),
        found.len()
    );
    Ok(())
}
