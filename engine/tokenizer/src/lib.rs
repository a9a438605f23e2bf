//! Text to tokens and back, by the vocabulary of the model file, and chat rendering.
//!
//! Special tokens are never made from text: a user who types `<｜User｜>` gets the tokens of those letters.

mod bytes;
pub mod chat;
mod decoder;
mod error;
mod special;
mod split;
mod tokenizer;

pub use decoder::Decoder;
pub use error::TokenizerError;
pub use special::Special;
pub use tokenizer::{Segment, Tokenizer};
