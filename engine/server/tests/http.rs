//! The HTTP surface over a real engine and a small random model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use axum::body::{Body, to_bytes};
use ds4_gguf::{Gguf, LayerSpan, ModelConfig};
use ds4_kernels_cpu::Cpu;
use ds4_model::{Graph, Numerics};
use ds4_runtime::{Engine, EngineOptions};
use ds4_server::{App, AppOptions, DECISION_HEADER, Loaded, router};
use ds4_synth::{Dims, Preset};
use ds4_tokenizer::{Special, Tokenizer};
use http::{HeaderMap, Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;

const MODEL: &str = "micro";
const CONTEXT: u64 = 200;

fn file() -> &'static PathBuf {
    static FILE: OnceLock<PathBuf> = OnceLock::new();
    FILE.get_or_init(|| {
        let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("server-micro.gguf");
        ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).unwrap();
        path
    })
}

/// A server without a model.
fn empty(keys: &[&str]) -> Arc<App> {
    App::new(AppOptions {
        model: MODEL.into(),
        api_keys: keys.iter().map(ToString::to_string).collect(),
    })
}

/// A server that can answer. Needs a Tokio runtime.
fn ready(keys: &[&str]) -> Arc<App> {
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
    let app = empty(keys);
    app.load(Loaded { engine, tokenizer });
    app
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    text: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.text).expect(&self.text)
    }

    /// The parts of a stream, without the marker at its end.
    fn parts(&self) -> Vec<Value> {
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

async fn send(app: &Arc<App>, method: Method, path: &str, key: &str, body: String) -> Answer {
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

async fn get(app: &Arc<App>, path: &str) -> Answer {
    send(app, Method::GET, path, "", String::new()).await
}

async fn chat(app: &Arc<App>, changes: Value) -> Answer {
    let mut body = json!({
        "model": MODEL, "max_tokens": 12, "temperature": 0,
        "messages": [{"role": "user", "content": "the cat that is on the mat"}],
    });
    let changed = body.as_object_mut().unwrap();
    changed.extend(changes.as_object().unwrap().clone());
    send(app, Method::POST, "/v1/chat/completions", "", body.to_string()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_whole_chat_has_the_shape_the_usage_and_the_decision() {
    let app = ready(&[]);
    let answer = chat(&app, json!({})).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    assert_eq!(answer.headers[DECISION_HEADER], "local; reason=no stages");
    let body = answer.json();
    assert_eq!(
        (&body["object"], &body["model"]),
        (&json!("chat.completion"), &json!(MODEL))
    );
    assert!(body["id"].as_str().unwrap().starts_with("chatcmpl-"));
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert!(!choice["message"]["content"].as_str().unwrap().is_empty());
    let usage = &body["usage"];
    let count = |name: &str| usage[name].as_u64().unwrap();
    assert!(count("prompt_tokens") > 5 && (1..=12).contains(&count("completion_tokens")));
    assert_eq!(
        count("total_tokens"),
        count("prompt_tokens") + count("completion_tokens")
    );
    assert_eq!(
        chat(&app, json!({})).await.json()["choices"],
        body["choices"],
        "greedy twice"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_streamed_chat_says_the_same_in_parts() {
    let app = ready(&[]);
    let whole = chat(&app, json!({})).await.json();
    let asked = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = chat(&app, asked).await;
    assert_eq!(answer.headers[DECISION_HEADER], "local; reason=no stages");
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    let parts = answer.parts();
    assert!(
        parts
            .iter()
            .all(|part| part["object"] == "chat.completion.chunk" && part["id"] == parts[0]["id"])
    );
    let text: String = parts
        .iter()
        .filter_map(|part| part["choices"][0]["delta"]["content"].as_str())
        .collect();
    assert_eq!(text, whole["choices"][0]["message"]["content"].as_str().unwrap());
    let reasons: Vec<&Value> = parts
        .iter()
        .map(|part| &part["choices"][0]["finish_reason"])
        .filter(|reason| !reason.is_null())
        .collect();
    assert_eq!(reasons, [&whole["choices"][0]["finish_reason"]]);
    let last = parts.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &whole["usage"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn stop_seed_and_limit_do_what_they_say() {
    let app = ready(&[]);
    let whole = chat(&app, json!({})).await.json()["choices"][0]["message"]["content"].clone();
    let whole = whole.as_str().unwrap();
    let middle = whole.chars().nth(whole.chars().count() / 2).unwrap().to_string();
    let stopped = chat(&app, json!({"stop": [middle]})).await.json();
    let text = stopped["choices"][0]["message"]["content"].as_str().unwrap();
    assert_eq!(text, whole.split(&middle).next().unwrap());
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
    let one = chat(&app, json!({"max_tokens": 1})).await.json();
    assert_eq!(
        (
            &one["usage"]["completion_tokens"],
            &one["choices"][0]["finish_reason"]
        ),
        (&json!(1), &json!("length"))
    );
    let warm = |seed: u64| json!({"temperature": 1.5, "seed": seed});
    let text = async |seed: u64| chat(&app, warm(seed)).await.json()["choices"][0]["message"].clone();
    assert_eq!(text(5).await, text(5).await);
    assert_ne!(text(5).await, text(6).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completion_continues_its_prompt() {
    let app = ready(&[]);
    let body = json!({"model": MODEL, "prompt": "the house", "max_tokens": 4, "temperature": 0});
    let answer = send(&app, Method::POST, "/v1/completions", "", body.to_string()).await;
    assert_eq!(answer.json()["object"], "text_completion", "{}", answer.text);
    assert!(!answer.json()["choices"][0]["text"].as_str().unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_openais_shape() {
    let app = ready(&[]);
    let error = |answer: &Answer| answer.json()["error"].clone();
    let bad = send(&app, Method::POST, "/v1/chat/completions", "", "{".into()).await;
    assert_eq!(
        (bad.status, &error(&bad)["type"]),
        (StatusCode::BAD_REQUEST, &json!("invalid_request_error"))
    );
    let unknown = chat(&app, json!({"model": "gpt-9"})).await;
    assert_eq!(
        (unknown.status, &error(&unknown)["code"]),
        (StatusCode::NOT_FOUND, &json!("model_not_found"))
    );
    let none = chat(&app, json!({"messages": []})).await;
    assert_eq!(
        (none.status, &error(&none)["param"]),
        (StatusCode::BAD_REQUEST, &json!("messages"))
    );
    for stream in [false, true] {
        let long = chat(&app, json!({"max_tokens": 1000, "stream": stream})).await;
        assert_eq!(
            (long.status, &error(&long)["code"]),
            (StatusCode::BAD_REQUEST, &json!("context_length_exceeded"))
        );
    }
    assert_eq!(get(&app, "/v1/nothing").await.status, StatusCode::NOT_FOUND);
    assert_eq!(
        get(&app, "/v1/chat/completions").await.status,
        StatusCode::METHOD_NOT_ALLOWED
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_guard_the_api_and_not_the_probes() {
    let app = ready(&["right"]);
    let asked = async |key: &str| send(&app, Method::GET, "/v1/models", key, String::new()).await;
    assert_eq!(asked("wrong").await.status, StatusCode::UNAUTHORIZED);
    let models = asked("right").await.json();
    assert_eq!(
        (&models["data"][0]["id"], &models["data"][0]["context_length"]),
        (&json!(MODEL), &json!(CONTEXT))
    );
    for probe in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(get(&app, probe).await.status, StatusCode::OK, "{probe}");
    }
    assert!(get(&app, "/metrics").await.text.trim_end().ends_with("# EOF"));
}

#[tokio::test]
async fn before_the_model_is_there_only_health_is_good() {
    let app = empty(&[]);
    app.loading(40);
    assert_eq!(get(&app, "/healthz").await.status, StatusCode::OK);
    let readiness = get(&app, "/readyz").await;
    assert_eq!(readiness.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(readiness.text.contains("40 %"), "{}", readiness.text);
    let answer = chat(&app, json!({})).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.headers.contains_key("retry-after"));
}
