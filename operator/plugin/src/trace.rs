//! `kubectl ds4 trace`: where the time of the last handoff went.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use ds4_trace::Trace;

/// Reads a file, or standard input for `-`.
pub(crate) fn read(path: &Path) -> Result<String> {
    if path != Path::new("-") {
        return std::fs::read_to_string(path).with_context(|| format!("--file {}", path.display()));
    }
    let mut text = String::new();
    std::io::stdin()
        .read_to_string(&mut text)
        .context("standard input")?;
    Ok(text)
}

/// The trace of an id, or the newest with a handoff, as bars.
pub(crate) fn waterfall(text: &str, id: Option<&str>) -> Result<String> {
    let trace = match id {
        Some(id) => Some(Trace::of(ds4_trace::read(text)?, id)).filter(|trace| !trace.0.is_empty()),
        None => ds4_trace::newest(text)?,
    };
    ensure!(trace.is_some(), "{}", absent(id));
    let trace = trace.context("a trace")?;
    Ok(format!(
        "trace {} of {}\n{}",
        trace.id(),
        trace.sources().join(", "),
        trace.waterfall()
    ))
}

fn absent(id: Option<&str>) -> String {
    let sampled = "a request is recorded when spec.observability.otlpEndpoint names the collector and the sampler takes it";
    match id {
        Some(id) => format!("--id: expected a trace of the file, found none with {id} ({sampled})"),
        None => format!(
            "no KV handoff in the file: no request was disaggregated, or none was recorded ({sampled})"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_handoff_is_drawn_and_none_is_explained() {
        let span = |trace: &str, name: &str| {
            serde_json::json!({"resourceSpans": [{"resource": {"attributes": [{"key": "k8s.pod.name", "value": {"stringValue": "flash-output-0"}}]},
                "scopeSpans": [{"spans": [{"traceId": trace, "spanId": "1", "parentSpanId": "", "name": name,
                    "startTimeUnixNano": "1000000", "endTimeUnixNano": "3000000", "attributes": []}]}]}]})
            .to_string()
        };
        let text = [span("aa", "ds4.kv.handoff"), span("bb", "chat")].join("\n");
        let drawn = waterfall(&text, None).expect("drawn");
        assert!(
            drawn.starts_with("trace aa of flash-output-0\n") && drawn.contains("2.0 ms"),
            "{drawn}"
        );
        assert!(waterfall(&text, Some("bb")).expect("drawn").contains("chat"));
        assert!(
            waterfall(&text, Some("cc"))
                .expect_err("none")
                .to_string()
                .contains("found none with cc")
        );
        assert!(
            waterfall("", None)
                .expect_err("none")
                .to_string()
                .contains("otlpEndpoint")
        );
    }
}
