use std::sync::LazyLock;

use ds4_gguf::Gguf;
use ds4_synth::{Dims, Preset};
use ds4_tokenizer::chat::{Chat, Thinking};
use ds4_tokenizer::json::Json;

use super::*;
use crate::ask::share::Share;
use crate::ask::{Format, Prompt, ToolChoice, Wishes};

static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.gguf");
    ds4_synth::write(&path, &Dims::preset(Preset::Micro), &mut |_, _| {}).expect("written");
    Tokenizer::from_gguf(&Gguf::open(&path).expect("sound")).expect("a vocabulary")
});

fn ask(tools: bool, thinking: Thinking) -> Ask {
    let tool = Json::Object(vec![("name".into(), Json::String("weather".into()))]);
    let chat = Chat {
        tools: if tools { vec![tool] } else { Vec::new() },
        thinking,
        ..Chat::question("q")
    };
    Ask {
        share: Share::default(),
        prompt: Prompt::Chat(chat),
        wishes: Wishes::default(),
        tool_choice: ToolChoice::Auto,
        parallel_calls: true,
        format: Format::Text,
        choices: 1,
        stream: false,
    }
}

/// What the model says, its special tokens as tokens.
fn tokens(text: &str) -> Vec<u32> {
    let mut rest = text;
    let mut all = Vec::new();
    while !rest.is_empty() {
        let found = Special::ALL
            .iter()
            .filter_map(|special| Some((rest.find(special.text())?, *special)))
            .min_by_key(|(at, _)| *at);
        let (at, special) = found.map_or((rest.len(), None), |(at, special)| (at, Some(special)));
        all.extend(TOKENIZER.encode(&rest[..at]));
        all.extend(special.and_then(|special| TOKENIZER.special(special)));
        rest = &rest[at + special.map_or(0, |special| special.text().len())..];
    }
    all
}

/// All parts, neighbours put together, and why it ended.
fn said(ask: &Ask, text: &str, reason: FinishReason) -> (Vec<Part>, Finish) {
    let mut turn = Turn::new(&TOKENIZER, ask);
    let mut all: Vec<Part> = Vec::new();
    for token in tokens(text) {
        if turn.ended().is_none() {
            all.extend(turn.token(token, None));
        }
    }
    if turn.ended().is_none() {
        all.extend(turn.finish(reason));
    }
    let mut merged: Vec<Part> = Vec::new();
    for part in all {
        match (merged.last_mut(), part) {
            (Some(Part::Text(last)), Part::Text(text))
            | (Some(Part::Reasoning(last)), Part::Reasoning(text))
            | (Some(Part::Arguments(last)), Part::Arguments(text)) => last.push_str(&text),
            (_, part) => merged.push(part),
        }
    }
    (merged, turn.ended().expect("ended").clone())
}

const CALLS: &str = "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Rome 😀</｜DSML｜parameter>\n\
    </｜DSML｜invoke>\n<｜DSML｜invoke name=\"now\">\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

fn call(name: &str, arguments: &str) -> [Part; 3] {
    [
        Part::Call { name: name.into() },
        Part::Arguments(arguments.into()),
        Part::CallEnd,
    ]
}

#[test]
fn reasoning_text_and_calls_come_apart() {
    let text = format!("Let me think.</think>I'll look.{CALLS}");
    let (parts, finish) = said(&ask(true, Thinking::High), &text, FinishReason::Stop);
    let mut expected = vec![
        Part::Reasoning("Let me think.".into()),
        Part::Text("I'll look.".into()),
    ];
    expected.extend(call("weather", "{\"city\": \"Rome 😀\"}"));
    expected.extend(call("now", "{}"));
    assert_eq!((parts, finish), (expected, Finish::ToolCalls));
}

#[test]
fn without_tools_markup_is_text() {
    let (parts, finish) = said(&ask(false, Thinking::Off), CALLS, FinishReason::Stop);
    assert_eq!((parts, finish), (vec![Part::Text(CALLS.into())], Finish::Stop));
}

#[test]
fn a_call_inside_of_reasoning_ends_it() {
    let (parts, finish) = said(
        &ask(true, Thinking::High),
        &format!("hm{CALLS}"),
        FinishReason::Stop,
    );
    assert_eq!(
        (&parts[0], finish),
        (&Part::Reasoning("hm".into()), Finish::ToolCalls)
    );
    assert_eq!(parts.len(), 7);
}

#[test]
fn one_call_is_enough_where_only_one_is_wanted() {
    let one = Ask {
        parallel_calls: false,
        ..ask(true, Thinking::Off)
    };
    let (parts, finish) = said(&one, CALLS, FinishReason::Stop);
    assert_eq!((parts.len(), finish), (3, Finish::ToolCalls));
}

#[test]
fn a_call_that_is_cut_off_stays_open_and_the_reason_is_the_limit() {
    let cut = &CALLS[..CALLS.find("Rome").expect("there") + 2];
    let (parts, finish) = said(&ask(true, Thinking::Off), cut, FinishReason::Length);
    let expected = vec![
        Part::Call {
            name: "weather".into(),
        },
        Part::Arguments("{\"city\": \"Ro".into()),
    ];
    assert_eq!((parts, finish), (expected, Finish::Length));
}

#[test]
fn stop_strings_end_the_text_and_not_the_reasoning() {
    let mut asked = ask(true, Thinking::High);
    asked.wishes.stops = vec!["END".into()];
    let (parts, finish) = said(&asked, "an END</think>so EN and END more", FinishReason::Stop);
    let expected = vec![Part::Reasoning("an END".into()), Part::Text("so EN and ".into())];
    assert_eq!((parts, finish), (expected, Finish::StopString("END".into())));
}

#[test]
fn turn_tokens_are_never_shown() {
    let (parts, _) = said(
        &ask(false, Thinking::Off),
        "a<｜User｜>b<｜Assistant｜>",
        FinishReason::Stop,
    );
    assert_eq!(parts, [Part::Text("ab".into())]);
}
