//! How the model's file comes into a pod.

use ds4_api::ModelSource;
use serde_json::{Value, json};

/// Where the model lies in the container.
const MODEL: &str = "/models/model.gguf";

/// A volume with the model, and what writes it.
pub(super) struct Mounted {
    pub(super) path: String,
    pub(super) volume: Value,
    pub(super) mount: Value,
    /// Arguments of the container that writes it first.
    pub(super) writer: Option<Vec<String>>,
}

pub(super) fn mounted(source: &ModelSource) -> Mounted {
    if let Some(claim) = &source.persistent_volume_claim {
        return Mounted {
            path: format!("/models/{}", claim.path.trim_start_matches('/')),
            volume: json!({"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": true}}),
            mount: json!({"name": "model", "mountPath": "/models", "readOnly": true}),
            writer: None,
        };
    }
    if let Some(file) = &source.host_path {
        return Mounted {
            path: MODEL.into(),
            volume: json!({"name": "model", "hostPath": {"path": file.path, "type": "File"}}),
            mount: json!({"name": "model", "mountPath": MODEL, "readOnly": true}),
            writer: None,
        };
    }
    let writer = source.synthetic.as_ref().map(|synthetic| {
        let mut arguments: Vec<String> = ["synth", "--out", MODEL, "--preset", synthetic.preset.name()]
            .map(String::from)
            .into();
        if let Some(seed) = synthetic.seed {
            arguments.extend(["--seed".into(), seed.to_string()]);
        }
        arguments
    });
    Mounted {
        path: MODEL.into(),
        volume: json!({"name": "model", "emptyDir": {}}),
        mount: json!({"name": "model", "mountPath": "/models"}),
        writer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_the_node_is_mounted_read_only_and_written_by_nobody() {
        let source = ModelSource {
            host_path: Some(ds4_api::FileSource {
                path: "/models/flash.gguf".into(),
            }),
            ..ModelSource::default()
        };
        let mounted = mounted(&source);
        assert_eq!(
            (
                mounted.volume["hostPath"]["path"].as_str(),
                mounted.mount["readOnly"].as_bool()
            ),
            (Some("/models/flash.gguf"), Some(true))
        );
        assert!(mounted.writer.is_none());
    }
}
