//! A byte-level vocabulary with the family's special tokens: small, and good for any text.

/// Specials before the bytes.
const FIRST: [&str; 3] = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"];
/// Specials after everything else.
const LAST: [&str; 5] = ["<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "｜DSML｜"];
/// Fewest tokens: bytes and specials.
pub(crate) const SMALLEST: usize = FIRST.len() + 256 + LAST.len();

/// GGUF token types.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Frequent English pairs, most frequent first; `_` stands for a space. Each part is a letter or an earlier pair.
const PAIRS: &str = "_ t|h e|i n|e r|a n|r e|o n|_t he|a t|e n|_ a|o r|_ o|e s|_ s|i s|_ w|n d|o u|i t|_ c|in g|_o f|_a nd|_ p|_ m|_ b|e d|_ f|\
    _ h|_t o|a l|_ in|l l|_ i|a r|i on|_ d|o m|_ re|_ l|l e|u t|_ n|en t|_ y|_ g|_i s|_w h|r o|i c|v e|_b e|_th at|s t|_f or|o t|_ st|e t|_ e|\
    a s|_a s|_it|c h|l y|g h|_w it|_with|i d|_ on|_h e|a m|_c on|ou r|i v|_an|u r|u s|o w|at ion|er s|a y|_ u|_d o|_n ot|i l|_y ou|_s he";

/// Tokens, their types, and the merges.
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
}

impl Vocabulary {
    /// A vocabulary of exactly `size` tokens.
    pub(crate) fn new(size: usize) -> Self {
        let mut all = Self {
            tokens: Vec::new(),
            types: Vec::new(),
            merges: Vec::new(),
        };
        FIRST
            .iter()
            .for_each(|special| all.add((*special).into(), CONTROL));
        (0..=255).for_each(|byte| all.add(letter(byte).into(), NORMAL));
        let room = size - LAST.len();
        for pair in PAIRS.split('|').map(str::trim) {
            all.merge(pair, room);
        }
        for i in 0..room.saturating_sub(all.tokens.len()) {
            all.add(format!("<｜place▁holder▁no▁{i}｜>"), CONTROL);
        }
        LAST.iter()
            .zip([CONTROL, CONTROL, USER_DEFINED, USER_DEFINED, USER_DEFINED])
            .for_each(|(special, kind)| all.add((*special).into(), kind));
        all
    }

    fn add(&mut self, token: String, kind: i32) {
        self.tokens.push(token);
        self.types.push(kind);
    }

    /// Adds a pair when there is room and both parts are tokens.
    fn merge(&mut self, pair: &str, room: usize) {
        let pair = pair.replace('_', &letter(b' ').to_string());
        let Some((left, right)) = pair.split_once(' ') else {
            return;
        };
        let whole = format!("{left}{right}");
        let known = |text: &str| self.tokens.iter().any(|token| token == text);
        if self.tokens.len() < room && known(left) && known(right) && !known(&whole) {
            self.merges.push(pair.clone());
            self.add(whole, NORMAL);
        }
    }
}

/// The printable letter that stands for a byte in byte-level vocabularies: itself where printable, else U+0100 and up in order.
fn letter(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|other| !printable(*other)).count();
    u32::try_from(before)
        .ok()
        .and_then(|before| char::from_u32(256 + before))
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vocabulary_has_its_size_distinct_tokens_and_the_specials_at_both_ends() {
        for size in [SMALLEST, 280, 512] {
            let all = Vocabulary::new(size);
            assert_eq!((all.tokens.len(), all.types.len()), (size, size));
            let distinct: std::collections::BTreeSet<_> = all.tokens.iter().collect();
            assert_eq!(distinct.len(), size);
            assert_eq!(
                (all.tokens[0].as_str(), all.tokens[size - 1].as_str()),
                (FIRST[0], LAST[4])
            );
        }
        assert!(Vocabulary::new(512).merges.len() > 60);
        assert_eq!((letter(b'A'), letter(b' ')), ('A', 'Ġ'));
    }
}
