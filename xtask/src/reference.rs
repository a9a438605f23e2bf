//! `docs/api.md`: every field of the resource, from the definition that the API server gets.

use std::collections::BTreeSet;
use std::fmt::Write;

use anyhow::{Context, Result};
use serde_json::Value;

const INTRODUCTION: &str = "\
# DS4Deployment, field by field

Generated from the types by `cargo xtask crds`; do not edit. `kubectl explain ds4.spec` says the same. Group `ds4.dev`, version `v1alpha1`, short name
`ds4`, subresources `status` and `scale`. Fields in **bold** are required where their parent is given. Reasons that appear in conditions are in
[operations.md](operations.md).
";

/// The reference of a definition, as the YAML that `cargo xtask crds` writes.
pub(crate) fn of(definition: &str) -> Result<String> {
    let definition: Value = serde_yaml::from_str(definition)?;
    let schema = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"];
    let mut text = INTRODUCTION.to_owned();
    for part in ["spec", "status"] {
        let about = schema
            .get(part)
            .with_context(|| format!("the definition has no {part}"))?;
        let _ = write!(text, "\n## {part}\n\n{}\n", paragraph(about));
        rules(&mut text, part, about);
        text.push_str("\n| field | type | default | what it is |\n|---|---|---|---|\n");
        rows(&mut text, part, about);
        text.push('\n');
    }
    Ok(format!("{}\n", text.trim_end()))
}

/// The fields under `path`, each with its own fields after it.
fn rows(text: &mut String, path: &str, schema: &Value) {
    let required: BTreeSet<&str> = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let (inner, list) = if field["type"] == "array" {
            (&field["items"], "[]")
        } else {
            (field, "")
        };
        let full = format!("{path}.{name}{list}");
        let shown = if required.contains(name.as_str()) {
            format!("**`{full}`**")
        } else {
            format!("`{full}`")
        };
        let default = field
            .get("default")
            .map_or_else(String::new, |value| format!("`{value}`"));
        let mut words = vec![paragraph(field), limits(field)];
        if !list.is_empty() {
            words.push(limits(inner));
        }
        words.retain(|part| !part.is_empty());
        let _ = writeln!(
            text,
            "| {shown} | {} | {} | {} |",
            kind(field),
            escape(&default),
            escape(&words.join(" "))
        );
        rows(text, &full, inner);
    }
}

fn kind(field: &Value) -> String {
    match field["type"].as_str() {
        Some("array") => format!("list of {}", kind(&field["items"])),
        Some("string") if field["format"] == "date-time" => "time".into(),
        Some(kind) => kind.into(),
        None if field["x-kubernetes-int-or-string"] == true => "integer or string".into(),
        None => "any".into(),
    }
}

fn paragraph(field: &Value) -> String {
    field["description"]
        .as_str()
        .unwrap_or_default()
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// What the schema demands, and the messages of its rules.
fn limits(field: &Value) -> String {
    let mut all = Vec::new();
    if let Some(values) = field["enum"].as_array() {
        let values: Vec<String> = values
            .iter()
            .filter(|value| !value.is_null())
            .map(|value| {
                format!(
                    "`{}`",
                    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
                )
            })
            .collect();
        all.push(format!("one of {}", values.join(", ")));
    }
    for (key, words) in [
        ("minimum", "at least"),
        ("maximum", "at most"),
        ("minLength", "characters at least"),
        ("maxLength", "characters at most"),
        ("minItems", "items at least"),
        ("maxItems", "items at most"),
    ] {
        if let Some(value) = field[key].as_f64() {
            all.push(format!("{words} {value}"));
        }
    }
    if let Some(pattern) = field["pattern"].as_str() {
        all.push(format!("matches `{pattern}`"));
    }
    let messages = field["x-kubernetes-validations"].as_array().into_iter().flatten();
    all.extend(
        messages
            .filter_map(|rule| rule["message"].as_str())
            .map(|message| format!("rule: {message}")),
    );
    if all.is_empty() {
        String::new()
    } else {
        format!("({})", all.join("; "))
    }
}

fn rules(text: &mut String, path: &str, schema: &Value) {
    for rule in schema["x-kubernetes-validations"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let _ = writeln!(
            text,
            "\n- `{path}`: {}",
            rule["message"].as_str().unwrap_or_default()
        );
    }
}

fn escape(text: &str) -> String {
    text.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_the_definition_is_described() {
        let text = of(&ds4_api::crd_yaml().expect("the definition")).expect("a reference");
        assert!(
            text.contains("| **`spec.model.source`** | object |")
                && text.contains("`status.stages[].loadedBytes`"),
            "{text}"
        );
        // Conditions are Kubernetes' own type and have its words.
        let bare: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with('|') && line.trim_end().ends_with("|  |"))
            .collect();
        assert!(bare.is_empty(), "fields without a word: {bare:#?}");
    }
}
