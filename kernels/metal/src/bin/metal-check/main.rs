//! `metal-check`: every kernel on this Mac's own device against its scalar reference, bit for bit; prints a table in Markdown.
//!
//! The cases are those that the tests run over the emulator, so a difference here is the device's or its compiler's.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // the checks are tests, and the table is what it is for

#[path = "../../../tests/it/attention.rs"]
mod attention;
#[path = "../../../tests/it/compressor.rs"]
mod compressor;
#[path = "../../../tests/it/embedding.rs"]
mod embedding;
#[path = "../../../tests/it/experts.rs"]
mod experts;
#[path = "../../../tests/it/hyper.rs"]
mod hyper;
#[path = "../../../tests/it/indexer.rs"]
mod indexer;
#[path = "../../../tests/it/matmul.rs"]
mod matmul;
#[path = "../../../tests/it/operands.rs"]
mod operands;
#[path = "../../../tests/it/rows.rs"]
mod rows;
mod support;
#[path = "../../../tests/it/tiles.rs"]
mod tiles;

use std::panic::catch_unwind;
use std::process::{Command, ExitCode};
use std::time::Instant;

/// Family, what it shows, and the check, which panics.
const CHECKS: &[(&str, &str, fn())] = &[
    (
        "attention",
        "attention has the bits of the reference",
        attention::attention_has_the_bits_of_the_reference,
    ),
    (
        "compressor",
        "groups are pooled as the reference does whatever the chunks",
        compressor::groups_are_pooled_as_the_reference_does_whatever_the_chunks,
    ),
    (
        "embedding",
        "every stream gets the tokens row",
        embedding::every_stream_gets_the_tokens_row,
    ),
    (
        "embedding",
        "the first of the largest is chosen and what is no number is not",
        embedding::the_first_of_the_largest_is_chosen_and_what_is_no_number_is_not,
    ),
    (
        "experts",
        "tokens are routed as the reference does",
        experts::tokens_are_routed_as_the_reference_does,
    ),
    (
        "experts",
        "the chosen experts have the bits of the reference with empty and crowded ones",
        experts::the_chosen_experts_have_the_bits_of_the_reference_with_empty_and_crowded_ones,
    ),
    (
        "experts",
        "the shared expert is activated as the reference does",
        experts::the_shared_expert_is_activated_as_the_reference_does,
    ),
    (
        "hyper",
        "mixes gathered and scattered streams have the bits of the reference",
        hyper::mixes_gathered_and_scattered_streams_have_the_bits_of_the_reference,
    ),
    (
        "indexer",
        "scores of encoded rows have the bits of the reference",
        indexer::scores_of_encoded_rows_have_the_bits_of_the_reference,
    ),
    (
        "indexer",
        "picks are the best rows ascending and ties go to the first",
        indexer::picks_are_the_best_rows_ascending_and_ties_go_to_the_first,
    ),
    (
        "matmul",
        "products of quantised weights have the bits of the reference",
        matmul::products_of_quantised_weights_have_the_bits_of_the_reference,
    ),
    (
        "matmul",
        "products of floats have the bits of the reference",
        matmul::products_of_floats_have_the_bits_of_the_reference,
    ),
    (
        "matmul",
        "operands that do not fit are refused by name",
        matmul::operands_that_do_not_fit_are_refused_by_name,
    ),
    (
        "rows",
        "norms have the bits of the reference",
        rows::norms_have_the_bits_of_the_reference,
    ),
    (
        "rows",
        "heads are normalised and rotated as the reference does",
        rows::heads_are_normalised_and_rotated_as_the_reference_does,
    ),
    (
        "rows",
        "kv rows have the canonical bytes in their slots",
        rows::kv_rows_have_the_canonical_bytes_in_their_slots,
    ),
    (
        "rows",
        "indexer rows have the canonical bytes",
        rows::indexer_rows_have_the_canonical_bytes,
    ),
    (
        "rows",
        "norms of numbers of all sizes have the bits of the reference",
        rows::norms_of_numbers_of_all_sizes_have_the_bits_of_the_reference,
    ),
    (
        "tiles",
        "products by matrices have the bits of the plain kernels",
        tiles::products_by_matrices_have_the_bits_of_the_plain_kernels,
    ),
    (
        "tiles",
        "the largest sums have the bits of the reference",
        tiles::the_largest_sums_have_the_bits_of_the_reference,
    ),
    (
        "tiles",
        "experts by matrices have the bits of the plain kernels",
        tiles::experts_by_matrices_have_the_bits_of_the_plain_kernels,
    ),
];

const HELP: &str = "metal-check: runs every Metal kernel on this Mac and compares it with the scalar reference, bit for bit.
Products of many tokens run both by simdgroup_matrix and by the plain kernels.

Usage: metal-check > metal-check.md

Prints a Markdown table with the device, the date and the commit. Ends with 0 when every check holds, 1 when one does not, 2 when there is no device.";

fn main() -> ExitCode {
    if let Some(argument) = std::env::args().nth(1) {
        println!("{HELP}");
        return ExitCode::from(if argument == "--help" { 0 } else { 2 });
    }
    let device = match support::device() {
        Ok(device) => device,
        Err(error) => {
            eprintln!("metal-check: {error}");
            return ExitCode::from(2);
        }
    };
    println!("# Metal kernels against the scalar reference\n");
    println!(
        "Device: {}. Date: {}. Commit: {}.\n",
        device.facts(),
        said("date", &["-u", "+%F %T UTC"]),
        said("git", &["rev-parse", "HEAD"])
    );
    println!("| family | check | result | ms |\n|---|---|---|---|");
    let mut failed = 0;
    for (family, what, check) in CHECKS {
        let start = Instant::now();
        let held = catch_unwind(check).is_ok();
        failed += u32::from(!held);
        let result = if held {
            "equal"
        } else {
            "DIFFERS (standard error has where)"
        };
        println!(
            "| {family} | {what} | {result} | {} |",
            start.elapsed().as_millis()
        );
    }
    println!("\n{} checks, {failed} failed.", CHECKS.len());
    ExitCode::from(u8::from(failed > 0))
}

/// What a program says; when it cannot be asked, that.
fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let said = output.ok().filter(|output| output.status.success());
    said.map_or_else(
        || format!("unknown ({program} does not say)"),
        |output| String::from_utf8_lossy(&output.stdout).trim().to_owned(),
    )
}
