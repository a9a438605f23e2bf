//! Ending at a stop string without showing any of it.

use ds4_tokenizer::overlap;

/// Text as it is generated, with what might become a stop string held back.
#[derive(Debug)]
pub(crate) struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

impl StopMatcher {
    pub(crate) fn new(stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self {
            stops,
            held: String::new(),
            stopped: None,
        }
    }

    /// Text that may be shown now.
    pub(crate) fn push(&mut self, text: &str) -> String {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .enumerate()
            .filter_map(|(i, stop)| Some((self.held.find(stop.as_str())?, i)))
            .min();
        if let Some((at, stop)) = found {
            self.stopped = Some(stop);
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

    /// The stop string that came.
    pub(crate) fn stopped(&self) -> Option<&str> {
        self.stopped.map(|stop| self.stops[stop].as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut matcher = StopMatcher::new(stops.iter().map(|stop| (*stop).to_owned()).collect());
        let mut shown: Vec<String> = pieces.iter().map(|piece| matcher.push(piece)).collect();
        if matcher.stopped().is_none() {
            shown.push(matcher.finish());
        }
        (shown, matcher.stopped().is_some())
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
