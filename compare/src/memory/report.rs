//! The report of a run: a page to read, and raw data.

use super::contender::MemorySender;
use super::job::SenderSetup;
use super::options::MemoryOptions;
use super::results::{self, MemoryMeasure, MemoryResults};
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};
use crate::table::size_text;

/// What a reader must know before reading any figure.
const LOOPBACK: &str = "\
**What loopback cannot show.** `MSG_ZEROCOPY` and `send_zc` always copy on loopback: the kernel
copies the pages in flight when they are queued for the receiver. Their rows show what they cost
here, never what they gain on a network interface. `vmsplice` and `sendfile` hand the pages
themselves to the receiver, as they would to a scatter-gather interface. There is no DMA, no
segmentation or checksum offload, no interrupts, no loss and no distance.
";

/// What no reader should have to find out alone.
const CAVEATS: &str = "\
## What is unfair

- The same buffer is sent over and over. As long as it fits the caches it is copied from there,
  which flatters copying. The result of a computation is in the caches too; data from elsewhere is
  not.
- No buffer is filled or rewritten. Permanently frozen pages cannot be, and new ones cost more than
  a copy: `vmsplice` is for bytes that are sent many times. A region can be, and the first write to
  a huge page in flight copies all of it.
- \"copied\" is the share of bytes that the CPU copied on the sender's side, as the sender reports
  it. For `MSG_ZEROCOPY` and `send_zc` it comes from the kernel's notifications; of several merged
  ones, the first stands for all. iperf3 does not report it; it is what its system call does.
- The receiver copies nothing: it discards inside the kernel (`MSG_TRUNC`). A real one would copy,
  or map.
- The sender's CPU also does the receiver's TCP work up to its socket queue, and frees what has been
  acknowledged. That counts as the sender's, for all alike, and dilutes their differences. The
  machine's busy time counts everything, including the receiver.
- iperf3's client reads the clock and waits for the socket by `select` between its calls. It talks
  to this program and not to its own server, so that all have the same receiver. Its bytes are
  random and ours a pattern. The receiver compares the first two buffers of ours, and the number of
  bytes of all.
- Nothing sets socket buffer sizes or `TCP_NODELAY`. The kernel sizes the buffers as it goes, for
  all alike.
- The kernel counts CPU time of processes and of the machine in clock ticks, usually of 10 ms.
";

/// What the report is made from.
pub(super) struct MemoryReport<'a> {
    pub(super) options: &'a MemoryOptions,
    pub(super) participants: &'a [Participant<MemorySender>],
    pub(super) results: &'a MemoryResults,
    pub(super) facts: &'a [(&'static str, String)],
}

impl MemoryReport<'_> {
    /// The page.
    pub(super) fn markdown(&self) -> String {
        let options = self.options;
        let congestion = &options.loopback.congestion;
        let mut page = page::head(
            "Sending memory over TCP compared",
            &self.method(),
            self.facts,
            &format!("{congestion}, set by TCP_CONGESTION"),
        );
        page += LOOPBACK;
        page.push('\n');
        page += &loopback::report::contenders(self.participants, |contender| {
            contender.command(&SenderSetup {
                port: "PORT",
                size: "SIZE",
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
        page += &targets::section(self.results);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds; in each one, at each size, every contender in turn sends a buffer of that \
             size over and over, from a new process and over one new connection on 127.0.0.1, and \
             is measured for {} s after {} s of warm-up. Senders run on CPU {}, the receiver on \
             CPU {}. Figures are medians over the rounds (least–greatest); a ratio is the median \
             of the ratios within each round. A GB is 10⁹ bytes received.",
            options.rounds,
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
                format!("takes at most {} a call", size_text(max_size))
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

/// The raw data.
pub(super) fn raw_data(results: &MemoryResults) -> String {
    let mut raw = RawData::new();
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
