//! The pods' certificate and the authorities behind it, in two Secrets: `NAME-stages-ca`, which no pod mounts, and `NAME-stages-tls`.

use std::collections::{BTreeMap, HashMap};
use std::sync::Mutex;

use ds4_api::{DS4Deployment, LABEL_MANAGED_BY, LABEL_NAME, MANAGED_BY, Names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::json;

use crate::apply::MANAGER;
use crate::authority::{Authorities, bytes};
use crate::build::metadata;
use crate::error::Error;

/// Annotation with the time from which what the Secret holds is replaced.
const RENEW_AFTER: &str = "ds4.dev/renew-after";
/// A Secret that was there is believed to be there for this long, in seconds; while pods are coming up, for the shorter time, since they
/// need it. Secrets are not watched: that would take the right to read all of them.
const BELIEVED: i64 = 1800;
const BELIEVED_WHILE_PODS_START: i64 = 60;

/// How long certificates and authorities live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lifetimes {
    pub(crate) certificate: SignedDuration,
    pub(crate) authority: SignedDuration,
}

/// Keeps the certificates of all deployments.
#[derive(Debug)]
pub(crate) struct Certificates {
    lifetimes: Lifetimes,
    /// By the deployment's uid.
    seen: Mutex<HashMap<String, Seen>>,
}

/// A certificate that was there.
#[derive(Clone, Copy, Debug)]
struct Seen {
    renewal: Timestamp,
    at: Timestamp,
}

impl Certificates {
    pub(crate) fn new(lifetimes: Lifetimes) -> Self {
        Self {
            lifetimes,
            seen: Mutex::default(),
        }
    }

    /// Makes sure that the pods have a certificate with at least a third of its life ahead; returns the seconds until it is replaced.
    pub(crate) async fn ensure(
        &self,
        client: &Client,
        deployment: &DS4Deployment,
        names: &Names,
        pods_are_ready: bool,
        now: Timestamp,
    ) -> Result<u64, Error> {
        let key = deployment.uid().unwrap_or_default();
        let known = self.lock().get(&key).copied();
        if let Some(left) = known.and_then(|seen| seen.left(pods_are_ready, now)) {
            return Ok(left);
        }
        let keeper = Keeper {
            api: Api::namespaced(client.clone(), names.namespace()),
            deployment,
            names,
            lifetimes: self.lifetimes,
            now,
        };
        let renewal = keeper.ensure().await?;
        let mut seen = self.lock();
        // Those of deployments that are gone lapse with their certificates.
        seen.retain(|_, seen| seen.renewal > now);
        seen.insert(key, Seen { renewal, at: now });
        Ok(seconds(renewal, now).unwrap_or(1))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Seen>> {
        // A panic elsewhere leaves what was seen, which is as good as ever.
        self.seen
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl Seen {
    /// Seconds until the renewal, while nobody needs to look.
    fn left(self, pods_are_ready: bool, now: Timestamp) -> Option<u64> {
        let age = now.as_second() - self.at.as_second();
        let limit = if pods_are_ready {
            BELIEVED
        } else {
            BELIEVED_WHILE_PODS_START
        };
        seconds(self.renewal, now).filter(|_| age < limit)
    }
}

/// One deployment's certificates, once.
struct Keeper<'a> {
    api: Api<Secret>,
    deployment: &'a DS4Deployment,
    names: &'a Names,
    lifetimes: Lifetimes,
    now: Timestamp,
}

impl Keeper<'_> {
    /// Returns when the certificate is replaced.
    async fn ensure(&self) -> Result<Timestamp, Error> {
        let standing = self.read(self.names.tls_secret()).await?;
        let due = standing.as_ref().and_then(renewal);
        if let Some(renewal) = due.filter(|renewal| *renewal > self.now) {
            return Ok(renewal);
        }
        // A certificate that is missing is issued anew; only one that had its time lets authorities move on.
        let published = standing.as_ref().filter(|_| due.is_some()).and_then(trusted);
        let authorities = self.authorities(published).await?;
        let life = self.lifetimes.certificate;
        let leaf = authorities.issue(self.names, life, self.now)?;
        let renewal = self.now + life * 2 / 3;
        let data = [
            ("tls.crt", &leaf.certificate),
            ("tls.key", &leaf.key),
            ("ca.crt", &authorities.trusted()),
        ];
        let data = data.map(|(key, text)| (key.to_owned(), bytes(text))).into();
        self.write(self.names.tls_secret(), "kubernetes.io/tls", data, renewal)
            .await?;
        let (deployment, namespace) = (self.names.name(), self.names.namespace());
        tracing::info!(deployment, namespace, %renewal, "certificate issued");
        Ok(renewal)
    }

    /// The authorities for the certificate that is issued now. They move on only when what they are is what pods were told to trust: an
    /// operator that ended between the two writes does not take two steps at once.
    async fn authorities(&self, published: Option<String>) -> Result<Authorities, Error> {
        let name = self.names.authority_secret();
        let standing = self.read(name.clone()).await?;
        let kept = standing
            .as_ref()
            .and_then(|secret| Authorities::read(secret.data.as_ref()?));
        let until = standing.as_ref().and_then(renewal);
        let life = self.lifetimes.authority;
        let fresh = self.now + life * 2 / 3;
        let (authorities, until) = match kept {
            None => (Authorities::new(self.names, life, self.now)?, fresh),
            Some(kept) if published != Some(kept.trusted()) => return Ok(kept),
            Some(kept) => {
                let due = until.is_none_or(|until| until <= self.now);
                let signing = kept.current.clone();
                let turned = kept.clone().turned(due, self.names, life, self.now)?;
                if turned == kept {
                    return Ok(kept);
                }
                let replaced = turned.current != signing;
                (
                    turned,
                    if replaced {
                        fresh
                    } else {
                        until.unwrap_or(self.now)
                    },
                )
            }
        };
        self.write(name, "Opaque", authorities.data(), until).await?;
        Ok(authorities)
    }

    async fn read(&self, name: String) -> Result<Option<Secret>, Error> {
        let found = self.api.get_opt(&name).await;
        let found = found.map_err(Error::api(format!("reading Secret {name}")))?;
        match found {
            Some(secret) if !is_ours(&secret, self.names) => Err(Error::ForeignSecret { name }),
            found => Ok(found),
        }
    }

    async fn write(
        &self,
        name: String,
        kind: &str,
        data: BTreeMap<String, ByteString>,
        renewal: Timestamp,
    ) -> Result<(), Error> {
        let mut metadata = metadata(self.deployment, self.names, name.clone());
        metadata.annotations = Some([(RENEW_AFTER.to_owned(), renewal.to_string())].into());
        let secret =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": kind, "data": data});
        self.api
            .patch(
                &name,
                &PatchParams::apply(MANAGER).force(),
                &Patch::Apply(&secret),
            )
            .await
            .map_err(Error::api(format!("applying Secret {name}")))?;
        Ok(())
    }
}

/// Somebody else's Secret of that name is neither read nor written.
fn is_ours(secret: &Secret, names: &Names) -> bool {
    let label = |key: &str| secret.labels().get(key).map(String::as_str);
    label(LABEL_MANAGED_BY) == Some(MANAGED_BY) && label(LABEL_NAME) == Some(names.name())
}

/// What pods are told to trust.
fn trusted(secret: &Secret) -> Option<String> {
    let bundle = secret.data.as_ref()?.get("ca.crt")?;
    String::from_utf8(bundle.0.clone()).ok()
}

/// When what the Secret holds is replaced.
fn renewal(secret: &Secret) -> Option<Timestamp> {
    secret.annotations().get(RENEW_AFTER)?.parse().ok()
}

fn seconds(until: Timestamp, now: Timestamp) -> Option<u64> {
    u64::try_from(until.as_second() - now.as_second())
        .ok()
        .filter(|left| *left > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    #[test]
    fn a_certificate_that_was_seen_is_believed_for_a_while_and_never_past_its_time() {
        let left = |renewal: i64, ready: bool, now: i64| {
            let seen = Seen {
                renewal: at(renewal),
                at: at(1000),
            };
            seen.left(ready, at(now))
        };
        assert_eq!(left(9000, true, 1100), Some(7900));
        assert_eq!(left(9000, true, 3000), None, "looked at again");
        assert_eq!(left(9000, false, 1030), Some(7970));
        assert_eq!(left(9000, false, 1100), None, "pods that start need it");
        assert_eq!(left(1050, true, 1050), None, "its time has come");
    }

    #[test]
    fn a_secret_of_somebody_else_is_told_from_the_operators_own() {
        let names = Names::new("flash", "llm");
        let labelled = |labels: &[(&str, &str)]| {
            let mut secret = Secret::default();
            let owned = labels
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            secret.metadata.labels = Some(owned.collect());
            is_ours(&secret, &names)
        };
        assert!(labelled(&[(LABEL_MANAGED_BY, MANAGED_BY), (LABEL_NAME, "flash")]));
        assert!(!labelled(&[
            (LABEL_MANAGED_BY, MANAGED_BY),
            (LABEL_NAME, "other")
        ]));
        assert!(!labelled(&[(LABEL_NAME, "flash")]));
        assert!(!labelled(&[]));
    }

    #[test]
    fn a_secret_says_when_it_is_replaced() {
        let mut secret = Secret::default();
        assert_eq!(renewal(&secret), None);
        secret.metadata.annotations = Some([(RENEW_AFTER.to_owned(), at(1600).to_string())].into());
        assert_eq!(renewal(&secret), Some(at(1600)));
    }
}
