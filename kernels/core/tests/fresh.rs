//! De-quantisation of blocks that nobody has seen before, against gguf-py: `cargo xtask formats` writes them and runs this.

use std::path::Path;

use ds4_kernels::{Format, dequantize_row};

fn floats(bytes: &[u8]) -> Vec<f32> {
    let four = bytes.chunks_exact(4);
    four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
        .collect()
}

#[test]
#[ignore = "needs the blocks of `cargo xtask formats`, in the folder DS4_FRESH_BLOCKS"]
fn fresh_blocks_of_every_quantised_format_agree_with_gguf_py() {
    let folder = std::env::var("DS4_FRESH_BLOCKS").expect("DS4_FRESH_BLOCKS names a folder");
    let read = |format: Format, suffix: &str| {
        let path = Path::new(&folder).join(format!("{}.{suffix}", format.name()));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    for format in Format::ALL.into_iter().filter(|format| format.block_len() > 1) {
        let (blocks, expected) = (read(format, "blocks"), floats(&read(format, "f32")));
        assert!(
            blocks.len() >= 1000 * format.block_bytes(),
            "{format}: too few blocks"
        );
        let mut found = vec![f32::NAN; expected.len()];
        dequantize_row(format, &blocks, &mut found);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            // One rounding in the last place: the two multiply in another order.
            let close = (found - expected).abs() <= expected.abs() * 3e-7 + 1e-9;
            assert!(close, "{format} value {i}: expected {expected}, found {found}");
        }
    }
}
