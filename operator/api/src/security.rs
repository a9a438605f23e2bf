//! The HTTP side, and who may talk to whom.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The HTTP side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Server {
    /// Port of the client Service.
    #[schemars(range(min = 1, max = 65535))]
    pub port: u16,
    /// A Secret's entry with one bearer key per line; without it everyone who reaches the Service may ask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_keys_secret_ref: Option<SecretKey>,
}

impl Default for Server {
    fn default() -> Self {
        Self {
            port: 8000,
            api_keys_secret_ref: None,
        }
    }
}

/// An entry of a Secret in the deployment's namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SecretKey {
    /// The Secret.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The entry.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// Who may talk to whom.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Security {
    /// Certificates between the pods.
    pub mtls: Mtls,
    /// Whether a `NetworkPolicy` admits only what the pods need.
    pub network_policy: bool,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            mtls: Mtls::default(),
            network_policy: true,
        }
    }
}

/// Certificates between the pods of a deployment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = (
    "(self.mode == 'CertManager') == has(self.issuerRef)",
    "spec.security.mtls: issuerRef is needed with mode CertManager and means nothing with another"
))]
pub struct Mtls {
    /// Who issues them.
    #[serde(default)]
    pub mode: MtlsMode,
    /// With `CertManager`: who signs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
}

/// Who issues the pods' certificates.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MtlsMode {
    /// Nobody: pods talk in the clear.
    Disabled,
    /// The operator, with an authority of its own for each deployment; replaced before they expire.
    #[default]
    Managed,
    /// cert-manager, which must be installed.
    CertManager,
}

/// cert-manager's issuer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IssuerRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// `Issuer` or `ClusterIssuer`.
    #[serde(default = "issuer")]
    #[schemars(extend("enum" = ["Issuer", "ClusterIssuer"]))]
    pub kind: String,
}

fn issuer() -> String {
    "Issuer".into()
}
