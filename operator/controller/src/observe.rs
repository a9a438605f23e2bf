//! What exists, read from the watches' caches: a reconciliation asks the API server nothing.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ds4_api::{ANNOTATION_NUMBER, LABEL_NAME, LABEL_REVISION, LABEL_ROLE, LABEL_STAGE, Names};
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::runtime::reflector::Store;

use crate::rollout::Generation;

/// The set of one stage in one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) revision: String,
    pub(crate) number: i64,
    pub(crate) output: bool,
    pub(crate) replicas: i32,
}

/// A pod of a pipeline.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    pub(crate) name: String,
    pub(crate) stage: String,
    pub(crate) revision: String,
    pub(crate) output: bool,
    pub(crate) ordinal: i32,
    pub(crate) ready: bool,
    /// Its deletion was asked for.
    pub(crate) leaving: bool,
    pub(crate) pod: Arc<Pod>,
}

/// The sets and pods of one deployment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Observed {
    pub(crate) sets: Vec<Set>,
    pub(crate) pods: Vec<Member>,
    /// Sets that no revision accounts for.
    pub(crate) orphans: Vec<String>,
}

impl Observed {
    /// Reads the caches.
    pub(crate) fn read(names: &Names, sets: &Store<StatefulSet>, pods: &Store<Pod>) -> Self {
        Self::new(
            &ours(sets, names),
            ours(pods, names).into_iter().filter_map(member).collect(),
        )
    }

    pub(crate) fn new(found: &[Arc<StatefulSet>], pods: Vec<Member>) -> Self {
        let mut observed = Self {
            pods,
            ..Self::default()
        };
        for set in found {
            match read_set(set) {
                Some(set) => observed.sets.push(set),
                None => observed.orphans.push(set.name_any()),
            }
        }
        observed
    }

    /// Addresses of pods that have their node's: on Macs, outside the pod network.
    pub(crate) fn outside(&self) -> Vec<IpAddr> {
        let addresses = self.pods.iter().filter_map(|member| {
            let status = member.pod.status.as_ref()?;
            let of_node = status.pod_ip.is_some() && status.pod_ip == status.host_ip;
            status.pod_ip.as_ref().filter(|_| of_node)?.parse().ok()
        });
        let unique: BTreeSet<IpAddr> = addresses.collect();
        unique.into_iter().collect()
    }

    /// Every revision but `update`.
    pub(crate) fn others(&self, update: &str) -> Vec<Generation> {
        let revisions: BTreeSet<&str> = self.sets.iter().map(|set| set.revision.as_str()).collect();
        revisions
            .into_iter()
            .filter(|revision| *revision != update)
            .map(|revision| self.generation(revision))
            .collect()
    }

    /// One revision; one that does not exist yet has the next number and no pipelines.
    pub(crate) fn generation(&self, revision: &str) -> Generation {
        let desired = self
            .sets
            .iter()
            .find(|set| set.revision == revision && set.output)
            .map_or(0, |set| set.replicas);
        Generation {
            revision: revision.into(),
            number: self.number(revision),
            desired,
            occupied: self.occupied(revision, |_| true),
            ready: (0..desired)
                .map(|ordinal| self.answers(revision, ordinal))
                .collect(),
        }
    }

    /// One more than the highest ordinal among pods that exist, leaving ones included.
    pub(crate) fn occupied(&self, revision: &str, which: impl Fn(&Member) -> bool) -> i32 {
        let pods = self
            .pods
            .iter()
            .filter(|pod| pod.revision == revision && which(pod));
        pods.map(|pod| pod.ordinal + 1).max().unwrap_or(0)
    }

    /// The most restarts of any container of a revision, ready or not.
    pub(crate) fn restarts(&self, revision: &str) -> i32 {
        let pods = self.pods.iter().filter(|pod| pod.revision == revision);
        let containers = pods.flat_map(|pod| {
            let status = pod.pod.status.iter();
            status.flat_map(|status| {
                let init = status.init_container_statuses.iter().flatten();
                init.chain(status.container_statuses.iter().flatten())
            })
        });
        containers
            .map(|container| container.restart_count)
            .max()
            .unwrap_or(0)
    }

    fn answers(&self, revision: &str, ordinal: i32) -> bool {
        self.pods.iter().any(|pod| {
            pod.revision == revision && pod.output && pod.ordinal == ordinal && pod.ready && !pod.leaving
        })
    }

    fn number(&self, revision: &str) -> i64 {
        self.sets
            .iter()
            .find(|set| set.revision == revision)
            .map_or(0, |set| set.number)
    }

    /// The number of the revision that is asked for now: it comes last, also when it was there before.
    pub(crate) fn number_of_update(&self, revision: &str) -> i64 {
        let last = self.sets.iter().map(|set| set.number).max().unwrap_or(0);
        match self.number(revision) {
            number if number == last && number > 0 => number,
            _ => last + 1,
        }
    }
}

fn ours<K>(store: &Store<K>, names: &Names) -> Vec<Arc<K>>
where
    K: kube::Resource<DynamicType = ()> + Clone + 'static,
{
    let mut found = store.state();
    found.retain(|object| {
        object.namespace().as_deref() == Some(names.namespace())
            && object.labels().get(LABEL_NAME).map(String::as_str) == Some(names.name())
    });
    found.sort_by_key(|object| object.name_any());
    found
}

fn read_set(set: &StatefulSet) -> Option<Set> {
    Some(Set {
        name: set.name_any(),
        revision: set.labels().get(LABEL_REVISION)?.clone(),
        number: set.annotations().get(ANNOTATION_NUMBER)?.parse().ok()?,
        output: set.labels().get(LABEL_ROLE)? == "output",
        replicas: set.spec.replicas.unwrap_or(0),
    })
}

/// A pod with the labels of a pipeline; others are none of ours.
pub(crate) fn member(pod: Arc<Pod>) -> Option<Member> {
    let labels = pod.labels();
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    let ready = conditions
        .into_iter()
        .flatten()
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    Some(Member {
        name: pod.name_any(),
        stage: labels.get(LABEL_STAGE)?.clone(),
        revision: labels.get(LABEL_REVISION)?.clone(),
        output: labels.get(LABEL_ROLE)? == "output",
        ordinal: labels.get("apps.kubernetes.io/pod-index")?.parse().ok()?,
        ready,
        leaving: pod.metadata.deletion_timestamp.is_some(),
        pod,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::json;

    /// A pod as the API server would show it.
    pub(crate) fn pod(stage: &str, revision: &str, ordinal: i32, ready: bool) -> Member {
        let role = if stage == "output" { "output" } else { "prefill" };
        let pod = json!({
            "metadata": {"name": format!("quickstart-{stage}-{revision}-{ordinal}"), "namespace": "llm", "labels": {
                LABEL_NAME: "quickstart", LABEL_STAGE: stage, LABEL_REVISION: revision, LABEL_ROLE: role,
                "apps.kubernetes.io/pod-index": ordinal.to_string(),
            }},
            "status": {"conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
        });
        member(Arc::new(serde_json::from_value(pod).expect("a pod"))).expect("ours")
    }

    /// A stage's set.
    pub(crate) fn set(stage: &str, revision: &str, number: i64, replicas: i32) -> Arc<StatefulSet> {
        let role = if stage == "output" { "output" } else { "prefill" };
        let set = json!({
            "metadata": {"name": format!("quickstart-{stage}-{revision}"), "annotations": {ANNOTATION_NUMBER: number.to_string()},
                "labels": {LABEL_NAME: "quickstart", LABEL_STAGE: stage, LABEL_REVISION: revision, LABEL_ROLE: role}},
            "spec": {"replicas": replicas, "selector": {}, "template": {}},
        });
        Arc::new(serde_json::from_value(set).expect("a set"))
    }

    #[test]
    fn revisions_are_told_apart_and_leaving_pods_take_room_without_answering() {
        let mut leaving = pod("output", "aaaa", 2, true);
        leaving.leaving = true;
        let pods = vec![
            pod("output", "aaaa", 0, true),
            pod("output", "aaaa", 1, false),
            leaving,
            pod("early", "bbbb", 0, true),
        ];
        let sets = [
            set("output", "aaaa", 1, 2),
            set("early", "aaaa", 1, 3),
            set("output", "bbbb", 2, 0),
        ];
        let observed = Observed::new(&sets, pods);
        let old = observed.others("bbbb");
        assert_eq!(old.len(), 1);
        assert_eq!(
            (old[0].desired, old[0].occupied, old[0].ready.as_slice()),
            (2, 3, &[true, false][..])
        );
        assert_eq!(observed.generation("bbbb").occupied, 1);
        assert_eq!(
            ["bbbb", "cccc", "aaaa"].map(|revision| observed.number_of_update(revision)),
            [2, 3, 3]
        );
    }
}
