//! Builds the report of a run of `compare copy`: the page, and the raw data.

use std::path::Path;

use super::contender::FileSender;
use super::options::CopyOptions;
use super::results::{self, CopyMeasure, CopyResults};
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no
  interrupts, no packet loss and no network latency. With `sendfile`, the receiver's socket gets
  references to the file's pages, as a network interface with scatter-gather would.
- The receiver does not copy the bytes to user space: it discards them inside the kernel
  (`MSG_TRUNC`). A real receiver would copy or map them.
- The file is in the page cache. Reading a file from a disk is not measured, although that is what
  tokio's blocking threads are for.
- All threads of a sender share one CPU. With a second CPU, tokio's blocking threads could read
  while its event loop writes, which would change the throughput of tokio-copy and tokio-copy-buf.
- tokio-copy uses the default buffer of tokio's `copy`, which has 8 KiB, and hands each read to a
  blocking thread. This is how programs are usually written. tokio-copy-buf has a larger buffer, and
  so needs fewer reads.
- The sender's CPU time is the user and system time of all threads of its process, from the call
  that sends the file until the receiver has received the last byte. This includes the start of
  tokio's runtime. It excludes the start of the process, the connection setup and the opening of the
  file. The sender reads the time from its own CPU clock, which counts nanoseconds.
- On loopback, the sender's CPU also does the receiver's TCP work, up to the point where the bytes
  are in the receiver's socket queue, and frees the pages that the receiver has acknowledged. For
  every contender this counts as the sender's CPU time, so the differences between contenders look
  smaller than they are. The machine's busy time counts everything, including the receiver. The
  kernel counts busy time in clock ticks, usually of 10 ms, which is coarse for one transfer, and
  meaningless for small files.
- Before the rounds, the receiver compares every byte of one transfer of each contender with the
  file. In the rounds it only counts the bytes.
- Neither the contenders nor the receiver set socket buffer sizes or `TCP_NODELAY`. The kernel
  adjusts the buffer sizes during the transfer, for all contenders alike.
";

/// The data that the report is built from.
pub(super) struct CopyReport<'a> {
    pub(super) options: &'a CopyOptions,
    pub(super) participants: &'a [Participant<FileSender>],
    pub(super) results: &'a CopyResults,
    pub(super) facts: &'a [(&'static str, String)],
}

impl CopyReport<'_> {
    /// Builds the page.
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
            "{} rounds. In each round, at each size, every contender in turn sends a file of that \
             size once, from a new process and over a new connection on 127.0.0.1. The file is in \
             the page cache, and the receiver discards the bytes. Senders run on CPU {}, the \
             receiver on CPU {}. Figures are medians over the rounds, with the minimum and the \
             maximum in parentheses. A ratio is computed within each round, and the table has the \
             median of these ratios. \"sender CPU s\" is per transfer. A GB is 10⁹ bytes.",
            options.rounds, options.loopback.sender_cpu, options.loopback.receiver_cpu,
        )
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &CopyResults) -> String {
    let mut raw = RawData::new::<u64>();
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
