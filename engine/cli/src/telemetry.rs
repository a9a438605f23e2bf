//! Recording, as the flags say.

use anyhow::Result;
use ds4_telemetry::{Guard, TelemetryOptions, init};

use crate::args::TelemetryArguments;

/// Starts recording; what is left is sent when the guard drops.
pub(crate) fn start(arguments: &TelemetryArguments, role: &str, layers: &str) -> Result<Guard> {
    let mut attributes = vec![
        ("ds4.role".to_owned(), role.to_owned()),
        ("ds4.layers".to_owned(), layers.to_owned()),
    ];
    // The operator sets these from the pod's own fields.
    for (variable, attribute) in [
        ("POD_NAME", "k8s.pod.name"),
        ("POD_NAMESPACE", "k8s.namespace.name"),
        ("NODE_NAME", "k8s.node.name"),
    ] {
        if let Ok(value) = std::env::var(variable) {
            attributes.push((attribute.to_owned(), value));
        }
    }
    let options = TelemetryOptions {
        service: format!("ds4-{role}"),
        otlp_endpoint: arguments.otlp_endpoint.clone(),
        log_format: arguments.log_format,
        attributes,
    };
    Ok(init(&options)?)
}
