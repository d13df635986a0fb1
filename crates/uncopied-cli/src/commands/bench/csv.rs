//! The results as CSV: one line for each row of the tables.

use super::results::{Cell, Results, Spread};

const COLUMNS: [&str; 28] = [
    "direction",
    "source",
    "sink",
    "mechanism",
    "size_bytes",
    "refused",
    "chosen",
    "gb_per_second",
    "gb_per_second_min",
    "gb_per_second_max",
    "sender_cpu_s_per_gb",
    "sender_cpu_s_per_gb_min",
    "sender_cpu_s_per_gb_max",
    "receiver_cpu_s_per_gb",
    "receiver_cpu_s_per_gb_min",
    "receiver_cpu_s_per_gb_max",
    "zero_copy_share",
    "kernel_copied_share",
    "copied_share",
    "mapped_share",
    "calls_per_mb",
    "call_p50_us",
    "call_p99_us",
    "call_max_us",
    "limit_busy",
    "limit_receive_window",
    "limit_send_buffer",
    "is_wide",
];

/// Formats the rows. A figure that is not known is an empty field.
pub(super) fn csv(results: &Results) -> Result<Vec<u8>, csv::Error> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(COLUMNS)?;
    for cell in &results.cells {
        writer.write_record(fields(cell))?;
    }
    writer
        .into_inner()
        .map_err(|error| csv::Error::from(error.into_error()))
}

fn fields(cell: &Cell) -> Vec<String> {
    let mut fields = vec![
        cell.direction.to_owned(),
        cell.source.clone(),
        cell.sink.clone(),
        cell.mechanism.clone(),
        cell.size.to_string(),
        cell.refused.clone().unwrap_or_default(),
        cell.chosen.join(" "),
    ];
    for spread in [
        cell.gb_per_second,
        cell.sender_cpu_s_per_gb,
        cell.receiver_cpu_s_per_gb,
    ] {
        fields.extend(spread_fields(spread));
    }
    let number = |value: Option<f64>| value.map(|it| it.to_string()).unwrap_or_default();
    let times = cell.call_us;
    fields.extend(
        [
            cell.zero_copy_share,
            cell.kernel_copied_share,
            cell.copied_share,
            cell.mapped_share,
            cell.calls_per_mb,
            times.map(|it| it.p50),
            times.map(|it| it.p99),
            times.map(|it| it.max),
            cell.limits.map(|it| it.busy),
            cell.limits.map(|it| it.receive_window),
            cell.limits.map(|it| it.send_buffer),
        ]
        .map(number),
    );
    fields.push(cell.is_wide.to_string());
    fields
}

fn spread_fields(spread: Option<Spread>) -> [String; 3] {
    spread.map_or_else(Default::default, |it| {
        [it.median, it.min, it.max].map(|value| value.to_string())
    })
}
