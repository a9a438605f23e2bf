//! Faults planted into `tiles.metal`, which products beside their reference find, or the emulator's rendezvous.

use std::path::Path;
use std::sync::Arc;

use ds4_emu::metal::{Emulated, with_fault};
use ds4_kernels::{Activations, Form, Format, Matrix, matmul};
use ds4_kernels_metal::activation::Quantized;
use ds4_kernels_metal::experts::{self, Together};
use ds4_kernels_metal::matmul::quantized;
use ds4_kernels_metal::matrix::{Rows, Weights};
use ds4_kernels_metal::router::{Choices, Groups};
use ds4_kernels_metal::{Device, MetalError, Slice};

use crate::support::{Random, matrix, rows};

/// Has minimums, and more than one sum per block.
const FORMAT: Format = Format::Q4K;
/// Two blocks, so that a tile is filled again; rows of more than one SIMD group.
const COLS: usize = 512;
const ROWS: usize = 20;
/// More than a tile.
const TOKENS: usize = 35;

/// Computes `y` on the device.
type Launch = fn(&Device, Rows<'_>, Quantized<'_>, Slice<'_, f32>) -> Result<(), MetalError>;

/// Compiles the source with `wrong` in the place of `right` and returns in how many of five orders of threads products are wrong, and what the emulator
/// says of them.
fn with(right: &str, wrong: &str) -> (usize, String) {
    planted("matmul.metal", FORMAT, right, wrong, quantized)
}

fn with_experts(right: &str, wrong: &str) -> (usize, String) {
    planted("experts.metal", FORMAT, right, wrong, crowded)
}

/// The last product of an expert that all choices are on, last ones first.
fn crowded(
    device: &Device,
    weights: Rows<'_>,
    x: Quantized<'_>,
    y: Slice<'_, f32>,
) -> Result<(), MetalError> {
    let count = TOKENS as u32;
    let order: Vec<u32> = (0..count).rev().collect();
    let (ids, order, starts) = (
        device.upload("test", &[0u32; TOKENS])?,
        device.upload("test", &order)?,
        device.upload("test", &[0, count])?,
    );
    let choices = Choices {
        experts: ids.all(),
        weights: ids.all().cast(),
        used: 1,
    };
    let groups = Groups {
        order: order.all(),
        starts: starts.all(),
    };
    experts::down(device, weights, ROWS, x, choices, Together::Tiles(groups), y)
}

fn planted(file: &str, format: Format, right: &str, wrong: &str, launch: Launch) -> (usize, String) {
    let folder = tempfile::tempdir().unwrap();
    let library = with_fault(file, right, wrong, folder.path()).unwrap();
    let mut random = Random(21);
    let bytes = rows(&mut random, format, ROWS, COLS);
    let values = random.values(TOKENS * COLS);
    let weights = matrix(format, ROWS, COLS, &bytes);
    let x = Activations::new(&values, COLS, Form::of(format));
    let mut expected = vec![0.0; TOKENS * ROWS];
    matmul(&weights, &x, &mut expected);
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let (mut wrong, mut said) = (0, String::new());
    for order in 0..5 {
        match run(&library, order, &weights, &x, launch) {
            Ok(y) => wrong += usize::from(bits(&y) != bits(&expected)),
            Err(error) => {
                wrong += 1;
                said += &error.to_string();
            }
        }
    }
    (wrong, said)
}

/// One product by matrices on a fresh device.
fn run(
    library: &Path,
    order: u64,
    weights: &Matrix<'_>,
    x: &Activations<'_>,
    launch: Launch,
) -> Result<Vec<f32>, MetalError> {
    let emulator = Arc::new(Emulated::load(library).unwrap());
    emulator.order(order);
    let device = Device::on(emulator.clone());
    let Activations::Q8 {
        codes, scales, block, ..
    } = x
    else {
        panic!("a quantised form")
    };
    let weights = Weights::upload(&device, weights)?;
    let (codes, scales) = (device.upload("test", codes)?, device.upload("test", scales)?);
    let x = Quantized {
        cols: COLS,
        block: *block,
        codes: codes.all(),
        scales: scales.all(),
    };
    let y = device.allocate("test", TOKENS * ROWS)?;
    launch(&device, weights.all(), x, y.all())?;
    assert_eq!(emulator.launches("tiles"), 1);
    device.download(y.all())
}

#[test]
fn without_a_fault_every_order_is_right() {
    assert_eq!(
        with("// Tiles of products", "// The tiles of products"),
        (0, String::new())
    );
}

#[test]
fn a_missing_barrier_before_matrices_are_loaded_is_found() {
    let (right, wrong) = (
        "        threads_meet();\n        multiply<32>",
        "        multiply<32>",
    );
    // Of another SIMD group, where that has not come so far; where nothing else holds the lanes of one up, in any order.
    assert!(with(right, wrong).0 > 0);
    let (wrong, said) = planted("matmul.metal", Format::Q8_0, right, wrong, quantized);
    assert!(
        wrong == 5 && said.contains("a matrix is loaded while other lanes write it"),
        "{wrong}: {said}"
    );
}

#[test]
fn a_missing_barrier_before_a_tile_is_filled_again_is_found() {
    // The first barrier is also that after which the tokens' inputs are known.
    let (wrong, _) = with(
        "threads_meet();\n        fill_weights",
        "if (block + piece == 0) threads_meet();\n        fill_weights",
    );
    assert!(wrong > 0);
}

#[test]
fn a_missing_barrier_after_matrices_are_stored_is_found() {
    let (wrong, _) = with("    lanes_meet();\n    float4 values;", "    float4 values;");
    assert_eq!(wrong, 5);
}

#[test]
fn a_missing_barrier_before_matrices_are_stored_again_is_found() {
    let (wrong, _) = with("    lanes_meet();\n    return values;", "    return values;");
    assert!(wrong > 0);
}

#[test]
fn a_matrix_that_is_not_transposed_is_found() {
    let (wrong, _) = with("8, ulong2(0), true)", "8, ulong2(0), false)");
    assert_eq!(wrong, 5);
}

#[test]
fn a_product_without_all_lanes_is_found() {
    let (wrong, said) = with(
        "simdgroup_multiply_accumulate(products.at[n][m], of_tokens",
        "if (::simt::current->lane != 5) simdgroup_multiply_accumulate(products.at[n][m], of_tokens",
    );
    assert!(
        wrong == 5 && said.contains("lanes of mask ffffffff meet in different warp operations"),
        "{wrong}: {said}"
    );
}

#[test]
fn sums_that_are_not_begun_anew_are_found() {
    let (wrong, _) = with("        products = no_products();\n", "");
    assert_eq!(wrong, 5);
}

#[test]
fn sums_that_float_does_not_have_do_not_compile() {
    let folder = tempfile::tempdir().unwrap();
    let refused = with_fault(
        "matmul.metal",
        "MOST >= 4 ? 4 : 2 }",
        "MOST >= 4 ? 8 : 2 }",
        folder.path(),
    )
    .unwrap_err();
    assert!(
        refused.contains("sums of products are exact in float"),
        "{refused}"
    );
}

#[test]
fn faults_of_the_experts_are_found() {
    let next = "        if (thread_index < TILE_TOKENS) tiles.inputs[thread_index] = choices.at(from + min(thread_index, here - 1));";
    assert_eq!(with_experts(next, &format!("{next}\n")), (0, String::new()));
    // Another tile's inputs while those of the one before are read.
    assert!(with_experts(&format!("threads_meet();\n{next}"), next).0 > 0);
    let out = "out[ulong(choices.at(from + t)) * c.rows + row + r] = dots.at[n][i];";
    let (wrong, _) = with_experts(out, &out.replace("choices.at(from + t)", "from + t"));
    assert_eq!(wrong, 5);
}
