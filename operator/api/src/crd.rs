//! The resource.

use kube::{CustomResource, CustomResourceExt, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::model::Model;
use crate::pipeline::Pipeline;
use crate::rollout::{Disruption, FailurePolicy, Rollout};
use crate::security::{Security, Server};
use crate::status::DS4DeploymentStatus;

/// Which layers of a DeepSeek V4 model live where, and how requests are served.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, CustomResource, KubeSchema)]
#[kube(
    group = "ds4.dev",
    version = "v1alpha1",
    kind = "DS4Deployment",
    plural = "ds4deployments",
    namespaced,
    status = "DS4DeploymentStatus",
    shortname = "ds4",
    category = "all",
    derive = "PartialEq",
    validation = Rule::new("self.spec.pipeline.stages.all(s, self.metadata.name.size() + s.name.size() <= 42)")
        .message("metadata.name: with the longest stage's name more than 42 characters: pods' names would be too long"),
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn = r#"{"name": "Ready", "type": "string", "jsonPath": ".status.conditions[?(@.type==\"Available\")].status"}"#,
    printcolumn = r#"{"name": "Pipelines", "type": "string", "jsonPath": ".status.pipelines"}"#,
    printcolumn = r#"{"name": "Loaded", "type": "string", "jsonPath": ".status.loaded"}"#,
    printcolumn = r#"{"name": "Revision", "type": "string", "jsonPath": ".status.currentRevision"}"#,
    printcolumn = r#"{"name": "Model", "type": "string", "jsonPath": ".spec.model.name"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DS4DeploymentSpec {
    /// Pipelines. Pod k of every stage belongs to pipeline k.
    #[serde(default = "one")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: i32,
    /// Image of the engine; the operator's default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// What is served.
    pub model: Model,
    /// Limits of sessions.
    #[serde(default)]
    pub context: Context,
    /// Which layers live where.
    pub pipeline: Pipeline,
    /// How prompts go over the stages.
    #[serde(default)]
    pub handoff: Handoff,
    /// How pipelines are replaced.
    #[serde(default)]
    pub rollout: Rollout,
    /// When a pipeline that does not come up is given up.
    #[serde(default)]
    pub failure_policy: FailurePolicy,
    /// What a drained node may take at once.
    #[serde(default)]
    pub disruption: Disruption,
    /// The HTTP side.
    #[serde(default)]
    pub server: Server,
    /// Who may talk to whom.
    #[serde(default)]
    pub security: Security,
    /// What is recorded.
    #[serde(default)]
    pub observability: Observability,
}

const fn one() -> i32 {
    1
}

/// An image by tag or digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.tag) != has(self.digest)", "spec.image: expected exactly one of tag and digest"))]
pub struct Image {
    /// Without tag or digest.
    #[schemars(length(min = 1, max = 255))]
    pub repository: String,
    /// A tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// `sha256:...`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// When the node fetches it.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(extend("enum" = ["Always", "IfNotPresent", "Never"]))]
    pub pull_policy: Option<String>,
}

impl Image {
    /// As in a pod.
    #[must_use]
    pub fn reference(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => format!("{}@{digest}", self.repository),
            (None, Some(tag)) => format!("{}:{tag}", self.repository),
            (None, None) => self.repository.clone(),
        }
    }
}

/// Limits of sessions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Context {
    /// Tokens of prompt and answer together; what the model says when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1048576))]
    pub max_tokens: Option<i32>,
}

/// What happens when the stages fail a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum OnFailure {
    /// The output pod computes the prompt and says so.
    #[default]
    RecomputeLocally,
    /// The request fails.
    Fail,
}

/// When prompts go over the stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Policy {
    /// Prompts of at least `minPromptTokens`.
    #[default]
    Adaptive,
    /// All.
    Always,
    /// None.
    Never,
}

/// How prompts go over the stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Handoff {
    /// Longest silence of the route, in seconds.
    #[schemars(range(min = 1, max = 3600))]
    pub timeout_seconds: i32,
    /// Shortest prompt that goes over the stages.
    #[schemars(range(min = 1, max = 1048576))]
    pub min_prompt_tokens: i32,
    /// What happens when the stages fail a request.
    pub on_failure: OnFailure,
    /// When prompts go over the stages.
    pub policy: Policy,
}

impl Default for Handoff {
    fn default() -> Self {
        Self {
            timeout_seconds: 30,
            min_prompt_tokens: 512,
            on_failure: OnFailure::default(),
            policy: Policy::default(),
        }
    }
}

/// What is recorded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Observability {
    /// OTLP gRPC endpoint for traces.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub otlp_endpoint: Option<String>,
}

/// The definition as it is installed.
///
/// # Errors
/// When it cannot be written as YAML.
pub fn crd_yaml() -> Result<String, serde_yaml::Error> {
    serde_yaml::to_string(&DS4Deployment::crd())
}
