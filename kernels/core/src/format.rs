//! How a tensor's values are stored in the file.

use std::fmt;

/// Storage format of a tensor. Ids and block sizes are those of the GGUF format.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Format {
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// 32 signed bytes and an `f16` scale.
    Q8_0,
    /// 256 two-bit codes, 16 four-bit scale and minimum pairs, two `f16` super-scales.
    Q2K,
    /// 256 four-bit codes, 8 six-bit scale and minimum pairs, two `f16` super-scales.
    Q4K,
    /// 256 values as grid indices of 8, with signs and a scale per 32.
    Iq2Xxs,
    /// 32 four-bit floats (`E2M1`) and a power-of-two scale (`E8M0`).
    Mxfp4,
    /// Signed 32-bit integers: tables, never arithmetic.
    I32,
}

impl Format {
    /// Every format this engine reads.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Q8_0,
        Self::Q2K,
        Self::Q4K,
        Self::Iq2Xxs,
        Self::Mxfp4,
        Self::I32,
    ];

    /// The type id in a GGUF tensor record.
    #[must_use]
    pub const fn gguf_id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q4K => 12,
            Self::Iq2Xxs => 16,
            Self::I32 => 26,
            Self::Mxfp4 => 39,
        }
    }

    /// The format with this GGUF type id, if this engine reads it.
    #[must_use]
    pub fn from_gguf_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.gguf_id() == id)
    }

    /// The name that people know.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q4K => "Q4_K",
            Self::Iq2Xxs => "IQ2_XXS",
            Self::Mxfp4 => "MXFP4",
            Self::I32 => "I32",
        }
    }

    /// Values per block; a row is a whole number of blocks.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::I32 => 1,
            Self::Q8_0 | Self::Mxfp4 => 32,
            Self::Q2K | Self::Q4K | Self::Iq2Xxs => 256,
        }
    }

    /// Bytes per block.
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F16 => 2,
            Self::Q8_0 => 34,
            Self::Q2K => 84,
            Self::Q4K => 144,
            Self::Iq2Xxs => 66,
            Self::Mxfp4 => 17,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
