//! Stages, an output pod and its clients on one simulated network, and what must hold for them.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ds4_gguf::LayerSpan;
use ds4_model::choice::Shaping;
use ds4_model::sampling::Sampling;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::model::{DECODED, LAYERS, answer, slice, whole};
use super::network::{Network, Node};
use super::random::Random;
use super::script::{Change, SILENCE, Script, Talk, Turn, What};
use super::zombie;
use crate::host::Host;
use crate::net::Dialer;
use crate::stage::{Sessions, Totals};
use crate::{Decision, Engine, EngineError, Event, Flow, Generate, StageOptions, StageServer};

/// The silence, a probe, and that again over every spare and after a restart; then the prompt once more here.
const DEADLINE: Duration = Duration::from_secs(30);
/// After this time nothing keeps a session any more: lease, idle time and every deadline are over.
const FORGOTTEN: Duration = Duration::from_secs(20);

/// What must not be.
pub(crate) type Violation = String;

/// A stage's process: the one that runs at a place now, or one that ran there before.
pub(crate) struct Stage {
    pub(crate) endpoint: String,
    span: (usize, usize),
    node: Node,
    pub(crate) sessions: Arc<Sessions>,
    stop: Option<oneshot::Sender<()>>,
    /// The process has left by itself.
    ended: Arc<AtomicBool>,
}

pub(crate) struct World {
    network: Network,
    script: Script,
    /// By place; those that are gone after them.
    pub(crate) stages: RefCell<Vec<Stage>>,
    gone: RefCell<Vec<Stage>>,
    engine: Arc<Engine>,
    random: RefCell<Random>,
    began: Instant,
    trace: RefCell<Vec<String>>,
}

impl World {
    pub(crate) fn new(script: Script, mut random: Random) -> Self {
        let network = Network::new(random.split(), script.faults.clone());
        let (mut stages, mut places) = (Vec::new(), Vec::new());
        for (place, (first, last, spare)) in script.places.iter().enumerate() {
            let names = (0..=usize::from(*spare)).map(|i| format!("stage{place}{i}:1"));
            let names: Vec<_> = names.collect();
            places.push(names.join("|"));
            for name in names {
                stages.push(Stage::start(&network, &name, (*first, *last), random.split()));
            }
        }
        let (_, port) = network.node("output:1");
        let host = Host::simulated(pauses(random.split()), Dialer::simulated(port));
        let own = LayerSpan {
            first: script.own,
            last: LAYERS - 1,
            head: true,
        };
        let engine = Engine::on(host, whole(), own, places, script.options.clone());
        Self {
            network,
            script,
            stages: RefCell::new(stages),
            gone: RefCell::default(),
            engine,
            random: RefCell::new(random),
            began: Instant::now(),
            trace: RefCell::default(),
        }
    }

    fn note(&self, what: impl std::fmt::Display) {
        let at = self.began.elapsed().as_millis();
        self.trace.borrow_mut().push(format!("{at} ms: {what}"));
    }

    /// Everything that the script has; then nothing may be left. Returns what happened.
    pub(crate) async fn run(self) -> Result<Vec<String>, (Violation, Vec<String>)> {
        let result = self.live().await;
        self.note(format_args!("struck: {:?}", self.network.struck()));
        let trace = self.trace.take();
        result
            .map(|()| trace.clone())
            .map_err(|violation| (violation, trace))
    }

    /// All talks, and nothing else.
    pub(crate) async fn talk_all(&self) -> Result<(), Violation> {
        self.engine
            .route_complete(SILENCE)
            .await
            .map_err(|error| error.to_string())?;
        let talks = self.script.talks.iter().map(|talk| self.talk(talk));
        futures::future::join_all(talks).await.into_iter().collect()
    }

    /// The first prompt of the first talk, as the engine answers it.
    pub(crate) async fn talk_first(&self) -> Result<(), EngineError> {
        self.engine.route_complete(SILENCE).await?;
        let mut generation = self.engine.generate(request(&opening(&self.script.talks[0])));
        while let Some(event) = generation.next().await {
            if let Event::Failed(error) = event {
                return Err(error);
            }
        }
        Ok(())
    }

    pub(crate) fn freeze(&self, stage: usize, frozen: bool) {
        self.stages.borrow()[stage].node.freeze(frozen);
    }

    async fn live(&self) -> Result<(), Violation> {
        // Whether it came about or not: requests have to do with what there is.
        let _ = self.engine.route_complete(SILENCE).await;
        let talks = self.script.talks.iter().map(|talk| self.talk(talk));
        let events = self.script.events.iter().map(|(at, what)| self.event(*at, *what));
        let (talked, happened) = tokio::join!(
            futures::future::join_all(talks),
            futures::future::join_all(events)
        );
        talked.into_iter().chain(happened).collect::<Result<(), _>>()?;
        timeout(DEADLINE, self.engine.shutdown())
            .await
            .map_err(|_| "the engine does not shut down")?;
        sleep(FORGOTTEN).await;
        self.nothing_left()?;
        match crate::planted::violations().into_iter().next() {
            Some(violation) => Err(violation),
            None => Ok(()),
        }
    }

    fn nothing_left(&self) -> Result<(), Violation> {
        let requests = self.engine.status().requests;
        if requests != 0 {
            return Err(format!("{requests} requests are left"));
        }
        let (stages, gone) = (self.stages.borrow(), self.gone.borrow());
        for stage in stages.iter().chain(gone.iter()) {
            let totals = stage.sessions.totals();
            if totals != Totals::default() && !stage.ended.load(Ordering::Relaxed) {
                return Err(format!("{}: {totals:?} is left", stage.endpoint));
            }
        }
        Ok(())
    }

    async fn talk(&self, talk: &Talk) -> Result<(), Violation> {
        let mut prompt = opening(talk);
        for (i, turn) in talk.turns.iter().enumerate() {
            sleep(turn.pause).await;
            if i > 0 {
                prompt = next(&prompt, *turn);
            }
            self.ask(&prompt, turn.leaves).await?;
        }
        Ok(())
    }

    async fn ask(&self, prompt: &[u32], leaves: Option<Duration>) -> Result<(), Violation> {
        let mut generation = self.engine.generate(request(prompt));
        let mut said = (None, Vec::new());
        let told = async {
            while let Some(event) = generation.next().await {
                match event {
                    Event::Decided(decision) => said.0 = Some(decision),
                    Event::Token(token) => said.1.push(token),
                    Event::Failed(error) => return Err(error),
                    Event::Finished(_) => break,
                    Event::Prefill { .. } | Event::Cached(_) | Event::Logprobs(_) => {}
                }
            }
            Ok(())
        };
        let Ok(result) = timeout(leaves.unwrap_or(DEADLINE), told).await else {
            if leaves.is_some() {
                self.note(format_args!("the client of {} tokens left", prompt.len()));
                return Ok(());
            }
            return Err(format!("no end of {} tokens within {DEADLINE:?}", prompt.len()));
        };
        self.judge(prompt, result, said)
    }

    /// The right tokens with a verdict that can be true, or an error that may be.
    fn judge(
        &self,
        prompt: &[u32],
        result: Result<(), EngineError>,
        (decision, tokens): (Option<Decision>, Vec<u32>),
    ) -> Result<(), Violation> {
        let clean = self.script.clean();
        if let Err(error) = result {
            self.note(format_args!("{} tokens: {error}", prompt.len()));
            let may_fail = self.script.options.on_failure == crate::OnFailure::Fail && !clean;
            return match error {
                EngineError::Route(_) if may_fail && tokens.is_empty() => Ok(()),
                error => Err(format!("an error that may not be: {error}")),
            };
        }
        let decision = decision.ok_or("an answer without a decision")?;
        self.note(format_args!("{} tokens: {decision}", prompt.len()));
        let expected = answer(prompt);
        if tokens != expected {
            return Err(format!(
                "wrong tokens: expected {expected:?}, found {tokens:?}; {decision}"
            ));
        }
        match decision {
            Decision::Recomputed { reason }
            | Decision::Disaggregated {
                retried: Some(reason),
                ..
            } if clean => Err(format!(
                "recomputed or retried although nothing was wrong: {reason}"
            )),
            Decision::Local { reason } if !may_be_local(&self.script, &reason) => {
                Err(format!("local although the policy is always: {reason}"))
            }
            _ => Ok(()),
        }
    }

    async fn event(&self, at: Duration, what: What) -> Result<(), Violation> {
        sleep(at).await;
        self.note(format_args!("{what:?}"));
        match what {
            What::Kill { stage, back } => {
                self.stages.borrow()[stage].node.kill();
                if let Some(back) = back {
                    sleep(back).await;
                    self.replace(stage);
                }
            }
            What::Freeze { stage, lasts } => {
                let node = self.stages.borrow()[stage].node.clone();
                node.freeze(true);
                sleep(lasts).await;
                node.freeze(false);
            }
            What::Drain { stage, back } => {
                let stop = self.stages.borrow_mut()[stage].stop.take();
                let _ = stop.map(|stop| stop.send(()));
                sleep(back).await;
                self.stages.borrow()[stage].node.kill();
                self.replace(stage);
            }
            What::Zombie => {
                let (_, port) = self.network.node("zombie:1");
                let random = self.random.borrow_mut().split();
                return zombie::haunt(self, &Dialer::simulated(port), random).await;
            }
        }
        Ok(())
    }

    /// Another process at the same address, which knows nothing.
    fn replace(&self, stage: usize) {
        let mut stages = self.stages.borrow_mut();
        let old = &stages[stage];
        let random = self.random.borrow_mut().split();
        let new = Stage::start(&self.network, &old.endpoint, old.span, random);
        self.gone
            .borrow_mut()
            .push(std::mem::replace(&mut stages[stage], new));
    }
}

impl Stage {
    fn start(network: &Network, name: &str, span: (usize, usize), mut random: Random) -> Self {
        let options = StageOptions {
            lease: Duration::from_secs(2),
            idle: Duration::from_secs(1),
            drain_timeout: Duration::from_secs(2),
            ..StageOptions::default()
        };
        let (node, port) = network.node(name);
        let connections = UnboundedReceiverStream::new(network.listen(&node));
        let host = Host::simulated(pauses(random.split()), Dialer::simulated(port));
        let server = StageServer::new(slice(span.0, span.1), options);
        let sessions = server.sessions();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async move {
            // Nobody says so: it never ends.
            if stopped.await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let serving = server.serve_on(host, Arc::clone(&sessions), connections, None, shutdown);
        let ended = Arc::new(AtomicBool::new(false));
        let left = Arc::clone(&ended);
        tokio::spawn(async move {
            drop(serving.await);
            left.store(true, Ordering::Relaxed);
        });
        Self {
            endpoint: name.to_owned(),
            span,
            node,
            sessions,
            stop: Some(stop),
            ended,
        }
    }
}

/// Every job takes up to four milliseconds.
fn pauses(random: Random) -> impl Fn() -> Duration + Send + Sync {
    let random = std::sync::Mutex::new(random);
    move || {
        let mut random = random.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        random.millis(4)
    }
}

/// Under `always` only what is computed already stays here.
fn may_be_local(script: &Script, reason: &str) -> bool {
    script.options.policy == crate::Policy::Adaptive || reason.contains("cached")
}

fn opening(talk: &Talk) -> Vec<u32> {
    let token = |i: usize| 3 + (talk.opening * 61 + u32::try_from(i * i * 7 + i).unwrap_or(0)) % 250;
    (0..talk.length).map(token).collect()
}

fn next(prompt: &[u32], turn: Turn) -> Vec<u32> {
    let said = match turn.change {
        Change::Again => return prompt.to_vec(),
        Change::Continue => answer(prompt),
        Change::Regenerate => vec![5, 6, 7],
    };
    let more = (0..turn.more).map(|i| 3 + u32::try_from(i * 7).unwrap_or(0) % 250);
    prompt.iter().copied().chain(said).chain(more).collect()
}

fn request(prompt: &[u32]) -> Generate {
    Generate {
        prompt: prompt.to_vec(),
        sampling: Sampling::GREEDY,
        shaping: Shaping::default(),
        max_tokens: DECODED,
        ignore_eos: true,
        flow: Flow::default(),
        deadline: None,
        parent: tracing::Span::none(),
    }
}
