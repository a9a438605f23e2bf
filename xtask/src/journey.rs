//! `cargo xtask journey`: a user's way through a fresh cluster, and what an operator has to live through.

mod certificates;
mod failures;
mod faults;
mod load;
mod many;
mod operator;
mod planned;
mod user;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::ask::print;
use crate::cluster::{self, Cluster};
use crate::demo;
use crate::progress::step;
use world::World;

/// Something that happens to a deployment, and what was measured.
struct Journey {
    name: &'static str,
    /// Whether it is part of `cargo xtask test`.
    always: bool,
    walk: fn(&mut World<'_>) -> Result<String>,
}

const fn always(name: &'static str, walk: fn(&mut World<'_>) -> Result<String>) -> Journey {
    Journey {
        name,
        always: true,
        walk,
    }
}

const fn sometimes(name: &'static str, walk: fn(&mut World<'_>) -> Result<String>) -> Journey {
    Journey {
        name,
        always: false,
        walk,
    }
}

/// All journeys but the user's own, in order; the permissions are looked at when everything else was done.
const JOURNEYS: &[Journey] = &[
    always("a new image beside the old one", planned::image_beside),
    sometimes("a new image in place", planned::image_in_place),
    sometimes("another model", planned::model),
    always("another split", planned::split),
    sometimes("another option", planned::option),
    always("scaled 1 → 3 → 1", planned::scale),
    sometimes("paused and resumed", planned::pause),
    sometimes("an image that is missing", planned::bad_image),
    sometimes("an engine that fails again and again", planned::crash_loop),
    sometimes("a drained node", planned::drain),
    always("a stage's process killed", faults::kill_stage),
    sometimes("an output pod's process killed", faults::kill_output),
    sometimes("a stage's pod deleted without notice", faults::delete_stage),
    sometimes(
        "a pipeline's pods deleted without notice",
        faults::delete_pipeline,
    ),
    sometimes("an output pod deleted in peace", faults::evict_output),
    sometimes("a stage's node cut off and back", faults::cut_node),
    sometimes("the API server away for a minute", faults::api_away),
    sometimes("the leading operator killed in a rollout", faults::kill_leader),
    sometimes(
        "the operator killed at every step",
        operator::killed_at_every_step,
    ),
    sometimes("a stage that fits no node", failures::unschedulable),
    sometimes("a Secret that is missing", failures::no_keys),
    sometimes("a stage without enough memory", failures::no_memory),
    sometimes("a field that never changes", failures::immutable),
    sometimes("certificates issued and replaced", certificates::issued),
    sometimes("a network policy withdrawn", certificates::policy_withdrawn),
    sometimes("an operator at rest", operator::quiet),
    sometimes("two hundred deployments", many::two_hundred),
    sometimes("the operator's permissions", operator::permissions),
];

/// Which journeys to take.
#[derive(Clone, Debug, Default)]
pub struct Choice {
    /// All of them, not only those of `cargo xtask test`.
    pub all: bool,
    /// Only those whose name contains this.
    pub only: Option<String>,
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
        print(&format!("{when:8} {}", journey.name))?;
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
        if choice.only.is_none() {
            user::arrive(&mut cluster)?;
        }
        walk(&mut cluster, choice)?;
        if choice.only.is_none() {
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
        match &self.only {
            Some(part) => journey.name.contains(part.as_str()),
            None => self.all || journey.always,
        }
    }
}
