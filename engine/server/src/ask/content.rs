//! Contents that are a text or a list of parts.

use serde::Deserialize;
use serde_json::Value;

use crate::error::ApiError;

/// A text, or parts.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string or a list of parts")]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

/// A part of a content, of whatever dialect.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Part {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) text: Option<String>,
    #[serde(flatten)]
    pub(crate) rest: serde_json::Map<String, Value>,
}

impl Part {
    pub(crate) fn string(&self, name: &str) -> Option<&str> {
        self.rest.get(name).and_then(Value::as_str)
    }

    /// The text of a part of one of these kinds; anything else is refused by name.
    pub(crate) fn of(&self, at: &str, kinds: &[&str]) -> Result<&str, ApiError> {
        let wrong = |expected: String, found: &str| {
            let field = at.split(['.', '[']).next().unwrap_or_default();
            ApiError::invalid(field, format!("{at}: expected {expected}, found {found}"))
        };
        if !kinds.contains(&self.kind.as_str()) {
            let found = format!("{:?}; this model reads text only", self.kind);
            return Err(wrong(format!("a part of type {}", kinds.join(" or ")), &found));
        }
        self.text.as_deref().ok_or_else(|| wrong("a text".into(), "none"))
    }
}

impl Content {
    /// Parts of text as one; they are paragraphs, as in the model's own encoding.
    pub(crate) fn text(&self, at: &str, kinds: &[&str]) -> Result<String, ApiError> {
        match self {
            Self::Text(text) => Ok(text.clone()),
            Self::Parts(parts) => {
                let texts: Result<Vec<&str>, _> = parts
                    .iter()
                    .enumerate()
                    .map(|(i, part)| part.of(&format!("{at}[{i}]"), kinds))
                    .collect();
                Ok(texts?.join("\n\n"))
            }
        }
    }
}
