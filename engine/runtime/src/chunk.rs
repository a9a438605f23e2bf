//! A run of prompt tokens on its way through the stages.

use std::ops::Range;

use ds4_model::{Hidden, Kv, ModelError, ModelSlice, TokenHash};

use crate::planted::{self, Bug};

/// Tokens of the last chunk, where that is split. Flash's rows of 32 tokens and 22 layers are at most 2.4 MB, states included.
const TAIL: usize = 32;

/// Tokens at a position, with their residual streams once a stage has computed them.
#[derive(Clone, Debug)]
pub(crate) struct Chunk {
    pub(crate) start: u64,
    pub(crate) tokens: Vec<u32>,
    pub(crate) hash_before: TokenHash,
    pub(crate) last: bool,
    pub(crate) hidden: Option<Hidden>,
}

impl Chunk {
    /// Splits a prompt from `from` on. No chunk crosses `held`, from where on the output pod lacks the rows. The last tokens are a chunk of
    /// their own: only its rows are left to hand over, and only it passes the stages one after the other, when everything else is done.
    pub(crate) fn split(prompt: &[u32], from: usize, held: usize, chunk_tokens: usize) -> Vec<Self> {
        let edge = held.clamp(from, prompt.len());
        let mut hash = TokenHash::of(&prompt[..from]);
        let mut start = from as u64;
        let chunk = |tokens: &[u32]| {
            let chunk = Self {
                start,
                tokens: tokens.to_vec(),
                hash_before: hash,
                last: start + tokens.len() as u64 == prompt.len() as u64,
                hidden: None,
            };
            hash.extend(tokens);
            start += tokens.len() as u64;
            chunk
        };
        let new = prompt.len() - edge;
        let last = new % chunk_tokens.max(1);
        let last = if last == 0 { chunk_tokens.min(new) } else { last };
        // A chunk that is hardly longer is not worth another message.
        let tail = if last > 2 * TAIL {
            prompt.len() - TAIL
        } else {
            prompt.len()
        };
        let parts = [&prompt[from..edge], &prompt[edge..tail], &prompt[tail..]];
        parts
            .into_iter()
            .flat_map(|part| part.chunks(chunk_tokens))
            .map(chunk)
            .collect()
    }

    /// Whether the chunk continues `kv`; otherwise the field that differs, what was expected and what was found.
    pub(crate) fn continues(&self, kv: &Kv) -> Result<(), (&'static str, String, String)> {
        if self.start != kv.frontier() {
            return Err(("frontier", kv.frontier().to_string(), self.start.to_string()));
        }
        if self.hash_before != kv.hash() && !planted::is(Bug::HashUnchecked) {
            return Err(("token hash", kv.hash().to_string(), self.hash_before.to_string()));
        }
        Ok(())
    }

    /// Computes the layers of `kv` for a piece of the chunk, at its frontier; embeds first where no stage came before. Blocks.
    pub(crate) fn compute(
        &mut self,
        piece: Range<usize>,
        slice: &dyn ModelSlice,
        kv: &mut Kv,
    ) -> Result<(), ModelError> {
        let mut hidden = match self.hidden.take() {
            Some(hidden) => hidden,
            None => slice.embed(&self.tokens)?,
        };
        forward_piece(slice, &self.tokens, piece, &mut hidden, kv)?;
        self.hidden = Some(hidden);
        Ok(())
    }
}

/// Runs the layers of `kv` over a piece of some tokens, whose streams are `hidden`. Blocks.
pub(crate) fn forward_piece(
    slice: &dyn ModelSlice,
    tokens: &[u32],
    piece: Range<usize>,
    hidden: &mut Hidden,
    kv: &mut Kv,
) -> Result<(), ModelError> {
    if piece.len() == tokens.len() {
        return slice.forward(tokens, hidden, kv);
    }
    let width = hidden.width();
    let rows = &mut hidden.as_mut_slice()[piece.start * width..piece.end * width];
    let mut part = Hidden::from_vec(width, rows.to_vec())
        .ok_or_else(|| slice.info().lacks("hidden states of width 0"))?;
    slice.forward(&tokens[piece], &mut part, kv)?;
    rows.copy_from_slice(part.as_slice());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_splits_into_chunks_that_know_what_came_before() {
        let prompt: Vec<u32> = (0..10).collect();
        let chunks = Chunk::split(&prompt, 0, 0, 4);
        assert_eq!(
            chunks
                .iter()
                .map(|chunk| (chunk.start, chunk.tokens.len(), chunk.last))
                .collect::<Vec<_>>(),
            [(0, 4, false), (4, 4, false), (8, 2, true)]
        );
        assert_eq!(chunks[2].hash_before, TokenHash::of(&prompt[..8]));
        assert_eq!(Chunk::split(&prompt, 0, 0, 10).len(), 1);
        let resumed = Chunk::split(&prompt, 3, 5, 4);
        let places: Vec<_> = resumed
            .iter()
            .map(|chunk| (chunk.start, chunk.tokens.len(), chunk.last))
            .collect();
        assert_eq!(places, [(3, 2, false), (5, 4, false), (9, 1, true)]);
        assert_eq!(resumed[1].hash_before, TokenHash::of(&prompt[..5]));
        let long: Vec<u32> = (0..300).collect();
        let sizes = |chunk| {
            let chunks = Chunk::split(&long, 0, 0, chunk);
            chunks.iter().map(|chunk| chunk.tokens.len()).collect::<Vec<_>>()
        };
        assert_eq!(sizes(128), [128, 128, 44], "short enough");
        assert_eq!(sizes(100), [100, 100, 68, 32], "the last chunk is short");
        assert_eq!(sizes(512), [268, 32]);
    }
    #[test]
    fn pieces_of_a_chunk_give_the_bits_of_the_whole() {
        let slice = crate::sim::model::slice(0, 1);
        let computed = |pieces: &[Range<usize>]| {
            let tokens: Vec<u32> = (20..60).collect();
            let mut chunk = Chunk::split(&tokens, 0, 0, tokens.len()).remove(0);
            let mut kv = Kv::new(&slice.info().layout, slice.info().span);
            for piece in pieces {
                let done = chunk.compute(piece.clone(), &*slice, &mut kv);
                done.expect("tokens of the model");
            }
            assert_eq!(kv.frontier(), 40);
            chunk.hidden
        };
        assert_eq!(
            computed(&[0..7, 7..8, 8..40]),
            computed(std::slice::from_ref(&(0..40)))
        );
    }
}
