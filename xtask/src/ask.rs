//! A question over HTTP, long enough to be disaggregated, and its streamed answer.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::process;

/// Asks with a prompt that is long enough to be disaggregated; prints the decision and the streamed answer.
///
/// # Errors
/// When there is no whole answer, or it was not disaggregated.
pub fn ask(model: &str, address: &str) -> Result<()> {
    let question =
        "How can the layers of one model live on several machines while only one of them answers? ".repeat(3);
    let request = json!({
        "model": model, "stream": true, "max_tokens": 24, "temperature": 0,
        "messages": [{"role": "user", "content": question}],
    });
    let url = format!("{address}/v1/chat/completions");
    print(&format!("POST {url}"))?;
    let said = process::output(
        Command::new("curl")
            .args(["-sS", "-N", "-i", "--max-time", "60", "-H"])
            .args(["content-type: application/json", "-d", &request.to_string(), &url]),
    )?;
    let answer = Answer::parse(&said)?;
    print(&format!("x-ds4-disaggregation: {}", answer.decision))?;
    print(&format!("answer (noise: the model is random): {:?}", answer.text))?;
    ensure!(
        answer.decision == "disaggregated",
        "x-ds4-disaggregation: expected disaggregated, found {}",
        answer.decision
    );
    Ok(())
}

/// A streamed answer: the decision header and the text.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    decision: String,
    text: String,
}

impl Answer {
    /// Reads what `curl -i` prints.
    fn parse(said: &str) -> Result<Self> {
        // When the prompt takes long the header says that it is pending, and a comment in the stream says what became of it.
        let mut header = said.lines().filter_map(|line| {
            let (name, value) = line.trim_start_matches(": ").split_once(':')?;
            name.eq_ignore_ascii_case("x-ds4-disaggregation")
                .then(|| value.trim().to_owned())
        });
        let decision = header
            .next_back()
            .with_context(|| format!("the answer has no decision header:\n{said}"))?;
        let mut text = String::new();
        for data in said.lines().filter_map(|line| line.strip_prefix("data: ")) {
            if data == "[DONE]" {
                return Ok(Self { decision, text });
            }
            let part: Value =
                serde_json::from_str(data).with_context(|| format!("a part of the stream: {data}"))?;
            text += part["choices"][0]["delta"]["content"]
                .as_str()
                .unwrap_or_default();
        }
        bail!("the stream ended without [DONE]:\n{said}")
    }
}

/// Prints a result: progress goes to standard error.
///
/// # Errors
/// When standard output is closed.
pub fn print(text: &str) -> Result<()> {
    use std::io::Write;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_streamed_answer_is_read_to_its_end_and_one_that_breaks_off_is_an_error() -> Result<()> {
        let head = "HTTP/1.1 200 OK\r\nX-DS4-Disaggregation: local; reason=short\r\n\r\n";
        let part = r#"data: {"choices":[{"delta":{"content":"hi"}}]}"#;
        let whole = Answer::parse(&format!("{head}{part}\n\ndata: [DONE]\n"))?;
        assert_eq!(
            (whole.decision.as_str(), whole.text.as_str()),
            ("local; reason=short", "hi")
        );
        assert!(Answer::parse(&format!("{head}{part}\n")).is_err());
        assert!(Answer::parse("HTTP/1.1 500\r\n\r\n").is_err());
        Ok(())
    }
}
