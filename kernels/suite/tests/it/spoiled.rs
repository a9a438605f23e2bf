//! Whether anything would notice a wrong result: every kernel in turn writes one wrong bit.

use ds4_kernels_cuda::TABLE;
use ds4_kernels_suite::cases;

use crate::support::run;
use ds4_emu::turn;

#[test]
fn one_wrong_bit_of_any_kernel_is_noticed() {
    let turn = turn();
    for kernel in TABLE {
        let notices = |tokens: usize| {
            let of_kernel = cases().filter(|case| case.kernels.contains(&kernel.name));
            of_kernel
                .into_iter()
                .any(|case| run(&turn, case, tokens, 1, 0).is_err())
        };
        assert!(
            !notices(1) && !notices(7) && !notices(17),
            "{}: fails as it is",
            kernel.name
        );
        turn.emulator.spoil(Some(kernel.name));
        let noticed = notices(1) || notices(7) || notices(17);
        turn.emulator.spoil(None);
        assert!(noticed, "{}: a wrong bit went unnoticed", kernel.name);
    }
}
