//! Codes of `IQ2_XXS` times the steps of their 32 values, exactly: `128 * high + low`, both signed bytes, looked up instead of multiplied.

use std::arch::x86_64::{
    __m128i, __m512i, _mm_load_si128, _mm512_broadcast_i32x4, _mm512_mask_broadcast_i32x4,
    _mm512_mask_sub_epi8, _mm512_setzero_si512, _mm512_shuffle_epi8,
};

use super::chunk::Iq2;

/// Which part of a product.
const LOW: usize = 0;
const HIGH: usize = 1;
/// Values of the low part.
const RADIX: usize = 128;

/// For every step, by the lower four bits of a magnitude: the low and the high part of their product.
#[repr(align(16))]
struct Products([[[u8; 16]; 2]; 16]);

/// Odd steps up to 31; the lower four bits of the magnitudes 8, 25 and 43 differ.
static PRODUCTS: Products = Products(products());

impl Products {
    /// `part` of the products with step `first` in the lower half of a register and with `second` in the upper.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    fn of(&self, first: usize, second: usize, part: usize) -> __m512i {
        let row = |step: usize| -> __m128i {
            let row: &[u8; 16] = &self.0[step][part];
            // SAFETY: 16 bytes, and the table of such rows is aligned to 16.
            unsafe { _mm_load_si128(row.as_ptr().cast()) }
        };
        _mm512_mask_broadcast_i32x4(_mm512_broadcast_i32x4(row(first)), 0xff00, row(second))
    }
}

impl Iq2 {
    /// The low and the high parts of a chunk times its steps.
    #[inline]
    #[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
    pub(crate) fn stepped(&self, block: &[u8; 66], chunk: usize) -> [__m512i; 2] {
        let (magnitudes, minus) = self.chunk(chunk);
        let step = |group: usize| usize::from(block[2 + 8 * group + 7] >> 4);
        [LOW, HIGH].map(|part| {
            let of_steps = PRODUCTS.of(step(2 * chunk), step(2 * chunk + 1), part);
            let product = _mm512_shuffle_epi8(of_steps, magnitudes);
            _mm512_mask_sub_epi8(product, minus, _mm512_setzero_si512(), product)
        })
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // below 128; magnitudes are positive
const fn products() -> [[[u8; 16]; 2]; 16] {
    let mut table = [[[0; 16]; 2]; 16];
    let magnitudes = ds4_kernels::grid::MAGNITUDES;
    let mut step = 0;
    while step < 16 {
        let mut i = 0;
        while i < magnitudes.len() {
            let magnitude = magnitudes[i] as usize;
            let (at, product) = (magnitude % 16, (2 * step + 1) * magnitude);
            assert!(product / RADIX < RADIX);
            table[step][LOW][at] = (product % RADIX) as u8;
            table[step][HIGH][at] = (product / RADIX) as u8;
            i += 1;
        }
        step += 1;
    }
    table
}
