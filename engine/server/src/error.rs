//! Errors in OpenAI's shape.

use axum::Json;
use axum::response::{IntoResponse, Response};
use ds4_runtime::EngineError;
use http::{HeaderValue, StatusCode, header};
use serde_json::json;

/// What a client is told.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) message: String,
    pub(crate) kind: &'static str,
    pub(crate) param: Option<&'static str>,
    pub(crate) code: Option<&'static str>,
    pub(crate) retry_after: Option<u64>,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
            kind,
            param: None,
            code: None,
            retry_after: None,
        }
    }

    /// A request that names something wrong.
    pub(crate) fn invalid(param: &'static str, message: impl Into<String>) -> Self {
        Self {
            param: Some(param),
            ..Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
        }
    }

    /// A body that is no request.
    pub(crate) fn body(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    pub(crate) fn unknown_model(asked: &str, served: &str) -> Self {
        let message = format!("model: expected {served:?}, found {asked:?}");
        let error = Self::new(StatusCode::NOT_FOUND, "invalid_request_error", message);
        Self {
            param: Some("model"),
            code: Some("model_not_found"),
            ..error
        }
    }

    pub(crate) fn unauthorized() -> Self {
        let error = Self::new(
            StatusCode::UNAUTHORIZED,
            "invalid_request_error",
            "authorization: expected a valid bearer key",
        );
        Self {
            code: Some("invalid_api_key"),
            ..error
        }
    }

    pub(crate) fn loading(percent: u64) -> Self {
        let error = Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server_error",
            format!("the model is loading: {percent} %"),
        );
        Self {
            retry_after: Some(5),
            ..error
        }
    }

    pub(crate) fn not_found(path: &str) -> Self {
        Self::new(
            StatusCode::NOT_FOUND,
            "invalid_request_error",
            format!("there is no {path} here"),
        )
    }

    pub(crate) fn as_json(&self) -> serde_json::Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<&EngineError> for ApiError {
    fn from(error: &EngineError) -> Self {
        let message = error.to_string();
        match error {
            EngineError::Context { .. } => Self {
                code: Some("context_length_exceeded"),
                ..Self::invalid("messages", message)
            },
            EngineError::EmptyPrompt => Self::invalid("messages", message),
            EngineError::Busy { retry_after, .. } => {
                let busy = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message);
                Self {
                    code: Some("rate_limit_exceeded"),
                    retry_after: Some(retry_after.as_secs().max(1)),
                    ..busy
                }
            }
            EngineError::ShuttingDown => Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", message),
            EngineError::Route(_) => Self {
                code: Some("disaggregation_failed"),
                ..Self::new(StatusCode::BAD_GATEWAY, "server_error", message)
            },
            EngineError::Model(_) | EngineError::Internal(_) => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", message)
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.as_json())).into_response();
        if let Some(seconds) = self.retry_after {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}
