//! OpenAI's chat completions and completions, health, keys.

use ds4_server::DECISION_HEADER;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Answer, CONTEXT, MODEL, chat, empty, get, post, ready, send};

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
    assert!(
        answer.headers[DECISION_HEADER]
            .to_str()
            .unwrap()
            .starts_with("local; reason=")
    );
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
    let counts = |usage: &Value| (usage["prompt_tokens"].clone(), usage["completion_tokens"].clone());
    assert_eq!(
        (&last["choices"], counts(&last["usage"])),
        (&json!([]), counts(&whole["usage"]))
    );
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
        let long = chat(&app, json!({"max_tokens": 10000, "stream": stream})).await;
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

#[tokio::test(flavor = "multi_thread")]
async fn logprobs_bias_penalties_and_n_do_what_they_say() {
    let app = ready(&[]);
    let scored = chat(
        &app,
        json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 6}),
    )
    .await
    .json();
    let content = scored["choices"][0]["logprobs"]["content"]
        .as_array()
        .unwrap()
        .clone();
    assert_eq!(
        content.len() as u64,
        scored["usage"]["completion_tokens"].as_u64().unwrap()
    );
    for score in &content {
        let (own, top) = (
            score["logprob"].as_f64().unwrap(),
            score["top_logprobs"].as_array().unwrap(),
        );
        // Greedy: the chosen token is the most likely one.
        assert!(
            own <= 0.0
                && top.len() == 3
                && top[0]["token"] == score["token"]
                && top[0]["logprob"] == score["logprob"]
        );
    }
    let streamed = chat(
        &app,
        json!({"logprobs": true, "top_logprobs": 3, "max_tokens": 6, "stream": true}),
    )
    .await;
    let parts = streamed.parts();
    let told: Vec<Value> = parts
        .iter()
        .filter_map(|part| part["choices"][0]["logprobs"]["content"].as_array())
        .flatten()
        .cloned()
        .collect();
    assert_eq!(told, content);
    let only = json!({"logit_bias": {"45": 100}, "max_tokens": 3});
    let text = |value: &Value| {
        value["choices"][0]["message"]["content"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let same = text(&chat(&app, only).await.json());
    assert!(
        same.len() == 3 && same.chars().all(|c| same.starts_with(c)),
        "{same:?}"
    );
    let penalised = json!({"logit_bias": {"45": 100, "46": 99}, "frequency_penalty": 2, "max_tokens": 3});
    let two = text(&chat(&app, penalised).await.json());
    assert!(
        two.chars().collect::<std::collections::HashSet<_>>().len() == 2,
        "{two:?}"
    );
    let several = json!({"n": 3, "temperature": 1.2, "seed": 4, "max_tokens": 8});
    let whole = chat(&app, several.clone()).await.json();
    assert_eq!(whole["choices"].as_array().unwrap().len(), 3);
    let mut asked = several;
    asked["stream"] = true.into();
    let parts = chat(&app, asked).await.parts();
    for i in 0..3_usize {
        let of = |part: &&Value| part["choices"][0]["index"] == i;
        let text: String = parts
            .iter()
            .filter(of)
            .filter_map(|part| part["choices"][0]["delta"]["content"].as_str())
            .collect();
        assert_eq!(
            text,
            whole["choices"][i]["message"]["content"].as_str().unwrap(),
            "{i}"
        );
    }
    let completion =
        json!({"model": MODEL, "prompt": "the", "max_tokens": 4, "temperature": 0, "logprobs": 2});
    let completion = post(&app, "/v1/completions", &completion).await.json();
    let logprobs = &completion["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap().len(), 4);
    assert_eq!(logprobs["text_offset"][0], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn reasoning_keeps_to_its_budget_and_comes_apart_from_the_answer() {
    let app = ready(&[]);
    let asked = json!({"thinking": {"type": "enabled", "budget_tokens": 9}, "max_tokens": 30});
    let whole = chat(&app, asked.clone()).await.json();
    let message = &whole["choices"][0]["message"];
    assert!(
        !message["reasoning_content"].as_str().unwrap().is_empty()
            && !message["content"].as_str().unwrap().is_empty()
    );
    let reasoned = whole["usage"]["completion_tokens_details"]["reasoning_tokens"]
        .as_u64()
        .unwrap();
    assert!((1..=10).contains(&reasoned), "{reasoned}");
    let mut asked = asked;
    asked["stream"] = true.into();
    let parts = chat(&app, asked).await.parts();
    let told = |name: &str| {
        parts
            .iter()
            .filter_map(|part| part["choices"][0]["delta"][name].as_str())
            .collect::<String>()
    };
    assert_eq!(
        told("reasoning_content"),
        message["reasoning_content"].as_str().unwrap()
    );
    assert_eq!(told("content"), message["content"].as_str().unwrap());
    let effort = chat(&app, json!({"reasoning_effort": "low", "max_tokens": 5}))
        .await
        .json();
    assert!(effort["choices"][0]["message"]["reasoning_content"].is_string());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_prefill_is_no_silence() {
    let options = ds4_server::AppOptions {
        keep_alive: std::time::Duration::ZERO,
        ..ds4_server::AppOptions::default()
    };
    let app = crate::support::ready_with(options);
    let words = "the cat that is on the mat and in the house ".repeat(40);
    let asked = json!({"stream": true, "messages": [{"role": "user", "content": words}]});
    let answer = chat(&app, asked).await;
    assert!(
        answer.headers[DECISION_HEADER]
            .to_str()
            .unwrap()
            .starts_with("pending")
    );
    assert!(
        answer.text.contains(": x-ds4-disaggregation: local; reason="),
        "{}",
        answer.text
    );
    assert!(answer.text.contains(": prefill "), "{}", answer.text);
    assert!(!answer.parts().is_empty());
    let refused = chat(&app, json!({"stream": true, "max_tokens": 99999})).await;
    assert!(
        refused.status == StatusCode::BAD_REQUEST || refused.text.contains("context_length_exceeded"),
        "{}",
        refused.text
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there_is_refused_by_name() {
    let app = ready(&[]);
    for (changes, param) in [
        (json!({"n": 0}), "n"),
        (json!({"temperature": "hot"}), "temperature"),
        (
            json!({"messages": [{"role": "robot", "content": "x"}]}),
            "messages",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
            "messages",
        ),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"tools": [{"type": "web_search"}]}), "tools"),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a\"b"}}]}),
            "tools",
        ),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"modalities": ["text", "audio"]}), "modalities"),
        (
            json!({"response_format": {"type": "json_schema"}}),
            "response_format",
        ),
        (
            json!({"stream_options": {"include_usage": true}}),
            "stream_options",
        ),
        (json!({"reasoning_effort": "heroic"}), "reasoning_effort"),
        (json!({"logit_bias": {"x": 1}}), "logit_bias"),
    ] {
        let answer = chat(&app, changes.clone()).await;
        assert_eq!(
            (answer.status, &answer.json()["error"]["param"]),
            (StatusCode::BAD_REQUEST, &json!(param)),
            "{changes}"
        );
    }
    let completion = post(
        &app,
        "/v1/completions",
        &json!({"model": MODEL, "prompt": ["a", "b"]}),
    )
    .await;
    assert_eq!(completion.json()["error"]["param"], "prompt");
    assert_eq!(get(&app, "/v1/models/micro").await.json()["id"], MODEL);
    assert_eq!(get(&app, "/v1/models/other").await.status, StatusCode::NOT_FOUND);
}
