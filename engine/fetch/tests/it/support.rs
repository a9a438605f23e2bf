//! What the tests share: a model's bytes, and a fetch with short patience.

use std::path::Path;
use std::time::Duration;

use ds4_fetch::{Access, FetchError, FetchOptions, Fetched, Progress, Snapshot, Source};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig, Weights};
use ds4_synth::{Dims, Preset};
use sha2::{Digest, Sha256};

/// The micro model: 3 layers, about 3 MB.
pub fn model() -> Vec<u8> {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).expect("written");
    std::fs::read(path).expect("read")
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

pub fn options(folder: &Path, layers: &str) -> FetchOptions {
    FetchOptions {
        layers: layers.into(),
        folder: folder.to_owned(),
        file: "model.gguf".into(),
        sha256: None,
        manifest: None,
        parallel: 4,
        retries: 2,
        stall: Duration::from_millis(500),
    }
}

pub async fn fetch(url: &str, options: &FetchOptions) -> Result<Fetched, FetchError> {
    fetch_with(url, &Access::default(), options).await.0
}

pub async fn fetch_with(
    url: &str,
    access: &Access,
    options: &FetchOptions,
) -> (Result<Fetched, FetchError>, Snapshot) {
    let progress = Progress::default();
    let source = Source::parse(url, "http://unused").expect("a source");
    let fetched = ds4_fetch::fetch(&source, access, options, &progress).await;
    (fetched, progress.snapshot())
}

/// Every tensor of the span has the bytes of the original.
pub fn assert_span(path: &Path, original: &[u8], span: LayerSpan) {
    let gguf = Gguf::open(path).expect("a model");
    let config = ModelConfig::from_gguf(&gguf).expect("a config");
    ds4_fetch::ensure_covers(&gguf, &config, span).expect("covered");
    let weights = Weights::map(&gguf, &config, span, &mut |_, _| {}).expect("mapped");
    for tensor in ds4_gguf::tensors::check(&gguf, &config, span).expect("tensors") {
        let start = usize::try_from(tensor.offset).expect("usize");
        let expected = &original[start..start + usize::try_from(tensor.bytes).expect("usize")];
        assert_eq!(
            weights.require(&tensor.name).expect("there").data,
            expected,
            "{}",
            tensor.name
        );
    }
}

pub fn span(first: usize, last: usize) -> LayerSpan {
    LayerSpan {
        first,
        last,
        head: false,
    }
}
