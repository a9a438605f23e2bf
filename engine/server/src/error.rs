//! Errors, in the shape of each dialect.

use axum::Json;
use axum::response::{IntoResponse, Response};
use ds4_runtime::{EngineError, RouteError};
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};

/// Whose clients read the answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    OpenAi,
    Anthropic,
}

impl Shape {
    /// The dialect of a path.
    pub(crate) fn of(path: &str) -> Self {
        if path.starts_with("/v1/messages") {
            Self::Anthropic
        } else {
            Self::OpenAi
        }
    }
}

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) param: Option<String>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
        }
    }

    fn coded(self, code: &'static str) -> Self {
        Self {
            code: Some(code),
            ..self
        }
    }

    /// A request that names something wrong.
    pub(crate) fn invalid(param: &str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param.to_owned()),
            ..Self::body(message)
        }
    }

    /// Something that the real API has and this server does not.
    pub(crate) fn unsupported(param: &str, message: impl Into<String>) -> Self {
        Self::invalid(param, message).coded("unsupported_parameter")
    }

    /// A body that is no request.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn too_large(message: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let error = Self::new(
            StatusCode::NOT_FOUND,
            format!("model: expected {served:?}, found {asked:?}"),
        );
        Self {
            param: Some("model".into()),
            ..error.coded("model_not_found")
        }
    }

    /// A response that was never kept.
    pub(crate) fn unknown_response(id: &str) -> Self {
        let message = format!(
            "previous_response_id: responses are not kept by this server, so {id:?} is not known; send the whole input"
        );
        Self::invalid("previous_response_id", message).coded("previous_response_not_found")
    }

    pub(crate) fn unauthorized() -> Self {
        let message =
            "authorization: expected a valid key, as `Authorization: Bearer KEY` or `x-api-key: KEY`";
        Self::new(StatusCode::UNAUTHORIZED, message).coded("invalid_api_key")
    }

    pub(crate) fn rate_limited(message: impl Into<String>, retry_after: u64) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, message).coded("rate_limit_exceeded");
        Self {
            retry_after: Some(retry_after.max(1)),
            ..error
        }
    }

    pub(crate) fn loading(percent: u64) -> Self {
        let error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the model is loading: {percent} %"),
        );
        Self {
            retry_after: Some(5),
            ..error
        }
    }

    pub(crate) fn not_found(path: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("there is no {path} here"))
    }

    pub(crate) fn method(method: &http::Method, path: &str) -> Self {
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            format!("{path}: expected another method, found {method}"),
        )
    }

    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// The word for the status, in a dialect.
    fn kind(&self, shape: Shape) -> &'static str {
        match (shape, self.status.as_u16()) {
            (Shape::OpenAi, 429) => "rate_limit_error",
            (Shape::OpenAi, 400..=499) => "invalid_request_error",
            (Shape::OpenAi, _) => "server_error",
            (Shape::Anthropic, 401) => "authentication_error",
            (Shape::Anthropic, 404) => "not_found_error",
            (Shape::Anthropic, 413) => "request_too_large",
            (Shape::Anthropic, 429) => "rate_limit_error",
            (Shape::Anthropic, 400..=499) => "invalid_request_error",
            (Shape::Anthropic, 503) => "overloaded_error",
            (Shape::Anthropic, _) => "api_error",
        }
    }

    pub(crate) fn json(&self, shape: Shape) -> Value {
        let kind = self.kind(shape);
        match shape {
            Shape::OpenAi => {
                json!({"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}})
            }
            Shape::Anthropic => json!({"type": "error", "error": {"type": kind, "message": self.message}}),
        }
    }

    pub(crate) fn response(&self, shape: Shape) -> Response {
        let mut response = (self.status, Json(self.json(shape))).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Context { .. } => {
                Self::invalid("messages", message).coded("context_length_exceeded")
            }
            EngineError::EmptyPrompt => Self::invalid("messages", message),
            EngineError::Busy { retry_after, .. } => Self::rate_limited(message, retry_after.as_secs()),
            EngineError::Waited { retry_after, .. } => Self {
                retry_after: Some(retry_after.as_secs().max(1)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message).coded("overloaded")
            },
            EngineError::Deadline => {
                Self::new(StatusCode::GATEWAY_TIMEOUT, message).coded("deadline_exceeded")
            }
            EngineError::Budget { .. } => {
                Self::invalid("max_tokens", message).coded("context_length_exceeded")
            }
            EngineError::ShuttingDown | EngineError::Broken(_) => Self {
                retry_after: Some(1),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
            },
            EngineError::Route(RouteError::Full { retry_after, .. }) => Self {
                retry_after: Some(retry_after.as_secs().max(1)),
                ..Self::new(StatusCode::SERVICE_UNAVAILABLE, message).coded("disaggregation_full")
            },
            EngineError::Route(_) => {
                Self::new(StatusCode::BAD_GATEWAY, message).coded("disaggregation_failed")
            }
            EngineError::Model(_) | EngineError::Internal(_) => Self::internal(message),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_dialect_has_its_own_words() {
        let error = ApiError::invalid("n", "n: no");
        assert_eq!(error.json(Shape::OpenAi)["error"]["param"], "n");
        assert_eq!(
            error.json(Shape::Anthropic)["error"]["type"],
            "invalid_request_error"
        );
        let loading = ApiError::loading(3);
        assert_eq!(
            loading.json(Shape::Anthropic)["error"]["type"],
            "overloaded_error"
        );
        assert_eq!(loading.response(Shape::OpenAi).headers()["retry-after"], "5");
        assert_eq!(
            (Shape::of("/v1/messages/count_tokens"), Shape::of("/v1/models")),
            (Shape::Anthropic, Shape::OpenAi)
        );
    }
}
