//! Certificates on both ends of a hop, read from one folder and read again when its files change.
//!
//! The folder is what a Kubernetes Secret of type `kubernetes.io/tls` with a CA mounts: `tls.crt`, `tls.key`, `ca.crt`. A peer must show a
//! certificate that this CA signed; a stage must also be the host that was dialled.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// How often the files are looked at. The kubelet itself takes up to a minute to show a changed Secret.
const LOOK: Duration = Duration::from_secs(5);

/// Why certificates cannot be used.
#[derive(Debug, Error)]
pub enum TlsError {
    /// A file is missing.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A file is not what it must be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    Content {
        /// Which one.
        path: PathBuf,
        /// What it must hold.
        expected: &'static str,
        /// What is wrong.
        found: String,
    },
}

/// The certificates in use.
#[derive(Debug)]
pub struct Tls {
    folder: PathBuf,
    current: ArcSwap<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    files: Files,
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

#[derive(Debug, PartialEq, Eq)]
struct Files {
    certificate: Vec<u8>,
    key: Vec<u8>,
    ca: Vec<u8>,
}

impl Tls {
    /// Reads the certificates of `folder`.
    ///
    /// # Errors
    /// Names the file and what is wrong with it.
    pub fn open(folder: &Path) -> Result<Arc<Self>, TlsError> {
        let loaded = load(folder, Files::read(folder)?)?;
        let current = ArcSwap::from_pointee(loaded);
        Ok(Arc::new(Self {
            folder: folder.to_owned(),
            current,
        }))
    }

    /// Reads the files again when they have changed: connections made from then on use them, open ones stay. True when something changed.
    ///
    /// # Errors
    /// When the new files cannot be used; the old ones stay in use.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let files = Files::read(&self.folder)?;
        if files == self.current.load().files {
            return Ok(false);
        }
        self.current.store(Arc::new(load(&self.folder, files)?));
        Ok(true)
    }

    /// Looks at the files for as long as the certificates are in use.
    pub fn watch(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(tls) = weak.upgrade() else { return };
                match tls.reload() {
                    Ok(true) => tracing::info!(folder = %tls.folder.display(), "certificates changed"),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, "certificates not changed: the old ones stay in use")
                    }
                }
            }
        });
    }

    /// Lets a peer prove who it is.
    ///
    /// # Errors
    /// When it has no certificate of the authority.
    pub async fn accept(&self, stream: TcpStream) -> io::Result<server::TlsStream<TcpStream>> {
        let config = Arc::clone(&self.current.load().server);
        TlsAcceptor::from(config).accept(stream).await
    }

    /// Proves who this pod is, and checks that the peer is `host`.
    ///
    /// # Errors
    /// When either has no certificate of the authority.
    pub async fn connect<T: AsyncRead + AsyncWrite + Unpin>(
        &self,
        host: &str,
        stream: T,
    ) -> io::Result<client::TlsStream<T>> {
        let config = Arc::clone(&self.current.load().client);
        let host = host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(host).map_err(io::Error::other)?;
        TlsConnector::from(config).connect(name, stream).await
    }
}

impl Files {
    fn read(folder: &Path) -> Result<Self, TlsError> {
        let read = |name| {
            let path = folder.join(name);
            std::fs::read(&path).map_err(|source| TlsError::Read { path, source })
        };
        Ok(Self {
            certificate: read("tls.crt")?,
            key: read("tls.key")?,
            ca: read("ca.crt")?,
        })
    }
}

fn load(folder: &Path, files: Files) -> Result<Loaded, TlsError> {
    let wrong = |name: &str, expected, found: &dyn ToString| TlsError::Content {
        path: folder.join(name),
        expected,
        found: found.to_string(),
    };
    let chain = certificates(&files.certificate)
        .map_err(|error| wrong("tls.crt", "PEM certificates, the own one first", &error))?;
    let key = || {
        PrivateKeyDer::from_pem_slice(&files.key)
            .map_err(|error| wrong("tls.key", "a PEM private key", &error))
    };
    let mut roots = RootCertStore::empty();
    for ca in certificates(&files.ca).map_err(|error| wrong("ca.crt", "PEM certificates", &error))? {
        roots
            .add(ca)
            .map_err(|error| wrong("ca.crt", "certificates of a CA", &error))?;
    }
    let (provider, roots) = (Arc::new(ring::default_provider()), Arc::new(roots));
    let pair = |error: rustls::Error| wrong("tls.key", "the key of tls.crt", &error);
    let server = server_config(&provider, &roots, chain.clone(), key()?).map_err(pair)?;
    let client = client_config(&provider, &roots, chain, key()?).map_err(pair)?;
    Ok(Loaded {
        files,
        server: Arc::new(server),
        client: Arc::new(client),
    })
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match found {
        Ok(found) if found.is_empty() => Err("none".into()),
        Ok(found) => Ok(found),
        Err(error) => Err(error.to_string()),
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ServerConfig, rustls::Error> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

fn client_config(
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<ClientConfig, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(chain, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}
