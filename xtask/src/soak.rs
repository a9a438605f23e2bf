//! `cargo xtask soak`: many streams at once over stages that are killed, stopped and restarted. Every token and its probability is compared
//! with what one session alone gave; only announced errors may be told; memory stays flat; streams fare alike.

mod faults;
mod stream;
mod verdict;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Args;

use self::stream::{Prompts, Reference, Tally};
use crate::progress::step;
use crate::repository;
use crate::serving::Server;

/// What `cargo xtask soak` is given.
#[derive(Clone, Debug, Args)]
pub struct Soak {
    /// How long the streams run.
    #[arg(long, default_value_t = 600, value_name = "N")]
    seconds: u64,
    /// Streams at once.
    #[arg(long, default_value_t = 64, value_name = "N")]
    streams: usize,
    /// Different prompts.
    #[arg(long, default_value_t = 160, value_name = "N")]
    prompts: usize,
    /// Faults and prompts follow from it.
    #[arg(long, default_value_t = 1, value_name = "N")]
    seed: u64,
}

impl Soak {
    /// The whole run; what was started ends with it.
    ///
    /// # Errors
    /// With everything that was not as it must be.
    pub fn run(&self) -> Result<()> {
        let folder = repository::cache().join("soak");
        std::fs::create_dir_all(&folder)?;
        let prompts = Prompts::new(self.prompts, self.seed);
        let reference = Arc::new(step("one session alone answers every prompt", || {
            let alone = Server::alone(&folder, None, &["--sessions", "1", "--kept-budget", "1"])?;
            Reference::of(&alone.url, &prompts)
        })?);
        let mut server = step("two stages and an output pod start", || {
            let streams = self.streams.to_string();
            // Sessions go soon after their last turn: most prompts are computed, some are found.
            let kept = ["--kept-budget", "2MiB"];
            let route = [
                "--policy",
                "always",
                "--prefill-chunk",
                "64",
                "--handoff-timeout",
                "3s",
            ];
            Server::over_stages(
                &folder,
                None,
                &[&["--sessions", &streams][..], &kept, &route].concat(),
            )
        })?;
        let title = format!("{} streams for {} s", self.streams, self.seconds);
        let (tallies, faults, memory) = step(&title, || self.load(&mut server, &reference))?;
        let verdict = verdict::Verdict::new(self, &tallies, &faults, &memory);
        crate::ask::print(&verdict.to_string())?;
        verdict.check()
    }

    fn load(
        &self,
        server: &mut Server,
        reference: &Arc<Reference>,
    ) -> Result<(Vec<Tally>, Vec<String>, Vec<verdict::Sample>)> {
        let stop = Arc::new(AtomicBool::new(false));
        let streams: Vec<_> = (0..self.streams)
            .map(|number| {
                let (url, reference, stop) = (server.url.clone(), Arc::clone(reference), Arc::clone(&stop));
                std::thread::spawn(move || stream::run(&url, number, &reference, &stop))
            })
            .collect();
        let began = Instant::now();
        let mut faults = faults::Faults::new(self.seed);
        let mut memory = Vec::new();
        while began.elapsed() < Duration::from_secs(self.seconds) {
            memory.push(verdict::Sample::take(began, server.output())?);
            faults.strike(server)?;
            std::thread::sleep(Duration::from_millis(500));
        }
        stop.store(true, Ordering::Relaxed);
        faults.heal(server)?;
        let tallies = streams
            .into_iter()
            .map(|stream| stream.join().unwrap_or_else(|_| Tally::panicked()))
            .collect();
        Ok((tallies, faults.done, memory))
    }
}
