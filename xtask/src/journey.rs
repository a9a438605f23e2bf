//! `cargo xtask journey`: a user's way through a fresh cluster, and what an operator has to live through.

mod certificates;
mod chart;
mod delivery;
mod failures;
mod faults;
mod load;
mod mac;
mod many;
mod operator;
mod planned;
mod rules;
mod security;
mod user;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::ask::print;
use crate::cluster::{self, Cluster, Provider};
use crate::demo;
use crate::progress::step;
use world::World;

/// Something that happens to a deployment, and what was measured.
struct Journey {
    name: &'static str,
    /// What users of other operators complained about, with the issue or pull request, that this shows not to happen here.
    complaint: &'static str,
    /// Whether it is part of `cargo xtask test`.
    always: bool,
    walk: fn(&mut World<'_>) -> Result<String>,
}

impl Journey {
    const fn new(name: &'static str, walk: fn(&mut World<'_>) -> Result<String>) -> Self {
        Self {
            name,
            complaint: "",
            always: false,
            walk,
        }
    }

    const fn answers(self, complaint: &'static str) -> Self {
        Self { complaint, ..self }
    }

    const fn always(self) -> Self {
        Self { always: true, ..self }
    }
}

/// All journeys but the user's own, in order; the permissions are looked at when everything else was done.
const JOURNEYS: &[Journey] = &[
    Journey::new("what the chart renders", chart::golden).always(),
    Journey::new("every rule of the resource", rules::refused_and_accepted).always(),
    Journey::new("a new image beside the old one", planned::image_beside)
        .answers("rbg#150: a rollout's bounds are computed and not kept")
        .always(),
    Journey::new("a new image in place", planned::image_in_place)
        .answers("modelservice#252, lws#388: prefill and decode roll independently"),
    Journey::new("another model", planned::model)
        .answers("vllm#55776, vllm#29503: pairs of different model revisions or builds"),
    Journey::new("another split", planned::split).always(),
    Journey::new("another option", planned::option)
        .answers("dynamo#10027, vllm#49230: layout flags differ between peers"),
    Journey::new("scaled 1 → 3 → 1", planned::scale)
        .answers("kthena#1589: scaling down cuts requests off")
        .always(),
    Journey::new("paused and resumed", planned::pause),
    Journey::new("an image that is missing", planned::bad_image)
        .answers("lws#725, lws#757: pods are recreated again and again while an image is pulled"),
    Journey::new("an engine that fails again and again", planned::crash_loop)
        .answers("lws#877: no bound on restarts"),
    Journey::new("a pod replaced, and the next one kept", failures::given_up)
        .answers("lws#877: no terminal state, and nothing left to look at"),
    Journey::new("a drained node", planned::drain).answers("dynamo#11173: draining is not told from failing"),
    Journey::new("a stage's process killed", faults::kill_stage)
        .answers("smg#2382, vllm#49238: peers keep the state of a stage that restarted")
        .always(),
    Journey::new("an output pod's process killed", faults::kill_output)
        .answers("smg#2503: stages break when the decoding pod restarts"),
    Journey::new("a stage's pod deleted without notice", faults::delete_stage)
        .answers("lws#998: a group is not whole again when its pod comes back first"),
    Journey::new(
        "a pipeline's pods deleted without notice",
        faults::delete_pipeline,
    ),
    Journey::new("an output pod deleted in peace", faults::evict_output),
    Journey::new("a stage's pod deleted in peace", faults::evict_stage)
        .answers("dynamo#11173: a leaving prefill pod takes KV with it that was not pulled yet"),
    Journey::new("a stage that stands still", faults::stall_stage)
        .answers("dynamo#14735: tight liveness probes restart a stage that is merely slow"),
    Journey::new("no stage at all", faults::no_stage)
        .answers("llm-d-router#2427, llm-d-router#1461: decode does all the work, and nothing says so"),
    Journey::new("a stage's node cut off and back", faults::cut_node)
        .answers("LLMKube#1782: a dead worker counts as running"),
    Journey::new("the API server away for a minute", faults::api_away),
    Journey::new("the leading operator killed in a rollout", faults::kill_leader),
    Journey::new(
        "the operator killed at every step",
        operator::killed_at_every_step,
    ),
    Journey::new("a Mac joins, serves and refuses", mac::joins).always(),
    Journey::new("a Mac at rest", mac::rests),
    Journey::new("a Mac's runner killed", mac::kill_runner),
    Journey::new("a Mac's engine killed", mac::kill_engine)
        .answers("LLMKube#1782: a dead worker counts as running"),
    Journey::new("a Mac cut off and back", mac::cut_off),
    Journey::new("a Mac's log followed, its pod deleted", mac::follow_and_delete),
    Journey::new("a rollout over a Mac", mac::roll_out),
    Journey::new("a drained Mac", mac::drain),
    Journey::new("a Mac short of memory", mac::evict),
    Journey::new("a model fetched once", delivery::fetched_once)
        .answers("kserve#4918, LLMKube#904: every pod downloads the model, and pods that serve wait for it"),
    Journey::new("a stage that fits no node", failures::unschedulable),
    Journey::new("a Secret that is missing", failures::no_keys),
    Journey::new("a volume that is missing", failures::no_volume),
    Journey::new("a stage without enough memory", failures::no_memory),
    Journey::new("certificates that nobody keeps", failures::no_certificates),
    Journey::new("a field that never changes", failures::immutable),
    Journey::new("certificates replaced under load", certificates::replaced),
    Journey::new("strangers with other certificates", certificates::strangers).always(),
    Journey::new("a network policy withdrawn", security::policy_withdrawn),
    Journey::new("clients with and without a key", security::keys),
    Journey::new("the chart upgraded and rolled back", chart::upgraded),
    Journey::new("the chart from an older version", chart::from_older)
        .answers("dynamo#4773: which versions go together is not known"),
    Journey::new("an operator for one namespace", chart::one_namespace),
    Journey::new("values that mean nothing", chart::bad_values),
    Journey::new("an operator at rest", operator::quiet),
    Journey::new("two hundred deployments", many::two_hundred),
    Journey::new("the operator's permissions", operator::permissions),
];

/// Which journeys to take.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// All of them, not only those of `cargo xtask test`.
    pub all: bool,
    /// Only those whose name contains one of these; of no texts, all that [`Self::all`] says.
    pub only: Vec<String>,
    /// On this cluster, which is up, has the images and the chart, and stays.
    pub cluster: Option<String>,
}

/// Prints the journeys' names.
///
/// # Errors
/// When standard output is closed.
pub fn list() -> Result<()> {
    for journey in JOURNEYS {
        let when = if journey.always { "always" } else { "--all" };
        print(&format!("{when:8} {:<42} {}", journey.name, journey.complaint))?;
    }
    Ok(())
}

/// Runs the journeys on a fresh cluster. Where none can run, says so; in CI that is a failure.
///
/// # Errors
/// Names the stop of the journey that failed.
pub fn run(choice: &Choice) -> Result<()> {
    if let Some(name) = &choice.cluster {
        let mut cluster = Cluster::find(name)?.with_context(|| format!("no cluster {name} is up"))?;
        return walk(&mut cluster, choice);
    }
    if let Err(missing) = cluster::choose(None) {
        if std::env::var_os("CI").is_some() {
            return Err(missing);
        }
        eprintln!("skipped: {missing:#}");
        return Ok(());
    }
    let outcome = demo::cluster("journey", None).and_then(|mut cluster| {
        demo::install(&cluster)?;
        if choice.only.is_empty() {
            user::arrive(&mut cluster)?;
        }
        if cluster.provider() == Provider::Kind {
            eprintln!("skipped: the journeys under load need the provider namespaces (a forward of kind ends with its pod)");
        } else {
            walk(&mut cluster, choice)?;
        }
        if choice.only.is_empty() {
            user::leave(&mut cluster)?;
        }
        Ok(())
    });
    let ended = Cluster::find("journey")?.map_or(Ok(()), Cluster::down);
    outcome.and(ended)
}

/// Takes the chosen journeys, prints what was measured as one table, and fails when one failed.
fn walk(cluster: &mut Cluster, choice: &Choice) -> Result<()> {
    let mut world = World { cluster };
    let (mut rows, mut failed) = (Vec::new(), Vec::new());
    for journey in JOURNEYS.iter().filter(|journey| choice.takes(journey)) {
        let start = Instant::now();
        let outcome = step(journey.name, || (journey.walk)(&mut world));
        let took = start.elapsed().as_secs_f64();
        let (mark, said) = match &outcome {
            Ok(measured) => ("✓", measured.clone()),
            Err(error) => {
                failed.push(format!("{}: {error:#}", journey.name));
                ("✗", format!("{error:#}"))
            }
        };
        eprintln!("      {said}");
        rows.push(format!("{mark} {:<42} {took:>6.1} s  {said}", journey.name));
    }
    print(&format!("\n{}\n", rows.join("\n")))?;
    world.remove()?;
    mac::leave(&world)?;
    if failed.is_empty() {
        return Ok(());
    }
    bail!(
        "{} of {} journeys failed:\n{}",
        failed.len(),
        rows.len(),
        failed.join("\n")
    )
}

impl Choice {
    fn takes(&self, journey: &Journey) -> bool {
        if self.only.is_empty() {
            return self.all || journey.always;
        }
        self.only.iter().any(|part| journey.name.contains(part.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::JOURNEYS;

    /// What users of other operators complain about most, as far as an operator can help it.
    const COMPLAINTS: [&str; 23] = [
        "llm-d-router#2427",
        "llm-d-router#1461",
        "vllm#49238",
        "smg#2503",
        "smg#2382",
        "lws#998",
        "lws#725",
        "lws#757",
        "lws#877",
        "LLMKube#1782",
        "modelservice#252",
        "lws#388",
        "vllm#29503",
        "vllm#55776",
        "vllm#49230",
        "dynamo#10027",
        "rbg#150",
        "dynamo#4773",
        "kthena#1589",
        "dynamo#11173",
        "kserve#4918",
        "LLMKube#904",
        "dynamo#14735",
    ];

    #[test]
    fn every_complaint_has_a_journey() {
        let unanswered: Vec<&str> = COMPLAINTS
            .into_iter()
            .filter(|complaint| {
                JOURNEYS
                    .iter()
                    .all(|journey| !journey.complaint.contains(complaint))
            })
            .collect();
        assert!(unanswered.is_empty(), "{unanswered:?}");
    }

    #[test]
    fn names_tell_journeys_apart() {
        let mut names: Vec<&str> = JOURNEYS.iter().map(|journey| journey.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), JOURNEYS.len());
    }
}
