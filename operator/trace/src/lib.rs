//! A trace as an OpenTelemetry collector wrote it (OTLP as JSON lines): read back, checked, and drawn. `kubectl ds4 trace` and
//! `cargo xtask demo` show the same picture.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// One span.
#[derive(Clone, Debug)]
pub struct Span {
    trace: String,
    id: String,
    parent: String,
    /// Its name.
    pub name: String,
    /// Pod (or service) that recorded it.
    pub source: String,
    start: u64,
    end: u64,
    attributes: BTreeMap<String, String>,
}

impl Span {
    /// How long after the end of `other` it ended.
    #[must_use]
    pub const fn outlived(&self, other: &Self) -> Duration {
        Duration::from_nanos(self.end.saturating_sub(other.end))
    }

    /// An attribute as text.
    #[must_use]
    pub fn attribute(&self, key: &str) -> Option<&str> {
        self.attributes.get(key).map(String::as_str)
    }
}

/// The spans of one request.
pub struct Trace(pub Vec<Span>);

fn attributes(list: &Value) -> BTreeMap<String, String> {
    let one = |item: &Value| {
        let value = item["value"].as_object()?.values().next()?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        Some((item["key"].as_str()?.to_owned(), text))
    };
    list.as_array().into_iter().flatten().filter_map(one).collect()
}

fn spans(line: &str) -> Result<Vec<Span>> {
    let data: Value = serde_json::from_str(line).context("a line of the collector's file")?;
    let mut spans = Vec::new();
    for resource in data["resourceSpans"].as_array().into_iter().flatten() {
        let about = attributes(&resource["resource"]["attributes"]);
        let source = about
            .get("k8s.pod.name")
            .or_else(|| about.get("service.name"))
            .cloned()
            .unwrap_or_default();
        for span in resource["scopeSpans"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|scope| scope["spans"].as_array().into_iter().flatten())
        {
            let text = |key: &str| span[key].as_str().unwrap_or_default().to_owned();
            let time = |key: &str| span[key].as_str().and_then(|text| text.parse().ok()).unwrap_or(0);
            spans.push(Span {
                trace: text("traceId"),
                id: text("spanId"),
                parent: text("parentSpanId"),
                name: text("name"),
                source: source.clone(),
                start: time("startTimeUnixNano"),
                end: time("endTimeUnixNano"),
                attributes: attributes(&span["attributes"]),
            });
        }
    }
    Ok(spans)
}

/// All spans of what the collector wrote.
///
/// # Errors
/// When a line is not what a collector writes.
pub fn read(text: &str) -> Result<Vec<Span>> {
    let mut all = Vec::new();
    // The last line may still be being written.
    for line in text.lines().filter(|line| line.ends_with('}')) {
        all.extend(spans(line)?);
    }
    Ok(all)
}

/// The newest trace with a KV handoff in what the collector wrote; `None` while there is none.
///
/// # Errors
/// When a line is not what a collector writes.
pub fn newest(text: &str) -> Result<Option<Trace>> {
    let all = read(text)?;
    let newest = all
        .iter()
        .filter(|span| span.name == "ds4.kv.handoff")
        .max_by_key(|span| span.start)
        .map(|span| span.trace.clone());
    Ok(newest.map(|id| Trace::of(all, &id)))
}

impl Trace {
    /// The spans of one trace, in order of their start.
    #[must_use]
    pub fn of(all: Vec<Span>, id: &str) -> Self {
        let mut spans: Vec<Span> = all.into_iter().filter(|span| span.trace == id).collect();
        spans.sort_by_key(|span| (span.start, span.end));
        Self(spans)
    }

    /// Its id; empty without spans.
    #[must_use]
    pub fn id(&self) -> &str {
        self.0.first().map_or("", |span| &span.trace)
    }

    /// Spans of one name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Span> {
        self.0.iter().filter(move |span| span.name == name)
    }

    /// Spans whose parent is not in the trace.
    pub fn roots(&self) -> impl Iterator<Item = &Span> {
        self.0
            .iter()
            .filter(|span| !self.0.iter().any(|other| other.id == span.parent))
    }

    /// Everything that recorded a part of it.
    #[must_use]
    pub fn sources(&self) -> Vec<&str> {
        let mut sources: Vec<&str> = self.0.iter().map(|span| span.source.as_str()).collect();
        sources.sort_unstable();
        sources.dedup();
        sources
    }

    /// The trace as bars over time.
    #[must_use]
    pub fn waterfall(&self) -> String {
        let mut text = String::new();
        let (start, end) = (
            self.0.iter().map(|span| span.start).min().unwrap_or(0),
            self.0.iter().map(|span| span.end).max().unwrap_or(1),
        );
        for root in self.roots() {
            self.draw(root, 0, start, (end - start).max(1), &mut text);
        }
        text
    }

    #[allow(clippy::cast_precision_loss)] // milliseconds
    fn draw(&self, span: &Span, depth: usize, start: u64, total: u64, text: &mut String) {
        const WIDTH: u64 = 40;
        let column = |time: u64| usize::try_from((time - start) * WIDTH / total).unwrap_or(0);
        let (from, to) = (column(span.start), column(span.end).max(column(span.start) + 1));
        let bar = format!("{}{}", " ".repeat(from), "█".repeat(to - from));
        let name = format!("{}{}", "  ".repeat(depth), span.name);
        let extra: Vec<String> = ["layers", "tokens", "bytes", "rows"]
            .iter()
            .filter_map(|key| Some(format!("{key}={}", span.attribute(key)?)))
            .collect();
        let milliseconds = (span.end - span.start) as f64 / 1e6;
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "  {name:<34} {:<22} {milliseconds:>9.1} ms |{bar:<41}| {}",
            span.source,
            extra.join(" ")
        );
        for child in self.0.iter().filter(|child| child.parent == span.id) {
            self.draw(child, depth + 1, start, total, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_read_joined_and_drawn() {
        let span = |trace: &str, id: &str, parent: &str, name: &str, pod: &str| {
            serde_json::json!({"resourceSpans": [{"resource": {"attributes": [{"key": "k8s.pod.name", "value": {"stringValue": pod}}]},
                "scopeSpans": [{"spans": [{"traceId": trace, "spanId": id, "parentSpanId": parent, "name": name,
                    "startTimeUnixNano": "1000000", "endTimeUnixNano": "3000000", "attributes": [{"key": "bytes", "value": {"intValue": "7"}}]}]}]}]})
            .to_string()
        };
        let lines = [
            span("a", "1", "", "POST", "output-0"),
            span("a", "2", "1", "ds4.kv.handoff", "output-0"),
            span("b", "3", "", "other", "x"),
        ];
        let all: Vec<Span> = lines
            .iter()
            .flat_map(|line| spans(line).expect("a line"))
            .collect();
        let trace = Trace(all.into_iter().filter(|span| span.trace == "a").collect());
        assert_eq!((trace.roots().count(), trace.sources()), (1, vec!["output-0"]));
        assert_eq!(
            trace
                .named("ds4.kv.handoff")
                .next()
                .and_then(|span| span.attribute("bytes")),
            Some("7")
        );
        assert!(trace.waterfall().contains("  ds4.kv.handoff") && trace.waterfall().contains("2.0 ms"));
    }
}
