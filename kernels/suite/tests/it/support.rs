//! Cases on the emulated device.

use ds4_emu::Turn;
use ds4_kernels_suite::{Bench, Case, Failure, Random};

/// Orders in which threads and blocks get their turn: ascending, descending, shuffled.
pub const ORDERS: [u64; 5] = [0, 1, 2, 3, 77];

/// Runs a case; the same numbers give the same operands.
pub fn run(turn: &Turn, case: &Case, tokens: usize, seed: u64, order: u64) -> Result<(), String> {
    turn.emulator.order(order);
    let mut bench = Bench {
        device: &turn.device,
        random: Random(seed),
        tokens,
    };
    let said = |error: Failure| {
        let name = case.name;
        format!("{name}: {tokens} tokens, seed {seed}, order {order}: {error}")
    };
    (case.run)(&mut bench).map_err(said)
}
