//! Answers that keep to a form: JSON by a schema, or calls of tools.
//!
//! The grammars are llguidance's; this crate gives them the model's vocabulary and writes the one for DSML.

mod calls;

use std::fmt;
use std::sync::Arc;

use ds4_model::choice::{Guide, GuideError};
use ds4_tokenizer::json::Json;
use ds4_tokenizer::{Special, Tokenizer};
use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, SimpleVob, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use thiserror::Error;

/// A form that cannot be kept to: the schema asks for something that is not understood, or for nothing at all.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{0}")]
pub struct GrammarError(pub String);

/// Makes grammars for one vocabulary.
pub struct Grammars {
    factory: ParserFactory,
    /// The token that marks tool markup.
    dsml: Option<u32>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammars").finish_non_exhaustive()
    }
}

impl Grammars {
    /// Takes the vocabulary. For a large one this takes a moment: keep the result.
    ///
    /// # Errors
    /// When the vocabulary has no end of turn.
    pub fn new(tokenizer: &Tokenizer) -> Result<Self, GrammarError> {
        let eos = tokenizer
            .special(Special::Eos)
            .ok_or_else(|| GrammarError("the vocabulary has no end of turn".into()))?;
        let count = u32::try_from(tokenizer.vocab_size()).map_err(|error| GrammarError(error.to_string()))?;
        let words: Vec<Vec<u8>> = (0..count).map(|id| word(tokenizer, id)).collect();
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(
            &TokRxInfo::new(count, eos),
            &words,
        )));
        let factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &[]);
        let mut factory = factory.map_err(|error| GrammarError(error.to_string()))?;
        factory.quiet();
        factory.limits_mut().verbose_errors = false;
        Ok(Self {
            factory,
            dsml: tokenizer.special(Special::Dsml),
        })
    }

    /// JSON that this schema allows, written as Python's `json.dumps` does; the end of the turn after it.
    ///
    /// # Errors
    /// When the schema has something that cannot be kept to, with its name.
    pub fn json(&self, schema: &Json) -> Result<Form, GrammarError> {
        self.form(TopLevelGrammar::from_json_schema(compact(schema)?))
    }

    /// Any JSON object.
    ///
    /// # Errors
    /// Never with a sound vocabulary.
    pub fn json_object(&self) -> Result<Form, GrammarError> {
        self.json(&Json::Object(vec![(
            "type".into(),
            Json::String("object".into()),
        )]))
    }

    /// Calls of these tools (objects with `name` and `parameters`): one, or as many as the model likes.
    ///
    /// # Errors
    /// When a tool's parameters have something that cannot be kept to.
    pub fn calls(&self, tools: &[&Json], many: bool) -> Result<Form, GrammarError> {
        let dsml = self
            .dsml
            .ok_or_else(|| GrammarError("the vocabulary has no token for tool markup".into()))?;
        self.form(TopLevelGrammar::from_lark(calls::grammar(tools, many, dsml)?))
    }

    fn form(&self, grammar: TopLevelGrammar) -> Result<Form, GrammarError> {
        let parser = self.factory.create_parser(grammar);
        let parser = parser.map_err(|error| GrammarError(format!("{error:#}")))?;
        Ok(Form(Matcher::new(Ok(parser))))
    }
}

/// Special tokens carry a byte that no text has, so that no text can become one.
fn word(tokenizer: &Tokenizer, id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id).unwrap_or_default();
    if tokenizer.is_special(id) {
        return [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat();
    }
    bytes.to_vec()
}

/// The schema with the one way to write it: space where the model saw it in training, and nowhere else, so that space cannot go on forever.
fn compact(schema: &Json) -> Result<Value, GrammarError> {
    let value = serde_json::to_value(schema).map_err(|error| GrammarError(error.to_string()))?;
    let form = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    match value {
        Value::Object(mut members) => {
            members.insert("x-guidance".into(), form);
            Ok(members.into())
        }
        Value::Bool(true) => Ok(json!({"x-guidance": form})),
        other => Err(GrammarError(format!("expected a JSON schema, found {other}"))),
    }
}

/// The state of one answer that keeps to a form.
pub struct Form(Matcher);

impl fmt::Debug for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Form").finish_non_exhaustive()
    }
}

impl Guide for Form {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
        let mask: SimpleVob = self
            .0
            .compute_mask_or_eos()
            .map_err(|error| GuideError(format!("{error:#}")))?;
        let mut any = false;
        for (token, logit) in logits.iter_mut().enumerate() {
            if token < mask.len() && mask.get(token) {
                any |= logit.is_finite();
            } else {
                *logit = f32::NEG_INFINITY;
            }
        }
        if any {
            Ok(())
        } else {
            Err(GuideError("no token may come next".into()))
        }
    }

    fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        if self.0.is_stopped() {
            return Ok(());
        }
        self.0
            .consume_token(token)
            .map_err(|error| GuideError(format!("{error:#}")))
    }
}
