//! What was measured, as a table or as JSON.

use std::fmt;
use std::time::Duration;

use ds4_kernels_cpu::Roofline;
use ds4_kernels_cpu::matmuls::Speed;
use ds4_model::SliceInfo;
use serde_json::{Value, json};

use super::session::{Chunk, Guessed};
use super::work::Work;
use crate::sizes::human;

/// What a row measures.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Test {
    /// A prompt from nothing.
    Prefill,
    /// A prompt that extends a session, on the way to the depth of a decode.
    Fill,
    /// Tokens one after another.
    Decode,
    /// The same with a draft head's guesses.
    Draft,
}

impl Test {
    const fn name(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Fill => "fill",
            Self::Decode => "decode",
            Self::Draft => "draft",
        }
    }
}

/// One measurement.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    pub(crate) test: Test,
    /// Tokens in the session before it.
    pub(crate) depth: usize,
    /// Sessions at once.
    pub(crate) batch: usize,
    /// Tokens of all sessions.
    pub(crate) tokens: usize,
    pub(crate) took: Duration,
    /// Pieces of a prefill.
    pub(crate) chunks: Vec<Chunk>,
    /// Guesses, and those that were right.
    pub(crate) guesses: Option<(usize, usize)>,
}

impl Row {
    pub(crate) fn prefill(chunks: Vec<Chunk>) -> Self {
        Self {
            test: Test::Prefill,
            depth: chunks.first().map_or(0, |chunk| chunk.depth),
            batch: 1,
            tokens: chunks.iter().map(|chunk| chunk.tokens).sum(),
            took: chunks.iter().map(|chunk| chunk.took).sum(),
            chunks,
            guesses: None,
        }
    }

    pub(crate) fn decode(depth: usize, batch: usize, steps: &[Duration]) -> Self {
        Self {
            test: Test::Decode,
            depth,
            batch,
            tokens: steps.len() * batch,
            took: steps.iter().sum(),
            chunks: Vec::new(),
            guesses: None,
        }
    }

    pub(crate) const fn guessed(depth: usize, guessed: Guessed) -> Self {
        Self {
            test: Test::Draft,
            depth,
            batch: 1,
            tokens: guessed.tokens,
            took: guessed.took,
            chunks: Vec::new(),
            guesses: Some((guessed.tried, guessed.right)),
        }
    }

    #[allow(clippy::cast_precision_loss)] // a count of tokens
    fn rate(&self) -> f64 {
        self.tokens as f64 / self.took.as_secs_f64().max(1e-9)
    }

    fn json(&self) -> Value {
        let chunk = |chunk: &Chunk| json!({"depth": chunk.depth, "tokens": chunk.tokens, "seconds": chunk.took.as_secs_f64()});
        json!({
            "test": self.test.name(), "depth": self.depth, "batch": self.batch, "tokens": self.tokens,
            "seconds": self.took.as_secs_f64(), "tokens_per_second": self.rate(),
            "chunks": self.chunks.iter().map(chunk).collect::<Vec<_>>(),
            "draft_tokens": self.guesses.map(|(tried, _)| tried), "draft_tokens_accepted": self.guesses.map(|(_, right)| right),
        })
    }
}

/// Everything that a run of `ds4 bench` found.
pub(crate) struct Report<'a> {
    pub(crate) info: &'a SliceInfo,
    pub(crate) chunk: usize,
    pub(crate) load: Duration,
    pub(crate) peak: Option<u64>,
    pub(crate) work: Work,
    pub(crate) roofline: Option<Roofline>,
    /// The products alone, in the model's mix of formats.
    pub(crate) matmuls: Option<Speed>,
    pub(crate) rows: Vec<Row>,
}

impl Report<'_> {
    pub(crate) fn json(&self) -> Value {
        let roofline = self.roofline.map(|line| {
            json!({"threads": line.threads, "read_bytes_per_second": line.read, "copy_bytes_per_second": line.copy,
                   "int8_operations_per_second": line.int8, "int8_with": line.int8_with,
                   "int8_operations_per_second_of_tiles": line.tiles})
        });
        let work = json!({
            "dense_bytes": self.work.dense_bytes, "expert_bytes": self.work.expert_bytes, "experts_used": self.work.used,
            "int8_operations": self.work.int8, "f32_operations": self.work.f32, "head_int8_operations": self.work.head_int8,
        });
        json!({
            "model": self.info.config.name, "backend": self.info.backend, "numerics": self.info.numerics.to_string(), "chunk": self.chunk,
            "load_seconds": self.load.as_secs_f64(), "weight_bytes": self.info.weight_bytes, "peak_bytes": self.peak,
            "kv_bytes": self.kv_bytes(), "work_per_token": work, "roofline": roofline,
            "matmul_operations_per_second": self.matmuls.map(|speed| speed.operations_per_second),
            "matmul_share_of_int8_peak": self.matmuls.map(|speed| speed.share),
            "results": self.rows.iter().map(Row::json).collect::<Vec<_>>(),
        })
    }

    /// Bytes of KV of the longest measurement.
    fn kv_bytes(&self) -> u64 {
        let layers = || 0..self.info.config.n_layer;
        let end = |row: &Row| {
            self.info
                .layout
                .bytes(layers(), (row.depth + row.tokens / row.batch) as u64)
                * row.batch as u64
        };
        self.rows.iter().map(end).max().unwrap_or(0)
    }

    /// The share of the machine's peak that a row reached.
    fn share(&self, row: &Row) -> Option<(f64, &'static str)> {
        let line = self.roofline?;
        #[allow(clippy::cast_precision_loss)] // a batch of sessions
        let steps = row.rate() / row.batch as f64;
        Some(match row.test {
            Test::Decode => (
                steps * self.work.bytes(row.batch) / line.read,
                "of read bandwidth",
            ),
            // The rows of a token and a guess share weights in part; what they touch is not known.
            Test::Draft => return None,
            Test::Prefill | Test::Fill => (row.rate() * self.work.int8 / line.int8, "of int8 vector peak"),
        })
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let info = self.info;
        writeln!(
            f,
            "{}: {} of weights, {}, {} numerics",
            info.config.name,
            human(info.weight_bytes),
            info.backend,
            info.numerics
        )?;
        writeln!(f, "loaded in {:.2} s", self.load.as_secs_f64())?;
        if let Some(line) = self.roofline {
            write!(
                f,
                "this machine: reads {:.1} GB/s, copies {:.1} GB/s, int8 {:.0} GOP/s ({})",
                line.read / 1e9,
                line.copy / 1e9,
                line.int8 / 1e9,
                line.int8_with
            )?;
            match line.tiles {
                Some(tiles) => writeln!(f, ", {:.0} GOP/s (AMX tiles)", tiles / 1e9)?,
                None => writeln!(f)?,
            }
        }
        if let Some(speed) = self.matmuls {
            writeln!(
                f,
                "its products of 512 tokens: {:.0} GOP/s, {:.0} % of int8 vector peak",
                speed.operations_per_second / 1e9,
                100.0 * speed.share
            )?;
        }
        writeln!(f, "\n  test       depth  batch  tokens    seconds  tokens/s")?;
        for row in &self.rows {
            let (seconds, rate) = (row.took.as_secs_f64(), row.rate());
            write!(
                f,
                "  {:<8} {:>7}  {:>5}  {:>6}  {seconds:>9.3}  {rate:>8.1}",
                row.test.name(),
                row.depth,
                row.batch,
                row.tokens
            )?;
            if let Some((share, of)) = self.share(row) {
                write!(f, "   {:.0} % {of}", share * 100.0)?;
            }
            if let Some((tried, right)) = row.guesses {
                write!(f, "   {right} of {tried} guesses right")?;
            }
            writeln!(f)?;
        }
        match self.peak {
            Some(peak) => writeln!(f, "\npeak memory {} (KV {})", human(peak), human(self.kv_bytes())),
            None => Ok(()),
        }
    }
}
