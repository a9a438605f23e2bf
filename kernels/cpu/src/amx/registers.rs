//! Tile registers: asked for, shaped, and given back.

use std::arch::asm;
use std::arch::x86_64::__cpuid_count;
use std::sync::OnceLock;

/// Registers that there are, of 16 lines of 64 bytes each.
const COUNT: usize = 8;
const LINES: u8 = 16;
const LINE_BYTES: u16 = 64;

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// Tile registers, shaped. While it is there no other code of this thread uses tiles, and compilers do not by themselves.
pub(super) struct Registers(());

impl Registers {
    /// All of them in full size.
    #[target_feature(enable = "avx512bw")]
    pub(super) fn take() -> Self {
        let shapes = Shapes::FULL;
        // SAFETY: permission was given when the level was detected; the shapes are those of palette 1: at most 16 lines of 64 bytes.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const shapes, options(nostack)) };
        Self(())
    }

    /// Zeros in the first four, where sums are made.
    #[inline]
    #[target_feature(enable = "avx512bw")]
    pub(super) fn clear(&self) {
        // SAFETY: changes tile registers alone, which are ours.
        unsafe {
            asm!(
                "tilezero tmm0",
                "tilezero tmm1",
                "tilezero tmm2",
                "tilezero tmm3",
                options(nostack, nomem)
            );
        }
    }
}

impl Drop for Registers {
    fn drop(&mut self) {
        // SAFETY: gives back what `take` took, so that a thread without products has no tiles to be saved.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

impl Shapes {
    const FULL: Self = {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        let mut register = 0;
        while register < COUNT {
            (rows[register], row_bytes[register]) = (LINES, LINE_BYTES);
            register += 1;
        }
        Self {
            palette: 1,
            start_row: 0,
            reserved: [0; 14],
            row_bytes,
            rows,
        }
    };
}

/// Whether the processor has tiles of bytes and the system lets this process use them; asks it once.
pub(crate) fn permitted() -> bool {
    static PERMITTED: OnceLock<bool> = OnceLock::new();
    *PERMITTED.get_or_init(|| has_tiles() && ask())
}

/// `AMX-TILE` and `AMX-INT8`: bits 24 and 25 of leaf 7.
fn has_tiles() -> bool {
    const BOTH: u32 = 0b11 << 24;
    __cpuid_count(7, 0).edx & BOTH == BOTH
}

/// `arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA)`: Linux (5.16 and later) gives a process room for tiles when it asks.
#[cfg(all(target_os = "linux", not(miri)))]
fn ask() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XTILEDATA: i64 = 18;
    let answer: i64;
    // SAFETY: the call takes numbers and changes no memory of ours; `syscall` overwrites `rcx` and `r11`.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

#[cfg(not(all(target_os = "linux", not(miri))))]
const fn ask() -> bool {
    false
}
