//! The launch table against the kernels' own declarations.

use ds4_kernels_cuda::TABLE;

#[test]
fn every_launch_has_the_kernels_parameters() {
    let emulator = ds4_emu::install().unwrap();
    for kernel in TABLE {
        let declared = emulator.parameters(kernel.name);
        assert_eq!(declared.as_deref(), Some(kernel.arguments), "{}", kernel.name);
    }
}
