//! What the schema cannot say, or an older API server let through.

use ds4_api::{Backend, DS4DeploymentSpec, ModelSource};

/// Why a deployment cannot run yet: reason and message of the `ModelReady` or `PipelineReady` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// The model's source cannot be used.
    Model(&'static str, String),
    /// A stage asks for something that is not there yet.
    Pipeline(&'static str, String),
}

impl Blocked {
    /// What the conditions say.
    pub(crate) fn reason(&self) -> (&'static str, String) {
        let (Self::Model(reason, message) | Self::Pipeline(reason, message)) = self;
        (reason, message.clone())
    }
}

/// Checks a deployment; nothing is created while it is blocked.
pub(crate) fn validate(spec: &DS4DeploymentSpec) -> Result<(), Blocked> {
    if let Some((field, path)) = paths(&spec.model.source).find(|(_, path)| climbs(path)) {
        let message = format!("spec.model.source.{field}: expected a path without .., found {path:?}");
        return Err(Blocked::Model("InvalidSource", message));
    }
    if let Some(stage) = spec
        .pipeline
        .stages
        .iter()
        .find(|stage| stage.backend == Backend::CUDA)
    {
        let message = format!(
            "spec.pipeline.stages[{}].backend {:?} is not supported yet: use CPU or Metal",
            stage.name, stage.backend
        );
        return Err(Blocked::Pipeline("BackendNotSupportedYet", message));
    }
    layers(spec)
}

/// Holds the schema's rules once more.
fn layers(spec: &DS4DeploymentSpec) -> Result<(), Blocked> {
    let stages = spec.pipeline.ordered();
    let follows = stages.windows(2).all(|pair| {
        pair[0]
            .layers
            .last
            .is_some_and(|last| last + 1 == pair[1].layers.first)
    });
    let ends = stages.first().is_some_and(|first| first.layers.first == 0)
        && stages.last().is_some_and(|last| last.layers.last.is_none());
    if follows && ends {
        return Ok(());
    }
    let ranges: Vec<String> = stages.iter().map(|stage| stage.layers.argument()).collect();
    let message = format!(
        "spec.pipeline.stages: expected ranges from 0 through output without gap or overlap, found {}",
        ranges.join(", ")
    );
    Err(Blocked::Pipeline("InvalidLayers", message))
}

/// Paths inside a volume or repository.
fn paths(source: &ModelSource) -> impl Iterator<Item = (&'static str, &str)> {
    let hub = source
        .hugging_face
        .as_ref()
        .map(|hub| ("huggingFace.file", hub.file.as_str()));
    let claim = source
        .persistent_volume_claim
        .as_ref()
        .map(|claim| ("persistentVolumeClaim.path", claim.path.as_str()));
    let image = source
        .image
        .as_ref()
        .map(|image| ("image.path", image.path.as_str()));
    [hub, claim, image].into_iter().flatten()
}

/// Whether a path leads out of where it starts.
fn climbs(path: &str) -> bool {
    path.split('/').any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::build::tests::quickstart;

    #[test]
    fn the_quickstart_is_sound_and_its_breakages_are_named() {
        let spec = quickstart().spec;
        assert_eq!(validate(&spec), Ok(()));
        let mut gap = spec.clone();
        gap.pipeline.stages[1].layers.first = 5;
        assert!(
            matches!(validate(&gap), Err(Blocked::Pipeline("InvalidLayers", message)) if message.contains("5:"))
        );
        let mut cuda = spec.clone();
        cuda.pipeline.stages[0].backend = Backend::CUDA;
        assert!(matches!(
            validate(&cuda),
            Err(Blocked::Pipeline("BackendNotSupportedYet", _))
        ));
        let mut outside = spec;
        outside.model.source = ModelSource {
            image: Some(ds4_api::ImageSource {
                reference: "x".into(),
                path: "a/../../etc/passwd".into(),
            }),
            ..ModelSource::default()
        };
        assert!(
            matches!(validate(&outside), Err(Blocked::Model("InvalidSource", message)) if message.contains("image.path"))
        );
    }
}
