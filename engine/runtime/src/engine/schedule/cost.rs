//! What prompt tokens have taken lately, by the layers that they go through and by how deep in a prompt they are.

use super::Kind;

/// What a new measurement counts.
const FRESH: f64 = 0.5;
/// No piece without answers beside it is shorter, however deep it is: reading the weights would take longer than using them.
pub(super) const LEAST: usize = 8;
/// For fewer tokens than these, reading the weights is most of what a pass takes.
const READING: usize = 64;
const DEPTHS: usize = 16;

/// A piece of a prompt: to be computed, or computed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) kind: Kind,
    /// Of its first token.
    pub(crate) position: usize,
    pub(crate) tokens: usize,
}

/// Seconds of a token, by kind and depth: the deeper, the more rows it looks at.
#[derive(Clone, Debug, Default)]
pub(crate) struct Costs([[Option<f64>; DEPTHS]; 2]);

impl Costs {
    /// What is known of this depth, or else of the nearest one above it.
    pub(super) fn at(&self, kind: Kind, position: usize) -> Option<f64> {
        let above = self.0[kind as usize][..=depth(position)].iter().rev();
        above.flatten().next().copied()
    }

    /// Tokens at `position` that take as long as `fresh` ones at the beginning of a prompt; as many where that is not known.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // at most `fresh`
    pub(crate) fn like(&self, fresh: usize, kind: Kind, position: usize) -> usize {
        match self.at(kind, 0).zip(self.at(kind, position)) {
            Some((first, here)) if here > first => {
                let tokens = (fresh as f64 * first / here) as usize;
                tokens.max(LEAST).min(fresh)
            }
            _ => fresh,
        }
    }

    /// Of the beginning of a prompt, through all layers if that was measured.
    pub(super) fn of_beginning(&self) -> Option<f64> {
        self.at(Kind::Whole, 0).or_else(|| self.at(Kind::Own, 0))
    }

    /// What these pieces have added to a pass of answers, together. Of pieces that cost differently nothing is learnt.
    pub(super) fn learn(&mut self, pieces: &[Piece], seconds: f64) {
        self.learn_as(1, pieces, seconds);
    }

    /// What a pass of these pieces has taken. That reads the weights, however few the tokens are: judged by its few tokens a short piece would seem
    /// dear, the next one would be shorter still, and so on. So it counts as a longer one, and the next one is longer.
    pub(crate) fn learn_alone(&mut self, pieces: &[Piece], seconds: f64) {
        self.learn_as(READING, pieces, seconds);
    }

    fn learn_as(&mut self, least: usize, pieces: &[Piece], seconds: f64) {
        let Some(first) = pieces.first() else { return };
        let place = |piece: &Piece| (piece.kind as usize, depth(piece.position));
        let (kind, depth) = place(first);
        if pieces.iter().all(|piece| place(piece) == (kind, depth)) {
            let tokens: usize = pieces.iter().map(|piece| piece.tokens).sum();
            mix(&mut self.0[kind][depth], seconds / tokens.max(least) as f64);
        }
    }
}

/// By powers of two of 1024 tokens.
fn depth(position: usize) -> usize {
    ((position / 1024 + 1).ilog2() as usize).min(DEPTHS - 1)
}

/// A mean that forgets.
fn mix(known: &mut Option<f64>, new: f64) {
    *known = Some(known.map_or(new, |old| old + FRESH * (new - old)));
}
