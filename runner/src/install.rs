//! `ds4-runner install`, `status`, `uninstall`: the runner as a service of launchd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use jiff::Timestamp;

use crate::agent::end;
use crate::config::{Config, PLACE};
use crate::credentials::{Pair, Purpose};
use crate::facts::{Container, State};
use crate::files;
use crate::folder::Folder;
use crate::invitation::Invitation;
use crate::run::Run;

/// The service's name.
const LABEL: &str = "dev.ds4.runner";
/// Where launchd looks for services of the system.
const PLIST: &str = "/Library/LaunchDaemons/dev.ds4.runner.plist";
/// What the service says.
const LOG: &str = "/var/log/ds4-runner.log";

/// What launchd is told.
pub(crate) fn plist(program: &Path, config: &Path) -> String {
    let [program, config] = [program, config].map(|path| escaped(&path.display().to_string()));
    format!(
        r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
  <key>Label</key><string>{LABEL}</string>
  <key>ProgramArguments</key>
  <array><string>{program}</string><string>run</string><string>--config</string><string>{config}</string></array>
  <key>RunAtLoad</key><true/>
  <key>KeepAlive</key><true/>
  <!-- Engines outlive the runner: a new one takes them over. -->
  <key>AbandonProcessGroup</key><true/>
  <key>ProcessType</key><string>Interactive</string>
  <key>StandardErrorPath</key><string>{LOG}</string>
  <key>SoftResourceLimits</key><dict><key>NumberOfFiles</key><integer>65536</integer></dict>
  <key>HardResourceLimits</key><dict><key>NumberOfFiles</key><integer>65536</integer></dict>
</dict>
</plist>
"#
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

/// Checks everything, puts the files in their places, and starts the service.
///
/// # Errors
/// When a file is wrong, or this is no Mac.
pub(crate) fn install(config: &Path, invitation: &Path) -> Result<String> {
    let checked = Config::read(config)?;
    Invitation::read(invitation, &checked.node)?;
    for engine in &checked.engines {
        engine.verify()?;
    }
    ensure!(
        cfg!(target_os = "macos"),
        "this is {}: the service is launchd's; here start `ds4-runner run`",
        std::env::consts::OS
    );
    files::save(&checked.invitation, &std::fs::read(invitation)?)?;
    let place = PathBuf::from(PLACE);
    if config != place {
        files::save(&place, &std::fs::read(config)?)?;
    }
    let program = std::env::current_exe()?;
    std::fs::write(PLIST, plist(&program, &place)).with_context(|| PLIST.to_owned())?;
    launchctl(&["bootstrap", "system", PLIST])?;
    Ok(format!(
        "node {} asks for its place; on a machine with an administrator's kubeconfig: ds4-runner approve {}\nlog: {LOG}",
        checked.node, checked.node
    ))
}

/// Stops the service and every engine, and takes the files away.
///
/// # Errors
/// When something stays.
pub(crate) fn uninstall(config: &Path) -> Result<String> {
    let config = Config::read(config)?;
    if Path::new(PLIST).exists() {
        launchctl(&["bootout", &format!("system/{LABEL}")])?;
        std::fs::remove_file(PLIST)?;
    }
    let folders = Folder::all(&config)?;
    for (folder, _) in &folders {
        end(folder);
    }
    if config.root.exists() {
        std::fs::remove_dir_all(&config.root).with_context(|| config.root.display().to_string())?;
    }
    Ok(format!(
        "{} pods ended, {} removed; what is left: kubectl delete node {}",
        folders.len(),
        config.root.display(),
        config.node
    ))
}

fn launchctl(arguments: &[&str]) -> Result<()> {
    let output = Command::new("launchctl")
        .args(arguments)
        .output()
        .context("launchctl")?;
    if !output.status.success() {
        bail!(
            "launchctl {}: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(())
}

/// What runs here, from the runner's own files: also when neither it nor the API server answers.
///
/// # Errors
/// When they cannot be read.
pub(crate) fn status(config: &Path) -> Result<String> {
    let config = Config::read(config)?;
    let mut text = format!(
        "node {} at {}, port {}\n",
        config.node, config.address, config.port
    );
    for purpose in [Purpose::Client, Purpose::Serving] {
        let kept = Pair::kept(&config, purpose, Timestamp::now()).and_then(|pair| pair.renewal().ok());
        text += &match kept {
            Some(renewal) => format!("certificate {purpose:?}: to be replaced from {renewal}\n"),
            None => format!(
                "certificate {purpose:?}: none; ds4-runner approve {}\n",
                config.node
            ),
        };
    }
    for (folder, owner) in Folder::all(&config)? {
        let Some(facts) = folder.facts()? else { continue };
        text += &format!("pod {}/{}\n", owner.namespace, owner.name);
        for container in facts.init.iter().chain([&facts.main]) {
            text += &line(container, &folder);
        }
        if let Some(overridden) = &facts.overridden {
            text += &format!("  {overridden}\n");
        }
    }
    Ok(text)
}

fn line(container: &Container, folder: &Folder) -> String {
    let state = match &container.state {
        State::Waiting { reason, .. } => reason.clone(),
        State::Ended(end) => format!("ended with {}", end.code),
        State::Running { since } => {
            let run = Run::find(&folder.run(&container.name, container.run))
                .ok()
                .flatten();
            match run.map(|run| run.running.engine) {
                Some(engine) if engine.is_alive() => format!(
                    "process {} since {since:.0}, {}",
                    engine.pid,
                    if container.ready { "ready" } else { "not ready" }
                ),
                _ => "its process is gone; a running runner would start it again".into(),
            }
        }
    };
    format!(
        "  {:8} {state}, {} restarts\n",
        container.name, container.restarts
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launchd_keeps_the_runner_alive_and_leaves_its_engines_alone() {
        let text = plist(
            Path::new("/usr/local/bin/ds4-runner"),
            Path::new("/etc/a & b.yaml"),
        );
        for part in [
            "<key>KeepAlive</key><true/>",
            "<key>AbandonProcessGroup</key><true/>",
            "<string>/usr/local/bin/ds4-runner</string><string>run</string><string>--config</string><string>/etc/a &amp; b.yaml</string>",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let opened = text.matches("<dict>").count();
        assert_eq!(opened, text.matches("</dict>").count());
    }
}
