//! The kubelet's API, as far as `kubectl logs` needs it: TLS, callers proven by certificate or TokenReview, and allowed by SubjectAccessReview.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::http::{Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::Client;
use kube::api::{Api, PostParams};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::Config;
use crate::credentials::Pair;
use crate::folder::Folder;
use crate::invitation::{Invitation, certificates};
use crate::logs::{self, Options};
use crate::report::DEADLINE;

/// Lines on their way to a slow reader.
const LINES: usize = 64;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Caller {
    name: String,
    groups: Vec<String>,
}

#[derive(Clone)]
struct Kubelet {
    client: Client,
    config: Arc<Config>,
}

/// Serves for good.
///
/// # Errors
/// When the port is taken or the certificates are unusable.
pub(crate) async fn serve(
    client: Client,
    config: Arc<Config>,
    invitation: &Invitation,
    pair: &Pair,
) -> Result<()> {
    let acceptor = TlsAcceptor::from(Arc::new(tls(invitation, pair)?));
    let address = SocketAddr::new(config.address, config.port);
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("address {address}"))?;
    let router = router(Kubelet { client, config });
    tracing::info!(%address, "kubelet API");
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // For example no more files: what is open has to close first.
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, router) = (acceptor.clone(), router.clone());
        tokio::spawn(async move {
            let accepted = tokio::time::timeout(DEADLINE, acceptor.accept(stream)).await;
            let Ok(Ok(stream)) = accepted else { return };
            let certificate = stream
                .get_ref()
                .1
                .peer_certificates()
                .and_then(|chain| chain.first());
            let caller = certificate.and_then(|certificate| caller(certificate));
            let router = router.layer(axum::Extension(caller));
            let service = hyper_util::service::TowerToHyperService::new(router);
            let connection = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            if let Err(error) = connection
                .serve_connection_with_upgrades(TokioIo::new(stream), service)
                .await
            {
                tracing::debug!(error, "a connection of the kubelet API");
            }
        });
    }
}

fn router(api: Kubelet) -> Router {
    Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route(
            "/containerLogs/{namespace}/{pod}/{container}",
            get(container_logs),
        )
        .fallback(|| async {
            (
                StatusCode::NOT_IMPLEMENTED,
                "ds4-runner: this node serves logs; exec, attach, port-forward and metrics are not there\n",
            )
        })
        .layer(middleware::from_fn_with_state(api.clone(), guard))
        .with_state(api)
}

fn tls(invitation: &Invitation, pair: &Pair) -> Result<rustls::ServerConfig> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(&invitation.client_authority).context("clientAuthority")? {
        roots
            .add(CertificateDer::from(authority))
            .context("clientAuthority")?;
    }
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots))
        .allow_unauthenticated()
        .build()
        .context("clientAuthority")?;
    let chain = CertificateDer::pem_slice_iter(pair.certificate.as_bytes())
        .collect::<Result<_, _>>()
        .context("the serving certificate")?;
    let key = PrivateKeyDer::from_pem_slice(pair.key.as_bytes()).context("the serving key")?;
    let mut config = rustls::ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .context("the serving certificate")?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Whom a verified certificate speaks for: its name, and its organisations as groups.
fn caller(certificate: &CertificateDer<'_>) -> Option<Caller> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next()?.as_str().ok()?.to_owned();
    let groups = subject
        .iter_organization()
        .filter_map(|name| name.as_str().ok().map(str::to_owned));
    Some(Caller {
        name,
        groups: groups.chain(["system:authenticated".to_owned()]).collect(),
    })
}

/// 401 to the unproven, 403 to those who may not, 503 when nobody can be asked.
async fn guard(State(api): State<Kubelet>, mut request: Request, next: Next) -> Response {
    let by_certificate = request.extensions_mut().remove::<Option<Caller>>().flatten();
    let caller = match by_certificate {
        Some(caller) => Some(caller),
        None => match api.token(bearer(&request)).await {
            Ok(caller) => caller,
            Err(error) => return unavailable(&error),
        },
    };
    let Some(caller) = caller else {
        return (StatusCode::UNAUTHORIZED, "Unauthorized\n").into_response();
    };
    match api.may(&caller, verb(request.method())).await {
        Ok(true) => next.run(request).await,
        Ok(false) => {
            let said = format!(
                "Forbidden (user={}, verb={}, resource=nodes, subresource=proxy)\n",
                caller.name,
                verb(request.method())
            );
            (StatusCode::FORBIDDEN, said).into_response()
        }
        Err(error) => unavailable(&error),
    }
}

fn bearer(request: &Request) -> Option<String> {
    let header = request.headers().get(header::AUTHORIZATION)?.to_str().ok()?;
    header.strip_prefix("Bearer ").map(str::to_owned)
}

fn unavailable(error: &anyhow::Error) -> Response {
    tracing::warn!(error = format!("{error:#}"), "the API server could not be asked");
    (
        StatusCode::SERVICE_UNAVAILABLE,
        "the API server could not be asked who may do this\n",
    )
        .into_response()
}

fn verb(method: &Method) -> &'static str {
    match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    }
}

impl Kubelet {
    /// Whom a bearer token speaks for.
    async fn token(&self, token: Option<String>) -> Result<Option<Caller>> {
        let Some(token) = token else { return Ok(None) };
        let review = TokenReview {
            spec: TokenReviewSpec {
                token,
                audiences: None,
            },
            ..TokenReview::default()
        };
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(DEADLINE, reviews.create(&PostParams::default(), &review)).await;
        let status = answer.context("a TokenReview")??.status.unwrap_or_default();
        if status.authenticated != Some(true) {
            return Ok(None);
        }
        Ok(status.user.map(|user| Caller {
            name: user.username.unwrap_or_default(),
            groups: user.groups.unwrap_or_default(),
        }))
    }

    /// Whether the caller may reach through to this node, as with every kubelet.
    async fn may(&self, caller: &Caller, verb: &str) -> Result<bool> {
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(caller.name.clone()),
                groups: Some(caller.groups.clone()),
                resource_attributes: Some(ResourceAttributes {
                    verb: Some(verb.into()),
                    version: Some("v1".into()),
                    resource: Some("nodes".into()),
                    subresource: Some("proxy".into()),
                    name: Some(self.config.node.clone()),
                    ..ResourceAttributes::default()
                }),
                ..SubjectAccessReviewSpec::default()
            },
            ..SubjectAccessReview::default()
        };
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let answer = tokio::time::timeout(DEADLINE, reviews.create(&PostParams::default(), &review)).await;
        let status = answer
            .context("a SubjectAccessReview")??
            .status
            .unwrap_or_default();
        Ok(status.allowed)
    }

    /// The folder of the run that is asked for.
    fn run(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        previous: bool,
    ) -> Result<Option<std::path::PathBuf>> {
        let all = Folder::all(&self.config)?;
        let Some((folder, _)) = all
            .into_iter()
            .find(|(_, owner)| owner.namespace == namespace && owner.name == pod)
        else {
            return Ok(None);
        };
        let Some(facts) = folder.facts()? else {
            return Ok(None);
        };
        let known = facts
            .init
            .iter()
            .chain([&facts.main])
            .find(|known| known.name == container);
        let run = known.and_then(|known| known.run.checked_sub(u32::from(previous)));
        Ok(run.filter(|run| *run > 0).map(|run| folder.run(container, run)))
    }
}

async fn container_logs(
    State(api): State<Kubelet>,
    Path((namespace, pod, container)): Path<(String, String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let missing = || {
        let which = if options.previous { "previous run" } else { "run" };
        let said = format!("pod {namespace}/{pod}: container {container} has no {which} here\n");
        (StatusCode::NOT_FOUND, said).into_response()
    };
    let folder = match api.run(&namespace, &pod, &container, options.previous) {
        Ok(Some(folder)) => folder,
        Ok(None) => return missing(),
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    };
    let (to, lines) = tokio::sync::mpsc::channel(LINES);
    tokio::spawn(async move {
        if let Err(error) = logs::send(folder, options, to).await {
            tracing::warn!(error = format!("{error:#}"), "a log was not sent to its end");
        }
    });
    let body = Body::from_stream(ReceiverStream::new(lines).map(Ok::<_, std::convert::Infallible>));
    ([(header::CONTENT_TYPE, "text/plain")], body).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn a_certificates_name_and_organisations_are_user_and_groups() {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "kubelet-client");
        params
            .distinguished_name
            .push(DnType::OrganizationName, "system:masters");
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate");
        let caller = caller(certificate.der()).expect("a caller");
        assert_eq!(caller.name, "kubelet-client");
        assert_eq!(caller.groups, ["system:masters", "system:authenticated"]);
    }
}
