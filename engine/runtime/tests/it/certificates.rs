//! Encrypted hops: who may connect, and certificates that change under way.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ds4_proto::v1::DescribeRequest;
use ds4_proto::v1::stage_client::StageClient;
use ds4_runtime::{Engine, EngineOptions, StageOptions, StageServer, Tls};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tokio::net::TcpListener;
use tonic::transport::Endpoint;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::support::{Served, alone, ask, prompt, slice, stage_at, strict, unconnected};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// What a Secret mounts: a certificate for `host` by `issuer`, and the authority that is trusted.
fn write(folder: &Path, host: &str, issuer: &Authority, trusted: &Authority) {
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new([host.to_owned()])
        .unwrap()
        .signed_by(&key, issuer)
        .unwrap();
    std::fs::write(folder.join("tls.crt"), certificate.pem()).unwrap();
    std::fs::write(folder.join("tls.key"), key.serialize_pem()).unwrap();
    std::fs::write(folder.join("ca.crt"), trusted.pem()).unwrap();
}

struct Identity {
    folder: tempfile::TempDir,
    tls: Arc<Tls>,
}

fn identity(issuer: &Authority, trusted: &Authority) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "127.0.0.1", issuer, trusted);
    let tls = Tls::open(folder.path()).unwrap();
    Identity { folder, tls }
}

fn stage(first: usize, last: usize, identity: &Identity) -> Served {
    let options = StageOptions {
        tls: Some(Arc::clone(&identity.tls)),
        ..StageOptions::default()
    };
    stage_at("127.0.0.1:0", first, last, options)
}

fn engine(stages: &[&Served], identity: Option<&Identity>) -> Arc<Engine> {
    let options = EngineOptions {
        tls: identity.map(|identity| Arc::clone(&identity.tls)),
        handoff_timeout: Duration::from_secs(3),
        ..strict()
    };
    unconnected(2, stages, options)
}

/// Why the route is not complete.
async fn refusal(engine: &Arc<Engine>) -> String {
    engine
        .route_complete(Duration::from_millis(1500))
        .await
        .expect_err("refused")
        .to_string()
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_prompt_over_encrypted_hops_gives_the_same_tokens() {
    let ca = authority();
    let (first, second) = (stage(0, 0, &identity(&ca, &ca)), stage(1, 1, &identity(&ca, &ca)));
    let engine = engine(&[&first, &second], Some(&identity(&ca, &ca)));
    engine.route_complete(Duration::from_secs(10)).await.unwrap();
    let (decision, tokens) = ask(&engine, &prompt(200)).await.unwrap();
    assert_eq!(
        (decision.to_string(), tokens),
        ("disaggregated".into(), alone(&prompt(200)).await)
    );
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stranger_is_refused_by_either_end() {
    let (ours, theirs) = (authority(), authority());
    let stage = stage(0, 1, &identity(&ours, &ours));
    // Without a certificate.
    let plain = refusal(&engine(&[&stage], None)).await;
    assert!(plain.contains("not reachable"), "{plain}");
    // With one that another CA signed, though it trusts ours.
    let foreign = refusal(&engine(&[&stage], Some(&identity(&theirs, &ours)))).await;
    assert!(foreign.contains("not reachable"), "{foreign}");
    // The stage is the stranger.
    let trusts_others = refusal(&engine(&[&stage], Some(&identity(&theirs, &theirs)))).await;
    assert!(
        trusts_others.contains("UnknownIssuer") || trusts_others.contains("BadSignature"),
        "{trusts_others}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_probes_a_stage_needs_no_certificate_and_learns_its_health_alone() {
    let ca = authority();
    let options = StageOptions {
        tls: Some(identity(&ca, &ca).tls),
        ..StageOptions::default()
    };
    let bind = || TcpListener::bind("127.0.0.1:0");
    let (own, probes) = (bind().await.unwrap(), bind().await.unwrap());
    let address = format!("http://{}", probes.local_addr().unwrap());
    let server = StageServer::new(slice(0, 1), options);
    tokio::spawn(server.serve_with_probes(own, Some(probes), std::future::pending()));
    let channel = Endpoint::from_shared(address).unwrap().connect().await.unwrap();
    let health = HealthClient::new(channel.clone())
        .check(HealthCheckRequest::default())
        .await;
    assert_eq!(health.unwrap().into_inner().status, 1, "serving");
    let described = StageClient::new(channel).describe(DescribeRequest {}).await;
    assert_eq!(described.unwrap_err().code(), tonic::Code::Unimplemented);
}

#[tokio::test(flavor = "multi_thread")]
pub async fn a_stage_that_is_not_the_host_that_was_dialled_is_refused() {
    let ca = authority();
    let elsewhere = identity(&ca, &ca);
    write(elsewhere.folder.path(), "other.example", &ca, &ca);
    assert!(elsewhere.tls.reload().unwrap());
    let stage = stage(0, 1, &elsewhere);
    let refused = refusal(&engine(&[&stage], Some(&identity(&ca, &ca)))).await;
    assert!(refused.contains("not valid for name"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn certificates_change_while_requests_run() {
    let (old, new) = (authority(), authority());
    let (pod, output) = (identity(&old, &old), identity(&old, &old));
    let stage = stage(0, 1, &pod);
    let running = engine(&[&stage], Some(&output));
    running.route_complete(Duration::from_secs(10)).await.unwrap();
    assert!(!pod.tls.reload().unwrap(), "nothing has changed");
    // A first request opens every connection there is: one that opens between the two sides' changes is refused, and rightly.
    ask(&running, &prompt(200)).await.unwrap();
    let asked = tokio::spawn({
        let running = Arc::clone(&running);
        async move { ask(&running, &prompt(1000)).await }
    });
    for identity in [&pod, &output] {
        write(identity.folder.path(), "127.0.0.1", &new, &new);
        assert!(identity.tls.reload().unwrap());
    }
    assert_eq!(
        asked.await.unwrap().unwrap().0.label(),
        "disaggregated",
        "open connections stay"
    );
    let fresh = engine(&[&stage], Some(&output));
    fresh.route_complete(Duration::from_secs(10)).await.unwrap();
    let late = refusal(&engine(&[&stage], Some(&identity(&old, &old)))).await;
    assert!(late.contains("not reachable"), "{late}");
}

#[tokio::test(flavor = "multi_thread")]
pub async fn files_that_cannot_be_used_are_named_and_change_nothing() {
    let ca = authority();
    let pod = identity(&ca, &ca);
    let path = pod.folder.path().join("tls.key");
    for (content, text) in [
        ("", "expected a PEM private key"),
        ("nonsense", "expected a PEM private key"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = pod.tls.reload().unwrap_err().to_string();
        assert!(error.contains("tls.key") && error.contains(text), "{error}");
    }
    std::fs::write(&path, KeyPair::generate().unwrap().serialize_pem()).unwrap();
    let error = pod.tls.reload().unwrap_err().to_string();
    assert!(error.contains("the key of tls.crt"), "{error}");
    std::fs::remove_file(pod.folder.path().join("ca.crt")).unwrap();
    assert!(pod.tls.reload().unwrap_err().to_string().contains("ca.crt"));
}
