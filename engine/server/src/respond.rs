//! From an understood request to a response: all at once, or as it is made.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Json;
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use ds4_runtime::Decision;
use ds4_telemetry::propagation;
use futures::StreamExt;
use http::{HeaderMap, HeaderValue};
use tokio::sync::{mpsc, oneshot};
use tracing::{Instrument, Span};

use crate::DECISION_HEADER;
use crate::app::{App, Loaded};
use crate::ask::Ask;
use crate::ask::share::deadline;
use crate::dialect::{Dialect, Frame, Whole};
use crate::drive::{Drive, Happening, Standing};
use crate::error::{ApiError, Shape};
use crate::journal::{Entry, Outcome};

/// Parts that may wait for a slow client before the work waits too.
const PARTS: usize = 64;
/// A client that takes nothing for this long has left.
const STALL: Duration = Duration::from_secs(30);

/// Comments that say nothing come no more often.
const SHORTEST: Duration = Duration::from_millis(200);
/// With this header a stream tells all progress of the prompt in comments, from the beginning.
const PROGRESS_HEADER: &str = "x-ds4-progress";

/// Who asks what where.
pub(crate) struct Call<'a> {
    pub(crate) app: &'a Arc<App>,
    pub(crate) headers: &'a HeaderMap,
    pub(crate) route: &'static str,
}

impl Call<'_> {
    /// Understands the request and answers it.
    pub(crate) async fn respond<D: Dialect + 'static>(
        self,
        shape: Shape,
        understand: impl FnOnce(&Loaded) -> Result<(Ask, D), ApiError>,
    ) -> Response {
        let span = tracing::info_span!(
            "http",
            otel.name = self.route,
            otel.kind = "server",
            "http.response.status_code" = tracing::field::Empty,
            decision = tracing::field::Empty,
        );
        propagation::continue_from_headers(&span, self.headers);
        let answered = async {
            let loaded = self
                .app
                .loaded()
                .ok_or_else(|| ApiError::loading(self.app.percent()))?;
            let (ask, dialect) = understand(loaded)?;
            self.answer(loaded, ask, dialect).await
        };
        let response = answered.instrument(span.clone()).await.unwrap_or_else(|error| {
            tracing::info!(parent: &span, route = self.route, status = error.status.as_u16(), error = %error.message, "refused");
            error.response(shape)
        });
        span.record("http.response.status_code", response.status().as_u16());
        response
    }

    async fn answer<D: Dialect + 'static>(
        &self,
        loaded: &Loaded,
        ask: Ask,
        dialect: D,
    ) -> Result<Response, ApiError> {
        let standing = Standing {
            flow: ask.share.flow(self.headers),
            deadline: deadline(self.headers, Instant::now())?,
        };
        let prompt = ask.prompt.tokens(&loaded.tokenizer);
        let span = tracing::info_span!(
            "chat",
            otel.name = format!("chat {}", self.app.options.model),
            "gen_ai.operation.name" = "chat",
            "gen_ai.request.model" = self.app.options.model,
            "gen_ai.usage.input_tokens" = prompt.len(),
            "gen_ai.usage.output_tokens" = tracing::field::Empty,
            "gen_ai.response.finish_reasons" = tracing::field::Empty,
            "ds4.tool_calls" = tracing::field::Empty,
            decision = tracing::field::Empty,
        );
        let entry = self.app.journal.begin(self.route, prompt.len(), ask.stream);
        if ask.stream {
            let quiet = self.app.options.keep_alive;
            let keep_alive = if self.headers.contains_key(PROGRESS_HEADER) {
                Duration::ZERO
            } else {
                quiet
            };
            let streamed = Streamed {
                app: Arc::clone(self.app),
                ask,
                prompt,
                standing,
                span,
                entry,
                keep_alive,
            };
            return streamed.respond(dialect).await;
        }
        let mut drive = Drive::start(self.app, loaded, &ask, prompt, standing, &span)?;
        let answered = whole(&mut drive, ask.choices, dialect, &entry).await;
        entry.settle(&drive, &span, answered.as_ref().err());
        answered
    }
}

async fn whole<D: Dialect>(
    drive: &mut Drive<'_>,
    choices: usize,
    mut dialect: D,
    entry: &Entry,
) -> Result<Response, ApiError> {
    let mut answers = vec![Whole::default(); choices];
    let mut decisions: Vec<String> = Vec::new();
    while let Some(happening) = drive.next().await? {
        entry.note(&happening);
        match happening {
            Happening::Prefill(..) => {}
            Happening::Decided(decision) => {
                let decision = decision.to_string();
                if !decisions.contains(&decision) {
                    decisions.push(decision);
                }
            }
            Happening::Parts(choice, parts, scores) => {
                parts.into_iter().for_each(|part| answers[choice].add(part));
                answers[choice].scores.extend(scores);
            }
            Happening::Ended(choice, finish, scores) => {
                answers[choice].finish = finish;
                answers[choice].scores.extend(scores);
            }
        }
    }
    let body = dialect.whole(answers, drive.usage());
    Ok(with_decision(Json(body).into_response(), &decisions.join(", ")))
}

/// Every answer says how its prompt was computed. Reasons hold addresses and numbers; anything a header cannot hold becomes `?`.
fn with_decision(mut response: Response, decision: &str) -> Response {
    let plain = |c: char| {
        if c.is_ascii() && !c.is_ascii_control() {
            c
        } else {
            '?'
        }
    };
    let text: String = decision.chars().map(plain).collect();
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().insert(DECISION_HEADER, value);
    }
    response
}

/// A streamed answer. Its parts outlive the handler, so it keeps the application and the span.
struct Streamed {
    app: Arc<App>,
    ask: Ask,
    prompt: Vec<u32>,
    standing: Standing,
    span: Span,
    entry: Entry,
    keep_alive: Duration,
}

type Decided = oneshot::Sender<Result<Decision, ApiError>>;

impl Streamed {
    /// Headers go out once the decision is known, so that errors before have a status of their own; but not later than the first sign of life is
    /// due. Then the decision follows in a comment of the stream.
    async fn respond<D: Dialect + 'static>(self, dialect: D) -> Result<Response, ApiError> {
        let keep_alive = self.keep_alive;
        let (decided, mut decision) = oneshot::channel();
        let (parts, mut receiver) = mpsc::channel::<Frame>(PARTS);
        // The request's own span lasts until the last part, not until the headers.
        let (span, request) = (self.span.clone(), Span::current());
        let work = async move { self.run(dialect, decided, parts).await };
        tokio::spawn(work.instrument(span).instrument(request));
        let header = match tokio::time::timeout(keep_alive, &mut decision).await {
            Ok(decision) => Some(decision),
            Err(_) => {
                decision.close();
                decision.try_recv().ok().map(Ok)
            }
        };
        let header = match header {
            None => "pending; reason=the prompt is being computed, see the comment in the stream".to_owned(),
            Some(Ok(decision)) => decision?.to_string(),
            Some(Err(_)) => return Err(ApiError::internal("the answer ended before it began")),
        };
        let events = futures::stream::poll_fn(move |context| receiver.poll_recv(context))
            .map(|frame| Ok::<_, Infallible>(event(frame)));
        let sse =
            Sse::new(events).keep_alive(KeepAlive::new().interval(keep_alive.max(SHORTEST)).text("alive"));
        Ok(with_decision(sse.into_response(), &header))
    }

    async fn run<D: Dialect>(self, dialect: D, decided: Decided, parts: mpsc::Sender<Frame>) {
        let Self {
            app,
            ask,
            prompt,
            standing,
            span,
            entry,
            keep_alive,
        } = self;
        let Some(loaded) = app.loaded() else { return };
        let mut drive = match Drive::start(&app, loaded, &ask, prompt, standing, &span) {
            Ok(drive) => drive,
            Err(error) => {
                // The receiver is there unless the client left.
                let _ = decided.send(Err(error));
                return;
            }
        };
        let mut outbox = Outbox {
            parts: parts.clone(),
            decided: Some(decided),
            dialect,
            keep_alive,
            told: Instant::now(),
        };
        // The client may leave at any time, also while the prompt is computed: dropping the work then cancels it everywhere.
        let ended = tokio::select! {
            ended = outbox.send_all(&mut drive, &entry) => Some(ended),
            () = parts.closed() => None,
        };
        match ended {
            Some(Ok(())) => entry.settle(&drive, &span, None),
            Some(Err(Stop::Failed(error))) => entry.settle(&drive, &span, Some(&error)),
            Some(Err(Stop::Stalled)) => entry.end(&drive, &span, Outcome::Stalled),
            None => entry.end(&drive, &span, Outcome::Cancelled),
        }
    }
}

/// Why a stream ended early.
enum Stop {
    Failed(ApiError),
    /// The client took nothing.
    Stalled,
}

/// Where frames go.
struct Outbox<D> {
    parts: mpsc::Sender<Frame>,
    /// Until the headers are out.
    decided: Option<Decided>,
    dialect: D,
    keep_alive: Duration,
    /// When progress was told last.
    told: Instant,
}

impl<D: Dialect> Outbox<D> {
    async fn send_all(&mut self, drive: &mut Drive<'_>, entry: &Entry) -> Result<(), Stop> {
        loop {
            let happening = match drive.next().await {
                Ok(Some(happening)) => happening,
                Ok(None) => break,
                Err(error) => return self.fail(error).await,
            };
            entry.note(&happening);
            let frames = self.frames(happening, drive);
            self.send(frames).await?;
        }
        let frames = self.dialect.end(drive.usage());
        self.send(frames).await
    }

    fn frames(&mut self, happening: Happening, drive: &Drive<'_>) -> Vec<Frame> {
        match happening {
            Happening::Prefill(done, total) if self.told.elapsed() >= self.keep_alive => {
                self.told = Instant::now();
                vec![Frame::Comment(format!("prefill {done}/{total}"))]
            }
            Happening::Prefill(..) => Vec::new(),
            Happening::Decided(decision) => self.decided(decision, drive),
            Happening::Parts(choice, parts, mut scores) => {
                let mut frames = Vec::new();
                for part in parts {
                    let scores = if matches!(part, crate::turn::Part::Text(_)) {
                        std::mem::take(&mut scores)
                    } else {
                        Vec::new()
                    };
                    frames.extend(self.dialect.part(choice, part, scores));
                }
                frames
            }
            Happening::Ended(choice, finish, scores) => self.dialect.end_choice(choice, &finish, scores),
        }
    }

    /// The first decision goes into the header, or into a comment when the header is out already; further answers' into comments.
    fn decided(&mut self, decision: Decision, drive: &Drive<'_>) -> Vec<Frame> {
        let comment = |decision: &Decision| {
            Frame::Comment(format!(
                "{DECISION_HEADER}: {}",
                decision.to_string().replace(['\n', '\r'], " ")
            ))
        };
        let Some(decided) = self.decided.take() else {
            return vec![comment(&decision)];
        };
        let mut frames = match decided.send(Ok(decision)) {
            Err(Ok(late)) => vec![comment(&late)],
            _ => Vec::new(),
        };
        frames.extend(self.dialect.begin(drive.usage()));
        frames
    }

    /// Before the headers an error has a status; after them it is an event.
    async fn fail(&mut self, error: ApiError) -> Result<(), Stop> {
        let unsent = match self.decided.take() {
            Some(decided) => decided.send(Err(error.clone())).is_err(),
            None => true,
        };
        if unsent {
            let frames = self.dialect.failed(&error);
            self.send(frames).await?;
        }
        Err(Stop::Failed(error))
    }

    async fn send(&mut self, frames: Vec<Frame>) -> Result<(), Stop> {
        for frame in frames {
            match self.parts.send_timeout(frame, STALL).await {
                // Closed: the caller sees it, too, and ends the work.
                Ok(()) | Err(mpsc::error::SendTimeoutError::Closed(_)) => {}
                Err(mpsc::error::SendTimeoutError::Timeout(_)) => return Err(Stop::Stalled),
            }
        }
        Ok(())
    }
}

fn event(frame: Frame) -> SseEvent {
    match frame {
        Frame::Event(name, data) => {
            let event = SseEvent::default().data(data.to_string());
            name.map_or(event.clone(), |name| event.event(name))
        }
        Frame::Comment(text) => SseEvent::default().comment(text),
        Frame::Done => SseEvent::default().data("[DONE]"),
    }
}
