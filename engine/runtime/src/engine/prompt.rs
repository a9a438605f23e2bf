//! The prompt: over the route, or here, and why.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ds4_model::{CompleteKv, Hidden};
use ds4_telemetry::metrics::{Metrics, ReasonLabel};
use ds4_telemetry::names;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use super::{Engine, LogitsReport, OnFailure, Policy};
use crate::generate::{Decision, Event};
use crate::route::{Prefilled, Progress, Route, RouteState};
use crate::{EngineError, RouteError};

impl Engine {
    /// The prompt's KV and last streams, by the route or locally.
    pub(super) async fn prompt(
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
        let (route, error) = match self.remote(prompt, &events, &each).await {
            Ok(prefilled) => {
                #[allow(clippy::cast_possible_truncation)] // at most a few
                let stages = self.stages.len() as u32;
                return Ok((Decision::Disaggregated { stages }, prefilled));
            }
            Err((_, RouteError::Cancelled)) => return Err(RouteError::Cancelled.into()),
            Err(failed) => failed,
        };
        self.recheck.notify_one();
        if self.options.on_failure == OnFailure::Fail || each.is_some() {
            return Err(failed(route, error).await.into());
        }
        // Finding the cause may take as long as a probe; the client need not wait for it.
        let (prefilled, error) = tokio::join!(self.local(prompt, events, each), failed(route, error));
        let reason = error.to_string();
        Ok((Decision::Recomputed { reason }, prefilled?))
    }

    /// Prefills over the route; a failure comes with the route it failed on. A stage that restarted is asked again at once.
    async fn remote(
        &self,
        prompt: &Arc<Vec<u32>>,
        events: &Option<mpsc::Sender<Event>>,
        each: &Option<Each>,
    ) -> Result<Prefilled, (Option<Route>, RouteError)> {
        let route = self.known_route().map_err(|error| (None, error))?;
        match self.attempt(&route, prompt, events, each).await {
            // Nothing was computed yet: the stage refused to open the session.
            Err(error @ RouteError::Restarted { .. }) => {
                tracing::info!(%error, "asking the stages again");
                let route = self.connect().await.map_err(|error| (None, error))?;
                let again = self.attempt(&route, prompt, events, each).await;
                again.map_err(|error| (Some(route), error))
            }
            result => result.map_err(|error| (Some(route), error)),
        }
    }

    fn known_route(&self) -> Result<Route, RouteError> {
        let (state, route) = self.route.borrow().clone();
        route.ok_or_else(|| RouteError::Unreachable {
            endpoint: self.stages.join(","),
            reason: match state {
                RouteState::Incomplete { reason } => reason,
                _ => "not connected yet".into(),
            },
        })
    }

    async fn attempt(
        &self,
        route: &Route,
        prompt: &Arc<Vec<u32>>,
        events: &Option<mpsc::Sender<Event>>,
        each: &Option<Each>,
    ) -> Result<Prefilled, RouteError> {
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed);
        let progress = progress(prompt.len(), events.clone(), each.clone());
        route
            .prefill(&self.slice, self.own, epoch, prompt, progress)
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

/// The cause of a failure, counted and logged.
async fn failed(route: Option<Route>, error: RouteError) -> RouteError {
    let error = match route {
        Some(route) => route.cause(error).await,
        None => error,
    };
    tracing::warn!(%error, "prefill over the route failed");
    let reason = error.label().into();
    Metrics::global()
        .handoff_failures
        .get_or_create(&ReasonLabel { reason })
        .inc();
    error
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
