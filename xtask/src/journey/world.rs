//! The cluster of the journeys, with one deployment under observation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::load::{Answer, Load, Report, ask};
use crate::cluster::Cluster;
use crate::demo::SYSTEM;
use crate::images::Name;
use crate::process::Started;
use crate::repository;

/// The deployment.
pub(super) const FLASH: &str = "flash";
/// The port of its Service.
const PORT: u16 = 8000;
/// How long a journey may take to come to rest.
const PATIENCE: Duration = Duration::from_secs(150);

/// A cluster with the chart installed.
pub(super) struct World<'a> {
    pub(super) cluster: &'a mut Cluster,
}

/// The deployment of the journeys: two stages, with a small random model.
pub(super) fn flash(replicas: i32) -> Value {
    json!({
        "apiVersion": "ds4.dev/v1alpha1", "kind": "DS4Deployment", "metadata": {"name": FLASH},
        "spec": {
            "replicas": replicas,
            "model": {"name": FLASH, "source": {"synthetic": {"preset": "micro", "seed": 7}}},
            "pipeline": {"prefillChunkTokens": 32, "stages": [
                {"name": "early", "layers": {"first": 0, "last": 0}},
                {"name": "output", "layers": {"first": 1}},
            ]},
            "handoff": {"minPromptTokens": 32, "timeoutSeconds": 10},
            "rollout": {"progressDeadlineSeconds": 600, "drainTimeoutSeconds": 30},
            "failurePolicy": {"maxRestarts": 1},
        },
    })
}

/// The same, whose new pipelines come beside the old ones.
pub(super) fn beside(replicas: i32) -> Value {
    let mut manifest = flash(replicas);
    manifest["spec"]["rollout"]["maxSurge"] = 1.into();
    manifest["spec"]["rollout"]["maxUnavailable"] = 0.into();
    manifest
}

/// The same, with an option that makes another revision.
pub(super) fn with_window(window: i32) -> Value {
    let mut manifest = beside(1);
    manifest["spec"]["pipeline"]["window"] = window.into();
    manifest
}

/// For the table.
pub(super) fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// The same, whose output pods keep nothing between requests: the load asks one question again and again, and each time it is to go over
/// the stages.
fn forgetful(manifest: &Value) -> Value {
    let mut manifest = manifest.clone();
    if manifest["kind"] != "DS4Deployment" {
        return manifest;
    }
    let stages = manifest["spec"]["pipeline"]["stages"].as_array_mut();
    for stage in stages.into_iter().flatten() {
        if stage["layers"]["last"].is_null() {
            let containers = &mut stage["podTemplate"]["spec"]["containers"];
            if containers.is_null() {
                *containers = json!([{"name": "ds4"}]);
            }
            let env = &mut containers[0]["env"];
            let mut all = env.as_array().cloned().unwrap_or_default();
            all.push(json!({"name": "DS4_KEPT_BUDGET", "value": "1"}));
            *env = all.into();
        }
    }
    manifest
}

impl World<'_> {
    pub(super) fn apply(&self, manifest: &Value) -> Result<()> {
        let file = self.cluster.folder().join("manifest.json");
        std::fs::write(&file, forgetful(manifest).to_string())?;
        let file = file.display().to_string();
        self.cluster.kubectl(&["apply", "-f", &file]).map(drop)
    }

    /// Applies it, waits until it rests, and returns where it answers.
    pub(super) fn settle(&mut self, manifest: &Value) -> Result<String> {
        self.apply(manifest)?;
        self.rest()?;
        self.address()
    }

    /// Where the deployment answers.
    pub(super) fn address(&mut self) -> Result<String> {
        let forward = self.cluster.forward("default", FLASH, PORT)?;
        Ok(format!("http://{forward}"))
    }

    /// Removes the deployment.
    pub(super) fn remove(&mut self) -> Result<()> {
        self.cluster.end_forward("default", FLASH, PORT)?;
        let delete = ["delete", "ds4", FLASH, "--ignore-not-found"];
        self.cluster.kubectl(&delete).map(drop)
    }

    pub(super) fn get(&self) -> Result<Value> {
        let text = self.cluster.kubectl(&["get", "ds4", FLASH, "-o", "json"])?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Waits until the newest spec is rolled out and every pod and route is as it should be; returns how long that took.
    pub(super) fn rest(&self) -> Result<Duration> {
        self.until("at rest", |deployment| {
            let status = &deployment["status"];
            status["observedGeneration"] == deployment["metadata"]["generation"]
                && status["currentRevision"] == status["updateRevision"]
                && status["currentRevision"].is_string()
                && status["readyReplicas"].as_i64().unwrap_or(0)
                    == deployment["spec"]["replicas"].as_i64().unwrap_or(1)
                && says(deployment, "Progressing", "False", "Settled")
                && says(deployment, "Degraded", "False", "AsExpected")
                && says(deployment, "HandoffReady", "True", "RouteComplete")
        })
    }

    /// Waits for a condition; returns how long that took.
    pub(super) fn until_says(&self, kind: &str, status: &str, reason: &str) -> Result<Duration> {
        self.until(&format!("{kind}={status} {reason}"), |deployment| {
            says(deployment, kind, status, reason)
        })
    }

    /// Waits until `found` holds; returns how long that took.
    pub(super) fn until(&self, what: &str, found: impl Fn(&Value) -> bool) -> Result<Duration> {
        let start = Instant::now();
        let mut last = Value::Null;
        while start.elapsed() < PATIENCE {
            // While the API server is away there is nothing to see.
            if let Ok(deployment) = self.get() {
                if found(&deployment) {
                    return Ok(start.elapsed());
                }
                last = deployment["status"].clone();
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        bail!("{what}: not after {} s; the status is {last}", PATIENCE.as_secs())
    }

    /// The condition's message.
    pub(super) fn message(&self, kind: &str) -> Result<String> {
        Ok(message(&self.get()?, kind).to_owned())
    }

    /// Names of the pods of a stage, or of all.
    pub(super) fn pods(&self, stage: Option<&str>) -> Result<Vec<String>> {
        let mut selector = format!("ds4.dev/name={FLASH}");
        if let Some(stage) = stage {
            selector += &format!(",ds4.dev/stage={stage}");
        }
        let path = "jsonpath={.items[*].metadata.name}";
        let said = self
            .cluster
            .kubectl(&["get", "pods", "-l", &selector, "-o", path])?;
        Ok(said.split_whitespace().map(str::to_owned).collect())
    }

    /// The node of a pod, by number.
    pub(super) fn node_of(&self, pod: &str) -> Result<usize> {
        let path = "jsonpath={.spec.nodeName}";
        let said = self.cluster.kubectl(&["get", "pod", pod, "-o", path])?;
        said.trim_start_matches("node")
            .parse()
            .with_context(|| said.clone())
    }

    /// Removes the deployment and waits until its pods are gone.
    pub(super) fn clear(&mut self) -> Result<()> {
        self.remove()?;
        let start = Instant::now();
        while !self.pods(None)?.is_empty() {
            ensure!(start.elapsed() < PATIENCE, "its pods are still there");
            std::thread::sleep(Duration::from_millis(300));
        }
        Ok(())
    }

    /// Runs `work` under a constant load; every answer must be what the deployment answers before or after it, and at most `failures` may fail.
    pub(super) fn under_load<T>(
        &mut self,
        address: &str,
        failures: usize,
        work: impl FnOnce(&mut Self) -> Result<T>,
    ) -> Result<(T, Report)> {
        let before = self.answer(address)?;
        let load = Load::start(address, FLASH);
        // The load must be seen running well before anything happens to it.
        std::thread::sleep(Duration::from_secs(1));
        let outcome = work(self);
        std::thread::sleep(Duration::from_secs(1));
        let report = load.end()?;
        if !report.reasons.is_empty() {
            eprintln!("      {}", report.why());
        }
        let outcome = outcome.with_context(|| format!("meanwhile: {}", report.summary()))?;
        let after = self.answer(address)?;
        report.check(&[before.text, after.text], failures)?;
        Ok((outcome, report))
    }

    /// One answer, disaggregated.
    pub(super) fn answer(&self, address: &str) -> Result<Answer> {
        let answer = ask(address, FLASH, true)?;
        ensure!(
            answer.decision == "disaggregated",
            "x-ds4-disaggregation: expected disaggregated, found {}",
            answer.decision
        );
        Ok(answer)
    }

    /// How many replicas of the chart's operator run.
    pub(super) fn operators(&self, count: usize) -> Result<()> {
        let (count, selector) = (count.to_string(), "-lapp.kubernetes.io/name=ds4-operator");
        let scale = ["scale", "deployment/ds4", "-n", SYSTEM, "--replicas", &count];
        self.cluster.kubectl(&scale)?;
        if count == "0" {
            let gone = [
                "wait",
                "--for=delete",
                "pod",
                selector,
                "-n",
                SYSTEM,
                "--timeout=60s",
            ];
            return self.cluster.kubectl(&gone).map(drop);
        }
        let rollout = [
            "rollout",
            "status",
            "deployment/ds4",
            "-n",
            SYSTEM,
            "--timeout=60s",
        ];
        self.cluster.kubectl(&rollout).map(drop)
    }

    /// An operator as a process in the cluster's network, with the rights of the chart's.
    pub(super) fn operator(&self, name: &str, arguments: &[&str]) -> Result<Started> {
        self.operator_of(&repository::target().join("debug/ds4-operator"), name, arguments)
    }

    /// The same, of this program.
    pub(super) fn operator_of(&self, program: &Path, name: &str, arguments: &[&str]) -> Result<Started> {
        let kubeconfig = self.kubeconfig_of("ds4")?;
        let mut command: Command = self.cluster.inside(program)?;
        command
            .args(["run", "--engine-image", Name::Engine.reference()])
            .args(["--engine-image-pull-policy", "Never"])
            .args(arguments)
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", "info");
        Started::spawn(name, &mut command, &self.cluster.folder().join("logs"))
    }

    /// For another operator, which may do anything.
    pub(super) fn peers_account(&self) -> Result<()> {
        self.cluster
            .kubectl(&["create", "serviceaccount", "peer", "-n", SYSTEM])?;
        let subject = format!("--serviceaccount={SYSTEM}:peer");
        let role = "--clusterrole=cluster-admin";
        self.cluster
            .kubectl(&["create", "clusterrolebinding", "ds4-peer", role, &subject])
            .map(drop)
    }

    /// That other operator.
    pub(super) fn peer(&self, program: &Path, name: &str, arguments: &[&str]) -> Result<Started> {
        let mut command: Command = self.cluster.inside(program)?;
        command
            .args(arguments)
            .env("KUBECONFIG", self.kubeconfig_of("peer")?);
        Started::spawn(name, &mut command, &self.cluster.folder().join("logs"))
    }

    fn kubeconfig_of(&self, account: &str) -> Result<PathBuf> {
        let token = self
            .cluster
            .kubectl(&["create", "token", account, "-n", SYSTEM, "--duration=1h"])?;
        let authority = self.cluster.folder().join("pki/ca.crt");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "operator",
            "contexts": [{"name": "operator", "context": {"cluster": "here", "user": "operator"}}],
            "clusters": [{"name": "here", "cluster": {"server": "https://127.0.0.1:6443", "certificate-authority": authority}}],
            "users": [{"name": "operator", "user": {"token": token.trim()}}],
        });
        let file = self.cluster.folder().join(format!("{account}.kubeconfig"));
        std::fs::write(&file, config.to_string())?;
        Ok(file)
    }
}

fn condition<'a>(deployment: &'a Value, kind: &str) -> Option<&'a Value> {
    let conditions = deployment["status"]["conditions"].as_array()?;
    conditions.iter().find(|known| known["type"] == kind)
}

/// A condition's message; nothing without the condition.
pub(super) fn message<'a>(deployment: &'a Value, kind: &str) -> &'a str {
    condition(deployment, kind)
        .and_then(|found| found["message"].as_str())
        .unwrap_or_default()
}

/// Whether a condition is so, for the spec as it is now.
pub(super) fn says(deployment: &Value, kind: &str, status: &str, reason: &str) -> bool {
    condition(deployment, kind).is_some_and(|known| {
        known["status"] == status
            && known["reason"] == reason
            && known["observedGeneration"] == deployment["metadata"]["generation"]
    })
}
