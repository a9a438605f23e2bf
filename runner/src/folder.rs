//! A pod's folder: what is remembered of it, its volumes, and its processes' runs.
//!
//! `ROOT/pods/UID/{pod.json,facts.json,volumes/NAME,containers/NAME/RUN}`

use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::{HostPathVolumeSource, Volume};
use serde::{Deserialize, Serialize};

use crate::admission::allowed;
use crate::config::Config;
use crate::facts::Facts;
use crate::files;
use crate::material::Files;
use crate::plan::{ContainerPlan, Paths, User};

/// Which files of a volume are shown; it changes in one step.
const CURRENT: &str = "..data";

/// Whose folder it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Owner {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// The folder.
#[derive(Clone, Debug)]
pub(crate) struct Folder {
    path: PathBuf,
}

impl Folder {
    /// The folder of a pod; [`Folder::create`] makes it.
    pub(crate) fn of(config: &Config, uid: &str) -> Self {
        Self {
            path: config.pods().join(uid),
        }
    }

    /// All folders with their owners.
    ///
    /// # Errors
    /// When the root cannot be read.
    pub(crate) fn all(config: &Config) -> Result<Vec<(Self, Owner)>> {
        let Ok(entries) = std::fs::read_dir(config.pods()) else {
            return Ok(Vec::new());
        };
        let mut all = Vec::new();
        for entry in entries {
            let folder = Self { path: entry?.path() };
            if let Some(owner) = files::read(&folder.path.join("pod.json"))? {
                all.push((folder, owner));
            }
        }
        Ok(all)
    }

    /// Makes the folder. Others may pass through it, as the pod's user must, but not look around.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn create(&self, owner: &Owner) -> Result<()> {
        for part in ["", "volumes", "containers"] {
            passable(&self.path.join(part))?;
        }
        files::write(&self.path.join("pod.json"), owner)
    }

    /// What was known when the runner last wrote it.
    ///
    /// # Errors
    /// When the file is not one of these.
    pub(crate) fn facts(&self) -> Result<Option<Facts>> {
        files::read(&self.path.join("facts.json"))
    }

    /// Remembers.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(crate) fn remember(&self, facts: &Facts) -> Result<()> {
        files::write(&self.path.join("facts.json"), facts)
    }

    /// The folder of a container's run.
    pub(crate) fn run(&self, container: &str, run: u32) -> PathBuf {
        self.path.join("containers").join(container).join(run.to_string())
    }

    /// The newest run and the one before it are kept: their logs can be asked for.
    pub(crate) fn new_run(&self, container: &str, run: u32, user: Option<User>) -> Result<PathBuf> {
        passable(&self.path.join("containers").join(container))?;
        if let Some(old) = run.checked_sub(2) {
            let _ = std::fs::remove_dir_all(self.run(container, old));
        }
        let folder = self.run(container, run);
        passable(&folder)?;
        let own = folder.join("tmp");
        std::fs::create_dir_all(&own)?;
        give(&own, user)?;
        Ok(folder)
    }

    /// Takes everything away.
    ///
    /// # Errors
    /// When something cannot be removed.
    pub(crate) fn remove(&self) -> Result<()> {
        match std::fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("removing {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    fn volume(&self, name: &str) -> PathBuf {
        self.path.join("volumes").join(name)
    }

    /// Makes a volume that is a folder, or shows these files in one that is made of objects.
    ///
    /// # Errors
    /// When a path of the node is not what its volume says, or leads out of the roots.
    pub(crate) fn fill(
        &self,
        volume: &Volume,
        contents: Option<Files>,
        config: &Config,
        user: Option<User>,
    ) -> Result<()> {
        let named = || format!("volume {}", volume.name);
        if let Some(host) = &volume.host_path {
            return host_path(host, config).with_context(named);
        }
        let place = self.volume(&volume.name);
        std::fs::create_dir_all(&place).with_context(named)?;
        match contents {
            Some(contents) => show(&place, &contents, user).with_context(named),
            None => give(&place, user).with_context(named),
        }
    }

    /// Where a container's paths are on this machine.
    pub(crate) fn paths(&self, plan: &ContainerPlan, volumes: &[Volume], run: &Path) -> Paths {
        let mut pairs: Vec<(String, PathBuf)> = plan
            .mounts
            .iter()
            .map(|mount| {
                let host = volumes
                    .iter()
                    .find(|volume| volume.name == mount.volume)
                    .and_then(|volume| volume.host_path.as_ref());
                let place = host.map_or_else(|| self.volume(&mount.volume), |host| PathBuf::from(&host.path));
                let place = if mount.sub_path.is_empty() {
                    place
                } else {
                    place.join(&mount.sub_path)
                };
                (mount.path.clone(), place)
            })
            .collect();
        pairs.push((plan.last_words.clone(), last_words(run)));
        Paths::new(pairs)
    }
}

/// Where a run's engine writes its last words.
pub(crate) fn last_words(run: &Path) -> PathBuf {
    run.join("tmp/termination-log")
}

fn passable(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("creating {}", folder.display()))?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o711))?;
    Ok(())
}

/// The pod's user owns it, where the runner is root.
fn give(path: &Path, user: Option<User>) -> Result<()> {
    if let Some(user) = user {
        chown(path, Some(user.uid), Some(user.fs_group.unwrap_or(user.gid)))?;
    }
    Ok(())
}

/// Writes the files into a new folder beside the old one and changes one link: a reader sees all of the old or all of the new.
fn show(place: &Path, contents: &Files, user: Option<User>) -> Result<()> {
    if shown(place, contents) {
        return Ok(());
    }
    let old = std::fs::read_link(place.join(CURRENT)).ok();
    let folder = place.join(format!("..{}", jiff::Timestamp::now().as_nanosecond()));
    std::fs::create_dir_all(&folder)?;
    give(&folder, user)?;
    for (path, bytes) in contents {
        let path = Path::new(path);
        ensure!(
            path.components().all(|part| matches!(part, Component::Normal(_))),
            "{}: expected a path inside the volume",
            path.display()
        );
        let file = folder.join(path);
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent)?;
        }
        files::save(&file, bytes)?;
        give(&file, user)?;
    }
    let fresh = place.join("..fresh");
    let _ = std::fs::remove_file(&fresh);
    symlink(folder.file_name().unwrap_or_default(), &fresh)?;
    std::fs::rename(&fresh, place.join(CURRENT))?;
    for path in contents.keys() {
        let first = path.split('/').next().unwrap_or(path);
        if place.join(first).symlink_metadata().is_err() {
            symlink(Path::new(CURRENT).join(first), place.join(first))?;
        }
    }
    if let Some(old) = old {
        let _ = std::fs::remove_dir_all(place.join(old));
    }
    Ok(())
}

fn shown(place: &Path, contents: &Files) -> bool {
    let current = place.join(CURRENT);
    current.exists()
        && contents
            .iter()
            .all(|(path, bytes)| std::fs::read(current.join(path)).is_ok_and(|found| found == *bytes))
}

/// Checked again now that it is used: a link may have changed since the pod was admitted.
fn host_path(host: &HostPathVolumeSource, config: &Config) -> Result<()> {
    let path = Path::new(&host.path);
    ensure!(
        allowed(path, &config.host_path_roots),
        "hostPath {}: it leads out of the configured roots",
        host.path
    );
    let kind = host.type_.as_deref().unwrap_or_default();
    match kind {
        "DirectoryOrCreate" => std::fs::create_dir_all(path)?,
        "FileOrCreate" if !path.exists() => std::fs::write(path, [])?,
        _ => {}
    }
    let found = match kind {
        "" => true,
        "Directory" | "DirectoryOrCreate" => path.is_dir(),
        "File" | "FileOrCreate" => path.is_file(),
        other => bail!("hostPath {}: type {other} is not understood", host.path),
    };
    ensure!(found, "hostPath {}: expected a {kind}, found none", host.path);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contents(value: u8) -> Files {
        [
            ("tls.crt".to_owned(), vec![value]),
            ("a/b".to_owned(), vec![value]),
        ]
        .into()
    }

    #[test]
    fn files_of_a_volume_change_all_at_once_and_leave_nothing_behind() {
        let place = tempfile::tempdir().expect("a folder");
        show(place.path(), &contents(1), None).expect("shown");
        let before = std::fs::read_link(place.path().join(CURRENT)).expect("a link");
        show(place.path(), &contents(1), None).expect("the same");
        assert_eq!(
            before,
            std::fs::read_link(place.path().join(CURRENT)).expect("a link"),
            "nothing changed"
        );
        show(place.path(), &contents(2), None).expect("changed");
        for path in ["tls.crt", "a/b"] {
            assert_eq!(std::fs::read(place.path().join(path)).expect(path), [2]);
        }
        assert!(!place.path().join(before).exists());
        let mode = place
            .path()
            .join("tls.crt")
            .metadata()
            .expect("a file")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600, "a key is for its owner only");
    }

    #[test]
    fn a_key_is_no_way_out_of_the_volume() {
        let place = tempfile::tempdir().expect("a folder");
        let files = Files::from([("../x".to_owned(), vec![1])]);
        assert!(show(place.path(), &files, None).is_err());
    }

    #[test]
    fn a_path_of_the_node_must_be_what_its_volume_says() {
        let root = tempfile::tempdir().expect("a folder");
        let mut config = crate::config::tests::config();
        config.host_path_roots = vec![root.path().to_owned()];
        let judge = |path: PathBuf, kind: &str| {
            let host = HostPathVolumeSource {
                path: path.display().to_string(),
                type_: Some(kind.into()),
            };
            host_path(&host, &config).map_err(|error| error.to_string())
        };
        assert!(
            judge(root.path().join("flash.gguf"), "File")
                .expect_err("missing")
                .contains("expected a File")
        );
        assert!(judge(root.path().join("cache"), "DirectoryOrCreate").is_ok());
        assert!(
            judge("/etc".into(), "Directory")
                .expect_err("outside")
                .contains("roots")
        );
    }
}
