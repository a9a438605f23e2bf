//! The kernels' source as one text, which the device's compiler takes at run time.

/// The files in their order, with their names. Functions of numbers alone and tables are CUDA's too; kernels are not, since memory has address spaces here.
const FILES: &[(&str, &str)] = &[
    ("base.metal", include_str!("../metal/base.metal")),
    ("math.cuh", include_str!("../../cuda/cu/math.cuh")),
    ("codec.cuh", include_str!("../../cuda/cu/codec.cuh")),
    ("grid.cuh", include_str!("../../cuda/cu/grid.cuh")),
    ("f64.metal", include_str!("../metal/f64.metal")),
    ("formats.metal", include_str!("../metal/formats.metal")),
    ("quantized.metal", include_str!("../metal/quantized.metal")),
    ("tiles.metal", include_str!("../metal/tiles.metal")),
    ("activation.metal", include_str!("../metal/activation.metal")),
    ("attention.metal", include_str!("../metal/attention.metal")),
    ("codec.metal", include_str!("../metal/codec.metal")),
    ("compressor.metal", include_str!("../metal/compressor.metal")),
    ("copy.metal", include_str!("../metal/copy.metal")),
    ("embedding.metal", include_str!("../metal/embedding.metal")),
    ("experts.metal", include_str!("../metal/experts.metal")),
    ("norm.metal", include_str!("../metal/norm.metal")),
    ("hyper.metal", include_str!("../metal/hyper.metal")),
    ("indexer.metal", include_str!("../metal/indexer.metal")),
    ("matmul.metal", include_str!("../metal/matmul.metal")),
    ("router.metal", include_str!("../metal/router.metal")),
];

/// All kernels. What the files include of each other is left out: they come in order.
#[must_use]
pub fn source() -> String {
    let mut text = String::new();
    for (name, file) in FILES {
        text += &format!("#line 1 \"{name}\"\n");
        for line in file.lines() {
            let local = line.starts_with("#include \"") || line == "#pragma once";
            text += if local { "" } else { line };
            text.push('\n');
        }
    }
    text
}
