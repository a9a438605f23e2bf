//! What the resource says about itself. Pure: the clock comes in as a value.

use ds4_api::{DS4Deployment, DS4DeploymentStatus, LABEL_NAME, LABEL_ROLE, Names, StageStatus};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::conditions;
use crate::diagnose::Trouble;
use crate::failure::Replacements;
use crate::loading::{self, Loading};
use crate::observe::Observed;
use crate::probe::Report;
use crate::progress::Progress;
use crate::rollout::Generation;
use crate::validate::Blocked;

/// What a status is made of.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    pub(crate) deployment: &'a DS4Deployment,
    pub(crate) names: &'a Names,
    pub(crate) observed: &'a Observed,
    /// Where the rollout is; none while blocked.
    pub(crate) rollout: Option<Rollout<'a>>,
    pub(crate) blocked: Option<&'a Blocked>,
    pub(crate) troubles: &'a [Trouble],
    pub(crate) routes: &'a [Report],
    pub(crate) loading: &'a [Loading],
    pub(crate) now: Timestamp,
}

/// A rollout as it stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rollout<'a> {
    pub(crate) old: &'a [Generation],
    pub(crate) new: &'a Generation,
    pub(crate) progress: &'a Progress,
    pub(crate) replacements: Replacements,
    /// Only the new revision has pipelines, and as many as asked for.
    pub(crate) complete: bool,
}

impl Facts<'_> {
    /// Pipelines that answer, whatever their revision.
    pub(crate) fn answering(&self) -> i32 {
        let pods = self
            .observed
            .pods
            .iter()
            .filter(|pod| pod.output && pod.ready && !pod.leaving);
        i32::try_from(pods.count()).unwrap_or(i32::MAX)
    }

    /// Ready pods of a stage, and those of the new revision.
    fn stage(&self, stage: &str) -> (i32, i32) {
        let update = self.rollout.map(|rollout| rollout.new.revision.as_str());
        let of_stage = || {
            self.observed
                .pods
                .iter()
                .filter(|pod| pod.stage == stage && !pod.leaving)
        };
        let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
        (
            count(of_stage().filter(|pod| pod.ready).count()),
            count(
                of_stage()
                    .filter(|pod| Some(pod.revision.as_str()) == update)
                    .count(),
            ),
        )
    }

    fn existing(&self) -> i32 {
        let pods = self.observed.pods.iter().filter(|pod| pod.output && !pod.leaving);
        i32::try_from(pods.count()).unwrap_or(i32::MAX)
    }
}

/// The status of a deployment.
pub(crate) fn status(facts: &Facts<'_>) -> DS4DeploymentStatus {
    let spec = &facts.deployment.spec;
    let stages: Vec<StageStatus> = spec
        .pipeline
        .ordered()
        .into_iter()
        .map(|stage| {
            let (ready, updated) = facts.stage(&stage.name);
            let bytes = loading::sum(facts.loading.iter().filter(|pod| pod.stage == stage.name));
            StageStatus {
                name: stage.name.clone(),
                layers: stage.layers.argument(),
                backend: format!("{:?}", stage.backend),
                ready,
                updated,
                loaded_bytes: bytes.map(|(loaded, _)| loaded),
                total_bytes: bytes.map(|(_, total)| total),
                loaded: bytes.map(loading::share),
            }
        })
        .collect();
    let answering = facts.answering();
    let conditions = conditions::conditions(facts, &stages, answering);
    let rollout = facts.rollout;
    DS4DeploymentStatus {
        observed_generation: facts.deployment.metadata.generation,
        replicas: facts.existing(),
        ready_replicas: answering,
        updated_replicas: rollout.map_or(0, |rollout| rollout.new.answering()),
        loaded: loading::sum(facts.loading.iter())
            .filter(|(loaded, total)| loaded < total)
            .map(loading::share),
        pipelines: Some(format!("{answering}/{}", spec.replicas)),
        selector: Some(format!("{LABEL_NAME}={},{LABEL_ROLE}=output", facts.names.name())),
        current_revision: current(facts),
        update_revision: rollout.map(|rollout| rollout.new.revision.clone()),
        last_progress: rollout.map(|rollout| Time(rollout.progress.last)),
        replacements: rollout.map_or(0, |rollout| rollout.replacements.count),
        last_replacement: rollout.and_then(|rollout| rollout.replacements.last).map(Time),
        url: Some(facts.names.url(spec.server.port)),
        conditions,
        stages,
    }
}

/// The new revision once all its pipelines answered; until then the one before.
fn current(facts: &Facts<'_>) -> Option<String> {
    let before = facts
        .deployment
        .status
        .as_ref()
        .and_then(|status| status.current_revision.clone());
    match facts.rollout {
        Some(rollout) if rollout.complete && rollout.new.answering() == facts.deployment.spec.replicas => {
            Some(rollout.new.revision.clone())
        }
        _ => before,
    }
}
