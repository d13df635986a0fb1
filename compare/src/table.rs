//! Computes medians and ratios, formats values and tables, and parses sizes and times.

use std::time::Duration;

/// The median, the minimum and the maximum of some values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Spread {
    /// The median.
    pub(crate) median: f64,
    /// The minimum.
    pub(crate) min: f64,
    /// The maximum.
    pub(crate) max: f64,
}

impl Spread {
    /// Returns the spread of `values`, or `None` if there are no values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }

    /// Divides the first value of each pair by the second, and returns the spread of these ratios.
    /// A pair has the values of two contenders from the same round, so anything that affects both
    /// alike, such as the state of the machine in that round, cancels out. In a ratio of two
    /// medians it would not cancel out, because the medians may come from different rounds.
    ///
    /// Skips pairs with a zero: there is no meaningful ratio if a contender's CPU time was less
    /// than a clock tick and counted as 0.
    pub(crate) fn of_ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        Self::of(
            pairs
                .into_iter()
                .filter(|&(above, below)| above > 0.0 && below > 0.0)
                .map(|(above, below)| above / below),
        )
    }

    /// Formats the spread as `median (min–max)`, using `format` for each of the three values.
    pub(crate) fn text(&self, format: impl Fn(f64) -> String) -> String {
        let Self { median, min, max } = *self;
        format!("{} ({}–{})", format(median), format(min), format(max))
    }
}

/// Formats a value as a whole number with commas between the thousands.
pub(crate) fn grouped(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Formats a size as a whole number of the largest possible binary unit, as in `64 KiB`.
pub(crate) fn size_text(bytes: u64) -> String {
    for (unit, shift) in [("GiB", 30), ("MiB", 20), ("KiB", 10)] {
        if bytes >> shift > 0 && bytes.is_multiple_of(1 << shift) {
            return format!("{} {unit}", bytes >> shift);
        }
    }
    format!("{bytes} B")
}

/// Parses a size such as `1k`, `64KiB`, `16m`, or plain bytes. The units are binary.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
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
        Some(bytes) if (1..=MAX_SIZE_BYTES).contains(&bytes) => Ok(bytes),
        _ => Err(format!(
            "{text:?} is out of range: 1 byte to {}",
            size_text(MAX_SIZE_BYTES)
        )),
    }
}

/// The maximum size of a file or a buffer. There has to be a limit, because the content is kept in
/// memory for comparison with the bytes that arrive.
const MAX_SIZE_BYTES: u64 = 1 << 30;

/// Parses a time in seconds.
pub(crate) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.01..=3600.0).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        _ => Err(format!("{text:?} is not a time of 0.01 to 3600 seconds")),
    }
}

/// Returns the cell of a table for a missing value.
pub(crate) fn dash() -> String {
    "–".to_owned()
}

/// Formats a ratio or a throughput with two decimal places.
pub(crate) fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

/// Formats a number of CPU seconds per GB with three decimal places.
pub(crate) fn three_digits(value: f64) -> String {
    format!("{value:.3}")
}

/// Formats a value of any magnitude with three significant digits.
pub(crate) fn three_significant(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let exponent = value.abs().log10().floor() as i32;
    let decimals = (2 - exponent).max(0) as usize;
    format!("{value:.decimals$}")
}

/// Formats a fraction from 0 to 1 as a percentage.
pub(crate) fn percent(value: f64) -> String {
    format!("{:.0} %", value * 100.0)
}

/// Formats a fraction from 0 to 1 as a percentage with one decimal place.
pub(crate) fn percent_with_tenths(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

/// Converts words to the cells of a row.
pub(crate) fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

/// Formats a table in Markdown. The first column is left-aligned, the others right-aligned.
pub(crate) fn markdown(header: &[String], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        std::iter::once(&header[column])
            .chain(rows.iter().filter_map(|row| row.get(column)))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
            .max(2)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let mut text = String::from("|");
        for (column, (cell, &width)) in cells.iter().zip(&widths).enumerate() {
            if column == 0 {
                text += &format!(" {cell:<width$} |");
            } else {
                text += &format!(" {cell:>width$} |");
            }
        }
        text + "\n"
    };
    let mut table = line(header);
    table.push('|');
    for (column, width) in widths.iter().enumerate() {
        let dashes = "-".repeat(width + 1);
        table += &if column == 0 {
            format!("{dashes}-|")
        } else {
            format!("{dashes}:|")
        };
    }
    table.push('\n');
    for row in rows {
        table += &line(row);
    }
    table
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_two_middle_values() {
        assert_eq!(Spread::of([]), None);
        let odd = Spread::of([9.0, 1.0, 2.0]).unwrap();
        assert_eq!((odd.median, odd.min, odd.max), (2.0, 1.0, 9.0));
        assert_eq!(Spread::of([4.0, 1.0, 2.0, 9.0]).unwrap().median, 3.0);
    }

    #[test]
    fn the_median_is_taken_over_the_ratios_of_the_rounds() {
        // The ratios within the rounds are 2, 3 and 0.5, with the median 2. The ratio of the two
        // medians would be 2 ÷ 2 = 1.
        let pairs = [(2.0, 1.0), (9.0, 3.0), (1.0, 2.0)];
        let ratios = Spread::of_ratios(pairs).unwrap();
        assert_eq!((ratios.median, ratios.min, ratios.max), (2.0, 0.5, 3.0));
        assert_eq!(Spread::of_ratios([(1.0, 0.0), (0.0, 1.0)]), None);
    }

    #[test]
    fn numbers_and_sizes_are_readable() {
        assert_eq!(grouped(7.0), "7");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(three_significant(0.043_21), "0.0432");
        assert_eq!(three_significant(0.000_2), "0.000200");
        assert_eq!(three_significant(12.34), "12.3");
        assert_eq!(three_significant(1234.0), "1234");
        assert_eq!(three_significant(0.0), "0");
        assert_eq!(size_text(1 << 10), "1 KiB");
        assert_eq!(size_text(16 << 20), "16 MiB");
        assert_eq!(size_text(1500), "1500 B");
    }

    #[test]
    fn sizes_are_parsed() {
        for (text, bytes) in [("1k", 1024), ("64KiB", 65536), ("16m", 16 << 20), ("7", 7)] {
            assert_eq!(parse_size(text), Ok(bytes));
        }
        for bad in [
            "",
            "k",
            "1x",
            "-1",
            "0",
            "2g",
            "99999999999999999999",
            "1e3",
            "é",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn table_columns_are_aligned() {
        let header = ["size".to_owned(), "n".to_owned()];
        let rows = [vec!["1 KiB".to_owned(), "1,000".to_owned()]];
        assert_eq!(
            markdown(&header, &rows),
            "| size  |     n |\n|-------|------:|\n| 1 KiB | 1,000 |\n"
        );
    }
}
