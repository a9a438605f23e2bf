//! The cluster's own authority, its certificates, and kubeconfig files made of them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

use super::{API_PORT, addresses};

/// Names that reach the API server from inside the cluster.
const API_NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];

/// Who a certificate speaks for.
struct Subject<'a> {
    /// File name.
    file: &'a str,
    /// User name to Kubernetes.
    user: &'a str,
    /// Group to Kubernetes.
    group: Option<&'a str>,
}

/// An authority: its certificate and what signs with it.
struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

/// Writes everything into `folder/pki`, and `folder/kubeconfig` for this machine's loopback port.
pub(super) fn write(folder: &Path, nodes: usize, api_port: u16) -> Result<()> {
    let pki = folder.join("pki");
    std::fs::create_dir_all(&pki)?;
    let ca = authority(&pki, "ca")?;
    let front = authority(&pki, "front-proxy-ca")?;
    let tokens = KeyPair::generate()?;
    save(&pki.join("tokens.key"), &tokens.serialize_pem())?;
    save(&pki.join("tokens.pub"), &tokens.public_key_pem())?;

    let writer = Writer { pki: &pki, ca: &ca };
    writer.certificate(&ca, &plain("kube-apiserver", "kube-apiserver"), api_names()?)?;
    writer.certificate(&front, &plain("front-proxy", "front-proxy"), Vec::new())?;
    let masters = |file| Subject {
        file,
        user: file,
        group: Some("system:masters"),
    };
    writer.certificate(&ca, &masters("kubelet-client"), Vec::new())?;
    let inside = format!("https://{}:{API_PORT}", addresses::CONTROL_PLANE);
    for program in ["kube-controller-manager", "kube-scheduler", "kube-proxy"] {
        let user = format!("system:{program}");
        writer.client(&plain(program, &user), Vec::new(), &inside)?;
    }
    for number in 1..=nodes {
        let file = format!("node{number}");
        let user = format!("system:node:{file}");
        let names = vec![name(&file)?, address(&addresses::node(number))?];
        let subject = Subject {
            file: &file,
            user: &user,
            group: Some("system:nodes"),
        };
        writer.client(&subject, names, &inside)?;
    }
    let outside = format!("https://127.0.0.1:{api_port}");
    let admin = writer.client(&masters("admin"), Vec::new(), &outside)?;
    std::fs::copy(admin, folder.join("kubeconfig")).context("writing the kubeconfig")?;
    Ok(())
}

const fn plain<'a>(file: &'a str, user: &'a str) -> Subject<'a> {
    Subject {
        file,
        user,
        group: None,
    }
}

struct Writer<'a> {
    pki: &'a Path,
    ca: &'a Authority,
}

impl Writer<'_> {
    /// A key and a certificate, good for both ends of a connection.
    fn certificate(&self, authority: &Authority, subject: &Subject<'_>, names: Vec<SanType>) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, subject.user);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.subject_alt_names = names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let certificate = params.signed_by(&key, &authority.issuer)?;
        save(
            &self.pki.join(format!("{}.crt", subject.file)),
            &certificate.pem(),
        )?;
        save(
            &self.pki.join(format!("{}.key", subject.file)),
            &key.serialize_pem(),
        )
    }

    /// A certificate, and a kubeconfig that uses it; returns the latter's path.
    fn client(&self, subject: &Subject<'_>, names: Vec<SanType>, server: &str) -> Result<PathBuf> {
        self.certificate(self.ca, subject, names)?;
        let read = |end: &str| std::fs::read_to_string(self.pki.join(format!("{}.{end}", subject.file)));
        let config = serde_json::json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "ds4",
            "clusters": [{"name": "ds4", "cluster": {
                "server": server, "certificate-authority-data": base64(self.ca.certificate.as_bytes())}}],
            "users": [{"name": "ds4", "user": {
                "client-certificate-data": base64(read("crt")?.as_bytes()),
                "client-key-data": base64(read("key")?.as_bytes())}}],
            "contexts": [{"name": "ds4", "context": {"cluster": "ds4", "user": "ds4"}}],
        });
        let path = self.pki.join(format!("{}.kubeconfig", subject.file));
        save(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }
}

fn authority(pki: &Path, file: &str) -> Result<Authority> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, format!("ds4 test {file}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let certificate = params.self_signed(&key)?.pem();
    save(&pki.join(format!("{file}.crt")), &certificate)?;
    save(&pki.join(format!("{file}.key")), &key.serialize_pem())?;
    Ok(Authority {
        certificate,
        issuer: Issuer::new(params, key),
    })
}

fn api_names() -> Result<Vec<SanType>> {
    let mut names = API_NAMES.into_iter().map(name).collect::<Result<Vec<_>>>()?;
    for text in ["127.0.0.1", addresses::API_SERVICE, addresses::CONTROL_PLANE] {
        names.push(address(text)?);
    }
    Ok(names)
}

fn name(text: &str) -> Result<SanType> {
    Ok(SanType::DnsName(text.try_into().context("a DNS name")?))
}

fn address(text: &str) -> Result<SanType> {
    let address: IpAddr = text.parse().context("an address")?;
    Ok(SanType::IpAddress(address))
}

/// Keys are for their owner only.
fn save(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600);
    let mut file = options
        .open(path)
        .with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes())?;
    Ok(())
}

/// Standard alphabet with padding (RFC 4648, section 4).
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk
            .iter()
            .enumerate()
            .fold(0_u32, |word, (i, byte)| word | u32::from(*byte) << (16 - 8 * i));
        for place in 0..4 {
            let digit = (word >> (18 - 6 * place)) & 63;
            text.push(if place <= chunk.len() {
                char::from(ALPHABET[digit as usize])
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_agrees_with_the_examples_of_its_standard() {
        let examples = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
        ];
        for (plain, encoded) in examples {
            assert_eq!(base64(plain.as_bytes()), encoded);
        }
    }
}
