//! Which tokens an answer may be made of: reasoning within its budget, then the form that was asked for.

use ds4_grammar::{Form, GrammarError, Grammars};
use ds4_model::choice::{Guide, GuideError};
use ds4_tokenizer::Special;
use ds4_tokenizer::json::Json;

use crate::app::{App, Loaded};
use crate::ask::{Ask, Format, ToolChoice};
use crate::error::ApiError;

/// The guide that a request needs, if any.
pub(crate) fn build(app: &App, loaded: &Loaded, ask: &Ask) -> Result<Option<Box<dyn Guide>>, ApiError> {
    let reasoning = loaded
        .tokenizer
        .special(Special::ThinkClose)
        .filter(|_| ask.opens_reasoning());
    let form = form(app, loaded, ask)?;
    let budget = ask.wishes.thinking_budget.filter(|_| reasoning.is_some());
    if form.is_none() && budget.is_none() {
        return Ok(None);
    }
    let eos = loaded.engine.options().eos.clone();
    Ok(Some(Box::new(Answer {
        reasoning,
        left: budget,
        eos,
        form,
    })))
}

/// A forced call comes before any format: it is the answer.
fn form(app: &App, loaded: &Loaded, ask: &Ask) -> Result<Option<Form>, ApiError> {
    let grammars = || app.grammars(&loaded.tokenizer);
    let wrong = |param: &'static str| {
        move |error: GrammarError| ApiError::invalid(param, format!("{param}: {error}"))
    };
    let calls = |wanted: &dyn Fn(&Json) -> bool| {
        let tools: Vec<&Json> = ask.tools().iter().filter(|tool| wanted(tool)).collect();
        grammars()?
            .calls(&tools, ask.parallel_calls)
            .map_err(wrong("tools"))
            .map(Some)
    };
    match (&ask.tool_choice, &ask.format) {
        (ToolChoice::Required, _) => calls(&|_| true),
        (ToolChoice::Named(name), _) => calls(&|tool| tool.get("name").and_then(Json::as_str) == Some(name)),
        (_, Format::Schema(schema)) => grammars()?
            .json(schema)
            .map_err(wrong("response_format"))
            .map(Some),
        (_, Format::JsonObject) => grammars()?
            .json_object()
            .map_err(wrong("response_format"))
            .map(Some),
        (_, Format::Text) => Ok(None),
    }
}

impl App {
    /// Grammars over the model's vocabulary, made when the first request needs one.
    fn grammars(&self, tokenizer: &ds4_tokenizer::Tokenizer) -> Result<&Grammars, ApiError> {
        let made = self.grammars.get_or_init(|| Grammars::new(tokenizer));
        made.as_ref()
            .map_err(|error| ApiError::internal(error.to_string()))
    }
}

/// First reasoning, within its budget; then the answer, in its form.
#[derive(Debug)]
struct Answer {
    /// The token that ends reasoning, while there is reasoning.
    reasoning: Option<u32>,
    /// Tokens that reasoning may still have.
    left: Option<u32>,
    /// Tokens that end the turn.
    eos: Vec<u32>,
    form: Option<Form>,
}

impl Guide for Answer {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
        match (self.reasoning, &mut self.form) {
            (Some(close), _) if self.left == Some(0) => only(logits, close),
            // An answer that has a form has to come: reasoning cannot be the end of it.
            (Some(_), Some(_)) => self.eos.iter().for_each(|eos| ban(logits, *eos)),
            (Some(_), None) | (None, None) => {}
            (None, Some(form)) => return form.restrict(logits),
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        let Some(close) = self.reasoning else {
            return self.form.as_mut().map_or(Ok(()), |form| form.accept(token));
        };
        if token == close {
            self.reasoning = None;
        }
        self.left = self.left.map(|left| left.saturating_sub(1));
        Ok(())
    }
}

/// Leaves one token.
fn only(logits: &mut [f32], token: u32) {
    logits.fill(f32::NEG_INFINITY);
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = 0.0;
    }
}

fn ban(logits: &mut [f32], token: u32) {
    if let Some(logit) = logits.get_mut(token as usize) {
        *logit = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasoning_ends_with_its_budget_and_not_with_the_turn() {
        let mut answer = Answer {
            reasoning: Some(2),
            left: Some(1),
            eos: vec![3],
            form: None,
        };
        let mut logits = [1.0; 4];
        answer.restrict(&mut logits).expect("tokens");
        assert_eq!(logits, [1.0; 4]);
        answer.accept(0).expect("allowed");
        answer.restrict(&mut logits).expect("tokens");
        assert_eq!((logits[2], logits[0]), (0.0, f32::NEG_INFINITY));
        answer.accept(2).expect("allowed");
        assert_eq!((answer.reasoning, answer.left), (None, Some(0)));
        let mut free = [1.0; 4];
        answer.restrict(&mut free).expect("tokens");
        assert_eq!(free, [1.0; 4]);
    }
}
