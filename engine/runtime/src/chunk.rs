//! A run of prompt tokens on its way through the stages.

use ds4_model::{Hidden, Kv, ModelError, ModelSlice, TokenHash};

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
    /// Splits a prompt.
    pub(crate) fn split(prompt: &[u32], chunk_tokens: usize) -> Vec<Self> {
        let mut hash = TokenHash::default();
        let count = prompt.len().div_ceil(chunk_tokens);
        let chunk = |(i, tokens): (usize, &[u32])| {
            let hash_before = hash;
            hash.extend(tokens);
            Self {
                start: (i * chunk_tokens) as u64,
                tokens: tokens.to_vec(),
                hash_before,
                last: i + 1 == count,
                hidden: None,
            }
        };
        prompt.chunks(chunk_tokens).enumerate().map(chunk).collect()
    }

    /// Whether the chunk continues `kv`; otherwise the field that differs, what was expected and what was found.
    pub(crate) fn continues(&self, kv: &Kv) -> Result<(), (&'static str, String, String)> {
        if self.start != kv.frontier() {
            return Err(("frontier", kv.frontier().to_string(), self.start.to_string()));
        }
        if self.hash_before != kv.hash() {
            return Err(("token hash", kv.hash().to_string(), self.hash_before.to_string()));
        }
        Ok(())
    }

    /// Computes the layers of `kv`; embeds first where no stage came before. Blocks.
    pub(crate) fn compute(&mut self, slice: &dyn ModelSlice, kv: &mut Kv) -> Result<(), ModelError> {
        let mut hidden = match self.hidden.take() {
            Some(hidden) => hidden,
            None => slice.embed(&self.tokens)?,
        };
        slice.forward(&self.tokens, &mut hidden, kv)?;
        self.hidden = Some(hidden);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_splits_into_chunks_that_know_what_came_before() {
        let prompt: Vec<u32> = (0..10).collect();
        let chunks = Chunk::split(&prompt, 4);
        assert_eq!(
            chunks
                .iter()
                .map(|chunk| (chunk.start, chunk.tokens.len(), chunk.last))
                .collect::<Vec<_>>(),
            [(0, 4, false), (4, 4, false), (8, 2, true)]
        );
        assert_eq!(chunks[2].hash_before, TokenHash::of(&prompt[..8]));
        assert_eq!(Chunk::split(&prompt, 10).len(), 1);
    }
}
