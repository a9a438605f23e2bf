//! From the resource to the objects that it owns. Pure: no client, no clock.

mod arguments;
mod certificate;
mod metal;
mod model;
mod pod;
mod policy;
mod probes;
mod secrets;
mod service;
mod stateful_set;

use std::net::IpAddr;

use ds4_api::{DS4Deployment, LABEL_MANAGED_BY, MANAGED_BY, Names};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::Resource;
use kube::core::DynamicObject;
use serde_json::Value;

use crate::error::Error;
pub(crate) use certificate::resource as certificate_resource;
pub(crate) use pod::HTTP_PORT;
pub(crate) use stateful_set::sized;

/// What the operator brings along.
#[derive(Clone, Debug)]
pub(crate) struct Defaults {
    /// Image of stages that name none.
    pub(crate) image: String,
    /// When nodes fetch it.
    pub(crate) pull_policy: String,
}

/// Everything that belongs to one deployment.
#[derive(Clone, Debug)]
pub(crate) struct Prepared {
    pub(crate) service_account: ServiceAccount,
    pub(crate) headless: Service,
    pub(crate) client: Service,
    pub(crate) disruption: PodDisruptionBudget,
    pub(crate) network: Option<NetworkPolicy>,
    /// cert-manager's `Certificate`, in that mode.
    pub(crate) certificate: Option<DynamicObject>,
    /// In layer order, without pods: [`sized`] gives them some.
    pub(crate) stateful_sets: Vec<StatefulSet>,
    pub(crate) revision: String,
}

/// Builds all objects. `outside` are the addresses of pods that are not in the pod network: those on Macs.
pub(crate) fn build(
    deployment: &DS4Deployment,
    names: &Names,
    defaults: &Defaults,
    outside: &[IpAddr],
) -> Result<Prepared, Error> {
    let revision = revision(&serde_json::to_vec(&templates(deployment, names, defaults, "")?)?);
    let stages = deployment.spec.pipeline.ordered();
    let stateful_sets = stages
        .iter()
        .zip(templates(deployment, names, defaults, &revision)?)
        .map(|(stage, template)| stateful_set::build(deployment, stage, names, template, &revision))
        .collect::<Result<_, _>>()?;
    Ok(Prepared {
        service_account: service::account(deployment, names),
        headless: service::headless(deployment, names),
        client: service::client(deployment, names),
        disruption: policy::disruption(deployment, names)?,
        network: policy::network(deployment, names, outside)?,
        certificate: certificate::build(deployment, names)?,
        stateful_sets,
        revision,
    })
}

/// Pod templates in layer order.
fn templates(
    deployment: &DS4Deployment,
    names: &Names,
    defaults: &Defaults,
    revision: &str,
) -> Result<Vec<Value>, Error> {
    let stages = deployment.spec.pipeline.ordered();
    stages
        .iter()
        .map(|stage| pod::template(deployment, stage, names, defaults, revision))
        .collect()
}

/// Metadata of an owned object: deleting the deployment deletes it.
pub(crate) fn metadata(deployment: &DS4Deployment, names: &Names, name: String) -> ObjectMeta {
    let owner: Option<OwnerReference> = deployment.controller_owner_ref(&());
    let labels = [
        ("app.kubernetes.io/name".to_owned(), "ds4".to_owned()),
        (LABEL_MANAGED_BY.to_owned(), MANAGED_BY.to_owned()),
        (ds4_api::LABEL_NAME.to_owned(), names.name().to_owned()),
    ];
    ObjectMeta {
        name: Some(name),
        namespace: Some(names.namespace().to_owned()),
        labels: Some(labels.into()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }
}

/// Eight hex digits of a hash over the templates: equal templates, equal revision.
fn revision(templates: &[u8]) -> String {
    fingerprint(templates)[..8].to_owned()
}

/// Sixteen hex digits: FNV-1a 64.
fn fingerprint(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn quickstart() -> DS4Deployment {
        let text = include_str!("../../../../examples/quickstart.yaml");
        let mut deployment: DS4Deployment = serde_yaml::from_str(text).expect("the example");
        deployment.metadata.namespace = Some("llm".into());
        deployment.metadata.uid = Some("1234".into());
        deployment
    }

    pub(super) fn prepared(deployment: &DS4Deployment) -> Prepared {
        let names = Names::new("quickstart", "llm");
        let defaults = Defaults {
            image: "ds4:test".into(),
            pull_policy: "Never".into(),
        };
        build(deployment, &names, &defaults, &[]).expect("sound")
    }

    fn arguments(set: &StatefulSet) -> Vec<String> {
        let pod = set.spec.template.spec.clone().expect("a pod");
        pod.containers[0].args.clone().expect("arguments")
    }

    #[test]
    fn every_stage_serves_its_layers_and_the_output_knows_its_own_pipeline() {
        let objects = prepared(&quickstart());
        let all: Vec<String> = objects
            .stateful_sets
            .iter()
            .map(|set| arguments(set).join(" "))
            .collect();
        assert_eq!(all.len(), 3);
        assert!(
            all[0].starts_with("stage ") && all[0].contains("--layers 0:0"),
            "{}",
            all[0]
        );
        assert!(all[1].contains("--layers 1:1"), "{}", all[1]);
        assert!(
            all[2].starts_with("serve ") && all[2].contains("--layers 2:output"),
            "{}",
            all[2]
        );
        let revision = &objects.revision;
        let stages = ["early", "middle"].map(|stage| {
            format!("quickstart-{stage}-{revision}-$(DS4_ORDINAL).quickstart-stages.llm.svc:7400")
        });
        assert!(all[2].contains(&stages.join(",")), "{}", all[2]);
    }

    #[test]
    fn everything_is_owned_so_that_deletion_cleans_up() {
        let objects = prepared(&quickstart());
        let mut metadata = vec![
            &objects.service_account.metadata,
            &objects.headless.metadata,
            &objects.client.metadata,
        ];
        metadata.extend(objects.stateful_sets.iter().map(|set| &set.metadata));
        for metadata in metadata {
            let owner = &metadata.owner_references.as_ref().expect("an owner")[0];
            assert_eq!(
                (owner.uid.as_str(), owner.controller),
                ("1234", Some(true)),
                "{:?}",
                metadata.name
            );
        }
    }

    #[test]
    fn the_revision_follows_the_templates_and_not_the_replicas() {
        let deployment = quickstart();
        let mut scaled = deployment.clone();
        scaled.spec.replicas = 3;
        let mut changed = deployment.clone();
        changed.spec.pipeline.prefill_chunk_tokens = 128;
        let revision = |deployment| prepared(deployment).revision;
        assert_eq!(revision(&deployment), revision(&scaled));
        assert_ne!(revision(&deployment), revision(&changed));
    }

    #[test]
    fn pods_run_without_privileges_and_a_pod_template_adds_to_them() {
        let mut deployment = quickstart();
        let extra = serde_json::json!({"spec": {"nodeSelector": {"disk": "fast"}}, "metadata": {"labels": {"team": "x"}}});
        deployment.spec.pipeline.stages[0].pod_template = Some(extra);
        let template = prepared(&deployment).stateful_sets[0].spec.template.clone();
        let pod = template.spec.expect("a pod");
        assert_eq!(pod.node_selector.expect("a selector")["disk"], "fast");
        let labels = template
            .metadata
            .and_then(|metadata| metadata.labels)
            .expect("labels");
        assert_eq!(
            (labels["team"].as_str(), labels["ds4.dev/stage"].as_str()),
            ("x", "early")
        );
        let security = pod.containers[0].security_context.clone().expect("a context");
        assert_eq!(
            (
                security.read_only_root_filesystem,
                security.allow_privilege_escalation
            ),
            (Some(true), Some(false))
        );
        assert_eq!(
            pod.security_context.and_then(|context| context.run_as_user),
            Some(65532)
        );
        assert_eq!(
            pod.init_containers.expect("the model's writer")[0]
                .args
                .clone()
                .expect("arguments")[0],
            "synth"
        );
    }

    #[test]
    fn a_revision_is_everything_that_decides_a_pod_and_nothing_else() {
        let revision = |change: &dyn Fn(&mut DS4Deployment)| {
            let mut deployment = quickstart();
            change(&mut deployment);
            prepared(&deployment).revision
        };
        let same = revision(&|_| {});
        assert_eq!(revision(&|d| d.spec.rollout.max_surge = 3), same);
        assert_eq!(revision(&|d| d.spec.server.port = 9000), same);
        assert_eq!(revision(&|d| d.spec.rollout.paused = true), same);
        let image = ds4_api::Image {
            repository: "ds4".into(),
            tag: Some("2".into()),
            digest: None,
            pull_policy: None,
        };
        assert_ne!(revision(&|d| d.spec.image = Some(image.clone())), same);
        assert_ne!(revision(&|d| d.spec.pipeline.stages[1].name = "mid".into()), same);
        assert_ne!(
            revision(&|d| d.spec.security.mtls.mode = ds4_api::MtlsMode::Disabled),
            same
        );
        assert_ne!(revision(&|d| d.spec.handoff.timeout_seconds = 7), same);
    }

    #[test]
    fn secrets_are_mounted_where_they_are_needed_and_never_in_the_environment() {
        let mut deployment = quickstart();
        deployment.spec.security.mtls.mode = ds4_api::MtlsMode::Managed;
        deployment.spec.server.api_keys_secret_ref = Some(ds4_api::SecretKey {
            name: "users".into(),
            key: "list".into(),
        });
        let objects = prepared(&deployment);
        let all: Vec<String> = objects
            .stateful_sets
            .iter()
            .map(|set| arguments(set).join(" "))
            .collect();
        assert!(
            all.iter().all(|arguments| arguments.contains("--tls-dir /tls")),
            "{all:?}"
        );
        assert!(
            all[2].contains("--api-keys-file /keys/keys") && !all[0].contains("keys"),
            "{all:?}"
        );
        let text = serde_json::to_string(&objects.stateful_sets).expect("JSON");
        assert!(
            text.contains("quickstart-stages-tls") && !text.contains("secretKeyRef"),
            "{text}"
        );
        assert!(
            !text.contains("quickstart-stages-ca"),
            "no pod sees the authority's key"
        );
        let pod = objects.stateful_sets[0]
            .spec
            .template
            .spec
            .clone()
            .expect("a pod");
        let probe = pod.containers[0].liveness_probe.clone().expect("a probe");
        let port = probe.grpc.map(|grpc| grpc.port);
        assert_eq!(port, Some(7402), "the kubelet has no certificate");
        assert!(all[0].contains("--health-listen 0.0.0.0:7402"), "{}", all[0]);
    }

    #[test]
    fn cert_manager_is_asked_for_the_certificate_that_the_pods_mount() {
        let mut deployment = quickstart();
        assert!(
            prepared(&deployment).certificate.is_none(),
            "the operator keeps it"
        );
        deployment.spec.security.mtls = ds4_api::Mtls {
            mode: ds4_api::MtlsMode::CertManager,
            issuer_ref: Some(ds4_api::IssuerRef {
                name: "ca".into(),
                kind: "ClusterIssuer".into(),
            }),
        };
        let objects = prepared(&deployment);
        let certificate = serde_json::to_value(objects.certificate.expect("one")).expect("JSON");
        assert_eq!(certificate["apiVersion"], "cert-manager.io/v1");
        assert_eq!(certificate["metadata"]["ownerReferences"][0]["uid"], "1234");
        assert_eq!(
            certificate["spec"],
            serde_json::json!({
                "secretName": "quickstart-stages-tls",
                "dnsNames": ["*.quickstart-stages.llm.svc", "quickstart-stages.llm.svc", "localhost"],
                "usages": ["server auth", "client auth"],
                "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
                "issuerRef": {"name": "ca", "kind": "ClusterIssuer", "group": "cert-manager.io"},
            })
        );
        for set in &objects.stateful_sets {
            let pod = set.spec.template.spec.clone().expect("a pod");
            let mounted = pod.volumes.into_iter().flatten();
            let secrets: Vec<Option<String>> = mounted
                .filter_map(|volume| volume.secret.map(|secret| secret.secret_name))
                .collect();
            assert_eq!(secrets, [Some("quickstart-stages-tls".to_owned())]);
            assert!(arguments(set).join(" ").contains("--tls-dir /tls"));
        }
    }

    #[test]
    fn output_pods_drain_and_nobody_else_reaches_a_stage() {
        let objects = prepared(&quickstart());
        let output = &objects.stateful_sets[2]
            .spec
            .template
            .spec
            .clone()
            .expect("a pod");
        assert_eq!(output.termination_grace_period_seconds, Some(305));
        assert!(output.containers[0].lifecycle.is_some());
        let network = objects.network.expect("a policy").spec.expect("its rules");
        let ingress = network.ingress.expect("rules");
        assert_eq!(ingress.len(), 2);
        let from = ingress[0].from.as_ref().expect("peers");
        assert_eq!(from.len(), 1, "{from:?}");
        let mut open = quickstart();
        open.spec.security.network_policy = false;
        assert!(prepared(&open).network.is_none());
        let budget = objects.disruption.spec.expect("its rules");
        assert!(budget.max_unavailable.is_some());
    }
}
