//! What exists.

use ds4_api::{DS4Deployment, LABEL_NAME, Names};
use k8s_openapi::api::apps::v1::StatefulSet;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};

use crate::error::Error;

/// The stateful sets of a deployment as the API server knows them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    sets: Vec<StatefulSet>,
}

impl Observed {
    #[cfg(test)]
    pub(crate) const fn new(sets: Vec<StatefulSet>) -> Self {
        Self { sets }
    }

    /// Pods of a stage that exist, are ready, and are of the newest template.
    pub(crate) fn pods(&self, names: &Names, stage: &str) -> Pods {
        let set = self
            .sets
            .iter()
            .find(|set| set.name_any() == names.stateful_set(stage));
        let status = set.and_then(|set| set.status.as_ref());
        Pods {
            existing: status.map_or(0, |status| status.replicas),
            ready: status.and_then(|status| status.ready_replicas).unwrap_or(0),
            updated: status.and_then(|status| status.updated_replicas).unwrap_or(0),
        }
    }

    /// Sets of stages that the deployment no longer has.
    pub(crate) fn orphans(&self, deployment: &DS4Deployment, names: &Names) -> Vec<String> {
        let wanted: Vec<String> = deployment
            .spec
            .pipeline
            .stages
            .iter()
            .map(|stage| names.stateful_set(&stage.name))
            .collect();
        self.sets
            .iter()
            .map(ResourceExt::name_any)
            .filter(|name| !wanted.contains(name))
            .collect()
    }
}

/// Pods of one stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pods {
    pub(crate) existing: i32,
    pub(crate) ready: i32,
    pub(crate) updated: i32,
}

/// Reads the stateful sets of a deployment.
pub(crate) async fn observe(client: &Client, names: &Names) -> Result<Observed, Error> {
    let api: Api<StatefulSet> = Api::namespaced(client.clone(), names.namespace());
    let ours = ListParams::default().labels(&format!("{LABEL_NAME}={}", names.name()));
    let sets = api
        .list(&ours)
        .await
        .map_err(Error::api("listing stateful sets"))?;
    Ok(Observed { sets: sets.items })
}
