//! The loop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use ds4_api::{DS4Deployment, DS4DeploymentStatus, Names};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Service, ServiceAccount};
use kube::api::{ListParams, Patch, PatchParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde_json::json;

use crate::apply::{self, MANAGER};
use crate::build::{Defaults, build};
use crate::error::Error;
use crate::observe::observe;
use crate::status::{Facts, status};
use crate::validate::{Blocked, validate};
use crate::{RunArguments, health};

/// A failed reconciliation is tried again after this.
const RETRY: Duration = Duration::from_secs(5);
/// Everything is looked at again after this, should a watch have missed something.
const RESYNC: Duration = Duration::from_secs(300);

struct Context {
    client: Client,
    recorder: Recorder,
    defaults: Defaults,
}

/// Reconciles until a signal.
pub(crate) async fn run(arguments: RunArguments) -> Result<()> {
    let client = Client::try_default()
        .await
        .context("the API server: no cluster configuration")?;
    let namespace = arguments.watch_namespace.as_deref();
    let deployments: Api<DS4Deployment> = scoped(&client, namespace);
    let ready = Arc::new(AtomicBool::new(false));
    tokio::spawn({
        let (address, ready) = (arguments.listen.clone(), Arc::clone(&ready));
        async move {
            if let Err(error) = health::serve(&address, ready).await {
                tracing::error!(%error, "health server");
            }
        }
    });
    let listed = deployments.list(&ListParams::default().limit(1)).await;
    listed.context("listing DS4Deployments: is the CustomResourceDefinition installed? (ds4-operator crd | kubectl apply -f -)")?;
    ready.store(true, Ordering::Relaxed);
    let reporter = Reporter {
        controller: MANAGER.into(),
        instance: std::env::var("POD_NAME").ok(),
    };
    let defaults = Defaults {
        image: arguments.engine_image.clone(),
        pull_policy: arguments.engine_image_pull_policy.clone(),
    };
    let context = Arc::new(Context {
        recorder: Recorder::new(client.clone(), reporter),
        client: client.clone(),
        defaults,
    });
    tracing::info!(image = %arguments.engine_image, namespace = namespace.unwrap_or("all"), "operator runs");
    Controller::new(deployments, watcher::Config::default())
        .owns(
            scoped::<StatefulSet>(&client, namespace),
            watcher::Config::default(),
        )
        .owns(scoped::<Service>(&client, namespace), watcher::Config::default())
        .owns(
            scoped::<ServiceAccount>(&client, namespace),
            watcher::Config::default(),
        )
        .shutdown_on_signal()
        .run(reconcile, failed, context)
        .for_each(|result| async move {
            if let Err(error) = result {
                tracing::debug!(%error, "reconciliation");
            }
        })
        .await;
    Ok(())
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
{
    namespace.map_or_else(
        || Api::all(client.clone()),
        |namespace| Api::namespaced(client.clone(), namespace),
    )
}

async fn reconcile(deployment: Arc<DS4Deployment>, context: Arc<Context>) -> Result<Action, Error> {
    if deployment.metadata.deletion_timestamp.is_some() {
        // Owner references clean up.
        return Ok(Action::await_change());
    }
    let namespace = deployment.namespace().ok_or(Error::NoNamespace)?;
    let names = Names::new(deployment.name_any(), namespace);
    let blocked = validate(&deployment.spec).err();
    let prepared = if blocked.is_none() {
        Some(build(&deployment, &names, &context.defaults)?)
    } else {
        None
    };
    let observed = observe(&context.client, &names).await?;
    if let Some(prepared) = &prepared {
        apply::apply(
            &context.client,
            names.namespace(),
            prepared,
            &observed.orphans(&deployment, &names),
        )
        .await?;
    }
    let revision = prepared.as_ref().map(|prepared| prepared.revision.as_str());
    let facts = Facts {
        deployment: &deployment,
        names: &names,
        observed: &observed,
        revision,
        blocked: blocked.as_ref(),
        now: Timestamp::now(),
    };
    write(&context, &deployment, &names, status(&facts)).await?;
    if let Some(Blocked::Model(reason, message) | Blocked::Pipeline(reason, message)) = &blocked {
        publish(&context, &deployment, EventType::Warning, reason, message).await;
    }
    Ok(Action::requeue(RESYNC))
}

/// Writes the status when it differs, and an event for every condition that changed.
async fn write(
    context: &Context,
    deployment: &DS4Deployment,
    names: &Names,
    status: DS4DeploymentStatus,
) -> Result<(), Error> {
    if deployment.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<DS4Deployment> = Api::namespaced(context.client.clone(), names.namespace());
    let patch = json!({
        "apiVersion": DS4Deployment::api_version(&()), "kind": DS4Deployment::kind(&()), "status": status,
    });
    let parameters = PatchParams::apply(MANAGER).force();
    api.patch_status(names.name(), &parameters, &Patch::Apply(&patch))
        .await
        .map_err(Error::api("writing the status"))?;
    let before = deployment.status.as_ref();
    for condition in &status.conditions {
        let known = before.and_then(|before| {
            before
                .conditions
                .iter()
                .find(|known| known.type_ == condition.type_)
        });
        if known.is_none_or(|known| known.status != condition.status)
            && condition.type_ == ds4_api::condition::AVAILABLE
        {
            publish(
                context,
                deployment,
                EventType::Normal,
                &condition.reason,
                &condition.message,
            )
            .await;
        }
    }
    Ok(())
}

/// Events are for people: one that cannot be written is logged and forgotten.
async fn publish(context: &Context, deployment: &DS4Deployment, type_: EventType, reason: &str, note: &str) {
    let event = Event {
        type_,
        reason: reason.into(),
        note: Some(note.into()),
        action: "Reconcile".into(),
        secondary: None,
    };
    if let Err(error) = context
        .recorder
        .publish(&event, &deployment.object_ref(&()))
        .await
    {
        tracing::warn!(%error, reason, "event");
    }
}

fn failed(deployment: Arc<DS4Deployment>, error: &Error, context: Arc<Context>) -> Action {
    tracing::warn!(%error, deployment = %deployment.name_any(), "reconciliation failed");
    let (reason, note) = (error.reason(), error.to_string());
    tokio::spawn(async move { publish(&context, &deployment, EventType::Warning, reason, &note).await });
    Action::requeue(RETRY)
}
