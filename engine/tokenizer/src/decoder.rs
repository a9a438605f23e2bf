//! Text from tokens, piece by piece.

use crate::Tokenizer;

/// Holds bytes back until they are whole characters.
#[derive(Debug)]
pub struct Decoder<'a> {
    tokenizer: &'a Tokenizer,
    held: Vec<u8>,
}

impl<'a> Decoder<'a> {
    pub(crate) const fn new(tokenizer: &'a Tokenizer) -> Self {
        Self {
            tokenizer,
            held: Vec::new(),
        }
    }

    /// The characters that `id` completes; may be empty.
    pub fn push(&mut self, id: u32) -> String {
        self.held
            .extend_from_slice(self.tokenizer.token_bytes(id).unwrap_or_default());
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.held) {
                Ok(whole) => {
                    text.push_str(whole);
                    self.held.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(&String::from_utf8_lossy(&self.held[..valid]));
                    // No length: the rest may still become a character.
                    let Some(wrong) = error.error_len() else {
                        self.held.drain(..valid);
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.held.drain(..valid + wrong);
                }
            }
        }
    }

    /// What is left of an unfinished character.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.held).into_owned();
        self.held.clear();
        rest
    }
}
