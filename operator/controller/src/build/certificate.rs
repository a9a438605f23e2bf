//! cert-manager's `Certificate`, for deployments that leave certificates to it.

use ds4_api::{DS4Deployment, MtlsMode, Names};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::json;

use super::metadata;
use crate::error::Error;

/// Which kind that is.
pub(crate) fn resource() -> ApiResource {
    ApiResource::from_gvk(&GroupVersionKind::gvk("cert-manager.io", "v1", "Certificate"))
}

/// The certificate that the pods mount; cert-manager writes it to the Secret and replaces it in time.
pub(super) fn build(deployment: &DS4Deployment, names: &Names) -> Result<Option<DynamicObject>, Error> {
    let mtls = &deployment.spec.security.mtls;
    let (MtlsMode::CertManager, Some(issuer)) = (mtls.mode, &mtls.issuer_ref) else {
        return Ok(None);
    };
    let mut object = DynamicObject::new(&names.tls_secret(), &resource()).data(json!({"spec": {
        "secretName": names.tls_secret(),
        "dnsNames": names.certificate_names(),
        "usages": ["server auth", "client auth"],
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "issuerRef": {"name": issuer.name, "kind": issuer.kind, "group": "cert-manager.io"},
    }}));
    object.metadata = metadata(deployment, names, names.tls_secret());
    Ok(Some(object))
}
