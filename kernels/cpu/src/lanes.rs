//! A register of `f32` lanes: what the attention tiles are written over, once for all instruction sets.

use std::arch::x86_64::*;

/// Lanes of one register. Methods are inlined into functions that enable the instructions; nothing else may call them.
///
/// # Safety
/// Every method needs the implementation's instructions; `load` and `store` need `WIDTH` values at the address, at any alignment.
pub(crate) trait Lanes: Copy {
    const WIDTH: usize;
    unsafe fn zero() -> Self;
    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn store(self, to: *mut f32);
    unsafe fn add(self, other: Self) -> Self;
    /// `self * factor + term`, fused.
    unsafe fn fma(self, factor: Self, term: Self) -> Self;
    /// Four lanes: lane `i` takes lane `i + half` until four are left.
    unsafe fn quarter(self) -> __m128;
}

macro_rules! lanes {
    ($register:ty, $width:literal, $zero:ident, $splat:ident, $load:ident, $store:ident, $add:ident, $fma:ident, |$lanes:ident| $quarter:expr) => {
        impl Lanes for $register {
            const WIDTH: usize = $width;

            #[inline(always)]
            unsafe fn zero() -> Self {
                // SAFETY: as the trait says; so are all below.
                unsafe { $zero() }
            }

            #[inline(always)]
            unsafe fn splat(x: f32) -> Self {
                // SAFETY: as above.
                unsafe { $splat(x) }
            }

            #[inline(always)]
            unsafe fn load(from: *const f32) -> Self {
                // SAFETY: as above; the caller has the values.
                unsafe { $load(from) }
            }

            #[inline(always)]
            unsafe fn store(self, to: *mut f32) {
                // SAFETY: as above; the caller has the room.
                unsafe { $store(to, self) }
            }

            #[inline(always)]
            unsafe fn add(self, other: Self) -> Self {
                // SAFETY: as above.
                unsafe { $add(self, other) }
            }

            #[inline(always)]
            unsafe fn fma(self, factor: Self, term: Self) -> Self {
                // SAFETY: as above.
                unsafe { $fma(self, factor, term) }
            }

            #[inline(always)]
            unsafe fn quarter(self) -> __m128 {
                let $lanes = self;
                // SAFETY: as above.
                unsafe { $quarter }
            }
        }
    };
}

lanes!(
    __m256,
    8,
    _mm256_setzero_ps,
    _mm256_set1_ps,
    _mm256_loadu_ps,
    _mm256_storeu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps,
    |lanes| _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps::<1>(lanes))
);

lanes!(
    __m512,
    16,
    _mm512_setzero_ps,
    _mm512_set1_ps,
    _mm512_loadu_ps,
    _mm512_storeu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps,
    |lanes| {
        let high = _mm512_shuffle_f32x4::<0b11_10_11_10>(lanes, lanes);
        _mm256_add_ps(_mm512_castps512_ps256(lanes), _mm512_castps512_ps256(high)).quarter()
    }
);

/// Sums of the four lanes of each of four registers: lane `i` takes lane `i + half`.
///
/// # Safety
/// Inlined into a function that enables AVX.
#[inline(always)]
pub(crate) unsafe fn fold4(a: __m128, b: __m128, c: __m128, d: __m128) -> __m128 {
    // SAFETY: as the caller says.
    unsafe {
        let ab = _mm_add_ps(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
        let cd = _mm_add_ps(_mm_movelh_ps(c, d), _mm_movehl_ps(d, c));
        _mm_add_ps(
            _mm_shuffle_ps::<0b10_00_10_00>(ab, cd),
            _mm_shuffle_ps::<0b11_01_11_01>(ab, cd),
        )
    }
}
