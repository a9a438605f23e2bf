//! What the operator watches: its own objects only, found by their label, page by page, without the fields it never reads.

use std::fmt::Debug;
use std::time::Duration;

use ds4_api::{DS4Deployment, LABEL_MANAGED_BY, LABEL_NAME, MANAGED_BY};
use futures::{Stream, StreamExt};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::core::NamespaceResourceScope;
use kube::runtime::controller::Controller;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, predicates, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

/// Objects that are listed at once. As they come they have the fields that are never read, and those take several times the memory of the rest.
const PAGE: u32 = 50;

/// One cache for each kind.
#[derive(Clone)]
pub(crate) struct Caches {
    pub(crate) sets: Store<StatefulSet>,
    pub(crate) pods: Store<Pod>,
    pub(crate) services: Store<Service>,
    pub(crate) accounts: Store<ServiceAccount>,
    pub(crate) disruptions: Store<PodDisruptionBudget>,
    pub(crate) networks: Store<NetworkPolicy>,
}

impl Caches {
    /// Resolves when every kind was listed once: before that, what is missing from a cache may well exist.
    pub(crate) async fn filled(&self) -> Result<(), reflector::store::WriterDropped> {
        self.sets.wait_until_ready().await?;
        self.pods.wait_until_ready().await?;
        self.services.wait_until_ready().await?;
        self.accounts.wait_until_ready().await?;
        self.disruptions.wait_until_ready().await?;
        self.networks.wait_until_ready().await
    }
}

/// The controller over all watches, and the caches that they fill.
pub(crate) fn controller(client: &Client, namespace: Option<&str>) -> (Controller<DS4Deployment>, Caches) {
    let everything = watcher::Config::default().page_size(PAGE);
    let ours = everything
        .clone()
        .labels(&format!("{LABEL_MANAGED_BY}={MANAGED_BY}"));
    let (deployments, stream) = watched::<DS4Deployment>(client, namespace, everything);
    // The operator's own writes of the status are no reason to look again.
    let changes = stream.predicate_filter(predicates::generation, kube::runtime::PredicateConfig::default());
    let controller = Controller::for_stream(changes, deployments).trigger_backoff(EachItsOwn);
    let (sets, stream) = watched::<StatefulSet>(client, namespace, ours.clone());
    let controller = controller.owns_stream(stream);
    let (services, stream) = watched::<Service>(client, namespace, ours.clone());
    let controller = controller.owns_stream(stream);
    let (accounts, stream) = watched::<ServiceAccount>(client, namespace, ours.clone());
    let controller = controller.owns_stream(stream);
    let (disruptions, stream) = watched::<PodDisruptionBudget>(client, namespace, ours.clone());
    let controller = controller.owns_stream(stream);
    let (networks, stream) = watched::<NetworkPolicy>(client, namespace, ours.clone());
    let controller = controller.owns_stream(stream);
    let (pods, stream) = watched::<Pod>(client, namespace, ours);
    let controller = controller.watches_stream(stream, |pod| deployment_of(&pod));
    let caches = Caches {
        sets,
        pods,
        services,
        accounts,
        disruptions,
        networks,
    };
    (controller, caches)
}

/// No pause of the controller's own after an error of a watch: each watch has one. The usual one holds up all of them for each error of any, twice as long
/// each time, so that seven that lost the API server for a minute took more than five to come back.
struct EachItsOwn;

impl Iterator for EachItsOwn {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::ZERO)
    }
}

impl Backoff for EachItsOwn {
    fn reset(&mut self) {}
}

/// A pod's deployment, by its label: between the two stands a set that owns the pod.
fn deployment_of(pod: &Pod) -> Option<ObjectRef<DS4Deployment>> {
    let name = pod.labels().get(LABEL_NAME)?;
    Some(ObjectRef::new(name).within(&pod.namespace()?))
}

fn watched<K>(
    client: &Client,
    namespace: Option<&str>,
    config: watcher::Config,
) -> (
    Store<K>,
    impl Stream<Item = Result<K, watcher::Error>> + Send + 'static,
)
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(scoped::<K>(client, namespace), config)
        .default_backoff()
        .modify(|object| object.managed_fields_mut().clear())
        .reflect(writer)
        .touched_objects()
        .boxed();
    (store, stream)
}

/// All namespaces, or the one that is watched.
pub(crate) fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    )
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::sync::Arc;

    use futures::stream;
    use kube::runtime::controller::Action;

    use super::*;

    /// Seven errors, as of seven watches that lost the API server; the usual pauses after them are half a minute and more together.
    #[tokio::test]
    async fn watches_that_fail_hold_up_no_other() -> Result<(), Box<dyn std::error::Error>> {
        let text = include_str!("../../../examples/quickstart.yaml");
        let mut deployment: DS4Deployment = serde_yaml::from_str(text)?;
        deployment.metadata.namespace = Some("default".into());
        let (store, mut writer) = reflector::store();
        for event in [
            watcher::Event::Init,
            watcher::Event::InitApply(deployment.clone()),
            watcher::Event::InitDone,
        ] {
            writer.apply_watcher_event(&event);
        }
        let errors = (0..7).map(|_| Err(watcher::Error::NoResourceVersion));
        let changes = stream::iter(errors.chain([Ok(deployment)])).chain(stream::pending());
        let mut reconciled = Controller::for_stream(changes, store)
            .trigger_backoff(EachItsOwn)
            .run(
                |_, _| async { Ok::<_, Error>(Action::await_change()) },
                |_, _, _| Action::await_change(),
                Arc::new(()),
            )
            .filter(|result| futures::future::ready(result.is_ok()))
            .boxed();
        let seen = tokio::time::timeout(Duration::from_secs(5), reconciled.next());
        let seen = seen.await.map_err(|_| Error::from(ErrorKind::TimedOut))?;
        assert!(seen.is_some());
        Ok(())
    }
}
