//! The report of a run: a page to read, and raw data.

use std::path::Path;

use super::contender::FileSender;
use super::options::CopyOptions;
use super::results::{self, CopyMeasure, CopyResults};
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};

/// What no reader should have to find out alone.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no
  interrupts, no loss, no distance. The pages of sendfile go to the receiver by reference, as they
  would to a scatter-gather interface.
- The receiver copies nothing: it discards inside the kernel (`MSG_TRUNC`). A real one would copy,
  or map.
- The file is in the page cache. Nothing here shows a disk or a cold file, for which tokio's
  blocking threads exist.
- All threads of a sender share one CPU. On a second CPU, tokio's blocking threads could read while
  its event loop writes, which would change the throughput of tokio-copy and tokio-copy-buf.
- tokio-copy uses the default buffer of tokio's `copy`, 8 KiB, and hands each read to a blocking
  thread. That is how programs are usually written. tokio-copy-buf is tokio's better setting.
- sender CPU is the user and system time of the sender's process with all its threads, from the
  call that sends until the receiver has the last byte. It includes the start of tokio's runtime. It
  excludes the start of the process, the connection and the opening of the file. The sender reads it
  from its own CPU clock, which counts nanoseconds.
- The sender's CPU also does the receiver's TCP work up to its socket queue, and frees what has been
  acknowledged. That counts as the sender's, for all alike, and dilutes their differences. The
  machine's busy time counts everything, including the receiver. The kernel counts it in clock
  ticks, usually of 10 ms, which is coarse for one transfer and means nothing for small files.
- Before the rounds, the receiver compares every byte of one transfer of each contender with the
  file. In the rounds it counts the bytes.
- Nothing sets socket buffer sizes or `TCP_NODELAY`. The kernel sizes the buffers as it goes, for
  all alike.
";

/// What the report is made from.
pub(super) struct CopyReport<'a> {
    pub(super) options: &'a CopyOptions,
    pub(super) participants: &'a [Participant<FileSender>],
    pub(super) results: &'a CopyResults,
    pub(super) facts: &'a [(&'static str, String)],
}

impl CopyReport<'_> {
    /// The page.
    pub(super) fn markdown(&self) -> String {
        let options = self.options;
        let congestion = &options.loopback.congestion;
        let mut page = page::head(
            "Sending a file over TCP compared",
            &self.method(),
            self.facts,
            &format!("{congestion}, set by TCP_CONGESTION"),
        );
        page += &loopback::report::contenders(self.participants, |contender| {
            contender.command(Path::new("FILE"), "PORT", congestion)
        });
        page += &loopback::report::medians(
            self.participants,
            self.results,
            &[
                CopyMeasure::TransferCpu,
                CopyMeasure::SenderCpu,
                CopyMeasure::MachineBusy,
                CopyMeasure::Throughput,
                CopyMeasure::SenderShare,
                CopyMeasure::ReceiverShare,
            ],
            &options.sizes,
            |size, contender| results::remark(self.results, size, contender.name),
        );
        page += &loopback::report::ratios(
            self.participants,
            self.results,
            &[
                (CopyMeasure::SenderCpu, "less"),
                (CopyMeasure::Throughput, "more"),
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
            "{} rounds; in each one, at each size, every contender in turn sends a file of that \
             size once, from a new process and over one new connection on 127.0.0.1. The file is \
             in the page cache, and the receiver discards what arrives. Senders run on CPU {}, the \
             receiver on CPU {}. Figures are medians over the rounds (least–greatest); a ratio is \
             the median of the ratios within each round. \"sender CPU s\" is per transfer. A GB is \
             10⁹ bytes.",
            options.rounds, options.loopback.sender_cpu, options.loopback.receiver_cpu,
        )
    }
}

/// The raw data.
pub(super) fn raw_data(results: &CopyResults) -> String {
    let mut raw = RawData::new();
    for row in results.iter() {
        let usage = &row.sample;
        let measured = [
            ("seconds", usage.seconds),
            ("received_bytes", usage.received_bytes as f64),
            ("machine_busy_seconds", usage.machine_busy_seconds),
            ("receiver_cpu_seconds", usage.own_cpu_seconds),
        ];
        raw.push_measurement(row, measured, &CopyMeasure::ALL);
    }
    raw.text()
}
