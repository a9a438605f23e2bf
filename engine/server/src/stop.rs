//! Ending at a stop string without showing any of it.

/// Text as it is generated, with what might become a stop string held back.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: bool,
}

impl StopMatcher {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
            stopped: false,
        }
    }

    /// Text that may be shown now.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()))
            .min();
        if let Some(at) = found {
            self.stopped = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let kept = self
            .stops
            .iter()
            .map(|stop| overlap(&self.held, stop))
            .max()
            .unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - kept);
        std::mem::replace(&mut self.held, rest)
    }

    /// What was held back, when nothing follows any more.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    pub(crate) const fn stopped(&self) -> bool {
        self.stopped
    }
}

/// Bytes at the end of `text` that begin `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len() - 1);
    (1..=most)
        .rev()
        .find(|n| text.is_char_boundary(text.len() - n) && stop.starts_with(&text[text.len() - n..]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut shown: Vec<String> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        if !matcher.stopped() {
            shown.push(matcher.finish());
        }
        (shown, matcher.stopped())
    }

    #[test]
    fn a_stop_string_across_pieces_is_never_shown() {
        assert_eq!(
            shown(&["END"], &["abE", "N", "Dxyz"]),
            (vec!["ab".into(), String::new(), String::new()], true)
        );
        assert_eq!(shown(&["END"], &["abE", "Nx"]).0.concat(), "abENx");
        assert_eq!(shown(&["aab"], &["aaa", "b"]).0.concat(), "a");
    }

    #[test]
    fn the_first_of_several_wins_and_text_without_stops_flows() {
        assert_eq!(shown(&["x", "bc"], &["abcx"]).0.concat(), "a");
        assert_eq!(
            shown(&[], &["é", "😀"]),
            (vec!["é".into(), "😀".into(), String::new()], false)
        );
        assert_eq!(shown(&["é!"], &["caf", "é"]).0.concat(), "café");
    }
}
