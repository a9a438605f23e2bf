//! Tools and formats as OpenAI's requests write them.

use ds4_tokenizer::json::Json;
use serde::Deserialize;
use serde_json::Value;

use crate::ask::{Format, ToolChoice, tool};
use crate::error::ApiError;

/// A function that the model may call.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Function {
    pub(super) name: String,
    description: Option<Json>,
    parameters: Option<Json>,
    strict: Option<bool>,
}

impl Function {
    pub(super) fn json(&self, at: &str) -> Result<Json, ApiError> {
        // Clients that leave `strict` to its default say so with null: it tells the model nothing.
        let told = |json: &Option<Json>| json.clone().filter(|json| *json != Json::Null);
        tool(
            at,
            &self.name,
            told(&self.description).as_ref(),
            told(&self.parameters).as_ref(),
            self.strict,
        )
    }
}

/// A tool of chat completions: the function is a member.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ChatTool {
    #[serde(rename = "type")]
    kind: String,
    function: Option<Function>,
}

/// A tool of responses: the function's members are the tool's.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct ResponseTool {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<Json>,
    parameters: Option<Json>,
    strict: Option<bool>,
}

fn not_a_function(at: &str, kind: &str) -> ApiError {
    ApiError::unsupported(
        "tools",
        format!("{at}.type: expected \"function\", found {kind:?}; the server runs no tools of its own"),
    )
}

impl ChatTool {
    pub(super) fn json(&self, i: usize) -> Result<Json, ApiError> {
        let at = format!("tools[{i}]");
        match &self.function {
            Some(function) if self.kind == "function" => function.json("tools"),
            None if self.kind == "function" => Err(ApiError::invalid(
                "tools",
                format!("{at}.function: expected a function, found none"),
            )),
            _ => Err(not_a_function(&at, &self.kind)),
        }
    }
}

impl ResponseTool {
    pub(super) fn json(&self, i: usize) -> Result<Json, ApiError> {
        if self.kind != "function" {
            return Err(not_a_function(&format!("tools[{i}]"), &self.kind));
        }
        let function = Function {
            name: self.name.clone().unwrap_or_default(),
            description: self.description.clone(),
            parameters: self.parameters.clone(),
            strict: self.strict,
        };
        function.json("tools")
    }
}

/// `auto`, `none`, `required`, or a function by name: `{"type": "function", "name": N}`, in chat completions with `function` between.
pub(super) fn choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    let Some(value) = value.filter(|value| !value.is_null()) else {
        return Ok(ToolChoice::Auto);
    };
    let name = value
        .get("function")
        .unwrap_or(value)
        .get("name")
        .and_then(Value::as_str);
    match (value.as_str(), value.get("type").and_then(Value::as_str), name) {
        (Some("auto"), ..) => Ok(ToolChoice::Auto),
        (Some("none"), ..) => Ok(ToolChoice::None),
        (Some("required"), ..) => Ok(ToolChoice::Required),
        (None, Some("function"), Some(name)) => Ok(ToolChoice::Named(name.to_owned())),
        _ => {
            let message =
                format!("tool_choice: expected auto, none, required or a function by name, found {value}");
            Err(ApiError::invalid("tool_choice", message))
        }
    }
}

/// A format, with the schema either in `json_schema` or beside the type.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct FormatField {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<SchemaField>,
    schema: Option<Json>,
}

#[derive(Clone, Debug, Deserialize)]
struct SchemaField {
    schema: Option<Json>,
}

impl FormatField {
    pub(super) fn format(&self, at: &str) -> Result<Format, ApiError> {
        let schema = self
            .json_schema
            .as_ref()
            .and_then(|field| field.schema.clone())
            .or_else(|| self.schema.clone());
        match (self.kind.as_str(), schema) {
            ("text", _) => Ok(Format::Text),
            ("json_object", _) => Ok(Format::JsonObject),
            ("json_schema", Some(schema @ (Json::Object(_) | Json::Bool(_)))) => Ok(Format::Schema(schema)),
            ("json_schema", _) => Err(ApiError::invalid(
                at,
                format!("{at}.json_schema.schema: expected a JSON schema, found none"),
            )),
            (other, _) => Err(ApiError::invalid(
                at,
                format!("{at}.type: expected text, json_object or json_schema, found {other:?}"),
            )),
        }
    }
}
