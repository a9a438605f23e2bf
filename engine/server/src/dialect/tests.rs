//! The same answer in every dialect: thought, text, a call, another call.

use super::*;

fn parts() -> Vec<Part> {
    let call = |name: &str| Part::Call { name: name.into() };
    vec![
        Part::Reasoning("hm".into()),
        Part::Text("I'll ".into()),
        Part::Text("look.".into()),
        call("weather"),
        Part::Arguments("{\"city\": ".into()),
        Part::Arguments("\"Rome\"}".into()),
        Part::CallEnd,
        call("now"),
        Part::Arguments("{}".into()),
        Part::CallEnd,
    ]
}

fn streamed(mut dialect: impl Dialect) -> Vec<(Option<&'static str>, Value)> {
    let usage = Usage {
        prompt: 9,
        cached: 4,
        completion: 7,
        reasoned: 1,
    };
    let mut frames = dialect.begin(usage);
    parts()
        .into_iter()
        .for_each(|part| frames.extend(dialect.part(0, part, Vec::new())));
    frames.extend(dialect.end_choice(0, &Finish::ToolCalls, Vec::new()));
    frames.extend(dialect.end(usage));
    let event = |frame| match frame {
        Frame::Event(name, value) => Some((name, value)),
        Frame::Comment(_) | Frame::Done => None,
    };
    frames.into_iter().filter_map(event).collect()
}

fn whole(mut dialect: impl Dialect) -> Value {
    let mut answer = Whole {
        finish: Finish::ToolCalls,
        ..Whole::default()
    };
    parts().into_iter().for_each(|part| answer.add(part));
    dialect.whole(
        vec![answer],
        Usage {
            prompt: 9,
            cached: 4,
            completion: 7,
            reasoned: 1,
        },
    )
}

fn app() -> std::sync::Arc<crate::App> {
    crate::App::new(crate::AppOptions {
        model: "m".into(),
        ..crate::AppOptions::default()
    })
}

#[test]
fn chat_completions_number_the_calls() {
    let chat = || crate::openai::chat::ChatCompletion::new(&app(), 1, false, true);
    let value = whole(chat());
    let message = &value["choices"][0]["message"];
    assert_eq!(
        (&message["content"], &message["reasoning_content"]),
        (&json!("I'll look."), &json!("hm"))
    );
    assert_eq!(
        message["tool_calls"][0]["function"],
        json!({"name": "weather", "arguments": "{\"city\": \"Rome\"}"})
    );
    assert_eq!(value["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(value["usage"]["prompt_tokens_details"]["cached_tokens"], 4);
    let events = streamed(chat());
    let calls: Vec<&Value> = events
        .iter()
        .map(|(_, event)| &event["choices"][0]["delta"]["tool_calls"][0])
        .filter(|call| !call.is_null())
        .collect();
    let arguments = |index: usize| {
        calls
            .iter()
            .filter(|call| call["index"] == index)
            .filter_map(|call| call["function"]["arguments"].as_str())
            .collect::<String>()
    };
    assert_eq!(
        (arguments(0).as_str(), arguments(1).as_str()),
        ("{\"city\": \"Rome\"}", "{}")
    );
    // The id and the name come once, with the beginning of each call.
    assert_eq!(
        calls
            .iter()
            .filter(|call| call["id"].is_string() && call["function"]["name"].is_string())
            .count(),
        2
    );
    assert_eq!(events.last().expect("usage").1["usage"]["completion_tokens"], 7);
}

#[test]
fn messages_have_a_block_for_each_step() {
    let value = whole(crate::anthropic::Answer::new(&app()));
    let kinds: Vec<&str> = value["content"]
        .as_array()
        .expect("blocks")
        .iter()
        .filter_map(|block| block["type"].as_str())
        .collect();
    assert_eq!(kinds, ["thinking", "text", "tool_use", "tool_use"]);
    assert_eq!(
        (&value["content"][2]["input"], &value["stop_reason"]),
        (&json!({"city": "Rome"}), &json!("tool_use"))
    );
    assert_eq!(
        (
            &value["usage"]["input_tokens"],
            &value["usage"]["cache_read_input_tokens"]
        ),
        (&json!(5), &json!(4))
    );
    let events = streamed(crate::anthropic::Answer::new(&app()));
    let of = |name: &str| {
        events
            .iter()
            .filter(|(event, _)| *event == Some(name))
            .map(|(_, data)| data)
            .collect::<Vec<_>>()
    };
    let starts = of("content_block_start");
    assert_eq!(
        starts
            .iter()
            .map(|start| start["index"].as_u64())
            .collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2), Some(3)]
    );
    assert_eq!(of("content_block_stop").len(), 4);
    let input: String = of("content_block_delta")
        .iter()
        .filter(|delta| delta["index"] == 2)
        .filter_map(|delta| delta["delta"]["partial_json"].as_str())
        .collect();
    assert_eq!(input, "{\"city\": \"Rome\"}");
    assert!(
        of("content_block_delta")
            .iter()
            .any(|delta| delta["delta"]["type"] == "signature_delta")
    );
}

#[test]
fn responses_have_an_item_for_each_step() {
    let responses = || crate::openai::responses_events::Responses::new("m", serde_json::Map::new(), false);
    let value = whole(responses());
    let kinds: Vec<&str> = value["output"]
        .as_array()
        .expect("items")
        .iter()
        .filter_map(|item| item["type"].as_str())
        .collect();
    assert_eq!(kinds, ["reasoning", "message", "function_call", "function_call"]);
    assert_eq!(value["output"][2]["arguments"], "{\"city\": \"Rome\"}");
    let events = streamed(responses());
    let done: Vec<&Value> = events
        .iter()
        .filter(|(name, _)| *name == Some("response.output_item.done"))
        .map(|(_, data)| data)
        .collect();
    assert_eq!(
        done.iter()
            .map(|event| event["output_index"].as_u64())
            .collect::<Vec<_>>(),
        [Some(0), Some(1), Some(2), Some(3)]
    );
    let last = &events.last().expect("an end").1;
    assert_eq!(
        (
            &last["type"],
            &last["response"]["output"].as_array().map(Vec::len)
        ),
        (&json!("response.completed"), &Some(4))
    );
    let added = events
        .iter()
        .filter(|(name, _)| *name == Some("response.output_item.added"))
        .count();
    assert_eq!(added, 4);
}

#[test]
fn a_cut_off_call_has_no_object_in_messages() {
    let mut answer = Whole::default();
    answer.add(Part::Call {
        name: "weather".into(),
    });
    answer.add(Part::Arguments("{\"city\": \"Ro".into()));
    let value = crate::anthropic::Answer::new(&app()).whole(vec![answer], Usage::default());
    assert_eq!(
        (&value["content"][0]["input"], &value["stop_reason"]),
        (&json!({}), &json!("max_tokens"))
    );
}
