//! Decode: the output pod alone, no network in the loop.

use std::sync::Arc;
use std::time::Instant;

use ds4_model::choice::{Choice, Chooser};
use ds4_model::{CompleteKv, Hidden, ModelSlice};
use ds4_telemetry::metrics::Metrics;
use ds4_telemetry::names;
use tokio::sync::mpsc;

use super::Engine;
use crate::EngineError;
use crate::generate::{Event, FinishReason, Finished, Generate, Timings};
use crate::route::Prefilled;

impl Engine {
    /// Decodes alone: no stage takes part from here on.
    pub(super) async fn decode(
        self: &Arc<Self>,
        request: Generate,
        prefilled: Prefilled,
        events: mpsc::Sender<Event>,
        started: Instant,
        mut timings: Timings,
    ) -> Result<(), EngineError> {
        let span = tracing::info_span!(
            "ds4.decode",
            otel.name = names::DECODE,
            tokens = tracing::field::Empty
        );
        let engine = Arc::clone(self);
        let work = move || {
            let _entered = span.enter();
            let mut first = None;
            let (mut count, mut reason) = (0_u32, FinishReason::Length);
            let mut decoder = Decoder {
                slice: &*engine.slice,
                kv: prefilled.kv,
                hidden: prefilled.hidden,
                chooser: Chooser::new(&request.sampling, request.shaping),
            };
            while count < request.max_tokens {
                let Choice { token, logprobs } = decoder.choose()?;
                first.get_or_insert_with(Instant::now);
                if !request.ignore_eos && engine.options.eos.contains(&token) {
                    reason = FinishReason::Stop;
                    break;
                }
                count += 1;
                // A client that left ends the work here.
                let told =
                    logprobs.map_or(Ok(()), |logprobs| events.blocking_send(Event::Logprobs(logprobs)));
                if told
                    .and_then(|()| events.blocking_send(Event::Token(token)))
                    .is_err()
                {
                    break;
                }
                if count < request.max_tokens {
                    decoder.step(token)?;
                }
            }
            span.record("tokens", count);
            Metrics::global().generated_tokens.inc_by(u64::from(count));
            if let Some(first) = first {
                timings.first_token = first - started;
                timings.decode = first.elapsed();
                Metrics::global()
                    .first_token_seconds
                    .observe(timings.first_token.as_secs_f64());
            }
            let _ = events.blocking_send(Event::Finished(Finished {
                reason,
                timings,
                cached_tokens: 0,
            }));
            Ok(())
        };
        let done = tokio::task::spawn_blocking(work).await;
        done.map_err(|error| EngineError::Internal(error.to_string()))?
    }
}

/// A session that has all it needs.
struct Decoder<'a> {
    slice: &'a dyn ModelSlice,
    kv: CompleteKv,
    hidden: Hidden,
    chooser: Chooser,
}

impl Decoder<'_> {
    fn choose(&mut self) -> Result<Choice, EngineError> {
        let logits = self.slice.logits(&self.hidden, self.hidden.tokens() - 1)?;
        let choice = self.chooser.choose(&logits);
        choice.map_err(|error| EngineError::Internal(error.to_string()))
    }

    fn step(&mut self, token: u32) -> Result<(), EngineError> {
        self.hidden = self.slice.embed(&[token])?;
        self.slice.forward(&[token], &mut self.hidden, self.kv.kv_mut())?;
        Ok(())
    }
}
