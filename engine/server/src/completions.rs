//! `/v1/chat/completions` and `/v1/completions`.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use ds4_runtime::{Decision, Generate};
use ds4_telemetry::propagation;
use ds4_tokenizer::chat::{Thinking, render};
use ds4_tokenizer::{Segment, Special};
use futures::Stream;
use http::{HeaderMap, HeaderValue};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::{Instrument, Span};

use crate::DECISION_HEADER;
use crate::answer::{Answer, Step};
use crate::app::{App, Loaded};
use crate::error::ApiError;
use crate::request::{ChatRequest, Common, CompletionRequest};
use crate::response::{Delta, Envelope, Kind, reason};

/// Comments between parts keep proxies from closing a quiet stream.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// A request that was understood.
struct Asked {
    kind: Kind,
    common: Common,
    prompt: Vec<u32>,
    reasoning: bool,
}

pub(crate) async fn chat(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let understand = |loaded: &Loaded| {
        let request: ChatRequest = parse(&body)?;
        request.common.check(&app.options.model)?;
        let thinking = request.thinking();
        let prompt = render(&loaded.tokenizer, &request.messages()?, thinking);
        Ok(Asked {
            kind: Kind::Chat,
            common: request.common,
            prompt,
            reasoning: thinking == Thinking::On,
        })
    };
    respond(&app, &headers, "POST /v1/chat/completions", understand).await
}

pub(crate) async fn completion(State(app): State<Arc<App>>, headers: HeaderMap, body: Bytes) -> Response {
    let understand = |loaded: &Loaded| {
        let request: CompletionRequest = parse(&body)?;
        request.common.check(&app.options.model)?;
        let segments = [Segment::Special(Special::Bos), Segment::Text(request.text()?)];
        let prompt = loaded.tokenizer.encode_segments(&segments);
        Ok(Asked {
            kind: Kind::Completion,
            common: request.common,
            prompt,
            reasoning: false,
        })
    };
    respond(&app, &headers, "POST /v1/completions", understand).await
}

fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    serde_json::from_slice(body)
        .map_err(|error| ApiError::body(format!("body: expected a completion request: {error}")))
}

async fn respond(
    app: &Arc<App>,
    headers: &HeaderMap,
    route: &'static str,
    understand: impl FnOnce(&Loaded) -> Result<Asked, ApiError>,
) -> Response {
    let span = tracing::info_span!(
        "http",
        otel.name = route,
        otel.kind = "server",
        "http.response.status_code" = tracing::field::Empty,
        decision = tracing::field::Empty,
    );
    propagation::continue_from_headers(&span, headers);
    let answered = async {
        let loaded = app.loaded().ok_or_else(|| ApiError::loading(app.percent()))?;
        answer(app, understand(loaded)?).await
    };
    let response = answered
        .instrument(span.clone())
        .await
        .unwrap_or_else(IntoResponse::into_response);
    span.record("http.response.status_code", response.status().as_u16());
    response
}

async fn answer(app: &Arc<App>, asked: Asked) -> Result<Response, ApiError> {
    let Asked {
        kind,
        common,
        prompt,
        reasoning,
    } = asked;
    let loaded = app.loaded().ok_or_else(|| ApiError::loading(app.percent()))?;
    #[allow(clippy::cast_possible_truncation)] // bounded by the context
    let prompt_tokens = prompt.len() as u32;
    let room = loaded
        .engine
        .options()
        .max_tokens
        .saturating_sub(u64::from(prompt_tokens))
        .max(1);
    let span = tracing::info_span!(
        "chat",
        otel.name = format!("chat {}", app.options.model),
        "gen_ai.operation.name" = "chat",
        "gen_ai.request.model" = app.options.model,
        "gen_ai.usage.input_tokens" = prompt_tokens,
        "gen_ai.usage.output_tokens" = tracing::field::Empty,
        decision = tracing::field::Empty,
    );
    let request = Generate {
        prompt,
        sampling: common.sampling(),
        shaping: ds4_model::choice::Shaping::default(),
        max_tokens: common
            .limit()
            .unwrap_or_else(|| u32::try_from(room).unwrap_or(u32::MAX)),
        ignore_eos: false,
        parent: span.clone(),
    };
    let envelope = Envelope {
        kind,
        id: id(kind),
        created: app.created,
        model: app.options.model.clone(),
    };
    let generation = loaded.engine.generate(request);
    let stops = common.stops()?;
    if common.stream {
        let usage = common.stream_options.is_some_and(|options| options.include_usage);
        let stream = Streamed {
            app: Arc::clone(app),
            envelope,
            usage,
            span,
        };
        return stream.respond(generation, stops, reasoning, prompt_tokens).await;
    }
    let mut answer = Answer::new(&loaded.tokenizer, generation, stops, reasoning, prompt_tokens);
    let decision = answer.decision().await.map_err(|error| ApiError::from(&error))?;
    let (mut text, mut thought) = (String::new(), String::new());
    let finish = loop {
        match answer.step().await.map_err(|error| ApiError::from(&error))? {
            Step::Done(finish) => break finish,
            Step::Deltas(deltas) => deltas.iter().for_each(|delta| match delta {
                Delta::Text(part) => text.push_str(part),
                Delta::Reasoning(part) => thought.push_str(part),
            }),
        }
    };
    span.record("gen_ai.usage.output_tokens", answer.usage.completion);
    let whole = envelope.whole(&text, &thought, reason(finish), answer.usage);
    Ok(with_decision(Json(whole).into_response(), &decision))
}

fn id(kind: Kind) -> String {
    let prefix = if kind == Kind::Chat { "chatcmpl" } else { "cmpl" };
    format!("{prefix}-{}", uuid::Uuid::new_v4().simple())
}

/// Every answer says how its prompt was computed. Reasons hold addresses and numbers; anything a header cannot hold becomes `?`.
fn with_decision(mut response: Response, decision: &Decision) -> Response {
    let text: String = decision
        .to_string()
        .chars()
        .map(|c| {
            if c.is_ascii() && !c.is_ascii_control() {
                c
            } else {
                '?'
            }
        })
        .collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(DECISION_HEADER, value);
    }
    response
}

/// A streamed answer. Its parts outlive the handler, so it keeps the application and the span.
struct Streamed {
    app: Arc<App>,
    envelope: Envelope,
    usage: bool,
    span: Span,
}

impl Streamed {
    /// Headers go out once the decision is known; errors before that have a status of their own.
    async fn respond(
        self,
        generation: ds4_runtime::Generation,
        stops: Vec<String>,
        reasoning: bool,
        prompt_tokens: u32,
    ) -> Result<Response, ApiError> {
        let (decided, decision) = tokio::sync::oneshot::channel();
        let (parts, mut receiver) = tokio::sync::mpsc::channel::<Value>(16);
        // The request's own span lasts until the last part, not until the headers.
        let (span, request) = (self.span.clone(), Span::current());
        tokio::spawn(
            async move {
                self.run(generation, stops, reasoning, prompt_tokens, decided, parts)
                    .await
            }
            .instrument(span)
            .instrument(request),
        );
        let lost = || ApiError::body("the answer ended before it began");
        let decision = decision.await.map_err(|_| lost())??;
        let stream = futures::stream::poll_fn(move |context| receiver.poll_recv(context));
        let events = events(stream);
        let sse = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE).text("generating"));
        Ok(with_decision(sse.into_response(), &decision))
    }

    async fn run(
        self,
        generation: ds4_runtime::Generation,
        stops: Vec<String>,
        reasoning: bool,
        prompt_tokens: u32,
        decided: tokio::sync::oneshot::Sender<Result<Decision, ApiError>>,
        parts: tokio::sync::mpsc::Sender<Value>,
    ) {
        let Some(loaded) = self.app.loaded() else { return };
        let mut answer = Answer::new(&loaded.tokenizer, generation, stops, reasoning, prompt_tokens);
        let mut decided = decided;
        let decision = tokio::select! {
            decision = answer.decision() => decision.map_err(|error| ApiError::from(&error)),
            // The client left while the prompt was computed: dropping the answer cancels it everywhere.
            () = decided.closed() => return,
        };
        let failed = decision.is_err();
        if decided.send(decision).is_err() || failed {
            return;
        }
        tokio::select! {
            () = self.parts(&mut answer, &parts) => {}
            () = parts.closed() => {}
        }
        self.span
            .record("gen_ai.usage.output_tokens", answer.usage.completion);
    }

    /// A failed send means that the client left; the caller sees the channel closed.
    async fn parts(&self, answer: &mut Answer<'_>, parts: &tokio::sync::mpsc::Sender<Value>) {
        if let Some(opening) = self.envelope.opening() {
            let _ = parts.send(opening).await;
        }
        loop {
            match answer.step().await {
                Ok(Step::Deltas(deltas)) => {
                    for delta in &deltas {
                        let _ = parts.send(self.envelope.delta(delta)).await;
                    }
                }
                Ok(Step::Done(finish)) => {
                    let _ = parts.send(self.envelope.closing(reason(finish))).await;
                    break;
                }
                Err(error) => {
                    // The status is gone; clients of this protocol read an error object from the stream.
                    let _ = parts.send(ApiError::from(&error).as_json()).await;
                    return;
                }
            }
        }
        if self.usage {
            let _ = parts.send(self.envelope.usage(answer.usage)).await;
        }
    }
}

/// Parts as server-sent events, then the marker that ends them.
fn events(
    parts: impl Stream<Item = Value> + Send,
) -> impl Stream<Item = Result<SseEvent, Infallible>> + Send {
    use futures::StreamExt;
    let parts = parts.map(|part| SseEvent::default().data(part.to_string()));
    parts
        .chain(futures::stream::once(async {
            SseEvent::default().data("[DONE]")
        }))
        .map(Ok)
}
