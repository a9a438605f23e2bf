//! The output pod: decides, prefills, decodes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ds4_gguf::LayerSpan;
use ds4_model::sampling::Sampler;
use ds4_model::{CompleteKv, Hidden, ModelSlice};
use ds4_telemetry::metrics::{DecisionLabel, Metrics, ReasonLabel};
use ds4_telemetry::names;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use crate::generate::{Decision, Event, FinishReason, Finished, Generate, Generation, Timings};
use crate::route::{Prefilled, Progress, Route, RouteOptions, RouteState};
use crate::{EngineError, RouteError};

/// Events that may wait for a slow client before decode waits too.
const EVENTS: usize = 64;
/// How often the route is asked again, at first and at most.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// When prompts go over the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Policy {
    /// Prompts of at least `min_prompt_tokens`.
    #[default]
    Adaptive,
    /// All.
    Always,
    /// None.
    Never,
}

/// What happens when the route fails.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnFailure {
    /// This process computes the prompt; the decision says so.
    #[default]
    RecomputeLocally,
    /// The request fails.
    Fail,
}

/// How the engine works.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Tokens in a chunk.
    pub prefill_chunk: usize,
    /// Chunks in flight between two hops.
    pub window: usize,
    /// Shortest prompt that goes over the route under [`Policy::Adaptive`].
    pub min_prompt_tokens: usize,
    /// Longest silence of the route.
    pub handoff_timeout: Duration,
    /// What happens when the route fails.
    pub on_failure: OnFailure,
    /// Tokens of prompt and answer together.
    pub max_tokens: u64,
    /// Requests that may wait.
    pub queue: usize,
    /// When prompts go over the route.
    pub policy: Policy,
    /// Tokens that end a turn.
    pub eos: Vec<u32>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            prefill_chunk: 512,
            window: 4,
            min_prompt_tokens: 512,
            handoff_timeout: Duration::from_secs(30),
            on_failure: OnFailure::RecomputeLocally,
            max_tokens: 65_536,
            queue: 32,
            policy: Policy::Adaptive,
            eos: Vec::new(),
        }
    }
}

/// What the engine is doing.
#[derive(Clone, Debug)]
pub struct EngineStatus {
    /// Whether the route can be used.
    pub route: RouteState,
    /// Whether it ever could.
    pub route_was_complete: bool,
    /// Requests waiting or running.
    pub requests: usize,
    /// No new requests are taken.
    pub shutting_down: bool,
}

/// What a run over all positions took.
#[derive(Clone, Debug)]
pub struct LogitsReport {
    /// How the prompt was computed.
    pub decision: Decision,
    /// Wall-clock time.
    pub elapsed: Duration,
    /// KV bytes that were handed over.
    pub handoff_bytes: u64,
}

/// The output pod's engine.
pub struct Engine {
    slice: Arc<dyn ModelSlice>,
    own: LayerSpan,
    stages: Vec<String>,
    options: EngineOptions,
    route: watch::Sender<(RouteState, Option<Route>)>,
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
            route: watch::Sender::new((state, None)),
            recheck: tokio::sync::Notify::new(),
            was_complete: std::sync::atomic::AtomicBool::new(false),
            turn: Arc::new(Semaphore::new(1)),
            requests: AtomicUsize::new(0),
            epoch: AtomicU64::new(1),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        if !engine.stages.is_empty() {
            tokio::spawn(watch_route(Arc::downgrade(&engine)));
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

    /// The prompt's KV and last streams, by the route or locally.
    async fn prompt(
        self: &Arc<Self>,
        prompt: &Arc<Vec<u32>>,
        events: Option<mpsc::Sender<Event>>,
        each: Option<Each>,
    ) -> Result<(Decision, Prefilled, Duration), EngineError> {
        let span = tracing::info_span!(
            "ds4.prefill",
            otel.name = names::PREFILL,
            tokens = prompt.len(),
            decision = tracing::field::Empty
        );
        let work = async {
            let started = Instant::now();
            let (decision, prefilled) = match self.local_reason(prompt.len()) {
                Some(reason) => (
                    Decision::Local { reason },
                    self.local(prompt, events, each).await?,
                ),
                None => self.over_route(prompt, events, each).await?,
            };
            Span::current().record("decision", tracing::field::display(&decision));
            Ok((decision, prefilled, started.elapsed()))
        };
        work.instrument(span).await
    }

    /// Why a prompt does not go over the route; `None` when it does.
    fn local_reason(&self, tokens: usize) -> Option<String> {
        let Self { options, stages, .. } = self;
        match options.policy {
            _ if stages.is_empty() => Some("no stages".into()),
            Policy::Never => Some("policy is never".into()),
            Policy::Adaptive if tokens < options.min_prompt_tokens => Some(format!(
                "{tokens} prompt tokens are fewer than {}",
                options.min_prompt_tokens
            )),
            Policy::Adaptive | Policy::Always => None,
        }
    }

    async fn over_route(
        self: &Arc<Self>,
        prompt: &Arc<Vec<u32>>,
        events: Option<mpsc::Sender<Event>>,
        each: Option<Each>,
    ) -> Result<(Decision, Prefilled), EngineError> {
        match self.remote(prompt, events.clone(), each.clone()).await {
            Ok(prefilled) => {
                #[allow(clippy::cast_possible_truncation)] // at most a few
                let stages = self.stages.len() as u32;
                Ok((Decision::Disaggregated { stages }, prefilled))
            }
            Err(RouteError::Cancelled) => Err(RouteError::Cancelled.into()),
            Err(error) => {
                tracing::warn!(%error, "prefill over the route failed");
                Metrics::global()
                    .handoff_failures
                    .get_or_create(&ReasonLabel {
                        reason: error.label().into(),
                    })
                    .inc();
                self.recheck.notify_one();
                if self.options.on_failure == OnFailure::Fail || each.is_some() {
                    return Err(error.into());
                }
                let prefilled = self.local(prompt, events, each).await?;
                Ok((
                    Decision::Recomputed {
                        reason: error.to_string(),
                    },
                    prefilled,
                ))
            }
        }
    }

    async fn remote(
        &self,
        prompt: &Arc<Vec<u32>>,
        events: Option<mpsc::Sender<Event>>,
        each: Option<Each>,
    ) -> Result<Prefilled, RouteError> {
        let (state, route) = self.route.borrow().clone();
        let Some(route) = route else {
            let reason = match state {
                RouteState::Incomplete { reason } => reason,
                _ => "not connected yet".into(),
            };
            return Err(RouteError::Unreachable {
                endpoint: self.stages.join(","),
                reason,
            });
        };
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        route
            .prefill(
                &self.slice,
                self.own,
                epoch,
                prompt,
                progress(prompt.len(), events, each),
            )
            .await
    }

    async fn local(
        &self,
        prompt: &Arc<Vec<u32>>,
        events: Option<mpsc::Sender<Event>>,
        each: Option<Each>,
    ) -> Result<Prefilled, EngineError> {
        let (slice, prompt, chunk) = (
            Arc::clone(&self.slice),
            Arc::clone(prompt),
            self.options.prefill_chunk,
        );
        let mut progress = progress(prompt.len(), events, each);
        let work = move || {
            let mut kv = CompleteKv::empty(&slice.info().layout);
            let mut last = None;
            for tokens in prompt.chunks(chunk) {
                let mut hidden = slice.embed(tokens)?;
                slice.forward(tokens, &mut hidden, kv.kv_mut())?;
                progress(kv.kv().frontier(), &hidden)?;
                last = Some(hidden);
            }
            let hidden = last.ok_or(EngineError::EmptyPrompt)?;
            Ok(Prefilled {
                kv,
                hidden,
                handoffs: Vec::new(),
                computed: Instant::now(),
            })
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| EngineError::Internal(error.to_string()))?
    }

    /// Decodes alone: no stage takes part from here on.
    async fn decode(
        self: &Arc<Self>,
        request: Generate,
        prefilled: Prefilled,
        events: mpsc::Sender<Event>,
        started: Instant,
        mut timings: Timings,
    ) -> Result<(), EngineError> {
        let span = tracing::info_span!(
            "ds4.decode",
            otel.name = names::DECODE,
            tokens = tracing::field::Empty
        );
        let engine = Arc::clone(self);
        let work = move || {
            let _entered = span.enter();
            let mut first = None;
            let (mut count, mut reason) = (0_u32, FinishReason::Length);
            let mut decoder = Decoder {
                slice: &*engine.slice,
                kv: prefilled.kv,
                hidden: prefilled.hidden,
                sampler: Sampler::new(&request.sampling),
            };
            while count < request.max_tokens {
                let token = decoder.sample()?;
                first.get_or_insert_with(Instant::now);
                if !request.ignore_eos && engine.options.eos.contains(&token) {
                    reason = FinishReason::Stop;
                    break;
                }
                count += 1;
                // A client that left ends the work here.
                if events.blocking_send(Event::Token(token)).is_err() {
                    break;
                }
                if count < request.max_tokens {
                    decoder.step(token)?;
                }
            }
            span.record("tokens", count);
            Metrics::global().generated_tokens.inc_by(u64::from(count));
            if let Some(first) = first {
                timings.first_token = first - started;
                timings.decode = first.elapsed();
                Metrics::global()
                    .first_token_seconds
                    .observe(timings.first_token.as_secs_f64());
            }
            let _ = events.blocking_send(Event::Finished(Finished {
                reason,
                timings,
                cached_tokens: 0,
            }));
            Ok(())
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| EngineError::Internal(error.to_string()))?
    }

    /// The logits of every position, by the route when there is one. `each` is called in order.
    ///
    /// # Errors
    /// When the route or the model fails; nothing is recomputed here.
    pub async fn logits(
        self: &Arc<Self>,
        tokens: &[u32],
        each: impl FnMut(&[f32]) -> Result<(), String> + Send + 'static,
    ) -> Result<LogitsReport, EngineError> {
        let started = Instant::now();
        let slice = Arc::clone(&self.slice);
        let each = std::sync::Mutex::new(each);
        let each: Each = Arc::new(move |hidden: &Hidden| {
            let mut each = each.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            for token in 0..hidden.tokens() {
                let refused = |reason| RouteError::Refused {
                    endpoint: "output".into(),
                    reason,
                };
                each(&slice.logits(hidden, token)?).map_err(refused)?;
            }
            Ok(())
        });
        let (decision, prefilled, _) = self.prompt(&Arc::new(tokens.to_vec()), None, Some(each)).await?;
        let handoff_bytes = prefilled.handoffs.iter().map(|handoff| handoff.bytes).sum();
        Ok(LogitsReport {
            decision,
            elapsed: started.elapsed(),
            handoff_bytes,
        })
    }
}

/// Called with the streams of every chunk.
type Each = Arc<dyn Fn(&Hidden) -> Result<(), RouteError> + Send + Sync>;

#[allow(clippy::cast_possible_truncation)] // token counts
fn progress(total: usize, events: Option<mpsc::Sender<Event>>, each: Option<Each>) -> Progress {
    Box::new(move |done, hidden| {
        if let Some(events) = &events {
            if events.is_closed() {
                return Err(RouteError::Cancelled);
            }
            // Progress may be dropped when the client is slow; tokens never are.
            let _ = events.try_send(Event::Prefill {
                done: done as u32,
                total: total as u32,
            });
        }
        each.as_ref().map_or(Ok(()), |each| each(hidden))
    })
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

/// A session that has all it needs.
struct Decoder<'a> {
    slice: &'a dyn ModelSlice,
    kv: CompleteKv,
    hidden: Hidden,
    sampler: Sampler,
}

impl Decoder<'_> {
    fn sample(&mut self) -> Result<u32, EngineError> {
        let logits = self.slice.logits(&self.hidden, self.hidden.tokens() - 1)?;
        Ok(self.sampler.sample(&logits))
    }

    fn step(&mut self, token: u32) -> Result<(), EngineError> {
        self.hidden = self.slice.embed(&[token])?;
        self.slice.forward(&[token], &mut self.hidden, self.kv.kv_mut())?;
        Ok(())
    }
}

/// Asks the stages until they answer, and again at intervals and after failures.
async fn watch_route(engine: std::sync::Weak<Engine>) {
    let mut wait = BACKOFF.0;
    loop {
        let Some(engine) = engine.upgrade() else { return };
        if engine.stop.is_cancelled() {
            return;
        }
        let options = RouteOptions {
            chunk_tokens: engine.options.prefill_chunk,
            window: engine.options.window,
            timeout: engine.options.handoff_timeout,
            max_tokens: engine.options.max_tokens,
        };
        let found = Route::connect(&engine.stages, engine.slice.info(), engine.own, options).await;
        wait = if found.is_ok() {
            BACKOFF.1
        } else {
            (wait * 2).min(BACKOFF.1)
        };
        engine.take_note(found);
        let recheck = async {
            tokio::select! {
                () = engine.recheck.notified() => {}
                () = engine.stop.cancelled() => {}
                () = tokio::time::sleep(wait) => {}
            }
        };
        recheck.await;
    }
}

impl Engine {
    fn take_note(&self, found: Result<Route, RouteError>) {
        let next = match found {
            Ok(route) => {
                self.was_complete.store(true, Ordering::Relaxed);
                (RouteState::Complete, Some(route))
            }
            Err(error) => (
                RouteState::Incomplete {
                    reason: error.to_string(),
                },
                None,
            ),
        };
        if self.route.borrow().0 != next.0 {
            tracing::info!(state = ?next.0, "route");
        }
        self.route.send_replace(next);
    }
}
