//! The authorities that sign a deployment's certificates, and how one gives way to the next without a moment in which two pods do not
//! trust each other. Pure, but for fresh keys.

use std::collections::BTreeMap;

use ds4_api::Names;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::error::Error;

/// Clocks of nodes may be this far behind.
const SKEW: SignedDuration = SignedDuration::from_mins(5);

/// One that can sign.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    pub(crate) certificate: String,
    key: String,
}

/// A certificate with its key.
#[derive(Debug)]
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// All that a deployment has. One signs; another, if there is one, is already trusted and signs from the next certificate on; the one
/// before is trusted for one certificate more. So every pod has known an authority for a certificate's time before it sees its signature.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authorities {
    pub(crate) current: Authority,
    next: Option<Authority>,
    previous: Option<String>,
}

impl Authorities {
    /// A deployment's first.
    pub(crate) fn new(names: &Names, lifetime: SignedDuration, now: Timestamp) -> Result<Self, Error> {
        Ok(Self {
            current: Authority::new(names, lifetime, now)?,
            next: None,
            previous: None,
        })
    }

    /// What holds for the next certificate: `due` says that the authority which signs nears its end.
    pub(crate) fn turned(
        self,
        due: bool,
        names: &Names,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Self, Error> {
        let Self { current, next, .. } = self;
        Ok(match next {
            Some(next) => Self {
                previous: Some(current.certificate),
                current: next,
                next: None,
            },
            None => Self {
                next: due.then(|| Authority::new(names, lifetime, now)).transpose()?,
                current,
                previous: None,
            },
        })
    }

    /// The certificates that pods trust.
    pub(crate) fn trusted(&self) -> String {
        let next = self.next.as_ref().map(|next| next.certificate.as_str());
        let all = [
            Some(self.current.certificate.as_str()),
            next,
            self.previous.as_deref(),
        ];
        all.into_iter().flatten().collect()
    }

    /// From a Secret's entries.
    pub(crate) fn read(data: &BTreeMap<String, ByteString>) -> Option<Self> {
        let text = |key: &str| String::from_utf8(data.get(key)?.0.clone()).ok();
        let authority = |name: &str| {
            Some(Authority {
                certificate: text(&format!("{name}.crt"))?,
                key: text(&format!("{name}.key"))?,
            })
        };
        Some(Self {
            current: authority("ca")?,
            next: authority("next"),
            previous: text("previous.crt"),
        })
    }

    /// As a Secret's entries.
    pub(crate) fn data(&self) -> BTreeMap<String, ByteString> {
        let mut data = self.current.entries("ca");
        data.extend(self.next.iter().flat_map(|next| next.entries("next")));
        let previous = self.previous.iter();
        data.extend(previous.map(|certificate| ("previous.crt".into(), bytes(certificate))));
        data
    }

    /// A certificate for both directions: every pod of a deployment answers and asks under the same names.
    pub(crate) fn issue(
        &self,
        names: &Names,
        lifetime: SignedDuration,
        now: Timestamp,
    ) -> Result<Leaf, Error> {
        let issuer = Issuer::new(authority(names)?, KeyPair::from_pem(&self.current.key)?);
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
}

impl Authority {
    fn new(names: &Names, lifetime: SignedDuration, now: Timestamp) -> Result<Self, Error> {
        let key = KeyPair::generate()?;
        let mut params = authority(names)?;
        lives(&mut params, now, lifetime);
        Ok(Self {
            certificate: params.self_signed(&key)?.pem(),
            key: key.serialize_pem(),
        })
    }

    fn entries(&self, name: &str) -> BTreeMap<String, ByteString> {
        let of = |ending: &str, text: &str| (format!("{name}.{ending}"), bytes(text));
        [of("crt", &self.certificate), of("key", &self.key)].into()
    }
}

pub(crate) fn bytes(text: &str) -> ByteString {
    ByteString(text.as_bytes().to_vec())
}

/// The same for every authority and every signature, since certificates are not read back.
fn authority(names: &Names) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::<String>::new())?;
    let subject = format!("DS4 authority of {}/{}", names.namespace(), names.name());
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn lives(params: &mut CertificateParams, now: Timestamp, lifetime: SignedDuration) {
    let system = |time: Timestamp| std::time::SystemTime::from(time).into();
    params.not_before = system(now - SKEW);
    params.not_after = system(now + lifetime);
}

#[cfg(test)]
mod tests {
    use super::*;

    const YEAR: SignedDuration = SignedDuration::from_hours(365 * 24);

    fn names() -> Names {
        Names::new("flash", "llm")
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_790_000_000).expect("a time")
    }

    fn turn(authorities: Authorities, due: bool) -> Authorities {
        authorities.turned(due, &names(), YEAR, now()).expect("keys")
    }

    #[test]
    fn authorities_sign_again_after_they_were_stored() {
        let first = Authorities::new(&names(), YEAR, now()).expect("an authority");
        let stored = Authorities::read(&first.data()).expect("read back");
        assert_eq!(stored, first);
        let issue = |from: &Authorities| from.issue(&names(), YEAR, now()).expect("a certificate");
        assert_ne!(
            issue(&first).key,
            issue(&stored).key,
            "a new key with every certificate"
        );
        let turned = turn(first, true);
        assert_eq!(Authorities::read(&turned.data()), Some(turned));
        assert_eq!(Authorities::read(&BTreeMap::new()), None);
    }

    #[test]
    fn an_authority_is_trusted_before_it_signs_and_after() {
        let first = Authorities::new(&names(), YEAR, now()).expect("an authority");
        let old = first.current.clone();
        assert_eq!(turn(first.clone(), false), first, "not due: nothing changes");
        let announced = turn(first, true);
        assert_eq!(announced.current, old, "the old one still signs");
        let new = announced.next.clone().expect("announced");
        assert!(announced.trusted().contains(&new.certificate));
        // It is not announced anew while it waits.
        let signing = turn(announced, true);
        assert_eq!(signing.current, new);
        assert!(
            signing.trusted().contains(&old.certificate),
            "what it signed still runs"
        );
        let alone = turn(signing, false);
        assert_eq!(alone.trusted(), new.certificate);
    }
}
