//! How the model's file comes into a pod.

use ds4_api::{Cache, HttpSource, HuggingFaceSource, Model, ModelSource, PROGRESS_PORT, Stage};
use serde_json::{Value, json};

/// Folder of models in the container.
const FOLDER: &str = "/models";
/// Where a model lies that is mounted or written as one file.
const MODEL: &str = "/models/model.gguf";
/// Where the kubelet takes a container's last words from.
const LAST_WORDS: &str = "/dev/termination-log";

/// A volume with the model, and what writes it.
pub(super) struct Mounted {
    pub(super) path: String,
    /// In the pod; none when the set's claims bring it.
    pub(super) volume: Option<Value>,
    pub(super) mount: Value,
    /// The container that writes it first.
    pub(super) writer: Option<Writer>,
}

/// What the init container runs.
pub(super) struct Writer {
    pub(super) arguments: Vec<String>,
    pub(super) env: Vec<Value>,
    /// Whether it says how far it is, on [`PROGRESS_PORT`].
    pub(super) says_progress: bool,
}

pub(super) fn mounted(model: &Model, stage: &Stage) -> Mounted {
    let ModelSource {
        hugging_face,
        http,
        persistent_volume_claim,
        host_path,
        image,
        synthetic,
    } = &model.source;
    if let Some(hub) = hugging_face {
        return fetched(model, stage, &Download::of_hub(hub));
    }
    if let Some(http) = http {
        return fetched(model, stage, &Download::of_url(http));
    }
    if let Some(claim) = persistent_volume_claim {
        let volume = json!({"name": "model", "persistentVolumeClaim": {"claimName": claim.claim_name, "readOnly": true}});
        return read_only(&claim.path, volume);
    }
    if let Some(image) = image {
        return read_only(
            &image.path,
            json!({"name": "model", "image": {"reference": image.reference}}),
        );
    }
    if let Some(file) = host_path {
        return Mounted {
            path: MODEL.into(),
            volume: Some(json!({"name": "model", "hostPath": {"path": file.path, "type": "File"}})),
            mount: json!({"name": "model", "mountPath": MODEL, "readOnly": true}),
            writer: None,
        };
    }
    let writer = synthetic.as_ref().map(|synthetic| {
        let mut arguments: Vec<String> = ["synth", "--out", MODEL, "--preset", synthetic.preset.name()]
            .map(String::from)
            .into();
        if let Some(seed) = synthetic.seed {
            arguments.extend(["--seed".into(), seed.to_string()]);
        }
        Writer {
            arguments,
            env: Vec::new(),
            says_progress: false,
        }
    });
    Mounted {
        path: MODEL.into(),
        volume: Some(json!({"name": "model", "emptyDir": {}})),
        mount: json!({"name": "model", "mountPath": FOLDER}),
        writer,
    }
}

/// A volume that holds the file at `path`.
fn read_only(path: &str, volume: Value) -> Mounted {
    Mounted {
        path: format!("{FOLDER}/{}", path.trim_start_matches('/')),
        volume: Some(volume),
        mount: json!({"name": "model", "mountPath": FOLDER, "readOnly": true}),
        writer: None,
    }
}

/// What `ds4 fetch` is told about a source.
struct Download {
    source: String,
    flags: Vec<String>,
    env: Vec<Value>,
}

impl Download {
    fn of_hub(hub: &HuggingFaceSource) -> Self {
        let HuggingFaceSource {
            repo,
            revision,
            file,
            token_secret_ref,
            endpoint,
        } = hub;
        let revision = revision
            .as_ref()
            .map_or_else(String::new, |revision| format!("@{revision}"));
        let token = token_secret_ref.as_ref().map(|secret| {
            json!({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": secret.name, "key": secret.key}}})
        });
        Self {
            source: format!("hf://{repo}{revision}/{}", file.trim_start_matches('/')),
            flags: flag("--endpoint", endpoint.as_ref()),
            env: token.into_iter().collect(),
        }
    }

    fn of_url(http: &HttpSource) -> Self {
        let HttpSource { url, pieces } = http;
        Self {
            source: url.clone(),
            flags: flag("--pieces", pieces.as_ref()),
            env: Vec::new(),
        }
    }

    /// A folder of its own in a cache that several models share, and the file's name there.
    fn place(&self) -> (String, String) {
        let plain = self.source.split('?').next().unwrap_or_default();
        let file = plain.rsplit('/').next().unwrap_or_default().replace(' ', "_");
        let folder = super::fingerprint(format!("{plain} {}", self.flags.join(" ")).as_bytes());
        (
            format!("{FOLDER}/{folder}"),
            file.trim_start_matches('.').to_owned(),
        )
    }
}

fn flag(name: &str, value: Option<&String>) -> Vec<String> {
    value.map_or_else(Vec::new, |value| vec![name.to_owned(), value.clone()])
}

fn fetched(model: &Model, stage: &Stage, download: &Download) -> Mounted {
    let (folder, file) = download.place();
    let mut arguments: Vec<String> = vec!["fetch".into(), download.source.clone()];
    let flags = [
        ("--out", folder.clone()),
        ("--name", file.clone()),
        ("--layers", stage.layers.argument()),
        ("--listen", format!("0.0.0.0:{PROGRESS_PORT}")),
        ("--status-file", LAST_WORDS.into()),
    ];
    arguments.extend(
        flags
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value]),
    );
    arguments.extend(flag("--sha256", model.sha256.as_ref()));
    arguments.extend(download.flags.clone());
    Mounted {
        path: format!("{folder}/{file}"),
        volume: volume(model.cache.as_ref()),
        mount: json!({"name": "model", "mountPath": FOLDER, "readOnly": true}),
        writer: Some(Writer {
            arguments,
            env: download.env.clone(),
            says_progress: true,
        }),
    }
}

/// The volume of a cache; none where the set's claims bring it.
fn volume(cache: Option<&Cache>) -> Option<Value> {
    let cache = cache.cloned().unwrap_or_default();
    match (cache.host_path, cache.storage_class_name, cache.size) {
        (Some(path), ..) => {
            Some(json!({"name": "model", "hostPath": {"path": path, "type": "DirectoryOrCreate"}}))
        }
        (None, Some(_), _) => None,
        (None, None, Some(size)) => Some(json!({"name": "model", "emptyDir": {"sizeLimit": size}})),
        (None, None, None) => Some(json!({"name": "model", "emptyDir": {}})),
    }
}

/// The claims of a stage's set: each pod keeps its own volume, so a pod that comes again finds what it had fetched.
pub(super) fn claims(model: &Model) -> Option<Value> {
    let fetched = model.source.hugging_face.is_some() || model.source.http.is_some();
    let cache = model.cache.as_ref().filter(|_| fetched)?;
    let (class, size) = (cache.storage_class_name.as_ref()?, cache.size.as_ref()?);
    Some(json!([{
        "metadata": {"name": "model"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": class,
            "resources": {"requests": {"storage": size}},
        },
    }]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ds4_api::{ImageSource, Layers, SecretKey};

    fn stage(layers: Value) -> Stage {
        serde_json::from_value(json!({"name": "early", "layers": layers})).expect("a stage")
    }

    fn model(source: ModelSource) -> Model {
        Model {
            name: "flash".into(),
            source,
            sha256: Some("a".repeat(64)),
            cache: None,
        }
    }

    fn hub() -> ModelSource {
        ModelSource {
            hugging_face: Some(HuggingFaceSource {
                repo: "own/flash".into(),
                revision: Some("0123".into()),
                file: "q2/flash.gguf".into(),
                token_secret_ref: Some(SecretKey {
                    name: "hub".into(),
                    key: "token".into(),
                }),
                endpoint: Some("http://mirror".into()),
            }),
            ..ModelSource::default()
        }
    }

    #[test]
    fn a_file_of_the_node_is_mounted_read_only_and_written_by_nobody() {
        let source = ModelSource {
            host_path: Some(ds4_api::FileSource {
                path: "/models/flash.gguf".into(),
            }),
            ..ModelSource::default()
        };
        let mounted = mounted(&model(source), &stage(json!({"first": 0, "last": 1})));
        let volume = mounted.volume.expect("a volume");
        assert_eq!(
            (
                volume["hostPath"]["path"].as_str(),
                mounted.mount["readOnly"].as_bool()
            ),
            (Some("/models/flash.gguf"), Some(true))
        );
        assert!(mounted.writer.is_none());
    }

    #[test]
    fn a_stage_fetches_its_layers_from_the_hub_and_the_engine_reads_them_where_they_go() {
        let mounted = mounted(&model(hub()), &stage(json!({"first": 0, "last": 21})));
        let writer = mounted.writer.expect("an init container");
        let line = writer.arguments.join(" ");
        for part in [
            "fetch hf://own/flash@0123/q2/flash.gguf --out /models/",
            "--layers 0:21",
            &format!("--sha256 {}", "a".repeat(64)),
            "--endpoint http://mirror",
        ] {
            assert!(line.contains(part), "{line}");
        }
        let out = writer
            .arguments
            .iter()
            .position(|argument| argument == "--out")
            .expect("--out");
        assert_eq!(mounted.path, format!("{}/flash.gguf", writer.arguments[out + 1]));
        assert_eq!(
            writer.env,
            [json!({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}})]
        );
        assert!(!line.contains("HF_TOKEN") && writer.says_progress);
    }

    #[test]
    fn caches_are_folders_claims_or_go_with_the_pod() {
        let with = |cache: Cache| {
            let model = Model {
                cache: Some(cache),
                ..model(hub())
            };
            (
                mounted(&model, &stage(json!({"first": 2}))).volume,
                claims(&model),
            )
        };
        let (volume, claim) = with(Cache {
            host_path: Some("/var/cache/ds4".into()),
            ..Cache::default()
        });
        assert_eq!(
            (volume.expect("a volume")["hostPath"]["path"].as_str(), claim),
            (Some("/var/cache/ds4"), None)
        );
        let (volume, claim) = with(Cache {
            size: Some("120Gi".into()),
            storage_class_name: Some("fast".into()),
            ..Cache::default()
        });
        assert!(volume.is_none());
        assert_eq!(
            claim.expect("a claim")[0]["spec"]["resources"]["requests"]["storage"],
            "120Gi"
        );
        let (volume, claim) = with(Cache {
            size: Some("120Gi".into()),
            ..Cache::default()
        });
        assert_eq!(
            (volume.expect("a volume")["emptyDir"]["sizeLimit"].as_str(), claim),
            (Some("120Gi"), None)
        );
    }

    #[test]
    fn models_of_different_sources_do_not_meet_in_a_shared_cache() {
        let place = |url: &str| {
            Download::of_url(&HttpSource {
                url: url.into(),
                pieces: None,
            })
            .place()
        };
        assert_ne!(place("https://a/flash.gguf"), place("https://b/flash.gguf"));
        assert_eq!(
            place("https://a/flash.gguf?signature=1"),
            place("https://a/flash.gguf?signature=2")
        );
        assert_eq!(place("https://a/.hidden.gguf").1, "hidden.gguf");
    }

    #[test]
    fn an_image_is_a_volume() {
        let source = ModelSource {
            image: Some(ImageSource {
                reference: "registry.example/flash@sha256:1".into(),
                path: "/flash.gguf".into(),
            }),
            ..ModelSource::default()
        };
        let stage = Stage {
            layers: Layers {
                first: 0,
                last: Some(1),
            },
            ..stage(json!({"first": 0}))
        };
        let mounted = mounted(&model(source), &stage);
        assert_eq!(mounted.path, "/models/flash.gguf");
        assert_eq!(
            mounted.volume.expect("a volume")["image"]["reference"],
            "registry.example/flash@sha256:1"
        );
    }
}
