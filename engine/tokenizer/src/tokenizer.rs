//! The vocabulary of a model file.

use std::collections::{HashMap, HashSet};

use ds4_gguf::{Gguf, Value};
use tokenizers::models::bpe::BPE;

use crate::decoder::Decoder;
use crate::special::Special;
use crate::{TokenizerError, bytes, split};

const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const PRE: &str = "tokenizer.ggml.pre";

/// A piece of a prompt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segment<'a> {
    /// Structure.
    Special(Special),
    /// Text, whatever it looks like.
    Text(&'a str),
}

/// Text to tokens and back.
#[derive(Debug)]
pub struct Tokenizer {
    encoder: tokenizers::Tokenizer,
    /// What each token adds to the output.
    bytes: Vec<Vec<u8>>,
    /// Whether each token is structure.
    structure: Vec<bool>,
    specials: HashMap<Special, u32>,
}

impl Tokenizer {
    /// Reads `tokenizer.ggml.*`.
    ///
    /// # Errors
    /// When a key is missing or of another type, the splitting rule is unknown, or merges name tokens that do not exist.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, TokenizerError> {
        let metadata = gguf.metadata();
        let found = metadata.string(PRE)?;
        if found != split::NAME {
            return Err(TokenizerError::Unexpected {
                key: PRE,
                expected: split::NAME.into(),
                found: found.into(),
            });
        }
        let tokens = strings(gguf, TOKENS)?;
        let merges = strings(gguf, MERGES)?;
        let ids: HashMap<&str, u32> = tokens.iter().copied().zip(0..).collect();
        if ids.len() != tokens.len() {
            let found = format!("{} of them twice", tokens.len() - ids.len());
            return Err(TokenizerError::Unexpected {
                key: TOKENS,
                expected: "distinct tokens".into(),
                found,
            });
        }
        let specials: HashMap<Special, u32> = Special::ALL
            .into_iter()
            .filter_map(|special| Some((special, *ids.get(special.text())?)))
            .collect();
        for required in [Special::Bos, Special::Eos, Special::User, Special::Assistant] {
            if !specials.contains_key(&required) {
                return Err(TokenizerError::Unexpected {
                    key: TOKENS,
                    expected: required.text().into(),
                    found: "no such token".into(),
                });
            }
        }
        let bytes = tokens.iter().map(|token| token_bytes(token)).collect();
        let known: HashSet<u32> = specials.values().copied().collect();
        let structure = tokens
            .iter()
            .zip(0..)
            .map(|(token, id)| is_literal(token) || known.contains(&id));
        Ok(Self {
            structure: structure.collect(),
            encoder: encoder(&tokens, &merges)?,
            bytes,
            specials,
        })
    }

    /// Tokens of a text. Nothing in it becomes a special token.
    #[must_use]
    pub fn encode(&self, text: &str) -> Vec<u32> {
        // Byte-level encoding has a token for everything; there is nothing that could fail but a vocabulary without some byte.
        self.encoder
            .encode_fast(text, false)
            .map(|encoding| encoding.get_ids().to_vec())
            .unwrap_or_default()
    }

    /// Tokens of a prompt made of structure and text. A special that the vocabulary lacks is encoded as its text.
    #[must_use]
    pub fn encode_segments(&self, segments: &[Segment<'_>]) -> Vec<u32> {
        let encode = |segment: &Segment<'_>| match segment {
            Segment::Special(special) => self
                .special(*special)
                .map_or_else(|| self.encode(special.text()), |id| vec![id]),
            Segment::Text(text) => self.encode(text),
        };
        segments.iter().flat_map(encode).collect()
    }

    /// The id of a special token.
    #[must_use]
    pub fn special(&self, special: Special) -> Option<u32> {
        self.specials.get(&special).copied()
    }

    /// What a token adds to the output; `None` beyond the vocabulary.
    #[must_use]
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.bytes.get(id as usize).map(Vec::as_slice)
    }

    /// Whether a token is structure, which no text is made of.
    #[must_use]
    pub fn is_special(&self, id: u32) -> bool {
        self.structure.get(id as usize).copied().unwrap_or(false)
    }

    /// Number of tokens.
    #[must_use]
    pub const fn vocab_size(&self) -> usize {
        self.bytes.len()
    }

    /// Text as tokens arrive; never half a character.
    #[must_use]
    pub fn decoder(&self) -> Decoder<'_> {
        Decoder::new(self)
    }

    /// The text of some tokens; bytes that are no UTF-8 become U+FFFD.
    #[must_use]
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut decoder = self.decoder();
        let mut text: String = ids.iter().map(|id| decoder.push(*id)).collect();
        text.push_str(&decoder.finish());
        text
    }
}

fn strings<'a>(gguf: &'a Gguf, key: &'static str) -> Result<Vec<&'a str>, TokenizerError> {
    let values = gguf.metadata().array(key)?;
    let text = |value: &'a Value| match value {
        Value::String(text) => Ok(text.as_str()),
        other => Err(TokenizerError::Unexpected {
            key,
            expected: "strings".into(),
            found: format!("{other:?}"),
        }),
    };
    values.iter().map(text).collect()
}

/// Letters stand for bytes; tokens with U+FF5C and others that are no letters of bytes stand for themselves.
fn token_bytes(token: &str) -> Vec<u8> {
    let decoded = if is_literal(token) {
        None
    } else {
        bytes::decode(token)
    };
    decoded.unwrap_or_else(|| token.as_bytes().to_vec())
}

/// U+FF5C is no letter of a byte: it stands in special tokens only.
fn is_literal(token: &str) -> bool {
    token.contains('\u{ff5c}')
}

fn encoder(tokens: &[&str], merges: &[&str]) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let pair = |merge: &&str| {
        let parts = merge
            .split_once(' ')
            .map(|(left, right)| (left.to_owned(), right.to_owned()));
        parts.ok_or_else(|| {
            TokenizerError::Merges(format!(
                "expected two tokens with a space between them, found {merge:?}"
            ))
        })
    };
    let merges = merges.iter().map(pair).collect::<Result<Vec<_>, _>>()?;
    let vocabulary = tokens.iter().map(|token| (*token).to_owned()).zip(0..);
    let built = BPE::builder()
        .vocab_and_merges(vocabulary.collect::<ahash::AHashMap<String, u32>>(), merges)
        .build();
    let model = built.map_err(|error| TokenizerError::Merges(error.to_string()))?;
    let mut encoder = tokenizers::Tokenizer::new(model);
    encoder.with_pre_tokenizer(Some(split::rule()?));
    Ok(encoder)
}
