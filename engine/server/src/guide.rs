//! Which tokens an answer may be made of: a budget of reasoning.

use ds4_model::choice::{Guide, GuideError};
use ds4_tokenizer::Special;

use crate::app::Loaded;
use crate::ask::{Ask, Format, ToolChoice};
use crate::error::ApiError;

/// The guide that a request needs, if any.
pub(crate) fn build(ask: &Ask, loaded: &Loaded) -> Result<Option<Box<dyn Guide>>, ApiError> {
    if ask.format != Format::Text {
        return Err(ApiError::unsupported(
            "response_format",
            "response_format: expected text; other formats are not supported yet",
        ));
    }
    if matches!(ask.tool_choice, ToolChoice::Required | ToolChoice::Named(_)) {
        return Err(ApiError::unsupported(
            "tool_choice",
            "tool_choice: expected auto or none; forced calls are not supported yet",
        ));
    }
    let close = loaded
        .tokenizer
        .special(Special::ThinkClose)
        .filter(|_| ask.opens_reasoning());
    let guide = Answer {
        reasoning: close,
        left: ask.wishes.thinking_budget,
    };
    Ok((guide.reasoning.is_some() && guide.left.is_some()).then(|| Box::new(guide) as Box<dyn Guide>))
}

/// First reasoning, within its budget; then the answer.
#[derive(Debug)]
struct Answer {
    /// The token that ends reasoning, while there is reasoning.
    reasoning: Option<u32>,
    /// Tokens that reasoning may still have.
    left: Option<u32>,
}

impl Guide for Answer {
    fn restrict(&mut self, logits: &mut [f32]) -> Result<(), GuideError> {
        if let (Some(close), Some(0)) = (self.reasoning, self.left) {
            only(logits, close);
        }
        Ok(())
    }

    fn accept(&mut self, token: u32) -> Result<(), GuideError> {
        if self.reasoning == Some(token) {
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
