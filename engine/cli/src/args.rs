//! Every flag. Each is also an environment variable, `DS4_` and the flag's name.

mod bench;
mod compute;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use ds4_synth::{Experts, Preset};
use ds4_telemetry::LogFormat;

pub(crate) use bench::{Bench, BenchPolicyArguments, BenchServeArguments};
pub(crate) use compute::{BackendArgument, ComputeArguments, DraftArguments};

/// Disaggregated serving of DeepSeek V4 Flash.
#[derive(Debug, Parser)]
#[command(name = "ds4", version, about, propagate_version = true, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve the APIs of OpenAI and Anthropic; with --stages, long prompts are prefilled there.
    #[command(
        after_help = "Examples:\n  ds4 serve --model flash.gguf\n  ds4 serve --model flash.gguf --layers 22:output --stages node-a:7400,node-b:7400\n  ds4 serve --model flash.gguf --layers 22:output --stages 'node-a:7400|spare:7400' --tls-dir /etc/ds4/tls"
    )]
    Serve(ServeArguments),
    /// Talk with a model in the terminal.
    #[command(
        after_help = "Examples:\n  ds4 chat                                   (a server at http://127.0.0.1:8000)\n  ds4 chat --url http://flash.llm.svc:8000 --think high\n  ds4 chat --model flash.gguf                (starts a server of its own)"
    )]
    Chat(ChatArguments),
    /// Prefill some layers for an output pod.
    #[command(after_help = "Example:\n  ds4 stage --model flash.gguf --layers 0:21 --listen 0.0.0.0:7400")]
    Stage(StageArguments),
    /// Answer one prompt.
    #[command(
        after_help = "Examples:\n  ds4 run --model flash.gguf -p \"Why is the sky blue?\"\n  ds4 run --model tiny.gguf -p hi --stages 0:3,4:output   (starts the stages as processes)"
    )]
    Run(RunArguments),
    /// Write the logits of every position of a token list.
    #[command(
        after_help = "Example:\n  ds4 logits --model tiny.gguf --tokens tokens.json --out logits.f32 --stages 0:1,2:4,5:output"
    )]
    Logits(LogitsArguments),
    /// Show a model file: shapes, sizes, KV bytes, and splits for given memory sizes.
    #[command(
        after_help = "Example:\n  ds4 inspect flash.gguf --memory 48GiB,128GiB   (pipeline order; the last one decodes)"
    )]
    Inspect(InspectArguments),
    /// Bring a model to this machine: whole, or only what a stage of some layers needs.
    #[command(
        after_help = "Examples:\n  ds4 fetch hf://antirez/deepseek-v4-gguf@COMMIT/flash-q2.gguf --out /models --layers 0:21\n  ds4 fetch https://mirror.example/flash-q2.gguf --out /models --sha256 HEX\n  ds4 fetch --manifest flash-q2.gguf > flash-q2.pieces.json   (hashes, so that parts can be verified with --pieces)\n\nAn interrupted fetch goes on where it was. HF_TOKEN or --token-file opens private repositories; HTTPS_PROXY and NO_PROXY are respected."
    )]
    Fetch(FetchArguments),
    /// Write a small random model of the same architecture.
    #[command(
        after_help = "Examples:\n  ds4 synth --preset micro --out micro.gguf\n  ds4 synth --preset tiny --set n_layer=5 --set 'ratios=[4,128,4,0,128]' --out odd.gguf"
    )]
    Synth(SynthArguments),
    /// Measure prefill and decode of a model on this machine, or a server (`ds4 bench serve`).
    #[command(
        after_help = "Examples:\n  ds4 bench --model tiny.gguf\n  ds4 bench --model flash.gguf --prompt 512,2048 --generate 64 --depth 0,2048 --batch 1,4,8 --roofline\n  ds4 bench --model flash.gguf --prompt 0 --depth 2048,32768 --json   (decode only, deeper and deeper in one session)"
    )]
    Bench(Bench),
    /// Ask a stage or server whether it is healthy; exits with 1 when not.
    Health(HealthArguments),
    /// Print a completion script.
    #[command(after_help = "Example:\n  ds4 completion bash > /etc/bash_completion.d/ds4")]
    Completion {
        /// For which shell.
        shell: clap_complete::Shell,
    },
}

/// What a program records.
#[derive(Clone, Debug, Args)]
pub(crate) struct TelemetryArguments {
    /// OTLP gRPC endpoint for traces, for example http://collector:4317.
    #[arg(long, env = "DS4_OTLP_ENDPOINT", value_name = "URL")]
    pub(crate) otlp_endpoint: Option<String>,
    /// Log lines as text or json.
    #[arg(
        long,
        env = "DS4_LOG_FORMAT",
        default_value = "text",
        value_name = "text|json"
    )]
    pub(crate) log_format: LogFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum PolicyArgument {
    /// Prompts with at least --min-prompt-tokens new tokens, when that was faster lately.
    Adaptive,
    /// All prompts.
    Always,
    /// No prompt.
    Never,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum OnFailureArgument {
    /// Compute the prompt here and say so.
    RecomputeLocally,
    /// Fail the request.
    Fail,
}

/// How prompts go over the route.
#[derive(Clone, Debug, Args)]
pub(crate) struct RouteArguments {
    /// Tokens in a prefill chunk.
    #[arg(
        long,
        alias = "chunk",
        env = "DS4_PREFILL_CHUNK",
        default_value_t = 512,
        value_name = "N"
    )]
    pub(crate) prefill_chunk: usize,
    /// Chunks in flight between two hops.
    #[arg(long, env = "DS4_WINDOW", default_value_t = 4, value_name = "N")]
    pub(crate) window: usize,
    /// Fewest new tokens of a prompt that the adaptive policy sends to the stages.
    #[arg(long, env = "DS4_MIN_PROMPT_TOKENS", default_value_t = 512, value_name = "N")]
    pub(crate) min_prompt_tokens: usize,
    /// Longest silence of the route.
    #[arg(long, env = "DS4_HANDOFF_TIMEOUT", default_value = "30s", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) handoff_timeout: std::time::Duration,
    /// When prompts go over the route.
    #[arg(long, env = "DS4_POLICY", value_enum, default_value = "adaptive")]
    pub(crate) policy: PolicyArgument,
    /// What happens when the route fails.
    #[arg(long, env = "DS4_ON_FAILURE", value_enum, default_value = "recompute-locally")]
    pub(crate) on_failure: OnFailureArgument,
    /// Tokens of prompt and answer together [default: what the model says].
    #[arg(long, env = "DS4_MAX_CONTEXT", value_name = "N")]
    pub(crate) max_context: Option<u64>,
    /// Connections on which the KV of each stage comes, besides the one for activations.
    #[arg(long, env = "DS4_HANDOFF_STREAMS", default_value_t = 2, value_name = "N")]
    pub(crate) handoff_streams: u32,
    /// Most bytes of KV rows in one frame, up to 4MiB. A stage sends none above 128KiB: larger ones are slower.
    #[arg(long, env = "DS4_FRAME_BYTES", default_value = "1MiB", value_name = "SIZE", value_parser = crate::sizes::bytes)]
    pub(crate) frame_bytes: u64,
    /// Bytes of KV of running requests and of sessions kept for later turns together; a request is set aside what it may come to hold.
    #[arg(long, env = "DS4_KV_BUDGET", default_value = "4GiB", value_name = "SIZE", value_parser = crate::sizes::bytes)]
    pub(crate) kv_budget: u64,
    /// Most of these for sessions kept for later turns [default: all that running requests leave].
    #[arg(long, env = "DS4_KEPT_BUDGET", value_name = "SIZE", value_parser = crate::sizes::bytes)]
    pub(crate) kept_budget: Option<u64>,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

/// Who may connect.
#[derive(Clone, Debug, Args)]
pub(crate) struct TlsArguments {
    /// Folder with tls.crt, tls.key and ca.crt: connections between pods are encrypted and both ends show a certificate of that CA. Read again
    /// when the files change.
    #[arg(long, env = "DS4_TLS_DIR", value_name = "DIR")]
    pub(crate) tls_dir: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    #[command(flatten)]
    pub(crate) draft: DraftArguments,
    #[command(flatten)]
    pub(crate) route: RouteArguments,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArguments,
    /// Layers that this pod computes during prefill over the route.
    #[arg(long, env = "DS4_LAYERS", default_value = "0:output", value_name = "N:output")]
    pub(crate) layers: String,
    /// The other stages in order; spares of a stage follow it after `|`.
    #[arg(
        long,
        env = "DS4_STAGES",
        value_delimiter = ',',
        value_name = "HOST:PORT[|HOST:PORT...],..."
    )]
    pub(crate) stages: Vec<String>,
    /// Where HTTP is served.
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:8000",
        value_name = "ADDR"
    )]
    pub(crate) listen: String,
    /// The model id that clients send [default: the file's name].
    #[arg(long, env = "DS4_MODEL_NAME", value_name = "NAME")]
    pub(crate) model_name: Option<String>,
    /// Requests that are computed at once: their answers take a token each in every pass over the model.
    #[arg(long, env = "DS4_SESSIONS", default_value_t = 16, value_name = "N")]
    pub(crate) sessions: usize,
    /// Folder where sessions outlive memory and this process; a session saved under one split loads under any other.
    #[arg(long, env = "DS4_SESSION_DIR", value_name = "DIR")]
    pub(crate) session_dir: Option<PathBuf>,
    /// Bytes of sessions in that folder; those of least value go first.
    #[arg(long, env = "DS4_SESSION_BYTES", default_value = "16GiB", value_name = "SIZE", value_parser = crate::sizes::bytes)]
    pub(crate) session_bytes: u64,
    /// Requests that may wait; more are answered with 429 and a time to try again.
    #[arg(long, env = "DS4_QUEUE", default_value_t = 32, value_name = "N")]
    pub(crate) queue: usize,
    /// Longest wait; then the answer is 503 with a time to try again.
    #[arg(long, env = "DS4_QUEUE_TIMEOUT", default_value = "60s", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) queue_timeout: std::time::Duration,
    /// How many times as long as alone a token of a running answer may take for the sake of prompts.
    #[arg(long, env = "DS4_STRETCH", default_value_t = 1.7, value_name = "N")]
    pub(crate) stretch: f64,
    /// File with one key a line, or the folder of a mounted Secret; without it everyone may ask.
    #[arg(long, env = "DS4_API_KEYS_FILE", value_name = "FILE")]
    pub(crate) api_keys_file: Option<PathBuf>,
    /// Requests that a key may send in a minute; more are answered with 429 [default: no limit].
    #[arg(
        long,
        env = "DS4_KEY_REQUESTS_PER_MINUTE",
        value_name = "N",
        requires = "api_keys_file"
    )]
    pub(crate) key_requests_per_minute: Option<u32>,
}

/// Which server is asked.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArguments {
    /// The server.
    #[arg(
        long,
        env = "DS4_URL",
        default_value = "http://127.0.0.1:8000",
        value_name = "URL"
    )]
    pub(crate) url: String,
    /// Its key, when it wants one.
    #[arg(long, env = "DS4_API_KEY", hide_env_values = true, value_name = "KEY")]
    pub(crate) api_key: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArguments {
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    /// Instead of a server: a model file, served here as long as the chat lasts.
    #[arg(long, conflicts_with = "url", value_name = "FILE")]
    pub(crate) model: Option<PathBuf>,
    /// Instructions.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    /// Reason before the answer.
    #[arg(long, default_value = "none", value_name = "none|low|high|max")]
    pub(crate) think: String,
    /// 0: always the most likely token.
    #[arg(long, alias = "temperature", default_value_t = 0.6, value_name = "T")]
    pub(crate) temp: f32,
    /// Most tokens of an answer [default: what the context has room for].
    #[arg(short = 'n', long, value_name = "N")]
    pub(crate) max_tokens: Option<u32>,
}

#[derive(Debug, Args)]
pub(crate) struct StageArguments {
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArguments,
    /// Layers to prefill, both ends included.
    #[arg(long, env = "DS4_LAYERS", value_name = "A:B")]
    pub(crate) layers: String,
    /// Where gRPC is served.
    #[arg(
        long,
        env = "DS4_LISTEN",
        default_value = "127.0.0.1:7400",
        value_name = "ADDR"
    )]
    pub(crate) listen: String,
    /// Where gRPC health checks alone are answered, in the clear: for a kubelet, which has no certificate of --tls-dir.
    #[arg(long, env = "DS4_HEALTH_LISTEN", value_name = "ADDR")]
    pub(crate) health_listen: Option<String>,
    /// Sessions that are prefilled at once, taking turns.
    #[arg(long, env = "DS4_SESSIONS", default_value_t = 8, value_name = "N")]
    pub(crate) sessions: usize,
    /// Bytes of KV of all sessions together; more is refused with a time to try again.
    #[arg(long, env = "DS4_KV_BUDGET", default_value = "8GiB", value_name = "SIZE", value_parser = crate::sizes::bytes)]
    pub(crate) kv_budget: u64,
    /// How long a session is kept for its next turn after the output pod last asked for it.
    #[arg(long, env = "DS4_LEASE", default_value = "10s", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) lease: std::time::Duration,
    /// How long it may stay after that, while nobody needs its room.
    #[arg(long, env = "DS4_KV_IDLE", default_value = "5m", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) kv_idle: std::time::Duration,
    /// How long a stage that should end waits for what it has begun and for leases.
    #[arg(long, env = "DS4_DRAIN_TIMEOUT", default_value = "5m", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) drain_timeout: std::time::Duration,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Tokens in the longest session.
    #[arg(long, env = "DS4_MAX_CONTEXT", default_value_t = 1 << 20, value_name = "N")]
    pub(crate) max_context: u64,
    /// End when standard input closes: a stage that another process started ends with it.
    #[arg(long, hide = true)]
    pub(crate) until_stdin_closes: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    #[command(flatten)]
    pub(crate) draft: DraftArguments,
    #[command(flatten)]
    pub(crate) route: RouteArguments,
    #[command(flatten)]
    pub(crate) telemetry: TelemetryArguments,
    /// The question.
    #[arg(short, long, required_unless_present = "prompt_tokens", value_name = "TEXT")]
    pub(crate) prompt: Option<String>,
    /// Token ids as a JSON array, instead of a question.
    #[arg(long, conflicts_with = "prompt", value_name = "FILE")]
    pub(crate) prompt_tokens: Option<PathBuf>,
    /// Layer ranges (0:1,2:output: stages are started as processes) or addresses of running stages, which own the layers before --layers.
    #[arg(long, value_delimiter = ',', value_name = "A:B,N:output | HOST:PORT,...")]
    pub(crate) stages: Vec<String>,
    /// With addresses: the layers that this process computes.
    #[arg(long, default_value = "0:output", value_name = "N:output")]
    pub(crate) layers: String,
    /// Most tokens to generate.
    #[arg(short = 'n', long, default_value_t = 256, value_name = "N")]
    pub(crate) max_tokens: u32,
    /// 0: always the most likely token.
    #[arg(long, alias = "temperature", default_value_t = 0.0, value_name = "T")]
    pub(crate) temp: f32,
    /// Keep the most likely tokens up to this probability.
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    pub(crate) top_p: f32,
    /// Drop tokens below this share of the best one's probability.
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    pub(crate) min_p: f32,
    /// Keep this many tokens; 0 keeps all.
    #[arg(long, default_value_t = 0, value_name = "K")]
    pub(crate) top_k: u32,
    /// Equal seeds give equal answers.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub(crate) seed: u64,
    /// Go on after the end of the turn.
    #[arg(long)]
    pub(crate) ignore_eos: bool,
    /// Write the generated ids as a JSON array.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens_out: Option<PathBuf>,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct LogitsArguments {
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    /// Token ids as a JSON array.
    #[arg(long, value_name = "FILE")]
    pub(crate) tokens: PathBuf,
    /// Where the logits go: little-endian f32, tokens by vocabulary.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Layer ranges; each becomes a process of its own, the last one is this.
    #[arg(long, value_delimiter = ',', value_name = "A:B,...,N:output")]
    pub(crate) stages: Vec<String>,
    /// Tokens in a prefill chunk.
    #[arg(long, alias = "prefill-chunk", default_value_t = 64, value_name = "N")]
    pub(crate) chunk: usize,
    /// Longest silence of the route.
    #[arg(long, default_value = "60s", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) handoff_timeout: std::time::Duration,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArguments {
    /// Model file (GGUF).
    #[arg(value_name = "FILE")]
    pub(crate) model: PathBuf,
    /// Memory of the machines in pipeline order; the last one decodes and holds every layer.
    #[arg(long, value_delimiter = ',', value_name = "SIZE,...", value_parser = crate::sizes::bytes)]
    pub(crate) memory: Vec<u64>,
    /// Tokens of KV that a machine must have room for.
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    pub(crate) context: u64,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SynthArguments {
    /// micro (3 MB), tiny (10 MB) or medium (1.1 GB).
    #[arg(long, default_value = "micro", value_name = "PRESET")]
    pub(crate) preset: Preset,
    /// Equal seeds and shapes give equal weights.
    #[arg(long, value_name = "N")]
    pub(crate) seed: Option<u64>,
    /// Formats of the routed experts.
    #[arg(long, default_value = "iq2", value_name = "iq2|q4k|mxfp4")]
    pub(crate) experts: Experts,
    /// With a draft head (multi-token prediction); of random weights it guesses right by chance alone.
    #[arg(long)]
    pub(crate) mtp: bool,
    /// Another shape, for example n_layer=5.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Where the model goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArguments {
    #[command(flatten)]
    pub(crate) compute: ComputeArguments,
    #[command(flatten)]
    pub(crate) draft: DraftArguments,
    /// Tokens of each prompt that is prefilled from nothing; 0 for none.
    #[arg(short, long, value_delimiter = ',', default_values_t = [512], value_name = "N,...")]
    pub(crate) prompt: Vec<usize>,
    /// Tokens that each session generates; 0 for no decode.
    #[arg(short = 'n', long, default_value_t = 64, value_name = "N")]
    pub(crate) generate: usize,
    /// Tokens in the session before decode starts.
    #[arg(short, long, value_delimiter = ',', default_values_t = [0], value_name = "N,...")]
    pub(crate) depth: Vec<usize>,
    /// Sessions that decode at once, at each depth.
    #[arg(short, long, value_delimiter = ',', default_values_t = [1], value_name = "N,...")]
    pub(crate) batch: Vec<usize>,
    /// Tokens in a prefill chunk.
    #[arg(long, alias = "prefill-chunk", default_value_t = 512, value_name = "N")]
    pub(crate) chunk: usize,
    /// Measure everything so many times.
    #[arg(short, long, default_value_t = 1, value_name = "N")]
    pub(crate) repeat: usize,
    /// Also measure the machine: memory bandwidth, int8 peaks of vectors and of tiles (AMX), and the share of bandwidth or of the vectors' peak that each row reaches.
    #[arg(long)]
    pub(crate) roofline: bool,
    /// Time the first pass too, in which buffers are taken.
    #[arg(long)]
    pub(crate) no_warmup: bool,
    /// Print one JSON object instead of text.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct HealthArguments {
    /// Address of a stage's gRPC port.
    #[arg(value_name = "HOST:PORT")]
    pub(crate) address: String,
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
}

#[derive(Debug, Args)]
pub(crate) struct FetchArguments {
    /// Where the file comes from.
    #[arg(
        value_name = "SOURCE",
        required_unless_present = "manifest",
        help = "https://HOST/FILE or hf://OWNER/NAME[@REVISION]/FILE"
    )]
    pub(crate) source: Option<String>,
    /// Folder that the file goes to; several fetches of one file share it.
    #[arg(long, value_name = "FOLDER", required_unless_present = "manifest")]
    pub(crate) out: Option<PathBuf>,
    /// Name of the file there [default: as at the source].
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<String>,
    /// Layers of the stage: only their bytes are fetched. N:output takes the whole file, since the output stage decodes.
    #[arg(long, default_value = "0:output", value_name = "A:B|N:output")]
    pub(crate) layers: String,
    /// SHA-256 of the whole file; verified when the whole file is fetched.
    #[arg(long, value_name = "HEX")]
    pub(crate) sha256: Option<String>,
    /// File or URL of the hashes that --manifest printed: verifies every byte of a part.
    #[arg(long, value_name = "FILE|URL")]
    pub(crate) pieces: Option<String>,
    /// The hub of hf:// sources.
    #[arg(long, env = "HF_ENDPOINT", default_value = ds4_fetch::DEFAULT_ENDPOINT, value_name = "URL")]
    pub(crate) endpoint: String,
    /// File with the hub's token [default: the variable HF_TOKEN].
    #[arg(long, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Further certificate authorities (PEM), for a mirror of one's own.
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
    /// Requests at once.
    #[arg(long, default_value_t = 8, value_name = "N")]
    pub(crate) parallel: usize,
    /// Attempts in a row that bring nothing before giving up.
    #[arg(long, default_value_t = 10, value_name = "N")]
    pub(crate) retries: u32,
    /// Longest silence of a connection.
    #[arg(long, default_value = "30s", value_name = "TIME", value_parser = crate::sizes::duration)]
    pub(crate) stall: std::time::Duration,
    /// Serve /progress and /metrics here while it runs.
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<String>,
    /// File that is kept equal to /progress; in a pod, its termination log.
    #[arg(long, value_name = "FILE")]
    pub(crate) status_file: Option<PathBuf>,
    /// Print the hashes of a file that is here, for --pieces, and end.
    #[arg(long, value_name = "FILE", conflicts_with = "source")]
    pub(crate) manifest: Option<PathBuf>,
}
