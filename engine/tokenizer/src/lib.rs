//! Text to tokens and back, by the vocabulary of the model file, and chats and tool markup.
//!
//! Special tokens are never made from text: a user who types `<｜User｜>` gets the tokens of those letters.

mod bytes;
pub mod chat;
mod decoder;
pub mod dsml;
mod error;
pub mod json;
mod overlap;
mod special;
mod split;
mod tag;
mod tokenizer;

pub use decoder::Decoder;
pub use error::TokenizerError;
pub use overlap::overlap;
pub use special::Special;
pub use tokenizer::{Segment, Tokenizer};
