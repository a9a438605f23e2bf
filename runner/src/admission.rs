//! Which pods run here: those of ds4 stages, and of them only what a native process can hold. The rest is refused by name. Pure.

use std::path::{Component, Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod, Probe, SecurityContext, Volume};
use kube::ResourceExt;
use serde_json::Value;

use crate::config::Config;
use crate::plan::{ContainerPlan, Mount, Plan, PlannedProbe, Probes, RestartPolicy, User};
use crate::quantity;

/// Why a pod does not run here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// One word, for the pod's status and its event.
    pub(crate) reason: &'static str,
    /// What was asked for and what there is.
    pub(crate) message: String,
}

/// Where the engine lies in its image.
pub(crate) const PROGRAM: &str = "/usr/bin/ds4";
/// What the engine may be told to do: serve layers, and bring the model.
const COMMANDS: [&str; 4] = ["stage", "serve", "fetch", "synth"];
/// Label of every pod of a stage.
const LABEL_STAGE: &str = "ds4.dev/stage";
/// The last words' place unless the pod says another.
const LAST_WORDS: &str = "/dev/termination-log";

/// Fields of a pod that are understood, or that say nothing to a node. What is under one of them is known too.
const KNOWN: &[&str] = &[
    // The scheduler's and the API server's.
    "affinity",
    "automountServiceAccountToken",
    "dnsPolicy",
    "enableServiceLinks",
    "hostNetwork",
    "hostname",
    "imagePullSecrets",
    "nodeName",
    "nodeSelector",
    "os.name",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "schedulerName",
    "serviceAccount",
    "serviceAccountName",
    "subdomain",
    "tolerations",
    "topologySpreadConstraints",
    // Held.
    "restartPolicy",
    "terminationGracePeriodSeconds",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.fsGroup",
    // A process of an ordinary user has no more rights than its user; there is no filter of system calls (docs/mac.md).
    "securityContext.seccompProfile",
    "volumes[].name",
    "volumes[].emptyDir",
    "volumes[].hostPath",
    "volumes[].secret",
    "volumes[].configMap",
    "volumes[].downwardAPI",
    "volumes[].projected.defaultMode",
    "volumes[].projected.sources[].secret",
    "volumes[].projected.sources[].configMap",
    "volumes[].projected.sources[].downwardAPI",
    "volumes[].projected.sources[].serviceAccountToken",
];

/// The same of a container.
const KNOWN_OF_CONTAINERS: &[&str] = &[
    "name",
    "image",
    "imagePullPolicy",
    "command",
    "args",
    "env",
    "lifecycle.preStop.sleep",
    "livenessProbe",
    "readinessProbe",
    "startupProbe",
    "ports",
    "resources.limits",
    "resources.requests",
    "securityContext.allowPrivilegeEscalation",
    "securityContext.capabilities.drop",
    "securityContext.readOnlyRootFilesystem",
    "securityContext.runAsUser",
    "securityContext.runAsGroup",
    "securityContext.runAsNonRoot",
    "securityContext.seccompProfile",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts[].name",
    "volumeMounts[].mountPath",
    "volumeMounts[].readOnly",
    "volumeMounts[].subPath",
    "volumeMounts[].recursiveReadOnly",
];

fn refuse<T>(reason: &'static str, message: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal {
        reason,
        message: message.into(),
    })
}

/// Decides, from the pod as the API server gave it: fields that this program does not know are seen too.
///
/// # Errors
/// With the reason and the field.
pub(crate) fn admit(raw: &Value, pod: &Pod, config: &Config) -> Result<Plan, Refusal> {
    let Some(spec) = &pod.spec else {
        return refuse("NotAStage", "the pod has no spec");
    };
    // What it wants to run is said before how: a foreign pod is foreign, whatever its fields.
    for container in spec.init_containers.iter().flatten().chain(&spec.containers) {
        of_ours(container, config)?;
    }
    if !pod.labels().contains_key(LABEL_STAGE) {
        return refuse(
            "NotAStage",
            format!("expected the label {LABEL_STAGE}: this node runs stages of DS4Deployments only"),
        );
    }
    fields(&raw["spec"])?;
    let [container] = spec.containers.as_slice() else {
        return refuse(
            "UnsupportedField",
            format!("spec.containers: expected one, found {}", spec.containers.len()),
        );
    };
    let user = user(pod, container)?;
    let volumes = spec.volumes.clone().unwrap_or_default();
    for volume in &volumes {
        host_path(volume, config)?;
    }
    let init = spec.init_containers.iter().flatten();
    let plan = |container| plan(container, &volumes, config);
    Ok(Plan {
        init: init.map(plan).collect::<Result<_, _>>()?,
        main: plan(container)?,
        restart: RestartPolicy::of(spec.restart_policy.as_deref()),
        user,
        grace: u64::try_from(spec.termination_grace_period_seconds.unwrap_or(30)).unwrap_or(0),
        volumes,
    })
}

/// Whether it is an engine that is bundled here, and told to do what a stage's pod does.
fn of_ours(container: &Container, config: &Config) -> Result<(), Refusal> {
    let (name, image) = (&container.name, container.image.as_deref().unwrap_or_default());
    if config.engine(image).is_none() {
        let known: Vec<&str> = config
            .engines
            .iter()
            .map(|engine| engine.image.as_str())
            .collect();
        return refuse(
            "ImageNotAllowed",
            format!(
                "container {name}: expected one of the images {}, found {image:?}",
                known.join(", ")
            ),
        );
    }
    let command = container.command.as_deref().unwrap_or_default();
    if !command.is_empty() && command != [PROGRAM] {
        return refuse(
            "NotAStage",
            format!("container {name}: command: expected none or {PROGRAM}, found {command:?}"),
        );
    }
    let first = container.args.iter().flatten().next().map_or("", String::as_str);
    if !COMMANDS.contains(&first) {
        return refuse(
            "NotAStage",
            format!(
                "container {name}: args: expected one of {} first, found {first:?}",
                COMMANDS.join(", ")
            ),
        );
    }
    Ok(())
}

/// Refuses fields that are set and not known.
fn fields(spec: &Value) -> Result<(), Refusal> {
    let mut pod = spec.clone();
    let mut containers = Vec::new();
    for list in ["initContainers", "containers"] {
        let taken = pod.as_object_mut().and_then(|pod| pod.remove(list));
        containers.extend(
            taken
                .iter()
                .flat_map(|taken| taken.as_array().cloned().unwrap_or_default())
                .map(|container| (list, container)),
        );
    }
    let mut unknown = unknown(&pod, KNOWN);
    for (list, container) in &containers {
        let of = self::unknown(container, KNOWN_OF_CONTAINERS);
        unknown.extend(of.into_iter().map(|path| format!("{list}[].{path}")));
    }
    if unknown.is_empty() {
        return Ok(());
    }
    refuse(
        "UnsupportedField",
        format!(
            "spec.{}: a native process on this node cannot hold it",
            unknown.join(", spec.")
        ),
    )
}

/// Paths of set values that no known path covers.
fn unknown(value: &Value, known: &[&str]) -> Vec<String> {
    let mut leaves = Vec::new();
    leaf_paths(value, String::new(), &mut leaves);
    let covers = |path: &str, known: &str| {
        path.strip_prefix(known)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    };
    leaves.retain(|path| !known.iter().any(|known| covers(path, known)));
    leaves.sort();
    leaves.dedup();
    leaves
}

/// Paths of everything that is set; `false` and emptiness set nothing, but an empty object may choose (`emptyDir: {}`).
fn leaf_paths(value: &Value, path: String, leaves: &mut Vec<String>) {
    match value {
        Value::Null | Value::Bool(false) => {}
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                leaf_paths(value, path, leaves);
            }
        }
        Value::Array(items) => items
            .iter()
            .for_each(|item| leaf_paths(item, format!("{path}[]"), leaves)),
        Value::Object(_) if path == "securityContext" || path == "resources" => {}
        _ => leaves.push(path),
    }
}

/// Never root: a native process of root would own the machine.
fn user(pod: &Pod, container: &Container) -> Result<User, Refusal> {
    let of_pod = pod.spec.as_ref().and_then(|spec| spec.security_context.clone());
    let of_pod = of_pod.unwrap_or_default();
    let SecurityContext {
        run_as_user,
        run_as_group,
        ..
    } = container.security_context.clone().unwrap_or_default();
    let id = |own: Option<i64>, pods: Option<i64>| own.or(pods).and_then(|id| u32::try_from(id).ok());
    let uid = id(run_as_user, of_pod.run_as_user);
    match uid {
        Some(uid) if uid != 0 => Ok(User {
            uid,
            gid: id(run_as_group, of_pod.run_as_group).unwrap_or(uid),
            fs_group: id(None, of_pod.fs_group),
        }),
        _ => refuse(
            "RunsAsRoot",
            format!("securityContext.runAsUser: expected an ordinary user, found {uid:?}"),
        ),
    }
}

/// A path of the node must lie under a configured root, also once its links are followed.
fn host_path(volume: &Volume, config: &Config) -> Result<(), Refusal> {
    let Some(host) = &volume.host_path else {
        return Ok(());
    };
    let path = Path::new(&host.path);
    if allowed(path, &config.host_path_roots) {
        return Ok(());
    }
    let roots: Vec<String> = config
        .host_path_roots
        .iter()
        .map(|root| root.display().to_string())
        .collect();
    refuse(
        "HostPathOutsideRoot",
        format!(
            "volume {}: hostPath: expected a path under {}, found {}",
            volume.name,
            if roots.is_empty() {
                "no root at all".to_owned()
            } else {
                roots.join(", ")
            },
            host.path
        ),
    )
}

/// Whether a path lies under one of the roots, as written and as it is on the disk.
pub(crate) fn allowed(path: &Path, roots: &[PathBuf]) -> bool {
    let plain = path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
    plain
        && roots
            .iter()
            .any(|root| path.starts_with(root) && real(path).starts_with(real(root)))
}

/// The path with the links of what exists of it followed.
fn real(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    match (path.parent(), path.file_name()) {
        (Some(parent), Some(name)) => real(parent).join(name),
        _ => path.to_owned(),
    }
}

fn plan(container: &Container, volumes: &[Volume], config: &Config) -> Result<ContainerPlan, Refusal> {
    let image = container.image.clone().unwrap_or_default();
    let Some(engine) = config.engine(&image) else {
        return refuse("ImageNotAllowed", image);
    };
    let limit = |name: &str| -> Result<Option<f64>, Refusal> {
        let limits = container
            .resources
            .as_ref()
            .and_then(|resources| resources.limits.as_ref());
        limits
            .and_then(|limits| limits.get(name))
            .map(|limit| quantity::value(&limit.0))
            .transpose()
            .or_else(|error| {
                refuse(
                    "UnsupportedField",
                    format!("container {}: {name}: {error:#}", container.name),
                )
            })
    };
    let mounts = container.volume_mounts.iter().flatten().map(|mount| Mount {
        path: mount.mount_path.trim_end_matches('/').to_owned(),
        volume: mount.name.clone(),
        sub_path: mount.sub_path.clone().unwrap_or_default(),
    });
    let mounts: Vec<Mount> = mounts.collect();
    for mount in &mounts {
        check_mount(mount, volumes)?;
    }
    let (args, overridden) = overridden(container.args.clone().unwrap_or_default(), &engine.arguments);
    let pre_stop = container
        .lifecycle
        .as_ref()
        .and_then(|lifecycle| lifecycle.pre_stop.as_ref()?.sleep.as_ref())
        .map_or(0, |sleep| u64::try_from(sleep.seconds).unwrap_or(0));
    Ok(ContainerPlan {
        name: container.name.clone(),
        image,
        engine: engine.clone(),
        args,
        overridden,
        env: container.env.clone().unwrap_or_default(),
        mounts,
        ports: ports(container),
        probes: probes(container)?,
        memory: limit("memory")?.map(whole),
        threads: limit("cpu")?.map(|cores| whole(cores).max(1)),
        pre_stop,
        last_words: container
            .termination_message_path
            .clone()
            .unwrap_or_else(|| LAST_WORDS.into()),
        last_words_from_log: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
    })
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // quantities are no less than 0 and far below 2^53
fn whole(value: f64) -> u64 {
    value.ceil() as u64
}

fn check_mount(mount: &Mount, volumes: &[Volume]) -> Result<(), Refusal> {
    let inside = |path: &str| {
        !Path::new(path)
            .components()
            .any(|part| part == Component::ParentDir)
    };
    if !inside(&mount.sub_path) || Path::new(&mount.sub_path).is_absolute() || !inside(&mount.path) {
        return refuse(
            "UnsupportedField",
            format!("mount {}: expected no way out of the volume", mount.path),
        );
    }
    if volumes.iter().all(|volume| volume.name != mount.volume) {
        return refuse(
            "UnsupportedField",
            format!("mount {}: no volume is called {}", mount.path, mount.volume),
        );
    }
    Ok(())
}

/// Gives flags the values that the node's configuration has for them; says which the pod had asked for.
fn overridden(mut args: Vec<String>, flags: &[String]) -> (Vec<String>, Option<String>) {
    let mut said = Vec::new();
    for pair in flags.chunks(2) {
        let [flag, value] = pair else { continue };
        let asked = args.iter().position(|argument| argument == flag);
        // Only the commands that compute take flags about computing.
        let computes = matches!(args.first().map(String::as_str), Some("stage" | "serve"));
        let was = match asked.and_then(|place| args.get_mut(place + 1)) {
            Some(old) if old == value => continue,
            Some(old) => std::mem::replace(old, value.clone()),
            None if computes => {
                args.extend([flag.clone(), value.clone()]);
                "none".into()
            }
            None => continue,
        };
        said.push(format!(
            "{flag} {value} by this node's configuration (the pod asks for {was})"
        ));
    }
    (args, (!said.is_empty()).then(|| said.join(", ")))
}

fn ports(container: &Container) -> Vec<u16> {
    let ports = container.ports.iter().flatten();
    ports
        .filter_map(|port| u16::try_from(port.container_port).ok())
        .collect()
}

fn probes(container: &Container) -> Result<Probes, Refusal> {
    let probe = |probe: &Option<Probe>, field: &str| {
        probe
            .as_ref()
            .map(|probe| PlannedProbe::of(probe, container))
            .transpose()
            .or_else(|what| {
                refuse(
                    "UnsupportedField",
                    format!("container {}: {field}: {what}", container.name),
                )
            })
    };
    Ok(Probes {
        startup: probe(&container.startup_probe, "startupProbe")?,
        liveness: probe(&container.liveness_probe, "livenessProbe")?,
        readiness: probe(&container.readiness_probe, "readinessProbe")?,
    })
}

#[cfg(test)]
#[path = "admission_tests.rs"]
pub(crate) mod tests;
