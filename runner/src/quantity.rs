//! Kubernetes' quantities, as far as pods of stages use them.

use anyhow::{Context, Result, bail, ensure};

/// Suffixes and their factors (Kubernetes API conventions, "Resource quantities").
const UNITS: [(&str, f64); 12] = [
    ("Ki", 1024.0),
    ("Mi", 1_048_576.0),
    ("Gi", 1_073_741_824.0),
    ("Ti", 1_099_511_627_776.0),
    ("Pi", 1_125_899_906_842_624.0),
    ("k", 1e3),
    ("M", 1e6),
    ("G", 1e9),
    ("T", 1e12),
    ("P", 1e15),
    ("m", 1e-3),
    ("", 1.0),
];

/// The number that a quantity stands for.
///
/// # Errors
/// When it is none, or below zero.
pub(crate) fn value(text: &str) -> Result<f64> {
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let Some((_, factor)) = UNITS.iter().find(|(known, _)| *known == unit) else {
        bail!("expected a quantity such as 4Gi, found {text:?}");
    };
    let number: f64 = number
        .trim()
        .parse()
        .with_context(|| format!("expected a quantity such as 4Gi, found {text:?}"))?;
    ensure!(number >= 0.0, "expected no less than 0, found {text:?}");
    Ok(number * factor)
}

/// Whole bytes.
///
/// # Errors
/// As [`value`].
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // checked to be no less than 0; memories are far below 2^53
pub(crate) fn bytes(text: &str) -> Result<u64> {
    Ok(value(text)?.ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_have_the_values_of_the_api_conventions() {
        for (text, expected) in [
            ("4Gi", 4 << 30),
            ("500Mi", 500 << 20),
            ("1500m", 2),
            ("2G", 2_000_000_000),
            ("7", 7),
            ("0.5Ki", 512),
        ] {
            assert_eq!(bytes(text).expect(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused() {
        for text in ["", "x", "4Xi", "-1", "Gi"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }
}
