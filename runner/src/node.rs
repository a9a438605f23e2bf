//! The Node: registered, kept alive by its Lease, and honest about this machine.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::config::Config;
use crate::host::{self, Memory};
use crate::report::DEADLINE;

/// Namespace of the nodes' Leases.
const LEASES: &str = "kube-node-lease";
/// The device that one stage takes.
pub(crate) const DEVICE: &str = "ds4.dev/metal";
/// Pods that a node can have, refused ones included.
const PODS: u32 = 16;
/// The Lease is good for so many heartbeats (the kubelet: 40 s and 10 s).
const BEATS: u64 = 4;
/// The status is written at least this often, and whenever a condition changes (the kubelet's nodeStatusReportFrequency).
const STATUS: Duration = Duration::from_secs(300);
/// Memory pressure is over once so much more than the threshold is available: one that comes and goes evicts again and again.
const RELIEF: f64 = 1.25;

/// What the Node says of itself.
pub(crate) fn object(config: &Config) -> Value {
    let mut labels = json!({
        "kubernetes.io/hostname": config.node,
        // What stages of this kind ask for; a stand-in is told by a label of its own and by its node information.
        "kubernetes.io/os": "darwin",
        "kubernetes.io/arch": "arm64",
        "ds4.dev/metal": "true",
    });
    if config.stand_in {
        labels["ds4.dev/stand-in"] = "true".into();
    }
    for (name, value) in &config.labels {
        labels[name] = value.clone().into();
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": config.node, "labels": labels},
        "spec": {"taints": [{"key": DEVICE, "value": "true", "effect": "NoSchedule"}]},
    })
}

/// Its status; `pressed` says that memory is short.
pub(crate) fn status(
    config: &Config,
    memory: Memory,
    processors: usize,
    pressed: bool,
    now: Timestamp,
    old: Option<&Value>,
) -> Result<Value> {
    let offered = memory.total.saturating_sub(config.reserved()?);
    let resources = |memory: u64| json!({"cpu": processors.to_string(), "memory": memory.to_string(), "pods": PODS.to_string(), DEVICE: "1"});
    let conditions = [
        (
            "MemoryPressure",
            pressed,
            if pressed {
                "RunnerHasInsufficientMemory"
            } else {
                "RunnerHasSufficientMemory"
            },
        ),
        ("DiskPressure", false, "RunnerDoesNotWatchDisks"),
        ("PIDPressure", false, "RunnerDoesNotWatchPIDs"),
        ("Ready", true, "RunnerReady"),
    ];
    let conditions: Vec<Value> = conditions
        .into_iter()
        .map(|(kind, yes, reason)| condition(kind, yes, reason, now, old))
        .collect();
    let version = concat!("v", env!("CARGO_PKG_VERSION"), "-ds4-runner");
    Ok(json!({
        "addresses": [{"type": "InternalIP", "address": config.address}, {"type": "Hostname", "address": config.node}],
        "capacity": resources(memory.total),
        "allocatable": resources(offered),
        "conditions": conditions,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": config.port}},
        "nodeInfo": {
            "machineID": "", "systemUUID": "", "bootID": "",
            "kernelVersion": host::line_of("uname", &["-r"]),
            "osImage": host::system(),
            "containerRuntimeVersion": concat!("ds4-runner://", env!("CARGO_PKG_VERSION")),
            "kubeletVersion": version, "kubeProxyVersion": "",
            // This machine's own, also where the labels stand in for a Mac.
            "operatingSystem": if cfg!(target_os = "macos") { "darwin" } else { std::env::consts::OS },
            "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        },
    }))
}

fn condition(kind: &str, yes: bool, reason: &str, now: Timestamp, old: Option<&Value>) -> Value {
    let status = if yes { "True" } else { "False" };
    let known = old.and_then(|old| old["conditions"].as_array());
    let since = known
        .and_then(|known| {
            known
                .iter()
                .find(|known| known["type"] == kind && known["status"] == status)
        })
        .map(|known| known["lastTransitionTime"].clone());
    json!({
        "type": kind, "status": status, "reason": reason, "message": "",
        "lastHeartbeatTime": format!("{now:.0}"),
        "lastTransitionTime": since.unwrap_or_else(|| format!("{now:.0}").into()),
    })
}

/// Whether memory is short: under the threshold, and then until there is clearly more.
#[allow(clippy::cast_precision_loss)] // memories are far below 2^53
pub(crate) fn pressed(memory: Memory, threshold: u64, before: bool) -> bool {
    let bound = if before {
        threshold as f64 * RELIEF
    } else {
        threshold as f64
    };
    (memory.available as f64) < bound
}

/// Registers the node and keeps it alive, for good; tells why pods must go when memory is short.
///
/// # Errors
/// When the node cannot be registered: then nothing here would be used.
pub(crate) async fn keep(
    client: Client,
    config: Arc<Config>,
    evict: watch::Sender<Option<String>>,
) -> Result<()> {
    ensure!(
        cfg!(target_os = "macos") || config.stand_in,
        "this is {} and no Mac: `standIn: true` in the configuration lets it stand in for one in tests",
        std::env::consts::OS
    );
    register(&client, &config).await?;
    let mut keeper = Keeper {
        node: Api::all(client.clone()),
        lease: Api::namespaced(client, LEASES),
        config,
        status: None,
        written: None,
        pressed: false,
    };
    keeper.beat(&evict).await?;
    tracing::info!(node = keeper.config.node, "ready");
    loop {
        tokio::time::sleep(keeper.config.heartbeat()).await;
        if let Err(error) = keeper.beat(&evict).await {
            tracing::warn!(error = format!("{error:#}"), "heartbeat");
        }
    }
}

async fn register(client: &Client, config: &Config) -> Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let node: Node = serde_json::from_value(object(config))?;
    match api.create(&PostParams::default(), &node).await {
        Ok(_) => {
            tracing::info!(node = config.node, "registered");
            Ok(())
        }
        Err(kube::Error::Api(answer)) if answer.code == 409 => {
            let found = api.get(&config.node).await?;
            let ours = found.labels().get("ds4.dev/metal").map(String::as_str);
            ensure!(
                ours == Some("true"),
                "node {}: expected the label ds4.dev/metal=true, found {ours:?}: another machine has that name",
                config.node
            );
            Ok(())
        }
        Err(error) => Err(error).with_context(|| format!("registering node {}", config.node)),
    }
}

struct Keeper {
    node: Api<Node>,
    lease: Api<Lease>,
    config: Arc<Config>,
    status: Option<Value>,
    written: Option<std::time::Instant>,
    pressed: bool,
}

impl Keeper {
    async fn beat(&mut self, evict: &watch::Sender<Option<String>>) -> Result<()> {
        let memory = host::memory()?;
        let threshold = self.config.eviction()?;
        let pressed = pressed(memory, threshold, self.pressed);
        let changed = pressed != self.pressed;
        if changed {
            evict.send_replace(pressed.then(|| {
                format!(
                    "the node has {} bytes of memory available, its threshold is {threshold}",
                    memory.available
                )
            }));
        }
        self.pressed = pressed;
        let due = self.written.is_none_or(|written| written.elapsed() >= STATUS);
        timely("the Lease", self.renew()).await?;
        let stands = timely("the node", self.stands()).await?;
        if due || changed || !stands {
            timely("the status", self.tell(memory)).await?;
        }
        Ok(())
    }

    /// Whether the API server still has this node as Ready: after a silence the controllers say that it is not, and only the node can say otherwise.
    async fn stands(&self) -> Result<bool> {
        let node = self
            .node
            .get(&self.config.node)
            .await
            .context("reading the node")?;
        Ok(is_ready(&node))
    }

    async fn renew(&self) -> Result<()> {
        let now = MicroTime(Timestamp::now());
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": self.config.node},
            "spec": {"holderIdentity": self.config.node, "leaseDurationSeconds": self.config.heartbeat_seconds * BEATS, "renewTime": now},
        });
        let parameters = PatchParams::default();
        match self
            .lease
            .patch(&self.config.node, &parameters, &Patch::Merge(&lease))
            .await
        {
            Err(kube::Error::Api(answer)) if answer.code == 404 => {
                let lease: Lease = serde_json::from_value(lease)?;
                self.lease.create(&PostParams::default(), &lease).await?;
                Ok(())
            }
            other => other.map(drop).context("renewing the Lease"),
        }
    }

    async fn tell(&mut self, memory: Memory) -> Result<()> {
        let status = status(
            &self.config,
            memory,
            host::processors(),
            self.pressed,
            Timestamp::now(),
            self.status.as_ref(),
        )?;
        let patch = json!({"status": status});
        self.node
            .patch_status(&self.config.node, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .context("writing the node's status")?;
        self.status = Some(status);
        self.written = Some(std::time::Instant::now());
        Ok(())
    }
}

fn is_ready(node: &Node) -> bool {
    let status = node.status.as_ref();
    let mut conditions = status
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default()
        .iter();
    conditions.any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn timely<T>(what: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(DEADLINE, work)
        .await
        .with_context(|| format!("{what}: no answer within {DEADLINE:?}"))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    const MEMORY: Memory = Memory {
        total: 64 << 30,
        available: 32 << 30,
    };

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn the_node_has_the_label_the_taint_and_one_device() {
        let node = object(&config());
        assert_eq!(node["metadata"]["labels"]["ds4.dev/metal"], "true");
        assert_eq!(node["metadata"]["labels"]["kubernetes.io/os"], "darwin");
        assert_eq!(node["spec"]["taints"][0]["key"], DEVICE);
        let status = status(&config(), MEMORY, 8, false, at(1), None).expect("a status");
        assert_eq!(status["capacity"][DEVICE], "1");
        assert_eq!(status["capacity"]["memory"], (64_u64 << 30).to_string());
        assert_eq!(status["allocatable"]["memory"], (60_u64 << 30).to_string());
        let parsed: Node =
            serde_json::from_value(json!({"metadata": {}, "status": status})).expect("a Node's status");
        assert_eq!(
            parsed
                .status
                .and_then(|status| status.conditions)
                .map(|all| all.len()),
            Some(4)
        );
    }

    #[test]
    fn a_stand_in_says_that_it_is_one() {
        let mut config = config();
        config.stand_in = true;
        assert_eq!(object(&config)["metadata"]["labels"]["ds4.dev/stand-in"], "true");
        let status = status(&config, MEMORY, 8, false, at(1), None).expect("a status");
        assert_eq!(
            status["nodeInfo"]["operatingSystem"],
            std::env::consts::OS.replace("macos", "darwin")
        );
    }

    #[test]
    fn a_conditions_time_changes_with_its_status_only() {
        let first = status(&config(), MEMORY, 8, false, at(1), None).expect("a status");
        let second = status(&config(), MEMORY, 8, true, at(2), Some(&first)).expect("a status");
        let since = |status: &Value, kind: usize| status["conditions"][kind]["lastTransitionTime"].clone();
        assert_eq!(since(&first, 3), since(&second, 3), "ready all along");
        assert_ne!(since(&first, 0), since(&second, 0), "memory has become short");
    }

    #[test]
    fn a_node_that_was_given_up_meanwhile_is_told_from_one_that_stands() {
        let node = |ready: &str| -> Node {
            let conditions = json!([{"type": "Ready", "status": ready}]);
            serde_json::from_value(json!({"metadata": {}, "status": {"conditions": conditions}}))
                .expect("a Node")
        };
        assert!(is_ready(&node("True")) && !is_ready(&node("Unknown")) && !is_ready(&Node::default()));
    }

    #[test]
    fn pressure_ends_only_when_there_is_clearly_more_memory() {
        let with = |available, before| {
            pressed(
                Memory {
                    total: 1000,
                    available,
                },
                100,
                before,
            )
        };
        assert_eq!(
            [
                with(99, false),
                with(100, false),
                with(110, true),
                with(125, true)
            ],
            [true, false, true, false]
        );
    }
}
