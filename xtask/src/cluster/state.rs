//! What is remembered of a cluster between two commands, in `state.json` of its folder.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::process::Started;

/// What a cluster is made with.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// Containers of a running Docker.
    Kind,
    /// Linux namespaces, as root.
    Namespaces,
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kind => "kind",
            Self::Namespaces => "namespaces",
        })
    }
}

/// A Service made reachable from this machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Forward {
    /// `127.0.0.1:PORT`.
    pub address: String,
    /// What carries the bytes.
    pub processes: Vec<Started>,
}

impl Forward {
    /// Ends what carries the bytes.
    pub fn end(&self) {
        for process in &self.processes {
            process.end(Duration::from_secs(1));
        }
    }
}

/// A cluster between two commands.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    /// How it was made.
    pub provider: Provider,
    /// Nodes.
    pub nodes: usize,
    /// Every process that `up` started, in that order.
    pub processes: Vec<Started>,
    /// By `namespace/service:port`.
    pub forwards: BTreeMap<String, Forward>,
}

impl State {
    /// Nothing started yet.
    #[must_use]
    pub fn new(provider: Provider, nodes: usize) -> Self {
        Self {
            provider,
            nodes,
            processes: Vec::new(),
            forwards: BTreeMap::new(),
        }
    }

    /// The state in `folder`, or `None` when no cluster was left there.
    ///
    /// # Errors
    /// When the file is not one of these.
    pub fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join("state.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = std::fs::read(&path).with_context(|| format!("reading {}", path.display()))?;
        let state =
            serde_json::from_slice(&text).with_context(|| format!("{} is not a state", path.display()))?;
        Ok(Some(state))
    }

    /// Writes it, whole or not at all.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        std::fs::create_dir_all(folder)?;
        let unfinished = folder.join("state.json.unfinished");
        std::fs::write(&unfinished, serde_json::to_vec_pretty(self)?)?;
        std::fs::rename(&unfinished, folder.join("state.json")).context("writing the cluster's state")
    }

    /// Forgets the cluster in `folder`.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn remove(folder: &Path) -> Result<()> {
        let path = folder.join("state.json");
        if path.exists() {
            std::fs::remove_file(&path)?;
        }
        Ok(())
    }
}
