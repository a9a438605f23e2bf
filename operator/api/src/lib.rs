//! The `DS4Deployment` resource: types, validation rules and names. No client, no I/O.

mod crd;
mod model;
mod names;
mod pipeline;
mod quantity;
mod rollout;
mod security;
mod status;

pub use crd::{
    Context, DS4Deployment, DS4DeploymentSpec, Handoff, Image, Observability, OnFailure, Policy, crd_yaml,
};
pub use model::{
    Cache, FileSource, HttpSource, HuggingFaceSource, ImageSource, Model, ModelSource, Preset,
    SyntheticSource, VolumeClaimSource,
};
pub use names::{
    ANNOTATION_NUMBER, GROUP, GRPC_PORT, HEALTH_PORT, LABEL_MANAGED_BY, LABEL_NAME, LABEL_REVISION,
    LABEL_ROLE, LABEL_STAGE, MANAGED_BY, Names, PROGRESS_PORT,
};
pub use pipeline::{Backend, Layers, Pipeline, Stage};
pub use quantity::{quantity, same_quantity};
pub use rollout::{Backoff, Disruption, FailurePolicy, Rollout};
pub use security::{IssuerRef, Mtls, MtlsMode, SecretKey, Security, Server};
pub use status::{DS4DeploymentStatus, StageStatus, condition};
