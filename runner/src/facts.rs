//! What is known of a pod that runs here, and what its status says of that. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    HostIP, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use crate::plan::{ContainerPlan, Plan};

/// Everything that must survive a restart of the runner.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Facts {
    pub(crate) accepted: Timestamp,
    pub(crate) init: Vec<Container>,
    pub(crate) main: Container,
    /// Why the pod as a whole failed, in one word and in a sentence.
    pub(crate) failed: Option<(String, String)>,
    /// Nothing runs any more, and nothing will: whether that is well.
    pub(crate) over: Option<bool>,
    /// Which flags the node's configuration replaced.
    pub(crate) overridden: Option<String>,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Container {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) version: String,
    pub(crate) state: State,
    /// How it ended before its last restart.
    pub(crate) last: Option<End>,
    pub(crate) restarts: i32,
    /// Number of the run that is on or was last; its folder's name.
    pub(crate) run: u32,
    pub(crate) started: bool,
    pub(crate) ready: bool,
}

/// What a container does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum State {
    Waiting { reason: String, message: String },
    Running { since: Timestamp },
    Ended(End),
}

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct End {
    pub(crate) code: i32,
    pub(crate) signal: Option<i32>,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) started: Option<Timestamp>,
    pub(crate) finished: Timestamp,
}

impl Container {
    fn new(plan: &ContainerPlan) -> Self {
        Self {
            name: plan.name.clone(),
            image: plan.image.clone(),
            version: plan.engine.version.clone(),
            state: State::Waiting {
                reason: "PodInitializing".into(),
                message: String::new(),
            },
            last: None,
            restarts: 0,
            run: 0,
            started: false,
            ready: false,
        }
    }

    pub(crate) const fn is_running(&self) -> bool {
        matches!(self.state, State::Running { .. })
    }

    /// Its end, when it is over.
    pub(crate) const fn end(&self) -> Option<&End> {
        match &self.state {
            State::Ended(end) => Some(end),
            _ => None,
        }
    }

    fn succeeded(&self) -> bool {
        self.end().is_some_and(|end| end.code == 0)
    }

    fn status(&self) -> ContainerStatus {
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: format!("ds4-runner://bundled/ds4@{}", self.version),
            container_id: (self.run > 0).then(|| format!("ds4-runner://{}/{}", self.name, self.run)),
            state: Some(self.state.status()),
            last_state: self.last.as_ref().map(|end| State::Ended(end.clone()).status()),
            ready: self.ready || self.succeeded(),
            started: Some(self.started),
            restart_count: self.restarts,
            ..ContainerStatus::default()
        }
    }
}

impl State {
    fn status(&self) -> ContainerState {
        let mut state = ContainerState::default();
        match self {
            Self::Waiting { reason, message } => {
                state.waiting = Some(ContainerStateWaiting {
                    reason: Some(reason.clone()),
                    message: (!message.is_empty()).then(|| message.clone()),
                });
            }
            Self::Running { since } => {
                state.running = Some(ContainerStateRunning {
                    started_at: Some(Time(*since)),
                });
            }
            Self::Ended(end) => {
                state.terminated = Some(ContainerStateTerminated {
                    exit_code: end.code,
                    signal: end.signal,
                    reason: Some(end.reason.clone()),
                    message: (!end.message.is_empty()).then(|| end.message.clone()),
                    started_at: end.started.map(Time),
                    finished_at: Some(Time(end.finished)),
                    ..ContainerStateTerminated::default()
                });
            }
        }
        state
    }
}

impl Facts {
    pub(crate) fn new(plan: &Plan, accepted: Timestamp) -> Self {
        Self {
            accepted,
            init: plan.init.iter().map(Container::new).collect(),
            main: Container::new(&plan.main),
            failed: None,
            over: None,
            overridden: plan.main.overridden.clone(),
        }
    }

    /// The container at a place: init containers first, the engine last.
    pub(crate) fn container(&mut self, place: usize) -> &mut Container {
        self.init.get_mut(place).unwrap_or(&mut self.main)
    }

    /// Whether everything before the engine is done.
    pub(crate) fn initialized(&self) -> bool {
        self.init.iter().all(Container::succeeded)
    }

    fn phase(&self) -> &'static str {
        match (&self.failed, self.over) {
            (Some(_), _) | (None, Some(false)) => "Failed",
            (None, Some(true)) => "Succeeded",
            (None, None) if self.main.run == 0 => "Pending",
            // An end before the next start is no end of the pod: its owner would replace it.
            (None, None) => "Running",
        }
    }

    /// The pod's status; conditions of others and times of unchanged ones are taken over from `old`.
    pub(crate) fn status(
        &self,
        address: &str,
        generation: Option<i64>,
        old: &PodStatus,
        now: Timestamp,
    ) -> PodStatus {
        let ready = self.failed.is_none() && self.main.is_running() && self.main.ready;
        let waits = |yes: bool, reason: &str| (!yes).then(|| (reason.to_owned(), String::new()));
        let mut conditions = vec![
            condition("PodReadyToStartContainers", true, None),
            condition(
                "Initialized",
                self.initialized(),
                waits(self.initialized(), "ContainersNotInitialized"),
            ),
            condition("ContainersReady", ready, waits(ready, "ContainersNotReady")),
            condition("Ready", ready, waits(ready, "ContainersNotReady")),
        ];
        if let Some(said) = &self.overridden {
            let why = ("Overridden".to_owned(), said.clone());
            conditions.push(condition("ds4.dev/Arguments", true, Some(why)));
        }
        PodStatus {
            phase: Some(self.phase().into()),
            reason: self.failed.as_ref().map(|(reason, _)| reason.clone()),
            message: self.failed.as_ref().map(|(_, message)| message.clone()),
            conditions: Some(merge(conditions, old, now)),
            host_ip: Some(address.into()),
            host_ips: Some(vec![HostIP { ip: address.into() }]),
            pod_ip: Some(address.into()),
            pod_ips: Some(vec![PodIP { ip: address.into() }]),
            start_time: Some(Time(self.accepted)),
            init_container_statuses: Some(self.init.iter().map(Container::status).collect()),
            container_statuses: Some(vec![self.main.status()]),
            observed_generation: generation,
            qos_class: old.qos_class.clone(),
            ..PodStatus::default()
        }
    }
}

/// The status of a pod that is not run here at all.
pub(crate) fn refused(reason: &str, message: &str, old: &PodStatus, now: Timestamp) -> PodStatus {
    let why = || Some(("PodFailed".to_owned(), String::new()));
    let conditions = vec![
        condition("ContainersReady", false, why()),
        condition("Ready", false, why()),
    ];
    PodStatus {
        phase: Some("Failed".into()),
        reason: Some(reason.into()),
        message: Some(message.into()),
        conditions: Some(merge(conditions, old, now)),
        start_time: Some(Time(now)),
        ..PodStatus::default()
    }
}

fn condition(kind: &str, yes: bool, why: Option<(String, String)>) -> PodCondition {
    let (reason, message) = why.unzip();
    PodCondition {
        type_: kind.into(),
        status: if yes { "True" } else { "False" }.into(),
        reason,
        message: message.filter(|message| !message.is_empty()),
        ..PodCondition::default()
    }
}

fn merge(mut ours: Vec<PodCondition>, old: &PodStatus, now: Timestamp) -> Vec<PodCondition> {
    let known = old.conditions.as_deref().unwrap_or_default();
    for condition in &mut ours {
        let before = known
            .iter()
            .find(|known| known.type_ == condition.type_ && known.status == condition.status);
        condition.last_transition_time = before
            .and_then(|before| before.last_transition_time.clone())
            .or(Some(Time(now)));
    }
    let of_others = known
        .iter()
        .filter(|known| ours.iter().all(|own| own.type_ != known.type_));
    let mut all: Vec<PodCondition> = of_others.cloned().collect();
    all.extend(ours);
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admission::{admit, tests::stage};
    use crate::config::tests::config;

    fn facts() -> Facts {
        let raw = stage();
        let pod = serde_json::from_value(raw.clone()).expect("a pod");
        let plan = admit(&raw, &pod, &config()).expect("admitted");
        Facts::new(&plan, at(1))
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("a time")
    }

    fn end(code: i32) -> End {
        End {
            code,
            signal: None,
            reason: "Error".into(),
            message: "ds4: lost".into(),
            started: None,
            finished: at(5),
        }
    }

    fn says(status: &PodStatus, kind: &str) -> Option<String> {
        let conditions = status.conditions.as_deref().unwrap_or_default();
        conditions
            .iter()
            .find(|known| known.type_ == kind)
            .map(|known| known.status.clone())
    }

    #[test]
    fn a_pod_goes_from_pending_over_running_to_its_end() {
        let mut facts = facts();
        let phase = |facts: &Facts| facts.status("10.0.0.1", None, &PodStatus::default(), at(9)).phase;
        assert_eq!(phase(&facts).as_deref(), Some("Pending"));
        assert!(!facts.initialized());
        facts.init[0].state = State::Ended(end(0));
        assert!(facts.initialized());
        facts.main.run = 1;
        facts.main.state = State::Running { since: at(2) };
        assert_eq!(phase(&facts).as_deref(), Some("Running"));
        facts.main.state = State::Waiting {
            reason: "CrashLoopBackOff".into(),
            message: String::new(),
        };
        assert_eq!(phase(&facts).as_deref(), Some("Running"), "it ran before");
        facts.main.state = State::Ended(end(1));
        assert_eq!(phase(&facts).as_deref(), Some("Running"), "it starts again");
        facts.over = Some(false);
        assert_eq!(phase(&facts).as_deref(), Some("Failed"));
        facts.over = Some(true);
        assert_eq!(phase(&facts).as_deref(), Some("Succeeded"));
        facts.failed = Some(("Evicted".into(), "memory".into()));
        let status = facts.status("10.0.0.1", None, &PodStatus::default(), at(9));
        assert_eq!(
            (status.phase.as_deref(), status.reason.as_deref()),
            (Some("Failed"), Some("Evicted"))
        );
    }

    #[test]
    fn only_a_running_engine_that_answers_is_ready_and_the_address_is_the_nodes() {
        let mut facts = facts();
        facts.main.ready = true;
        facts.main.state = State::Ended(end(137));
        let status = |facts: &Facts| facts.status("10.0.0.1", Some(3), &PodStatus::default(), at(9));
        assert_eq!(says(&status(&facts), "Ready").as_deref(), Some("False"));
        facts.main.state = State::Running { since: at(2) };
        let status = status(&facts);
        assert_eq!(says(&status, "Ready").as_deref(), Some("True"));
        assert_eq!(
            (
                status.pod_ip.as_deref(),
                status.host_ip.as_deref(),
                status.observed_generation
            ),
            (Some("10.0.0.1"), Some("10.0.0.1"), Some(3))
        );
        assert_eq!(
            says(&status, "ds4.dev/Arguments").as_deref(),
            Some("True"),
            "the replaced flag is visible"
        );
    }

    #[test]
    fn conditions_of_others_stay_and_times_change_only_with_the_status() {
        let facts = facts();
        let scheduled = condition("PodScheduled", true, None);
        let old = PodStatus {
            conditions: Some(vec![scheduled.clone()]),
            ..PodStatus::default()
        };
        let first = facts.status("10.0.0.1", None, &old, at(9));
        assert!(
            first
                .conditions
                .as_deref()
                .is_some_and(|all| all.contains(&scheduled))
        );
        let second = facts.status("10.0.0.1", None, &first, at(20));
        assert_eq!(first, second);
    }

    #[test]
    fn the_end_of_a_container_is_told_with_its_words() {
        let mut facts = facts();
        facts.main.last = Some(end(137));
        facts.main.restarts = 1;
        let status = facts.status("10.0.0.1", None, &PodStatus::default(), at(9));
        let container = &status.container_statuses.expect("one")[0];
        let last = container
            .last_state
            .clone()
            .and_then(|state| state.terminated)
            .expect("an end");
        assert_eq!(
            (container.restart_count, last.exit_code, last.message.as_deref()),
            (1, 137, Some("ds4: lost"))
        );
    }
}
