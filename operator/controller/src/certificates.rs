//! The authority of a deployment and its pods' certificate, kept in two Secrets: `NAME-ca`, which no pod mounts, and `NAME-tls`.

use ds4_api::{DS4Deployment, Names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

use crate::apply::MANAGER;
use crate::build::metadata;
use crate::error::Error;

/// Annotation with the time from which the certificate is replaced.
const RENEW_AFTER: &str = "ds4.dev/renew-after";
/// The authority outlives every pod.
const AUTHORITY_LIFETIME: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// Clocks of nodes may be this far behind.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// An authority as it is kept.
struct Authority {
    certificate: String,
    key: String,
}

/// A certificate with its key.
struct Leaf {
    certificate: String,
    key: String,
}

/// Makes sure that the pods have a certificate with at least a third of its life ahead; returns the seconds until it has to be looked at again.
pub(crate) async fn ensure(
    client: &Client,
    deployment: &DS4Deployment,
    names: &Names,
    lifetime: SignedDuration,
    now: Timestamp,
) -> Result<u64, Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), names.namespace());
    let read = |name: String| {
        let api = api.clone();
        async move {
            api.get_opt(&name)
                .await
                .map_err(Error::api(format!("reading Secret {name}")))
        }
    };
    let standing = read(names.tls_secret()).await?;
    if let Some(left) = standing.as_ref().and_then(|secret| left(secret, now)) {
        return Ok(left);
    }
    let authority = match read(names.authority_secret()).await?.as_ref().and_then(kept) {
        Some(authority) => authority,
        None => {
            let authority = found(names, now)?;
            let data = [("ca.crt", &authority.certificate), ("ca.key", &authority.key)];
            write(
                &api,
                deployment,
                names,
                &names.authority_secret(),
                "Opaque",
                &data,
                None,
            )
            .await?;
            authority
        }
    };
    let leaf = issue(&authority, names, lifetime, now)?;
    let renewal = now + lifetime * 2 / 3;
    let data = [
        ("tls.crt", &leaf.certificate),
        ("tls.key", &leaf.key),
        ("ca.crt", &authority.certificate),
    ];
    write(
        &api,
        deployment,
        names,
        &names.tls_secret(),
        "kubernetes.io/tls",
        &data,
        Some(renewal),
    )
    .await?;
    tracing::info!(deployment = names.name(), namespace = names.namespace(), %renewal, "certificate issued");
    Ok(seconds(renewal, now).unwrap_or(1))
}

/// Seconds until the Secret's certificate is replaced; none when that is now.
fn left(secret: &Secret, now: Timestamp) -> Option<u64> {
    let renewal: Timestamp = secret
        .metadata
        .annotations
        .as_ref()?
        .get(RENEW_AFTER)?
        .parse()
        .ok()?;
    seconds(renewal, now)
}

fn seconds(until: Timestamp, now: Timestamp) -> Option<u64> {
    u64::try_from(until.as_second() - now.as_second())
        .ok()
        .filter(|left| *left > 0)
}

fn kept(secret: &Secret) -> Option<Authority> {
    let text = |key: &str| {
        let ByteString(bytes) = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.clone()).ok()
    };
    Some(Authority {
        certificate: text("ca.crt")?,
        key: text("ca.key")?,
    })
}

/// The authority's own parameters: the same for every signature, since its certificate is not read back.
fn authority_params(names: &Names) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let subject = format!("DS4 authority of {}/{}", names.namespace(), names.name());
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn found(names: &Names, now: Timestamp) -> Result<Authority, Error> {
    let key = KeyPair::generate()?;
    let mut params = authority_params(names)?;
    lives(&mut params, now, AUTHORITY_LIFETIME);
    Ok(Authority {
        certificate: params.self_signed(&key)?.pem(),
        key: key.serialize_pem(),
    })
}

/// One certificate for both directions: every pod of a deployment answers and asks under the same names.
fn issue(
    authority: &Authority,
    names: &Names,
    lifetime: SignedDuration,
    now: Timestamp,
) -> Result<Leaf, Error> {
    let issuer = Issuer::new(authority_params(names)?, KeyPair::from_pem(&authority.key)?);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.certificate_names())?;
    params
        .distinguished_name
        .push(DnType::CommonName, names.headless());
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    lives(&mut params, now, lifetime);
    Ok(Leaf {
        certificate: params.signed_by(&key, &issuer)?.pem(),
        key: key.serialize_pem(),
    })
}

fn lives(params: &mut CertificateParams, now: Timestamp, lifetime: SignedDuration) {
    let system = |time: Timestamp| std::time::SystemTime::from(time).into();
    params.not_before = system(now - SKEW);
    params.not_after = system(now + lifetime);
}

async fn write(
    api: &Api<Secret>,
    deployment: &DS4Deployment,
    names: &Names,
    name: &str,
    kind: &str,
    data: &[(&str, &String)],
    renewal: Option<Timestamp>,
) -> Result<(), Error> {
    let mut metadata = metadata(deployment, names, name.to_owned());
    metadata.annotations = renewal.map(|renewal| [(RENEW_AFTER.to_owned(), renewal.to_string())].into());
    let data: serde_json::Map<String, serde_json::Value> = data
        .iter()
        .map(|(key, text)| ((*key).to_owned(), text.as_str().into()))
        .collect();
    let secret =
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "stringData": data});
    api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&secret))
        .await
        .map_err(Error::api(format!("applying Secret {name}")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_certificate_is_replaced_when_its_time_comes_and_one_without_a_time_at_once() {
        let of = |annotation: Option<String>| {
            let mut secret = Secret::default();
            secret.metadata.annotations = annotation.map(|text| [(RENEW_AFTER.to_owned(), text)].into());
            left(&secret, at(1000))
        };
        assert_eq!(of(Some(at(1600).to_string())), Some(600));
        assert_eq!(of(Some(at(1000).to_string())), None);
        assert_eq!(of(Some("soon".into())), None);
        assert_eq!(of(None), None);
    }

    #[test]
    fn an_authority_signs_again_after_it_was_stored() {
        let (names, now) = (Names::new("flash", "llm"), at(1_790_000_000));
        let authority = found(&names, now).expect("an authority");
        let again = Authority {
            certificate: authority.certificate.clone(),
            key: authority.key.clone(),
        };
        let lifetime = SignedDuration::from_hours(24);
        let (first, second) = (
            issue(&authority, &names, lifetime, now).expect("a certificate"),
            issue(&again, &names, lifetime, now).expect("a certificate"),
        );
        assert_ne!(first.key, second.key, "a new key with every certificate");
        assert!(first.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
    }
}
