//! Sizes in bytes, as people write them.

/// Formats a size as a whole number of the largest possible binary unit, as in `64 KiB`.
#[must_use]
pub fn size_text(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> shift > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

/// Parses a size such as `1k`, `64KiB`, `16m`, or plain bytes. The units are binary. `max` is the
/// largest size that is accepted; the smallest is 1 byte.
///
/// # Errors
///
/// A sentence that says what is wrong with the text.
pub fn parse_size(text: &str, max: u64) -> Result<u64, String> {
    let wrong = || format!("{text:?} is not a size: write it as 1k, 64k, 1m or in bytes");
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        _ => return Err(wrong()),
    };
    let number: u64 = digits.parse().map_err(|_| wrong())?;
    match number.checked_mul(1 << shift) {
        Some(bytes) if (1..=max).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "{text:?} is out of range: 1 byte to {}",
            size_text(max)
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(size_text(1 << 10), "1 KiB");
        assert_eq!(size_text(16 << 20), "16 MiB");
        assert_eq!(size_text(1500), "1500 B");
    }

    #[test]
    fn sizes_are_parsed() {
        const MAX: u64 = 1 << 30;
        for (text, bytes) in [("1k", 1024), ("64KiB", 65536), ("16m", 16 << 20), ("7", 7)] {
            assert_eq!(parse_size(text, MAX), Ok(bytes));
        }
        let too_long = "99999999999999999999";
        for bad in ["", "k", "1x", "-1", "0", "2g", too_long, "1e3", "é"] {
            assert!(parse_size(bad, MAX).is_err(), "{bad}");
        }
    }
}
