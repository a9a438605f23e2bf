//! The grammar of DSML calls, in llguidance's dialect of Lark.
//!
//! What `string="true"` encloses is text up to the closing tag, whose mark is a token that text cannot hold; everything else is JSON.

use ds4_tokenizer::json::{Json, quoted};

use crate::GrammarError;

/// Longest text whose length is kept to.
const LONGEST: u64 = 4096;

pub(crate) fn grammar(tools: &[&Json], many: bool, dsml: u32) -> Result<String, GrammarError> {
    let mark = format!("<[{dsml}]>");
    let mut rules = vec![
        format!(
            "start: \"\\n\\n<\" {mark} \"tool_calls>\\n<\" call {}",
            if many { "(\"\\n<\" call)*" } else { "" }
        ) + &format!(" \"\\n</\" {mark} \"tool_calls>\""),
        format!(
            "call: {}",
            (0..tools.len())
                .map(|i| format!("call_{i}"))
                .collect::<Vec<_>>()
                .join(" | ")
        ),
        "text: (TEXT | \"<\" | \"</\")*".to_owned(),
        "TEXT: /[^<]+/".to_owned(),
    ];
    for (i, tool) in tools.iter().enumerate() {
        let name = tool.get("name").and_then(Json::as_str).unwrap_or_default();
        let (parameters, own) = parameters(i, tool, &mark)?;
        let open = quoted(&format!("invoke name=\"{name}\">\n"));
        rules.push(format!(
            "call_{i}: {mark} {open} {parameters} \"</\" {mark} \"invoke>\""
        ));
        rules.extend(own);
    }
    Ok(rules.join("\n"))
}

/// The use of a tool's parameters in its rule, and their own rules.
fn parameters(i: usize, tool: &Json, mark: &str) -> Result<(String, Vec<String>), GrammarError> {
    let schema = tool.get("parameters");
    let Some(Json::Object(properties)) = schema.and_then(|schema| schema.get("properties")) else {
        return Ok((String::new(), Vec::new()));
    };
    let required = |name: &str| match schema.and_then(|schema| schema.get("required")) {
        Some(Json::Array(names)) => names.iter().any(|required| required.as_str() == Some(name)),
        _ => false,
    };
    let (mut uses, mut rules) = (Vec::new(), Vec::new());
    for (k, (name, property)) in properties.iter().enumerate() {
        if name.contains(['"', '<', '>', '\n']) {
            return Err(GrammarError(format!(
                "parameters.properties: expected names without quotes and brackets, found {name:?}"
            )));
        }
        let rule = format!("parameter_{i}_{k}");
        uses.push(if required(name) {
            rule.clone()
        } else {
            format!("{rule}?")
        });
        let (string, value, own) = value(&rule, schema, property);
        let open = quoted(&format!("parameter name=\"{name}\" string=\"{string}\">"));
        rules.push(format!(
            "{rule}: \"<\" {mark} {open} {value} \"</\" {mark} \"parameter>\\n\""
        ));
        rules.extend(own);
    }
    Ok((uses.join(" "), rules))
}

/// Whether a value is text, its expression, and a rule of its own where it needs one.
fn value(rule: &str, schema: Option<&Json>, property: &Json) -> (bool, String, Option<String>) {
    let is_text = property.get("type").and_then(Json::as_str) == Some("string");
    if let (true, Some(Json::Array(values))) = (is_text, property.get("enum")) {
        let texts: Vec<String> = values
            .iter()
            .filter_map(Json::as_str)
            .filter(|text| !text.is_empty())
            .map(quoted)
            .collect();
        return (true, format!("({})", texts.join(" | ")), None);
    }
    let bound = |name: &str| match property.get(name) {
        Some(Json::Number(number)) => number.as_u64(),
        _ => None,
    };
    match (is_text, bound("maxLength")) {
        (true, Some(most)) if (1..=LONGEST).contains(&most) => {
            let least = bound("minLength").unwrap_or(0).clamp(1, most);
            let terminal = rule.to_uppercase();
            let optional = if bound("minLength").unwrap_or(0) == 0 {
                "?"
            } else {
                ""
            };
            (
                true,
                format!("{terminal}{optional}"),
                Some(format!("{terminal}: /[^<]{{{least},{most}}}/")),
            )
        }
        (true, _) => (true, "text".into(), None),
        (false, _) => (
            false,
            format!("%json {}", with_definitions(schema, property)),
            None,
        ),
    }
}

/// A property may point to definitions of the whole schema.
fn with_definitions(schema: Option<&Json>, property: &Json) -> String {
    let form = r#"{"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "}"#;
    let mut members = match property {
        Json::Object(members) => members.clone(),
        _ => Vec::new(),
    };
    for name in ["$defs", "definitions"] {
        let found = schema.and_then(|schema| schema.get(name)).cloned();
        members.extend(found.map(|definitions| (name.to_owned(), definitions)));
    }
    members.extend(serde_json::from_str(form).map(|form| ("x-guidance".to_owned(), form)));
    Json::Object(members).to_string()
}
