//! Podman with storage of its own: nothing of the machine's images and containers is seen or touched.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::DRIVER;
use crate::process;
use crate::repository;

pub(super) struct Podman {
    folder: PathBuf,
}

/// A Dockerfile to build.
pub(super) struct Build<'a> {
    pub(super) file: &'a str,
    /// The last stage to build; none: the file's last.
    pub(super) stage: Option<&'a str>,
    /// What the image is called.
    pub(super) image: &'a str,
    /// `NAME=VALUE`, and mounts for the instructions that run something.
    pub(super) arguments: Vec<String>,
    /// Cargo's target folder.
    pub(super) target: &'a Path,
}

impl Podman {
    pub(super) fn new() -> Self {
        Self {
            folder: repository::cache().join("containers"),
        }
    }

    pub(super) fn log(&self, name: &str) -> PathBuf {
        self.folder.join(format!("{name}.log"))
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut podman = Command::new("podman");
        podman.arg("--root").arg(self.folder.join("root"));
        podman.arg("--runroot").arg(self.folder.join("run"));
        // Neither systemd nor its journal is needed.
        podman.args(["--cgroup-manager", "cgroupfs", "--events-backend", "none"]);
        podman.args(words);
        podman
    }

    /// Removes what a run that was killed has left: containers of half a build.
    pub(super) fn clean(&self) -> Result<()> {
        let left = process::output(&mut self.command(&["ps", "--all", "--external", "--quiet"]))?;
        for container in left.split_whitespace() {
            process::output(&mut self.command(&["rm", "--force", container]))?;
        }
        Ok(())
    }

    pub(super) fn has(&self, image: &str) -> bool {
        let known = self.command(&["image", "exists", image]).status();
        known.is_ok_and(|status| status.success())
    }

    /// Makes an image of one layer.
    pub(super) fn import(&self, archive: &Path, image: &str, changes: &[String]) -> Result<()> {
        let mut command = self.command(&["import", "--quiet"]);
        for change in changes {
            command.args(["--change", change]);
        }
        process::output(command.arg(archive).arg(image)).map(drop)
    }

    pub(super) fn build(&self, build: &Build<'_>) -> Result<()> {
        // One layer per stage: the folders of the build are large, and are of no use once it is done.
        let mut command = self.command(&["build", "--pull=never", "--isolation", "chroot", "--layers=false"]);
        command.args(["--network", "host", "--file", build.file, "--tag", build.image]);
        command.args(&build.arguments);
        command
            .arg("--volume")
            .arg(format!("{}:/src/target", build.target.display()));
        if let Some(stage) = build.stage {
            command.args(["--target", stage]);
        }
        command.arg(".").current_dir(repository::root());
        process::logged(&mut command, &self.log(build.file))
    }

    pub(super) fn inspect(&self, image: &str, field: &str) -> Result<String> {
        let found = process::output(&mut self.command(&["image", "inspect", "--format", field, image]))?;
        Ok(found.trim().to_owned())
    }

    /// Runs the image's own program as a pod of the chart would be: no network is needed, nothing may be gained, the root cannot be written.
    pub(super) fn run(&self, image: &str, mounts: &[String], arguments: &[&str]) -> Result<String> {
        let mut command = self.container();
        for mount in mounts {
            command.args(["--volume", mount]);
        }
        process::output(command.arg(image).args(arguments)).with_context(|| image.to_owned())
    }

    /// Runs another program of the image.
    pub(super) fn program(&self, image: &str, program: &str, arguments: &[&str]) -> Result<String> {
        let mut command = self.container();
        process::output(command.args(["--entrypoint", program, image]).args(arguments))
    }

    fn container(&self) -> Command {
        let mut command = self.command(&["run", "--rm", "--read-only", "--read-only-tmpfs=false"]);
        command.args([
            "--network",
            "none",
            "--cap-drop",
            "all",
            "--security-opt",
            "no-new-privileges",
        ]);
        // Podman's own are more than a machine may let its root have.
        command.args(["--ulimit", "nofile=1024", "--ulimit", "nproc=4096"]);
        command.arg("--env").arg(format!("LD_LIBRARY_PATH={DRIVER}"));
        command
    }
}
