//! What the operator counts, at `/metrics`.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Why a reconciliation failed.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

/// What was written.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    kind: String,
}

/// All metrics of the operator.
#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    reconcile: Histogram,
    errors: Family<Reason, Counter>,
    writes: Family<Kind, Counter>,
    leader: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("ds4_operator");
        // 1 ms to 8 s.
        let reconcile = Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let (errors, writes, leader) = (Family::default(), Family::default(), Gauge::default());
        registry.register_with_unit(
            "reconcile",
            "Time of one reconciliation",
            Unit::Seconds,
            reconcile.clone(),
        );
        registry.register(
            "reconcile_errors",
            "Failed reconciliations by reason",
            errors.clone(),
        );
        registry.register(
            "writes",
            "Objects written to the API server by kind",
            writes.clone(),
        );
        registry.register("leader", "Whether this replica reconciles", leader.clone());
        Self {
            registry,
            reconcile,
            errors,
            writes,
            leader,
        }
    }

    pub(crate) fn reconciled(&self, took: Duration) {
        self.reconcile.observe(took.as_secs_f64());
    }

    pub(crate) fn failed(&self, reason: &'static str) {
        self.errors.get_or_create(&Reason { reason }).inc();
    }

    pub(crate) fn wrote(&self, kind: &str) {
        self.writes
            .get_or_create(&Kind {
                kind: kind.to_owned(),
            })
            .inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// In the OpenMetrics text format.
    pub(crate) fn render(&self) -> String {
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
    fn what_happened_is_counted() {
        let metrics = Metrics::new();
        metrics.reconciled(Duration::from_millis(3));
        metrics.failed("ApiError");
        metrics.wrote("StatefulSet");
        metrics.leads(true);
        let text = metrics.render();
        for line in [
            "ds4_operator_reconcile_seconds_count 1",
            "ds4_operator_reconcile_errors_total{reason=\"ApiError\"} 1",
            "ds4_operator_writes_total{kind=\"StatefulSet\"} 1",
            "ds4_operator_leader 1",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
