//! Writes objects by server-side apply, and only where what stands is not what is wanted: fields of others stay theirs, and at rest
//! nothing is written.

use std::fmt::Debug;

use ds4_api::{DS4Deployment, same_quantity};
use futures::future::try_join_all;
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::{DynamicObject, NamespaceResourceScope};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Api, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::build::{Prepared, certificate_resource, sized};
use crate::caches::Caches;
use crate::error::Error;
use crate::metrics::Metrics;
use crate::observe::Observed;
use crate::rollout::{self, Plan};

/// Name of this field manager.
pub(crate) const MANAGER: &str = "ds4-operator";

/// Where objects of one deployment are written.
pub(crate) struct Writer<'a> {
    pub(crate) client: kube::Client,
    pub(crate) caches: &'a Caches,
    pub(crate) namespace: &'a str,
    pub(crate) metrics: &'a Metrics,
}

impl Writer<'_> {
    /// Accounts, services and policies, before the pods that need them.
    pub(crate) async fn surroundings(&self, prepared: &Prepared) -> Result<(), Error> {
        futures::try_join!(
            self.one(&self.caches.accounts, &prepared.service_account),
            self.one(&self.caches.services, &prepared.headless),
            self.one(&self.caches.services, &prepared.client),
            self.one(&self.caches.disruptions, &prepared.disruption),
            self.policy(prepared),
            self.certificate(prepared.certificate.as_ref()),
        )?;
        Ok(())
    }

    async fn policy(&self, prepared: &Prepared) -> Result<(), Error> {
        match &prepared.network {
            Some(policy) => self.one(&self.caches.networks, policy).await,
            None => {
                let name = prepared.service_account.name_any();
                self.delete(&self.caches.networks, &name).await
            }
        }
    }

    /// The sets of every revision, each with as many pods as the plan says.
    pub(crate) async fn sets(
        &self,
        prepared: &Prepared,
        observed: &Observed,
        plan: &Plan,
    ) -> Result<(), Error> {
        let number = observed.number_of_update(&prepared.revision);
        let new = prepared.stateful_sets.iter().map(|set| {
            let output = set
                .labels()
                .get(ds4_api::LABEL_ROLE)
                .is_some_and(|role| role == "output");
            let replicas = size(observed, plan, &prepared.revision, output);
            let sized = sized(set.clone(), replicas, number);
            async move { self.one(&self.caches.sets, &sized).await }
        });
        try_join_all(new).await?;
        for set in observed
            .sets
            .iter()
            .filter(|set| set.revision != prepared.revision)
        {
            let replicas = size(observed, plan, &set.revision, set.output);
            if replicas != set.replicas {
                self.scale(&set.name, replicas).await?;
            }
        }
        Ok(())
    }

    /// Removes sets of forgotten revisions, and those that belong to none.
    pub(crate) async fn forget(&self, observed: &Observed, revisions: &[String]) -> Result<(), Error> {
        let forgotten = observed
            .sets
            .iter()
            .filter(|set| revisions.contains(&set.revision))
            .map(|set| &set.name);
        for name in forgotten.chain(&observed.orphans) {
            self.delete(&self.caches.sets, name).await?;
        }
        Ok(())
    }

    async fn one<K>(&self, store: &Store<K>, object: &K) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Serialize
            + 'static,
    {
        let name = object.name_any();
        let mut intended = serde_json::to_value(object)?;
        let known = store.get(&ObjectRef::new(&name).within(self.namespace));
        if let Some(known) = known
            && covers(&serde_json::to_value(&*known)?, &intended)
        {
            return Ok(());
        }
        intended["apiVersion"] = K::api_version(&()).into();
        intended["kind"] = K::kind(&()).into();
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        api.patch(
            &name,
            &PatchParams::apply(MANAGER).force(),
            &Patch::Apply(&intended),
        )
        .await
        .map_err(Error::api(format!("applying {} {name}", K::kind(&()))))?;
        self.metrics.wrote(&K::kind(&()));
        Ok(())
    }

    async fn certificate(&self, certificate: Option<&DynamicObject>) -> Result<(), Error> {
        let Some(certificate) = certificate else {
            return Ok(());
        };
        let resource = certificate_resource();
        let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), self.namespace, &resource);
        let name = certificate.name_any();
        api.patch(
            &name,
            &PatchParams::apply(MANAGER).force(),
            &Patch::Apply(certificate),
        )
        .await
        .map_err(Error::api(format!(
            "applying Certificate {name}: is cert-manager installed?"
        )))?;
        self.metrics.wrote("Certificate");
        Ok(())
    }

    async fn scale(&self, name: &str, replicas: i32) -> Result<(), Error> {
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), self.namespace);
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let parameters = PatchParams {
            field_manager: Some(MANAGER.into()),
            ..PatchParams::default()
        };
        api.patch(name, &parameters, &patch)
            .await
            .map_err(Error::api(format!("scaling StatefulSet {name} to {replicas}")))?;
        self.metrics.wrote("StatefulSet");
        Ok(())
    }

    /// Deletes what the cache knows; gone already is as good.
    pub(crate) async fn delete<K>(&self, store: &Store<K>, name: &str) -> Result<(), Error>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + 'static,
    {
        let Some(known) = store.get(&ObjectRef::new(name).within(self.namespace)) else {
            return Ok(());
        };
        if known.meta().deletion_timestamp.is_some() {
            return Ok(());
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), self.namespace);
        match api.delete(name, &DeleteParams::background()).await {
            Ok(_) => self.metrics.wrote(&K::kind(&())),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(Error::api(format!("deleting {} {name}", K::kind(&())))(error)),
        }
        Ok(())
    }
}

/// Pods of one set: a prefill stage outlives the output pods that use it.
fn size(observed: &Observed, plan: &Plan, revision: &str, output: bool) -> i32 {
    let pipelines = plan.get(revision).copied().unwrap_or(0);
    let outputs = observed.occupied(revision, |pod| pod.output);
    rollout::stage_replicas(pipelines, output, outputs)
}

/// Whether everything that is intended stands. What the API server filled in, and what others added, is not looked at.
fn covers(found: &Value, intended: &Value) -> bool {
    match (found, intended) {
        (Value::Object(found), Value::Object(intended)) => {
            intended.iter().all(|(key, intended)| match found.get(key) {
                Some(found) => intended.is_null() || covers(found, intended),
                // The API server keeps no empty list.
                None => intended.is_null() || intended.as_array().is_some_and(Vec::is_empty),
            })
        }
        (Value::Array(found), Value::Array(intended)) => {
            found.len() == intended.len()
                && found
                    .iter()
                    .zip(intended)
                    .all(|(found, intended)| covers(found, intended))
        }
        (Value::String(found), Value::String(intended)) => {
            found == intended || same_quantity(found, intended)
        }
        (found, intended) => found == intended,
    }
}

/// The status, by server-side apply.
pub(crate) async fn status(
    client: &kube::Client,
    namespace: &str,
    name: &str,
    status: &ds4_api::DS4DeploymentStatus,
) -> Result<(), Error> {
    let api: Api<DS4Deployment> = Api::namespaced(client.clone(), namespace);
    let patch = json!({
        "apiVersion": DS4Deployment::api_version(&()), "kind": DS4Deployment::kind(&()), "status": status,
    });
    api.patch_status(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(&patch))
        .await
        .map_err(Error::api("writing the status"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_covers_what_is_wanted_when_only_others_added_to_it() {
        let wanted = json!({"spec": {"replicas": 2, "template": {"containers": [{"name": "ds4"}]}}});
        let stands = json!({"spec": {"replicas": 2, "extra": 1, "template": {"containers": [{"name": "ds4", "policy": "x"}]}}, "status": {}});
        assert!(covers(&stands, &wanted));
        let mut changed = stands.clone();
        changed["spec"]["replicas"] = 3.into();
        assert!(!covers(&changed, &wanted), "another value");
        let mut more = stands.clone();
        more["spec"]["template"]["containers"] = json!([{"name": "ds4"}, {"name": "side"}]);
        assert!(!covers(&more, &wanted), "another list");
        assert!(!covers(&json!({"spec": {}}), &wanted), "missing");
    }

    #[test]
    fn what_the_api_server_writes_in_its_own_way_is_not_written_again() {
        let wanted = json!({"env": [], "limits": {"cpu": "0.5", "memory": "2048Mi"}});
        assert!(covers(
            &json!({"limits": {"cpu": "500m", "memory": "2Gi"}}),
            &wanted
        ));
        assert!(!covers(
            &json!({"limits": {"cpu": "500m", "memory": "1Gi"}}),
            &wanted
        ));
        assert!(
            !covers(
                &json!({"env": [{"name": "A"}], "limits": wanted["limits"]}),
                &wanted
            ),
            "a list of something"
        );
    }
}
