//! Results as a run on a machine with two CPUs has them. The CPU times of senders at 4 KiB to
//! 16 MiB are those of recorded runs (`benchmarks/`), rounded.

use std::collections::BTreeMap;

use crate::commands::bench::results::{
    CallTimes, Cell, Limits, Machine, Network, Results, Setting, Spread, Threshold,
};

pub(super) const SIZES: [u64; 9] = [
    1 << 10,
    4 << 10,
    16 << 10,
    64 << 10,
    256 << 10,
    1 << 20,
    4 << 20,
    16 << 20,
    64 << 20,
];

/// The shares of the bytes: not copied, mapped, copied by the kernel, copied.
type Shares = [f64; 4];

const NOT_COPIED: Shares = [1.0, 0.0, 0.0, 0.0];
const MAPPED: Shares = [0.0, 0.92, 0.0, 0.08];
const COPIED_BY_KERNEL: Shares = [0.0, 0.0, 1.0, 0.0];
const COPIED: Shares = [0.0, 0.0, 0.0, 1.0];

/// A mechanism in a direction, with the CPU time per GB of the side that uses it, by size.
struct Line {
    direction: &'static str,
    source: &'static str,
    sink: &'static str,
    mechanism: &'static str,
    costs: [f64; 9],
    shares: Shares,
}

const FILE: Line = Line {
    direction: "file_to_tcp",
    source: "file",
    sink: "tcp",
    mechanism: "",
    costs: [0.0; 9],
    shares: COPIED,
};
const MEMORY: Line = Line {
    direction: "memory_to_tcp",
    source: "pages",
    ..FILE
};
const RECEIVED: Line = Line {
    direction: "tcp_to_memory",
    source: "tcp",
    sink: "memory",
    ..FILE
};

const LINES: [Line; 11] = [
    Line {
        mechanism: "copy",
        costs: [1.52, 0.52, 0.36, 0.31, 0.285, 0.29, 0.30, 0.31, 0.31],
        ..FILE
    },
    Line {
        mechanism: "mmap_write",
        costs: [4.1, 1.4, 0.62, 0.36, 0.27, 0.25, 0.24, 0.25, 0.25],
        ..FILE
    },
    Line {
        mechanism: "sendfile",
        costs: [1.93, 0.54, 0.24, 0.17, 0.145, 0.137, 0.135, 0.136, 0.136],
        shares: NOT_COPIED,
        ..FILE
    },
    Line {
        mechanism: "splice",
        costs: [2.9, 0.81, 0.33, 0.2, 0.16, 0.139, 0.136, 0.136, 0.137],
        shares: NOT_COPIED,
        ..FILE
    },
    Line {
        mechanism: "copy",
        costs: [1.31, 0.409, 0.196, 0.160, 0.118, 0.102, 0.107, 0.118, 0.121],
        ..MEMORY
    },
    Line {
        mechanism: "vmsplice",
        costs: [2.4, 0.623, 0.247, 0.165, 0.103, 0.089, 0.089, 0.091, 0.09],
        shares: NOT_COPIED,
        ..MEMORY
    },
    Line {
        source: "region",
        mechanism: "region-vmsplice",
        costs: [2.7, 0.688, 0.245, 0.170, 0.104, 0.089, 0.091, 0.091, 0.092],
        shares: NOT_COPIED,
        ..MEMORY
    },
    Line {
        mechanism: "msg_zerocopy",
        costs: [2.35, 0.641, 0.315, 0.266, 0.18, 0.157, 0.18, 0.233, 0.24],
        shares: COPIED_BY_KERNEL,
        ..MEMORY
    },
    Line {
        mechanism: "send_zc",
        costs: [2.9, 0.755, 0.325, 0.281, 0.184, 0.158, 0.183, 0.213, 0.22],
        shares: COPIED_BY_KERNEL,
        ..MEMORY
    },
    Line {
        mechanism: "copy",
        costs: [1.1, 0.36, 0.14, 0.11, 0.093, 0.092, 0.093, 0.1, 0.104],
        ..RECEIVED
    },
    Line {
        mechanism: "map_receive",
        costs: [0.0, 0.0, 0.21, 0.135, 0.12, 0.119, 0.12, 0.118, 0.121],
        shares: MAPPED,
        ..RECEIVED
    },
];

/// What the plan chooses: a direction, and for each size the mechanism.
const PLANS: [(&str, [&str; 9]); 3] = [
    ("file_to_tcp", ["sendfile"; 9]),
    (
        "memory_to_tcp",
        [
            "copy", "copy", "copy", "vmsplice", "vmsplice", "vmsplice", "vmsplice", "vmsplice",
            "vmsplice",
        ],
    ),
    ("tcp_to_memory", ["copy"; 9]),
];

/// A run over loopback.
pub(super) fn results() -> Results {
    Results {
        format: 1,
        version: "0.1.0",
        machine: Machine {
            cpu: "AMD EPYC 7B13".to_owned(),
            cpus: 2,
            memory_bytes: 24_684_084 << 10,
            kernel: "6.18.44".to_owned(),
            page_bytes: 4096,
        },
        setting: Setting {
            network: Network::Loopback,
            peer: None,
            congestion: "cubic".to_owned(),
            rounds: 7,
            seconds_per_cell: 0.25,
            sender_cpu: Some(0),
            receiver_cpu: Some(1),
            command: "uncopied bench --report bench.html".to_owned(),
            cannot_show: [
                "With msg_zerocopy and send_zc, the kernel always copies on loopback: these rows \
                 show what the two cost here, not what they gain on a network interface.",
                "There is no network card: no DMA, no offloading, no interrupts and no packet loss.",
            ]
            .map(str::to_owned)
            .to_vec(),
        },
        cells: cells(),
        thresholds: thresholds(),
        tuning: BTreeMap::from([
            ("mmap_write_min_bytes", Some(256 << 10)),
            ("map_receive_min_bytes", None),
            ("vmsplice_min_bytes", Some(256 << 10)),
            ("sendfile_min_bytes", Some(16 << 10)),
        ]),
    }
}

fn cells() -> Vec<Cell> {
    let mut cells: Vec<Cell> = Vec::new();
    for (index, size) in SIZES.into_iter().enumerate() {
        cells.extend(LINES.iter().map(|line| cell(line, index, size)));
    }
    cells.push(Cell {
        refused: Some("no interface of this machine supports zero-copy receive".to_owned()),
        ..without_figures(&RECEIVED, "zcrx", SIZES[3])
    });
    for (direction, mechanisms) in PLANS {
        for (mechanism, size) in mechanisms.into_iter().zip(SIZES) {
            let is_same = |cell: &&Cell| {
                cell.direction == direction && cell.mechanism == mechanism && cell.size == size
            };
            let like = cells.iter().find(is_same).unwrap().clone();
            cells.push(Cell {
                mechanism: "auto".to_owned(),
                chosen: vec![mechanism.to_owned()],
                sender_cpu_s_per_gb: like.sender_cpu_s_per_gb.map(|spread| scaled(spread, 1.03)),
                is_wide: false,
                ..like
            });
        }
    }
    cells
}

fn cell(line: &Line, index: usize, size: u64) -> Cell {
    let cost = line.costs[index];
    if cost == 0.0 {
        return Cell {
            refused: Some("payloads of this size do not fill a page".to_owned()),
            ..without_figures(line, line.mechanism, size)
        };
    }
    // Receiving costs about 0.035 s/GB if the receiver discards the bytes.
    let own = Some(spread(cost, index));
    let other = Some(spread(0.035 + 0.04 * cost, index));
    let (sender, receiver) = match line.direction {
        "tcp_to_memory" => (other, own),
        _ => (own, other),
    };
    let [zero_copy, mapped, by_kernel, copied] = line.shares;
    Cell {
        gb_per_second: Some(spread(0.99 / cost, index)),
        sender_cpu_s_per_gb: sender,
        receiver_cpu_s_per_gb: receiver,
        zero_copy_share: Some(zero_copy),
        kernel_copied_share: Some(by_kernel),
        copied_share: Some(copied),
        mapped_share: Some(mapped),
        calls_per_mb: Some(1e6 / size as f64),
        call_us: Some(CallTimes {
            p50: cost * size as f64 / 1000.0,
            p99: cost * size as f64 / 700.0,
            max: cost * size as f64 / 100.0,
        }),
        limits: Some(Limits {
            busy: 0.62,
            receive_window: 0.35,
            send_buffer: 0.03,
        }),
        is_wide: line.mechanism == "send_zc" && index == 7,
        ..without_figures(line, line.mechanism, size)
    }
}

fn without_figures(line: &Line, mechanism: &str, size: u64) -> Cell {
    Cell::without_figures(line.direction, line.source, line.sink, mechanism, size)
}

/// A median with extremes that depend on the size, so that they are not all alike.
fn spread(median: f64, index: usize) -> Spread {
    let part = 0.04 + 0.03 * (index % 3) as f64;
    Spread {
        median,
        min: median * (1.0 - part),
        max: median * (1.0 + 1.6 * part),
    }
}

fn scaled(spread: Spread, factor: f64) -> Spread {
    Spread {
        median: spread.median * factor,
        min: spread.min * factor,
        max: spread.max * factor,
    }
}

fn thresholds() -> Vec<Threshold> {
    let threshold =
        |key, mechanism: &str, direction, from_bytes, default_bytes, why: &str| Threshold {
            key,
            mechanism: mechanism.to_owned(),
            than: "copy".to_owned(),
            direction,
            from_bytes,
            default_bytes,
            measured: true,
            why: why.to_owned(),
        };
    vec![
        threshold(
            "sendfile_min_bytes",
            "sendfile",
            "file_to_tcp",
            Some(16 << 10),
            0,
            "At 16 KiB it takes 0.67 of the CPU time.",
        ),
        threshold(
            "mmap_write_min_bytes",
            "mmap_write",
            "file_to_tcp",
            Some(256 << 10),
            256 << 10,
            "At 256 KiB it takes 0.95 of the CPU time.",
        ),
        threshold(
            "vmsplice_min_bytes",
            "vmsplice",
            "memory_to_tcp",
            Some(256 << 10),
            64 << 10,
            "At 64 KiB it takes 1.03 times the CPU time.",
        ),
        Threshold {
            measured: false,
            ..threshold(
                "notified_min_bytes",
                "msg_zerocopy",
                "memory_to_tcp",
                None,
                16 << 10,
                "On loopback, the kernel copies these bytes after all.",
            )
        },
        threshold(
            "map_receive_min_bytes",
            "map_receive",
            "tcp_to_memory",
            None,
            16 << 10,
            "It takes at least 1.16 times the CPU time.",
        ),
    ]
}

/// A run with long names, many sizes, and more mechanisms than there are colours.
pub(super) fn crowded() -> Results {
    let mut results = results();
    results.machine.cpu = ["a processor with an exceedingly long name"; 3].join(", ");
    results.setting.command = format!("uncopied bench --sizes {}", "1048576,".repeat(40));
    results.setting.cannot_show = vec!["averylongword".repeat(20)];
    let copies: Vec<Cell> = results
        .cells
        .iter()
        .filter(|cell| cell.direction == MEMORY.direction)
        .map(|cell| Cell {
            mechanism: format!("{}-with-a-long-name", cell.mechanism),
            size: cell.size * 2,
            gb_per_second: cell.gb_per_second.map(|spread| scaled(spread, 0.9)),
            ..cell.clone()
        })
        .collect();
    results.cells.extend(copies);
    results
}
