//! Bodies as requests; what is wrong is named with its place.

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::DeserializeOwned;

use crate::error::ApiError;

/// Reads a body. The first error is the answer.
pub(crate) fn parse<T: DeserializeOwned>(body: &Bytes) -> Result<T, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let path = error.path().to_string();
        let inner = error.into_inner();
        if inner.is_data() && path != "." && path != "?" {
            let field = path.split(['.', '[']).next().unwrap_or_default().to_owned();
            return ApiError::invalid(&field, format!("{path}: {inner}"));
        }
        ApiError::body(format!("body: expected a JSON request: {inner}"))
    })?;
    deserializer
        .end()
        .map_err(|error| ApiError::body(format!("body: expected one JSON value: {error}")))?;
    Ok(parsed)
}

/// The body, or why it could not be read.
pub(crate) fn read(body: Result<Bytes, BytesRejection>) -> Result<Bytes, ApiError> {
    body.map_err(|rejection| {
        if rejection.status() == http::StatusCode::PAYLOAD_TOO_LARGE {
            let most = crate::serve::BODY_BYTES >> 20;
            return ApiError::too_large(format!("body: expected at most {most} MiB"));
        }
        ApiError::body(format!("body: {}", rejection.body_text()))
    })
}
