//! Which model is served and where its file comes from.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::security::SecretKey;

/// The model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("self.name == oldSelf.name", "spec.model.name is immutable: create another DS4Deployment"))]
pub struct Model {
    /// The id that clients send.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))]
    pub name: String,
    /// Where the file comes from: exactly one source.
    pub source: ModelSource,
    /// SHA-256 of the file, 64 hex digits; verified before serving.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(equal = 64), regex(pattern = r"^[0-9a-f]{64}$"))]
    pub sha256: Option<String>,
    /// Where fetched files are kept; an emptyDir when absent. Sources that are fetched use it: huggingFace and http.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<Cache>,
}

/// Where fetched files are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "!(has(self.hostPath) && has(self.storageClassName))",
    "spec.model.cache: expected at most one of hostPath (a folder of the node) and storageClassName (a claim per pod)"
))]
#[x_kube(validation = (
    "!has(self.storageClassName) || has(self.size)",
    "spec.model.cache.size: expected a size such as 120Gi beside storageClassName"
))]
pub struct Cache {
    /// Size of the claim, or limit of the emptyDir, for example 120Gi.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(min = 1, max = 32),
        regex(pattern = r"^[0-9]+(\.[0-9]+)?([KMGTP]i?)?$")
    )]
    pub size: Option<String>,
    /// A claim of this class for every pod; the file survives the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
    /// A folder of the node, shared by all pods there; it must be writable by user 65532. The file survives the pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 4096), regex(pattern = r"^/.+"))]
    pub host_path: Option<String>,
}

/// Exactly one of these.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "[has(self.huggingFace), has(self.http), has(self.persistentVolumeClaim), has(self.hostPath), has(self.image), has(self.synthetic)].filter(x, x).size() == 1",
    "spec.model.source: expected exactly one of huggingFace, http, persistentVolumeClaim, hostPath, image, synthetic"
))]
pub struct ModelSource {
    /// A file of a Hugging Face repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugging_face: Option<HuggingFaceSource>,
    /// A file behind a URL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpSource>,
    /// A file on a volume that exists.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent_volume_claim: Option<VolumeClaimSource>,
    /// A file on every node.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<FileSource>,
    /// A file in an OCI image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageSource>,
    /// A small random model that each pod writes for itself: for trying things out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub synthetic: Option<SyntheticSource>,
}

/// A file of a Hugging Face repository.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HuggingFaceSource {
    /// `owner/name`.
    #[schemars(
        length(min = 3, max = 200),
        regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub repo: String,
    /// Commit, tag or branch. Pin a commit: a branch may change between two pods.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 200), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._/-]*$"))]
    pub revision: Option<String>,
    /// Path in the repository.
    #[schemars(
        length(min = 1, max = 1000),
        regex(pattern = r"^[A-Za-z0-9._-][A-Za-z0-9._/ -]*$")
    )]
    pub file: String,
    /// Secret with the hub's token, for private and gated repositories.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_secret_ref: Option<SecretKey>,
    /// Another hub of the same interface, for example a mirror inside the cluster.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2000), regex(pattern = r"^https?://.+"))]
    pub endpoint: Option<String>,
}

/// A file behind a URL.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct HttpSource {
    /// `https://...`. With a server that sends byte ranges a stage fetches its layers alone.
    #[schemars(length(min = 1, max = 2000), regex(pattern = r"^https?://.+/.+"))]
    pub url: String,
    /// URL of what `ds4 fetch --manifest` printed: with it a part of the file is verified byte for byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2000), regex(pattern = r"^https?://.+/.+"))]
    pub pieces: Option<String>,
}

/// A file on a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct VolumeClaimSource {
    /// The claim.
    pub claim_name: String,
    /// Path on the volume.
    pub path: String,
}

/// A file on every node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FileSource {
    /// Absolute path of the file.
    #[schemars(regex(pattern = r"^/.+"))]
    pub path: String,
}

/// A file in an OCI image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ImageSource {
    /// The image.
    pub reference: String,
    /// Path in the image.
    pub path: String,
}

/// A random model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct SyntheticSource {
    /// Its size.
    pub preset: Preset,
    /// Equal seeds give equal models.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0))]
    pub seed: Option<i64>,
}

/// Sizes of random models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// 3 MB, 3 layers.
    Micro,
    /// 10 MB, 7 layers.
    Tiny,
    /// 1.1 GB, 12 layers.
    Medium,
}

impl Preset {
    /// Its name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Micro => "micro",
            Self::Tiny => "tiny",
            Self::Medium => "medium",
        }
    }
}
