//! All cases, in several orders of threads.

use std::collections::BTreeSet;

use ds4_kernels_cuda::TABLE;
use ds4_kernels_suite::{Random, cases};

use crate::support::{ORDERS, run};
use ds4_emu::{Turn, turn};

fn all(turn: &Turn, tokens: usize, seed: u64) {
    for case in cases() {
        for order in ORDERS {
            run(turn, case, tokens, seed, order).unwrap_or_else(|error| panic!("{error}"));
        }
    }
}

#[test]
fn the_cases_name_every_kernel_that_the_host_launches() {
    let named: BTreeSet<&str> = cases().flat_map(|case| case.kernels).copied().collect();
    let launched: BTreeSet<&str> = TABLE.iter().map(|kernel| kernel.name).collect();
    assert_eq!(named, launched);
}

#[test]
fn one_token_and_odd_numbers_of_them_have_the_bits_of_the_reference_in_every_order() {
    let turn = turn();
    let mut random = Random(2026);
    for seed in 0..2 {
        all(&turn, 1, seed);
        // As many as share a reading, and as many as take tensor cores.
        all(&turn, 2 * random.within(1, 3) + 1, seed);
        all(&turn, 2 * random.within(4, 20) + 1, seed);
    }
    for kernel in TABLE {
        let orders = turn.emulator.orders(kernel.name);
        assert!(orders >= ORDERS.len(), "{} ran in {orders} orders", kernel.name);
    }
}

#[test]
fn thousands_of_tokens_have_the_bits_of_the_reference_in_every_order() {
    all(&turn(), 4096, 4);
}
