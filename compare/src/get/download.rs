//! Makes downloads. For each, starts a downloader's process, waits for its exit, and checks what it
//! has saved.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::resource::{Usage as ResourceUsage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;

use super::case::GetCase;
use super::contender::{Download, Downloader};
use super::files::SourceFiles;
use super::server::FileServer;
use crate::error::{Context, Error};
use crate::loopback::session::Session;
use crate::measure::Snapshot;

/// The memory that a download takes in addition to the pages of the files that it saves: inodes,
/// directory entries, buffers.
const OTHER_MEMORY_BYTES: u64 = 256 << 20;
/// The smallest unit of memory that is touched.
const PAGE_BYTES: usize = 4096;

/// The time limit for a download.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);

/// What was measured for one download.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    /// The time from the start of the downloader's process to its exit.
    pub(super) seconds: f64,
    /// The user and system CPU seconds of the downloader's process.
    pub(super) client_cpu_seconds: f64,
    /// The CPU seconds of the server's process.
    pub(super) server_cpu_seconds: f64,
    /// Busy time of all CPUs together, for all processes and the kernel.
    pub(super) machine_busy_seconds: f64,
    /// The number of bytes in all files.
    pub(super) bytes: u64,
    /// The number of files.
    pub(super) files: u32,
}

/// Makes the contenders' downloads, one after the other, from one server.
pub(super) struct Downloads<'a> {
    /// The run that the downloads belong to.
    pub(super) session: &'a Session,
    /// The server.
    pub(super) server: FileServer,
    /// The files that the server has.
    pub(super) files: &'a SourceFiles,
    /// The number of small files that are fetched at the same time.
    pub(super) parallel: u16,
    /// How many downloads were made.
    pub(super) made: u32,
}

impl Downloads<'_> {
    /// Makes a contender download the files of a case, measures it, and compares every byte that it
    /// has saved with the files. For `/dev/null`, checks what the server has sent instead.
    ///
    /// What was saved of many small files stays until the end of the run. ext4 without a journal
    /// does not use the inode of a file that was removed in the last minutes, and looks at each of
    /// them whenever it creates a file: after the removal of 10,000 files, this takes most of the
    /// time of any download.
    ///
    /// # Errors
    ///
    /// [`Error::Unavailable`] if the downloader fails, and [`Error::WrongResult`] if it has saved
    /// something else or fetched another number of bytes.
    pub(super) fn measure(
        &mut self,
        contender: &Downloader,
        case: GetCase,
    ) -> Result<Sample, Error> {
        self.files.warm_page_cache(case)?;
        self.server.skip_log()?;
        self.made += 1;
        let saved = self.session.scratch().join(format!("saved-{}", self.made));
        fs::create_dir(&saved).context(|| format!("cannot create {}", saved.display()))?;
        // Wait until the removal of earlier files is on the disk, so that the file system does none
        // of that work during the measurement.
        File::open(&saved)
            .and_then(|directory| Ok(rustix::fs::syncfs(directory)?))
            .context(|| format!("cannot sync {}", saved.display()))?;
        touch_free_memory(case.bytes() + OTHER_MEMORY_BYTES);
        let sample = match case {
            GetCase::File(_) => self.fetch_one(contender, case, &saved.join("large.bin"))?,
            GetCase::Null(_) => self.fetch_one(contender, case, Path::new("/dev/null"))?,
            GetCase::Many(_) => self.fetch_many(contender, case, &saved)?,
        };
        self.server.check_sent(case.bytes())?;
        match case {
            GetCase::File(_) => self.files.check_file(case, 0, &saved.join("large.bin"))?,
            GetCase::Null(_) => {}
            GetCase::Many(_) => self.files.check_directory(case, &saved)?,
        }
        if let GetCase::File(_) = case {
            let saved = saved.join("large.bin");
            fs::remove_file(&saved).context(|| format!("cannot remove {}", saved.display()))?;
        }
        Ok(sample)
    }

    fn fetch_one(
        &self,
        contender: &Downloader,
        case: GetCase,
        output: &Path,
    ) -> Result<Sample, Error> {
        let url = self.server.url(&SourceFiles::name(case, 0));
        let download = Download::One { url: &url, output };
        self.run(contender, case, &download)
    }

    fn fetch_many(
        &self,
        contender: &Downloader,
        case: GetCase,
        directory: &Path,
    ) -> Result<Sample, Error> {
        let urls: Vec<String> = (0..case.files())
            .map(|number| self.server.url(&SourceFiles::name(case, number)))
            .collect();
        let config: String = urls
            .iter()
            .map(|url| format!("url = \"{url}\"\n"))
            .collect();
        let urls = self.write("urls", &(urls.join("\n") + "\n"))?;
        let curl_config = self.write("curl.conf", &config)?;
        let download = Download::Many {
            urls: &urls,
            curl_config: &curl_config,
            directory,
            parallel: self.parallel,
        };
        self.run(contender, case, &download)
    }

    /// Writes a temporary file, and returns its path.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf, Error> {
        let path = self.session.scratch().join(name);
        fs::write(&path, text).context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// Runs a downloader until it exits, and measures it.
    fn run(
        &self,
        contender: &Downloader,
        case: GetCase,
        download: &Download<'_>,
    ) -> Result<Sample, Error> {
        let command = (contender.command)(download)?;
        let before = Snapshot::take(self.server.id(), 0)?;
        let cpu_before = waited_children_cpu_seconds()?;
        let (after, _) = self.session.run_receiver(&command, |child| {
            child.close_input();
            child.wait(DOWNLOAD_LIMIT)?;
            Snapshot::take(self.server.id(), case.bytes())
        })?;
        let cpu_after = waited_children_cpu_seconds()?;
        let usage = after.since(&before);
        Ok(Sample {
            seconds: usage.seconds,
            client_cpu_seconds: cpu_after - cpu_before,
            server_cpu_seconds: usage.process_cpu_seconds,
            machine_busy_seconds: usage.machine_busy_seconds,
            bytes: case.bytes(),
            files: case.files(),
        })
    }
}

/// Uses as much memory as a download will, so that the kernel has that much free memory which the
/// host backs. A virtual machine may return memory that is free, and the download that gets it next
/// waits for the host: up to a second for each GiB.
fn touch_free_memory(bytes: u64) {
    let mut memory = vec![0_u8; bytes as usize];
    for page in memory.chunks_mut(PAGE_BYTES) {
        page[0] = 1;
    }
    black_box(&memory);
}

/// Returns the CPU seconds of all children that this process has waited for. It waits for no other
/// child while a downloader runs, so the difference is the CPU time of the downloader, with all its
/// threads. It is in microseconds, whereas `/proc/PID/stat` has clock ticks.
fn waited_children_cpu_seconds() -> Result<f64, Error> {
    let usage: ResourceUsage = getrusage(UsageWho::RUSAGE_CHILDREN)
        .context(|| "cannot get the CPU time of a child process".into())?;
    let microseconds =
        usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(microseconds as f64 / 1e6)
}
