//! The `DS4Deployment` resource: types, validation rules and names. No client, no I/O.

mod crd;
mod model;
mod names;
mod pipeline;
mod status;

pub use crd::{
    Context, DS4Deployment, DS4DeploymentSpec, Handoff, Image, Observability, OnFailure, Policy, Server,
    crd_yaml,
};
pub use model::{
    FileSource, HttpSource, HuggingFaceSource, ImageSource, Model, ModelSource, Preset, SyntheticSource,
    VolumeClaimSource,
};
pub use names::{GROUP, GRPC_PORT, LABEL_NAME, LABEL_REVISION, LABEL_ROLE, LABEL_STAGE, Names};
pub use pipeline::{Backend, Layers, Pipeline, Stage};
pub use status::{DS4DeploymentStatus, StageStatus, condition};
