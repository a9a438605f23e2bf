//! The target folder of the builds: a layer above this machine's, which they read and cannot change.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::process;
use crate::repository;

/// Mounted while this lives.
pub(super) struct Target {
    folder: PathBuf,
    mounted: bool,
}

impl Target {
    /// An empty layer above what cargo has built here. The bases are of this machine's release and the compiler is the same, so dependencies are what a build in
    /// them gives; crates of the workspace are built anew, as some hold the path of their sources.
    pub(super) fn above_ours() -> Result<Self> {
        let place = repository::cache().join("containers/target");
        let [upper, work, folder] = ["upper", "work", "merged"].map(|name| place.join(name));
        // A run that was killed left it mounted, most runs did not.
        let _ = process::output(Command::new("umount").arg(&folder));
        match std::fs::remove_dir_all(&place) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| place.display().to_string());
            }
            _ => {}
        }
        let ours = repository::target();
        for folder in [&upper, &work, &folder, &ours] {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        }
        let layers = format!(
            "lowerdir={},upperdir={},workdir={}",
            ours.display(),
            upper.display(),
            work.display()
        );
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "overlay", "overlay", "-o", &layers])
            .arg(&folder);
        // Where a kernel refuses layers on this disk, all is built.
        let mounted = process::output(&mut mount).is_ok();
        forget_ours(&folder.join("debug/.fingerprint"))?;
        Ok(Self { folder, mounted })
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.mounted {
            // Left mounted, it is unmounted by the next run.
            let _ = process::output(Command::new("umount").arg(&self.folder));
        }
    }
}

/// Removes, above, what tells cargo that the workspace's crates are built.
fn forget_ours(fingerprints: &Path) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(fingerprints) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("ds4-") || name.starts_with("xtask-") {
            std::fs::remove_dir_all(entry.path()).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}
