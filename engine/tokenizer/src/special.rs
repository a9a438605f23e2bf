//! The family's special tokens.

/// A token that stands for structure, not for text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Special {
    /// Begin of sequence.
    Bos,
    /// End of sequence: ends a turn.
    Eos,
    /// A user turn follows.
    User,
    /// An assistant turn follows.
    Assistant,
    /// Reasoning begins.
    ThinkOpen,
    /// Reasoning ends.
    ThinkClose,
    /// Marks tool markup.
    Dsml,
}

impl Special {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Bos,
        Self::Eos,
        Self::User,
        Self::Assistant,
        Self::ThinkOpen,
        Self::ThinkClose,
        Self::Dsml,
    ];

    /// The token's text in the vocabulary.
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Bos => "<｜begin▁of▁sentence｜>",
            Self::Eos => "<｜end▁of▁sentence｜>",
            Self::User => "<｜User｜>",
            Self::Assistant => "<｜Assistant｜>",
            Self::ThinkOpen => "<think>",
            Self::ThinkClose => "</think>",
            Self::Dsml => "｜DSML｜",
        }
    }
}
