//! One pod's life: volumes, init containers, the engine again and again, and its end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::sync::watch;

use crate::agent::{News, Shared};
use crate::backoff::Backoff;
use crate::facts::{Container, End, Facts, State};
use crate::folder::Folder;
use crate::material::Source;
use crate::plan::{ContainerPlan, Plan, RestartPolicy, expand};
use crate::probe::{self, Finding, Target};
use crate::report::{DEADLINE, Reporter};
use crate::run::Run;
use crate::shim::Launch;

/// Volumes that are made of objects follow them this closely.
const REFRESH: Duration = Duration::from_secs(20);
/// What could not be prepared is tried again.
const AGAIN: Duration = Duration::from_secs(2);

/// A pod at work.
pub(crate) struct Worker {
    shared: Shared,
    news: watch::Receiver<News>,
    pod: Arc<Pod>,
    plan: Plan,
    folder: Folder,
    facts: Arc<Mutex<Facts>>,
    reporter: Reporter,
    run: Option<(usize, Run)>,
}

impl Worker {
    /// Takes a pod up: anew, or where an earlier runner left it.
    ///
    /// # Errors
    /// When its folder cannot be read or written.
    pub(crate) fn new(
        shared: Shared,
        pod: Arc<Pod>,
        plan: Plan,
        folder: Folder,
        news: watch::Receiver<News>,
    ) -> Result<Self> {
        let known = folder.facts()?;
        if known.is_some() {
            tracing::info!(pod = pod.name_any(), "taken over");
        }
        let facts = known.unwrap_or_else(|| Facts::new(&plan, Timestamp::now()));
        let reporter = Reporter::start(&shared, &pod);
        Ok(Self {
            shared,
            news,
            pod,
            plan,
            folder,
            facts: Arc::new(Mutex::new(facts)),
            reporter,
            run: None,
        })
    }

    /// Lives until the pod is deleted.
    pub(crate) async fn live(mut self) {
        let mut news = self.news.clone();
        let news = tokio::select! {
            biased;
            last = leaving(&mut news) => last,
            () = self.work() => leaving(&mut self.news.clone()).await,
        };
        if let News::Evicted(why) = &news {
            self.change(|facts| facts.failed = Some(("Evicted".into(), why.clone())));
            self.stop(Duration::ZERO).await;
            leaving_for_good(&mut self.news.clone()).await;
        }
        let grace = self.grace(&news);
        self.stop(grace).await;
        self.bury().await;
    }

    /// Until there is nothing left to do; what goes wrong is tried again.
    async fn work(&mut self) {
        self.prepare().await;
        let refresh = keep_fresh(
            self.shared.clone(),
            Arc::clone(&self.pod),
            self.plan.clone(),
            self.folder.clone(),
        );
        tokio::select! {
            () = refresh => {}
            () = self.containers() => {}
        }
    }

    async fn containers(&mut self) {
        if self.lock().failed.is_some() {
            return;
        }
        for place in 0..self.plan.init.len() {
            if self.lock().main.run > 0 {
                break;
            }
            if !self.until_done(place).await {
                return self.change(|facts| facts.over = Some(false));
            }
        }
        let engine = self.plan.init.len();
        let well = self.until_done(engine).await;
        self.change(|facts| facts.over = Some(well));
    }

    /// Runs a container until it has ended for good; whether it succeeded.
    async fn until_done(&mut self, place: usize) -> bool {
        let mut backoff = Backoff::default();
        let is_init = place < self.plan.init.len();
        loop {
            if let Some(end) = self.lock().container(place).end() {
                let again = if is_init {
                    end.code != 0 && self.plan.restart != RestartPolicy::Never
                } else {
                    self.plan.restart.restarts(end.code)
                };
                if !again {
                    return end.code == 0;
                }
            }
            self.wait_after_failure(place, &mut backoff).await;
            match self.once(place).await {
                Ok(end) => self.ended(place, end),
                Err(error) => {
                    let said = format!("{error:#}");
                    self.wait_for(place, "CreateContainerConfigError", &said);
                    self.event("FailedToStart", &said, true).await;
                    tokio::time::sleep(AGAIN).await;
                }
            }
        }
    }

    /// What ended waits before it starts again, as `CrashLoopBackOff` when that is long.
    async fn wait_after_failure(&mut self, place: usize, backoff: &mut Backoff) {
        let last = {
            let mut facts = self.lock();
            facts.container(place).end().cloned()
        };
        let Some(end) = last else { return };
        let ran = end
            .started
            .and_then(|started| Duration::try_from(end.finished - started).ok())
            .unwrap_or_default();
        let wait = backoff.failed(ran);
        let name = self.container(place).name.clone();
        self.change(|facts| {
            let container = facts.container(place);
            container.last = Some(end.clone());
            container.restarts += 1;
        });
        if wait.is_zero() {
            return;
        }
        self.wait_for(
            place,
            "CrashLoopBackOff",
            &format!("back-off {wait:?} restarting container {name}"),
        );
        tokio::time::sleep(wait).await;
    }

    /// One run, or what is left of one that an earlier runner started.
    async fn once(&mut self, place: usize) -> Result<End> {
        let run = match self.found(place)? {
            Some(run) => run,
            None => self.start(place).await?,
        };
        self.run = Some((place, run.clone()));
        let plan = self.container(place).clone();
        let target = self.target(place);
        let unhealthy = probe::watch(&plan.probes, &target, |finding| {
            self.heard(place, finding);
        });
        tokio::select! {
            end = run.ended(&plan) => end,
            why = unhealthy => {
                self.event("Unhealthy", &format!("container {}: {why}; it is restarted", plan.name), true).await;
                run.stop(&plan, Duration::from_secs(self.plan.grace)).await
            }
        }
    }

    fn found(&self, place: usize) -> Result<Option<Run>> {
        let (running, run) = {
            let mut facts = self.lock();
            let container = facts.container(place);
            (container.is_running(), container.run)
        };
        if !running {
            return Ok(None);
        }
        Run::find(&self.folder.run(&self.container(place).name, run))
    }

    async fn start(&self, place: usize) -> Result<Run> {
        let plan = self.container(place).clone();
        let number = self.lock().container(place).run + 1;
        let folder = self.folder.new_run(&plan.name, number, self.user())?;
        let launch = self.launch(&plan, &folder).await?;
        self.lock().container(place).run = number;
        let run = Run::start(&folder, &launch).await?;
        tracing::info!(
            pod = self.pod.name_any(),
            container = plan.name,
            run = number,
            pid = run.running.engine.pid,
            overridden = plan.overridden,
            "started"
        );
        self.change(|facts| {
            let container = facts.container(place);
            container.state = State::Running {
                since: run.running.since,
            };
            (container.started, container.ready) = (false, false);
        });
        let mut note = format!(
            "container {} runs as process {}",
            plan.name, run.running.engine.pid
        );
        if let Some(overridden) = &plan.overridden {
            note += &format!(" with {overridden}");
        }
        self.event("Started", &note, false).await;
        Ok(run)
    }

    async fn launch(&self, plan: &ContainerPlan, folder: &std::path::Path) -> Result<Launch> {
        let source = Source {
            client: &self.shared.client,
            pod: &self.pod,
            config: &self.shared.config,
        };
        let mut env = source.env(plan).await?;
        let paths = self.folder.paths(plan, &self.plan.volumes, folder);
        let args = plan
            .args
            .iter()
            .map(|word| paths.word(&expand(word, &|name| env.get(name).cloned())))
            .collect();
        for value in env.values_mut() {
            *value = paths.word(value);
        }
        let own = folder.join("tmp").display().to_string();
        for (name, value) in [("HOME", &own), ("TMPDIR", &own)] {
            env.entry(name.into()).or_insert_with(|| value.clone());
        }
        if let Some(threads) = plan.threads {
            env.entry("DS4_THREADS".into())
                .or_insert_with(|| threads.to_string());
        }
        Ok(Launch {
            program: plan.engine.program.clone(),
            args,
            env,
            folder: folder.join("tmp"),
            user: self.user().map(|user| (user.uid, user.gid)),
            data: plan.memory,
        })
    }

    /// Makes the volumes; what is missing may come yet.
    async fn prepare(&mut self) {
        while let Err(error) = fill(&self.shared, &self.pod, &self.plan, &self.folder).await {
            let said = format!("{error:#}");
            let changed = self.wait_for(0, "CreateContainerConfigError", &said);
            if changed {
                self.event("FailedMount", &said, true).await;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    fn heard(&self, place: usize, finding: Finding) {
        match finding {
            Finding::Started => self.change(|facts| facts.container(place).started = true),
            Finding::Ready(ready) => self.change(|facts| facts.container(place).ready = ready),
            Finding::Unhealthy(why) => {
                tracing::warn!(pod = self.pod.name_any(), why, "unhealthy");
                let (shared, pod) = (self.shared.clone(), Arc::clone(&self.pod));
                tokio::spawn(async move { shared.event(&pod, "Unhealthy", &why, true).await });
            }
        }
    }

    fn ended(&mut self, place: usize, end: End) {
        tracing::info!(
            pod = self.pod.name_any(),
            code = end.code,
            reason = end.reason,
            "ended"
        );
        self.run = None;
        self.change(|facts| {
            let container = facts.container(place);
            container.state = State::Ended(end);
            (container.started, container.ready) = (false, false);
        });
    }

    /// Time left until the kill: to the deletion's own deadline, or little where nobody waits any more.
    fn grace(&self, news: &News) -> Duration {
        match news {
            News::Leaving(pod) => pod
                .metadata
                .deletion_timestamp
                .as_ref()
                .and_then(|deadline| Duration::try_from(deadline.0 - Timestamp::now()).ok())
                .unwrap_or_default(),
            _ => Duration::from_secs(1),
        }
    }

    /// Ends what runs; also what the interrupted work may just have started.
    async fn stop(&mut self, grace: Duration) {
        for place in 0..=self.plan.init.len() {
            let known = self.run.take().filter(|(running, _)| *running == place);
            let run = known.map(|(_, run)| run).or_else(|| {
                let name = &self.container(place).name;
                let number = self.lock().container(place).run;
                Run::find(&self.folder.run(name, number)).ok().flatten()
            });
            let over = self.lock().container(place).end().is_some();
            if let Some(run) = run.filter(|_| !over) {
                self.stop_run(place, &run, grace).await;
            }
        }
    }

    async fn stop_run(&mut self, place: usize, run: &Run, grace: Duration) {
        let plan = self.container(place).clone();
        let notice = Duration::from_secs(plan.pre_stop).min(grace);
        let stopped = async {
            tokio::time::sleep(notice).await;
            run.stop(&plan, grace - notice).await
        };
        // The user may lose patience: `kubectl delete --force` comes as another piece of news.
        let mut news = self.news.clone();
        let forced = gone(&mut news);
        let outcome = tokio::select! {
            end = stopped => end,
            () = forced => run.stop(&plan, Duration::ZERO).await,
        };
        match outcome {
            Ok(end) => self.ended(place, end),
            Err(error) => tracing::error!(error = format!("{error:#}"), "an end was not seen"),
        }
    }

    /// Tells the end, frees the name, and takes the folder away.
    async fn bury(mut self) {
        let is_gone = matches!(*self.news.borrow(), News::Gone);
        if !is_gone {
            let mut news = self.news.clone();
            tokio::select! {
                () = self.reporter.told() => {}
                () = gone(&mut news) => {}
            }
            self.shared.free(&self.pod, &mut self.news).await;
        }
        if let Err(error) = self.folder.remove() {
            tracing::error!(error = format!("{error:#}"), "a pod's folder stays");
        }
        tracing::info!(pod = self.pod.name_any(), "gone");
    }

    fn target(&self, place: usize) -> Target {
        let plan = self.container(place);
        let number = self.lock().container(place).run;
        let folder = self.folder.run(&plan.name, number);
        Target {
            address: self.shared.config.address,
            program: plan.engine.program.clone(),
            paths: self.folder.paths(plan, &self.plan.volumes, &folder),
        }
    }

    fn container(&self, place: usize) -> &ContainerPlan {
        self.plan.init.get(place).unwrap_or(&self.plan.main)
    }

    fn user(&self) -> Option<crate::plan::User> {
        self.shared.is_root.then_some(self.plan.user)
    }

    /// Lets a container wait for something; whether that is news.
    fn wait_for(&self, place: usize, reason: &str, message: &str) -> bool {
        let state = State::Waiting {
            reason: reason.into(),
            message: message.into(),
        };
        let known = self.lock().container(place).state == state;
        if !known {
            self.change(|facts| facts.container(place).state = state);
        }
        !known
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is known, remembers it, and tells it.
    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.lock();
        change(&mut facts);
        if let Err(error) = self.folder.remember(&facts) {
            tracing::error!(error = format!("{error:#}"), "a pod's facts were not written");
        }
        self.reporter.tell(&facts);
    }

    async fn event(&self, reason: &str, note: &str, warns: bool) {
        self.shared.event(&self.pod, reason, note, warns).await;
    }
}

impl Container {
    /// Whether it has a run whose log can be read.
    pub(crate) const fn has_run(&self) -> bool {
        self.run > 0
    }
}

impl Shared {
    /// Deletes the pod's object: its name is free from then on.
    pub(crate) async fn free(&self, pod: &Pod, news: &mut watch::Receiver<News>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default());
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: pod.uid(),
                ..Preconditions::default()
            }),
            ..DeleteParams::default()
        };
        while !matches!(*news.borrow_and_update(), News::Gone) {
            let name = pod.name_any();
            match tokio::time::timeout(DEADLINE, api.delete(&name, &parameters)).await {
                Ok(Ok(_)) => return,
                Ok(Err(kube::Error::Api(answer))) if matches!(answer.code, 404 | 409) => return,
                other => tracing::warn!(?other, "a pod's object was not deleted, again soon"),
            }
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn leaving(news: &mut watch::Receiver<News>) -> News {
    let found = news.wait_for(|news| !matches!(news, News::Here)).await;
    found.map_or(News::Gone, |news| news.clone())
}

async fn leaving_for_good(news: &mut watch::Receiver<News>) {
    let _ = news
        .wait_for(|news| matches!(news, News::Leaving(_) | News::Gone))
        .await;
}

async fn gone(news: &mut watch::Receiver<News>) {
    let _ = news.wait_for(|news| matches!(news, News::Gone)).await;
}

/// Makes or refreshes all volumes.
async fn fill(shared: &Shared, pod: &Pod, plan: &Plan, folder: &Folder) -> Result<()> {
    let source = Source {
        client: &shared.client,
        pod,
        config: &shared.config,
    };
    let user = shared.is_root.then_some(plan.user);
    for volume in &plan.volumes {
        let contents = tokio::time::timeout(DEADLINE, source.files(volume))
            .await
            .with_context(|| format!("volume {}: no answer within {DEADLINE:?}", volume.name))??;
        folder.fill(volume, contents, &shared.config, user)?;
    }
    Ok(())
}

/// Mounted objects follow their changes: certificates are replaced under a running engine.
async fn keep_fresh(shared: Shared, pod: Arc<Pod>, plan: Plan, folder: Folder) {
    let changes = plan
        .volumes
        .iter()
        .any(|volume| volume.secret.is_some() || volume.config_map.is_some() || volume.projected.is_some());
    if !changes {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(REFRESH).await;
        if let Err(error) = fill(&shared, &pod, &plan, &folder).await {
            tracing::warn!(
                pod = pod.name_any(),
                error = format!("{error:#}"),
                "volumes stay as they are"
            );
        }
    }
}
