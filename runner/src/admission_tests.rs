//! Pods that run here, and pods that do not.

use serde_json::json;

use super::*;
use crate::config::tests::config;
use crate::plan::Check;

/// A pod as the operator builds it for a stage.
pub(crate) fn stage() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "flash-early-1-0", "namespace": "llm", "uid": "u-1", "labels": {"ds4.dev/stage": "early", "apps.kubernetes.io/pod-index": "0"}},
        "spec": {
            "nodeName": "mac-1", "restartPolicy": "Always", "dnsPolicy": "ClusterFirst", "schedulerName": "default-scheduler",
            "automountServiceAccountToken": false, "enableServiceLinks": false, "terminationGracePeriodSeconds": 35,
            "securityContext": {"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532, "fsGroup": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
            "tolerations": [{"key": "ds4.dev/metal", "operator": "Exists"}],
            "initContainers": [{"name": "model", "image": "registry.example/ds4:0.1.0", "args": ["synth", "--out", "/models/model.gguf"],
                "volumeMounts": [{"name": "model", "mountPath": "/models"}], "resources": {}}],
            "containers": [{"name": "ds4", "image": "registry.example/ds4:0.1.0", "resources": {"limits": {"ds4.dev/metal": "1", "memory": "2Gi", "cpu": "1500m"}},
                "args": ["stage", "--model", "/models/model.gguf", "--backend", "metal", "--listen", "0.0.0.0:7400"],
                "env": [{"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "ports": [{"name": "grpc", "containerPort": 7400, "hostPort": 7400}],
                "securityContext": {"allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": {"drop": ["ALL"]}},
                "livenessProbe": {"grpc": {"port": 7400}, "periodSeconds": 10, "failureThreshold": 6, "timeoutSeconds": 5},
                "readinessProbe": {"exec": {"command": ["/usr/bin/ds4", "health", "localhost:7400", "--tls-dir", "/tls"]}},
                "lifecycle": {"preStop": {"sleep": {"seconds": 5}}},
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "volumeMounts": [{"name": "model", "mountPath": "/models"}, {"name": "tls", "mountPath": "/tls", "readOnly": true}]}],
            "volumes": [{"name": "model", "emptyDir": {}}, {"name": "tls", "secret": {"secretName": "flash-tls", "defaultMode": 288}}],
        },
    })
}

fn judge(raw: &Value) -> Result<Plan, Refusal> {
    let pod: Pod = serde_json::from_value(raw.clone()).expect("a pod");
    admit(raw, &pod, &config())
}

fn refusal(change: impl FnOnce(&mut Value)) -> (&'static str, String) {
    let mut raw = stage();
    change(&mut raw);
    let refusal = judge(&raw).expect_err("it must be refused");
    (refusal.reason, refusal.message)
}

#[test]
fn a_stage_of_the_operator_runs_as_it_asks() {
    let plan = judge(&stage()).expect("admitted");
    assert_eq!(
        plan.user,
        User {
            uid: 65532,
            gid: 65532,
            fs_group: Some(65532)
        }
    );
    assert_eq!((plan.init.len(), plan.grace, plan.main.pre_stop), (1, 35, 5));
    assert_eq!((plan.main.memory, plan.main.threads), (Some(2 << 30), Some(2)));
    assert_eq!(plan.main.ports, [7400]);
    let probes = &plan.main.probes;
    let liveness = probes.liveness.as_ref().expect("a probe");
    assert_eq!((liveness.failures, liveness.timeout.as_secs()), (6, 5));
    assert_eq!(
        liveness.check,
        Check::Grpc {
            port: 7400,
            service: String::new()
        }
    );
    assert!(
        matches!(&probes.readiness.as_ref().expect("a probe").check, Check::Exec(words) if words[0] == "health")
    );
}

#[test]
fn the_nodes_configuration_replaces_a_flag_and_says_so() {
    let plan = judge(&stage()).expect("admitted");
    let args = plan.main.args.join(" ");
    assert!(
        args.contains("--backend cpu") && !args.contains("metal"),
        "{args}"
    );
    let said = plan.main.overridden.expect("it is said");
    assert!(
        said.contains("--backend cpu") && said.contains("asks for metal"),
        "{said}"
    );
    assert_eq!(
        plan.init[0].overridden, None,
        "what writes the model computes nothing"
    );
}

#[test]
fn a_foreign_pod_is_refused_for_its_image_whatever_else_it_asks() {
    let (reason, message) = refusal(|pod| {
        pod["spec"]["containers"][0]["image"] = "nginx:1".into();
        pod["spec"]["hostPID"] = true.into();
    });
    assert_eq!(reason, "ImageNotAllowed");
    assert!(
        message.contains("nginx:1") && message.contains("registry.example/ds4:0.1.0"),
        "{message}"
    );
}

#[test]
fn the_engine_runs_as_a_stage_only() {
    let (reason, _) = refusal(|pod| pod["spec"]["containers"][0]["args"] = json!(["chat"]));
    assert_eq!(reason, "NotAStage");
    let (reason, message) = refusal(|pod| pod["spec"]["containers"][0]["command"] = json!(["/bin/sh", "-c"]));
    assert_eq!(reason, "NotAStage");
    assert!(message.contains("/bin/sh"), "{message}");
    let (reason, _) = refusal(|pod| pod["metadata"]["labels"] = json!({}));
    assert_eq!(reason, "NotAStage");
}

#[test]
fn what_a_process_cannot_hold_is_refused_by_its_field() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 10] = [
        (|pod| pod["spec"]["hostPID"] = true.into(), "spec.hostPID"),
        (
            |pod| pod["spec"]["runtimeClassName"] = "x".into(),
            "spec.runtimeClassName",
        ),
        (
            |pod| pod["spec"]["volumes"][0] = json!({"name": "model", "nfs": {"server": "x", "path": "/"}}),
            "spec.volumes[].nfs",
        ),
        (
            |pod| {
                pod["spec"]["volumes"][0] =
                    json!({"name": "model", "persistentVolumeClaim": {"claimName": "x"}})
            },
            "persistentVolumeClaim",
        ),
        (
            |pod| pod["spec"]["containers"][0]["securityContext"]["privileged"] = true.into(),
            "containers[].securityContext.privileged",
        ),
        (
            |pod| pod["spec"]["containers"][0]["securityContext"]["capabilities"]["add"] = json!(["X"]),
            "capabilities.add",
        ),
        (
            |pod| pod["spec"]["containers"][0]["lifecycle"]["postStart"] = json!({"sleep": {"seconds": 1}}),
            "lifecycle.postStart",
        ),
        (
            |pod| pod["spec"]["containers"][0]["envFrom"] = json!([{"secretRef": {"name": "x"}}]),
            "envFrom",
        ),
        (
            |pod| pod["spec"]["initContainers"][0]["restartPolicy"] = "Always".into(),
            "initContainers[].restartPolicy",
        ),
        (
            |pod| pod["spec"]["aFieldOfTomorrow"] = json!({"x": 1}),
            "spec.aFieldOfTomorrow",
        ),
    ];
    for (change, field) in cases {
        let (reason, message) = refusal(change);
        assert_eq!(reason, "UnsupportedField", "{message}");
        assert!(message.contains(field), "{field}: {message}");
    }
}

#[test]
fn root_is_refused() {
    let (reason, _) = refusal(|pod| pod["spec"]["securityContext"]["runAsUser"] = 0.into());
    assert_eq!(reason, "RunsAsRoot");
    let (reason, _) = refusal(|pod| pod["spec"]["securityContext"] = json!({}));
    assert_eq!(reason, "RunsAsRoot");
    let (reason, _) = refusal(|pod| pod["spec"]["containers"][0]["securityContext"]["runAsUser"] = 0.into());
    assert_eq!(reason, "RunsAsRoot");
}

#[test]
fn a_host_path_outside_the_root_is_refused() {
    for path in ["/etc", "/models/../etc", "/modelsx", "models"] {
        let (reason, message) =
            refusal(|pod| pod["spec"]["volumes"][0] = json!({"name": "model", "hostPath": {"path": path}}));
        assert_eq!(reason, "HostPathOutsideRoot");
        assert!(message.contains(path) && message.contains("/models"), "{message}");
    }
    let mut raw = stage();
    raw["spec"]["volumes"][0] =
        json!({"name": "model", "hostPath": {"path": "/models/flash.gguf", "type": "File"}});
    assert!(judge(&raw).is_ok());
}

#[test]
fn a_link_out_of_the_root_is_no_way_out() {
    let folder = tempfile::tempdir().expect("a folder");
    let root = folder.path().join("models");
    std::fs::create_dir(&root).expect("the root");
    std::os::unix::fs::symlink("/etc", root.join("out")).expect("a link");
    let roots = [root.clone()];
    assert!(allowed(&root.join("flash.gguf"), &roots) && allowed(&root, &roots));
    assert!(!allowed(&root.join("out"), &roots) && !allowed(&root.join("out/passwd"), &roots));
    assert!(!allowed(&root.join("out/new/file"), &roots));
}

#[test]
fn probes_that_reach_elsewhere_or_run_something_else_are_refused() {
    let (reason, message) = refusal(|pod| {
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"exec": {"command": ["/bin/sh"]}})
    });
    assert_eq!(reason, "UnsupportedField");
    assert!(message.contains("livenessProbe"), "{message}");
    let (_, message) = refusal(|pod| {
        pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": 80, "host": "10.0.0.1"}})
    });
    assert!(message.contains("pod itself"), "{message}");
    let (_, message) =
        refusal(|pod| pod["spec"]["containers"][0]["livenessProbe"] = json!({"httpGet": {"port": "http"}}));
    assert!(message.contains("no port"), "{message}");
}
