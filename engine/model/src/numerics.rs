//! Which of the two arithmetics is used.

use std::fmt;
use std::str::FromStr;

use ds4_kernels::{Form, Format};

/// How numbers are rounded on the way through the graph.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Numerics {
    /// What is served: 8-bit activations against quantised weights, KV rows in the canonical encoding.
    #[default]
    Canonical,
    /// `f32` activations and KV rows: proves the graph against other engines.
    Reference,
}

impl Numerics {
    /// The form of activations against weights of `format`.
    pub(crate) const fn form(self, format: Format) -> Form {
        match self {
            Self::Canonical => Form::of(format),
            Self::Reference => Form::F32,
        }
    }
}

impl fmt::Display for Numerics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Canonical => "canonical",
            Self::Reference => "reference",
        })
    }
}

impl FromStr for Numerics {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "canonical" => Ok(Self::Canonical),
            "reference" => Ok(Self::Reference),
            other => Err(format!(
                "numerics: expected canonical or reference, found {other:?}"
            )),
        }
    }
}
