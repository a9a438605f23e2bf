//! What happens to the stages.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::serving::Server;

/// Between the end of one fault and the next: time for requests that go well.
const QUIET: Duration = Duration::from_millis(2500);

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Without a word, and back after a while.
    Kill,
    /// As a pod that is asked to leave.
    Terminate,
    /// It hangs, shorter or longer than the route waits, and goes on.
    Stop,
}

/// One fault after the other, by a seed.
pub(super) struct Faults {
    state: u64,
    next: Instant,
    standing: Option<(Kind, usize, Instant)>,
    /// What was done.
    pub(super) done: Vec<String>,
}

impl Faults {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            state: seed,
            next: Instant::now() + QUIET,
            standing: None,
            done: Vec::new(),
        }
    }

    fn random(&mut self, below: usize) -> usize {
        // Knuth's MMIX generator; the high bits are the good ones.
        self.state = self
            .state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.state >> 33) as usize % below
    }

    /// Begins or ends a fault when it is time.
    pub(super) fn strike(&mut self, server: &mut Server) -> Result<()> {
        let now = Instant::now();
        if self.standing.is_some_and(|(.., until)| until <= now) {
            return self.heal(server);
        }
        if self.standing.is_some() || now < self.next {
            return Ok(());
        }
        let kind = [Kind::Kill, Kind::Terminate, Kind::Stop][self.random(3)];
        let stage = self.random(server.count());
        let lasts = Duration::from_millis(500 + 1000 * self.random(5) as u64);
        let signal_sent = match kind {
            Kind::Kill => Signal::KILL,
            Kind::Terminate => Signal::TERM,
            Kind::Stop => Signal::STOP,
        };
        signal(server, stage, signal_sent)?;
        self.standing = Some((kind, stage, now + lasts));
        self.done.push(format!("{kind:?} stage {stage} for {lasts:?}"));
        Ok(())
    }

    /// Ends the fault that stands.
    pub(super) fn heal(&mut self, server: &mut Server) -> Result<()> {
        let Some((kind, stage, _)) = self.standing.take() else {
            return Ok(());
        };
        match kind {
            Kind::Stop => signal(server, stage, Signal::CONT)?,
            Kind::Kill | Kind::Terminate => {
                server.stage(stage).end(Duration::from_secs(2));
                server.restart(stage)?;
            }
        }
        self.next = Instant::now() + QUIET;
        Ok(())
    }
}

fn signal(server: &Server, stage: usize, signal: Signal) -> Result<()> {
    let process = server.stage(stage);
    process.check()?;
    let pid = Pid::from_raw(process.pid).context("a process id")?;
    kill_process(pid, signal).with_context(|| format!("signal to {}", process.name))
}
