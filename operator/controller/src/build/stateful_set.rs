//! One `StatefulSet` per stage: pod k belongs to pipeline k.

use ds4_api::{DS4Deployment, LABEL_NAME, LABEL_REVISION, LABEL_STAGE, Names, Stage};
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};

use super::metadata;
use crate::error::Error;

/// The set around a pod template.
pub(super) fn build(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    mut template: Value,
    revision: &str,
) -> Result<StatefulSet, Error> {
    template["metadata"]["labels"][LABEL_REVISION] = revision.into();
    let set = json!({
        "metadata": metadata(deployment, names, names.stateful_set(&stage.name)),
        "spec": {
            "replicas": deployment.spec.replicas,
            "serviceName": names.headless(),
            // All stages of a pipeline load at once.
            "podManagementPolicy": "Parallel",
            "selector": {"matchLabels": {LABEL_NAME: names.name(), LABEL_STAGE: stage.name}},
            "template": template,
        },
    });
    serde_json::from_value(set).map_err(|error| Error::PodTemplate {
        stage: stage.name.clone(),
        reason: error.to_string(),
    })
}
