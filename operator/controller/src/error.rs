//! What can go wrong while reconciling. The variant is the reason that users see.

use thiserror::Error;

/// A failed reconciliation.
#[derive(Debug, Error)]
pub(crate) enum Error {
    /// The resource has no namespace.
    #[error("metadata.namespace: expected one, found none")]
    NoNamespace,
    /// A pod template does not go together with what the operator builds.
    #[error("spec.pipeline.stages[{stage}].podTemplate: {reason}")]
    PodTemplate {
        /// The stage.
        stage: String,
        /// What the types say.
        reason: String,
    },
    /// The API server refused or cannot be reached.
    #[error("{what}: {source}")]
    Api {
        /// What was asked.
        what: String,
        /// The answer.
        source: Box<kube::Error>,
    },
    /// A watch ended for good.
    #[error("a watch ended")]
    Watch,
    /// A Secret that the operator would write is somebody else's.
    #[error(
        "Secret {name}: expected one of the operator's own, found one without its labels: rename or delete it, or set spec.security.mtls.mode"
    )]
    ForeignSecret {
        /// Its name.
        name: String,
    },
    /// A certificate cannot be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// An object cannot be written as JSON.
    #[error("encoding: {0}")]
    Encoding(#[from] serde_json::Error),
}

impl Error {
    pub(crate) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api {
            what,
            source: Box::new(source),
        }
    }

    /// The event's reason.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NoNamespace => "NoNamespace",
            Self::PodTemplate { .. } => "InvalidPodTemplate",
            Self::Api { source, .. } if matches!(**source, kube::Error::Api(_)) => "ApiRefused",
            Self::Api { .. } => "ApiUnreachable",
            Self::Watch => "WatchEnded",
            Self::ForeignSecret { .. } => "ForeignSecret",
            Self::Certificate(_) => "CertificateError",
            Self::Encoding(_) => "EncodingError",
        }
    }
}
