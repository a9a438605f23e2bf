//! What a request shares the machine by: whose it is, how urgent, and when it is too late.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use ds4_runtime::{Flow, Priority};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::Value;

use super::body::parse;
use crate::error::ApiError;
use crate::keys::given;

/// After so many seconds the client no longer wants the answer.
const TIMEOUT_HEADER: &str = "x-ds4-timeout";

/// The fields of all dialects that say whose a request is and how urgent.
#[derive(Clone, Debug, Default, Deserialize)]
struct Fields {
    service_tier: Option<Value>,
    user: Option<Value>,
    safety_identifier: Option<Value>,
    metadata: Option<Value>,
}

/// What the body says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Share {
    /// The client's own user.
    user: Option<String>,
    priority: Priority,
}

impl Share {
    /// Reads a body that was understood.
    pub(crate) fn read(body: &Bytes) -> Result<Self, ApiError> {
        let fields: Fields = parse(body)?;
        let of_metadata = fields
            .metadata
            .as_ref()
            .and_then(|metadata| metadata.get("user_id"));
        let user = [
            fields.user.as_ref(),
            fields.safety_identifier.as_ref(),
            of_metadata,
        ];
        let user = user.into_iter().flatten().find_map(Value::as_str);
        Ok(Self {
            user: user.map(str::to_owned),
            priority: priority(fields.service_tier.as_ref())?,
        })
    }

    /// A key is one client; without keys the users that requests name are told apart.
    pub(crate) fn flow(&self, headers: &HeaderMap) -> Flow {
        let client = given(headers)
            .filter(|key| !key.is_empty())
            .or(self.user.as_deref());
        Flow {
            client: client.map_or(0, number),
            priority: self.priority,
        }
    }
}

fn number(client: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    client.hash(&mut hasher);
    hasher.finish()
}

/// The words of both APIs; what they sell as faster or cheaper is a larger or smaller share here.
fn priority(tier: Option<&Value>) -> Result<Priority, ApiError> {
    match tier {
        None | Some(Value::Null) => Ok(Priority::Normal),
        Some(tier) => match tier.as_str() {
            Some("auto" | "default" | "scale" | "standard_only") => Ok(Priority::Normal),
            Some("flex") => Ok(Priority::Low),
            Some("priority") => Ok(Priority::High),
            _ => {
                let message = format!("service_tier: expected auto, default, flex or priority, found {tier}");
                Err(ApiError::invalid("service_tier", message))
            }
        },
    }
}

/// When it is too late.
pub(crate) fn deadline(headers: &HeaderMap, now: Instant) -> Result<Option<Instant>, ApiError> {
    let Some(value) = headers.get(TIMEOUT_HEADER) else {
        return Ok(None);
    };
    let seconds = value
        .to_str()
        .ok()
        .and_then(|text| text.trim().parse::<f64>().ok());
    let time = seconds
        .filter(|seconds| *seconds > 0.0)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let deadline = time.and_then(|time| now.checked_add(time)).ok_or_else(|| {
        let message = format!("{TIMEOUT_HEADER}: expected seconds, found {value:?}");
        ApiError::invalid(TIMEOUT_HEADER, message)
    })?;
    Ok(Some(deadline))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(body: &str) -> Result<Share, ApiError> {
        Share::read(&Bytes::from(body.to_owned()))
    }

    #[test]
    fn clients_are_keys_or_users_and_tiers_are_shares() {
        let (key, none) = (
            HeaderMap::from_iter([(
                http::header::AUTHORIZATION,
                http::HeaderValue::from_static("Bearer k"),
            )]),
            HeaderMap::new(),
        );
        let ann = share(r#"{"user": "ann", "service_tier": "flex"}"#).expect("sound");
        let same = share(r#"{"metadata": {"user_id": "ann"}}"#).expect("sound");
        let bob = share(r#"{"safety_identifier": "bob", "service_tier": "priority"}"#).expect("sound");
        assert_eq!(ann.flow(&none).client, same.flow(&none).client);
        assert_ne!(ann.flow(&none).client, bob.flow(&none).client);
        assert_eq!(
            ann.flow(&key).client,
            bob.flow(&key).client,
            "a key is one client"
        );
        assert_eq!(
            (ann.flow(&none).priority, bob.flow(&none).priority),
            (Priority::Low, Priority::High)
        );
        assert_eq!(share("{}").expect("sound").flow(&none), Flow::default());
        assert_eq!(
            share(r#"{"service_tier": 1}"#)
                .expect_err("a number")
                .param
                .as_deref(),
            Some("service_tier")
        );
    }

    #[test]
    fn a_deadline_is_seconds_from_now() {
        let headers = |value: &'static str| {
            HeaderMap::from_iter([(
                http::HeaderName::from_static(TIMEOUT_HEADER),
                http::HeaderValue::from_static(value),
            )])
        };
        let now = Instant::now();
        assert_eq!(deadline(&HeaderMap::new(), now), Ok(None));
        assert_eq!(
            deadline(&headers("1.5"), now),
            Ok(Some(now + Duration::from_millis(1500)))
        );
        for wrong in ["0", "-1", "soon", "NaN", "inf", "1e300"] {
            assert_eq!(
                deadline(&headers(wrong), now).expect_err(wrong).status.as_u16(),
                400
            );
        }
    }
}
