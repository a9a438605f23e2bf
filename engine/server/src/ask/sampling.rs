//! The wishes that OpenAI's requests have in common.

use std::collections::HashMap;

use ds4_model::sampling::Sampling;
use serde::Deserialize;

use super::{Wishes, random_seed};
use crate::error::ApiError;

/// One or several.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "expected one value or a list of them")]
pub(crate) enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T> OneOrMany<T> {
    pub(crate) fn into_vec(self) -> Vec<T> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

/// Fields of chat completions and completions.
#[derive(Clone, Debug, Default, Deserialize)]
pub(crate) struct Fields {
    pub(crate) model: String,
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    temperature: Option<f32>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    top_k: Option<i64>,
    seed: Option<i64>,
    stop: Option<OneOrMany<String>>,
    n: Option<u32>,
    logit_bias: Option<HashMap<String, f32>>,
    frequency_penalty: Option<f32>,
    presence_penalty: Option<f32>,
    ignore_eos: Option<bool>,
    // Accepted and without effect here: what they ask for happens at the provider's side only.
    #[allow(dead_code)]
    user: Option<String>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
struct StreamOptions {
    #[serde(default)]
    include_usage: Option<bool>,
}

/// A number of a range that is named in the error.
pub(crate) fn within(name: &str, value: Option<f32>, low: f32, high: f32) -> Result<Option<f32>, ApiError> {
    match value {
        Some(value) if !(low..=high).contains(&value) => Err(ApiError::invalid(
            name,
            format!("{name}: expected {low} to {high}, found {value}"),
        )),
        other => Ok(other),
    }
}

/// A limit of tokens: none is no limit, nothing is refused.
pub(crate) fn limit(name: &str, value: Option<u32>) -> Result<Option<u32>, ApiError> {
    match value {
        Some(0) => Err(ApiError::invalid(
            name,
            format!("{name}: expected at least 1, found 0"),
        )),
        other => Ok(other),
    }
}

/// Most stop strings; OpenAI's own limit is 4, other servers of open models take more.
const STOPS: usize = 16;

pub(crate) fn stops(name: &str, stops: Vec<String>) -> Result<Vec<String>, ApiError> {
    if stops.len() > STOPS {
        let message = format!("{name}: expected at most {STOPS} strings, found {}", stops.len());
        return Err(ApiError::invalid(name, message));
    }
    Ok(stops.into_iter().filter(|stop| !stop.is_empty()).collect())
}

/// Most answers to one request.
const MOST_CHOICES: u32 = 128;

impl Fields {
    pub(crate) fn check_model(&self, served: &str) -> Result<(), ApiError> {
        if self.model == served {
            return Ok(());
        }
        Err(ApiError::unknown_model(&self.model, served))
    }

    pub(crate) fn stream(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(crate) fn include_usage(&self) -> Result<bool, ApiError> {
        if self.stream_options.is_some() && !self.stream() {
            let message = "stream_options: expected only when stream is true";
            return Err(ApiError::invalid("stream_options", message));
        }
        Ok(self
            .stream_options
            .and_then(|options| options.include_usage)
            .unwrap_or(false))
    }

    pub(crate) fn choices(&self) -> Result<usize, ApiError> {
        match self.n {
            None => Ok(1),
            Some(n) if (1..=MOST_CHOICES).contains(&n) => Ok(n as usize),
            Some(n) => Err(ApiError::invalid(
                "n",
                format!("n: expected 1 to {MOST_CHOICES}, found {n}"),
            )),
        }
    }

    /// Logprobs are asked for differently by each surface: `top` says how many.
    pub(crate) fn wishes(&self, vocabulary: usize, top: Option<usize>) -> Result<Wishes, ApiError> {
        let top_p = within("top_p", self.top_p, 0.0, 1.0)?.unwrap_or(1.0);
        if top_p <= 0.0 {
            return Err(ApiError::invalid("top_p", "top_p: expected more than 0, found 0"));
        }
        let stop = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        Ok(Wishes {
            sampling: Sampling {
                temperature: within("temperature", self.temperature, 0.0, 2.0)?.unwrap_or(1.0),
                top_p,
                min_p: within("min_p", self.min_p, 0.0, 1.0)?.unwrap_or(0.0),
                top_k: self.top_k.and_then(|k| u32::try_from(k).ok()).unwrap_or(0),
                seed: self.seed.map_or_else(random_seed, i64::cast_unsigned),
            },
            bias: self.bias(vocabulary)?,
            frequency_penalty: within("frequency_penalty", self.frequency_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            presence_penalty: within("presence_penalty", self.presence_penalty, -2.0, 2.0)?.unwrap_or(0.0),
            logprobs: top,
            max_tokens: limit("max_completion_tokens", self.max_completion_tokens)?
                .or(limit("max_tokens", self.max_tokens)?),
            stops: stops("stop", stop)?,
            thinking_budget: None,
            ignore_eos: self.ignore_eos.unwrap_or(false),
        })
    }

    fn bias(&self, vocabulary: usize) -> Result<Vec<(u32, f32)>, ApiError> {
        let entry = |(key, value): (&String, &f32)| {
            let refused = |message| Err(ApiError::invalid("logit_bias", message));
            let Some(token) = key
                .parse::<u32>()
                .ok()
                .filter(|token| (*token as usize) < vocabulary)
            else {
                return refused(format!(
                    "logit_bias: expected token ids below {vocabulary}, found {key:?}"
                ));
            };
            if !(-100.0..=100.0).contains(value) {
                return refused(format!("logit_bias.{key}: expected -100 to 100, found {value}"));
            }
            Ok((token, *value))
        };
        let mut bias: Vec<(u32, f32)> = self
            .logit_bias
            .iter()
            .flatten()
            .map(entry)
            .collect::<Result<_, _>>()?;
        bias.sort_by_key(|(token, _)| *token);
        Ok(bias)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wishes(fields: &str) -> Result<Wishes, ApiError> {
        let fields: Fields = serde_json::from_str(&format!(r#"{{"model": "m", {fields}}}"#)).expect("fields");
        fields.wishes(300, None)
    }

    #[test]
    fn ranges_are_kept_and_named() {
        for (field, param) in [
            (r#""temperature": 3"#, "temperature"),
            (r#""top_p": 0"#, "top_p"),
            (r#""min_p": 1.5"#, "min_p"),
            (r#""max_tokens": 0"#, "max_tokens"),
            (r#""max_completion_tokens": 0"#, "max_completion_tokens"),
            (r#""frequency_penalty": -2.5"#, "frequency_penalty"),
            (r#""logit_bias": {"300": 1}"#, "logit_bias"),
            (r#""logit_bias": {"1": 101}"#, "logit_bias"),
        ] {
            assert_eq!(wishes(field).expect_err(field).param.as_deref(), Some(param));
        }
        let bias =
            wishes(r#""logit_bias": {"7": -100, "3": 1.5}, "max_completion_tokens": 5, "max_tokens": 9"#);
        let bias = bias.expect("sound");
        assert_eq!(
            (bias.bias, bias.max_tokens),
            (vec![(3, 1.5), (7, -100.0)], Some(5))
        );
    }
}
