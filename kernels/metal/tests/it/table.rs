//! The launch table against the kernels' own declarations.

use ds4_kernels_metal::{TABLE, source};

use crate::support::bench;

#[test]
fn every_launch_has_the_kernels_parameters() {
    let bench = bench();
    let Some(emulator) = &bench.emulator else { return };
    for kernel in TABLE {
        let declared = emulator.parameters(kernel.name);
        let expected = (kernel.buffers.to_vec(), kernel.constants);
        assert_eq!(declared, Some(expected), "{}", kernel.name);
    }
}

/// Of their macros too: no kernel of the source is without a launch.
#[test]
fn every_kernel_is_launched() {
    let text = source();
    let plain = text
        .match_indices("\nkernel void ")
        .map(|(at, found)| &text[at + found.len()..]);
    for name in plain.filter_map(|rest| rest.split('(').next()) {
        assert!(TABLE.iter().any(|kernel| kernel.name == name), "{name}");
    }
}
