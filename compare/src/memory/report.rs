//! The run as a page to read and as raw data.

use super::contenders::Setup;
use super::results::{Measure, Results, remark};
use super::{Entrant, MARGIN, Options, targets};
use crate::page::{self, Raw};
use crate::table::{Spread, dash, markdown, percent, size_text, three_digits, two_digits};

/// What must be known before any figure is read.
const LOOPBACK: &str = "\
**What loopback cannot show.** `MSG_ZEROCOPY` and `send_zc` always copy on loopback: the kernel copies what it was
lent when the bytes turn round to the receiver. Their rows show what they cost here, never what they gain on a network
interface. `vmsplice` and `sendfile` hand the pages themselves to the receiver, as they would to a scatter-gather
interface; there is no DMA, no segmentation or checksum offload, no interrupts, no loss and no distance.
";

/// What no reader should have to find out alone.
const CAVEATS: &str = "\
## What is unfair

- The same buffer is sent over and over. As long as it fits the caches it is copied from there, which flatters copying.
  What a program has just computed is there too; what it has from elsewhere is not.
- Nobody fills or rewrites a buffer. Pages that are frozen for good never can be, and new ones cost more than a copy:
  `vmsplice` is for bytes that are sent many times. A region can be, and the first write to a huge page in flight has
  all of it copied.
- \"copied\" is the share of bytes that the CPU copied on the sender's side, as the sender says: for `MSG_ZEROCOPY` and
  `send_zc` by the kernel's notices, of which the first of several merged ones speaks for all. iperf3 does not say; it
  is what its system call does.
- The receiver copies nothing: it discards inside the kernel (`MSG_TRUNC`). A real one would copy, or map.
- The sender's CPU also does the receiver's TCP work up to its socket queue, and frees what has been acknowledged. It is
  counted as the sender's, for all alike, and dilutes their differences. The machine's busy time counts everything, the
  receiver included.
- iperf3's client looks at the clock and waits for the socket by `select` between its calls. It speaks with this
  program and not with its own server, so that all have the same receiver. Its bytes are random and ours a pattern; of
  ours the first two buffers are compared at the receiver, of all the number of bytes.
- Nobody sets socket buffers, or `TCP_NODELAY`: the kernel sizes the buffers as it goes, for all alike.
- CPU time of processes and of the machine is counted in clock ticks (usually 10 ms) by the kernel.
";

/// Everything that the page tells.
pub(super) struct Report<'a> {
    pub(super) options: &'a Options,
    pub(super) entrants: &'a [Entrant],
    pub(super) results: &'a Results,
    pub(super) facts: &'a [(&'static str, String)],
}

impl Report<'_> {
    /// The page.
    pub(super) fn markdown(&self) -> String {
        let mut page = page::head(
            "Ways from memory to a TCP socket compared",
            &self.method(),
            self.facts,
            &format!("{}, set by TCP_CONGESTION", self.options.congestion),
        );
        page += LOOPBACK;
        page.push('\n');
        self.write_contenders(&mut page);
        self.write_medians(&mut page);
        self.write_ratios(&mut page);
        page += &targets::section(self.results);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds; in each one, at each size, every contender in turn sends a buffer of that \
             size over and over, by a new process and one new connection over 127.0.0.1, and is \
             measured for {} s after {} s of warm-up. Senders run on CPU {}, the receiver on CPU \
             {}. Figures are medians over the rounds (least–greatest); a ratio is the median of \
             the rounds' ratios. A GB is 10⁹ bytes that came.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.sender_cpu,
            options.receiver_cpu,
        )
    }

    fn write_contenders(&self, page: &mut String) {
        *page += "## Contenders\n\n";
        for entrant in self.entrants {
            let contender = entrant.contender;
            let command = self.command(entrant);
            let launch = entrant.version.as_deref().zip(command.as_deref());
            let trouble = entrant.trouble.as_ref();
            *page += &page::contender(contender.name, contender.about, launch, trouble);
        }
        page.push('\n');
    }

    /// The command line, without what only this run's temporary places explain.
    fn command(&self, entrant: &Entrant) -> Option<String> {
        let setup = Setup {
            port: "PORT",
            size: "SIZE",
            at_least: self.options.warm_up + self.options.seconds + MARGIN,
            congestion: &self.options.congestion,
            scratch: "SCRATCH".as_ref(),
        };
        let command = entrant.contender.command(&setup).ok()?;
        let words: Vec<_> = command.iter().map(|word| word.to_string_lossy()).collect();
        let own = std::env::current_exe().unwrap_or_default();
        Some(words.join(" ").replace(&*own.to_string_lossy(), "compare"))
    }

    fn write_medians(&self, page: &mut String) {
        *page += "## Measured\n\n";
        let columns = [
            Measure::Throughput,
            Measure::SenderCpu,
            Measure::MachineBusy,
            Measure::CopiedShare,
            Measure::SenderShare,
            Measure::ReceiverShare,
        ];
        let mut header = vec![String::new()];
        header.extend(columns.map(|measure| measure.name().to_owned()));
        header.push("remarks".to_owned());
        for &size in &self.options.sizes {
            let rows: Vec<Vec<String>> = self
                .entrants
                .iter()
                .map(|entrant| {
                    let name = entrant.contender.name;
                    let mut row = vec![name.to_owned()];
                    row.extend(columns.map(|measure| {
                        let spread = self.spread(measure, size, name);
                        spread.map_or_else(dash, |spread| cell(measure, spread))
                    }));
                    row.push(self.remark(size, entrant));
                    row
                })
                .collect();
            *page += &format!("### {}\n\n{}\n", size_text(size), markdown(&header, &rows));
        }
    }

    fn spread(&self, measure: Measure, size: u64, name: &str) -> Option<Spread> {
        let figure = |sample: &_| measure.of(sample);
        self.results.spread(size, name, figure)
    }

    fn remark(&self, size: u64, entrant: &Entrant) -> String {
        match (&entrant.trouble, entrant.contender.longest()) {
            (Some(trouble), _) if !trouble.is_half_way() => "left out: see above".to_owned(),
            (_, Some(longest)) if size > longest => {
                format!("takes at most {} a call", size_text(longest))
            }
            _ => remark(self.results, size, entrant.contender.name),
        }
    }

    /// A table for each measure and each peer that took part: ours against it, and for the first one, the
    /// plain loop, the other peers as well.
    fn write_ratios(&self, page: &mut String) {
        let side = |ours| {
            self.entrants
                .iter()
                .map(|entrant| entrant.contender)
                .filter(move |contender| contender.ours == ours)
                .map(|contender| contender.name)
        };
        let pairs_with = |index: usize, peer| {
            let others = side(false).filter(move |&other| index == 0 && other != peer);
            let above = side(true).chain(others);
            above.map(|name| (name, peer)).collect::<Vec<_>>()
        };
        *page += "## Ratios\n\n";
        for (measure, better) in [
            (Measure::Throughput, "more"),
            (Measure::SenderCpu, "less"),
            (Measure::MachineBusy, "less"),
        ] {
            for (index, peer) in side(false).enumerate() {
                let pairs = pairs_with(index, peer);
                if pairs.is_empty() {
                    continue;
                }
                let sizes = self.options.sizes.iter();
                let sizes = sizes.map(|&size| (size, size_text(size)));
                *page += &page::ratios(
                    measure.name(),
                    better,
                    sizes,
                    &pairs,
                    |size, above, below| {
                        let figure = |sample: &_| measure.of(sample);
                        self.results.ratio(size, above, below, figure)
                    },
                );
            }
        }
    }
}

fn cell(measure: Measure, spread: Spread) -> String {
    match measure {
        Measure::Throughput => spread.text(two_digits),
        Measure::SenderCpu | Measure::MachineBusy => spread.text(three_digits),
        Measure::CopiedShare
        | Measure::SenderShare
        | Measure::ReceiverShare
        | Measure::OtherShare => percent(spread.median),
    }
}

/// The raw data.
pub(super) fn raw(results: &Results) -> String {
    let mut raw = Raw::new();
    for row in results.iter() {
        let usage = &row.sample.usage;
        let sent = &row.sample.account.sent;
        let measured = [
            ("seconds", usage.seconds),
            ("received_bytes", usage.received_bytes as f64),
            ("sender_cpu_seconds", usage.process_cpu_seconds),
            ("machine_busy_seconds", usage.machine_busy_seconds),
            ("receiver_cpu_seconds", usage.own_cpu_seconds),
            ("sent_bytes_with_warm_up", sent.bytes as f64),
            ("copied_bytes_with_warm_up", sent.copied as f64),
        ];
        let derived = Measure::ALL.map(|measure| (measure.key(), measure.of(&row.sample)));
        let values = measured.into_iter().chain(derived);
        raw.push(row.round, row.contender, row.size, values);
    }
    raw.text()
}
