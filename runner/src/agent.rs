//! The pods of this node: each has a worker; what does not belong here is refused.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{ObjectMeta, PostParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event as Seen};
use kube::{Api, Client, Resource, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::admission::{Refusal, admit};
use crate::backoff::Backoff;
use crate::config::Config;
use crate::facts::refused;
use crate::folder::{Folder, Owner};
use crate::plan::Plan;
use crate::report::{DEADLINE, write};
use crate::run::Run;
use crate::worker::Worker;

/// What everything that looks after pods needs.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) client: Client,
    pub(crate) config: Arc<Config>,
    /// Whether processes can be given to another user.
    pub(crate) is_root: bool,
}

impl Shared {
    pub(crate) fn new(client: Client, config: Arc<Config>) -> Self {
        Self {
            client,
            config,
            is_root: rustix::process::geteuid().is_root(),
        }
    }

    /// An event of a pod, of the core group: the others are not open to nodes. One that cannot be told is logged: nothing waits for it.
    pub(crate) async fn event(&self, pod: &Pod, reason: &str, note: &str, warns: bool) {
        let namespace = pod.namespace().unwrap_or_default();
        let now = Time(Timestamp::now());
        let event = Event {
            metadata: ObjectMeta {
                generate_name: Some(format!("{}.", pod.name_any())),
                namespace: Some(namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: pod.object_ref(&()),
            type_: Some(if warns { "Warning" } else { "Normal" }.into()),
            reason: Some(reason.into()),
            // The API's limit is 1024 bytes.
            message: Some(note.chars().take(1000).collect()),
            source: Some(EventSource {
                component: Some("ds4-runner".into()),
                host: Some(self.config.node.clone()),
            }),
            first_timestamp: Some(now.clone()),
            last_timestamp: Some(now),
            count: Some(1),
            ..Event::default()
        };
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        let parameters = PostParams::default();
        let told = tokio::time::timeout(DEADLINE, api.create(&parameters, &event)).await;
        let error = match told {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {DEADLINE:?}"),
        };
        tracing::warn!(pod = pod.name_any(), reason, note, error, "an event was not told");
    }
}

/// What is to become of a pod.
#[derive(Clone, Debug)]
pub(crate) enum News {
    Here,
    /// It has to go to make room.
    Evicted(String),
    /// Its deletion was asked for.
    Leaving(Arc<Pod>),
    /// Its object is gone already.
    Gone,
}

struct Entry {
    news: watch::Sender<News>,
    ports: Vec<u16>,
    name: String,
    task: JoinHandle<()>,
}

/// All workers.
pub(crate) struct Agent {
    shared: Shared,
    workers: HashMap<String, Entry>,
    /// Refusals in a row by pod name: an owner that makes the pod again and again must not keep everybody busy.
    refusals: BTreeMap<String, Backoff>,
    evictions: watch::Receiver<Option<String>>,
}

impl Agent {
    pub(crate) fn new(shared: Shared, evictions: watch::Receiver<Option<String>>) -> Self {
        Self {
            shared,
            workers: HashMap::new(),
            refusals: BTreeMap::new(),
            evictions,
        }
    }

    /// Looks after the pods that are bound to this node, for good.
    ///
    /// # Errors
    /// When the watch ends.
    pub(crate) async fn run(mut self) -> Result<()> {
        let api: Api<DynamicObject> =
            Api::all_with(self.shared.client.clone(), &ApiResource::erase::<Pod>(&()));
        let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", self.shared.config.node));
        let mut seen = std::pin::pin!(watcher::watcher(api, mine).default_backoff());
        let mut listed = Vec::new();
        loop {
            tokio::select! {
                event = seen.next() => match event.context("the watch of pods ended")? {
                    Ok(Seen::Init) => listed.clear(),
                    Ok(Seen::InitApply(pod)) => {
                        listed.push(pod.uid().unwrap_or_default());
                        self.applied(pod).await;
                    }
                    Ok(Seen::InitDone) => self.only(&listed).await,
                    Ok(Seen::Apply(pod)) => self.applied(pod).await,
                    Ok(Seen::Delete(pod)) => self.gone(&pod.uid().unwrap_or_default()),
                    Err(error) => tracing::warn!(%error, "watching pods"),
                },
                Ok(()) = self.evictions.changed() => self.evict(),
            }
        }
    }

    async fn applied(&mut self, object: DynamicObject) {
        let name = object.name_any();
        if let Err(error) = self.apply(object).await {
            tracing::error!(
                pod = name,
                error = format!("{error:#}"),
                "a pod that cannot be looked after"
            );
        }
    }

    async fn apply(&mut self, object: DynamicObject) -> Result<()> {
        let raw = serde_json::to_value(&object)?;
        let pod: Arc<Pod> = Arc::new(serde_json::from_value(raw.clone())?);
        let uid = pod.uid().context("a pod without a uid")?;
        self.workers.retain(|_, entry| !entry.task.is_finished());
        let leaving = pod.metadata.deletion_timestamp.is_some();
        if let Some(entry) = self.workers.get(&uid) {
            entry.news.send_if_modified(|news| {
                let is_news = leaving && !matches!(news, News::Leaving(_) | News::Gone);
                if is_news {
                    *news = News::Leaving(Arc::clone(&pod));
                }
                is_news
            });
            return Ok(());
        }
        let folder = Folder::of(&self.shared.config, &uid);
        let is_over = pod
            .status
            .as_ref()
            .and_then(|status| status.phase.as_deref())
            .is_some_and(|phase| matches!(phase, "Failed" | "Succeeded"));
        if folder.facts()?.is_none() && (leaving || is_over) {
            if leaving {
                self.shared
                    .free(&pod, &mut watch::channel(News::Leaving(Arc::clone(&pod))).1)
                    .await;
            }
            return Ok(());
        }
        match self.judge(&raw, &pod) {
            Ok(plan) => self.take(pod, plan, folder, leaving),
            Err(refusal) => {
                // The configuration may have changed over a pod that runs.
                if folder.facts()?.is_some() {
                    end(&folder);
                }
                self.refuse(pod, refusal);
                Ok(())
            }
        }
    }

    fn judge(&self, raw: &serde_json::Value, pod: &Pod) -> Result<Plan, Refusal> {
        let plan = admit(raw, pod, &self.shared.config)?;
        let ours = plan
            .init
            .iter()
            .chain([&plan.main])
            .flat_map(|container| &container.ports);
        for port in ours {
            let mut others = self.workers.values();
            if let Some(other) = others.find(|other| other.ports.contains(port)) {
                return Err(Refusal {
                    reason: "PortInUse",
                    message: format!("port {port} of this node is held by pod {}", other.name),
                });
            }
        }
        Ok(plan)
    }

    fn take(&mut self, pod: Arc<Pod>, plan: Plan, folder: Folder, leaving: bool) -> Result<()> {
        let (uid, name) = (pod.uid().unwrap_or_default(), pod.name_any());
        folder.create(&Owner {
            namespace: pod.namespace().unwrap_or_default(),
            name: name.clone(),
            uid: uid.clone(),
        })?;
        self.refusals.remove(&key(&pod));
        let ports = plan.init.iter().chain([&plan.main]);
        let ports = ports.flat_map(|container| container.ports.clone()).collect();
        let first = if leaving {
            News::Leaving(Arc::clone(&pod))
        } else {
            let short = self.evictions.borrow().clone();
            short.map_or(News::Here, News::Evicted)
        };
        let (news, receiver) = watch::channel(first);
        let worker = Worker::new(self.shared.clone(), pod, plan, folder, receiver)?;
        let task = tokio::spawn(worker.live());
        self.workers.insert(
            uid,
            Entry {
                news,
                ports,
                name,
                task,
            },
        );
        Ok(())
    }

    /// Says why, and ends the pod; one that was refused just before waits first.
    fn refuse(&mut self, pod: Arc<Pod>, refusal: Refusal) {
        let wait = self.refusals.entry(key(&pod)).or_default().failed(Duration::ZERO);
        let shared = self.shared.clone();
        tracing::warn!(
            pod = key(&pod),
            reason = refusal.reason,
            message = refusal.message,
            "refused"
        );
        tokio::spawn(async move {
            shared
                .event(
                    &pod,
                    refusal.reason,
                    &format!("refused: {}", refusal.message),
                    true,
                )
                .await;
            tokio::time::sleep(wait).await;
            let status = refused(
                refusal.reason,
                &refusal.message,
                &pod.status.clone().unwrap_or_default(),
                Timestamp::now(),
            );
            while let Err(error) = write(&shared, &pod, &status).await {
                tracing::warn!(error, "a refusal was not written, again soon");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }

    fn gone(&mut self, uid: &str) {
        if let Some(entry) = self.workers.get(uid) {
            entry.news.send_replace(News::Gone);
        }
    }

    /// What is not listed any more is gone; engines of pods that went while no runner was here are ended.
    async fn only(&mut self, listed: &[String]) {
        let missing: Vec<String> = self
            .workers
            .keys()
            .filter(|uid| !listed.contains(uid))
            .cloned()
            .collect();
        missing.iter().for_each(|uid| self.gone(uid));
        let folders = match Folder::all(&self.shared.config) {
            Ok(folders) => folders,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "looking for pods that are gone");
                return;
            }
        };
        for (folder, owner) in folders {
            if !listed.contains(&owner.uid) && !self.workers.contains_key(&owner.uid) {
                tracing::info!(pod = owner.name, "went while no runner was here");
                end(&folder);
            }
        }
    }

    /// Stages make room: one device means one stage, so there is nothing to choose from.
    fn evict(&mut self) {
        let Some(why) = self.evictions.borrow_and_update().clone() else {
            return;
        };
        for entry in self.workers.values() {
            entry.news.send_if_modified(|news| {
                let is_here = matches!(news, News::Here);
                if is_here {
                    *news = News::Evicted(why.clone());
                }
                is_here
            });
        }
    }
}

fn key(pod: &Pod) -> String {
    format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any())
}

/// Ends every process of a folder and takes it away.
pub(crate) fn end(folder: &Folder) {
    let facts = folder.facts().ok().flatten();
    let containers = facts
        .iter()
        .flat_map(|facts| facts.init.iter().chain([&facts.main]));
    for container in containers.filter(|container| container.has_run()) {
        if let Ok(Some(run)) = Run::find(&folder.run(&container.name, container.run)) {
            run.kill();
        }
    }
    if let Err(error) = folder.remove() {
        tracing::error!(error = format!("{error:#}"), "a pod's folder stays");
    }
}
