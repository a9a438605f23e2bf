//! Packs an image as a docker-archive file: one layer, one configuration, no builder and no registry.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::json;
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// What lies at one path of an image.
pub enum Content {
    /// The bytes of a file on this machine.
    Copy(PathBuf),
    /// These bytes.
    Bytes(Vec<u8>),
    /// A folder.
    Folder,
}

/// One path of an image.
pub struct Entry {
    /// Without a leading slash.
    pub path: String,
    /// Permission bits.
    pub mode: u32,
    /// What lies there.
    pub content: Content,
}

impl Entry {
    /// A program, copied from this machine.
    pub fn program(path: &str, source: impl Into<PathBuf>) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o755,
            content: Content::Copy(source.into()),
        }
    }

    /// A text file.
    #[must_use]
    pub fn text(path: &str, text: &str) -> Self {
        Self {
            path: path.to_owned(),
            mode: 0o644,
            content: Content::Bytes(text.as_bytes().to_vec()),
        }
    }

    /// A folder.
    #[must_use]
    pub fn folder(path: &str, mode: u32) -> Self {
        Self {
            path: path.to_owned(),
            mode,
            content: Content::Folder,
        }
    }
}

/// An image to pack.
pub struct Image {
    /// `repository:tag`.
    pub reference: String,
    /// What a container of it runs.
    pub entrypoint: Vec<String>,
    /// The user a container runs as, `uid:gid`; empty for root.
    pub user: String,
    /// Everything in it.
    pub entries: Vec<Entry>,
}

impl Image {
    /// Writes the archive. Equal content gives equal bytes: times and owners are zero.
    ///
    /// # Errors
    /// When a file cannot be read or the archive cannot be written.
    pub fn write(&self, archive: &Path) -> Result<()> {
        let layer = self.layer()?;
        let digest = hex(&layer);
        let config = serde_json::to_vec(&json!({
            "architecture": architecture(), "os": "linux", "created": "1970-01-01T00:00:00Z",
            "config": {"Entrypoint": self.entrypoint, "User": self.user, "WorkingDir": "/", "Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
            "history": [{"created": "1970-01-01T00:00:00Z", "created_by": "cargo xtask images"}],
        }))?;
        let config_name = format!("{}.json", hex(&config));
        let layer_name = format!("{digest}.tar");
        let manifest = serde_json::to_vec(&json!([
            {"Config": config_name, "RepoTags": [self.reference], "Layers": [layer_name]}
        ]))?;
        let mut out = Builder::new(create(archive)?);
        append(&mut out, "manifest.json", 0o644, EntryType::Regular, &manifest)?;
        append(&mut out, &config_name, 0o644, EntryType::Regular, &config)?;
        append(&mut out, &layer_name, 0o644, EntryType::Regular, &layer)?;
        out.into_inner()?.flush()?;
        Ok(())
    }

    fn layer(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for Entry { path, mode, content } in &self.entries {
            match content {
                Content::Copy(source) => {
                    let bytes =
                        std::fs::read(source).with_context(|| format!("reading {}", source.display()))?;
                    append(&mut tar, path, *mode, EntryType::Regular, &bytes)?;
                }
                Content::Bytes(bytes) => append(&mut tar, path, *mode, EntryType::Regular, bytes)?,
                Content::Folder => append(&mut tar, path, *mode, EntryType::Directory, &[])?,
            }
        }
        Ok(tar.into_inner()?)
    }
}

fn append(tar: &mut Builder<impl Write>, path: &str, mode: u32, kind: EntryType, bytes: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, path, bytes)
        .with_context(|| format!("packing {path}"))
}

fn create(path: &Path) -> Result<std::io::BufWriter<std::fs::File>> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let file = std::fs::File::create(path).with_context(|| format!("creating {}", path.display()))?;
    Ok(std::io::BufWriter::new(file))
}

fn hex(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// The name that images use for this machine's processor.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Image {
        Image {
            reference: "localhost/sample:1".to_owned(),
            entrypoint: vec!["/usr/bin/sample".to_owned()],
            user: "65532:65532".to_owned(),
            entries: vec![Entry::folder("tmp", 0o1777), Entry::text("etc/hello", "hello\n")],
        }
    }

    #[test]
    fn the_same_content_gives_the_same_archive() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let (first, second) = (folder.path().join("a.tar"), folder.path().join("b.tar"));
        sample().write(&first)?;
        sample().write(&second)?;
        assert_eq!(std::fs::read(first)?, std::fs::read(second)?);
        Ok(())
    }

    #[test]
    fn the_layer_has_the_digest_that_the_configuration_names() -> Result<()> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("image.tar");
        sample().write(&path)?;
        let mut files = std::collections::BTreeMap::new();
        for entry in tar::Archive::new(std::fs::File::open(path)?).entries()? {
            let mut entry = entry?;
            let name = entry.path()?.display().to_string();
            let mut bytes = Vec::new();
            std::io::Read::read_to_end(&mut entry, &mut bytes)?;
            files.insert(name, bytes);
        }
        let manifest: serde_json::Value = serde_json::from_slice(&files["manifest.json"])?;
        let config = manifest[0]["Config"].as_str().unwrap_or_default();
        let layer = manifest[0]["Layers"][0].as_str().unwrap_or_default();
        let config: serde_json::Value = serde_json::from_slice(&files[config])?;
        assert_eq!(
            config["rootfs"]["diff_ids"][0],
            format!("sha256:{}", hex(&files[layer]))
        );
        Ok(())
    }
}
