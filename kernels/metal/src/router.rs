//! Routing tokens to experts.

use crate::error::{check, size};
use crate::{Device, MetalError, Shape, Slice};

/// `MOST_USED` of `metal/router.metal`.
const MOST_USED: usize = 16;
/// Threads of the block that groups, one per expert.
const MOST_EXPERTS: u32 = 1024;

/// How tokens find their experts.
#[derive(Clone, Copy, Debug)]
pub enum By<'a> {
    /// The best probabilities, with a bias per expert on the choice.
    Score(Option<Slice<'a, f32>>),
    /// The token's id: `[vocabulary][used]`. Ids must be below the vocabulary.
    Token {
        /// Experts of each id.
        table: Slice<'a, i32>,
        /// Ids, `[tokens]`.
        tokens: Slice<'a, u32>,
    },
}

/// The chosen experts on the device.
#[derive(Clone, Copy, Debug)]
pub struct Choices<'a> {
    /// `[tokens][used]`, ascending within a token.
    pub experts: Slice<'a, u32>,
    /// Their weights.
    pub weights: Slice<'a, f32>,
    /// Experts per token.
    pub used: usize,
}

/// Chooses from the router's `logits`, `[tokens][experts]`, which become probabilities.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn route(
    device: &Device,
    logits: Slice<'_, f32>,
    by: By<'_>,
    scale: f32,
    choices: Choices<'_>,
) -> Result<(), MetalError> {
    const NAME: &str = "route";
    let tokens = choices.experts.len() / choices.used;
    let count = logits.len() / tokens.max(1);
    check(NAME, "logits", tokens * count, logits.len())?;
    let weights = choices.weights.exactly(NAME, "weights", tokens * choices.used)?;
    if choices.used > MOST_USED.min(count) {
        let expected = MOST_USED.min(count);
        return Err(MetalError::Shape {
            operation: NAME,
            field: "experts of a token",
            expected,
            found: choices.used,
        });
    }
    // What a way of choosing does not read is given some other memory: a buffer must be there all the same.
    let (experts, biased) = (choices.experts, matches!(by, By::Score(Some(_))));
    let by_token = matches!(by, By::Token { .. });
    let (bias, table, ids) = match by {
        By::Score(None) => (logits, experts.cast(), experts),
        By::Score(Some(bias)) => (bias.exactly(NAME, "bias", count)?, experts.cast(), experts),
        By::Token { table, tokens: ids } => (logits, table, ids.exactly(NAME, "tokens", tokens)?),
    };
    device.route(
        Shape::blocks(tokens, 32),
        logits.into(),
        bias.into(),
        table.into(),
        ids.into(),
        experts.into(),
        weights.into(),
        size(NAME, "experts", count)?,
        size(NAME, "experts of a token", choices.used)?,
        biased.into(),
        by_token.into(),
        scale,
    )
}

/// Choices by expert: those of expert `e` are `order[starts[e]..starts[e + 1]]`, ascending.
#[derive(Clone, Copy, Debug)]
pub struct Groups<'a> {
    /// All choices.
    pub order: Slice<'a, u32>,
    /// One more than there are experts.
    pub starts: Slice<'a, u32>,
}

/// Sorts choices by expert.
///
/// # Errors
/// When the lengths do not fit or the launch fails.
pub fn group(device: &Device, experts: Slice<'_, u32>, groups: Groups<'_>) -> Result<(), MetalError> {
    const NAME: &str = "group choices";
    let order = groups.order.exactly(NAME, "order", experts.len())?;
    let (choices, count) = (
        size(NAME, "choices", experts.len())?,
        size(NAME, "starts", groups.starts.len())? - 1,
    );
    if count > MOST_EXPERTS {
        let (expected, found) = (MOST_EXPERTS as usize, count as usize);
        return Err(MetalError::Shape {
            operation: NAME,
            field: "experts",
            expected,
            found,
        });
    }
    let shape = Shape::blocks(1, count.next_multiple_of(32));
    device.group_choices(
        shape,
        experts.into(),
        order.into(),
        groups.starts.into(),
        choices,
        count,
    )
}
