//! Decode: the output pod alone, no network in the loop.

use std::sync::Arc;
use std::time::Instant;

use ds4_model::choice::{Choice, Chooser};
use ds4_model::{Hidden, ModelSlice};
use ds4_telemetry::metrics::Metrics;
use ds4_telemetry::names;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use super::Engine;
use super::held::Held;
use super::prompt::{Prompted, internal};
use crate::EngineError;
use crate::generate::{Event, FinishReason, Finished, Generate, Handed, Timings};

impl Engine {
    /// Decodes alone: no stage takes part from here on. Token by token, so that sessions alternate.
    pub(super) async fn decode(
        self: &Arc<Self>,
        request: Generate,
        prompted: Prompted,
        events: mpsc::Sender<Event>,
        started: Instant,
        timings: Timings,
    ) -> Result<(), EngineError> {
        let span = tracing::info_span!(
            "ds4.decode",
            otel.name = names::DECODE,
            tokens = tracing::field::Empty
        );
        if let Some(remote) = &prompted.held.remote {
            self.leases.hold(remote, self.options.stage_hold);
        }
        #[allow(clippy::cast_possible_truncation)] // bounded by the context
        let cached_tokens = prompted.cached as u32;
        let handed = Handed::of(&prompted.handoffs);
        let wanted = Wanted {
            tokens: request.max_tokens,
            ignore_eos: request.ignore_eos,
        };
        let decoder = Decoder {
            slice: Arc::clone(&self.slice),
            held: prompted.held,
            hidden: prompted.hidden,
            chooser: Chooser::new(&request.sampling, request.shaping),
            chosen: None,
        };
        let work = self.answer(wanted, decoder, &events, started, timings);
        let (decoder, reason, timings) = work.instrument(span).await?;
        self.keep(decoder.held).await;
        // A client that left does not need the end.
        let _ = events
            .send(Event::Finished(Finished {
                reason,
                timings,
                cached_tokens,
                handed,
            }))
            .await;
        Ok(())
    }

    async fn answer(
        &self,
        wanted: Wanted,
        mut decoder: Decoder,
        events: &mpsc::Sender<Event>,
        started: Instant,
        mut timings: Timings,
    ) -> Result<(Decoder, FinishReason, Timings), EngineError> {
        let mut first = None;
        let (mut count, mut reason) = (0_u32, FinishReason::Length);
        while count < wanted.tokens {
            let stepped = self.compute.run(move || decoder.next()).await.map_err(internal)?;
            let (next, Choice { token, logprobs }) = stepped?;
            decoder = next;
            first.get_or_insert_with(Instant::now);
            if !wanted.ignore_eos && self.options.eos.contains(&token) {
                reason = FinishReason::Stop;
                break;
            }
            count += 1;
            // A client that left ends the work here.
            let told = match logprobs {
                Some(logprobs) => events.send(Event::Logprobs(logprobs)).await,
                None => Ok(()),
            };
            if told.is_err() || events.send(Event::Token(token)).await.is_err() {
                break;
            }
        }
        Span::current().record("tokens", count);
        Metrics::global().generated_tokens.inc_by(u64::from(count));
        if let Some(first) = first {
            timings.first_token = first - started;
            timings.decode = first.elapsed();
            let seconds = timings.first_token.as_secs_f64();
            Metrics::global().first_token_seconds.observe(seconds);
        }
        Ok((decoder, reason, timings))
    }
}

/// How long an answer may become.
#[derive(Clone, Copy)]
struct Wanted {
    tokens: u32,
    ignore_eos: bool,
}

/// A session that has all it needs.
struct Decoder {
    slice: Arc<dyn ModelSlice>,
    held: Held,
    hidden: Hidden,
    chooser: Chooser,
    /// The token that the rows do not hold yet.
    chosen: Option<u32>,
}

impl Decoder {
    /// Computes the last token, if any, and chooses the next.
    fn next(mut self) -> Result<(Self, Choice), EngineError> {
        if let Some(token) = self.chosen {
            self.hidden = self.slice.embed(&[token])?;
            self.slice
                .forward(&[token], &mut self.hidden, self.held.kv.kv_mut())?;
            self.held.tokens.push(token);
        }
        let logits = self.slice.logits(&self.hidden, self.hidden.tokens() - 1)?;
        let choice = self.chooser.choose(&logits);
        let choice = choice.map_err(|error| EngineError::Internal(error.to_string()))?;
        self.chosen = Some(choice.token);
        Ok((self, choice))
    }
}
