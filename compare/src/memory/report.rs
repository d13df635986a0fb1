//! Builds the report of a run of `compare memory`: the page, and the raw data.

use super::contender::MemorySender;
use super::job::SenderSetup;
use super::options::MemoryOptions;
use super::results::{self, MemoryMeasure, MemoryResults};
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};
use crate::table::size_text;

/// The effects of loopback, which a reader must know before reading any figure.
const LOOPBACK: &str = "\
**What loopback cannot show.** With `MSG_ZEROCOPY` and `send_zc`, the kernel always copies on
loopback: it copies the pages in flight when it queues them for the receiver. The rows of these two
show what they cost here, not what they gain on a network interface. With `vmsplice` and `sendfile`,
the receiver's socket gets references to the pages themselves, as a network interface with
scatter-gather would. On loopback there is no DMA, no segmentation or checksum offload, no
interrupts, no packet loss and no network latency.
";

/// The effects of loopback that matter only if a sender sends over several connections.
const FAN_OUT_ON_LOOPBACK: &str = "
For the same reason, the library's own choice for `Bytes` is to copy on loopback. For receivers on
other machines it is `send_zc`, and `tokio-bytes` cannot show what that gains. All connections end at
one receiver on one CPU, whose socket queues all refer to the same pages if these were not copied. On
a network, every byte of every connection would have to pass through the network interface, with and
without a copy.
";

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair

- The same buffer is sent over and over. If it fits into the CPU's caches, it is copied from there,
  which makes copying look cheaper than it is for data that is not in the caches. A result that a
  program has just computed is usually in the caches too; data from elsewhere is not.
- No contender writes to its buffer between sends. Permanently frozen pages can never be written to
  again, and allocating new ones costs more than a copy, so `vmsplice` is only worth it for bytes
  that are sent many times. A region may be written to, but the first write to a huge page in flight
  copies the whole page.
- \"copied\" is the share of the bytes that the CPU copied on the sender's side, as the sender
  reports it. For `MSG_ZEROCOPY` and `send_zc` it comes from the kernel's notifications. If the
  kernel merges several notifications, the first of them decides for all. iperf3 does not report
  copies, so its share is what its system call is known to do: 100 % with `write`, 0 % with
  `sendfile`.
- The receiver does not copy the bytes to user space: it discards them inside the kernel
  (`MSG_TRUNC`). A real receiver would copy or map them.
- On loopback, the sender's CPU also does the receiver's TCP work, up to the point where the bytes
  are in the receiver's socket queue, and frees the pages that the receiver has acknowledged. For
  every contender this counts as the sender's CPU time, so the differences between contenders look
  smaller than they are. The machine's busy time counts everything, including the receiver.
- Between its calls, iperf3's client reads the clock and waits for the socket with `select`. It
  sends to this program instead of iperf3's own server, so that all contenders have the same
  receiver. It sends random bytes, whereas ours send a pattern. The receiver compares the first two
  buffers of each connection of ours byte by byte, and checks the number of bytes of every
  contender.
- Neither the contenders nor the receiver set socket buffer sizes or `TCP_NODELAY`. The kernel
  adjusts the buffer sizes during a measurement, for all contenders alike.
- The kernel counts the CPU time of processes and of the machine in clock ticks, usually of 10 ms.
";

/// The data that the report is built from.
pub(super) struct MemoryReport<'a> {
    pub(super) options: &'a MemoryOptions,
    pub(super) participants: &'a [Participant<MemorySender>],
    pub(super) results: &'a MemoryResults,
    pub(super) facts: &'a [(&'static str, String)],
}

impl MemoryReport<'_> {
    /// Builds the page.
    pub(super) fn markdown(&self) -> String {
        let options = self.options;
        let congestion = &options.loopback.congestion;
        let mut page = page::head(
            match options.connections {
                1 => "Sending memory over TCP compared",
                _ => "Sending the same memory over many TCP connections compared",
            },
            &self.method(),
            self.facts,
            &format!("{congestion}, set by TCP_CONGESTION"),
        );
        page += LOOPBACK;
        if options.connections > 1 {
            page += FAN_OUT_ON_LOOPBACK;
        }
        page.push('\n');
        page += &loopback::report::contenders(self.participants, |contender| {
            contender.command(&SenderSetup {
                port: "PORT",
                size: "SIZE",
                connections: options.connections,
                sending_time: options.sending_time(),
                congestion,
                scratch: "SCRATCH".as_ref(),
            })
        });
        page += &self.medians();
        page += &loopback::report::ratios(
            self.participants,
            self.results,
            &[
                (MemoryMeasure::Throughput, "more"),
                (MemoryMeasure::SenderCpu, "less"),
                (MemoryMeasure::MachineBusy, "less"),
            ],
            &options.sizes,
        );
        page += &targets::section(self.results, options.connections);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds. In each round, at each size, every contender in turn sends a buffer of \
             that size over and over, from a new process and {} on 127.0.0.1. It is measured for \
             {} s after {} s of warm-up. Senders run on CPU {}, the receiver on CPU {}. Figures are \
             medians over the rounds, with the minimum and the maximum in parentheses. A ratio is \
             computed within each round, and the table has the median of these ratios. A GB is 10⁹ \
             bytes received.",
            options.rounds,
            match options.connections {
                1 => "over a new connection".to_owned(),
                several => format!("to {several} new connections at the same time"),
            },
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.loopback.sender_cpu,
            options.loopback.receiver_cpu,
        )
    }

    fn medians(&self) -> String {
        let columns = [
            MemoryMeasure::Throughput,
            MemoryMeasure::SenderCpu,
            MemoryMeasure::MachineBusy,
            MemoryMeasure::CopiedShare,
            MemoryMeasure::SenderShare,
            MemoryMeasure::ReceiverShare,
        ];
        let remark = |size, contender: &MemorySender| match contender.max_size() {
            Some(max_size) if size > max_size => {
                format!("sends at most {} per call", size_text(max_size))
            }
            _ => results::remark(self.results, size, contender.name),
        };
        loopback::report::medians(
            self.participants,
            self.results,
            &columns,
            &self.options.sizes,
            remark,
        )
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &MemoryResults) -> String {
    let mut raw = RawData::new::<u64>();
    for row in results.iter() {
        let usage = &row.sample.usage;
        let sent = &row.sample.sent;
        let measured = [
            ("seconds", usage.seconds),
            ("received_bytes", usage.received_bytes as f64),
            ("sender_cpu_seconds", usage.process_cpu_seconds),
            ("machine_busy_seconds", usage.machine_busy_seconds),
            ("receiver_cpu_seconds", usage.own_cpu_seconds),
            ("sent_bytes_with_warm_up", sent.total as f64),
            ("copied_bytes_with_warm_up", sent.copied as f64),
        ];
        raw.push_measurement(row, measured, &MemoryMeasure::ALL);
    }
    raw.text()
}
