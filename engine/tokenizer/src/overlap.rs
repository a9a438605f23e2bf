//! Text that might become something.

/// Bytes at the end of `text` that begin `whole`, short of all of it.
#[must_use]
pub fn overlap(text: &str, whole: &str) -> usize {
    let most = text.len().min(whole.len().saturating_sub(1));
    (1..=most)
        .rev()
        .find(|n| text.is_char_boundary(text.len() - n) && whole.starts_with(&text[text.len() - n..]))
        .unwrap_or(0)
}
