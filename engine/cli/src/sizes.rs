//! Sizes and times as people write them.

use std::time::Duration;

/// `24GiB`, `24G`, `512MiB`, `1048576`. Decimal units (`GB`) count in thousands.
pub(crate) fn bytes(text: &str) -> Result<u64, String> {
    const UNITS: [(&str, u64); 12] = [
        ("KiB", 1 << 10),
        ("MiB", 1 << 20),
        ("GiB", 1 << 30),
        ("TiB", 1 << 40),
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("MB", 1_000_000),
        ("GB", 1_000_000_000),
        ("M", 1 << 20),
        ("G", 1 << 30),
        ("", 1),
    ];
    let wrong = || format!("expected a size such as 24GiB, found {text:?}");
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, factor)| Some((text.strip_suffix(unit)?, factor)))
        .ok_or_else(wrong)?;
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss
    )] // a size in bytes
    if number > 0.0 && number.is_finite() {
        Ok((number * *unit as f64) as u64)
    } else {
        Err(wrong())
    }
}

/// `30s`, `500ms`, `5m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    const UNITS: [(&str, f64); 4] = [("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let wrong = || format!("expected a time such as 30s, found {text:?}");
    let (number, unit) = UNITS
        .iter()
        .find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)))
        .ok_or_else(wrong)?;
    let number: f64 = number.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * unit)
        .ok()
        .filter(|time| !time.is_zero())
        .ok_or_else(wrong)
}

/// A number of requests a second.
pub(crate) fn rate(text: &str) -> Result<f64, String> {
    let rate: Option<f64> = text
        .parse()
        .ok()
        .filter(|rate: &f64| rate.is_finite() && *rate > 0.0);
    rate.ok_or_else(|| format!("expected a number above 0, found {text:?}"))
}

/// `1.7 GiB`.
pub(crate) fn human(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_read_as_written() {
        assert_eq!(bytes("24GiB"), Ok(24 << 30));
        assert_eq!(bytes("1.5G"), Ok(3 << 29));
        assert_eq!(bytes("2GB"), Ok(2_000_000_000));
        assert_eq!(bytes("4096"), Ok(4096));
        assert!(bytes("-1GiB").is_err() && bytes("much").is_err() && bytes("").is_err());
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("5m"), Ok(Duration::from_secs(300)));
        assert!(rate("0.5") == Ok(0.5) && rate("0").is_err() && rate("inf").is_err());
        assert!(duration("0s").is_err() && duration("5").is_err());
    }
}
