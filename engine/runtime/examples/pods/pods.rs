//! A stage as a process of its own, an engine here, and what is asked of them.

use std::io::Write;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use ds4_gguf::{Gguf, LayerSpan};
use ds4_kernels_cpu::Cpu;
use ds4_model::choice::Shaping;
use ds4_model::sampling::Sampling;
use ds4_model::{Graph, ModelSlice, Numerics};
use ds4_runtime::{
    Decision, Engine, EngineOptions, Event, Finished, Flow, Generate, OnFailure, Policy, StageOptions,
    StageServer, Tls,
};
use ds4_synth::{Dims, Preset};
use ds4_telemetry::metrics::{Metrics, WireLabel};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::{Child, ChildStdout, Command};

use crate::Options;
use crate::made::Made;
use crate::raw;
use crate::timed::{Timed, Times};

/// Layers before the output pod's own, as in upstream's measured split.
pub const SPLIT: usize = 22;

/// Flash in its KV (layers, ratios, row widths, window) and as narrow as the formats allow elsewhere.
pub fn flash() -> Dims {
    let layers = 43;
    let ratio = |layer: usize| match layer {
        0 | 1 => 0,
        even if even % 2 == 0 => 4,
        _ => 128,
    };
    Dims {
        n_layer: layers,
        ratios: (0..layers).map(ratio).collect(),
        n_hash: 3,
        n_head: 1,
        head_dim: 512,
        n_rot: 64,
        o_groups: 1,
        n_expert: 2,
        n_used: 1,
        n_swa: 128,
        ix_dim: 128,
        ix_topk: 512,
        orig_ctx: 65_536,
        ctx: 1 << 20,
        ..Dims::preset(Preset::Micro)
    }
}

/// Equal layers, so that two or three stages of equal length take equal time.
pub fn even() -> Dims {
    Dims {
        n_layer: 12,
        ratios: [4, 128].repeat(6),
        n_hash: 0,
        n_embd: 512,
        n_head: 4,
        head_dim: 192,
        n_rot: 64,
        q_lora: 64,
        n_expert: 4,
        n_used: 2,
        n_ff: 512,
        n_swa: 128,
        ix_topk: 64,
        orig_ctx: 65_536,
        ctx: 1 << 20,
        ..Dims::preset(Preset::Micro)
    }
}

/// Writes a model unless it is there.
pub fn write(path: &Path, dims: &Dims) {
    if !path.exists() {
        let unfinished = path.with_extension("unfinished");
        ds4_synth::write(&unfinished, dims, &mut |_, _| {}).unwrap();
        std::fs::rename(unfinished, path).unwrap();
    }
}

pub fn load(path: &Path, first: usize, last: usize) -> Arc<dyn ModelSlice> {
    let gguf = Gguf::open(path).unwrap();
    let layers = ds4_gguf::ModelConfig::from_gguf(&gguf).unwrap().n_layer;
    let span = LayerSpan {
        first,
        last,
        head: last + 1 == layers,
    };
    let backend = Cpu::new(Some(1), None).unwrap();
    Arc::new(Graph::load(&gguf, span, Numerics::Canonical, backend, &mut |_, _| {}).unwrap())
}

fn slice(options: &Options, first: usize, last: usize) -> Arc<dyn ModelSlice> {
    let real = load(Path::new(options.get("model").expect("--model")), first, last);
    if options.get("made").is_some() {
        Made::like(&*real)
    } else {
        real
    }
}

pub fn certificates(options: &Options) -> Option<Arc<Tls>> {
    options
        .get("tls")
        .map(|folder| Tls::open(Path::new(folder)).unwrap())
}

/// One authority, and a certificate for this host by it.
pub fn certify(folder: &Path) {
    std::fs::create_dir_all(folder).unwrap();
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    let certificate = certificate.signed_by(&key, &authority).unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
}

/// `stage`: serves until its standard input has a line or closes, then says what its chunks have taken.
pub async fn serve(options: &Options) {
    let (first, last) = (options.number("first", 0), options.number("last", SPLIT - 1));
    let (listener, raw) = (
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
        TcpListener::bind("127.0.0.1:0").await.unwrap(),
    );
    let server_options = StageOptions {
        tls: certificates(options),
        ..StageOptions::default()
    };
    let tls = server_options.tls.clone();
    let slice = Timed::of(slice(options, first, last));
    let server = StageServer::new(slice.clone(), server_options);
    println!("{} {}", listener.local_addr().unwrap(), raw.local_addr().unwrap());
    tokio::spawn(raw::serve(raw, tls));
    let parent_gone = async {
        let mut input = String::new();
        let _ = BufReader::new(tokio::io::stdin()).read_line(&mut input).await;
    };
    tokio::select! {
        served = server.serve(listener, std::future::pending()) => served.unwrap(),
        () = parent_gone => {}
    }
    // Most measurements do not ask, and are gone.
    let _ = writeln!(std::io::stdout(), "{}", serde_json::json!(slice.take()));
}

/// A stage's process and where it is.
pub struct Pod {
    pub endpoint: String,
    pub raw: String,
    pub pid: u32,
    child: Child,
    output: BufReader<ChildStdout>,
}

impl Pod {
    /// Ends it; what its chunks have taken.
    pub async fn times(mut self) -> Times {
        let mut input = self.child.stdin.take().unwrap();
        input.write_all(b"\n").await.unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }
}

/// Starts a stage of layers `first..=last` on processor `cpu`.
pub async fn spawn(options: &Options, first: usize, last: usize, cpu: Option<&str>) -> Pod {
    let program = std::env::current_exe().unwrap();
    let mut command = match cpu {
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["-c", cpu]).arg(program);
            command
        }
        None => Command::new(program),
    };
    command.args([
        "stage",
        "--first",
        &first.to_string(),
        "--last",
        &last.to_string(),
    ]);
    for name in ["model", "made", "tls"] {
        if let Some(value) = options.get(name) {
            command.args([&format!("--{name}"), value]);
        }
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut line = String::new();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    output.read_line(&mut line).await.unwrap();
    let (endpoint, raw) = line.trim().split_once(' ').expect("two addresses");
    Pod {
        endpoint: endpoint.to_owned(),
        raw: raw.to_owned(),
        pid: child.id().unwrap(),
        child,
        output,
    }
}

/// Everything over the route where there is one, and failures are shown.
pub fn engine_options(chunk: usize, tls: Option<Arc<Tls>>) -> EngineOptions {
    EngineOptions {
        prefill_chunk: chunk,
        min_prompt_tokens: 1,
        handoff_timeout: Duration::from_secs(120),
        on_failure: OnFailure::Fail,
        policy: Policy::Always,
        max_tokens: 1 << 20,
        tls,
        ..EngineOptions::default()
    }
}

pub async fn engine(
    options: &Options,
    model: &Path,
    own: usize,
    stages: Vec<String>,
    engine_options: EngineOptions,
) -> Arc<Engine> {
    let real = load_all(model);
    let whole = if options.get("made").is_some() {
        Made::like(&*real)
    } else {
        real
    };
    engine_of(whole, own, stages, engine_options).await
}

/// The same for a model that is loaded.
pub async fn engine_of(
    whole: Arc<dyn ModelSlice>,
    own: usize,
    stages: Vec<String>,
    engine_options: EngineOptions,
) -> Arc<Engine> {
    let last = whole.info().config.n_layer - 1;
    let own = LayerSpan {
        first: own,
        last,
        head: true,
    };
    let engine = Engine::new(whole, own, stages, engine_options);
    engine.route_complete(Duration::from_secs(30)).await.unwrap();
    engine
}

/// All layers.
pub fn load_all(model: &Path) -> Arc<dyn ModelSlice> {
    let layers = ds4_gguf::ModelConfig::from_gguf(&Gguf::open(model).unwrap())
        .unwrap()
        .n_layer;
    load(model, 0, layers - 1)
}

/// A prompt that repeats nowhere in order; another for every `seed`.
pub fn prompt(seed: u32, length: usize) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(9);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        3 + (state >> 8) % 250
    };
    std::iter::repeat_with(next).take(length).collect()
}

/// An answer with its verdict and its numbers.
pub struct Answer {
    pub decision: Decision,
    pub tokens: Vec<u32>,
    pub end: Finished,
}

pub async fn ask(engine: &Arc<Engine>, prompt: Vec<u32>, max_tokens: u32) -> Answer {
    let mut generation = engine.generate(Generate {
        prompt,
        sampling: Sampling::GREEDY,
        shaping: Shaping::default(),
        max_tokens,
        ignore_eos: true,
        flow: Flow::default(),
        deadline: None,
        parent: tracing::Span::none(),
    });
    let (mut decision, mut tokens) = (None, Vec::new());
    loop {
        match generation.next().await.expect("an end") {
            Event::Decided(decided) => decision = Some(decided),
            Event::Token(token) => tokens.push(token),
            Event::Finished(end) => {
                return Answer {
                    decision: decision.expect("decided"),
                    tokens,
                    end,
                };
            }
            Event::Failed(error) => panic!("{error}"),
            Event::Prefill { .. } | Event::Cached(_) | Event::Logprobs(_) => {}
        }
    }
}

/// Bytes of the connections to stages so far.
#[derive(Clone, Copy, Debug)]
pub struct Wire {
    pub kv: u64,
    pub control: u64,
}

impl Wire {
    pub fn now() -> Self {
        let of = |link: &str| {
            let bytes = |direction: &str| {
                let label = WireLabel {
                    link: link.into(),
                    direction: direction.into(),
                };
                Metrics::global().wire_bytes.get_or_create(&label).get()
            };
            bytes("sent") + bytes("received")
        };
        Self {
            kv: of("kv"),
            control: of("control"),
        }
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            kv: self.kv - before.kv,
            control: self.control - before.control,
        }
    }
}
