//! `ds4-runner invite`: what a machine needs to ask for a place in the cluster, in one file. `ds4-runner approve`: who gets it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use kube::config::KubeConfigOptions;
use kube::{Client, ResourceExt};
use rand::Rng;
use serde::{Deserialize, Serialize};
use serde_json::json;
use x509_parser::prelude::{FromDer, X509CertificationRequest};

use crate::credentials::{CLIENT_SIGNER, LABEL_NODE, SERVING_SIGNER};

/// Group of those who hold an invitation.
const GROUP: &str = "system:bootstrappers:ds4";
/// The role that may ask for certificates and see what became of it (Kubernetes' own).
const ROLE: &str = "system:node-bootstrapper";

/// The file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Invitation {
    /// For which node it was made.
    pub(crate) node: String,
    /// Where the API server is.
    pub(crate) server: String,
    /// Who signed the API server's certificate, PEM.
    pub(crate) authority: String,
    /// Who signs the certificates of those who ask this node, PEM.
    pub(crate) client_authority: String,
    /// Good for asking for certificates, for a short while.
    pub(crate) token: String,
}

impl Invitation {
    /// # Errors
    /// When the file is not one, or for another node.
    pub(crate) fn read(path: &Path, node: &str) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let invitation: Self = serde_yaml::from_str(&text).with_context(|| path.display().to_string())?;
        ensure!(
            invitation.node == node,
            "{}: node: expected {node}, found {}",
            path.display(),
            invitation.node
        );
        Ok(invitation)
    }

    /// DER of the API server's authorities.
    pub(crate) fn authorities(&self) -> Result<Vec<Vec<u8>>> {
        certificates(&self.authority).context("authority")
    }
}

/// DER of every certificate in the text.
///
/// # Errors
/// When there is none.
pub(crate) fn certificates(pem: &str) -> Result<Vec<Vec<u8>>> {
    let all: Vec<Vec<u8>> = x509_parser::pem::Pem::iter_from_buffer(pem.as_bytes())
        .map(|pem| pem.map(|pem| pem.contents))
        .collect::<Result<_, _>>()?;
    ensure!(!all.is_empty(), "expected certificates, found none");
    Ok(all)
}

/// Makes an invitation, with the rights of the current kubeconfig.
///
/// # Errors
/// When those rights do not suffice.
pub(crate) async fn invite(node: &str, server: Option<String>, hours: i64) -> Result<Invitation> {
    let connection = kube::Config::from_kubeconfig(&KubeConfigOptions::default())
        .await
        .context("an administrator's kubeconfig")?;
    let authority = connection
        .root_cert
        .clone()
        .context("the kubeconfig has no certificate authority")?;
    let address = server.unwrap_or_else(|| {
        connection
            .cluster_url
            .to_string()
            .trim_end_matches('/')
            .to_owned()
    });
    let client = Client::try_from(connection)?;
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "kube-system");
    let name = "extension-apiserver-authentication";
    let map = maps
        .get(name)
        .await
        .with_context(|| format!("ConfigMap {name}"))?;
    let client_authority = map.data.and_then(|mut data| data.remove("client-ca-file"));
    bind(&client).await?;
    let token = token(&client, node, hours).await?;
    Ok(Invitation {
        node: node.to_owned(),
        server: address,
        authority: authority.iter().map(|der| pem(der)).collect(),
        client_authority: client_authority
            .with_context(|| format!("ConfigMap {name} has no client-ca-file"))?,
        token,
    })
}

/// Holders of an invitation may ask; nothing approves by itself.
async fn bind(client: &Client) -> Result<()> {
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "ds4-runner-invited"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": GROUP}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": ROLE},
    });
    let api: Api<ClusterRoleBinding> = Api::all(client.clone());
    let parameters = PatchParams::apply("ds4-runner").force();
    api.patch("ds4-runner-invited", &parameters, &Patch::Apply(&binding))
        .await
        .context("binding the role of the invited")?;
    Ok(())
}

/// A bootstrap token as Kubernetes knows them.
async fn token(client: &Client, node: &str, hours: i64) -> Result<String> {
    let (id, secret) = (letters(6), letters(16));
    let end = Timestamp::now() + SignedDuration::from_hours(hours);
    let object: Secret = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Secret", "type": "bootstrap.kubernetes.io/token",
        "metadata": {"name": format!("bootstrap-token-{id}")},
        "stringData": {
            "description": format!("ds4-runner invite {node}"),
            "token-id": id, "token-secret": secret, "expiration": format!("{end:.0}"),
            "usage-bootstrap-authentication": "true", "auth-extra-groups": GROUP,
        },
    }))?;
    let api: Api<Secret> = Api::namespaced(client.clone(), "kube-system");
    api.create(&PostParams::default(), &object)
        .await
        .context("making a bootstrap token")?;
    Ok(format!("{id}.{secret}"))
}

/// Random letters and digits of a token's alphabet.
fn letters(count: usize) -> String {
    const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut random = rand::rng();
    (0..count)
        .map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())]))
        .collect()
}

fn pem(der: &[u8]) -> String {
    let text = serde_json::to_value(k8s_openapi::ByteString(der.to_vec()));
    let text = text
        .ok()
        .and_then(|text| text.as_str().map(str::to_owned))
        .unwrap_or_default();
    let lines: Vec<&str> = text
        .as_bytes()
        .chunks(64)
        .map(|line| std::str::from_utf8(line).unwrap_or_default())
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

/// Approves a node's two requests, as they come; refuses to approve what asks for more than that node's name.
///
/// # Errors
/// When a request is not what it should be, or none comes in time.
pub(crate) async fn approve(node: &str, patience: Duration) -> Result<Vec<String>> {
    let client = Client::try_default()
        .await
        .context("an administrator's kubeconfig")?;
    let api: Api<CertificateSigningRequest> = Api::all(client);
    let mine = ListParams::default().labels(&format!("{LABEL_NODE}={node}"));
    let start = tokio::time::Instant::now();
    let mut approved = BTreeMap::new();
    while approved.len() < 2 {
        for request in api.list(&mine).await.context("listing requests")?.items {
            let conditions = request
                .status
                .as_ref()
                .and_then(|status| status.conditions.as_ref());
            let is_open = conditions.is_none_or(Vec::is_empty);
            if is_open {
                approve_one(&api, &request, node).await?;
                approved.insert(request.spec.signer_name.clone(), request.name_any());
            }
        }
        if start.elapsed() > patience {
            bail!(
                "node {node}: expected a request for a client's and one for a server's certificate, approved {} within {patience:?}",
                approved.len()
            );
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(approved.into_values().collect())
}

async fn approve_one(
    api: &Api<CertificateSigningRequest>,
    request: &CertificateSigningRequest,
    node: &str,
) -> Result<()> {
    let name = request.name_any();
    judge(request, node).with_context(|| format!("request {name} is not approved"))?;
    let condition = json!({"type": "Approved", "status": "True", "reason": "ds4-runner", "message": format!("approved as node {node}"), "lastUpdateTime": format!("{:.0}", Timestamp::now())});
    // With the version that was judged: another request of that name is not approved.
    let patch = json!({"metadata": {"resourceVersion": request.resource_version()}, "status": {"conditions": [condition]}});
    api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
        .with_context(|| format!("approving {name}"))?;
    Ok(())
}

/// Whether it asks for this node's certificate and nothing more. Pure.
fn judge(request: &CertificateSigningRequest, node: &str) -> Result<()> {
    let spec = &request.spec;
    let user = spec.username.as_deref().unwrap_or_default();
    let groups = spec.groups.as_deref().unwrap_or_default();
    let own = format!("system:node:{node}");
    match spec.signer_name.as_str() {
        CLIENT_SIGNER => ensure!(
            user == own || groups.iter().any(|group| group == GROUP),
            "expected it to come from {own} or a member of {GROUP}, found {user}"
        ),
        // The API server has proven by the first certificate that this is the node.
        SERVING_SIGNER => ensure!(user == own, "expected it to come from {own}, found {user}"),
        other => bail!("expected the signer {CLIENT_SIGNER} or {SERVING_SIGNER}, found {other}"),
    }
    let (_, pem) = x509_parser::pem::parse_x509_pem(&spec.request.0).context("PEM")?;
    let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).context("a request")?;
    let subject = &parsed.certification_request_info.subject;
    let names: Vec<&str> = subject
        .iter_common_name()
        .filter_map(|name| name.as_str().ok())
        .collect();
    let organizations: Vec<&str> = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok())
        .collect();
    ensure!(
        names == [own.as_str()],
        "subject: expected {own}, found {names:?}"
    );
    ensure!(
        organizations == ["system:nodes"],
        "subject: expected system:nodes, found {organizations:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn request(
        signer: &str,
        user: &str,
        groups: &[&str],
        name: &str,
        organization: &str,
    ) -> CertificateSigningRequest {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params
            .distinguished_name
            .push(DnType::OrganizationName, organization);
        let key = KeyPair::generate().expect("a key");
        let pem = params
            .serialize_request(&key)
            .and_then(|request| request.pem())
            .expect("a request");
        serde_json::from_value(json!({"metadata": {"name": "x"}, "spec": {
            "signerName": signer, "username": user, "groups": groups, "request": k8s_openapi::ByteString(pem.into_bytes()),
        }}))
        .expect("a request")
    }

    #[test]
    fn only_the_invited_nodes_own_name_is_approved() {
        let mac = "system:node:mac-1";
        let token = "system:bootstrap:abcdef";
        let good = [
            request(CLIENT_SIGNER, token, &[GROUP], mac, "system:nodes"),
            request(CLIENT_SIGNER, mac, &[], mac, "system:nodes"),
            request(SERVING_SIGNER, mac, &[], mac, "system:nodes"),
        ];
        for request in &good {
            judge(request, "mac-1").expect("it is sound");
        }
        let bad = [
            (
                request(
                    CLIENT_SIGNER,
                    token,
                    &[GROUP],
                    "system:node:node1",
                    "system:nodes",
                ),
                "subject",
            ),
            (
                request(CLIENT_SIGNER, token, &[GROUP], mac, "system:masters"),
                "subject",
            ),
            (
                request(
                    CLIENT_SIGNER,
                    "somebody",
                    &["system:authenticated"],
                    mac,
                    "system:nodes",
                ),
                "come from",
            ),
            (
                request(SERVING_SIGNER, token, &[GROUP], mac, "system:nodes"),
                "come from",
            ),
            (
                request(
                    "kubernetes.io/kube-apiserver-client",
                    mac,
                    &[],
                    mac,
                    "system:nodes",
                ),
                "signer",
            ),
        ];
        for (request, word) in &bad {
            let error = format!("{:#}", judge(request, "mac-1").expect_err(word));
            assert!(error.contains(word), "{word}: {error}");
        }
    }

    #[test]
    fn an_invitation_for_another_node_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("i.yaml");
        let invitation = Invitation {
            node: "mac-1".into(),
            server: "https://x:6443".into(),
            authority: pem(&[0x30, 0]),
            client_authority: String::new(),
            token: "a.b".into(),
        };
        std::fs::write(&path, serde_yaml::to_string(&invitation).expect("YAML")).expect("written");
        assert_eq!(
            Invitation::read(&path, "mac-1").expect("it is for this node"),
            invitation
        );
        assert_eq!(invitation.authorities().expect("one"), [vec![0x30, 0]]);
        let error = Invitation::read(&path, "mac-2").expect_err("another").to_string();
        assert!(error.contains("expected mac-2, found mac-1"), "{error}");
    }

    #[test]
    fn tokens_have_the_form_of_bootstrap_tokens() {
        let token = format!("{}.{}", letters(6), letters(16));
        assert_eq!(token.len(), 23);
        assert!(
            token
                .chars()
                .all(|c| c == '.' || c.is_ascii_lowercase() || c.is_ascii_digit()),
            "{token}"
        );
    }
}
