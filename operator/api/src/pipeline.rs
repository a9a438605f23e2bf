//! Which layers live where.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The stages of every pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = (
        "self.stages.filter(s, !has(s.layers.last)).size() == 1",
        "spec.pipeline.stages: expected exactly one output stage (layers without last)"
    ),
    validation = (
        "self.stages.exists_one(s, s.layers.first == 0)",
        "spec.pipeline.stages: expected exactly one stage with layers.first 0"
    ),
    validation = (
        "self.stages.all(s, !has(s.layers.last) || self.stages.exists_one(t, t.layers.first == s.layers.last + 1))",
        "spec.pipeline.stages: layers have a gap or an overlap: after a stage with layers.last N exactly one must have layers.first N + 1"
    ),
    validation = (
        "self.stages.all(t, t.layers.first == 0 || self.stages.exists_one(s, has(s.layers.last) && s.layers.last + 1 == t.layers.first))",
        "spec.pipeline.stages: layers have a gap or an overlap: before a stage with layers.first N exactly one must have layers.last N - 1"
    )
)]
pub struct Pipeline {
    /// Tokens in a prefill chunk.
    #[serde(default = "default_chunk")]
    #[schemars(range(min = 1, max = 65536))]
    pub prefill_chunk_tokens: i32,
    /// Chunks in flight between two stages.
    #[serde(default = "default_window")]
    #[schemars(range(min = 1, max = 64))]
    pub window: i32,
    /// Bits of an activation between stages. 32 is exact; other widths are not there yet.
    #[serde(default = "default_bits")]
    #[schemars(extend("enum" = [32]))]
    pub activation_bits: i32,
    /// The stages, by name.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub stages: Vec<Stage>,
}

const fn default_chunk() -> i32 {
    512
}

const fn default_window() -> i32 {
    4
}

const fn default_bits() -> i32 {
    32
}

impl Pipeline {
    /// The stages in layer order; the output stage comes last.
    #[must_use]
    pub fn ordered(&self) -> Vec<&Stage> {
        let mut stages: Vec<&Stage> = self.stages.iter().collect();
        stages.sort_by_key(|stage| stage.layers.first);
        stages
    }
}

/// One stage: a run of layers on one pod of each pipeline.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// Part of its pods' names.
    #[schemars(
        length(min = 1, max = 30),
        regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    )]
    pub name: String,
    /// Its layers.
    pub layers: Layers,
    /// What computes.
    #[serde(default)]
    pub backend: Backend,
    /// Resources of its container, as in a pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub resources: Option<Value>,
    /// Merged over the pod that the operator builds: node selectors, tolerations, labels and the like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "any_object")]
    pub pod_template: Option<Value>,
}

/// A run of layers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[x_kube(validation = (
    "!has(self.last) || self.first <= self.last",
    "layers.first must not be greater than layers.last: the range is reversed"
))]
pub struct Layers {
    /// First layer.
    #[schemars(range(min = 0, max = 1023))]
    pub first: i32,
    /// Last layer. Without it: through the last layer and the output head; that stage decodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1023))]
    pub last: Option<i32>,
}

impl Layers {
    /// As on the command line.
    #[must_use]
    pub fn argument(self) -> String {
        self.last.map_or_else(
            || format!("{}:output", self.first),
            |last| format!("{}:{last}", self.first),
        )
    }
}

/// What computes a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Backend {
    /// The node's processor.
    #[default]
    CPU,
    /// NVIDIA; not there yet.
    CUDA,
    /// Apple, on a Mac that `ds4-runner` made a node.
    Metal,
}

/// Whatever a pod may hold: the API server checks it when the pod's owner is applied.
fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}
