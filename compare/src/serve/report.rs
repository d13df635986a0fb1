//! The run as a page to read and as raw data.

use std::path::Path;

use super::results::{Measure, Results};
use super::{Entrant, Options, targets};
use crate::page::{self, Raw};
use crate::table::{
    Spread, dash, grouped, markdown, percent, size_text, strings, three_digits, two_digits,
};

/// What no reader should have to find out alone.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no segmentation or checksum offload, no interrupts, no loss, no
  distance. sendfile's pages go to the receiver by reference, as they would to a scatter-gather interface.
- The sender's CPU also does the receiver's TCP work up to its socket queue. It is counted as the server's, for all
  servers alike, and dilutes their differences. The machine's busy time counts everything, the load generator included.
- The load generator has one CPU. Where it is the limit the row says so, and the ratio is smaller than it would be.
  It discards bodies of 16 KiB and more inside the kernel, so no receiver copies them; a real client would.
- All files are in the page cache. Nothing here shows a disk, a cold file, many files, TLS, or slow clients.
- Unless the run is one of distinct requests (`--distinct`), every request is the same, byte for byte. `uncopied` gives the head of its
  last answer again to such a request, for half a second; whether the file is still the same it asks each time. A
  request that has not come before takes the whole way through hyper.
- Servers do unequal work for the same request: `plain` parses no HTTP and sends two headers; nginx and axum send
  Date, Last-Modified and the like. `plain` and axum have no time-outs; nginx arms timers. nginx trusts its cache of
  open files for 60 s.
- axum's ServeDir reads files in tokio's blocking threads, which all share the one server CPU here.
- nginx runs without a master process. Its event loop is the same as a worker's.
- CPU time of processes and of the machine is counted in clock ticks (usually 10 ms) by the kernel.
- Resident memory is the processes' own; socket buffers in the kernel are not in it, for nobody.
";

/// Everything that the page tells.
pub(super) struct Report<'a> {
    pub(super) options: &'a Options,
    pub(super) entrants: &'a [Entrant],
    pub(super) results: &'a Results,
    pub(super) facts: &'a [(&'static str, String)],
    pub(super) congestion: &'a str,
    pub(super) files: &'a Path,
}

impl Report<'_> {
    /// The page.
    pub(super) fn markdown(&self) -> String {
        let mut page = page::head(
            "File servers compared",
            &self.method(),
            self.facts,
            self.congestion,
        );
        self.write_contenders(&mut page);
        if !self.results.loads.is_empty() {
            self.write_medians(&mut page);
            self.write_ratios(&mut page);
        }
        if !self.results.idles.is_empty() {
            self.write_idle(&mut page);
        }
        page += &targets::section(self.results);
        page += CAVEATS;
        page
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds; in each one, at each size, every contender in turn is under load for {} s \
             after {} s of warm-up: {} keep-alive connections, one request under way on each{}. \
             Servers run on CPU {}, the load generator on CPU {}. Figures are medians over the \
             rounds (least–greatest); a ratio is the median of the rounds' ratios. \
             A GB is 10⁹ bytes of body.",
            options.rounds,
            options.seconds.as_secs_f64(),
            options.warm_up.as_secs_f64(),
            options.connections,
            match options.distinct {
                true => ", each with a number of its own in its query",
                false => "",
            },
            options.server_cpu,
            options.load_cpu,
        )
    }

    fn write_contenders(&self, page: &mut String) {
        *page += "## Contenders\n\n";
        for entrant in self.entrants {
            let contender = entrant.contender;
            let launch = entrant.launch.as_ref().map(|launch| {
                let words: Vec<_> = launch
                    .command
                    .iter()
                    .map(|word| word.to_string_lossy())
                    .collect();
                let command = self.without_places(&words.join(" "), entrant);
                (launch.version.as_str(), command)
            });
            *page += &page::contender(
                contender.name,
                contender.about,
                launch
                    .as_ref()
                    .map(|(version, command)| (*version, command.as_str())),
                entrant.trouble.as_ref(),
            );
        }
        page.push('\n');
        for entrant in self.entrants {
            let launch = entrant.launch.as_ref();
            if let Some(text) = launch.and_then(|launch| launch.configuration.as_ref()) {
                let text = self.without_places(text, entrant);
                *page += &format!("{}'s configuration:\n\n", entrant.contender.name);
                for line in text.lines() {
                    *page += &format!("    {line}\n");
                }
                page.push('\n');
            }
        }
    }

    /// Takes out of a text what only this run's temporary places explain.
    fn without_places(&self, text: &str, entrant: &Entrant) -> String {
        let mut text = text
            .replace(&*self.files.to_string_lossy(), "FILES")
            .replace(&*entrant.scratch.to_string_lossy(), "SCRATCH")
            .replace(&entrant.address.port().to_string(), "PORT");
        let launch = entrant.launch.as_ref();
        if let Some(program) = launch.and_then(|launch| launch.command.first())
            && let Some(name) = Path::new(program).file_name()
        {
            text = text.replace(&*program.to_string_lossy(), &name.to_string_lossy());
        }
        text
    }

    fn write_medians(&self, page: &mut String) {
        *page += "## Under load\n\n";
        let columns = [
            Measure::Requests,
            Measure::ServerCpu,
            Measure::MachineBusy,
            Measure::RequestsPerCpuSecond,
            Measure::ServerShare,
            Measure::LoadShare,
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
                        let spread = self.results.spread(measure, size, name);
                        spread.map_or_else(dash, |spread| cell(measure, spread))
                    }));
                    row.push(self.results.remark(size, name));
                    row
                })
                .collect();
            *page += &format!("### {}\n\n{}\n", size_text(size), markdown(&header, &rows));
        }
    }

    /// Ours against every peer, and the peers against nginx.
    fn pairs(&self) -> Vec<(&'static str, &'static str)> {
        let side = |ours| {
            self.entrants
                .iter()
                .map(|entrant| entrant.contender)
                .filter(move |contender| contender.ours == ours)
                .map(|contender| contender.name)
        };
        let ours_and_peers = side(true).flat_map(|our| side(false).map(move |peer| (our, peer)));
        let peers_and_nginx = side(false)
            .filter(|&peer| peer != "nginx" && side(false).any(|other| other == "nginx"))
            .map(|peer| (peer, "nginx"));
        ours_and_peers.chain(peers_and_nginx).collect()
    }

    fn write_ratios(&self, page: &mut String) {
        let pairs = self.pairs();
        if pairs.is_empty() {
            return;
        }
        *page += "## Ratios\n\n";
        for (measure, better) in [
            (Measure::Requests, "more"),
            (Measure::ServerCpu, "less"),
            (Measure::MachineBusy, "less"),
        ] {
            let sizes = self
                .options
                .sizes
                .iter()
                .map(|&size| (size, size_text(size)));
            *page += &page::ratios(
                measure.name(),
                better,
                sizes,
                &pairs,
                |size, above, below| self.results.ratio(measure, size, above, below),
            );
        }
    }

    fn write_idle(&self, page: &mut String) {
        *page += &format!(
            "## Idle\n\n{} keep-alive connections, each after one request of 1 KiB, to a server \
             that has just been started.\n\n",
            self.options.idle_connections
        );
        let rows: Vec<Vec<String>> = self
            .entrants
            .iter()
            .map(|entrant| {
                let name = entrant.contender.name;
                let value = self.results.idle_kib(name);
                let text = |spread: Spread| spread.text(two_digits);
                vec![name.to_owned(), value.map_or_else(dash, text)]
            })
            .collect();
        *page += &markdown(&strings(&["", "KiB resident per connection"]), &rows);
        page.push('\n');
    }
}

fn cell(measure: Measure, spread: Spread) -> String {
    match measure {
        Measure::Requests => spread.text(grouped),
        Measure::ServerCpu | Measure::MachineBusy => spread.text(three_digits),
        Measure::RequestsPerCpuSecond => grouped(spread.median),
        Measure::ServerShare | Measure::LoadShare | Measure::OtherShare => percent(spread.median),
    }
}

/// The raw data.
pub(super) fn raw(results: &Results) -> String {
    let mut raw = Raw::new();
    for load in results.loads.iter() {
        let sample = &load.sample;
        let measured = [
            ("seconds", sample.seconds),
            ("requests", sample.requests),
            ("body_bytes", sample.body_bytes),
            ("server_cpu_seconds", sample.server_cpu_seconds),
            ("machine_busy_seconds", sample.machine_busy_seconds),
            ("load_cpu_seconds", sample.load_cpu_seconds),
        ];
        let derived = Measure::ALL.map(|measure| (measure.key(), measure.of(sample)));
        let values = measured.into_iter().chain(derived);
        raw.push(load.round, load.contender, load.size, values);
    }
    for idle in &results.idles {
        let footprint = &idle.footprint;
        let values = [
            ("idle_connections", footprint.connections as f64),
            ("resident_bytes_before", footprint.before_bytes as f64),
            ("resident_bytes_after", footprint.after_bytes as f64),
            ("resident_bytes_per_connection", footprint.bytes_each()),
        ];
        raw.push(idle.round, idle.contender, super::IDLE_SIZE, values);
    }
    raw.text()
}
