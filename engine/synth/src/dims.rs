//! Shapes of a model to write.

use std::str::FromStr;

use ds4_kernels::Format;
use thiserror::Error;

/// Ready-made shapes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Preset {
    /// 3 MB, 3 layers: one of each compression.
    Micro,
    /// About 10 MB, 7 layers, three of them routed by hash.
    Tiny,
    /// About 1.1 GB, 12 layers: for measuring speed.
    Medium,
}

/// Formats of the routed experts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Experts {
    /// `IQ2_XXS` gate and up, `Q2_K` down, as in the published two-bit files.
    #[default]
    Iq2,
    /// `Q4_K` throughout.
    Q4K,
    /// `MXFP4` throughout: the precision that the model was trained in.
    Mxfp4,
}

/// Why a setting is refused.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{key}: expected {expected}, found {found}")]
pub struct DimsError {
    key: String,
    expected: String,
    found: String,
}

fn refused(key: &str, expected: impl Into<String>, found: impl ToString) -> DimsError {
    DimsError {
        key: key.into(),
        expected: expected.into(),
        found: found.to_string(),
    }
}

/// Every shape and constant of a model. Names are those of `--set`.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // the names are the model's, described in `ds4_gguf::ModelConfig`
pub struct Dims {
    pub n_layer: usize,
    pub ratios: Vec<u32>,
    pub n_hash: usize,
    pub n_embd: usize,
    pub n_vocab: usize,
    pub n_head: usize,
    pub head_dim: usize,
    pub n_rot: usize,
    pub q_lora: usize,
    pub o_groups: usize,
    pub o_lora: usize,
    pub n_expert: usize,
    pub n_used: usize,
    pub n_ff: usize,
    pub n_swa: usize,
    pub ix_heads: usize,
    pub ix_dim: usize,
    pub ix_topk: usize,
    /// The indexer's query matrix as `Q8_0` instead of `F16`.
    pub ixq8: bool,
    pub n_hc: usize,
    pub sinkhorn: usize,
    pub clamp: f32,
    pub w_scale: f32,
    pub orig_ctx: usize,
    pub ctx: usize,
    pub seed: u64,
    pub experts: Experts,
    /// With a draft head (multi-token prediction).
    pub mtp: bool,
}

impl FromStr for Preset {
    type Err = DimsError;

    fn from_str(text: &str) -> Result<Self, DimsError> {
        match text {
            "micro" => Ok(Self::Micro),
            "tiny" => Ok(Self::Tiny),
            "medium" => Ok(Self::Medium),
            other => Err(refused("preset", "micro, tiny or medium", other)),
        }
    }
}

impl FromStr for Experts {
    type Err = DimsError;

    fn from_str(text: &str) -> Result<Self, DimsError> {
        match text {
            "iq2" => Ok(Self::Iq2),
            "q4k" => Ok(Self::Q4K),
            "mxfp4" => Ok(Self::Mxfp4),
            other => Err(refused("experts", "iq2, q4k or mxfp4", other)),
        }
    }
}

impl Experts {
    /// Formats of gate and up, and of down.
    pub(crate) const fn formats(self) -> (Format, Format) {
        match self {
            Self::Iq2 => (Format::Iq2Xxs, Format::Q2K),
            Self::Q4K => (Format::Q4K, Format::Q4K),
            Self::Mxfp4 => (Format::Mxfp4, Format::Mxfp4),
        }
    }
}

impl Dims {
    /// The shapes of a preset with the default seed.
    #[must_use]
    pub fn preset(preset: Preset) -> Self {
        let micro = Self {
            n_layer: 3,
            ratios: vec![0, 4, 128],
            n_hash: 1,
            n_embd: 256,
            n_vocab: 280,
            n_head: 4,
            head_dim: 160,
            n_rot: 32,
            q_lora: 32,
            o_groups: 2,
            o_lora: 32,
            n_expert: 4,
            n_used: 2,
            n_ff: 256,
            n_swa: 32,
            ix_heads: 16,
            ix_dim: 128,
            ix_topk: 8,
            ixq8: true,
            n_hc: 4,
            sinkhorn: 20,
            clamp: 3.0,
            w_scale: 1.5,
            orig_ctx: 256,
            ctx: 4096,
            seed: 0x5eed_0d54,
            experts: Experts::Iq2,
            mtp: false,
        };
        match preset {
            Preset::Micro => micro,
            Preset::Tiny => Self {
                n_layer: 7,
                ratios: vec![0, 0, 4, 128, 4, 128, 4],
                n_hash: 3,
                n_vocab: 512,
                head_dim: 192,
                n_rot: 64,
                q_lora: 64,
                n_expert: 8,
                n_swa: 64,
                ix_topk: 16,
                ixq8: false,
                ..micro
            },
            Preset::Medium => Self {
                n_layer: 12,
                ratios: vec![0, 0, 4, 128, 4, 128, 4, 128, 4, 128, 4, 128],
                n_hash: 3,
                n_embd: 2048,
                n_vocab: 16_384,
                n_head: 16,
                head_dim: 512,
                n_rot: 64,
                q_lora: 512,
                o_groups: 8,
                o_lora: 256,
                n_expert: 32,
                n_used: 4,
                n_ff: 1024,
                n_swa: 128,
                ix_topk: 256,
                ixq8: false,
                clamp: 10.0,
                orig_ctx: 65_536,
                ctx: 65_536,
                ..micro
            },
        }
    }

    /// The shapes of the published Flash file with two-bit experts: 43 layers, 284 billion weights. Too large to be written; [`crate::outline`]
    /// makes a file with its header.
    #[must_use]
    pub fn flash() -> Self {
        let ratio = |layer: usize| match layer {
            0 | 1 => 0,
            even if even.is_multiple_of(2) => 4,
            _ => 128,
        };
        Self {
            n_layer: 43,
            ratios: (0..43).map(ratio).collect(),
            n_hash: 3,
            n_embd: 4096,
            n_vocab: 129_280,
            n_head: 64,
            head_dim: 512,
            n_rot: 64,
            q_lora: 1024,
            o_groups: 8,
            o_lora: 1024,
            n_expert: 256,
            n_used: 6,
            n_ff: 2048,
            n_swa: 128,
            ix_heads: 64,
            ix_topk: 512,
            ixq8: false,
            clamp: 10.0,
            orig_ctx: 65_536,
            ctx: 1 << 20,
            ..Self::preset(Preset::Micro)
        }
    }

    /// Sets one value by its name; lists as `[0,4,128]`, the seed also as `0x...`.
    ///
    /// # Errors
    /// When there is no such name or the value has another form.
    pub fn set(&mut self, key: &str, value: &str) -> Result<(), DimsError> {
        let count = match key {
            "n_layer" => &mut self.n_layer,
            "n_hash" => &mut self.n_hash,
            "n_embd" => &mut self.n_embd,
            "n_vocab" => &mut self.n_vocab,
            "n_head" => &mut self.n_head,
            "head_dim" => &mut self.head_dim,
            "n_rot" => &mut self.n_rot,
            "q_lora" => &mut self.q_lora,
            "o_groups" => &mut self.o_groups,
            "o_lora" => &mut self.o_lora,
            "n_expert" => &mut self.n_expert,
            "n_used" => &mut self.n_used,
            "n_ff" => &mut self.n_ff,
            "n_swa" => &mut self.n_swa,
            "ix_heads" => &mut self.ix_heads,
            "ix_dim" => &mut self.ix_dim,
            "ix_topk" => &mut self.ix_topk,
            "n_hc" => &mut self.n_hc,
            "sinkhorn" => &mut self.sinkhorn,
            "orig_ctx" => &mut self.orig_ctx,
            "ctx" => &mut self.ctx,
            _ => return self.set_other(key, value),
        };
        *count = number(key, value)?;
        Ok(())
    }

    fn set_other(&mut self, key: &str, value: &str) -> Result<(), DimsError> {
        match key {
            "seed" => self.seed = seed(value)?,
            "ixq8" => self.ixq8 = matches!(value, "1" | "true"),
            "mtp" => self.mtp = matches!(value, "1" | "true"),
            "clamp" => self.clamp = number(key, value)?,
            "w_scale" => self.w_scale = number(key, value)?,
            "experts" => self.experts = value.parse()?,
            "ratios" => {
                let inner = value.strip_prefix('[').and_then(|value| value.strip_suffix(']'));
                let inner = inner.ok_or_else(|| refused(key, "a list such as [0,4,128]", value))?;
                self.ratios = inner
                    .split(',')
                    .map(|item| number(key, item.trim()))
                    .collect::<Result<_, _>>()?;
            }
            _ => {
                let known = "a name of the model's shapes (n_layer, ratios, n_hash, n_embd, n_vocab, n_head, head_dim, n_rot, q_lora, \
                             o_groups, o_lora, n_expert, n_used, n_ff, n_swa, ix_heads, ix_dim, ix_topk, ixq8, n_hc, sinkhorn, clamp, \
                             w_scale, orig_ctx, ctx, seed, experts, mtp)";
                return Err(refused("--set", known, key));
            }
        }
        Ok(())
    }

    /// What the tensors' block sizes and the vocabulary ask of the shapes.
    ///
    /// # Errors
    /// Names the shape, what it must be and what it is.
    pub fn check(&self) -> Result<(), DimsError> {
        let heads = self.n_head * self.head_dim;
        let rules: [(bool, &str, &str, usize); 12] = [
            (
                self.ratios.len() == self.n_layer,
                "ratios",
                "as many entries as n_layer",
                self.ratios.len(),
            ),
            (
                self.ratios.iter().all(|ratio| matches!(ratio, 0 | 4 | 128)),
                "ratios",
                "entries out of 0, 4 and 128",
                self.n_layer,
            ),
            (
                self.n_layer > 0 && self.n_hash <= self.n_layer,
                "n_hash",
                "at most n_layer",
                self.n_hash,
            ),
            (
                positive_multiple(self.n_embd, 256),
                "n_embd",
                "a multiple of 256",
                self.n_embd,
            ),
            (
                positive_multiple(self.n_ff, 256),
                "n_ff",
                "a multiple of 256",
                self.n_ff,
            ),
            (
                positive_multiple(self.q_lora, 32),
                "q_lora",
                "a multiple of 32",
                self.q_lora,
            ),
            (
                self.n_vocab >= crate::vocabulary::SMALLEST,
                "n_vocab",
                "room for bytes and specials (264)",
                self.n_vocab,
            ),
            (
                self.n_rot > 0 && self.n_rot.is_multiple_of(2),
                "n_rot",
                "an even number",
                self.n_rot,
            ),
            (
                self.head_dim > self.n_rot && (self.head_dim - self.n_rot).is_multiple_of(64),
                "head_dim",
                "n_rot plus a multiple of 64",
                self.head_dim,
            ),
            (
                self.o_groups > 0
                    && heads.is_multiple_of(self.o_groups)
                    && positive_multiple(heads / self.o_groups, 32),
                "o_groups",
                "a divisor of n_head * head_dim that leaves a multiple of 32",
                self.o_groups,
            ),
            (
                positive_multiple(self.o_groups * self.o_lora, 32),
                "o_lora",
                "o_groups * o_lora a multiple of 32",
                self.o_lora,
            ),
            (
                self.n_used > 0 && self.n_used <= self.n_expert,
                "n_used",
                "1 to n_expert",
                self.n_used,
            ),
        ];
        match rules.into_iter().find(|(holds, ..)| !holds) {
            Some((_, key, expected, found)) => Err(refused(key, expected, found)),
            None => Ok(()),
        }
    }
}

const fn positive_multiple(value: usize, of: usize) -> bool {
    value > 0 && value.is_multiple_of(of)
}

fn number<T: FromStr>(key: &str, value: &str) -> Result<T, DimsError> {
    value.parse().map_err(|_| refused(key, "a number", value))
}

fn seed(value: &str) -> Result<u64, DimsError> {
    let parsed = value
        .strip_prefix("0x")
        .map_or_else(|| value.parse(), |hex| u64::from_str_radix(hex, 16));
    parsed.map_err(|_| refused("seed", "a number below 2^64", value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_sound_and_settings_change_them() {
        for preset in [Preset::Micro, Preset::Tiny, Preset::Medium] {
            assert_eq!(Dims::preset(preset).check(), Ok(()));
        }
        let mut dims = Dims::preset(Preset::Micro);
        dims.set("ratios", "[4, 128]").expect("a list");
        assert_eq!(
            dims.check().expect_err("three layers").to_string(),
            "ratios: expected as many entries as n_layer, found 2"
        );
        dims.set("n_layer", "2").expect("a number");
        dims.set("seed", "0xff").expect("hexadecimal");
        assert_eq!((dims.check(), dims.seed), (Ok(()), 255));
        assert!(
            dims.set("layers", "2")
                .expect_err("unknown")
                .to_string()
                .contains("n_layer")
        );
        assert_eq!(
            dims.set("n_embd", "many").expect_err("no number").to_string(),
            "n_embd: expected a number, found many"
        );
    }
}
