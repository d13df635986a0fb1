//! The report: as text for people, and as JSON.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::time::Duration;

use serde::Serialize;

use super::bytes::{ByteCounts, Bytes, BytesError};
use super::classify::Activity;
use super::process::CpuTime;
use super::profile::Profile;
use super::sampling::SamplingError;

/// With fewer samples, the report gives counts instead of shares.
const MIN_SAMPLES: u64 = 100;

/// How many functions and threads the text lists.
const MAX_ROWS: usize = 8;

/// What the report is based on.
pub(super) enum Basis {
    /// Samples in user code and in the kernel, with the names of functions.
    Samples,
    /// Samples in user code and in the kernel, whose functions have no names for this user.
    UnnamedSamples,
    /// Samples in user code only.
    UserSamples,
    /// No samples: only the CPU time that the kernel accounts for.
    CpuTime(SamplingError),
}

impl Basis {
    fn key(&self) -> &'static str {
        match self {
            Self::Samples => "samples",
            Self::UnnamedSamples => "unnamed_samples",
            Self::UserSamples => "user_samples",
            Self::CpuTime(_) => "cpu_time",
        }
    }
}

/// Everything that was found out.
pub(super) struct Report<'a> {
    /// The command or the name of the process.
    pub(super) subject: &'a str,
    pub(super) process: i32,
    /// How the command has failed.
    pub(super) failure: Option<String>,
    pub(super) time: Duration,
    pub(super) cpu_time: CpuTime,
    pub(super) basis: Basis,
    /// Samples per second of CPU time.
    pub(super) frequency: u64,
    pub(super) profile: &'a Profile,
    pub(super) bytes: &'a Result<ByteCounts, BytesError>,
    /// The value of `kernel.perf_event_paranoid`.
    pub(super) paranoid: Option<i32>,
}

/// The report as JSON.
#[derive(Serialize)]
struct Json<'a> {
    subject: &'a str,
    pid: i32,
    seconds: f64,
    cpu_seconds: CpuSeconds,
    /// What the report is based on.
    basis: &'static str,
    /// The share of CPU time that went into copying payload, or null if it is not known.
    copy_share: Option<f64>,
    /// Half the width of the 95 % confidence interval of `copy_share`.
    copy_share_margin: Option<f64>,
    /// If `copy_share` is not known: what it is at most.
    copy_share_at_most: Option<f64>,
    samples: u64,
    samples_per_second: u64,
    lost_records: u64,
    /// Samples by what they show.
    activities: BTreeMap<&'static str, u64>,
    /// The innermost functions of the samples that show copying.
    copy_functions: Vec<Function<'a>>,
    /// The functions of the samples that were taken where interrupts come back on.
    interrupts_on_functions: Vec<Function<'a>>,
    threads: Vec<Thread<'a>>,
    /// The bytes that went through sockets, or null if they were not counted.
    socket_bytes: Option<Vec<SocketBytes<'a>>>,
    /// Sentences on what could not be measured, and why.
    notes: Vec<String>,
}

#[derive(Serialize)]
struct CpuSeconds {
    user: f64,
    system: f64,
}

#[derive(Serialize)]
struct Function<'a> {
    name: &'a str,
    samples: u64,
}

#[derive(Serialize)]
struct Thread<'a> {
    pid: i32,
    tid: i32,
    name: &'a str,
    samples: u64,
    copy_samples: u64,
}

/// The bytes of one process.
#[derive(Serialize)]
struct SocketBytes<'a> {
    pid: i32,
    name: &'a str,
    sent: u64,
    /// How many bytes were copied for that, or null if it is not known.
    sent_copied: Option<u64>,
    received: u64,
    received_copied: u64,
}

impl Report<'_> {
    /// The share of samples that show copying, if there are enough samples with names.
    fn copy_share(&self) -> Option<f64> {
        let samples = self.profile.samples();
        let is_known = matches!(self.basis, Basis::Samples) && samples >= MIN_SAMPLES;
        is_known.then(|| ratio(self.profile.count(Activity::Copy), samples))
    }

    /// Half the width of the 95 % confidence interval of the share, by Wilson's method, which also
    /// holds for shares near 0.
    fn copy_share_margin(&self) -> Option<f64> {
        const Z: f64 = 1.96;
        let share = self.copy_share()?;
        let count = self.profile.samples() as f64;
        let root = (share * (1.0 - share) / count + Z * Z / (4.0 * count * count)).sqrt();
        Some(Z * root / (1.0 + Z * Z / count))
    }

    /// If the share of copying is not known: the share of the kernel, which includes it.
    fn copy_share_at_most(&self) -> Option<f64> {
        let cpu_time = self.cpu_time.total();
        match self.basis {
            Basis::Samples => None,
            Basis::UnnamedSamples => (self.profile.samples() >= MIN_SAMPLES)
                .then(|| ratio(self.profile.kernel_samples(), self.profile.samples())),
            // The kernel accounts in clock ticks of 10 ms or less.
            Basis::UserSamples | Basis::CpuTime(_) => (cpu_time >= Duration::from_secs(1))
                .then(|| self.cpu_time.system.as_secs_f64() / cpu_time.as_secs_f64()),
        }
    }

    /// Sentences on what could not be measured, and why.
    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(failure) = &self.failure {
            notes.push(format!(
                "{} {failure}: what it was to do may not be in this report.",
                self.subject
            ));
        }
        let paranoid = match self.paranoid {
            Some(value) => format!("kernel.perf_event_paranoid is {value}"),
            None => "kernel.perf_event_paranoid cannot be read".to_owned(),
        };
        match &self.basis {
            Basis::Samples => {}
            Basis::UnnamedSamples => notes.push(
                "The addresses in /proc/kallsyms are hidden from this user, so copying cannot be \
                 told from other work of the kernel: run as root, or set kernel.kptr_restrict to 0."
                    .to_owned(),
            ),
            Basis::UserSamples => notes.push(format!(
                "This user may not sample the kernel ({paranoid}), so copying cannot be told from \
                 other work of the kernel: run as root or with CAP_PERFMON, or set it to 1."
            )),
            Basis::CpuTime(error @ SamplingError::Refused) => notes.push(format!(
                "Nothing could be sampled: {error} ({paranoid}); run as root or with CAP_PERFMON, \
                 and outside a container whose seccomp filter forbids perf_event_open."
            )),
            Basis::CpuTime(error) => notes.push(format!(
                "Nothing could be sampled: {error}; only the CPU time is known."
            )),
        }
        let samples = self.profile.samples();
        if !matches!(self.basis, Basis::CpuTime(_)) && samples < MIN_SAMPLES {
            notes.push(format!(
                "{samples} samples are too few for shares ({MIN_SAMPLES} are needed): put the \
                 program under load, or watch it for longer."
            ));
        }
        if self.profile.lost > 0 {
            notes.push(format!(
                "{} records were lost because the program ran on while this command did not; the \
                 shares are those of the others.",
                self.profile.lost
            ));
        }
        notes.extend(self.bytes_notes());
        let interrupts_on = self.profile.count(Activity::InterruptsOn);
        if interrupts_on > 0 {
            notes.push(
                "The clock that takes the samples is an interrupt: work that the kernel does with \
                 interrupts off is counted where they come back on. The copies are not such work."
                    .to_owned(),
            );
        }
        notes
    }

    /// Sentences on what is not known about bytes.
    fn bytes_notes(&self) -> Vec<String> {
        let counts = match self.bytes {
            Ok(counts) => counts,
            Err(error) => return vec![format!("Bytes were not counted: {error}.")],
        };
        let Some(processes) = counts.processes() else {
            return vec!["Bytes were not counted, because some records were lost.".to_owned()];
        };
        let mut notes = Vec::new();
        if let Some(error) = counts.probes_error() {
            notes.push(format!(
                "How many of the sent bytes were copied was not counted: {error}."
            ));
        }
        let Some(sends) = counts.sends() else {
            return notes;
        };
        if sends.is_incomplete {
            notes.push(
                "How many of the sent bytes were copied is not known: more was sent on this machine \
                 than could be counted."
                    .to_owned(),
            );
        }
        let is_unknown = |(process, bytes): (&i32, &Bytes)| {
            bytes.sent > 0 && counts.sent_copied(*process, bytes).is_none()
        };
        if sends.unattributed > 0 && processes.iter().any(is_unknown) {
            notes.push(format!(
                "{} bytes on this machine were copied from packets whose sender is not known, for \
                 example because they were sent before.",
                sends.unattributed
            ));
        }
        notes
    }

    fn socket_bytes(&self) -> Option<Vec<SocketBytes<'_>>> {
        let counts = self.bytes.as_ref().ok()?;
        let processes = counts.processes()?;
        let row = |(&pid, bytes): (&i32, &Bytes)| SocketBytes {
            pid,
            name: self.profile.name(pid).unwrap_or_default(),
            sent: bytes.sent,
            sent_copied: counts.sent_copied(pid, bytes),
            received: bytes.received,
            received_copied: bytes.copied_from_packets,
        };
        Some(processes.iter().map(row).collect())
    }

    /// Returns the report as one line of JSON.
    pub(super) fn json(&self) -> String {
        let function = |(name, samples)| Function { name, samples };
        let functions = |activity| {
            let functions = self.profile.functions(activity).into_iter();
            functions.map(function).collect()
        };
        let json = Json {
            subject: self.subject,
            pid: self.process,
            seconds: self.time.as_secs_f64(),
            cpu_seconds: CpuSeconds {
                user: self.cpu_time.user.as_secs_f64(),
                system: self.cpu_time.system.as_secs_f64(),
            },
            basis: self.basis.key(),
            copy_share: self.copy_share(),
            copy_share_margin: self.copy_share_margin(),
            copy_share_at_most: self.copy_share_at_most(),
            samples: self.profile.samples(),
            samples_per_second: self.frequency,
            lost_records: self.profile.lost,
            activities: Activity::ALL
                .into_iter()
                .map(|activity| (activity.key(), self.profile.count(activity)))
                .collect(),
            copy_functions: functions(Activity::Copy),
            interrupts_on_functions: functions(Activity::InterruptsOn),
            threads: self
                .profile
                .threads()
                .into_iter()
                .map(|(tid, count)| Thread {
                    pid: count.process,
                    tid,
                    name: &count.name,
                    samples: count.samples,
                    copy_samples: count.copies,
                })
                .collect(),
            socket_bytes: self.socket_bytes(),
            notes: self.notes(),
        };
        // Serialising such a value cannot fail: its keys are strings.
        let mut line = serde_json::to_string(&json).unwrap_or_default();
        line.push('\n');
        line
    }

    /// The main result, in one sentence.
    fn result(&self) -> String {
        let copies = self.profile.count(Activity::Copy);
        let samples = self.profile.samples();
        match (self.copy_share(), self.copy_share_at_most()) {
            (Some(share), _) => format!(
                "{} of the CPU time went into copying payload (± {}; {copies} of {samples} samples)",
                Percent(share),
                Percent(self.copy_share_margin().unwrap_or(0.0)),
            ),
            (None, Some(most)) => format!(
                "At most {} of the CPU time went into copying payload: the rest was user code",
                Percent(most)
            ),
            (None, None) => {
                "How much of the CPU time went into copying payload is not known".into()
            }
        }
    }
}

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpu = self.cpu_time;
        writeln!(
            f,
            "{} (PID {}), {:.1} s, CPU time {:.2} s: {:.2} s user, {:.2} s system",
            Printable(self.subject),
            self.process,
            self.time.as_secs_f64(),
            cpu.total().as_secs_f64(),
            cpu.user.as_secs_f64(),
            cpu.system.as_secs_f64(),
        )?;
        writeln!(f, "{}", self.result())?;
        if self.profile.samples() > 0 {
            self.write_activities(f)?;
            self.write_threads(f)?;
        }
        self.write_bytes(f)?;
        for note in self.notes() {
            writeln!(f, "\n{note}")?;
        }
        Ok(())
    }
}

impl Report<'_> {
    /// Writes what the samples show. Copies and places where interrupts come back on are listed by
    /// function.
    fn write_activities(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\nsamples   share  what")?;
        let samples = self.profile.samples();
        for activity in Activity::ALL {
            let count = self.profile.count(activity);
            if count == 0 {
                continue;
            }
            writeln!(
                f,
                "{count:7} {:>7}  {activity}",
                Percent(ratio(count, samples))
            )?;
            if !matches!(activity, Activity::Copy | Activity::InterruptsOn) {
                continue;
            }
            for (name, count) in self.profile.functions(activity).iter().take(MAX_ROWS) {
                writeln!(
                    f,
                    "{count:7} {:>7}    {name}",
                    Percent(ratio(*count, samples))
                )?;
            }
        }
        Ok(())
    }

    fn write_threads(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threads = self.profile.threads();
        let is_known = matches!(self.basis, Basis::Samples);
        writeln!(
            f,
            "\nsamples {} thread",
            if is_known { "copying" } else { "       " }
        )?;
        for (thread, count) in threads.iter().take(MAX_ROWS) {
            let copying = match is_known {
                true => Percent(ratio(count.copies, count.samples)).to_string(),
                false => String::new(),
            };
            let name = Printable(&count.name);
            writeln!(f, "{:7} {copying:>7} {thread} {name}", count.samples)?;
        }
        match threads.len().checked_sub(MAX_ROWS) {
            None | Some(0) => Ok(()),
            Some(more) => writeln!(f, "and {more} more (--json lists all)"),
        }
    }

    /// Writes the bytes that went through sockets, by process.
    fn write_bytes(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(processes) = self.socket_bytes().filter(|rows| !rows.is_empty()) else {
            return Ok(());
        };
        writeln!(
            f,
            "\n    bytes sent  copies/byte  bytes received  copies/byte  process"
        )?;
        for row in processes {
            writeln!(
                f,
                "{:14} {:>12} {:15} {:>12}  {} {}",
                row.sent,
                copies_per_byte(row.sent_copied, row.sent),
                row.received,
                copies_per_byte(Some(row.received_copied), row.received),
                row.pid,
                Printable(row.name),
            )?;
        }
        Ok(())
    }
}

/// The number of copies for each byte, or `?` if that is not known.
fn copies_per_byte(copied: Option<u64>, bytes: u64) -> String {
    match (copied, bytes) {
        (_, 0) => "-".to_owned(),
        (None, _) => "?".to_owned(),
        (Some(copied), _) => format!("{:.3}", ratio(copied, bytes)),
    }
}

/// Returns a share between 0 and 1. The number of samples is far below 2^52.
fn ratio(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

/// A share in percent.
struct Percent(f64);

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:.1} %", self.0 * 100.0))
    }
}

/// A name that another program has chosen, with its control characters escaped.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            if character.is_control() {
                write!(f, "{}", character.escape_default())?;
            } else {
                f.write_char(character)?;
            }
        }
        Ok(())
    }
}
