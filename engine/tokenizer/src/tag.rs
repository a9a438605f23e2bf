//! Single DSML tags.

/// Stands before every tag name. It is a special token; the model writes it as one.
pub(crate) const MARK: &str = "｜DSML｜";
/// What becomes of it when the model loses its beginning or all of it.
const MARKS: [&str; 3] = [MARK, "DSML｜", ""];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    ToolCalls,
    Invoke,
    Parameter,
}

/// What stands at the front of a text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Tag {
    Whole {
        kind: Kind,
        close: bool,
        attributes: Vec<(String, String)>,
        bytes: usize,
    },
    /// The beginning of a tag.
    Unfinished,
    Other,
}

const NAMES: [(&str, Kind); 3] = [
    ("tool_calls", Kind::ToolCalls),
    ("invoke", Kind::Invoke),
    ("parameter", Kind::Parameter),
];

/// Reads a tag with this mark from the front.
pub(crate) fn read(text: &str, mark: &str) -> Tag {
    for close in [false, true] {
        for (name, kind) in NAMES {
            let opening = format!("<{}{mark}{name}", if close { "/" } else { "" });
            if opening.starts_with(text) {
                return Tag::Unfinished;
            }
            if let Some(rest) = text.strip_prefix(&opening) {
                return attributes(rest).map_or(Tag::Unfinished, |(attributes, rest)| Tag::Whole {
                    kind,
                    close,
                    attributes,
                    bytes: text.len() - rest.len(),
                });
            }
        }
    }
    Tag::Other
}

/// `name="value"` pairs up to `>`; values may hold `>`.
fn attributes(mut rest: &str) -> Option<(Vec<(String, String)>, &str)> {
    let mut found = Vec::new();
    loop {
        let end = rest.find('>')?;
        match rest.find("=\"").filter(|at| *at < end) {
            None => return Some((found, &rest[end + 1..])),
            Some(at) => {
                let name = rest[..at].trim().to_owned();
                let value = &rest[at + 2..];
                let close = value.find('"')?;
                found.push((name, value[..close].to_owned()));
                rest = &value[close + 1..];
            }
        }
    }
}

fn openers() -> impl Iterator<Item = (&'static str, String)> {
    MARKS
        .into_iter()
        .map(|mark| (mark, format!("<{mark}tool_calls>")))
}

/// Where a block begins, with which mark, and how long its first tag is. Without a mark only on a line of its own.
pub(crate) fn find_block(text: &str) -> Option<(usize, &'static str, usize)> {
    let found = openers().filter_map(|(mark, opener)| {
        let at = text.find(&opener)?;
        let own_line = at == 0 || text[..at].ends_with('\n');
        (!mark.is_empty() || own_line).then_some((at, mark, opener.len()))
    });
    found.min_by_key(|(at, ..)| *at)
}

/// Bytes at the end of a text that could become a block, with the line ends before it.
pub(crate) fn held_back(text: &str) -> usize {
    let tag = openers()
        .map(|(_, opener)| crate::overlap(text, &opener))
        .max()
        .unwrap_or(0);
    let before = &text[..text.len() - tag];
    let ends = before.len() - before.trim_end_matches('\n').len();
    tag + ends.min(2)
}
