//! Builds the report of a run of `compare get`: the page, and the raw data.

use std::path::Path;

use super::case::GetCase;
use super::contender::{Download, Downloader};
use super::options::GetOptions;
use super::results::{self, GetMeasure, GetResults};
use super::server::FileServer;
use super::targets;
use crate::loopback;
use crate::loopback::participants::Participant;
use crate::page::{self, RawData};

/// The limits of the comparison, which the report states for its readers.
const CAVEATS: &str = "\
## What is unfair, and what loopback cannot show

- On loopback there is no network interface: no DMA, no offload, no interrupts, no packet loss and no
  network latency. nginx sends with `sendfile`, so the downloader's socket gets references to the
  pages of the served file, as it would get pages that a network interface has filled.
- The client's CPU time and the seconds are those of the whole process: they include the start of the
  program, the connection and the exit. A wrapper that pins the process to its CPU and executes the
  program is included too, at about a millisecond for every contender.
- The work differs. `uncopied get` writes to a temporary file, and renames it when the file is whole
  and on the disk (fsync). The seconds include the wait for the disk. The others leave the bytes in
  the page cache, and curl, wget and the loop write to the final name at once. aria2c keeps a file
  with its state next to the file.
- wget has one connection, so its rate for many files cannot be compared with that of the others.
- All threads of a downloader share one CPU.
- The loop understands only what it needs: it does not retry, resume or follow redirects.
- The bytes on disk are compared with the served files after every download. For `/dev/null`, only the
  bytes that nginx has sent and the exit status can be checked.
";

/// The data that the report is built from.
pub(super) struct GetReport<'a> {
    pub(super) options: &'a GetOptions,
    pub(super) cases: &'a [GetCase],
    pub(super) participants: &'a [Participant<Downloader>],
    pub(super) results: &'a GetResults,
    pub(super) facts: &'a [(&'static str, String)],
    pub(super) congestion: &'a str,
    pub(super) server: &'a FileServer,
}

impl GetReport<'_> {
    /// Builds the page. `scratch` is the directory for temporary files, which the page must not
    /// name.
    pub(super) fn markdown(&self, scratch: &Path) -> String {
        let mut page = page::head(
            "Downloads compared",
            &self.method(),
            self.facts,
            self.congestion,
        );
        page += &loopback::report::contenders(self.participants, |contender| {
            (contender.command)(&Download::One {
                url: "http://127.0.0.1:PORT/NAME",
                output: Path::new("FILE"),
            })
        });
        page += &self.commands_for_many();
        page += &loopback::report::medians(
            self.participants,
            self.results,
            &GetMeasure::ALL,
            self.cases,
            |case, contender| match (contender.takes_part)(case) {
                true => results::remark(self.results, case, contender.name),
                false => "does not take part".to_owned(),
            },
        );
        page += &loopback::report::ratios(
            self.participants,
            self.results,
            &[
                (GetMeasure::ClientCpu, "less"),
                (GetMeasure::Seconds, "less"),
            ],
            self.cases,
        );
        page += &targets::section(self.results);
        page += CAVEATS;
        page += &self.server_section(scratch);
        page
    }

    /// Builds the list of the commands that fetch many files.
    fn commands_for_many(&self) -> String {
        let download = Download::Many {
            urls: Path::new("URLS"),
            curl_config: Path::new("URLS"),
            directory: Path::new("DIRECTORY"),
            parallel: self.options.parallel,
        };
        let mut list = String::from("Many files are fetched with these commands:\n\n");
        for participant in self.participants {
            let contender = participant.contender;
            if !(contender.takes_part)(GetCase::Many(self.options.files)) {
                continue;
            }
            if let Ok(command) = (contender.command)(&download) {
                let command = page::command_text(&command);
                list += &format!("- **{}**: `{command}`\n", contender.name);
            }
        }
        list + "\n"
    }

    fn method(&self) -> String {
        let options = self.options;
        format!(
            "{} rounds. In each round, in each case, every contender in turn downloads from {} over \
             127.0.0.1, in a new process. Many files are fetched over {} connections that are kept \
             open (wget: one). The files of the server are in the page cache. What was saved is \
             compared with them. Large files are then removed, small ones at the end of the run. nginx runs on CPU {}, the \
             downloaders on CPU {}. Figures are medians over the rounds, with the minimum and the \
             maximum in parentheses. A ratio is computed within each round, and the table has the \
             median of these ratios. \"client CPU s\" is the user and system time of the \
             downloader's process for all files of the case. A GB is 10⁹ bytes.",
            options.rounds,
            self.server.version(),
            options.parallel,
            options.loopback.sender_cpu,
            options.loopback.receiver_cpu,
        )
    }

    fn server_section(&self, scratch: &Path) -> String {
        let configuration = self.server.configuration();
        let configuration = configuration.replace(&*scratch.to_string_lossy(), "SCRATCH");
        format!("\n## The server's configuration\n\n```nginx\n{configuration}```\n")
    }
}

/// Builds the raw data.
pub(super) fn raw_data(results: &GetResults) -> String {
    let mut raw = RawData::new::<GetCase>();
    for row in results.iter() {
        let sample = &row.sample;
        let measured = [
            ("bytes", sample.bytes as f64),
            ("server_cpu_seconds", sample.server_cpu_seconds),
            ("machine_busy_seconds", sample.machine_busy_seconds),
        ];
        raw.push_measurement(row, measured, &GetMeasure::ALL);
    }
    raw.text()
}
