//! AMX (Sapphire Rapids and later) on top of AVX-512: 16 rows times 16 tokens in one instruction, for prompts.
//!
//! Rows are unpacked in their own order and tokens lie beside each other, so lanes are tokens. Integers are exact, so they are those of every
//! other level; what becomes of them is the same arithmetic, block after block.

mod integers;
mod panel;
mod registers;
mod sums;
mod tokens;

use std::cell::RefCell;

use self::integers::{Integers, PARTS};
use self::panel::{Panel, Scales};
use self::registers::Registers;
use self::sums::Sums;
use crate::kernels::Kernels;
use crate::operands::{Put, ROWS, Rows};
use crate::tiled::{TOKENS, Tiled, Tiling};

pub(crate) use self::integers::{OPERATIONS_PER_TURN, turns};
pub(crate) use self::registers::permitted;

/// Only for machines where `Level::Amx` was detected.
pub(crate) const KERNELS: Kernels = Kernels {
    tiled: Some(Tiling {
        // SAFETY: `Kernels::of` gives these functions out only where AMX and AVX-512 were detected.
        prepare: |tokens| unsafe { tokens::prepare(tokens) },
        // SAFETY: as above.
        product: |rows, x, put| unsafe { product(rows, x, put) },
    }),
    ..crate::avx512::KERNELS
};

/// What a thread keeps from product to product.
struct Scratch {
    /// The block at hand and the next one.
    panels: [Panel; 2],
    /// Of the same two, and of the block before, whose integers may not have become floats yet.
    scales: [Scales; 3],
    sums: Vec<Sums>,
    /// Of this tile and of the one before.
    made: [Integers; 2],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        panels: [Panel::EMPTY; 2],
        scales: [Scales::EMPTY; 3],
        sums: Vec::new(),
        made: [Integers::NONE; 2],
    }));
}

/// Block after block of the rows, which stay in the nearest cache while all tokens are multiplied with them. Between the parts of a tile's
/// integers, which take long and little of the processor, those of the tile before become floats, and some of the next block is unpacked.
#[target_feature(enable = "avx512bw,avx512vl,avx512vnni,avx512vbmi,gfni")]
fn product(rows: &Rows<'_>, x: &Tiled, put: Put<'_>) {
    assert_eq!(x.blocks, rows.blocks(), "blocks of the tokens and of the rows");
    let (registers, format, tiles) = (Registers::take(), rows.format(), x.count.div_ceil(TOKENS));
    let steps = tiles * x.blocks;
    // In the order of the steps: all tiles with one block, then with the next one.
    let columns = |step: usize| &x.columns[step % tiles * x.blocks + step / tiles];
    let share = ROWS.div_ceil(tiles * PARTS);
    SCRATCH.with_borrow_mut(|scratch| {
        let Scratch {
            panels,
            scales,
            sums,
            made,
        } = &mut **scratch;
        sums.clear();
        sums.resize(tiles, Sums::ZERO);
        panels[0].unpack(rows, 0, 0..ROWS, &mut scales[0]);
        // One more, in which nothing is multiplied.
        for step in 0..=steps {
            let (block, tile) = (step / tiles, step % tiles);
            let [even, odd] = &mut *panels;
            let (panel, next) = if block % 2 == 0 { (even, odd) } else { (odd, even) };
            let [first, second] = &mut *made;
            let (these, before) = if step % 2 == 0 {
                (first, second)
            } else {
                (second, first)
            };
            for part in 0..PARTS {
                if step < steps {
                    these.make(&registers, part, format, panel, columns(step));
                }
                if let Some(last) = step.checked_sub(1) {
                    let scales = &scales[last / tiles % 3];
                    sums[last % tiles].add(part, format, scales, columns(last), before);
                }
                let first = ROWS.min((tile * PARTS + part) * share);
                if block + 1 < x.blocks {
                    let some = first..ROWS.min(first + share);
                    next.unpack(rows, block + 1, some, &mut scales[(block + 1) % 3]);
                }
            }
            let whole = step.checked_sub(1).filter(|last| last / tiles + 1 == x.blocks);
            if let Some(tile) = whole.map(|last| last % tiles) {
                let first = tile * TOKENS;
                let values = sums[tile].of_tokens();
                let some = values.iter().take(x.count - first).enumerate();
                some.for_each(|(t, values)| put(first + t, values));
            }
        }
    });
}
