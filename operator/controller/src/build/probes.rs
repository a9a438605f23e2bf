//! When the kubelet calls a stage alive and ready.

use ds4_api::{GRPC_PORT, HEALTH_PORT};
use serde_json::{Value, json};

use super::pod::HTTP_PORT_NAME;

/// Probes give a pod this many periods of ten seconds to load: 45 minutes for the largest files on slow disks.
const LOADING_PERIODS: i32 = 270;

/// The kubelet may restart a pod only when its process is gone or stuck, never because it loads.
pub(super) fn probes(container: &mut Value, output: bool, encrypted: bool) {
    let alive = if output {
        json!({"httpGet": {"path": "/healthz", "port": HTTP_PORT_NAME}})
    } else {
        // The kubelet has no certificate of the deployment's authority.
        json!({"grpc": {"port": if encrypted { HEALTH_PORT } else { GRPC_PORT }}})
    };
    let ready = if output {
        json!({"httpGet": {"path": "/readyz", "port": HTTP_PORT_NAME}})
    } else {
        alive.clone()
    };
    let with = |mut probe: Value, period: i32, failures: i32| {
        probe["periodSeconds"] = period.into();
        probe["failureThreshold"] = failures.into();
        probe["timeoutSeconds"] = 5.into();
        probe
    };
    let start_period = if output { 1 } else { 2 };
    container["startupProbe"] = with(alive.clone(), start_period, LOADING_PERIODS * 10 / start_period);
    container["livenessProbe"] = with(alive, 10, 6);
    container["readinessProbe"] = with(ready, 2, 1);
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{Container, Probe};
    use serde_json::json;

    use crate::build::tests::{prepared, quickstart};

    /// The engine's container of every stage, after what a user wants of the first one's.
    fn containers(of_the_first: Option<serde_json::Value>) -> Vec<Container> {
        let mut deployment = quickstart();
        deployment.spec.pipeline.stages[0].pod_template =
            of_the_first.map(|container| json!({"spec": {"containers": [container]}}));
        let sets = prepared(&deployment).stateful_sets.into_iter();
        let pods = sets.filter_map(|set| set.spec.template.spec);
        pods.map(|mut pod| pod.containers.remove(0)).collect()
    }

    fn seconds(probe: &Probe) -> i32 {
        probe.period_seconds.unwrap_or(10) * probe.failure_threshold.unwrap_or(3)
    }

    /// kserve#5062 (a liveness probe that waits a fixed delay), dynamo#14735 (it kills what is merely slow): whoever loads has a budget
    /// of its own, without a delay for those that load quickly, and who stands still for a moment is not restarted.
    #[test]
    fn a_slow_load_has_a_startup_probe_and_no_probe_waits_a_fixed_delay() {
        for container in containers(None) {
            let startup = container.startup_probe.expect("a startup probe");
            let liveness = container.liveness_probe.expect("a liveness probe");
            let readiness = container.readiness_probe.expect("a readiness probe");
            assert!(seconds(&startup) >= 2700, "{startup:?}");
            assert!(seconds(&liveness) >= 60, "{liveness:?}");
            assert!(seconds(&readiness) <= 2, "{readiness:?}");
            for probe in [startup, liveness, readiness] {
                assert_eq!(probe.initial_delay_seconds, None);
            }
        }
    }

    /// aibrix#782, production-stack#742: the probes of a part of a group cannot be tuned.
    #[test]
    fn the_probes_of_one_stage_can_be_tuned() {
        let before = containers(None);
        let after = containers(Some(
            json!({"name": "ds4", "startupProbe": {"failureThreshold": 5000}, "livenessProbe": {"timeoutSeconds": 30}}),
        ));
        let (own, given) = (
            after[0].startup_probe.clone().expect("a probe"),
            before[0].startup_probe.clone().expect("a probe"),
        );
        assert_eq!(
            own,
            Probe {
                failure_threshold: Some(5000),
                ..given
            }
        );
        let liveness = after[0].liveness_probe.clone().expect("a probe");
        assert_eq!(liveness.timeout_seconds, Some(30));
        assert!(liveness.grpc.is_some(), "what probes it stays");
        for (after, before) in after[1..].iter().zip(&before[1..]) {
            assert_eq!(after.startup_probe, before.startup_probe);
            assert_eq!(after.liveness_probe, before.liveness_probe);
        }
    }
}
