//! Which layers a stage owns.

use std::fmt;
use std::ops::RangeInclusive;

use thiserror::Error;

/// Why a text is no layer span.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SpanError {
    /// Not of the form `A:B` or `A:output`.
    #[error("layers: expected A:B or A:output (for example 0:21 or 22:output), found {0:?}")]
    Form(String),
    /// The end lies before the start.
    #[error("layers: expected first <= last, found {first}:{last}")]
    Reversed {
        /// First layer given.
        first: usize,
        /// Last layer given.
        last: usize,
    },
    /// A layer that the model does not have.
    #[error("layers: expected layers 0 to {most}, found {found}")]
    Range {
        /// The model's last layer.
        most: usize,
        /// The layer given.
        found: usize,
    },
}

/// Layers `first..=last`. The span that starts at 0 owns the embedding; the one written `N:output` owns the head.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LayerSpan {
    /// First layer.
    pub first: usize,
    /// Last layer, inclusive.
    pub last: usize,
    /// Whether the output head belongs to it.
    pub head: bool,
}

impl LayerSpan {
    /// All layers of a model and its head.
    #[must_use]
    pub const fn full(n_layer: usize) -> Self {
        Self {
            first: 0,
            last: n_layer.saturating_sub(1),
            head: true,
        }
    }

    /// Reads `A:B` (inclusive) or `A:output`.
    ///
    /// # Errors
    /// When the text has another form or names layers that a model of `n_layer` layers lacks.
    pub fn parse(text: &str, n_layer: usize) -> Result<Self, SpanError> {
        let form = || SpanError::Form(text.to_owned());
        let (first, last) = text.split_once(':').ok_or_else(form)?;
        let number = |part: &str| part.parse::<usize>().map_err(|_| form());
        let most = n_layer.saturating_sub(1);
        let head = last == "output";
        let (first, last) = (number(first)?, if head { most } else { number(last)? });
        if let Some(found) = [first, last].into_iter().find(|layer| *layer > most) {
            return Err(SpanError::Range { most, found });
        }
        if first > last {
            Err(SpanError::Reversed { first, last })
        } else {
            Ok(Self { first, last, head })
        }
    }

    /// The layers, in order.
    #[must_use]
    pub const fn layers(&self) -> RangeInclusive<usize> {
        self.first..=self.last
    }
}

impl fmt::Display for LayerSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.head {
            write!(f, "{}:output", self.first)
        } else {
            write!(f, "{}:{}", self.first, self.last)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_read_back_as_they_print() {
        for text in ["0:0", "0:21", "22:output", "0:output"] {
            assert_eq!(
                LayerSpan::parse(text, 43).map(|span| span.to_string()),
                Ok(text.to_owned())
            );
        }
    }

    #[test]
    fn other_texts_are_refused_with_what_was_found() {
        assert_eq!(LayerSpan::parse("5", 43), Err(SpanError::Form("5".into())));
        assert_eq!(LayerSpan::parse("a:b", 43), Err(SpanError::Form("a:b".into())));
        assert_eq!(
            LayerSpan::parse("5:3", 43),
            Err(SpanError::Reversed { first: 5, last: 3 })
        );
        assert_eq!(
            LayerSpan::parse("5:43", 43),
            Err(SpanError::Range { most: 42, found: 43 })
        );
        assert_eq!(
            LayerSpan::parse("43:output", 43),
            Err(SpanError::Range { most: 42, found: 43 })
        );
    }
}
