//! The residual streams of some tokens: what travels from stage to stage.

/// `[tokens][streams * n_embd]` in `f32`.
#[derive(Clone, Debug, PartialEq)]
pub struct Hidden {
    width: usize,
    values: Vec<f32>,
}

impl Hidden {
    /// Wraps `values`; `None` when they are not whole tokens of `width` values.
    #[must_use]
    pub fn from_vec(width: usize, values: Vec<f32>) -> Option<Self> {
        (width > 0 && values.len().is_multiple_of(width)).then_some(Self { width, values })
    }

    /// Values per token.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.width
    }

    /// Number of tokens.
    #[must_use]
    pub const fn tokens(&self) -> usize {
        self.values.len() / self.width
    }

    /// All values.
    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// All values, given away.
    #[must_use]
    pub fn into_vec(self) -> Vec<f32> {
        self.values
    }

    /// All values, for the layers to work on.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The values of one token.
    ///
    /// # Panics
    /// When there is no such token.
    #[must_use]
    pub fn token(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
    }
}
