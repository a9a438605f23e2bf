//! Rows unpacked once for many tokens.

use std::cell::RefCell;
use std::ops::Range;

use ds4_kernels::Format;

use crate::operands::ROWS;

/// Lanes of a register: half of the rows.
pub(crate) const LANES: usize = ROWS / 2;

/// Two registers: in each lane as much of a row as fits, four consecutive values as bytes.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Line<T>(pub(crate) [T; ROWS]);

/// Some blocks of each row, with rows as lanes. What a format has no use for stays empty.
pub(crate) struct Panel {
    pub(crate) format: Format,
    /// The blocks of the rows that are here.
    pub(crate) blocks: Range<usize>,
    /// `[cols / 4]`: weights as unsigned bytes, signed ones offset by 128.
    pub(crate) codes: Vec<Line<[u8; 4]>>,
    /// `[blocks]`: scales of weights and of minimums.
    pub(crate) d: Vec<Line<f32>>,
    pub(crate) dmin: Vec<Line<f32>>,
    /// `[cols / 32]`: what the integers of 32 values are multiplied with.
    pub(crate) steps: Vec<Line<i32>>,
    /// `[cols / 32]`: minimums of two consecutive groups of 16 values.
    pub(crate) minimums: Vec<Line<[i16; 2]>>,
}

impl Panel {
    const fn new() -> Self {
        Self {
            format: Format::Q8_0,
            blocks: 0..0,
            codes: Vec::new(),
            d: Vec::new(),
            dmin: Vec::new(),
            steps: Vec::new(),
            minimums: Vec::new(),
        }
    }

    /// Makes room for these blocks of the rows; what was there is to be overwritten.
    pub(crate) fn reset(&mut self, format: Format, of_rows: Range<usize>) {
        let (minimums, steps) = match format {
            Format::Q2K => (true, false),
            Format::Q4K => (true, true),
            Format::Iq2Xxs => (false, true),
            _ => (false, false),
        };
        let blocks = of_rows.len();
        let cols = blocks * format.block_len();
        let groups = cols / 32;
        (self.format, self.blocks) = (format, of_rows);
        // Written in whole chunks of 64 values.
        self.codes.resize(cols.div_ceil(64) * 16, Line([[0; 4]; ROWS]));
        self.d.resize(blocks, Line([0.0; ROWS]));
        self.dmin
            .resize(if minimums { blocks } else { 0 }, Line([0.0; ROWS]));
        self.steps.resize(if steps { groups } else { 0 }, Line([0; ROWS]));
        self.minimums
            .resize(if minimums { groups } else { 0 }, Line([[0; 2]; ROWS]));
    }
}

thread_local! {
    static PANEL: RefCell<Panel> = const { RefCell::new(Panel::new()) };
}

/// Lends this thread's panel: its memory is kept from product to product.
pub(crate) fn with_panel<R>(use_it: impl FnOnce(&mut Panel) -> R) -> R {
    PANEL.with_borrow_mut(use_it)
}
