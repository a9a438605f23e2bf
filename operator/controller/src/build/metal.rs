//! A stage on a Mac: a native process on a node outside the pod network, with the node's address and ports.

use ds4_api::{Backend, Stage};
use serde_json::{Value, json};

/// The device, the taint and the label of Macs (`ds4-runner` sets them).
const METAL: &str = "ds4.dev/metal";

/// What the engine is told.
pub(super) fn arguments(stage: &Stage) -> Vec<String> {
    match stage.backend {
        Backend::Metal => vec!["--backend".into(), "metal".into()],
        Backend::CPU | Backend::CUDA => Vec::new(),
    }
}

/// Binds the pod of a Metal stage to a Mac with a free device, and its ports to that machine's.
pub(super) fn place(stage: &Stage, template: &mut Value) {
    if stage.backend != Backend::Metal {
        return;
    }
    let pod = &mut template["spec"];
    pod["nodeSelector"]["kubernetes.io/os"] = "darwin".into();
    pod["tolerations"] = json!([{"key": METAL, "operator": "Exists", "effect": "NoSchedule"}]);
    // One engine has the device; the scheduler counts it.
    pod["containers"][0]["resources"]["limits"][METAL] = "1".into();
    for list in ["initContainers", "containers"] {
        for container in pod[list].as_array_mut().into_iter().flatten() {
            for port in container["ports"].as_array_mut().into_iter().flatten() {
                port["hostPort"] = port["containerPort"].clone();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::quickstart;
    use crate::build::{Defaults, Prepared, build};
    use ds4_api::{DS4Deployment, Names};
    use std::net::IpAddr;

    fn prepared(deployment: &DS4Deployment, outside: &[IpAddr]) -> Prepared {
        let defaults = Defaults {
            image: "ds4:test".into(),
            pull_policy: "Never".into(),
        };
        build(deployment, &Names::new("quickstart", "llm"), &defaults, outside).expect("sound")
    }

    fn on_a_mac() -> DS4Deployment {
        let mut deployment = quickstart();
        deployment.spec.pipeline.stages[0].backend = Backend::Metal;
        deployment
    }

    #[test]
    fn a_metal_stage_asks_for_a_macs_device_its_taint_and_its_ports() {
        let objects = prepared(&on_a_mac(), &[]);
        let pod = |stage: usize| {
            objects.stateful_sets[stage]
                .spec
                .template
                .spec
                .clone()
                .expect("a pod")
        };
        let mac = pod(0);
        assert_eq!(
            mac.node_selector.expect("a selector")["kubernetes.io/os"],
            "darwin"
        );
        let toleration = &mac.tolerations.expect("tolerations")[0];
        assert_eq!(
            (toleration.key.as_deref(), toleration.effect.as_deref()),
            (Some(METAL), Some("NoSchedule"))
        );
        let container = &mac.containers[0];
        let limits = container
            .resources
            .clone()
            .and_then(|resources| resources.limits)
            .expect("limits");
        assert_eq!(limits[METAL].0, "1");
        let port = &container.ports.as_ref().expect("ports")[0];
        assert_eq!((port.container_port, port.host_port), (7400, Some(7400)));
        let line = container.args.clone().expect("arguments").join(" ");
        assert!(line.contains("--backend metal"), "{line}");
        let other = pod(1);
        assert!(other.node_selector.is_none() && other.tolerations.is_none());
        let line = other.containers[0].args.clone().expect("arguments").join(" ");
        assert!(
            !line.contains("--backend"),
            "other stages are as they were: {line}"
        );
    }

    #[test]
    fn what_a_user_gives_comes_beside_it() {
        let mut deployment = on_a_mac();
        let stage = &mut deployment.spec.pipeline.stages[0];
        stage.resources = Some(json!({"limits": {"memory": "48Gi"}}));
        stage.pod_template = Some(json!({"spec": {"nodeSelector": {"kubernetes.io/hostname": "mac-1"}}}));
        let pod = prepared(&deployment, &[]).stateful_sets[0]
            .spec
            .template
            .spec
            .clone()
            .expect("a pod");
        let selector = pod.node_selector.expect("a selector");
        assert_eq!(
            (
                selector["kubernetes.io/os"].as_str(),
                selector["kubernetes.io/hostname"].as_str()
            ),
            ("darwin", "mac-1")
        );
        let limits = pod.containers[0]
            .resources
            .clone()
            .and_then(|resources| resources.limits)
            .expect("limits");
        assert_eq!(
            (limits[METAL].0.as_str(), limits["memory"].0.as_str()),
            ("1", "48Gi")
        );
    }

    #[test]
    fn a_mac_is_outside_the_pod_network_so_the_policy_admits_its_address() {
        let address: IpAddr = "192.168.1.20".parse().expect("an address");
        let rules = |outside: &[IpAddr]| {
            let policy = prepared(&on_a_mac(), outside).network.expect("a policy");
            policy.spec.and_then(|spec| spec.ingress).expect("rules")[0]
                .from
                .clone()
                .expect("peers")
        };
        assert_eq!(rules(&[]).len(), 1);
        let peers = rules(&[address]);
        assert_eq!(
            peers[1].ip_block.as_ref().map(|block| block.cidr.as_str()),
            Some("192.168.1.20/32")
        );
        let revision = |outside: &[IpAddr]| prepared(&on_a_mac(), outside).revision;
        assert_eq!(
            revision(&[]),
            revision(&[address]),
            "where a pod came to be is no new revision"
        );
    }
}
