//! A server over a real engine and a small random model, and its clients.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::body::{Body, to_bytes};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_kernels_cpu::Cpu;
use ds4_model::{Graph, Numerics};
use ds4_runtime::{Engine, EngineOptions};
use ds4_server::{App, AppOptions, Loaded, router};
use ds4_synth::{Dims, Preset};
use ds4_tokenizer::{Special, Tokenizer};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

pub const MODEL: &str = "micro";
pub const CONTEXT: u64 = 3000;

fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("server-micro.gguf");
        ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).unwrap();
        path
    })
}

/// A server without a model.
pub fn empty(keys: &[&str]) -> Arc<App> {
    with(AppOptions {
        api_keys: keys.iter().map(ToString::to_string).collect(),
        ..AppOptions::default()
    })
}

fn with(options: AppOptions) -> Arc<App> {
    App::new(AppOptions {
        model: MODEL.into(),
        ..options
    })
}

/// A server that can answer. Needs a Tokio runtime.
pub fn ready(keys: &[&str]) -> Arc<App> {
    load(empty(keys))
}

/// A server that can answer, with these options.
pub fn ready_with(options: AppOptions) -> Arc<App> {
    load(with(options))
}

fn load(app: Arc<App>) -> Arc<App> {
    let gguf = Gguf::open(file()).unwrap();
    let layers = ModelConfig::from_gguf(&gguf).unwrap().n_layer;
    let all = LayerSpan::full(layers);
    let backend = Cpu::new(Some(1), None).unwrap();
    let slice = Graph::load(&gguf, all, Numerics::Canonical, backend, &mut |_, _| {}).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    let options = EngineOptions {
        max_tokens: CONTEXT,
        eos: tokenizer.special(Special::Eos).into_iter().collect(),
        ..EngineOptions::default()
    };
    let engine = Engine::new(Arc::new(slice), all, Vec::new(), options);
    app.load(Loaded { engine, tokenizer });
    app
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub text: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect(&self.text)
    }

    /// The parts of a stream, without the marker at its end.
    pub fn parts(&self) -> Vec<Value> {
        let data: Vec<&str> = self
            .text
            .lines()
            .filter_map(|line| line.strip_prefix("data: "))
            .collect();
        let (last, parts) = data.split_last().expect("an event");
        assert_eq!(*last, "[DONE]");
        parts
            .iter()
            .map(|part| serde_json::from_str(part).unwrap())
            .collect()
    }
}

pub async fn post(app: &Arc<App>, path: &str, body: &Value) -> Answer {
    send(app, Method::POST, path, "", body.to_string()).await
}

pub async fn send(app: &Arc<App>, method: Method, path: &str, key: &str, body: String) -> Answer {
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", "application/json")
        .header("authorization", format!("Bearer {key}"))
        .body(Body::from(body))
        .unwrap();
    let response = router(Arc::clone(app)).oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(to_bytes(body, 1 << 20).await.unwrap().to_vec()).unwrap();
    Answer {
        status: parts.status,
        headers: parts.headers,
        text,
    }
}

pub async fn get(app: &Arc<App>, path: &str) -> Answer {
    send(app, Method::GET, path, "", String::new()).await
}

pub async fn chat(app: &Arc<App>, changes: Value) -> Answer {
    let mut body = json!({
        "model": MODEL, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": "the cat that is on the mat"}],
    });
    let changed = body.as_object_mut().unwrap();
    changed.extend(changes.as_object().unwrap().clone());
    send(app, Method::POST, "/v1/chat/completions", "", body.to_string()).await
}

/// Text of a person that is long enough to be a question.
pub fn question() -> Value {
    json!([{"role": "user", "content": "the cat that is on the mat"}])
}

/// The events of a stream: their names and data.
pub fn named(text: &str) -> Vec<(String, Value)> {
    let event = |block: &str| {
        let line = |name: &str| {
            block
                .lines()
                .find_map(|line| line.strip_prefix(name).map(str::to_owned))
        };
        Some((
            line("event: ").unwrap_or_default(),
            serde_json::from_str(&line("data: ")?).ok()?,
        ))
    };
    text.split("\n\n").filter_map(event).collect()
}
