//! The description of the API, for clients that read one.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde_json::Value;

use crate::app::App;

/// `openapi.json` with the name of the served model in it.
pub(crate) async fn document(State(app): State<Arc<App>>) -> Json<Value> {
    Json(describe(&app.options.model))
}

fn describe(model: &str) -> Value {
    let mut document: Value = serde_json::from_str(include_str!("openapi.json")).unwrap_or_default();
    document["info"]["version"] = env!("CARGO_PKG_VERSION").into();
    document["components"]["schemas"]["Model"]["enum"] = vec![model].into();
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference of a document, and whether it leads anywhere.
    fn dangling(document: &Value, value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(target)) = members.get("$ref")
                    && document.pointer(target.trim_start_matches('#')).is_none()
                {
                    found.push(target.clone());
                }
                members
                    .values()
                    .for_each(|member| dangling(document, member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| dangling(document, item, found)),
            _ => {}
        }
    }

    #[test]
    fn the_description_is_whole_and_names_the_model() {
        let document = describe("flash");
        assert_eq!(document["components"]["schemas"]["Model"]["enum"][0], "flash");
        let mut found = Vec::new();
        dangling(&document, &document, &mut found);
        assert_eq!(found, Vec::<String>::new());
        for path in [
            "/v1/chat/completions",
            "/v1/completions",
            "/v1/responses",
            "/v1/messages",
            "/v1/messages/count_tokens",
        ] {
            assert!(document["paths"][path]["post"].is_object(), "{path}");
        }
    }
}
