//! Services and the `ServiceAccount`.

use std::collections::BTreeMap;

use ds4_api::{DS4Deployment, GRPC_PORT, LABEL_NAME, LABEL_ROLE, Names};
use k8s_openapi::api::core::v1::{Service, ServiceAccount, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::metadata;

fn port(name: &str, number: u16, target: &str) -> ServicePort {
    ServicePort {
        name: Some(name.into()),
        port: number.into(),
        target_port: Some(IntOrString::String(target.into())),
        protocol: Some("TCP".into()),
        ..ServicePort::default()
    }
}

fn selector(names: &Names, role: Option<&str>) -> BTreeMap<String, String> {
    let role = role.map(|role| (LABEL_ROLE.to_owned(), role.to_owned()));
    [(LABEL_NAME.to_owned(), names.name().to_owned())]
        .into_iter()
        .chain(role)
        .collect()
}

/// Pods have no business with the API server.
pub(super) fn account(deployment: &DS4Deployment, names: &Names) -> ServiceAccount {
    ServiceAccount {
        metadata: metadata(deployment, names, names.name().to_owned()),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// Names for stage pods, before they are ready: the output pod must reach them to become ready itself.
pub(super) fn headless(deployment: &DS4Deployment, names: &Names) -> Service {
    Service {
        metadata: metadata(deployment, names, names.headless()),
        spec: Some(ServiceSpec {
            cluster_ip: Some("None".into()),
            publish_not_ready_addresses: Some(true),
            selector: Some(selector(names, None)),
            ports: Some(vec![port("grpc", GRPC_PORT, "grpc")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// Where clients ask: the output pods.
pub(super) fn client(deployment: &DS4Deployment, names: &Names) -> Service {
    Service {
        metadata: metadata(deployment, names, names.name().to_owned()),
        spec: Some(ServiceSpec {
            selector: Some(selector(names, Some("output"))),
            ports: Some(vec![port("http", deployment.spec.server.port, "http")]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}
