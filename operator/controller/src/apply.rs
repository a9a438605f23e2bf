//! Writes objects by server-side apply: fields of others stay theirs.

use std::fmt::Debug;

use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::build::Prepared;
use crate::error::Error;

/// Name of this field manager.
pub(crate) const MANAGER: &str = "ds4-operator";

/// Applies everything, accounts and services before the pods that need them; removes sets of stages that are gone.
pub(crate) async fn apply(
    client: &Client,
    namespace: &str,
    prepared: &Prepared,
    orphans: &[String],
) -> Result<(), Error> {
    one(client, namespace, &prepared.service_account).await?;
    one(client, namespace, &prepared.headless).await?;
    one(client, namespace, &prepared.client).await?;
    for set in &prepared.stateful_sets {
        one(client, namespace, set).await?;
    }
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
    for orphan in orphans {
        sets.delete(orphan, &DeleteParams::default())
            .await
            .map_err(Error::api(format!("deleting stateful set {orphan}")))?;
    }
    Ok(())
}

async fn one<K>(client: &Client, namespace: &str, object: &K) -> Result<(), Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Serialize,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let what = format!("applying {} {}", K::kind(&()), object.name_any());
    let parameters = PatchParams::apply(MANAGER).force();
    let mut object = serde_json::to_value(object)?;
    object["apiVersion"] = K::api_version(&()).into();
    object["kind"] = K::kind(&()).into();
    let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    api.patch(&name, &parameters, &Patch::Apply(&object))
        .await
        .map_err(Error::api(what))?;
    Ok(())
}
