//! Tests of the command `bench`.
//!
//! | module | what it checks |
//! |---|---|
//! | `output` | rows and figures, JSON, CSV, text, the file of thresholds, ordinary users |
//! | `refusals` | a mechanism that is refused is a row, and no failure |
//! | `peers` | a listener of its own, other programs as listener and as sender |
//! | `ends` | Ctrl-C, namespaces; nothing is left behind |
//! | `usage` | mistakes on the command line |
//!
//! Times are as short as possible, so the figures mean nothing here: only what is exact is checked.

mod ends;
mod output;
mod peers;
mod refusals;
mod usage;

use std::process::{Command, Output};

use serde_json::Value;

use crate::server::program;

/// The shortest run that measures.
const BRIEF: [&str; 5] = ["bench", "--rounds", "1", "--seconds", "0.02"];

/// Returns a command for a brief run.
fn brief(arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(BRIEF).args(arguments);
    command
}

/// Returns the results of a run with `--json`.
fn results(output: &Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    serde_json::from_slice(&output.stdout).unwrap()
}

fn cells(results: &Value) -> &[Value] {
    results["cells"].as_array().unwrap()
}

/// The names of the mechanisms of each direction.
const MECHANISMS: [(&str, &[&str]); 6] = [
    (
        "file_to_tcp",
        &["sendfile", "splice", "mmap_write", "copy", "auto"],
    ),
    (
        "memory_to_tcp",
        &[
            "vmsplice",
            "region-vmsplice",
            "msg_zerocopy",
            "send_zc",
            "copy",
            "auto",
        ],
    ),
    ("tcp_to_memory", &["map_receive", "copy", "auto"]),
    ("tcp_to_file", &["splice", "copy", "auto"]),
    ("tcp_to_null", &["discard", "splice", "copy", "auto"]),
    ("tcp_to_tcp", &["splice", "copy", "auto"]),
];

/// Asserts that the figures of a row are complete and do not contradict each other.
fn assert_complete(cell: &Value) {
    let share = |name: &str| cell[name].as_f64().unwrap();
    let shares = [
        "zero_copy_share",
        "kernel_copied_share",
        "copied_share",
        "mapped_share",
    ];
    let sum: f64 = shares.iter().map(|name| share(name)).sum();
    assert!(
        (sum - 1.0).abs() < 1e-9,
        "the shares add up to {sum}: {cell}"
    );
    for name in [
        "gb_per_second",
        "sender_cpu_s_per_gb",
        "receiver_cpu_s_per_gb",
    ] {
        let value = |key: &str| cell[name][key].as_f64().unwrap();
        let (median, min, max) = (value("median"), value("min"), value("max"));
        assert!(min <= median && median <= max && median > 0.0, "{cell}");
    }
    for name in ["busy", "receive_window", "send_buffer"] {
        let part = cell["limits"][name].as_f64().unwrap();
        assert!((0.0..=1.0).contains(&part), "{cell}");
    }
    let chosen = cell["chosen"].as_array().unwrap();
    assert!(!chosen.is_empty(), "{cell}");
    match cell["mechanism"].as_str().unwrap() {
        "auto" => {}
        "region-vmsplice" => assert!(chosen.contains(&"vmsplice".into()), "{cell}"),
        forced => assert!(chosen.contains(&forced.into()), "{cell}"),
    }
}
