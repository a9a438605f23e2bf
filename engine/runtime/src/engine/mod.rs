//! The output pod: admits, decides, prefills, decodes.

mod decode;
mod options;
mod prompt;
mod watch;

pub use options::{EngineOptions, EngineStatus, LogitsReport, OnFailure, Policy};

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ds4_gguf::LayerSpan;
use ds4_model::ModelSlice;
use ds4_telemetry::metrics::{DecisionLabel, Metrics};
use ds4_telemetry::names;
use tokio::sync::{Semaphore, mpsc, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::generate::{Event, Generate, Generation, Timings};
use crate::route::{Prefilled, Route, RouteState};
use crate::{EngineError, RouteError};

/// Events that may wait for a slow client before decode waits too.
const EVENTS: usize = 64;

/// The output pod's engine.
pub struct Engine {
    slice: Arc<dyn ModelSlice>,
    own: LayerSpan,
    stages: Vec<String>,
    options: EngineOptions,
    route: channel::Sender<(RouteState, Option<Route>)>,
    recheck: tokio::sync::Notify,
    was_complete: std::sync::atomic::AtomicBool,
    turn: Arc<Semaphore>,
    requests: AtomicUsize,
    epoch: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("own", &self.own)
            .field("stages", &self.stages)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over all layers (`slice`), which computes `own` itself when prompts go over `stages`. Needs a Tokio runtime.
    #[must_use]
    pub fn new(
        slice: Arc<dyn ModelSlice>,
        own: LayerSpan,
        stages: Vec<String>,
        options: EngineOptions,
    ) -> Arc<Self> {
        let state = if stages.is_empty() {
            RouteState::None
        } else {
            RouteState::Connecting
        };
        let engine = Arc::new(Self {
            slice,
            own,
            stages,
            options,
            route: channel::Sender::new((state, None)),
            recheck: tokio::sync::Notify::new(),
            was_complete: std::sync::atomic::AtomicBool::new(false),
            turn: Arc::new(Semaphore::new(1)),
            requests: AtomicUsize::new(0),
            epoch: AtomicU64::new(1),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        if !engine.stages.is_empty() {
            tokio::spawn(watch::watch_route(Arc::downgrade(&engine)));
        }
        engine
    }

    /// What is loaded.
    #[must_use]
    pub fn slice(&self) -> &Arc<dyn ModelSlice> {
        &self.slice
    }

    /// How it works.
    #[must_use]
    pub const fn options(&self) -> &EngineOptions {
        &self.options
    }

    /// What it is doing.
    #[must_use]
    pub fn status(&self) -> EngineStatus {
        EngineStatus {
            route: self.route.borrow().0.clone(),
            route_was_complete: self.was_complete.load(Ordering::Relaxed),
            requests: self.requests.load(Ordering::Relaxed),
            shutting_down: self.stop.is_cancelled(),
        }
    }

    /// Waits until the route is complete, at most `timeout`.
    ///
    /// # Errors
    /// Says what is missing.
    pub async fn route_complete(&self, timeout: Duration) -> Result<(), RouteError> {
        let mut route = self.route.subscribe();
        let complete = route.wait_for(|(state, _)| matches!(state, RouteState::Complete | RouteState::None));
        if tokio::time::timeout(timeout, complete).await.is_ok() {
            return Ok(());
        }
        let reason = match &self.route.borrow().0 {
            RouteState::Incomplete { reason } => reason.clone(),
            other => format!("{other:?}"),
        };
        Err(RouteError::Unreachable {
            endpoint: self.stages.join(","),
            reason,
        })
    }

    /// Starts a request; its events come from the returned value.
    pub fn generate(self: &Arc<Self>, request: Generate) -> Generation {
        let (events, receiver) = mpsc::channel(EVENTS);
        let engine = Arc::clone(self);
        let parent = request.parent.clone();
        let work = async move {
            if let Err(error) = engine.request(request, &events).await {
                let label = DecisionLabel {
                    decision: "failed".into(),
                };
                Metrics::global().requests.get_or_create(&label).inc();
                // A client that left does not need the reason.
                let _ = events.send(Event::Failed(error)).await;
            }
        };
        self.tasks.spawn(work.instrument(parent));
        Generation::new(receiver)
    }

    /// Refuses new requests and waits for the running ones.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn admit(&self, request: &Generate) -> Result<Admitted<'_>, EngineError> {
        if self.stop.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let (prompt, wanted, most) = (
            request.prompt.len() as u64,
            u64::from(request.max_tokens),
            self.options.max_tokens,
        );
        if prompt == 0 {
            return Err(EngineError::EmptyPrompt);
        }
        if prompt + wanted > most {
            return Err(EngineError::Context { most, prompt, wanted });
        }
        let waiting = self.requests.fetch_add(1, Ordering::Relaxed);
        let admitted = Admitted(&self.requests);
        Metrics::global().sessions.inc();
        if waiting > self.options.queue {
            return Err(EngineError::Busy {
                waiting,
                retry_after: Duration::from_secs(1),
            });
        }
        Ok(admitted)
    }

    async fn request(
        self: &Arc<Self>,
        request: Generate,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), EngineError> {
        let started = Instant::now();
        let _admitted = self.admit(&request)?;
        let queue = tracing::info_span!("ds4.queue", otel.name = names::QUEUE);
        Metrics::global().queue.inc();
        let turn = tokio::select! {
            turn = Arc::clone(&self.turn).acquire_owned().instrument(queue) => turn,
            () = events.closed() => { Metrics::global().queue.dec(); return Ok(()) }
        };
        Metrics::global().queue.dec();
        let _turn = turn.map_err(|error| EngineError::Internal(error.to_string()))?;
        let mut timings = Timings {
            queue: started.elapsed(),
            ..Timings::default()
        };
        let prompt = Arc::new(request.prompt.clone());
        let Some(prefilled) = cancelled(events, self.prompt(&prompt, Some(events.clone()), None)).await
        else {
            return Ok(());
        };
        let (decision, prefilled, elapsed) = prefilled?;
        timings.prefill = elapsed;
        timings.handoff_tail = tail(&prefilled);
        Metrics::global().prompt_tokens.inc_by(prompt.len() as u64);
        Metrics::global()
            .requests
            .get_or_create(&DecisionLabel {
                decision: decision.label().into(),
            })
            .inc();
        Span::current().record("decision", tracing::field::display(&decision));
        if events.send(Event::Decided(decision)).await.is_err() {
            return Ok(());
        }
        self.decode(request, prefilled, events.clone(), started, timings)
            .await
    }
}

/// The work, or `None` as soon as the client has left.
async fn cancelled<T>(events: &mpsc::Sender<Event>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        () = events.closed() => None,
    }
}

/// From the last computed chunk to the last KV row.
fn tail(prefilled: &Prefilled) -> Duration {
    let last = prefilled.handoffs.iter().map(|handoff| handoff.finished).max();
    last.map_or(Duration::ZERO, |last| {
        last.saturating_duration_since(prefilled.computed)
    })
}

/// Keeps the count of requests right on every way out.
struct Admitted<'a>(&'a AtomicUsize);

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
        Metrics::global().sessions.dec();
    }
}
