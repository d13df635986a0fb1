//! Builds the report of a run of `compare receive`: the page, and the raw data.

use super::contender::MemoryReceiver;
use super::job::ReceiverSetup;
use super::options::ReceiveOptions;
use super::results::{self, ReceiveMeasure, ReceiveResults};
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};
use crate::rounds::Case;
use crate::table::size_text;

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no header splitting, no receive offloads, no
  interrupts, no packet loss and no network latency. With page payloads, the pages that are mapped
  are those to which the kernel has copied what was sent with `MSG_ZEROCOPY`. With a real interface,
  they are those that it has written to.
- Part of the sender's work is charged to the receiver. When the receiver acknowledges bytes, its
  CPU also processes the acknowledgement for the sender's socket, and sends what is waiting there.
  With page payloads, this includes the copy of these bytes. So that it does not depend on luck how
  much a receiver sends, at most 64 KiB may wait in the sender's socket (`TCP_NOTSENT_LOWAT`).
- Part of the receiver's work is charged to the sender: the kernel frees the memory of packets that
  were copied from on the CPU that has allocated it, which is the sender's. Pages that were mapped
  are freed by the receiver when it unmaps them. The machine's busy time counts everything once.
- The receiver's CPU time is the user and system time of all threads of its process. The receiver
  reads it from its own CPU clock, which counts nanoseconds. The machine's busy time is counted in
  clock ticks, usually of 10 ms. The sender's share of its CPU is that of the whole connection.
- If the sender's CPU is fully used, the throughput is that of the sender.
- The sender's CPU has written the bytes a moment before they are copied, so they may still be in a
  cache that both CPUs share. The CPU time of a copy depends on that much more than the CPU time of
  a mapping, which is the same for every page. If other programs interrupt sender or receiver,
  copying looks worse.
- recv copies to the same 256 KiB over and over, which stay in the CPU's caches. copy and
  uring_multishot use several such buffers in turn.
- uring_multishot has few buffers on purpose: more of them would be used in turn, too, and need more
  of the caches.
- Each receiver compares the first 1 MiB with what is sent, before the measurement. At the end, the
  number of bytes received must equal the number sent.
- Apart from the options named here, neither side sets any, such as socket buffer sizes. The kernel
  adjusts the buffer sizes during a measurement, for all contenders alike.
";

/// The data that the report is built from.
pub(super) struct ReceiveReport<'a> {
    pub(super) options: &'a ReceiveOptions,
    pub(super) participants: &'a [Participant<MemoryReceiver>],
    pub(super) results: &'a ReceiveResults,
    pub(super) facts: &'a [(&'static str, String)],
}

impl ReceiveReport<'_> {
    /// Builds the page.
    pub(super) fn markdown(&self) -> String {
        let options = self.options;
        let congestion = &options.loopback.congestion;
        let mut page = page::head(
            "Receiving over TCP compared",
            &self.method(),
            self.facts,
            &format!("{congestion}, set by TCP_CONGESTION"),
        );
        page += "## Scenarios\n\n";
        for scenario in &options.scenarios {
            page += &format!("- **{}**: {}.\n", scenario.text(), scenario.about());
        }
        page.push('\n');
        page += &loopback::report::contenders(self.participants, |contender| {
            contender.command(&ReceiverSetup {
                port: "PORT",
                options,
            })
        });
        page += &loopback::report::medians(
            self.participants,
            self.results,
            &[
                ReceiveMeasure::Throughput,
                ReceiveMeasure::ReceiverCpu,
                ReceiveMeasure::MachineBusy,
                ReceiveMeasure::MappedShare,
                ReceiveMeasure::ReadKib,
                ReceiveMeasure::ReceiverShare,
                ReceiveMeasure::SenderShare,
            ],
            &options.scenarios,
            |scenario, contender| results::remark(self.results, scenario, contender.name),
        );
        page += &loopback::report::ratios(
            self.participants,
            self.results,
            &[
                (ReceiveMeasure::ReceiverCpu, "less"),
                (ReceiveMeasure::MachineBusy, "less"),
                (ReceiveMeasure::Throughput, "more"),
            ],
            &options.scenarios,
        );
        page += &targets::section(self.results);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        let receiving = &options.receiving;
        format!(
            "{} rounds. In each round, in each scenario, every contender in turn receives over a \
             new connection on 127.0.0.1, in a new process, with reads of up to 256 KiB. This \
             program sends 256 KiB per call, over and over. The receiver is measured for {} s \
             after {} s of warm-up. {} Receivers wake up when {} have arrived (`SO_RCVLOWAT`), or \
             less, if the kernel decides so. Receivers run on CPU {}, the sender on CPU {}. \
             Figures are medians over the rounds, with the minimum and the maximum in \
             parentheses. A ratio is computed within each round, and the table has the median of \
             these ratios. A GB is 10⁹ bytes.",
            options.rounds,
            receiving.seconds.as_secs_f64(),
            receiving.warm_up.as_secs_f64(),
            match receiving.read {
                true => "Each receiver reads all bytes once, and computes their sum.",
                false => "No receiver looks at the bytes, so no contender pays for reading them.",
            },
            size_text(receiving.low_water_mark),
            options.loopback.receiver_cpu,
            options.loopback.sender_cpu,
        )
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &ReceiveResults) -> String {
    let mut raw = RawData::new::<super::scenario::Scenario>();
    for row in results.iter() {
        let sample = &row.sample;
        let usage = &sample.usage;
        let measured = [
            ("seconds", usage.seconds),
            ("received_bytes", usage.received_bytes as f64),
            ("reads", sample.reads as f64),
            ("receiver_cpu_seconds", usage.process_cpu_seconds),
            ("machine_busy_seconds", usage.machine_busy_seconds),
            ("received_bytes_with_warm_up", sample.total_bytes as f64),
            ("mapped_bytes_with_warm_up", sample.mapped_bytes as f64),
        ];
        raw.push_measurement(row, measured, &ReceiveMeasure::ALL);
    }
    raw.text()
}
