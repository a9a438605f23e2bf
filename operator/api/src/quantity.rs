//! Amounts as Kubernetes writes them.

/// A number with a unit as Kubernetes or people write it: `110Gi`, `110GiB`, `1.2e9`, `64G`, `1500m`.
#[must_use]
pub fn quantity(text: &str) -> Option<f64> {
    const UNITS: [(&str, f64); 9] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("m", 1e-3),
    ];
    let text = text.trim_end_matches('B');
    let unit = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((text, 1.0));
    number
        .parse::<f64>()
        .ok()
        .map(|number| number * factor)
        .filter(|number| number.is_finite())
}

/// Whether two texts are the same amount: the API server stores `0.5` as `500m` and `1024Mi` as `1Gi`.
#[must_use]
pub fn same_quantity(one: &str, other: &str) -> bool {
    // Thousandths are not exact in binary.
    const ROUNDING: f64 = 1e-12;
    match (quantity(one), quantity(other)) {
        (Some(one), Some(other)) => (one - other).abs() <= ROUNDING * one.abs().max(other.abs()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::same_quantity;

    #[test]
    fn an_amount_is_the_same_however_it_is_written() {
        for (one, other) in [
            ("0.5", "500m"),
            ("0.7", "700m"),
            ("1024Mi", "1Gi"),
            ("2", "2"),
            ("1e3", "1k"),
            ("0", "0"),
        ] {
            assert!(same_quantity(one, other), "{one} {other}");
        }
        for (one, other) in [
            ("0.5", "501m"),
            ("1Gi", "1G"),
            ("2", "3"),
            ("Always", "Always"),
            ("1", "one"),
        ] {
            assert!(!same_quantity(one, other), "{one} {other}");
        }
    }
}
