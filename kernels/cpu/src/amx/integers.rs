//! The integers of a block: products of bytes in tile registers. Compilers know no tiles, so these are the instructions themselves.

use std::arch::asm;

use ds4_kernels::{Format, Q8K_BLOCK};

use super::panel::{Half, Panel, Square};
use super::registers::Registers;
use crate::panel::LANES;
use crate::tiled::{Columns, TOKENS};

/// Bytes of a line of a tile.
const LINE: usize = 64;
/// Parts of a block that a tile takes.
pub(super) const PARTS: usize = Q8K_BLOCK / LINE;
/// Bytes of a tile, and from the low to the high parts of weights.
const TILE: usize = size_of::<Square>();
const HIGH: usize = PARTS * TILE;
const _: () = assert!(
    TILE == LINE * LANES && TILE == LINE * TOKENS && std::mem::offset_of!(Half, minimums) == 2 * HIGH
);

/// What four tile registers hold, `[row][token]` of half of the rows each.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Integers(pub(super) [[[i32; TOKENS]; LANES]; 4]);

impl Integers {
    pub(super) const NONE: Self = Self([[[0; TOKENS]; LANES]; 4]);

    /// Part `part` of the integers of one block of the rows and 16 tokens: 64 values, the last of [`PARTS`] stores them all. `IQ2_XXS`: low and
    /// high parts of the first half, then of the second. `Q2_K`: both halves, then both halves' minimums.
    #[inline]
    #[target_feature(enable = "avx512bw")]
    pub(super) fn make(
        &mut self,
        registers: &Registers,
        part: usize,
        format: Format,
        panel: &Panel,
        columns: &Columns,
    ) {
        match (part, format) {
            (0, Format::Q2K) => self.with_minimums::<0>(registers, panel, columns),
            (1, Format::Q2K) => self.with_minimums::<1>(registers, panel, columns),
            (2, Format::Q2K) => self.with_minimums::<2>(registers, panel, columns),
            (_, Format::Q2K) => self.with_minimums::<3>(registers, panel, columns),
            (0, _) => self.of_parts::<0>(registers, panel, columns),
            (1, _) => self.of_parts::<1>(registers, panel, columns),
            (2, _) => self.of_parts::<2>(registers, panel, columns),
            _ => self.of_parts::<3>(registers, panel, columns),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn of_parts<const AT: usize>(&mut self, registers: &Registers, panel: &Panel, columns: &Columns) {
        if AT == 0 {
            registers.clear();
        }
        // SAFETY: reads a quarter of the panel and of the codes of the columns, and changes tile registers, which are ours while `Registers` is.
        unsafe {
            asm!(
                "tileloadd tmm{x}, [{codes} + {line}*1]",
                "tileloadd tmm4, [{first} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm{x}",
                "tileloadd tmm5, [{first} + {line}*1 + {high}]",
                "tdpbssd tmm1, tmm5, tmm{x}",
                "tileloadd tmm4, [{second} + {line}*1]",
                "tdpbssd tmm2, tmm4, tmm{x}",
                "tileloadd tmm5, [{second} + {line}*1 + {high}]",
                "tdpbssd tmm3, tmm5, tmm{x}",
                codes = in(reg) codes::<AT>(columns),
                first = in(reg) &raw const panel.halves[0].parts[0][AT],
                second = in(reg) &raw const panel.halves[1].parts[0][AT],
                line = in(reg) LINE,
                high = const HIGH,
                x = const 6 + AT % 2,
                options(nostack, readonly)
            );
        }
        if AT == PARTS - 1 {
            self.store(registers);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn with_minimums<const AT: usize>(&mut self, registers: &Registers, panel: &Panel, columns: &Columns) {
        if AT == 0 {
            registers.clear();
        }
        // SAFETY: as of `of_parts`.
        unsafe {
            asm!(
                "tileloadd tmm{x}, [{codes} + {line}*1]",
                "tileloadd tmm4, [{first} + {line}*1]",
                "tdpbssd tmm0, tmm4, tmm{x}",
                "tileloadd tmm5, [{second} + {line}*1]",
                "tdpbssd tmm1, tmm5, tmm{x}",
                codes = in(reg) codes::<AT>(columns),
                first = in(reg) &raw const panel.halves[0].parts[0][AT],
                second = in(reg) &raw const panel.halves[1].parts[0][AT],
                line = in(reg) LINE,
                x = const 6 + AT % 2,
                options(nostack, readonly)
            );
        }
        if AT == 0 {
            // SAFETY: the same; reads the minimums and the sums of codes.
            unsafe {
                asm!(
                    "tileloadd tmm7, [{sums} + {line}*1]",
                    "tileloadd tmm4, [{first} + {line}*1]",
                    "tdpbusd tmm2, tmm4, tmm7",
                    "tileloadd tmm5, [{second} + {line}*1]",
                    "tdpbusd tmm3, tmm5, tmm7",
                    sums = in(reg) columns.sums.as_ptr(),
                    first = in(reg) &raw const panel.halves[0].minimums,
                    second = in(reg) &raw const panel.halves[1].minimums,
                    line = in(reg) LINE,
                    options(nostack, readonly)
                );
            }
        }
        if AT == PARTS - 1 {
            self.store(registers);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn store(&mut self, _registers: &Registers) {
        // SAFETY: writes all of `self`.
        unsafe {
            asm!(
                "tilestored [{out} + {line}*1], tmm0",
                "tilestored [{out} + {line}*1 + {tile}], tmm1",
                "tilestored [{out} + {line}*1 + 2*{tile}], tmm2",
                "tilestored [{out} + {line}*1 + 3*{tile}], tmm3",
                out = in(reg) self.0.as_mut_ptr(),
                line = in(reg) LINE,
                tile = const TILE,
                options(nostack)
            );
        }
    }
}

/// Codes of part `AT` of a block.
const fn codes<const AT: usize>(columns: &Columns) -> *const [[i8; 4]; TOKENS] {
    columns.codes.as_chunks::<{ LINE / 4 }>().0[AT].as_ptr()
}

/// Multiplications and additions of one turn of [`turns`].
pub(crate) const OPERATIONS_PER_TURN: usize = 4 * 2 * LANES * TOKENS * LINE;

/// Products from registers to registers, four independent ones a turn: the peak of the tiles.
pub(crate) fn turns(count: usize) {
    assert!(super::permitted());
    // SAFETY: AMX was detected.
    let _registers = unsafe { Registers::take() };
    for _ in 0..count {
        // SAFETY: changes tile registers alone, which are ours.
        unsafe {
            asm!(
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm5, tmm6",
                "tdpbssd tmm2, tmm4, tmm7",
                "tdpbssd tmm3, tmm5, tmm7",
                options(nostack, nomem)
            );
        }
    }
}
