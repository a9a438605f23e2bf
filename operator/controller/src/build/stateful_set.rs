//! One `StatefulSet` per stage and revision: pod k belongs to pipeline k.

use ds4_api::{ANNOTATION_NUMBER, DS4Deployment, LABEL_NAME, LABEL_REVISION, LABEL_STAGE, Names, Stage};
use k8s_openapi::api::apps::v1::StatefulSet;
use serde_json::{Value, json};

use super::{metadata, model, pod};
use crate::error::Error;

/// The set around a pod template, with no pods yet: how many it has is the rollout's business.
pub(super) fn build(
    deployment: &DS4Deployment,
    stage: &Stage,
    names: &Names,
    mut template: Value,
    revision: &str,
) -> Result<StatefulSet, Error> {
    template["metadata"]["labels"][LABEL_REVISION] = revision.into();
    let mut labels = pod::labels(stage, names);
    labels[LABEL_REVISION] = revision.into();
    let mut metadata = serde_json::to_value(metadata(
        deployment,
        names,
        names.stateful_set(&stage.name, revision),
    ))?;
    metadata["labels"] = labels;
    let mut set = json!({
        "metadata": metadata,
        "spec": {
            "replicas": 0,
            "serviceName": names.headless(),
            // All stages of a pipeline load at once.
            "podManagementPolicy": "Parallel",
            // The template of a revision never changes; should an older operator's differ, its pods stay as they are.
            "updateStrategy": {"type": "OnDelete"},
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {LABEL_NAME: names.name(), LABEL_STAGE: stage.name, LABEL_REVISION: revision}},
            "template": template,
        },
    });
    if let Some(claims) = model::claims(&deployment.spec.model) {
        set["spec"]["volumeClaimTemplates"] = claims;
        // A revision that is kept to go back to keeps its files; one that is forgotten leaves none.
        set["spec"]["persistentVolumeClaimRetentionPolicy"] =
            json!({"whenDeleted": "Delete", "whenScaled": "Retain"});
    }
    serde_json::from_value(set).map_err(|error| Error::PodTemplate {
        stage: stage.name.clone(),
        reason: error.to_string(),
    })
}

/// Tells a set how many pods it has, and which place its revision has in the order.
pub(crate) fn sized(mut set: StatefulSet, replicas: i32, number: i64) -> StatefulSet {
    set.spec.replicas = Some(replicas);
    set.metadata
        .annotations
        .get_or_insert_default()
        .insert(ANNOTATION_NUMBER.into(), number.to_string());
    set
}
