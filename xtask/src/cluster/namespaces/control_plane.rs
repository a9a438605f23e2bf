//! etcd, the API server, the controllers and the scheduler, in the control plane's network namespace.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::{API_PORT, addresses, network};
use crate::cluster::Cluster;
use crate::process::Started;
use crate::repository;
use crate::tools;

const STORE: &str = "http://127.0.0.1:2379";
const STORE_PEERS: &str = "http://127.0.0.1:2380";

/// etcd and the API server.
pub(super) fn start_api(cluster: &mut Cluster) -> Result<()> {
    // The API server would append to what was asked of an earlier cluster.
    super::remove(&audit_log(cluster))?;
    let data = cluster.folder().join("etcd");
    // The store lives as long as this machine's processes do: waiting for the disk would buy nothing.
    start(
        cluster,
        "etcd",
        &[
            format!("--data-dir={}", data.display()),
            "--unsafe-no-fsync".into(),
            format!("--listen-client-urls={STORE}"),
            format!("--advertise-client-urls={STORE}"),
            format!("--listen-peer-urls={STORE_PEERS}"),
            format!("--initial-advertise-peer-urls={STORE_PEERS}"),
            format!("--initial-cluster=default={STORE_PEERS}"),
        ],
    )?;
    start_api_server(cluster)
}

/// The API server alone: again, after it was ended.
pub(super) fn start_api_server(cluster: &mut Cluster) -> Result<()> {
    let mut flags = api_flags(&cluster.folder().join("pki").display().to_string());
    let policy = repository::root().join("tests/cluster/namespaces/audit.yaml");
    flags.extend([
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", audit_log(cluster).display()),
    ]);
    start(cluster, "kube-apiserver", &flags)
}

/// What the operator asked of the API server, a JSON object on each line.
pub(super) fn audit_log(cluster: &Cluster) -> PathBuf {
    cluster.folder().join("logs/audit.log")
}

fn api_flags(pki: &str) -> Vec<String> {
    let flags = [
        format!("--etcd-servers={STORE}"),
        format!("--advertise-address={}", addresses::CONTROL_PLANE),
        format!("--secure-port={API_PORT}"),
        format!("--client-ca-file={pki}/ca.crt"),
        format!("--tls-cert-file={pki}/kube-apiserver.crt"),
        format!("--tls-private-key-file={pki}/kube-apiserver.key"),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!("--service-account-key-file={pki}/tokens.pub"),
        format!("--service-account-signing-key-file={pki}/tokens.key"),
        format!("--kubelet-client-certificate={pki}/kubelet-client.crt"),
        format!("--kubelet-client-key={pki}/kubelet-client.key"),
        format!("--kubelet-certificate-authority={pki}/ca.crt"),
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--requestheader-client-ca-file={pki}/front-proxy-ca.crt"),
        "--requestheader-allowed-names=front-proxy".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        format!("--proxy-client-cert-file={pki}/front-proxy.crt"),
        format!("--proxy-client-key-file={pki}/front-proxy.key"),
        "--authorization-mode=Node,RBAC".to_owned(),
        // Macs join with a bootstrap token.
        "--enable-bootstrap-token-auth".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged".to_owned(),
        format!("--service-cluster-ip-range={}", addresses::SERVICES),
        // A pod on a node that is gone is replaced within seconds: tests wait for that.
        "--default-not-ready-toleration-seconds=5".to_owned(),
        "--default-unreachable-toleration-seconds=5".to_owned(),
    ];
    flags.into()
}

/// The controllers and the scheduler.
pub(super) fn start_controllers(cluster: &mut Cluster) -> Result<()> {
    let pki = cluster.folder().join("pki").display().to_string();
    let common = |program: &str| {
        let kubeconfig = format!("{pki}/{program}.kubeconfig");
        vec![
            format!("--kubeconfig={kubeconfig}"),
            format!("--authentication-kubeconfig={kubeconfig}"),
            format!("--authorization-kubeconfig={kubeconfig}"),
            "--leader-elect=false".to_owned(),
            "--bind-address=127.0.0.1".to_owned(),
        ]
    };
    let mut flags = common("kube-controller-manager");
    flags.extend([
        "--use-service-account-credentials".to_owned(),
        format!("--service-account-private-key-file={pki}/tokens.key"),
        format!("--root-ca-file={pki}/ca.crt"),
        format!("--cluster-signing-cert-file={pki}/ca.crt"),
        format!("--cluster-signing-key-file={pki}/ca.key"),
        "--node-monitor-period=1s".to_owned(),
        "--node-monitor-grace-period=12s".to_owned(),
    ]);
    start(cluster, "kube-controller-manager", &flags)?;
    start(cluster, "kube-scheduler", &common("kube-scheduler"))
}

fn start(cluster: &mut Cluster, program: &str, flags: &[String]) -> Result<()> {
    let programs = tools::KUBE.build()?;
    let process = Started::spawn(
        program,
        Command::new("nsenter")
            .arg(format!(
                "--net=/run/netns/{}",
                network::control_plane(&cluster.name)
            ))
            .arg(programs.join(program))
            .args(flags),
        &cluster.folder().join("logs"),
    )?;
    cluster.remember(process)
}
