//! The prompt: over the route, or here, and why.

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ds4_gguf::LayerSpan;
use ds4_model::{Hidden, KvError};
use ds4_telemetry::metrics::{Metrics, ReasonLabel};
use ds4_telemetry::names;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};
use uuid::Uuid;

use super::held::Held;
use super::passes::{Chunk, Member};
use super::policy::{Adaptive, Demand, Way};
use super::schedule::Flow;
use super::turn::{Loan, Turn};
use super::{Engine, LogitsReport, OnFailure, Policy};
use crate::compute::Lost;
use crate::generate::{Decision, Event};
use crate::route::{HandoffReport, Prefilled, Progress, Route, RouteState, Work};
use crate::{EngineError, RouteError};

/// A prompt whose tokens are all computed.
pub(super) struct Prompted {
    pub(super) decision: Decision,
    pub(super) held: Held,
    /// Streams of the last tokens.
    pub(super) hidden: Hidden,
    /// Tokens that earlier turns had computed.
    pub(super) cached: usize,
    pub(super) handoffs: Vec<HandoffReport>,
    pub(super) computed: Instant,
    pub(super) elapsed: Duration,
}

impl Prompted {
    fn new(decision: Decision, loan: Loan, prefilled: Prefilled) -> Self {
        let Prefilled {
            kv,
            hidden,
            handoffs,
            computed,
            remote,
        } = prefilled;
        let cached = loan.cached();
        let held = loan.done(kv, &hidden, remote);
        Self {
            decision,
            held,
            hidden,
            cached,
            handoffs,
            computed,
            elapsed: Duration::ZERO,
        }
    }
}

/// Which way the rest of a prompt goes.
struct Plan {
    way: Way,
    reason: String,
    /// Seconds.
    predicted: Option<f64>,
}

impl Plan {
    fn fixed(way: Way, reason: &str) -> Self {
        Self {
            way,
            reason: reason.to_owned(),
            predicted: None,
        }
    }

    /// The span's own length is what it really took.
    fn record(&self, span: &Span) {
        span.record("way", tracing::field::display(self.way));
        span.record("reason", self.reason.as_str());
        if let Some(seconds) = self.predicted {
            span.record("predicted_ms", seconds * 1e3);
        }
    }
}

/// Who wants to hear of the chunks.
#[derive(Clone, Default)]
pub(super) struct Listener {
    /// Whose work the chunks are.
    pub(super) flow: Flow,
    pub(super) events: Option<mpsc::Sender<Event>>,
    pub(super) each: Option<Each>,
}

/// An attempt over the route that failed: with what, on which route, and the session as it was.
struct Failed {
    error: RouteError,
    route: Option<Route>,
    turn: Turn,
}

impl Engine {
    /// The prompt's KV and last streams, by the route or locally.
    pub(super) async fn prompt(
        self: &Arc<Self>,
        turn: Turn,
        listener: Listener,
    ) -> Result<Prompted, EngineError> {
        let span = tracing::info_span!(
            "ds4.prefill",
            otel.name = names::PREFILL,
            tokens = turn.prompt.len(),
            cached = turn.cached(),
            way = tracing::field::Empty,
            reason = tracing::field::Empty,
            predicted_ms = tracing::field::Empty,
            decision = tracing::field::Empty
        );
        let work = async {
            let started = Instant::now();
            let mut prompted = self.computed(turn, listener).await?;
            Span::current().record("decision", tracing::field::display(&prompted.decision));
            prompted.elapsed = started.elapsed();
            Ok(prompted)
        };
        work.instrument(span).await
    }

    async fn computed(self: &Arc<Self>, mut turn: Turn, listener: Listener) -> Result<Prompted, EngineError> {
        if let Some(hidden) = turn.last.take() {
            return Ok(known(turn, hidden));
        }
        let (demand, plan) = self.plan(&turn);
        plan.record(&Span::current());
        let started = Instant::now();
        let prompted = match plan.way {
            Way::Local => {
                let loan = turn.lend(self, &[self.full()]);
                let prefilled = self.local(&loan, listener).await?;
                Prompted::new(Decision::Local { reason: plan.reason }, loan, prefilled)
            }
            Way::Route => self.over_route(turn, listener).await?,
        };
        let way = match &prompted.decision {
            Decision::Disaggregated { retried: None, .. } => Way::Route,
            Decision::Local { .. } => Way::Local,
            // What failed says nothing of what works.
            Decision::Disaggregated { .. } | Decision::Recomputed { .. } => return Ok(prompted),
        };
        self.adaptive()
            .measured(way, demand, started.elapsed().as_secs_f64());
        Ok(prompted)
    }

    fn full(&self) -> LayerSpan {
        LayerSpan::full(self.slice.info().config.n_layer)
    }

    fn adaptive(&self) -> MutexGuard<'_, Adaptive> {
        self.adaptive.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which way the rest of a prompt goes, and why.
    fn plan(&self, turn: &Turn) -> (Demand, Plan) {
        let tokens = (turn.prompt.len() - turn.cached()) as u64;
        let stands = turn.held.remote.as_ref().map_or(0, |remote| remote.frontier);
        let known = turn.held.tokens.len() as u64 >= stands;
        let demand = Demand {
            tokens,
            replay: turn.prompt.len() as u64 - if known { stands } else { 0 },
        };
        let plan = match self.options.policy {
            _ if self.places.is_empty() => Plan::fixed(Way::Local, "no stages"),
            Policy::Never => Plan::fixed(Way::Local, "policy is never"),
            Policy::Always => Plan::fixed(Way::Route, "policy is always"),
            Policy::Adaptive => {
                let choice = self.adaptive().choose(demand);
                Plan {
                    way: choice.way,
                    reason: choice.to_string(),
                    predicted: choice.predicted(),
                }
            }
        };
        (demand, plan)
    }

    async fn over_route(self: &Arc<Self>, turn: Turn, listener: Listener) -> Result<Prompted, EngineError> {
        let Failed { error, route, turn } = match self.remote(turn, &listener).await? {
            Ok(prompted) => return Ok(prompted),
            Err(failed) => failed,
        };
        if matches!(error, RouteError::Cancelled) {
            return Err(error.into());
        }
        self.recheck.notify_one();
        if self.options.on_failure == OnFailure::Fail || listener.each.is_some() {
            self.put(turn.held);
            return Err(failed(route, error).await.into());
        }
        let loan = turn.lend(self, &[self.full()]);
        // Finding the cause may take as long as a probe; the client need not wait for it.
        let (prefilled, error) = tokio::join!(self.local(&loan, listener), failed(route, error));
        let reason = error.to_string();
        Ok(Prompted::new(Decision::Recomputed { reason }, loan, prefilled?))
    }

    /// Prefills over the route, and once more over every spare. A stage that restarted is asked again at once.
    async fn remote(
        self: &Arc<Self>,
        turn: Turn,
        listener: &Listener,
    ) -> Result<Result<Prompted, Failed>, EngineError> {
        let mut route = match self.known_route() {
            Ok(route) => route,
            Err(error) => {
                return Ok(Err(Failed {
                    error,
                    route: None,
                    turn,
                }));
            }
        };
        let (mut turn, mut avoid, mut retried) = (turn, Vec::new(), None);
        loop {
            let mut failed = match self.attempt(route, turn, listener, retried.clone()).await? {
                Ok(prompted) => return Ok(Ok(prompted)),
                Err(failed) => failed,
            };
            match self.detour(&mut failed, &mut avoid).await {
                Some(next) => {
                    tracing::info!(error = %failed.error, "trying again");
                    retried = Some(failed.error.to_string());
                    (route, turn) = (next, failed.turn);
                }
                None => return Ok(Err(failed)),
            }
        }
    }

    /// Another route after a failure; `None` when there is none.
    async fn detour(&self, failed: &mut Failed, avoid: &mut Vec<String>) -> Option<Route> {
        let route = failed.route.as_ref()?;
        let restarted = matches!(failed.error, RouteError::Restarted { .. });
        let spares = self.places.iter().any(|place| place.len() > 1);
        if !restarted && !spares {
            return None;
        }
        let error = std::mem::replace(&mut failed.error, RouteError::Cancelled);
        failed.error = route.cause(error).await;
        let culprit = failed.error.endpoint()?.to_owned();
        // Nothing was computed yet when a stage refused to open the session as the process it was: the same place may serve, once.
        let again = restarted && !avoid.contains(&culprit);
        if avoid.contains(&culprit) || avoid.len() > self.places.iter().map(Vec::len).sum() {
            return None;
        }
        avoid.push(culprit.clone());
        let shunned: Vec<String> = avoid
            .iter()
            .filter(|endpoint| !(again && **endpoint == culprit))
            .cloned()
            .collect();
        self.connect(&shunned).await.ok()
    }

    fn known_route(&self) -> Result<Route, RouteError> {
        let (state, route) = self.route.borrow().clone();
        route.ok_or_else(|| RouteError::Unreachable {
            endpoint: self.stages(),
            reason: match state {
                RouteState::Incomplete { reason } => reason,
                _ => "not connected yet".into(),
            },
        })
    }

    async fn attempt(
        self: &Arc<Self>,
        route: Route,
        turn: Turn,
        listener: &Listener,
        retried: Option<String>,
    ) -> Result<Result<Prompted, Failed>, EngineError> {
        let loan = turn.lend(self, &route.spans(self.own));
        let remote = loan.remote();
        let work = Work {
            slice: Arc::clone(&self.slice),
            compute: self.compute.clone(),
            prompt: Arc::clone(&loan.prompt),
            shards: Arc::clone(&loan.shards),
            session: remote.map_or_else(|| Uuid::new_v4().to_string(), |remote| remote.session.clone()),
            epoch: self.epoch.fetch_add(1, Ordering::Relaxed),
            flow: listener.flow,
        };
        let error = match route.prefill(work, listener.progress(loan.prompt.len())).await {
            Ok(prefilled) => {
                #[allow(clippy::cast_possible_truncation)] // at most a few
                let stages = self.places.len() as u32;
                let decision = Decision::Disaggregated { stages, retried };
                return Ok(Ok(Prompted::new(decision, loan, prefilled)));
            }
            Err(error) => error,
        };
        let turn = loan.back().await?;
        Ok(Err(Failed {
            error,
            route: Some(route),
            turn,
        }))
    }

    /// Computes all layers here.
    async fn local(self: &Arc<Self>, loan: &Loan, listener: Listener) -> Result<Prefilled, EngineError> {
        let member = Member {
            flow: listener.flow,
            shards: Arc::clone(&loan.shards),
            prompt: Arc::clone(&loan.prompt),
        };
        let progress = listener.progress(loan.prompt.len());
        let mut last = None;
        let mut start = loan.cached();
        while start < loan.prompt.len() {
            let end = loan.prompt.len().min(start + self.options.prefill_chunk);
            let chunk = |done| Chunk::new(member.clone(), (start, end), None, done);
            let hidden = self.compute.chunk(chunk).await;
            let hidden = hidden.map_err(|error| EngineError::Internal(error.to_string()))?;
            let progress = Arc::clone(&progress);
            let told = move || progress(end as u64, &hidden).map(|()| hidden);
            last = Some(self.compute.run(told).await.map_err(internal)??);
            start = end;
        }
        let joined: Result<_, KvError> = loan.shards.join();
        Ok(Prefilled {
            kv: joined.map_err(|error| EngineError::Internal(error.to_string()))?,
            hidden: last.ok_or(EngineError::EmptyPrompt)?,
            handoffs: Vec::new(),
            computed: Instant::now(),
            remote: None,
        })
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
        // Every position is computed, so nothing that earlier turns left is of use.
        let turn = Turn::cold(self, &Arc::new(tokens.to_vec()), 0);
        let listener = Listener {
            each: Some(each),
            ..Listener::default()
        };
        let prompted = self.prompt(turn, listener).await?;
        let handoff_bytes = prompted.handoffs.iter().map(|handoff| handoff.bytes).sum();
        self.forget(vec![prompted.held]).await;
        Ok(LogitsReport {
            decision: prompted.decision,
            elapsed: started.elapsed(),
            handoff_bytes,
        })
    }
}

#[allow(clippy::needless_pass_by_value)] // for `map_err`
pub(super) fn internal(error: Lost) -> EngineError {
    EngineError::Internal(error.to_string())
}

/// The whole prompt was computed before.
fn known(turn: Turn, hidden: Hidden) -> Prompted {
    Prompted {
        decision: Decision::Local {
            reason: "every prompt token is cached".into(),
        },
        cached: turn.cached(),
        held: turn.held,
        hidden,
        handoffs: Vec::new(),
        computed: Instant::now(),
        elapsed: Duration::ZERO,
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
pub(super) type Each = Arc<dyn Fn(&Hidden) -> Result<(), RouteError> + Send + Sync>;

impl Listener {
    #[allow(clippy::cast_possible_truncation)] // token counts
    fn progress(&self, total: usize) -> Progress {
        let Self { events, each, .. } = self.clone();
        Arc::new(move |done, hidden| {
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
}
