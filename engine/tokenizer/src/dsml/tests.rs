use proptest::prelude::*;

use super::*;

const TWO: &str = "Let me see.\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"weather\">\n\
    <｜DSML｜parameter name=\"city\" string=\"true\">Catania \"east\"\n</x></｜DSML｜parameter>\n\
    <｜DSML｜parameter name=\"days\" string=\"false\">[3, {\"a\": null}]</｜DSML｜parameter>\n</｜DSML｜invoke>\n\
    <｜DSML｜invoke name=\"now\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

/// Text, calls with their arguments, and the quality.
fn read(pieces: &[&str], complete: bool) -> (String, Vec<(String, String, bool)>, Quality) {
    let mut parser = ToolParser::default();
    let mut all: Vec<Piece> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
    all.extend(parser.finish(complete));
    let (mut shown, mut calls) = (String::new(), Vec::<(String, String, bool)>::new());
    for piece in all {
        match piece {
            Piece::Text(text) => shown.push_str(&text),
            Piece::Begin { name } => calls.push((name, String::new(), false)),
            Piece::Arguments(text) => calls.last_mut().expect("begun").1.push_str(&text),
            Piece::End => calls.last_mut().expect("begun").2 = true,
        }
    }
    (shown, calls, parser.quality())
}

fn call(name: &str, arguments: &str) -> (String, String, bool) {
    (name.into(), arguments.into(), true)
}

fn block(inside: &str) -> String {
    format!("<｜DSML｜tool_calls>\n{inside}\n</｜DSML｜tool_calls>")
}

#[test]
fn calls_are_read_and_the_line_ends_before_them_are_not_shown() {
    let arguments = r#"{"city": "Catania \"east\"\n</x>", "days": [3, {"a": null}]}"#;
    let expected = vec![call("weather", arguments), call("now", "{}")];
    assert_eq!(
        read(&[TWO], true),
        ("Let me see.".into(), expected, Quality::Sound)
    );
}

#[test]
fn arguments_stream_while_they_are_written() {
    let mut parser = ToolParser::default();
    let mut pieces = parser.push("<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"w\">\n<｜DSML｜parameter name=\"city\" string=\"true\">Cat");
    assert_eq!(pieces.pop(), Some(Piece::Arguments("{\"city\": \"Cat".into())));
    assert_eq!(parser.push("ania</"), [Piece::Arguments("ania".into())]);
    assert_eq!(parser.push("b>"), [Piece::Arguments("</b>".into())]);
}

#[test]
fn text_that_is_no_call_flows() {
    for text in [
        "a < b\n\n<tool_ca",
        "x<tool_calls>y",
        "\n\n\n",
        "<｜DSML｜tool",
        "plain",
        "if a <｜ b",
    ] {
        assert_eq!(
            read(&[text], true),
            (text.into(), vec![], Quality::None),
            "{text}"
        );
    }
}

#[test]
fn lost_marks_are_found_again() {
    for mark in ["DSML｜", ""] {
        let text = TWO.replace("｜DSML｜", mark).replace("</x>", "");
        let (shown, calls, quality) = read(&[&text], true);
        assert_eq!(
            (shown.as_str(), calls.len(), quality),
            ("Let me see.", 2, Quality::Repaired)
        );
    }
}

#[test]
fn missing_closers_are_added_when_the_model_ended() {
    let string = "<｜DSML｜parameter name=\"city\" string=\"true\">Rome";
    let invoke = "<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"w\">\n";
    let expected = vec![call("w", r#"{"city": "Rome"}"#)];
    for tail in [
        "",
        "</｜DSML｜parameter>",
        "</｜DSML｜parameter>\n</｜DSML｜invoke>",
        "</｜DSML｜parameter>\n</｜DSML｜tool_calls>",
    ] {
        let text = format!("{invoke}{string}{tail}");
        assert_eq!(
            read(&[&text], true),
            (String::new(), expected.clone(), Quality::Repaired),
            "{tail}"
        );
    }
    // Cut off by a limit: what is missing stays missing, so that nobody runs half a command.
    let cut = read(&[&format!("{invoke}{string}")], false);
    assert_eq!(cut.1, [("w".into(), r#"{"city": "Rome"#.into(), false)]);
}

#[test]
fn what_was_meant_is_repaired() {
    let parameter = |value: &str| {
        block(&format!(
            "<｜DSML｜invoke name=\"w\">\n<｜DSML｜parameter name=\"k\" string=\"false\">{value}</｜DSML｜parameter>\n</｜DSML｜invoke>"
        ))
    };
    let nested = "<｜DSML｜parameter name=\"a\" string=\"true\">x</｜DSML｜parameter><｜DSML｜parameter name=\"b\" string=\"false\">1</｜DSML｜parameter>";
    for (value, arguments) in [
        ("not json", r#"{"k": "not json"}"#),
        (nested, r#"{"k": {"a": "x", "b": 1}}"#),
    ] {
        let (_, calls, quality) = read(&[&parameter(value)], true);
        assert_eq!((calls, quality), (vec![call("w", arguments)], Quality::Repaired));
    }
    let chatter = block(
        "<｜DSML｜invoke name=\"a\">\nhm <b>\n</｜DSML｜invoke> and <｜DSML｜invoke name=\"b\">\n</｜DSML｜invoke>",
    );
    assert_eq!(read(&[&chatter], true).1, [call("a", "{}"), call("b", "{}")]);
}

#[test]
fn a_block_without_a_call_is_text() {
    for inside in ["I would call it", "<｜DSML｜invoke>\n</｜DSML｜invoke>"] {
        let text = format!("so\n\n{}", block(inside));
        assert_eq!(
            read(&[&text], true),
            (text.clone(), vec![], Quality::Malformed),
            "{inside}"
        );
    }
}

#[test]
fn written_calls_come_back() {
    let arguments = r#"{"s": "a\nb <c> \"d\"", "n": 1.5, "o": {"k": [true, null]}, "e": ""}"#;
    let written: String = parameters(arguments)
        .iter()
        .map(|p| {
            format!(
                "<｜DSML｜parameter name=\"{}\" string=\"{}\">{}</｜DSML｜parameter>\n",
                p.name, p.string, p.value
            )
        })
        .collect();
    let text = block(&format!(
        "<｜DSML｜invoke name=\"w\">\n{written}</｜DSML｜invoke>"
    ));
    assert_eq!(read(&[&text], true).1, [call("w", arguments)]);
    assert_eq!(parameters("[1]")[0].name, "arguments");
}

fn pieces_of(text: &str, cuts: &[usize]) -> Vec<String> {
    let letters: Vec<char> = text.chars().collect();
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (letters.len() + 1)).collect();
    cuts.extend([0, letters.len()]);
    cuts.sort_unstable();
    cuts.windows(2)
        .map(|w| letters[w[0]..w[1]].iter().collect())
        .collect()
}

proptest! {
    #[test]
    fn pieces_make_no_difference(cuts in prop::collection::vec(any::<usize>(), 0..12), broken in 0..TWO.chars().count(), drop in 0..20_usize) {
        let text: String = TWO.chars().enumerate().filter(|(i, _)| !(broken..broken + drop).contains(i)).map(|(_, c)| c).collect();
        let pieces = pieces_of(&text, &cuts);
        let pieces: Vec<&str> = pieces.iter().map(String::as_str).collect();
        prop_assert_eq!(read(&pieces, true), read(&[&text], true));
    }

    #[test]
    fn arguments_of_a_finished_call_are_json(noise in "(<|>|/|｜DSML｜|invoke|parameter| name=\"a\"| string=\"false\"|tool_calls|\n|x|\\{|1){0,60}") {
        let text = format!("<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"w\">\n{noise}");
        for (_, arguments, complete) in read(&[&text], true).1 {
            prop_assert!(complete);
            prop_assert!(serde_json::from_str::<Json>(&arguments).is_ok(), "{}", arguments);
        }
    }
}
