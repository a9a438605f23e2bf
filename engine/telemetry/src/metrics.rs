//! Every metric and its name.

use std::sync::LazyLock;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
pub use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// How a request was computed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DecisionLabel {
    /// `disaggregated`, `local`, `recomputed` or `failed`.
    pub decision: String,
}

/// Why something failed.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ReasonLabel {
    /// A short, fixed word.
    pub reason: String,
}

/// Which bytes: of connections to stages.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct WireLabel {
    /// `control`, `kv` or `hop`.
    pub link: String,
    /// `sent` or `received`, by the side that dialled.
    pub direction: String,
}

/// All metrics of the engine.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Finished requests by decision.
    pub requests: Family<DecisionLabel, Counter>,
    /// From the first to the last KV frame of a stage, in seconds.
    pub handoff_seconds: Histogram,
    /// KV bytes received.
    pub handoff_bytes: Counter,
    /// Bytes of connections to stages, with all that HTTP/2 and TLS add.
    pub wire_bytes: Family<WireLabel, Counter>,
    /// Handoffs that did not complete.
    pub handoff_failures: Family<ReasonLabel, Counter>,
    /// Prompt tokens computed.
    pub prompt_tokens: Counter,
    /// Tokens generated.
    pub generated_tokens: Counter,
    /// Tokens that the draft head guessed.
    pub draft_tokens: Counter,
    /// Of these, those that were right and saved a pass.
    pub draft_tokens_accepted: Counter,
    /// Time to first token in seconds.
    pub first_token_seconds: Histogram,
    /// Requests waiting.
    pub queue: Gauge,
    /// Sessions being computed.
    pub sessions: Gauge,
    /// Answers with tool calls, by how well they could be read.
    pub tool_calls: Family<ReasonLabel, Counter>,
    /// Sessions kept for later turns.
    pub cached_sessions: Gauge,
    /// KV bytes kept for later turns.
    pub cached_bytes: Gauge,
    /// Sessions that could not be written to disk or read from it.
    pub store_failures: Family<ReasonLabel, Counter>,
    /// What a prefill stage holds.
    pub stage: StageMetrics,
}

/// What a prefill stage holds.
#[derive(Clone, Debug, Default)]
pub struct StageMetrics {
    /// Sessions that chunks flow through.
    pub working: Gauge,
    /// Sessions kept under a lease.
    pub leased: Gauge,
    /// Sessions whose lease has lapsed, still there.
    pub idle: Gauge,
    /// KV bytes held or set aside.
    pub kv_bytes: Gauge,
}

impl StageMetrics {
    fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        for (name, help, gauge) in [
            (
                "ds4_stage_sessions_working",
                "Sessions that chunks flow through",
                &metrics.working,
            ),
            (
                "ds4_stage_sessions_leased",
                "Sessions kept under a lease",
                &metrics.leased,
            ),
            (
                "ds4_stage_sessions_idle",
                "Sessions whose lease has lapsed",
                &metrics.idle,
            ),
            (
                "ds4_stage_kv_bytes",
                "KV bytes held or set aside",
                &metrics.kv_bytes,
            ),
        ] {
            registry.register(name, help, Gauge::clone(gauge));
        }
        metrics
    }
}

/// Powers of two from a millisecond to about a minute.
fn seconds() -> Histogram {
    Histogram::new((0..17).map(|i| 0.001 * f64::from(1_u32 << i)))
}

impl Metrics {
    fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register(
            "ds4_requests",
            "Finished requests by decision",
            Family::clone(&requests),
        );
        let handoff_seconds = seconds();
        registry.register(
            "ds4_kv_handoff_seconds",
            "First to last KV frame of a stage",
            handoff_seconds.clone(),
        );
        let handoff_bytes = Counter::default();
        registry.register(
            "ds4_kv_handoff_bytes",
            "KV bytes received",
            Counter::clone(&handoff_bytes),
        );
        let wire_bytes = Family::default();
        registry.register(
            "ds4_wire_bytes",
            "Bytes of connections to stages, HTTP/2 and TLS included",
            Family::clone(&wire_bytes),
        );
        let handoff_failures = Family::default();
        registry.register(
            "ds4_kv_handoff_failures",
            "Handoffs that did not complete",
            Family::clone(&handoff_failures),
        );
        let prompt_tokens = Counter::default();
        registry.register(
            "ds4_prompt_tokens",
            "Prompt tokens computed",
            Counter::clone(&prompt_tokens),
        );
        let generated_tokens = Counter::default();
        registry.register(
            "ds4_generated_tokens",
            "Tokens generated",
            Counter::clone(&generated_tokens),
        );
        let draft_tokens = Counter::default();
        registry.register(
            "ds4_draft_tokens",
            "Tokens that the draft head guessed",
            Counter::clone(&draft_tokens),
        );
        let draft_tokens_accepted = Counter::default();
        registry.register(
            "ds4_draft_tokens_accepted",
            "Guesses of the draft head that saved a pass",
            Counter::clone(&draft_tokens_accepted),
        );
        let first_token_seconds = seconds();
        registry.register(
            "ds4_first_token_seconds",
            "Time to first token",
            first_token_seconds.clone(),
        );
        let queue = Gauge::default();
        registry.register("ds4_queue_requests", "Requests waiting", Gauge::clone(&queue));
        let sessions = Gauge::default();
        registry.register("ds4_sessions", "Sessions being computed", Gauge::clone(&sessions));
        let tool_calls = Family::default();
        registry.register(
            "ds4_tool_calls",
            "Answers with tool calls, by how well they could be read",
            Family::clone(&tool_calls),
        );
        let cached_sessions = Gauge::default();
        registry.register(
            "ds4_cached_sessions",
            "Sessions kept for later turns",
            Gauge::clone(&cached_sessions),
        );
        let cached_bytes = Gauge::default();
        registry.register(
            "ds4_cached_kv_bytes",
            "KV bytes kept for later turns",
            Gauge::clone(&cached_bytes),
        );
        let store_failures = Family::default();
        registry.register(
            "ds4_session_store_failures",
            "Sessions that could not be written or read",
            Family::clone(&store_failures),
        );
        let stage = StageMetrics::register(&mut registry);
        Self {
            cached_sessions,
            cached_bytes,
            store_failures,
            stage,
            registry,
            requests,
            handoff_seconds,
            handoff_bytes,
            wire_bytes,
            handoff_failures,
            prompt_tokens,
            generated_tokens,
            draft_tokens,
            draft_tokens_accepted,
            first_token_seconds,
            queue,
            sessions,
            tool_calls,
        }
    }

    /// The metrics of this process.
    #[must_use]
    pub fn global() -> &'static Self {
        static METRICS: LazyLock<Metrics> = LazyLock::new(Metrics::new);
        &METRICS
    }

    /// The exposition text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counted_requests_show_in_the_text_with_their_decision() {
        let label = DecisionLabel {
            decision: "disaggregated".into(),
        };
        Metrics::global().requests.get_or_create(&label).inc();
        let text = Metrics::global().render();
        assert!(
            text.contains("ds4_requests_total{decision=\"disaggregated\"} 1"),
            "{text}"
        );
        assert!(text.contains("ds4_kv_handoff_seconds_count 0"), "{text}");
    }
}
