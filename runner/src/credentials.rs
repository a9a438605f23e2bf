//! How the runner proves who it is: a key made here, a certificate that the cluster signs after somebody approved it.
//!
//! `ROOT/pki/{client,serving}.{key,crt}`. The invitation's token can ask for certificates and nothing else.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::client::ClientBuilder;
use kube::config::{AuthInfo, Config as Connection};
use kube::{Client, ResourceExt};
use rcgen::{CertificateParams, DnType, KeyPair, SanType};

use crate::config::Config;
use crate::files;
use crate::invitation::Invitation;

/// Signers of the API (certificates.k8s.io).
pub(crate) const CLIENT_SIGNER: &str = "kubernetes.io/kube-apiserver-client-kubelet";
pub(crate) const SERVING_SIGNER: &str = "kubernetes.io/kubelet-serving";
/// Label by which `ds4-runner approve` finds a node's requests.
pub(crate) const LABEL_NODE: &str = "ds4.dev/node";
/// How often an answer to a request is looked for.
const LOOK: Duration = Duration::from_millis(250);
/// A certificate is replaced once this share of its life is left (the kubelet: 10 to 30 %).
const LEFT: f64 = 0.25;
/// Group of all nodes.
const NODES: &str = "system:nodes";
/// Watches are renewed by the server within five minutes.
const SILENCE: Duration = Duration::from_secs(330);

/// What a certificate is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To ask the API server.
    Client,
    /// To answer it.
    Serving,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Serving => "serving",
        }
    }

    const fn signer(self) -> &'static str {
        match self {
            Self::Client => CLIENT_SIGNER,
            Self::Serving => SERVING_SIGNER,
        }
    }

    fn usages(self) -> Vec<String> {
        let end = match self {
            Self::Client => "client auth",
            Self::Serving => "server auth",
        };
        vec!["digital signature".into(), end.into()]
    }
}

/// A certificate chain and its key, PEM.
#[derive(Clone, Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

impl Pair {
    fn paths(config: &Config, purpose: Purpose) -> (PathBuf, PathBuf) {
        let place = |end: &str| config.pki().join(format!("{}.{end}", purpose.name()));
        (place("crt"), place("key"))
    }

    /// The one on disk, when its life is long enough still.
    pub(crate) fn kept(config: &Config, purpose: Purpose, now: Timestamp) -> Option<Self> {
        let (certificate, key) = Self::paths(config, purpose);
        let pair = Self {
            certificate: std::fs::read_to_string(certificate).ok()?,
            key: std::fs::read_to_string(key).ok()?,
        };
        (renewal(&pair.certificate).ok()? > now).then_some(pair)
    }

    /// When it has to be replaced.
    ///
    /// # Errors
    /// When it is no certificate.
    pub(crate) fn renewal(&self) -> Result<Timestamp> {
        renewal(&self.certificate)
    }
}

fn renewal(pem: &str) -> Result<Timestamp> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(pem.as_bytes()).context("a certificate's PEM")?;
    let certificate = pem.parse_x509().context("a certificate")?;
    let life = certificate.validity();
    let (start, end) = (life.not_before.timestamp(), life.not_after.timestamp());
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // seconds of a life
    let left = ((end - start) as f64 * LEFT) as i64;
    Timestamp::from_second(end - left).context("a certificate's end")
}

/// A client for the API server, with a certificate or with the invitation's token.
///
/// # Errors
/// When the invitation's address or authority is unusable.
pub(crate) fn client(invitation: &Invitation, pair: Option<&Pair>) -> Result<Client> {
    let mut connection = Connection::new(invitation.server.parse().context("server")?);
    connection.root_cert = Some(invitation.authorities()?);
    connection.connect_timeout = Some(Duration::from_secs(5));
    connection.read_timeout = Some(SILENCE);
    connection.auth_info = match pair {
        Some(pair) => AuthInfo {
            client_certificate_data: Some(base64(pair.certificate.as_bytes())),
            client_key_data: Some(base64(pair.key.as_bytes()).into()),
            ..AuthInfo::default()
        },
        None => AuthInfo {
            token: Some(invitation.token.clone().into()),
            ..AuthInfo::default()
        },
    };
    Ok(ClientBuilder::try_from(connection)?.build())
}

/// The certificate on disk, or a new one: asked for, waited for, kept.
///
/// # Errors
/// When the request is denied, or cannot be made.
pub(crate) async fn obtain(client: &Client, config: &Config, purpose: Purpose) -> Result<Pair> {
    if let Some(pair) = Pair::kept(config, purpose, Timestamp::now()) {
        return Ok(pair);
    }
    let key = KeyPair::generate()?;
    let request = request(config, purpose, &key)?;
    let api: Api<CertificateSigningRequest> = Api::all(client.clone());
    let made = api
        .create(&PostParams::default(), &request)
        .await
        .with_context(|| format!("asking for a {} certificate", purpose.name()))?;
    let name = made.name_any();
    tracing::info!(
        request = name,
        "waiting until this is approved: ds4-runner approve {}",
        config.node
    );
    let certificate = issued(&api, &name).await?;
    let pair = Pair {
        certificate,
        key: key.serialize_pem(),
    };
    keep(config, purpose, &pair)?;
    Ok(pair)
}

fn keep(config: &Config, purpose: Purpose, pair: &Pair) -> Result<()> {
    private_folder(&config.pki())?;
    let (certificate, key) = Pair::paths(config, purpose);
    files::save(&key, pair.key.as_bytes())?;
    files::save(&certificate, pair.certificate.as_bytes())
}

fn private_folder(folder: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(std::fs::set_permissions(
        folder,
        std::fs::Permissions::from_mode(0o700),
    )?)
}

fn request(config: &Config, purpose: Purpose, key: &KeyPair) -> Result<CertificateSigningRequest> {
    let mut params = CertificateParams::default();
    let name = format!("system:node:{}", config.node);
    params.distinguished_name.push(DnType::OrganizationName, NODES);
    params.distinguished_name.push(DnType::CommonName, name);
    if purpose == Purpose::Serving {
        params.subject_alt_names = vec![
            SanType::DnsName(config.node.as_str().try_into().context("node")?),
            SanType::IpAddress(config.address),
        ];
    }
    let pem = params.serialize_request(key)?.pem()?;
    Ok(CertificateSigningRequest {
        metadata: ObjectMeta {
            generate_name: Some(format!("ds4-{}-{}-", config.node, purpose.name())),
            labels: Some([(LABEL_NODE.to_owned(), config.node.clone())].into()),
            ..ObjectMeta::default()
        },
        spec: CertificateSigningRequestSpec {
            request: ByteString(pem.into_bytes()),
            signer_name: purpose.signer().into(),
            usages: Some(purpose.usages()),
            ..CertificateSigningRequestSpec::default()
        },
        status: None,
    })
}

async fn issued(api: &Api<CertificateSigningRequest>, name: &str) -> Result<String> {
    loop {
        let found = api.get(name).await.with_context(|| format!("request {name}"))?;
        let status = found.status.unwrap_or_default();
        let mut conditions = status.conditions.iter().flatten();
        let refused = conditions.find(|condition| matches!(condition.type_.as_str(), "Denied" | "Failed"));
        if let Some(refused) = refused {
            bail!(
                "request {name}: {}: {}",
                refused.type_,
                refused.message.as_deref().unwrap_or_default()
            );
        }
        if let Some(certificate) = status.certificate {
            return String::from_utf8(certificate.0).context("a certificate that is no text");
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Standard alphabet with padding, as kubeconfigs have it.
fn base64(bytes: &[u8]) -> String {
    let encoded = serde_json::to_value(ByteString(bytes.to_vec()));
    encoded
        .ok()
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;
    use x509_parser::prelude::{FromDer, X509CertificationRequest};

    #[test]
    fn a_request_asks_for_a_nodes_name_and_for_the_address_it_answers_at() {
        let key = KeyPair::generate().expect("a key");
        for purpose in [Purpose::Client, Purpose::Serving] {
            let request = request(&config(), purpose, &key).expect("a request");
            let (_, pem) = x509_parser::pem::parse_x509_pem(&request.spec.request.0).expect("PEM");
            let (_, parsed) = X509CertificationRequest::from_der(&pem.contents).expect("a request");
            let subject = parsed.certification_request_info.subject.to_string();
            assert!(
                subject.contains("CN=system:node:mac-1") && subject.contains("O=system:nodes"),
                "{subject}"
            );
            assert_eq!(
                parsed.requested_extensions().is_some(),
                purpose == Purpose::Serving
            );
            assert_eq!(request.spec.signer_name, purpose.signer());
        }
    }

    #[test]
    fn a_certificate_is_replaced_in_its_last_quarter() {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2026, 1, 1);
        params.not_after = rcgen::date_time_ymd(2026, 1, 5);
        let pem = params.self_signed(&key).expect("a certificate").pem();
        assert_eq!(renewal(&pem).expect("a time").to_string(), "2026-01-04T00:00:00Z");
    }

    #[test]
    fn keys_are_for_their_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let root = tempfile::tempdir().expect("a folder");
        let mut config = config();
        config.root = root.path().to_owned();
        let pair = Pair {
            certificate: "c".into(),
            key: "k".into(),
        };
        keep(&config, Purpose::Client, &pair).expect("kept");
        let mode = |path: PathBuf| path.metadata().expect("it is there").permissions().mode() & 0o777;
        assert_eq!(
            (mode(config.pki()), mode(config.pki().join("client.key"))),
            (0o700, 0o600)
        );
    }
}
