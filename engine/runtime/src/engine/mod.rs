//! The output pod: admits, decides, prefills, decodes.

mod decode;
mod held;
mod lease;
mod options;
mod passes;
mod persist;
mod policy;
mod prompt;
mod schedule;
mod seats;
mod turn;
mod watch;

pub(crate) use self::passes::{Chunk, Member, Passes};
pub use self::policy::{Adaptive, Choice, Demand, Reason, Way};
pub(crate) use self::schedule::{Costs, Kind, PIECE, Piece};
pub use self::schedule::{Flow, Priority};
pub use options::{EngineOptions, EngineStatus, LogitsReport, OnFailure, Policy};

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ds4_gguf::LayerSpan;
use ds4_model::ModelSlice;
use ds4_telemetry::metrics::{DecisionLabel, Metrics};
use ds4_telemetry::names;
use tokio::sync::{Notify, mpsc, watch as channel};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{Instrument, Span};

use self::held::{Cache, Held};
use self::lease::Leases;
use self::prompt::{Listener, Prompted};
use self::seats::{NoSeat, Place, Seats};
use self::turn::Turn;
use crate::compute::Compute;
use crate::generate::{Event, Generate, Generation, Timings};
use crate::host::Host;
use crate::route::{HandoffReport, Pool, Route, RouteState};
use crate::watched::Watched;
use crate::{EngineError, RouteError};

/// Events that may wait for a slow client before decode waits too.
const EVENTS: usize = 64;

/// The output pod's engine.
pub struct Engine {
    slice: Arc<dyn ModelSlice>,
    watched: Arc<Watched>,
    own: LayerSpan,
    /// The stages' addresses in order; each with its spares.
    places: Vec<Vec<String>>,
    options: EngineOptions,
    compute: Compute<Passes>,
    pool: Pool,
    route: channel::Sender<(RouteState, Option<Route>)>,
    recheck: Notify,
    was_complete: std::sync::atomic::AtomicBool,
    seats: Seats,
    cache: Mutex<Cache>,
    adaptive: Mutex<Adaptive>,
    leases: Leases,
    requests: AtomicUsize,
    epoch: AtomicU64,
    stop: CancellationToken,
    tasks: TaskTracker,
    /// Sessions also come back from the thread that computes.
    runtime: tokio::runtime::Handle,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine")
            .field("own", &self.own)
            .field("places", &self.places)
            .finish_non_exhaustive()
    }
}

impl Engine {
    /// An engine over all layers (`slice`), which computes `own` itself when prompts go over `stages`. Each stage is an address, or several
    /// between `|`: the first is used, the others are its spares. Needs a Tokio runtime.
    #[must_use]
    pub fn new(
        slice: Arc<dyn ModelSlice>,
        own: LayerSpan,
        stages: Vec<String>,
        options: EngineOptions,
    ) -> Arc<Self> {
        let host = Host::real(options.tls.clone());
        Self::on(host, slice, own, stages, options)
    }

    pub(crate) fn on(
        host: Host,
        slice: Arc<dyn ModelSlice>,
        own: LayerSpan,
        stages: Vec<String>,
        options: EngineOptions,
    ) -> Arc<Self> {
        let watched = Watched::new(slice);
        let slice: Arc<dyn ModelSlice> = Arc::clone(&watched) as _;
        let state = if stages.is_empty() {
            RouteState::None
        } else {
            RouteState::Connecting
        };
        let places = stages
            .iter()
            .map(|place| place.split('|').map(str::to_owned).collect());
        let compute = host.compute(Passes::new(Arc::clone(&slice), options.stretch));
        let engine = Arc::new(Self {
            slice,
            watched,
            own,
            places: places.collect(),
            compute,
            pool: Pool::new(host.dialer, options.route()),
            route: channel::Sender::new((state, None)),
            recheck: Notify::new(),
            was_complete: std::sync::atomic::AtomicBool::new(false),
            seats: Seats::new(options.sessions, options.kv_budget, options.queue),
            cache: Mutex::new(Cache::default()),
            adaptive: Mutex::new(Adaptive::new(options.min_prompt_tokens as u64)),
            leases: Leases::default(),
            requests: AtomicUsize::new(0),
            epoch: AtomicU64::new(1),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            options,
        });
        if !engine.places.is_empty() {
            tokio::spawn(watch::watch_route(Arc::downgrade(&engine)));
            tokio::spawn(lease::renew(Arc::downgrade(&engine)));
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
            cached_sessions: self.cache().len(),
            shutting_down: self.stop.is_cancelled(),
            broken: self.watched.reason(),
        }
    }

    /// Resolves when the device is beyond repair, with what it said: requests fail from then on, and only a new process helps.
    pub async fn broken(&self) -> String {
        self.watched.broken().await
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
            endpoint: self.stages(),
            reason,
        })
    }

    /// The stages as they were given.
    fn stages(&self) -> String {
        let places: Vec<_> = self.places.iter().map(|place| place.join("|")).collect();
        places.join(",")
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

    /// Refuses new requests, waits for the running ones, and lets go of what the stages hold.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        let held = self.cache().clear();
        self.show_cache();
        let held = self.save_all(held).await;
        self.forget(held).await;
    }

    /// A place in the queue, unless the request can never be answered or too many wait.
    fn admit(&self, request: &Generate) -> Result<Admitted<'_>, EngineError> {
        if let Some(reason) = self.watched.reason() {
            return Err(EngineError::Broken(reason));
        }
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
        let tokens = prompt + wanted;
        if tokens > most {
            return Err(EngineError::Context { most, prompt, wanted });
        }
        let layout = &self.slice.info().layout;
        // The states take most room just before a group of 128 is complete.
        let (most, found) = (
            self.options.kv_budget,
            layout.bytes(0..layout.n_layer(), tokens | 127),
        );
        if found > most {
            return Err(EngineError::Budget { most, found, tokens });
        }
        #[allow(clippy::cast_possible_truncation)] // within the context
        let place = self.seats.enter(request.flow, found, tokens as usize);
        let place =
            place.map_err(|NoSeat { waiting, retry_after }| EngineError::Busy { waiting, retry_after })?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        Metrics::global().sessions.inc();
        Ok(Admitted {
            requests: &self.requests,
            place,
        })
    }

    async fn request(
        self: &Arc<Self>,
        request: Generate,
        events: &mpsc::Sender<Event>,
    ) -> Result<(), EngineError> {
        let started = Instant::now();
        let mut admitted = self.admit(&request)?;
        let queue = tracing::info_span!("ds4.queue", otel.name = names::QUEUE);
        let waiting = self
            .seated(&mut admitted.place, request.deadline)
            .instrument(queue);
        let Some(seated) = cancelled(events, waiting).await else {
            return Ok(());
        };
        seated?;
        let mut timings = Timings {
            queue: started.elapsed(),
            ..Timings::default()
        };
        let prompt = Arc::new(request.prompt.clone());
        let turn = self.turn(prompt, request.max_tokens, events, request.flow);
        let prompted = before(request.deadline, turn);
        let Some(prompted) = cancelled(events, prompted).await else {
            return Ok(());
        };
        let prompted = prompted??;
        timings.prefill = prompted.elapsed;
        timings.handoff_tail = tail(&prompted.handoffs, prompted.computed);
        let computed = request.prompt.len() as u64 - prompted.cached as u64;
        Metrics::global().prompt_tokens.inc_by(computed);
        let label = prompted.decision.label().into();
        Metrics::global()
            .requests
            .get_or_create(&DecisionLabel { decision: label })
            .inc();
        Span::current().record("decision", tracing::field::display(&prompted.decision));
        let cached = u32::try_from(prompted.cached).unwrap_or(u32::MAX);
        // A client that left is noticed with the decision.
        let _ = events.send(Event::Cached(cached)).await;
        if events
            .send(Event::Decided(prompted.decision.clone()))
            .await
            .is_err()
        {
            drop(admitted);
            self.put(prompted.held);
            return Ok(());
        }
        self.decode(request, prompted, events.clone(), (started, timings), admitted)
            .await
    }

    /// Waits for the seat, not beyond the longest wait or the deadline.
    async fn seated(&self, place: &mut Place<'_>, deadline: Option<Instant>) -> Result<(), EngineError> {
        let waiting = Waiting::begin();
        let most = self.options.queue_timeout;
        let seated = before(deadline, tokio::time::timeout(most, place.seat())).await?;
        drop(waiting);
        seated.map_err(|_| {
            let NoSeat { waiting, retry_after } = self.seats.no_seat();
            EngineError::Waited {
                waited: most,
                waiting: waiting.saturating_sub(1),
                retry_after,
            }
        })
    }

    /// The prompt, from what earlier turns left of it; at most `answer` tokens will follow.
    async fn turn(
        self: &Arc<Self>,
        prompt: Arc<Vec<u32>>,
        answer: u32,
        events: &mpsc::Sender<Event>,
        flow: Flow,
    ) -> Result<Prompted, EngineError> {
        self.recall(&prompt).await;
        let engine = Arc::clone(self);
        self.compute.expect(&prompt);
        let turn = self
            .compute
            .run(move || Turn::begin(&engine, &prompt, answer))
            .await;
        let turn = turn.map_err(|error| EngineError::Internal(error.to_string()))?;
        let turn = turn.map_err(|error| EngineError::Internal(error.to_string()))?;
        self.make_room();
        let listener = Listener {
            flow,
            events: Some(events.clone()),
            ..Listener::default()
        };
        self.prompt(turn, listener).await
    }

    /// Keeps a session for another turn.
    fn put(self: &Arc<Self>, held: Held) {
        if let Some(remote) = &held.remote {
            self.leases.hold(remote, self.options.stage_hold);
        }
        self.cache().put(held);
        self.make_room();
    }

    /// Lets go of kept sessions, the longest unused first, until they fit beside what the running ones may come to hold.
    fn make_room(self: &Arc<Self>) {
        let gone = self
            .cache()
            .shrink(self.seats.free_bytes().min(self.options.kept_budget));
        self.show_cache();
        if gone.is_empty() {
            return;
        }
        let engine = Arc::clone(self);
        self.runtime.spawn(async move {
            let gone = engine.save_all(gone).await;
            engine.forget(gone).await;
        });
    }

    fn show_cache(&self) {
        let cache = self.cache();
        let metrics = Metrics::global();
        metrics
            .cached_sessions
            .set(i64::try_from(cache.len()).unwrap_or(i64::MAX));
        metrics
            .cached_bytes
            .set(i64::try_from(cache.bytes()).unwrap_or(i64::MAX));
    }
}

/// The work, or `None` as soon as the client has left.
async fn cancelled<T>(events: &mpsc::Sender<Event>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = events.closed() => None,
    }
}

/// From the last computed chunk to the last KV row.
fn tail(handoffs: &[HandoffReport], computed: Instant) -> Duration {
    let last = handoffs.iter().map(|handoff| handoff.finished).max();
    last.map_or(Duration::ZERO, |last| last.saturating_duration_since(computed))
}

/// The work, unless the deadline comes first.
async fn before<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Result<T, EngineError> {
    match deadline {
        Some(deadline) => tokio::time::timeout_at(deadline.into(), work)
            .await
            .map_err(|_| EngineError::Deadline),
        None => Ok(work.await),
    }
}

/// Keeps the count of requests that wait right on every way out.
struct Waiting;

impl Waiting {
    fn begin() -> Self {
        Metrics::global().queue.inc();
        Self
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        Metrics::global().queue.dec();
    }
}

/// Keeps the count of requests right on every way out.
struct Admitted<'a> {
    requests: &'a AtomicUsize,
    place: Place<'a>,
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.requests.fetch_sub(1, Ordering::Relaxed);
        Metrics::global().sessions.dec();
    }
}
