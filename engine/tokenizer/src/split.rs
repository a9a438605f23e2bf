//! How text is cut before merging: a fact of the model's tokenizer (`tokenizer.ggml.pre = "joyai-llm"`).

use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

use crate::TokenizerError;

/// The only rule of this family.
pub(crate) const NAME: &str = "joyai-llm";

/// Digits by threes.
const DIGITS: &str = r"\p{N}{1,3}";
/// Han, Hiragana, Katakana.
const EAST_ASIAN: &str = "[\u{4e00}-\u{9fa5}\u{3040}-\u{309f}\u{30a0}-\u{30ff}]+";
/// Words with what leads them, punctuation, line ends, other space.
const WORDS: &str = concat!(
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##,
    "|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+",
    "| ?[\\p{P}\\p{S}]+[\r\n]*",
    r"|\s*[",
    "\r\n",
    r"]+|\s+(?!\S)|\s+",
);

/// The cuts, then bytes as letters.
pub(crate) fn rule() -> Result<PreTokenizerWrapper, TokenizerError> {
    let split = |pattern: &str| {
        let made = Split::new(
            SplitPattern::Regex(pattern.into()),
            SplitDelimiterBehavior::Isolated,
            false,
        );
        made.map(PreTokenizerWrapper::Split)
            .map_err(|error| TokenizerError::Merges(error.to_string()))
    };
    let letters = PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false));
    let parts = vec![split(DIGITS)?, split(EAST_ASIAN)?, split(WORDS)?, letters];
    Ok(PreTokenizerWrapper::Sequence(Sequence::new(parts)))
}
