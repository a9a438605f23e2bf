//! The launch table against the kernels' own declarations.

use ds4_kernels_cuda::TABLE;

use crate::support::bench;

#[test]
fn every_launch_has_the_kernels_parameters() {
    let bench = bench();
    let Some(emulator) = bench.emulator else { return };
    for kernel in TABLE {
        let declared = emulator.parameters(kernel.name);
        assert_eq!(declared.as_deref(), Some(kernel.arguments), "{}", kernel.name);
    }
}
