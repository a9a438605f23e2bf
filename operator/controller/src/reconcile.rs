//! One deployment, once: from what is wanted and what stands to the next step.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ds4_api::{DS4Deployment, DS4DeploymentSpec, DS4DeploymentStatus, MtlsMode, Names, condition};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::controller::Action;
use kube::runtime::events::{Event, EventType, Recorder};
use kube::{Client, Resource, ResourceExt};

use crate::apply::{self, Writer};
use crate::build::{Defaults, Prepared, build};
use crate::caches::Caches;
use crate::certificates::Certificates;
use crate::diagnose::{Trouble, diagnose};
use crate::error::Error;
use crate::failpoint::Failpoint;
use crate::failure::{self, Replacements, Verdict};
use crate::metrics::Metrics;
use crate::observe::Observed;
use crate::probe::{Report, Route};
use crate::progress::{Progress, progress};
use crate::rollout::{Generation, Goal, complete, forgotten, plan};
use crate::status::{Facts, Rollout, status};
use crate::validate::{Blocked, validate};
use crate::{loading, mounts, probe, retry};

/// Everything is looked at again after about this, should a watch have missed something.
const RESYNC: Duration = Duration::from_secs(1800);
/// A route that is not complete is asked for again after this: nothing in the cluster tells when it is.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// What every reconciliation needs.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) caches: Caches,
    pub(crate) recorder: Recorder,
    pub(crate) defaults: Defaults,
    /// None: this operator may not keep any.
    pub(crate) certificates: Option<Certificates>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) retries: retry::Retries,
    pub(crate) failpoint: Failpoint,
}

/// Takes one step for a deployment.
pub(crate) async fn reconcile(
    deployment: Arc<DS4Deployment>,
    context: Arc<Context>,
) -> Result<Action, Error> {
    if deployment.metadata.deletion_timestamp.is_some() {
        // Owner references clean up.
        return Ok(Action::await_change());
    }
    let started = Instant::now();
    let next = step(&deployment, &context).await?;
    context.metrics.reconciled(started.elapsed());
    context.retries.forget(&deployment);
    Ok(Action::requeue(next))
}

/// Pods that hang before their first container are asked about again after this: nothing but events tells of them.
const ASK_ABOUT_VOLUMES: Duration = Duration::from_secs(10);

/// A rollout's inputs and its verdict.
struct Judged {
    old: Vec<Generation>,
    new: Generation,
    failure: Verdict,
    replacements: Replacements,
    progress: Progress,
    complete: bool,
}

async fn step(deployment: &DS4Deployment, context: &Context) -> Result<Duration, Error> {
    let namespace = deployment.namespace().ok_or(Error::NoNamespace)?;
    let names = Names::new(deployment.name_any(), namespace);
    let now = now();
    let observed = Observed::read(&names, &context.caches.sets, &context.caches.pods);
    context.failpoint.pass("observed");
    let volumes = mounts::mounts(&context.client, names.namespace(), &observed.pods, now).await?;
    let limit = deployment.spec.failure_policy.max_restarts;
    let troubles = diagnose(&observed.pods, limit, &volumes);
    let blocked = validate(&deployment.spec)
        .err()
        .or_else(|| uncertified(deployment, context));
    let mut due = vec![retry::spread(RESYNC)];
    let mut judged = None;
    if blocked.is_none() {
        let prepared = build(deployment, &names, &context.defaults, &observed.outside())?;
        context.failpoint.pass("built");
        let mut verdict = judge(deployment, &observed, &prepared, &troubles, now);
        due.extend(verdict.due(&deployment.spec, now).map(Duration::from_secs));
        let (certificate, ()) = futures::try_join!(
            certificate(deployment, context, &names, &observed, now),
            surround(context, &names, &prepared),
        )?;
        due.extend(certificate);
        write(
            deployment,
            context,
            &names,
            &observed,
            &prepared,
            &mut verdict,
            now,
        )
        .await?;
        judged = Some(verdict);
    }
    let (routes, loading) = futures::join!(probe::routes(&observed.pods), loading::loading(&observed.pods));
    context.failpoint.pass("probed");
    let facts = Facts {
        deployment,
        names: &names,
        observed: &observed,
        rollout: judged.as_ref().map(Judged::facts),
        blocked: blocked.as_ref(),
        troubles: &troubles,
        routes: &routes,
        loading: &loading,
        now,
    };
    let status = status(&facts);
    if asks_again(&routes) || status.loaded.is_some() {
        due.push(ASK_AGAIN);
    }
    if observed
        .pods
        .iter()
        .any(|pod| !pod.ready && mounts::starts(&pod.pod))
    {
        due.push(ASK_ABOUT_VOLUMES);
    }
    publish_status(context, deployment, &names, &status).await?;
    context.failpoint.pass("status");
    Ok(due.into_iter().min().unwrap_or(RESYNC))
}

/// A deployment whose certificates nobody keeps.
fn uncertified(deployment: &DS4Deployment, context: &Context) -> Option<Blocked> {
    let wanted = deployment.spec.security.mtls.mode == MtlsMode::Managed;
    (wanted && context.certificates.is_none()).then(|| {
        let message = "spec.security.mtls.mode Managed: this operator may not keep certificates (certificates.managed of its chart is false): \
                       use CertManager, or Disabled in a network that you trust";
        Blocked::Pipeline("CertificatesNotManaged", message.into())
    })
}

/// Whole seconds: finer ones would make every status differ.
fn now() -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second()).unwrap_or(Timestamp::UNIX_EPOCH)
}

fn judge(
    deployment: &DS4Deployment,
    observed: &Observed,
    prepared: &Prepared,
    troubles: &[Trouble],
    now: Timestamp,
) -> Judged {
    let (old, new) = (
        observed.others(&prepared.revision),
        observed.generation(&prepared.revision),
    );
    let before = deployment.status.as_ref();
    let replacements = Replacements::read(before, &prepared.revision);
    let policy = &deployment.spec.failure_policy;
    let failure = failure::judge(policy, replacements, troubles, &prepared.revision, now);
    let progress = progress(
        deployment,
        &new,
        &failure,
        observed.restarts(&prepared.revision),
        now,
    );
    let complete = complete(deployment.spec.replicas, &old, &new);
    Judged {
        old,
        new,
        failure,
        replacements,
        progress,
        complete,
    }
}

impl Judged {
    fn facts(&self) -> Rollout<'_> {
        Rollout {
            old: &self.old,
            new: &self.new,
            progress: &self.progress,
            replacements: self.replacements,
            complete: self.complete,
        }
    }

    /// Seconds until time alone changes the verdict.
    fn due(&self, spec: &DS4DeploymentSpec, now: Timestamp) -> Option<u64> {
        let waits = match self.failure {
            Verdict::Wait(seconds) => Some(seconds),
            _ => None,
        };
        self.progress.due(spec, now).into_iter().chain(waits).min()
    }
}

/// The pods' certificate, where the operator keeps it; returns when to look at it again.
async fn certificate(
    deployment: &DS4Deployment,
    context: &Context,
    names: &Names,
    observed: &Observed,
    now: Timestamp,
) -> Result<Option<Duration>, Error> {
    let (MtlsMode::Managed, Some(certificates)) = (deployment.spec.security.mtls.mode, &context.certificates)
    else {
        return Ok(None);
    };
    let ready = observed.pods.iter().all(|pod| pod.ready);
    let left = certificates
        .ensure(&context.client, deployment, names, ready, now)
        .await?;
    context.failpoint.pass("certified");
    Ok(Some(Duration::from_secs(left)))
}

fn writer<'a>(context: &'a Context, names: &'a Names) -> Writer<'a> {
    Writer {
        client: context.client.clone(),
        caches: &context.caches,
        namespace: names.namespace(),
        metrics: &context.metrics,
    }
}

/// What pods need before they are there.
async fn surround(context: &Context, names: &Names, prepared: &Prepared) -> Result<(), Error> {
    writer(context, names).surroundings(prepared).await?;
    context.failpoint.pass("surroundings");
    Ok(())
}

async fn write(
    deployment: &DS4Deployment,
    context: &Context,
    names: &Names,
    observed: &Observed,
    prepared: &Prepared,
    judged: &mut Judged,
    now: Timestamp,
) -> Result<(), Error> {
    let goal = Goal::new(&deployment.spec, judged.progress.stopped());
    let next = plan(goal, &judged.old, &judged.new);
    let writer = writer(context, names);
    writer.sets(prepared, observed, &next).await?;
    context.failpoint.pass("sets");
    for generation in judged.old.iter().chain([&judged.new]) {
        let wanted = next.get(&generation.revision).copied().unwrap_or(0);
        if wanted != generation.desired {
            let note = format!(
                "revision {}: from {} to {wanted} pipelines",
                generation.revision, generation.desired
            );
            publish(context, deployment, EventType::Normal, "PipelinesScaled", &note);
        }
    }
    let limit = deployment.spec.rollout.revision_history_limit;
    writer.forget(observed, &forgotten(&judged.old, limit)).await?;
    context.failpoint.pass("forgotten");
    if let Verdict::Replace(pods) = &judged.failure {
        for pod in pods {
            writer.delete(&context.caches.pods, pod).await?;
        }
        judged.replacements.count += 1;
        judged.replacements.last = Some(now);
        let note = format!(
            "replaced for the {}. time: {}",
            judged.replacements.count,
            pods.join(", ")
        );
        publish(context, deployment, EventType::Warning, "PodsReplaced", &note);
    }
    Ok(())
}

/// Whether an output pod that can be asked has yet to say that its route is complete. Of one without an address the next event tells.
fn asks_again(routes: &[Report]) -> bool {
    routes
        .iter()
        .any(|report| matches!(report.route, Route::Incomplete(_) | Route::Unknown))
}

/// Writes the status when it differs, and an event for every condition that holds no longer, holds again, or for another reason.
async fn publish_status(
    context: &Context,
    deployment: &DS4Deployment,
    names: &Names,
    status: &DS4DeploymentStatus,
) -> Result<(), Error> {
    let before = deployment.status.as_ref();
    if before == Some(status) {
        return Ok(());
    }
    apply::status(&context.client, names.namespace(), names.name(), status).await?;
    context.metrics.wrote("Status");
    for known in &status.conditions {
        let old = before.and_then(|before| before.conditions.iter().find(|old| old.type_ == known.type_));
        if is_news(old, known) {
            let note = format!("{}={}: {}", known.type_, known.status, known.message);
            publish(context, deployment, severity(known), &known.reason, &note);
        }
    }
    Ok(())
}

/// Reasons that pass by themselves while pods come up: not worth an event unless the condition held before.
const ON_THE_WAY: [&str; 6] = [
    "NoPipelineAnswers",
    "FewerThanWanted",
    "StagesNotReady",
    "NoRoute",
    "RouteUnknown",
    "RouteIncomplete",
];

/// Whether a condition's change is worth an event. `PipelineReady` says what `Degraded` says.
fn is_news(old: Option<&Condition>, known: &Condition) -> bool {
    if known.type_ == condition::PIPELINE_READY {
        return false;
    }
    let passing = ON_THE_WAY.contains(&known.reason.as_str());
    match old {
        None => !passing,
        Some(old) if old.status != known.status => true,
        Some(old) => old.reason != known.reason && !passing,
    }
}

/// A condition that is as people want it is normal; so is one that is merely on its way.
fn severity(known: &Condition) -> EventType {
    let wanted = match known.type_.as_str() {
        condition::DEGRADED | condition::FAILED => "False",
        condition::PROGRESSING => known.status.as_str(),
        _ => "True",
    };
    let stopped = ["MaxRestartsExceeded", "ProgressDeadlineExceeded"].contains(&known.reason.as_str());
    if known.status == wanted && !stopped {
        EventType::Normal
    } else {
        EventType::Warning
    }
}

/// The longest note that the API server takes.
const LONGEST_NOTE: usize = 1000;

/// Events are for people: nothing waits for one, and one that cannot be written is logged and forgotten.
fn publish(context: &Context, deployment: &DS4Deployment, type_: EventType, reason: &str, note: &str) {
    let event = Event {
        type_,
        reason: reason.into(),
        note: Some(note.chars().take(LONGEST_NOTE).collect()),
        action: "Reconcile".into(),
        secondary: None,
    };
    let (recorder, about) = (context.recorder.clone(), deployment.object_ref(&()));
    tokio::spawn(async move {
        if let Err(error) = recorder.publish(&event, &about).await {
            tracing::warn!(%error, reason = event.reason, "event");
        }
    });
}

/// Says what failed, and tries again later and later.
pub(crate) fn failed(deployment: Arc<DS4Deployment>, error: &Error, context: Arc<Context>) -> Action {
    let again = context.retries.after(&deployment);
    let (reason, note) = (error.reason(), error.to_string());
    tracing::warn!(
        %error, reason, deployment = %deployment.name_any(), namespace = deployment.namespace(), ?again,
        "reconciliation failed"
    );
    context.metrics.failed(reason);
    publish(&context, &deployment, EventType::Warning, reason, &note);
    Action::requeue(again)
}
