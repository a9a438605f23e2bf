//! What the schema cannot say, or an older API server let through.

use ds4_api::{Backend, DS4DeploymentSpec, ModelSource};

/// Why a deployment cannot run yet: reason and message of the `ModelReady` or `PipelineReady` condition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Blocked {
    /// The model's source is not there yet.
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
    if let Some(source) = unsupported(&spec.model.source) {
        let message = format!(
            "spec.model.source.{source} is not supported yet: use hostPath, persistentVolumeClaim or synthetic"
        );
        return Err(Blocked::Model("SourceNotSupportedYet", message));
    }
    if let Some(stage) = spec
        .pipeline
        .stages
        .iter()
        .find(|stage| stage.backend != Backend::CPU)
    {
        let message = format!(
            "spec.pipeline.stages[{}].backend {:?} is not supported yet: use CPU",
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

fn unsupported(source: &ModelSource) -> Option<&'static str> {
    let ModelSource {
        hugging_face,
        http,
        persistent_volume_claim: _,
        host_path: _,
        image,
        synthetic: _,
    } = source;
    match (hugging_face, http, image) {
        (Some(_), ..) => Some("huggingFace"),
        (_, Some(_), _) => Some("http"),
        (.., Some(_)) => Some("image"),
        _ => None,
    }
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
        let mut http = spec;
        http.model.source = ModelSource {
            http: Some(ds4_api::HttpSource {
                url: "https://x".into(),
            }),
            ..ModelSource::default()
        };
        assert!(
            matches!(validate(&http), Err(Blocked::Model("SourceNotSupportedYet", message)) if message.contains("http"))
        );
    }
}
