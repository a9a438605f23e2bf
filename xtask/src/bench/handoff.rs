//! `cargo xtask bench handoff`: what a handoff moves, how fast, and what it leaves to wait for.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Deserialize;

use super::link::Link;
use super::pods::{Pods, model, setting, write};
use super::report::{Check, Figure, Report, Samples, Unit};
use crate::repository;

/// Upstream's handoff of the same layers and tokens.
const UPSTREAM: f64 = 112_289_000.0;
/// Tokens of a chunk that holds the whole prompt of a throughput: its rows are all there before the first is sent.
const WHOLE: usize = 1 << 16;

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Part {
    /// Throughput beside a raw stream, and memory.
    Clear,
    /// The same over a slower link, where this machine can make one.
    Link,
    /// The same with certificates on both ends.
    Mtls,
    /// One conversation: bytes, the tail, decode afterwards, a client that leaves.
    Talk,
}

/// Options.
#[derive(Args)]
pub struct Handoff {
    /// Rounds of every figure that varies.
    #[arg(long, default_value_t = 5, value_name = "N")]
    rounds: usize,
    /// Tokens of the prompt.
    #[arg(long, default_value_t = 15_316, value_name = "N")]
    tokens: usize,
    /// Only these parts.
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Where the report goes too, as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Conversation {
    wire_bytes: f64,
    row_bytes: f64,
    follow_up_wire_bytes: f64,
    tail_bytes: f64,
    tail_ms: f64,
    shown_tail_ms: f64,
    decode: Decode,
    cancel_ms: Vec<f64>,
}

#[derive(Deserialize)]
struct Decode {
    handed: Vec<f64>,
    local: Vec<f64>,
    kv_bytes: f64,
    control_bytes: f64,
    seconds: f64,
}

#[derive(Deserialize)]
struct Throughput {
    bytes_per_second: Vec<f64>,
    raw_bytes_per_second: Vec<f64>,
    bytes_above_kv: Vec<f64>,
    kept_bytes_per_second: Vec<f64>,
    frame_bytes: f64,
    streams: f64,
}

/// Throughput as far as it was measured, with rows that the stage makes meanwhile, chunk by chunk, and with rows that are `there`.
struct Flows {
    clear: Option<Throughput>,
    there: Option<Throughput>,
    slowed: Option<Throughput>,
    encrypted: Option<Throughput>,
    encrypted_there: Option<Throughput>,
}

impl Handoff {
    /// Measures, prints the report and writes it.
    ///
    /// # Errors
    /// When something cannot be built or run.
    pub fn run(self) -> Result<()> {
        let mut report = Report {
            title: "Handoff at Flash's KV layout, layers 0 to 21 of 43".into(),
            setting: setting(),
            ..Report::default()
        };
        let pods = Pods::build()?;
        let model = model("flash-narrow.gguf")?;
        let common = [("model", model), ("rounds", self.rounds.to_string())];
        let with = |more: &[(&'static str, String)]| [&common[..], more].concat();
        let rows = |part, link: Option<&Link>, more: &[(&'static str, String)]| {
            let arguments = [&with(&[("made", "yes".into())])[..], more].concat();
            let measure = || pods.measure_over::<Throughput>(link, "throughput", &arguments);
            self.wants(part).then(measure).transpose()
        };
        let whole = ("chunk", WHOLE.to_string());
        let clear = rows(Part::Clear, None, &[])?;
        let there = rows(Part::Clear, None, std::slice::from_ref(&whole))?;
        let link = self.wants(Part::Link).then(Link::make).transpose()?.flatten();
        let slowed = link.as_ref().map(|link| rows(Part::Link, Some(link), &[]));
        let certificates = repository::cache().join("bench/certificates");
        let tls = ("tls", certificates.to_string_lossy().into_owned());
        let flows = Flows {
            clear,
            there,
            slowed: slowed.transpose()?.flatten(),
            encrypted: rows(Part::Mtls, None, std::slice::from_ref(&tls))?,
            encrypted_there: rows(Part::Mtls, None, &[tls, whole])?,
        };
        if self.wants(Part::Talk) {
            let tokens = ("tokens", self.tokens.to_string());
            let talk: Conversation = pods.measure("handoff", &with(&[tokens]))?;
            report.figures = vec![decode(&talk.decode)];
            report.checks = talk.checks();
            report.notes = talk.notes();
        }
        report.checks.extend(flows.checks());
        report.notes.extend(flows.notes());
        write("handoff", &report, self.json.as_deref())
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

fn median(samples: &[f64]) -> f64 {
    Samples(samples.to_vec()).median().unwrap_or(f64::NAN)
}

fn decode(decode: &Decode) -> Figure {
    Figure {
        ours: Samples(decode.handed.clone()),
        theirs: Samples(decode.local.clone()),
        goal: Some(0.99),
        ..Figure::new(
            "decode after a handoff, beside a local session",
            Unit::TokensPerSecond,
        )
    }
}

fn most(name: &str, found: f64, limit: f64) -> Check {
    Check {
        name: name.into(),
        found,
        limit,
        at_least: false,
    }
}

impl Conversation {
    fn checks(&self) -> Vec<Check> {
        vec![
            most("MB handed off, on the wire", self.wire_bytes / 1e6, 34.0),
            most(
                "MB for the next turn of 24 tokens",
                self.follow_up_wire_bytes / 1e6,
                6.0,
            ),
            most("MB after the last chunk", self.tail_bytes / 1e6, 3.0),
            most(
                "ms from the last chunk to the stage's last frame",
                self.tail_ms,
                20.0,
            ),
            most(
                "ms that a request waits for rows after its last chunk",
                self.shown_tail_ms,
                20.0,
            ),
            most("bytes of KV connections during decode", self.decode.kv_bytes, 0.0),
            most(
                "ms from a client's leaving to an idle stage",
                median(&self.cancel_ms),
                200.0,
            ),
        ]
    }

    fn notes(&self) -> Vec<String> {
        vec![
            format!(
                "Upstream moves {:.1} MB for the same layers and tokens: {:.2} times as much. Of our bytes on the wire {:.1} % are not rows.",
                UPSTREAM / 1e6,
                UPSTREAM / self.wire_bytes,
                100.0 * (self.wire_bytes / self.row_bytes - 1.0)
            ),
            format!(
                "During {:.1} s of decode {} bytes passed on the connection for calls: renewals of leases, and what keeps a connection alive.",
                self.decode.seconds, self.decode.control_bytes
            ),
        ]
    }
}

impl Flows {
    fn named(&self) -> impl Iterator<Item = (String, &Throughput, f64)> {
        let link = format!("in the clear, on a link of {} Gbit/s", Link::GBITS);
        let flows = [
            ("in the clear".into(), &self.clear, 0.8),
            ("in the clear, of rows that are there".into(), &self.there, 0.8),
            (link, &self.slowed, 0.8),
            (
                "with mTLS, of a raw stream with mTLS".into(),
                &self.encrypted,
                0.5,
            ),
            (
                "with mTLS likewise, of rows that are there".into(),
                &self.encrypted_there,
                0.5,
            ),
        ];
        let measured = |(name, flow, goal)| Some((name, Option::as_ref(flow)?, goal));
        flows.into_iter().filter_map(measured)
    }

    fn checks(&self) -> Vec<Check> {
        let shares = self.named().map(|(name, flow, goal)| flow.share(&name, goal));
        let mut checks: Vec<_> = shares.collect();
        if let (Some(encrypted), Some(clear)) = (&self.encrypted, &self.clear) {
            checks.push(encrypted.share_of(clear, "with mTLS, of a raw stream in the clear"));
        }
        checks.extend(self.clear.as_ref().map(Throughput::memory));
        checks
    }

    fn notes(&self) -> Vec<String> {
        let medians = self.named().map(|(name, flow, _)| flow.note(&name));
        medians
            .chain(self.clear.as_ref().map(Throughput::bound))
            .collect()
    }
}

impl Throughput {
    fn note(&self, name: &str) -> String {
        let (ours, raw) = (median(&self.bytes_per_second), median(&self.raw_bytes_per_second));
        format!(
            "Medians {name}: {:.0} MB/s of rows that a model of no cost makes, raw {:.0} MB/s.",
            ours / 1e6,
            raw / 1e6
        )
    }

    /// What the receiver's core allows where nothing but it bounds the raw stream: it must check every byte and keep it, too.
    fn bound(&self) -> String {
        let (kept, raw) = (
            median(&self.kept_bytes_per_second),
            median(&self.raw_bytes_per_second),
        );
        format!(
            "One core checks rows and keeps them at {:.0} MB/s; one that reads as fast as the raw stream besides comes to {:.2} of it.",
            kept / 1e6,
            kept / (kept + raw)
        )
    }

    fn share(&self, name: &str, limit: f64) -> Check {
        // Pair by pair: both of a pair had the same machine.
        let pairs = self.bytes_per_second.iter().zip(&self.raw_bytes_per_second);
        let shares: Vec<_> = pairs.map(|(ours, raw)| ours / raw).collect();
        Check {
            name: format!("handoff's share of a raw TCP stream, {name}"),
            found: median(&shares),
            limit,
            at_least: true,
        }
    }

    fn share_of(&self, clear: &Self, name: &str) -> Check {
        Check {
            name: format!("handoff's share of a raw TCP stream, {name}"),
            found: median(&self.bytes_per_second) / median(&clear.raw_bytes_per_second),
            limit: 0.5,
            at_least: true,
        }
    }

    /// Frames' bytes that the receiver may hold beyond the rows.
    fn memory(&self) -> Check {
        let frames = self.frame_bytes * self.streams;
        most(
            "receiver's memory above the KV, in frames of all streams",
            median(&self.bytes_above_kv) / frames,
            2.0,
        )
    }
}
