//! What is.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition types.
pub mod condition {
    /// At least one pipeline answers.
    pub const AVAILABLE: &str = "Available";
    /// Pods are being created or replaced.
    pub const PROGRESSING: &str = "Progressing";
    /// Fewer pipelines than asked for answer.
    pub const DEGRADED: &str = "Degraded";
    /// The model's source can be used.
    pub const MODEL_READY: &str = "ModelReady";
    /// Every stage of every pipeline is ready.
    pub const PIPELINE_READY: &str = "PipelineReady";
    /// The output pods have seen their whole route.
    pub const HANDOFF_READY: &str = "HandoffReady";
    /// A pod was given up, and is not replaced any more.
    pub const FAILED: &str = "Failed";
}

/// Observed state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct DS4DeploymentStatus {
    /// Generation that this status describes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Pipelines that exist.
    #[serde(default)]
    pub replicas: i32,
    /// Pipelines that answer.
    #[serde(default)]
    pub ready_replicas: i32,
    /// `ready/wanted`, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipelines: Option<String>,
    /// How much of the models that pods fetch is there, while some is missing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loaded: Option<String>,
    /// Pipelines of the update revision.
    #[serde(default)]
    pub updated_replicas: i32,
    /// Selects the output pods, for autoscalers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Revision that serves. While a rollout runs, the one that most ready pipelines have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,
    /// Revision that the spec asks for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_revision: Option<String>,
    /// When the last pipeline of the update revision became ready, or its rollout began: the progress deadline counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_progress: Option<Time>,
    /// Pods of the update revision that were given up and replaced.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub replacements: i32,
    /// When the last of them was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_replacement: Option<Time>,
    /// Where clients ask, inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Stage by stage.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<StageStatus>,
    /// Conditions by type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde gives a reference
fn is_zero(count: &i32) -> bool {
    *count == 0
}

/// One stage over all pipelines.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StageStatus {
    /// Its name.
    pub name: String,
    /// Its layers.
    pub layers: String,
    /// What computes.
    pub backend: String,
    /// Pods ready, over all revisions.
    pub ready: i32,
    /// Pods of the update revision.
    #[serde(default)]
    pub updated: i32,
    /// Bytes of its layers that are on the nodes, over all its pods; absent when the model is not fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded_bytes: Option<i64>,
    /// Bytes that its layers take there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_bytes: Option<i64>,
    /// The two as a share, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loaded: Option<String>,
}
