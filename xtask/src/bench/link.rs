//! A link of a real network's speed: the loopback interface of a network namespace, slowed down.

use std::process::Command;

use anyhow::Result;

use crate::process::{self, found, is_root};

/// A namespace whose processes reach each other at `GBITS` gigabits per second. Ends when dropped.
pub struct Link {
    namespace: String,
}

impl Link {
    /// Of a cluster's usual network.
    pub const GBITS: u32 = 10;

    /// None where this machine or user cannot have one.
    ///
    /// # Errors
    /// When it cannot be made though it should.
    pub fn make() -> Result<Option<Self>> {
        if !(cfg!(target_os = "linux") && is_root() && found("ip") && found("tc")) {
            return Ok(None);
        }
        let link = Self {
            namespace: format!("ds4-bench-{}", std::process::id()),
        };
        process::output(Command::new("ip").args(["netns", "add", &link.namespace]))?;
        link.run(&["ip", "link", "set", "lo", "up"])?;
        let rate = format!("{}gbit", Self::GBITS);
        // A burst of a few segments: less slows the stream below the rate, more lets a short one through unslowed.
        let shape = ["tc", "qdisc", "add", "dev", "lo", "root", "tbf", "rate", &rate];
        link.run(&[&shape[..], &["burst", "4mb", "latency", "20ms"]].concat())?;
        Ok(Some(link))
    }

    /// What runs a program there.
    #[must_use]
    pub fn prefix(&self) -> [&str; 4] {
        ["ip", "netns", "exec", &self.namespace]
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let [ip, rest @ ..] = self.prefix();
        process::output(Command::new(ip).args(rest).args(words)).map(drop)
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Left behind, it is empty and in nobody's way.
        let _ = process::output(Command::new("ip").args(["netns", "delete", &self.namespace]));
    }
}
