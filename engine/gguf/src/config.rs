//! The metadata of a DeepSeek V4 file as typed shapes. Every shape comes from the file; nothing is fixed to one model of the family.

use crate::{Gguf, GgufError, Metadata};

/// `general.architecture` of the family.
const ARCHITECTURE: &str = "deepseek4";
/// Bound on every count in the config, so that products of two of them stay far from overflow. Flash's largest is its vocabulary, 129,280.
const MOST: u64 = 1 << 24;
/// Bound on the layer count; the family's largest model has 61.
const MOST_LAYERS: u64 = 1024;
/// The compression ratios that the graph knows: none, 4 with an indexer, 128.
const RATIOS: [u64; 3] = [0, 4, 128];

/// The indexer of ratio-4 layers, which selects compressed rows.
#[derive(Clone, Debug, PartialEq)]
pub struct IndexerConfig {
    /// Query heads.
    pub heads: usize,
    /// Width of a head and of a row.
    pub dim: usize,
    /// Rows kept per query.
    pub top_k: usize,
}

/// The residual streams (hyper-connections).
#[derive(Clone, Debug, PartialEq)]
pub struct HyperConfig {
    /// Residual streams.
    pub streams: usize,
    /// Rounds of row and column normalisation.
    pub sinkhorn_iterations: usize,
    /// Added before each division.
    pub eps: f32,
}

/// Rotary positions: plain on uncompressed layers, `YaRN` on the others.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of layers without compression.
    pub base: f32,
    /// Base of layers with compression.
    pub compress_base: f32,
    /// `YaRN` scaling factor.
    pub factor: f32,
    /// `YaRN` correction of fast dimensions.
    pub beta_fast: f32,
    /// `YaRN` correction of slow dimensions.
    pub beta_slow: f32,
    /// Context length before scaling.
    pub original_context: usize,
}

/// Shapes and constants of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// `general.name`, or the architecture when absent.
    pub name: String,
    /// Layers.
    pub n_layer: usize,
    /// Width of one residual stream.
    pub n_embd: usize,
    /// Vocabulary.
    pub n_vocab: usize,
    /// Query heads; there is one shared key/value head.
    pub n_head: usize,
    /// Width of a head and of a KV row.
    pub head_dim: usize,
    /// Rotated dimensions, the last ones of a head.
    pub n_rot: usize,
    /// Rank of the query projection.
    pub q_lora: usize,
    /// Rank of each output group.
    pub o_lora: usize,
    /// Output groups.
    pub o_groups: usize,
    /// Routed experts.
    pub n_expert: usize,
    /// Experts per token.
    pub n_used: usize,
    /// Hidden width of an expert.
    pub n_ff: usize,
    /// First layers that route by token id.
    pub n_hash: usize,
    /// Sliding window in tokens, the current one included.
    pub window: usize,
    /// Indexer of ratio-4 layers.
    pub indexer: IndexerConfig,
    /// Residual streams.
    pub hc: HyperConfig,
    /// Compression ratio of each layer: 0, 4 or 128.
    pub ratios: Vec<u32>,
    /// `SwiGLU` clamp of each layer.
    pub clamp: Vec<f32>,
    /// Epsilon of the RMS norms.
    pub rms_eps: f32,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Factor on the routed experts' normalised weights.
    pub expert_scale: f32,
    /// Longest context the file claims, in tokens.
    pub context_length: usize,
}

impl ModelConfig {
    /// Reads and checks the keys of `deepseek4.*`.
    ///
    /// # Errors
    /// Names the key, what was expected and what was found.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self, GgufError> {
        let metadata = gguf.metadata();
        let found = metadata.string("general.architecture")?;
        if found != ARCHITECTURE {
            return Err(GgufError::unexpected("general.architecture", ARCHITECTURE, found));
        }
        let keys = Keys(metadata);
        let n_layer = keys.layers(gguf)?;
        let config = Self {
            name: metadata.string("general.name").unwrap_or(ARCHITECTURE).to_owned(),
            n_layer,
            n_embd: keys.positive("embedding_length")?,
            n_vocab: keys.positive("vocab_size")?,
            n_head: keys.positive("attention.head_count")?,
            head_dim: keys.positive("attention.key_length")?,
            n_rot: keys.positive("rope.dimension_count")?,
            q_lora: keys.positive("attention.q_lora_rank")?,
            o_lora: keys.positive("attention.output_lora_rank")?,
            o_groups: keys.positive("attention.output_group_count")?,
            n_expert: keys.positive("expert_count")?,
            n_used: keys.positive("expert_used_count")?,
            n_ff: keys.positive("expert_feed_forward_length")?,
            n_hash: keys.count("hash_layer_count", 0, MOST_LAYERS)?,
            window: keys.positive("attention.sliding_window")?,
            indexer: keys.indexer()?,
            hc: keys.hyper()?,
            ratios: keys.ratios(n_layer)?,
            clamp: keys.clamp(n_layer)?,
            rms_eps: keys.float_above_zero("attention.layer_norm_rms_epsilon")?,
            rope: keys.rope()?,
            expert_scale: keys.float_above_zero("expert_weights_scale")?,
            context_length: keys.optional("context_length", 65_536)?,
        };
        keys.fixed_choices(&config)?;
        keys.relations(&config)?;
        Ok(config)
    }

    /// The draft head's layer as a model of that layer alone: no compression, routed by score, and the rest as in the model's last layer.
    #[must_use]
    pub fn draft(&self) -> Self {
        Self {
            n_layer: 1,
            n_hash: 0,
            ratios: vec![0],
            clamp: self.clamp.last().copied().into_iter().collect(),
            ..self.clone()
        }
    }

    /// Length of the four residual streams of one token, flattened.
    #[must_use]
    pub const fn hidden_width(&self) -> usize {
        self.n_embd * self.hc.streams
    }

    /// Numbers that a hyper-connection computes per token: one weight per stream in, one out, and a square of them.
    #[must_use]
    pub const fn hc_mix(&self) -> usize {
        (2 + self.hc.streams) * self.hc.streams
    }

    /// Width of what the compressor of `layer` pools (the ratio-4 form overlaps groups, so it is twice as wide); 0 without compression.
    #[must_use]
    pub fn compressor_width(&self, layer: usize) -> usize {
        match self.ratios[layer] {
            0 => 0,
            4 => 2 * self.head_dim,
            _ => self.head_dim,
        }
    }
}

/// Reading with the architecture's prefix.
struct Keys<'a>(&'a Metadata);

impl Keys<'_> {
    fn key(name: &str) -> String {
        format!("{ARCHITECTURE}.{name}")
    }

    fn count(&self, name: &str, least: u64, most: u64) -> Result<usize, GgufError> {
        let key = Self::key(name);
        let found = self.0.integer(&key)?;
        let fits = usize::try_from(found)
            .ok()
            .filter(|_| (least..=most).contains(&found));
        fits.ok_or_else(|| GgufError::unexpected(key, format!("{least} to {most}"), found))
    }

    /// Layers of the model itself. Files of other makers count those that predict further tokens among the blocks, as the last ones.
    fn layers(&self, gguf: &Gguf) -> Result<usize, GgufError> {
        let blocks = self.count("block_count", 1, MOST_LAYERS)?;
        let further = "nextn_predict_layers";
        if self.0.get(&Self::key(further)).is_none() {
            return Ok(blocks);
        }
        let layers = blocks - self.count(further, 0, blocks as u64 - 1)?;
        let there = gguf
            .tensor(&format!("blk.{layers}.nextn.eh_proj.weight"))
            .is_some();
        Ok(if there { layers } else { blocks })
    }

    fn positive(&self, name: &str) -> Result<usize, GgufError> {
        self.count(name, 1, MOST)
    }

    fn optional(&self, name: &str, default: usize) -> Result<usize, GgufError> {
        if self.0.get(&Self::key(name)).is_none() {
            Ok(default)
        } else {
            self.positive(name)
        }
    }

    fn float_above_zero(&self, name: &str) -> Result<f32, GgufError> {
        let key = Self::key(name);
        let found = self.0.float(&key)?;
        if found > 0.0 {
            Ok(found)
        } else {
            Err(GgufError::unexpected(key, "a number above 0", found))
        }
    }

    fn float_or(&self, name: &str, default: f32) -> Result<f32, GgufError> {
        if self.0.get(&Self::key(name)).is_none() {
            Ok(default)
        } else {
            self.float_above_zero(name)
        }
    }

    fn indexer(&self) -> Result<IndexerConfig, GgufError> {
        Ok(IndexerConfig {
            heads: self.positive("attention.indexer.head_count")?,
            dim: self.positive("attention.indexer.key_length")?,
            top_k: self.positive("attention.indexer.top_k")?,
        })
    }

    fn hyper(&self) -> Result<HyperConfig, GgufError> {
        Ok(HyperConfig {
            streams: self.count("hyper_connection.count", 1, 8)?,
            sinkhorn_iterations: self.count("hyper_connection.sinkhorn_iterations", 1, 1000)?,
            eps: self.float_above_zero("hyper_connection.epsilon")?,
        })
    }

    /// The scaling keys may be absent: the family's published values then apply.
    fn rope(&self) -> Result<RopeConfig, GgufError> {
        Ok(RopeConfig {
            base: self.float_above_zero("rope.freq_base")?,
            compress_base: self.float_above_zero("attention.compress_rope_freq_base")?,
            factor: self.float_or("rope.scaling.factor", 16.0)?,
            beta_fast: self.float_or("rope.scaling.yarn_beta_fast", 32.0)?,
            beta_slow: self.float_or("rope.scaling.yarn_beta_slow", 1.0)?,
            original_context: self.optional("rope.scaling.original_context_length", 65_536)?,
        })
    }

    fn ratios(&self, n_layer: usize) -> Result<Vec<u32>, GgufError> {
        let key = Self::key("attention.compress_ratios");
        let found = self.0.integers(&key)?;
        if found.len() < n_layer {
            return Err(GgufError::unexpected(
                key,
                format!("at least {n_layer} entries"),
                found.len(),
            ));
        }
        if let Some(other) = found[..n_layer].iter().find(|ratio| !RATIOS.contains(ratio)) {
            return Err(GgufError::unexpected(key, "entries out of 0, 4 and 128", other));
        }
        #[allow(clippy::cast_possible_truncation)] // at most 128
        Ok(found[..n_layer].iter().map(|ratio| *ratio as u32).collect())
    }

    fn clamp(&self, n_layer: usize) -> Result<Vec<f32>, GgufError> {
        let key = Self::key("swiglu_clamp_exp");
        let mut found = self.0.floats(&key)?;
        if found.len() < n_layer {
            return Err(GgufError::unexpected(
                key,
                format!("at least {n_layer} entries"),
                found.len(),
            ));
        }
        found.truncate(n_layer);
        match found.iter().find(|clamp| **clamp <= 0.0) {
            Some(other) => Err(GgufError::unexpected(key, "entries above 0", other)),
            None => Ok(found),
        }
    }

    /// Choices of the architecture that the graph builds in: another value means another graph.
    fn fixed_choices(&self, config: &ModelConfig) -> Result<(), GgufError> {
        self.equals("attention.head_count_kv", 1, "one shared KV head")?;
        self.equals(
            "attention.value_length",
            config.head_dim as u64,
            "keys and values are one row",
        )?;
        self.equals("expert_shared_count", 1, "one shared expert")?;
        for (name, value) in [
            ("expert_group_count", 0),
            ("expert_group_used_count", 0),
            ("expert_gating_func", 4),
        ] {
            if self.0.get(&Self::key(name)).is_some() {
                self.equals(name, value, "the only routing of this architecture")?;
            }
        }
        let key = Self::key("expert_weights_norm");
        if self.0.bool(&key)? {
            Ok(())
        } else {
            Err(GgufError::unexpected(key, true, false))
        }
    }

    fn equals(&self, name: &str, expected: u64, why: &str) -> Result<(), GgufError> {
        let key = Self::key(name);
        let found = self.0.integer(&key)?;
        if found == expected {
            Ok(())
        } else {
            Err(GgufError::unexpected(key, format!("{expected} ({why})"), found))
        }
    }

    /// What one shape demands of another, so that the graph never divides unevenly.
    fn relations(&self, config: &ModelConfig) -> Result<(), GgufError> {
        let indexed = config.ratios.contains(&4);
        let rules = [
            (
                config.n_rot.is_multiple_of(2),
                "rope.dimension_count",
                "an even number",
                config.n_rot,
            ),
            (
                config.n_rot < config.head_dim,
                "rope.dimension_count",
                "less than attention.key_length",
                config.n_rot,
            ),
            (
                (config.head_dim.saturating_sub(config.n_rot)).is_multiple_of(64),
                "attention.key_length",
                "rope.dimension_count plus a multiple of 64 (the KV scale block)",
                config.head_dim,
            ),
            (
                config.n_used <= config.n_expert,
                "expert_used_count",
                "at most expert_count",
                config.n_used,
            ),
            (
                config.n_hash <= config.n_layer,
                "hash_layer_count",
                "at most block_count",
                config.n_hash,
            ),
            (
                (config.n_head * config.head_dim).is_multiple_of(config.o_groups),
                "attention.output_group_count",
                "a divisor of head_count * key_length",
                config.o_groups,
            ),
            (
                !indexed || (config.indexer.dim.is_power_of_two() && config.indexer.dim >= 32),
                "attention.indexer.key_length",
                "a power of two from 32 (the Hadamard transform)",
                config.indexer.dim,
            ),
            (
                !indexed || config.n_rot <= config.indexer.dim,
                "attention.indexer.key_length",
                "at least rope.dimension_count",
                config.indexer.dim,
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, name, expected, found)) => Err(GgufError::unexpected(Self::key(name), expected, found)),
            None => Ok(()),
        }
    }
}
