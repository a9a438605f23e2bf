//! `/v1/completions`.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::Response;
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::reason;
use crate::app::{App, Loaded};
use crate::ask::body;
use crate::ask::sampling::Fields;
use crate::ask::share::Share;
use crate::ask::{Ask, Format, Prompt, ToolChoice};
use crate::dialect::{Dialect, Frame, Score, Usage, Whole, id};
use crate::error::{ApiError, Shape};
use crate::respond::Call;
use crate::turn::{Finish, Part};

/// `POST /v1/completions`, beside [`Fields`].
#[derive(Clone, Debug, Deserialize)]
struct CompletionRequest {
    prompt: PromptField,
    logprobs: Option<usize>,
    echo: Option<bool>,
    suffix: Option<String>,
    best_of: Option<u32>,
}

/// A text or token ids, or a list with one of them.
#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a text, a list of token ids, or a list of one of them"
)]
enum PromptField {
    Text(String),
    Tokens(Vec<u32>),
    Texts(Vec<String>),
    Lists(Vec<Vec<u32>>),
}

pub(crate) async fn post(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Response {
    let call = Call {
        app: &app,
        headers: &headers,
        route: "POST /v1/completions",
    };
    let answered = call.respond(Shape::OpenAi, |loaded| {
        understand(&body::read(body)?, &app, loaded)
    });
    answered.await
}

fn understand(body: &Bytes, app: &App, loaded: &Loaded) -> Result<(Ask, Completion), ApiError> {
    let fields: Fields = body::parse(body)?;
    fields.check_model(&app.options.model)?;
    let request: CompletionRequest = body::parse(body)?;
    request.refuse_unsupported(fields.choices()?)?;
    let vocabulary = loaded.tokenizer.vocab_size();
    let ask = Ask {
        prompt: request.prompt(vocabulary)?,
        wishes: fields.wishes(vocabulary, request.logprobs)?,
        tool_choice: ToolChoice::None,
        parallel_calls: false,
        format: Format::Text,
        choices: fields.choices()?,
        stream: fields.stream(),
        share: Share::read(body)?,
    };
    let completion = Completion {
        id: id("cmpl-"),
        created: crate::app::now(),
        model: app.options.model.clone(),
        logprobs: request.logprobs.is_some(),
        usage: fields.include_usage()?,
        offsets: vec![0; ask.choices],
    };
    Ok((ask, completion))
}

impl CompletionRequest {
    fn refuse_unsupported(&self, choices: usize) -> Result<(), ApiError> {
        let refused = [
            (
                self.echo == Some(true),
                "echo",
                "echo: expected false; the prompt is not repeated",
            ),
            (
                self.suffix.as_ref().is_some_and(|suffix| !suffix.is_empty()),
                "suffix",
                "suffix: expected none; the model only continues",
            ),
            (
                self.best_of.is_some_and(|best| best as usize > choices),
                "best_of",
                "best_of: expected at most n; answers are not ranked",
            ),
        ];
        if let Some((_, param, message)) = refused.into_iter().find(|(refused, ..)| *refused) {
            return Err(ApiError::unsupported(param, message));
        }
        match self.logprobs {
            Some(top) if top > 5 => Err(ApiError::invalid(
                "logprobs",
                format!("logprobs: expected 0 to 5, found {top}"),
            )),
            _ => Ok(()),
        }
    }

    fn prompt(&self, vocabulary: usize) -> Result<Prompt, ApiError> {
        let one = |found: usize| {
            ApiError::unsupported(
                "prompt",
                format!("prompt: expected one prompt, found {found}; send one request for each"),
            )
        };
        let tokens = |tokens: &[u32]| match tokens.iter().find(|token| **token as usize >= vocabulary) {
            Some(token) => Err(ApiError::invalid(
                "prompt",
                format!("prompt: expected token ids below {vocabulary}, found {token}"),
            )),
            None => Ok(Prompt::Tokens(tokens.to_vec())),
        };
        match &self.prompt {
            PromptField::Text(text) => Ok(Prompt::Text(text.clone())),
            PromptField::Tokens(ids) => tokens(ids),
            PromptField::Texts(texts) => match texts.as_slice() {
                [text] => Ok(Prompt::Text(text.clone())),
                other => Err(one(other.len())),
            },
            PromptField::Lists(lists) => match lists.as_slice() {
                [ids] => tokens(ids),
                other => Err(one(other.len())),
            },
        }
    }
}

/// Answers of completions.
struct Completion {
    id: String,
    created: u64,
    model: String,
    logprobs: bool,
    usage: bool,
    /// Characters of text so far, for each answer.
    offsets: Vec<usize>,
}

impl Completion {
    fn envelope(&self, choices: Value) -> Value {
        json!({
            "id": self.id, "object": "text_completion", "created": self.created, "model": self.model,
            "system_fingerprint": crate::FINGERPRINT, "choices": choices,
        })
    }

    /// Four parallel lists.
    fn scores(&mut self, choice: usize, scores: &[Score]) -> Value {
        if !self.logprobs {
            return Value::Null;
        }
        let mut offsets = Vec::new();
        for score in scores {
            offsets.push(self.offsets[choice]);
            self.offsets[choice] += score.token.text.chars().count();
        }
        let top = |score: &Score| {
            Value::from(
                score
                    .top
                    .iter()
                    .map(|likely| (likely.text.clone(), likely.logprob.into()))
                    .collect::<Map<_, _>>(),
            )
        };
        json!({
            "tokens": scores.iter().map(|score| score.token.text.clone()).collect::<Vec<_>>(),
            "token_logprobs": scores.iter().map(|score| score.token.logprob).collect::<Vec<_>>(),
            "top_logprobs": scores.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }

    fn chunk(&mut self, choice: usize, text: &str, scores: &[Score], finish: Option<&str>) -> Frame {
        let logprobs = if scores.is_empty() {
            Value::Null
        } else {
            self.scores(choice, scores)
        };
        Frame::Event(
            None,
            self.envelope(
                json!([{"index": choice, "text": text, "logprobs": logprobs, "finish_reason": finish}]),
            ),
        )
    }
}

impl Dialect for Completion {
    fn shape(&self) -> Shape {
        Shape::OpenAi
    }

    fn begin(&mut self, _usage: Usage) -> Vec<Frame> {
        Vec::new()
    }

    fn part(&mut self, choice: usize, part: Part, scores: Vec<Score>) -> Vec<Frame> {
        match part {
            Part::Text(text) | Part::Reasoning(text) => vec![self.chunk(choice, &text, &scores, None)],
            // Without tools there are no calls.
            Part::Call { .. } | Part::Arguments(_) | Part::CallEnd => Vec::new(),
        }
    }

    fn end_choice(&mut self, choice: usize, finish: &Finish, scores: Vec<Score>) -> Vec<Frame> {
        vec![self.chunk(choice, "", &scores, Some(reason(finish)))]
    }

    fn end(&mut self, usage: Usage) -> Vec<Frame> {
        let mut counts = self.envelope(json!([]));
        counts["usage"] = super::usage(usage);
        let counts = self.usage.then_some(Frame::Event(None, counts));
        counts.into_iter().chain([Frame::Done]).collect()
    }

    fn whole(&mut self, answers: Vec<Whole>, usage: Usage) -> Value {
        let mut choices = Vec::new();
        for (i, answer) in answers.iter().enumerate() {
            let logprobs = self.scores(i, &answer.scores);
            choices.push(json!({"index": i, "text": answer.text(false), "logprobs": logprobs, "finish_reason": reason(&answer.finish)}));
        }
        let mut value = self.envelope(choices.into());
        value["usage"] = super::usage(usage);
        value
    }
}
