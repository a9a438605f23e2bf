//! What the multipliers of this machine give at most: the roof that products are measured against.

/// Multiplications and additions of one turn of [`turns`].
pub const OPERATIONS_PER_TURN: usize = CHAINS * LANES * 2;

/// Independent sums: enough to hide the latency of a product.
const CHAINS: usize = 12;
/// Bytes of the widest register in use.
const LANES: usize = 64;

/// Runs `count` turns of byte products from registers to registers with the widest instruction that the processor has.
#[must_use]
pub fn turns(count: usize) -> i32 {
    #[cfg(target_arch = "x86_64")]
    if crate::Level::Avx512.available() {
        // SAFETY: the features were just detected.
        return unsafe { avx512(count) };
    }
    portable(count)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi")]
fn avx512(count: usize) -> i32 {
    use std::arch::x86_64::{_mm512_dpbusd_epi32, _mm512_reduce_add_epi32, _mm512_set1_epi32};
    let mut sums = [_mm512_set1_epi32(1); CHAINS];
    let (mut a, b) = (_mm512_set1_epi32(0x0102_0304), _mm512_set1_epi32(0x0403_0201));
    for _ in 0..count {
        a = std::hint::black_box(a);
        for sum in &mut sums {
            *sum = _mm512_dpbusd_epi32(*sum, a, b);
        }
    }
    sums.into_iter()
        .fold(0_i32, |all, sum| all.wrapping_add(_mm512_reduce_add_epi32(sum)))
}

/// 16-bit products, which compilers turn into what there is.
fn portable(count: usize) -> i32 {
    let mut sums = [[1_i32; LANES]; CHAINS];
    let mut a = [3_i16; LANES];
    for _ in 0..count {
        a = std::hint::black_box(a);
        for sum in &mut sums {
            sum.iter_mut()
                .zip(a)
                .for_each(|(sum, a)| *sum = sum.wrapping_add(i32::from(a) * 5));
        }
    }
    sums.iter()
        .flatten()
        .fold(0_i32, |all, sum| all.wrapping_add(*sum))
}
