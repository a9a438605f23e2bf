//! A micro model, stages that can be killed, and an engine over them.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_model::choice::Shaping;
use ds4_model::sampling::Sampling;
use ds4_model::{Graph, ModelSlice, Numerics};
use ds4_runtime::{
    Decision, Engine, EngineError, EngineOptions, Event, Finished, Flow, Generate, Generation, OnFailure,
    Policy, StageOptions, StageServer,
};
use ds4_synth::{Dims, Preset};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

/// The micro preset: no compression, ratio 4 with indexer, ratio 128.
pub const LAYERS: usize = 3;
/// Tokens decoded after each prompt.
pub const DECODED: u32 = 16;

/// What a test does to one message.
pub type Change<T> = fn(&mut T);

fn model() -> &'static PathBuf {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("runtime-micro.gguf");
        let dims = Dims::preset(Preset::Micro);
        ds4_synth::write(&path, &dims, &mut |_, _| {}).unwrap();
        path
    })
}

/// Layers `first..=last`, with the head when they are the last ones.
pub fn slice(first: usize, last: usize) -> Arc<dyn ModelSlice> {
    let gguf = Gguf::open(model()).unwrap();
    let span = LayerSpan {
        first,
        last,
        head: last + 1 == LAYERS,
    };
    let backend = Cpu::new(Some(1), None).unwrap();
    Arc::new(Graph::load(&gguf, span, Numerics::Canonical, backend, &mut |_, _| {}).unwrap())
}

/// All layers, loaded once.
pub fn whole() -> Arc<dyn ModelSlice> {
    static WHOLE: OnceLock<Arc<dyn ModelSlice>> = OnceLock::new();
    WHOLE.get_or_init(|| slice(0, LAYERS - 1)).clone()
}

/// A prompt that repeats nowhere in order.
pub fn prompt(length: usize) -> Vec<u32> {
    let mut state = 9_u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 8) % 250
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// Something that serves gRPC on a runtime of its own, so that it can end as a killed process does: without a word.
pub struct Served {
    pub endpoint: String,
    runtime: Option<tokio::runtime::Runtime>,
    stop: Option<oneshot::Sender<()>>,
}

impl Served {
    pub fn start<F, W>(address: &str, serve: F) -> Self
    where
        F: FnOnce(TcpListener, oneshot::Receiver<()>) -> W + Send + 'static,
        W: Future<Output = ()> + Send,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address: SocketAddr = address.parse().unwrap();
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let endpoint = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        runtime.spawn(async move { serve(TcpListener::from_std(listener).unwrap(), stopped).await });
        Self {
            endpoint,
            runtime: Some(runtime),
            stop: Some(stop),
        }
    }

    /// Every task and socket is dropped where it stands.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// As SIGTERM does.
    pub fn terminate(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A stage of layers `first..=last`.
pub fn stage(first: usize, last: usize) -> Served {
    stage_at("127.0.0.1:0", first, last, StageOptions::default())
}

pub fn stage_at(address: &str, first: usize, last: usize, options: StageOptions) -> Served {
    let server = StageServer::new(slice(first, last), options);
    Served::start(address, move |listener, stopped| async move {
        let stopped = async {
            let _ = stopped.await;
        };
        server.serve(listener, stopped).await.unwrap();
    })
}

/// Every prompt goes over the route, small chunks, and failures are shown. The deadline leaves room for a busy machine.
pub fn strict() -> EngineOptions {
    EngineOptions {
        prefill_chunk: 32,
        min_prompt_tokens: 1,
        handoff_timeout: Duration::from_secs(20),
        on_failure: OnFailure::Fail,
        policy: Policy::Always,
        ..EngineOptions::default()
    }
}

/// An engine whose own layers begin at `own`; waits for the route.
pub async fn engine(own: usize, stages: &[&Served], options: EngineOptions) -> Arc<Engine> {
    let engine = unconnected(own, stages, options);
    engine.route_complete(Duration::from_secs(10)).await.unwrap();
    engine
}

pub fn unconnected(own: usize, stages: &[&Served], options: EngineOptions) -> Arc<Engine> {
    let own = LayerSpan {
        first: own,
        last: LAYERS - 1,
        head: true,
    };
    let stages = stages.iter().map(|stage| stage.endpoint.clone()).collect();
    Engine::new(whole(), own, stages, options)
}

/// Greedy, past any end of turn.
pub fn request(prompt: Vec<u32>) -> Generate {
    Generate {
        prompt,
        sampling: Sampling::GREEDY,
        shaping: Shaping::default(),
        max_tokens: DECODED,
        ignore_eos: true,
        flow: Flow::default(),
        deadline: None,
        parent: tracing::Span::none(),
    }
}

/// What became of a request.
pub async fn answer(generation: Generation) -> Result<(Decision, Vec<u32>), EngineError> {
    finished(generation)
        .await
        .map(|(decision, tokens, _)| (decision, tokens))
}

/// The same with the numbers of its end.
pub async fn finished(mut generation: Generation) -> Result<(Decision, Vec<u32>, Finished), EngineError> {
    let (mut decision, mut tokens) = (None, Vec::new());
    while let Some(event) = generation.next().await {
        match event {
            Event::Prefill { .. } | Event::Cached(_) | Event::Logprobs(_) => {}
            Event::Decided(decided) => decision = Some(decided),
            Event::Token(token) => tokens.push(token),
            Event::Finished(finished) => {
                return Ok((decision.expect("decided before it finished"), tokens, finished));
            }
            Event::Failed(error) => return Err(error),
        }
    }
    panic!("the events ended without an end")
}

/// The whole path once.
pub async fn ask(engine: &Arc<Engine>, prompt: &[u32]) -> Result<(Decision, Vec<u32>), EngineError> {
    answer(engine.generate(request(prompt.to_vec()))).await
}

/// The greedy tokens without any stage.
pub async fn alone(prompt: &[u32]) -> Vec<u32> {
    let engine = unconnected(0, &[], EngineOptions::default());
    let (decision, tokens) = ask(&engine, prompt).await.unwrap();
    assert_eq!(decision.label(), "local");
    tokens
}

/// Waits until something is so; fails the test when it is not within two seconds.
pub async fn soon(what: &str, is_so: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !is_so() {
        assert!(
            started.elapsed() < Duration::from_secs(2),
            "not within two seconds: {what}"
        );
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
