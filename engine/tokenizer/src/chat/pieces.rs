//! Structure and text in the order in which they become tokens.

use crate::{Segment, Special, Tokenizer};

/// A piece of a rendered chat.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Piece {
    Special(Special),
    Text(String),
}

/// A rendered chat. Neighbouring texts are one text, since merges reach across.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Pieces(Vec<Piece>);

impl Pieces {
    pub(super) fn special(&mut self, special: Special) {
        self.0.push(Piece::Special(special));
    }

    /// Text that is only text, whatever it looks like.
    pub(super) fn text(&mut self, text: &str) {
        match self.0.last_mut() {
            _ if text.is_empty() => {}
            Some(Piece::Text(last)) => last.push_str(text),
            _ => self.0.push(Piece::Text(text.to_owned())),
        }
    }

    /// Text of the format itself: special tokens written in it are meant.
    pub(super) fn format(&mut self, text: &str) {
        const MEANT: [Special; 3] = [Special::Dsml, Special::ThinkOpen, Special::ThinkClose];
        let mut rest = text;
        let next = |rest: &str| {
            let found = MEANT
                .iter()
                .filter_map(|special| Some((rest.find(special.text())?, *special)));
            found.min_by_key(|(at, _)| *at)
        };
        while let Some((at, special)) = next(rest) {
            self.text(&rest[..at]);
            self.special(special);
            rest = &rest[at + special.text().len()..];
        }
        self.text(rest);
    }

    pub(super) fn tokens(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let segment = |piece| match piece {
            &Piece::Special(special) => Segment::Special(special),
            Piece::Text(text) => Segment::Text(text),
        };
        let segments: Vec<Segment<'_>> = self.0.iter().map(segment).collect();
        tokenizer.encode_segments(&segments)
    }

    /// As one string, special tokens by their texts.
    pub(super) fn shown(&self) -> String {
        let text = |piece: &'_ Piece| match piece {
            Piece::Special(special) => special.text().to_owned(),
            Piece::Text(text) => text.clone(),
        };
        self.0.iter().map(text).collect()
    }
}
