//! Formats values and tables, and parses sizes and times.

use std::time::Duration;

use uncopied_measure::size;
pub(crate) use uncopied_measure::{Spread, size::size_text};

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

/// Parses a size such as `1k`, `64KiB`, `16m`, or plain bytes. The units are binary.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    size::parse_size(text, MAX_SIZE_BYTES)
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
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(grouped(7.0), "7");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(1_234_567.0), "1,234,567");
        assert_eq!(three_significant(0.043_21), "0.0432");
        assert_eq!(three_significant(0.000_2), "0.000200");
        assert_eq!(three_significant(12.34), "12.3");
        assert_eq!(three_significant(1234.0), "1234");
        assert_eq!(three_significant(0.0), "0");
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
