//! Probes: when a container has started, whether it lives, whether it may be asked.

use std::net::SocketAddr;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::plan::{Check, Paths, PlannedProbe, Probes};

/// What a probe is aimed at.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) address: std::net::IpAddr,
    pub(crate) program: std::path::PathBuf,
    pub(crate) paths: Paths,
}

/// What probes find out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    Started,
    Ready(bool),
    /// A check failed; said once until one succeeds.
    Unhealthy(String),
}

/// Counts results in a row against a probe's thresholds. Pure.
#[derive(Debug)]
struct Tally {
    successes: u32,
    failures: u32,
    now: Option<bool>,
}

impl Tally {
    const fn new(now: Option<bool>) -> Self {
        Self {
            successes: 0,
            failures: 0,
            now,
        }
    }

    /// The state that this result leads to, when it is another than before.
    fn count(&mut self, healthy: bool, probe: &PlannedProbe) -> Option<bool> {
        if healthy {
            (self.successes, self.failures) = (self.successes + 1, 0);
        } else {
            (self.successes, self.failures) = (0, self.failures + 1);
        }
        let reached = if healthy {
            self.successes >= probe.successes
        } else {
            self.failures >= probe.failures
        };
        if !reached || self.now == Some(healthy) {
            return None;
        }
        self.now = Some(healthy);
        Some(healthy)
    }
}

/// Probes until the container must be restarted; then says why.
pub(crate) async fn watch(probes: &Probes, target: &Target, tell: impl Fn(Finding)) -> String {
    if let Some(startup) = &probes.startup
        && let Err(why) = until(startup, target, &tell, true).await
    {
        return format!("startup probe failed {} times: {why}", startup.failures);
    }
    tell(Finding::Started);
    let liveness = async {
        match &probes.liveness {
            Some(liveness) => match until(liveness, target, &tell, false).await {
                Err(why) => format!("liveness probe failed {} times: {why}", liveness.failures),
                Ok(()) => std::future::pending().await,
            },
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        why = liveness => why,
        never = readiness(probes.readiness.as_ref(), target, &tell) => match never {},
    }
}

/// Checks until the probe's failures are reached (an error), or, when `once`, its successes.
async fn until(
    probe: &PlannedProbe,
    target: &Target,
    tell: &impl Fn(Finding),
    once: bool,
) -> Result<(), String> {
    let mut tally = Tally::new(None);
    tokio::time::sleep(probe.delay).await;
    loop {
        let result = check(probe, target).await;
        let state = tally.count(result.is_ok(), probe);
        if let Err(error) = &result
            && tally.failures == 1
            && !once
        {
            tell(Finding::Unhealthy(format!("liveness: {error:#}")));
        }
        match (state, result) {
            (Some(true), _) if once => return Ok(()),
            (Some(false), Err(error)) => return Err(format!("{error:#}")),
            _ => tokio::time::sleep(probe.period).await,
        }
    }
}

/// For as long as the container runs.
async fn readiness(
    probe: Option<&PlannedProbe>,
    target: &Target,
    tell: &impl Fn(Finding),
) -> std::convert::Infallible {
    let Some(probe) = probe else {
        tell(Finding::Ready(true));
        return std::future::pending().await;
    };
    let mut tally = Tally::new(None);
    tokio::time::sleep(probe.delay).await;
    loop {
        let result = check(probe, target).await;
        if let Some(ready) = tally.count(result.is_ok(), probe) {
            tell(Finding::Ready(ready));
            if let Err(error) = result {
                tell(Finding::Unhealthy(format!("readiness: {error:#}")));
            }
        }
        tokio::time::sleep(probe.period).await;
    }
}

async fn check(probe: &PlannedProbe, target: &Target) -> Result<()> {
    let at = |port| SocketAddr::new(target.address, port);
    let work = async {
        match &probe.check {
            Check::Http { port, path, headers } => http(at(*port), path, headers).await,
            Check::Grpc { port, service } => grpc(at(*port), service).await,
            Check::Tcp { port } => {
                let stream = tokio::net::TcpStream::connect(at(*port)).await;
                stream.map(drop).with_context(|| at(*port).to_string())
            }
            Check::Exec(arguments) => exec(target, arguments).await,
        }
    };
    let limit: Duration = probe.timeout;
    tokio::time::timeout(limit, work)
        .await
        .with_context(|| format!("no answer within {limit:?}"))?
}

async fn http(address: SocketAddr, path: &str, headers: &[(String, String)]) -> Result<()> {
    let url = format!("http://{address}/{}", path.trim_start_matches('/'));
    let mut request = hyper::Request::get(&url);
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let client: Client<HttpConnector, Empty<Bytes>> = Client::builder(TokioExecutor::new()).build_http();
    let answer = client
        .request(request.body(Empty::new())?)
        .await
        .with_context(|| url.clone())?;
    let status = answer.status();
    ensure!(
        status.is_success() || status.is_redirection(),
        "{url}: expected 200 to 399, found {status}"
    );
    Ok(())
}

async fn grpc(address: SocketAddr, service: &str) -> Result<()> {
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))?
        .connect()
        .await
        .with_context(|| address.to_string())?;
    let request = HealthCheckRequest {
        service: service.to_owned(),
    };
    let status = HealthClient::new(channel)
        .check(request)
        .await
        .with_context(|| address.to_string())?
        .into_inner()
        .status();
    ensure!(
        status == ServingStatus::Serving,
        "{address}: expected it to serve, found {status:?}"
    );
    Ok(())
}

async fn exec(target: &Target, arguments: &[String]) -> Result<()> {
    let output = tokio::process::Command::new(&target.program)
        .args(arguments.iter().map(|word| target.paths.word(word)))
        .env_clear()
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| target.program.display().to_string())?;
    ensure!(
        output.status.success(),
        "{} ended with {}: {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    fn probe(check: Check) -> PlannedProbe {
        PlannedProbe {
            check,
            delay: Duration::ZERO,
            period: Duration::from_millis(10),
            timeout: Duration::from_secs(5),
            successes: 1,
            failures: 3,
        }
    }

    fn target(program: &str) -> Target {
        Target {
            address: [127, 0, 0, 1].into(),
            program: program.into(),
            paths: Paths::default(),
        }
    }

    #[test]
    fn a_state_changes_after_its_threshold_and_only_then() {
        let probe = PlannedProbe {
            successes: 2,
            ..probe(Check::Tcp { port: 1 })
        };
        let mut tally = Tally::new(Some(false));
        let results = [
            true, false, true, true, true, false, false, true, false, false, false, false,
        ];
        let seen: Vec<Option<bool>> = results
            .iter()
            .map(|result| tally.count(*result, &probe))
            .collect();
        let mut expected = vec![None; 12];
        expected[3] = Some(true);
        expected[10] = Some(false);
        assert_eq!(seen, expected);
    }

    #[tokio::test]
    async fn a_container_that_never_starts_must_be_restarted() {
        let probes = Probes {
            startup: Some(probe(Check::Exec(Vec::new()))),
            ..Probes::default()
        };
        let why = watch(&probes, &target("/bin/false"), |finding| panic!("{finding:?}")).await;
        assert!(why.contains("startup probe failed 3 times"), "{why}");
    }

    #[tokio::test]
    async fn one_that_answers_is_ready_until_it_does_not() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0")
            .await
            .expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let findings = Mutex::new(Vec::new());
        let (ready, mut is_ready) = tokio::sync::watch::channel(false);
        let tell = |finding: Finding| {
            findings.lock().expect("no panic").push(finding.clone());
            if finding == Finding::Ready(true) {
                ready.send_replace(true);
            }
        };
        let probes = Probes {
            startup: Some(probe(Check::Tcp { port })),
            liveness: Some(probe(Check::Tcp { port })),
            readiness: Some(probe(Check::Tcp { port })),
        };
        let target = target("");
        let closes = async {
            is_ready.wait_for(|ready| *ready).await.expect("it becomes ready");
            drop(listener);
            std::future::pending::<()>().await;
        };
        let why = tokio::select! { why = watch(&probes, &target, tell) => why, () = closes => String::new() };
        assert!(why.contains("liveness probe failed 3 times"), "{why}");
        let findings = findings.into_inner().expect("no panic");
        assert_eq!(findings[..2], [Finding::Started, Finding::Ready(true)]);
    }
}
