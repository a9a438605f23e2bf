//! How many pipelines each revision has next. Pure: a rollout is this function, asked again whenever something changed.
//!
//! A revision is a set of `StatefulSet`s of its own, one for each stage, as a Deployment's revision is a `ReplicaSet`. So pods of two
//! revisions never pair, another split is a revision like any other, a lost pod comes back as what it was, and going back is scaling up
//! sets that still exist.

use std::collections::BTreeMap;

use ds4_api::DS4DeploymentSpec;

/// One revision as it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Generation {
    pub(crate) revision: String,
    /// Its place in the order in which revisions were asked for.
    pub(crate) number: i64,
    /// Pipelines that its output set is told to have.
    pub(crate) desired: i32,
    /// One more than the highest ordinal of any pod of any stage, leaving ones included.
    pub(crate) occupied: i32,
    /// For each desired ordinal, whether its output pod answers.
    pub(crate) ready: Vec<bool>,
}

impl Generation {
    /// Pipelines that answer.
    pub(crate) fn answering(&self) -> i32 {
        i32::try_from(self.ready.iter().filter(|ready| **ready).count()).unwrap_or(i32::MAX)
    }

    /// Pipelines that take room on nodes or will.
    fn room(&self) -> i32 {
        self.desired.max(self.occupied)
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    pub(crate) replicas: i32,
    pub(crate) max_unavailable: i32,
    pub(crate) max_surge: i32,
    /// No pipeline is replaced: paused by the user, or stopped because the new revision does not come up.
    pub(crate) held: bool,
}

impl Goal {
    pub(crate) const fn new(spec: &DS4DeploymentSpec, stopped: bool) -> Self {
        Self {
            replicas: spec.replicas,
            max_unavailable: spec.rollout.max_unavailable,
            max_surge: spec.rollout.max_surge,
            held: spec.rollout.paused || stopped,
        }
    }
}

/// Pipelines of every revision.
pub(crate) type Plan = BTreeMap<String, i32>;

/// Whether only the new revision has pipelines, and as many as asked for.
pub(crate) fn complete(replicas: i32, old: &[Generation], new: &Generation) -> bool {
    new.desired == replicas && new.occupied <= replicas && old.iter().all(|old| old.room() == 0)
}

/// The next step from what stands to what is asked for.
pub(crate) fn plan(goal: Goal, old: &[Generation], new: &Generation) -> Plan {
    let serving = old.iter().any(|old| old.desired > 0);
    let (old_next, new_next) = if goal.held && serving {
        held(goal, old, new)
    } else {
        let next = shrink(goal, old, new);
        let room: i32 = old
            .iter()
            .map(|old| next.get(&old.revision).copied().unwrap_or(0).max(old.occupied))
            .sum();
        let most = goal.replicas + if serving { goal.max_surge } else { 0 };
        let kept = new.desired.min(goal.replicas);
        (next, (most - room).clamp(kept, goal.replicas))
    };
    let mut plan = old_next;
    plan.insert(new.revision.clone(), new_next);
    plan
}

/// Old pipelines that go: those that do not answer, and as many that answer as may be missing. Highest ordinals first, oldest revisions first.
fn shrink(goal: Goal, old: &[Generation], new: &Generation) -> Plan {
    let answering = new.answering() + old.iter().map(Generation::answering).sum::<i32>();
    let mut spare = answering - (goal.replicas - goal.max_unavailable).max(0);
    by_age(old)
        .into_iter()
        .map(|old| {
            let mut keep = old.desired;
            while keep > 0 {
                let answers = old.ready.get(place(keep)).copied().unwrap_or(false);
                if answers && spare <= 0 {
                    break;
                }
                spare -= i32::from(answers);
                keep -= 1;
            }
            (old.revision.clone(), keep)
        })
        .collect()
}

/// Nothing is replaced, but `replicas` is still followed: the newest old revision that serves grows when there are fewer pipelines than
/// that, and shrinks when there are more than that and the surge. (New ones that do not answer must not push out old ones that do.)
fn held(goal: Goal, old: &[Generation], new: &Generation) -> (Plan, i32) {
    let mut plan: Plan = old
        .iter()
        .map(|old| (old.revision.clone(), old.desired))
        .collect();
    let new_next = new.desired.min(goal.replicas);
    let all = new_next + plan.values().sum::<i32>();
    let wanted = all.clamp(goal.replicas, goal.replicas + goal.max_surge);
    if let Some(serving) = by_age(old).into_iter().rfind(|old| old.desired > 0) {
        let next = (serving.desired + wanted - all).max(0);
        plan.insert(serving.revision.clone(), next);
    }
    (plan, new_next)
}

fn by_age(old: &[Generation]) -> Vec<&Generation> {
    let mut sorted: Vec<&Generation> = old.iter().collect();
    sorted.sort_by_key(|old| old.number);
    sorted
}

fn place(count: i32) -> usize {
    usize::try_from(count - 1).unwrap_or(0)
}

/// Revisions that nobody needs any more: those with nothing left, beyond the newest `limit`.
pub(crate) fn forgotten(old: &[Generation], limit: i32) -> Vec<String> {
    let empty: Vec<&Generation> = by_age(old).into_iter().filter(|old| old.room() == 0).collect();
    let beyond = empty.len().saturating_sub(usize::try_from(limit).unwrap_or(0));
    empty[..beyond].iter().map(|old| old.revision.clone()).collect()
}

/// Replicas of a stage's set. A prefill stage stays until the output pods that use it are gone: their requests end first.
pub(crate) fn stage_replicas(pipelines: i32, is_output: bool, output_occupied: i32) -> i32 {
    if is_output {
        pipelines
    } else {
        pipelines.max(output_occupied)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(revision: &str, number: i64, ready: &[bool]) -> Generation {
        let desired = i32::try_from(ready.len()).expect("small");
        Generation {
            revision: revision.into(),
            number,
            desired,
            occupied: desired,
            ready: ready.to_vec(),
        }
    }

    const fn goal(replicas: i32, max_unavailable: i32, max_surge: i32) -> Goal {
        Goal {
            replicas,
            max_unavailable,
            max_surge,
            held: false,
        }
    }

    fn next(goal: Goal, old: &[Generation], new: &Generation) -> Vec<(String, i32)> {
        plan(goal, old, new).into_iter().collect()
    }

    fn of(pairs: &[(&str, i32)]) -> Vec<(String, i32)> {
        pairs
            .iter()
            .map(|(revision, count)| ((*revision).to_owned(), *count))
            .collect()
    }

    #[test]
    fn a_new_deployment_gets_all_its_pipelines_and_scaling_follows() {
        let none = generation("b", 1, &[]);
        assert_eq!(next(goal(3, 1, 0), &[], &none), of(&[("b", 3)]));
        let three = generation("b", 1, &[true; 3]);
        assert_eq!(next(goal(1, 1, 0), &[], &three), of(&[("b", 1)]));
        assert_eq!(next(goal(5, 0, 1), &[], &three), of(&[("b", 5)]));
    }

    #[test]
    fn in_place_a_pipeline_leaves_before_the_next_one_comes() {
        let (mut old, none) = (generation("a", 1, &[true; 3]), generation("b", 2, &[]));
        assert_eq!(
            next(goal(3, 1, 0), std::slice::from_ref(&old), &none),
            of(&[("a", 2), ("b", 0)])
        );
        // Told to have two; the third one's pods are still there.
        old.desired = 2;
        old.ready.truncate(2);
        assert_eq!(
            next(goal(3, 1, 0), std::slice::from_ref(&old), &none),
            of(&[("a", 2), ("b", 0)])
        );
        old.occupied = 2;
        assert_eq!(
            next(goal(3, 1, 0), std::slice::from_ref(&old), &none),
            of(&[("a", 2), ("b", 1)])
        );
        let starting = generation("b", 2, &[false]);
        assert_eq!(
            next(goal(3, 1, 0), std::slice::from_ref(&old), &starting),
            of(&[("a", 2), ("b", 1)])
        );
        let up = generation("b", 2, &[true]);
        assert_eq!(next(goal(3, 1, 0), &[old], &up), of(&[("a", 1), ("b", 1)]));
    }

    #[test]
    fn beside_the_new_pipeline_answers_before_the_old_one_leaves() {
        let (old, none) = (generation("a", 1, &[true]), generation("b", 2, &[]));
        assert_eq!(
            next(goal(1, 0, 1), std::slice::from_ref(&old), &none),
            of(&[("a", 1), ("b", 1)])
        );
        let starting = generation("b", 2, &[false]);
        assert_eq!(
            next(goal(1, 0, 1), std::slice::from_ref(&old), &starting),
            of(&[("a", 1), ("b", 1)])
        );
        let up = generation("b", 2, &[true]);
        assert_eq!(next(goal(1, 0, 1), &[old], &up), of(&[("a", 0), ("b", 1)]));
    }

    #[test]
    fn a_held_rollout_replaces_nothing_and_still_scales() {
        let (old, new) = (generation("a", 1, &[true, true]), generation("b", 2, &[false]));
        let held = |replicas| Goal {
            held: true,
            ..goal(replicas, 1, 0)
        };
        assert_eq!(
            next(held(3), std::slice::from_ref(&old), &new),
            of(&[("a", 2), ("b", 1)])
        );
        assert_eq!(
            next(held(5), std::slice::from_ref(&old), &new),
            of(&[("a", 4), ("b", 1)])
        );
        assert_eq!(next(held(2), &[old], &new), of(&[("a", 1), ("b", 1)]));
        // A new pipeline beside, which never answers, does not push out the only old one.
        let (one, beside) = (generation("a", 1, &[true]), generation("b", 2, &[false]));
        let surge = Goal {
            held: true,
            ..goal(1, 0, 1)
        };
        assert_eq!(
            next(surge, std::slice::from_ref(&one), &beside),
            of(&[("a", 1), ("b", 1)])
        );
        // Nothing to hold back: a paused new deployment still starts.
        assert_eq!(next(held(2), &[], &generation("b", 1, &[])), of(&[("b", 2)]));
    }

    #[test]
    fn going_back_removes_what_never_answered_first() {
        let (failed, back) = (generation("b", 2, &[false]), generation("a", 3, &[true, true]));
        assert_eq!(next(goal(3, 1, 0), &[failed], &back), of(&[("a", 2), ("b", 0)]));
    }

    #[test]
    fn stages_outlive_their_output_pods_and_history_is_bounded() {
        assert_eq!(stage_replicas(1, true, 3), 1);
        assert_eq!(stage_replicas(1, false, 3), 3);
        assert_eq!(stage_replicas(2, false, 0), 2);
        let empty: Vec<Generation> = (1..=4).map(|n| generation(&format!("r{n}"), n, &[])).collect();
        assert_eq!(forgotten(&empty, 3), ["r1"]);
        assert_eq!(forgotten(&empty, 0).len(), 4);
        assert!(forgotten(&[generation("a", 1, &[true])], 0).is_empty());
    }

    /// Walks a whole rollout: each round the cluster does what the plan says, with new pods answering one round later.
    fn walk(goal: Goal, start: i32) -> (i32, i32, Vec<(String, i32)>) {
        let (mut old, mut new) = (
            generation("a", 1, &vec![true; usize::try_from(start).expect("small")]),
            generation("b", 2, &[]),
        );
        let (mut least, mut most) = (i32::MAX, 0);
        for _ in 0..200 {
            let plan = plan(goal, std::slice::from_ref(&old), &new);
            for (generation, wanted) in [(&mut old, plan["a"]), (&mut new, plan["b"])] {
                // Leaving pods are seen for one more round; those that stay become ready.
                generation.occupied = generation.desired.max(wanted);
                let stay = generation.desired.min(wanted);
                generation.ready = (0..wanted).map(|ordinal| ordinal < stay).collect();
                generation.desired = wanted;
                if generation.ready.iter().all(|ready| *ready) {
                    generation.occupied = wanted;
                }
            }
            least = least.min(old.answering() + new.answering());
            most = most.max(old.room() + new.room());
            if complete(goal.replicas, std::slice::from_ref(&old), &new) && new.answering() == goal.replicas {
                break;
            }
        }
        (least, most, of(&[("a", old.desired), ("b", new.desired)]))
    }

    #[test]
    fn every_rollout_ends_and_keeps_its_bounds() {
        for replicas in 1..=6 {
            for (unavailable, surge) in [(1, 0), (0, 1), (1, 1), (2, 0), (0, 3), (3, 2), (9, 0)] {
                let (least, most, end) = walk(goal(replicas, unavailable, surge), replicas);
                let case = format!("{replicas} replicas, {unavailable} unavailable, {surge} surge");
                assert_eq!(end, of(&[("a", 0), ("b", replicas)]), "{case}");
                assert!(least >= replicas - unavailable, "{case}: {least} answered");
                assert!(most <= replicas + surge, "{case}: {most} took room");
            }
        }
    }
}
