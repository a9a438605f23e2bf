//! Decode: the output pod alone, no network in the loop.

use std::sync::Arc;
use std::time::Instant;

use ds4_model::choice::Chooser;
use ds4_telemetry::metrics::Metrics;
use ds4_telemetry::names;
use tokio::sync::mpsc;
use tracing::{Instrument, Span};

use super::passes::{Answer, End, Until};
use super::prompt::Prompted;
use super::{Admitted, Engine};
use crate::EngineError;
use crate::compute::Lost;
use crate::generate::{Event, Finished, Generate, Handed, Timings};

impl Engine {
    /// Decodes alone: no stage takes part from here on. All answers that run take a token each in every pass.
    pub(super) async fn decode(
        self: &Arc<Self>,
        request: Generate,
        prompted: Prompted,
        events: mpsc::Sender<Event>,
        (started, mut timings): (Instant, Timings),
        admitted: Admitted<'_>,
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
        let until = Until {
            tokens: request.max_tokens,
            eos: if request.ignore_eos {
                Vec::new()
            } else {
                self.options.eos.clone()
            },
            deadline: request.deadline,
        };
        let chooser = Chooser::new(&request.sampling, request.shaping);
        let (held, hidden) = (prompted.held, &prompted.hidden);
        let (answer, ended) = Answer::new(
            &*self.slice,
            held,
            hidden,
            chooser,
            until,
            events.clone(),
            &self.compute,
        );
        self.compute.join(answer);
        let work = async {
            let end = ended.await;
            Span::current().record("tokens", end.as_ref().map_or(0, |end| end.count));
            end
        };
        let End {
            held,
            result,
            count,
            first,
            guesses,
        } = work
            .instrument(span)
            .await
            .map_err(|_| EngineError::Internal(Lost.to_string()))?;
        Metrics::global().generated_tokens.inc_by(u64::from(count));
        if let Some(first) = first {
            timings.first_token = first - started;
            timings.decode = first.elapsed();
            let seconds = timings.first_token.as_secs_f64();
            Metrics::global().first_token_seconds.observe(seconds);
        }
        // What was set aside for the session is free for it at rest.
        drop(admitted);
        if let Some(held) = held {
            self.keep(held).await;
        }
        let finished = Finished {
            reason: result?,
            timings,
            cached_tokens,
            handed,
            guesses,
        };
        // A client that left does not need the end.
        let _ = events.send(Event::Finished(finished)).await;
        Ok(())
    }
}
