//! The API server: the objects of deployments, read once.

use anyhow::{Context, Result, ensure};
use ds4_api::{DS4Deployment, LABEL_NAME};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use kube::api::ListParams;
use kube::config::KubeConfigOptions;
use kube::{Api, Client, Config, ResourceExt};

/// A deployment with its pods.
#[derive(Clone, Debug)]
pub(crate) struct View {
    pub(crate) deployment: DS4Deployment,
    /// By name.
    pub(crate) pods: Vec<Pod>,
}

impl View {
    /// `namespace/name`.
    pub(crate) fn path(&self) -> String {
        format!(
            "{}/{}",
            self.deployment.namespace().unwrap_or_default(),
            self.deployment.name_any()
        )
    }
}

/// A connection and the namespace that is meant.
pub(crate) struct Cluster {
    client: Client,
    namespace: String,
}

impl Cluster {
    /// As kubectl would: the kubeconfig's context, or another one by name.
    pub(crate) async fn connect(context: Option<&str>, namespace: Option<&str>) -> Result<Self> {
        let config = match context {
            Some(context) => {
                let options = KubeConfigOptions {
                    context: Some(context.to_owned()),
                    ..KubeConfigOptions::default()
                };
                Config::from_kubeconfig(&options)
                    .await
                    .with_context(|| format!("--context {context}"))?
            }
            None => Config::infer()
                .await
                .context("no kubeconfig: set KUBECONFIG or run where kubectl works")?,
        };
        let namespace = namespace.unwrap_or(&config.default_namespace).to_owned();
        Ok(Self {
            client: Client::try_from(config)?,
            namespace,
        })
    }

    /// One deployment.
    pub(crate) async fn view(&self, name: &str) -> Result<View> {
        let api: Api<DS4Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
        let deployment = api
            .get(name)
            .await
            .with_context(|| format!("DS4Deployment {name} in namespace {}", self.namespace))?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
        let pods = pods
            .list(&ListParams::default().labels(&format!("{LABEL_NAME}={name}")))
            .await
            .context("listing its pods")?;
        Ok(joined(vec![deployment], pods.items).remove(0))
    }

    /// All deployments of the namespace, or of all; or the one of this name.
    pub(crate) async fn views(&self, name: Option<&str>, everywhere: bool) -> Result<Vec<View>> {
        if let Some(name) = name {
            ensure!(
                !everywhere,
                "--all-namespaces: expected no name beside it, found {name}"
            );
            return Ok(vec![self.view(name).await?]);
        }
        let labelled = ListParams::default().labels(LABEL_NAME);
        let all = ListParams::default();
        let (deployments, pods) = if everywhere {
            let (deployments, pods): (Api<DS4Deployment>, Api<Pod>) =
                (Api::all(self.client.clone()), Api::all(self.client.clone()));
            (deployments.list(&all).await, pods.list(&labelled).await)
        } else {
            let deployments: Api<DS4Deployment> = Api::namespaced(self.client.clone(), &self.namespace);
            let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.namespace);
            (deployments.list(&all).await, pods.list(&labelled).await)
        };
        let deployments =
            deployments.context("listing DS4Deployments: is the CustomResourceDefinition installed?")?;
        Ok(joined(deployments.items, pods.context("listing pods")?.items))
    }

    /// Warnings about a deployment and its pods, the newest last.
    pub(crate) async fn events(&self, view: &View) -> Result<Vec<Event>> {
        let api: Api<Event> = Api::namespaced(self.client.clone(), &self.namespace);
        let warnings = api
            .list(&ListParams::default().fields("type=Warning"))
            .await
            .context("listing events")?;
        let mut about: Vec<String> = view.pods.iter().map(ResourceExt::name_any).collect();
        about.push(view.deployment.name_any());
        let mut events = warnings.items;
        events.retain(|event| {
            event
                .involved_object
                .name
                .as_ref()
                .is_some_and(|name| about.contains(name))
        });
        events.sort_by_key(|event| event.last_timestamp.as_ref().map(|time| time.0));
        Ok(events)
    }

    /// The nodes that a selector names.
    pub(crate) async fn nodes(&self, selector: Option<&str>) -> Result<Vec<Node>> {
        let api: Api<Node> = Api::all(self.client.clone());
        let parameters = selector.map_or_else(ListParams::default, |selector| {
            ListParams::default().labels(selector)
        });
        let nodes = api.list(&parameters).await.context("listing nodes")?;
        ensure!(
            !nodes.items.is_empty(),
            "--selector {}: expected at least one node, found none",
            selector.unwrap_or_default()
        );
        Ok(nodes.items)
    }
}

/// Deployments with their pods, both by name.
pub(crate) fn joined(mut deployments: Vec<DS4Deployment>, mut pods: Vec<Pod>) -> Vec<View> {
    deployments.sort_by_key(|deployment| (deployment.namespace(), deployment.name_any()));
    pods.sort_by_key(ResourceExt::name_any);
    let own = |deployment: &DS4Deployment| {
        let is_own = |pod: &&Pod| {
            pod.namespace() == deployment.namespace()
                && pod.labels().get(LABEL_NAME) == Some(&deployment.name_any())
        };
        pods.iter().filter(is_own).cloned().collect()
    };
    deployments
        .iter()
        .map(|deployment| View {
            pods: own(deployment),
            deployment: deployment.clone(),
        })
        .collect()
}
